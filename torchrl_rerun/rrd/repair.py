"""Repairing what a killed process left: a file without a footer and a layout, and a black box beside it."""

from __future__ import annotations

import itertools
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rerun.chunk import Chunk, LazyChunkStream

from torchrl_rerun.blocks.black_box import box_of
from torchrl_rerun.errors import FileInUseError, warn
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import RECORDING_INFO, Schema, shown_envs
from torchrl_rerun.layout.blueprint import layout
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.paths import check_name, find_target, format_path, is_file, make_absolute
from torchrl_rerun.rrd.atomic import remove_abandoned, written_aside
from torchrl_rerun.rrd.blueprints import add_layout, encode
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.files import files_of, recordings_in
from torchrl_rerun.rrd.locks import lock
from torchrl_rerun.rrd.parts import episode_in
from torchrl_rerun.rrd.reader import episodes_left_in, is_unfinished, parts_in, rows_in
from torchrl_rerun.rrd.runs import family


@dataclass(frozen=True)
class Repaired:
    """The result of a repair.

    Attributes:
        path: the file that is whole now.
        frames: recorded resets and steps in it, at least in part.
        episodes: episodes in it, of all environments together, unfinished ones included.
        envs: environments in it.
        cut_bytes: bytes of the unfinished message that was cut off the end; 0: there was none.
        lacking: keys that have fewer rows than others of the same frames, with how many they have, and of how many.
            Pictures are written after small values, so that a kill loses more of them.
    """

    path: Path
    frames: int
    episodes: int
    envs: int
    cut_bytes: int
    lacking: Mapping[Key, tuple[int, int]]


class _NothingRecordedError(ValueError):
    """There is no recording of torchrl_rerun in a file, so that nothing of one is lost."""


def repair(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Repaired | None:
    """Make a recording whole that a killed process left: torn within a message, without a footer or a layout.

    - Whole chunks stay, bit for bit. The unfinished message at the end is cut off.
    - What is in the black box beside it is added: all up to the last step before the process was killed. The box is removed.
    - The layout is made from the recording's own schema.
    - The repaired file is written beside the other one and takes its place at the very end, so that nothing is lost
      whatever goes wrong.
    - A link stays: the file that it leads to is repaired, or written.
    - Copies that an earlier repair was writing beside it when it was killed are removed.
    - Of several files all others are repaired before an error is raised, which names those that could not be. Files in which
      nothing was recorded give a warning.

    Args:
        path: the path that the recorder was given, with all files of the run (``run.worker_0.rrd``, ``run.resumed_1.rrd``); or
            a folder, of which all recordings are repaired. A leading ``~`` is the user's home, as in all paths.
        out: path of the repaired file. ``path`` is that file alone then. Default: the place of the other one.

    Returns:
        The result, of several files the sum over these; None if all is whole already. A file is then left as it is, and
        copied to ``out`` if given.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: the path is a folder, and ``out`` is given.
        FileExistsError: ``out`` exists, or a live recorder still writes to ``path``.
        ValueError: the file isn't a recording of torchrl_rerun, nothing was recorded in it yet, or it is damaged elsewhere
            than at its end; or ``path`` or ``out`` is no regular file.
        OSError: the file can't be read or written.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> import torchrl_rerun
        >>> path = f"{tempfile.mkdtemp()}/run.rrd"
        >>> env = GymEnv("CartPole-v1").append_transform(torchrl_rerun.RerunRecorder(path))
        >>> rollout = env.rollout(10)
        >>> env.close()
        >>> torchrl_rerun.repair(path) is None  # it was closed: it is whole
        True
    """
    source = make_absolute(path).resolve()
    if out is None:
        several = list(recordings_in(source)) if source.is_dir() else files_of(source)
        return repair_file(source) if several == [source] else _repair_all(source, several)
    if not is_file(source):
        raise IsADirectoryError(f"{format_path(source)} is a folder: out is for one file")
    return repair_file(source, find_target(out).resolve())


def repair_file(source: Path, target: Path | None = None) -> Repaired | None:
    """Make one file whole, see :func:`repair`.

    Args:
        source: the file.
        target: path of the repaired file. Default: ``source``.
    """
    target = source if target is None else target
    is_file(source)  # says what else it is
    check_name(source)
    with source.open("rb") as file:
        if target != source and target.exists():
            raise FileExistsError(f"{format_path(target)} exists; choose another path")
        lock(file.fileno(), source)
        remove_abandoned(target.parent)
        part = _part_to_repair(source)
        if part.is_finished and part.has_layout:
            if target != source:
                with written_aside(target, overwrite=False) as hidden:
                    shutil.copyfile(source, hidden)
            else:  # it was finished, and its process killed before the box was removed
                shutil.rmtree(box_of(source), ignore_errors=True)
            return None
        with written_aside(target, overwrite=target == source) as hidden:
            repaired = _repair(part, target, hidden)
            shutil.copymode(source, hidden)
        if target == source:
            shutil.rmtree(box_of(source), ignore_errors=True)
        return repaired


def _part_to_repair(source: Path) -> FilePart:
    """Return the recording in a file.

    Raises:
        ValueError: the file holds none of torchrl_rerun, or several.
    """
    # `rerun rrd route` leaves an empty recording beside each layout that it joins to a file (rerun-sdk 0.41).
    if not source.stat().st_size and not box_of(source).is_dir():
        raise _NothingRecordedError(f"{format_path(source)} is empty: nothing was recorded in it")
    found = [part for part in parts_in(source) if len(part.index)]
    if len(found) > 1:
        raise ValueError(f"{format_path(source)} holds several recordings; a recorder writes one")
    if not found or found[0].schema is None:
        raise _NothingRecordedError(
            f"{format_path(source)} holds nothing to repair: no recording of torchrl_rerun has begun in it"
        )
    return found[0]


def _repair_all(path: Path, recordings: Sequence[Path]) -> Repaired | None:
    """Repair recordings, whatever becomes of any of them. Warn of files in which nothing was recorded.

    Args:
        path: the path that stands for them.
        recordings: the files, and black boxes of folders.

    Raises:
        FileInUseError: a recorder writes to one of them.
        OSError: one of them can't be read or written.
        ValueError: one of them is damaged.
    """
    found: list[Repaired | None] = []
    failed: list[OSError | ValueError] = []
    for each in dict.fromkeys(each.parent for each in recordings):
        remove_abandoned(each)
    for each in recordings:
        try:
            found.append(_repair_one(each))
        except _NothingRecordedError as error:
            warn(str(error), RuntimeWarning)
        except (OSError, ValueError) as error:
            if each.exists():  # its owner may have removed it meanwhile
                failed.append(error)
    if failed:
        raise failed[0] if len(failed) == 1 else _joined(path, failed)
    done = [each for each in found if each is not None]
    if not done:
        return None
    return Repaired(
        path,
        frames=sum(each.frames for each in done),
        episodes=sum(each.episodes for each in done),
        envs=sum(each.envs for each in done),
        cut_bytes=sum(each.cut_bytes for each in done),
        lacking={},
    )


def _repair_one(path: Path) -> Repaired | None:
    """Repair a file, or what is in the black box of a folder of episodes; None: it is whole."""
    if not path.is_dir():
        return repair_file(path) if is_unfinished(path) else None
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        lock(handle, path.parent)
        return finish_episodes(path.parent)
    finally:
        os.close(handle)


def _joined(path: Path, failed: Sequence[OSError | ValueError]) -> OSError | ValueError:
    """Return the one error that tells of several."""
    kinds: tuple[type[OSError | ValueError], ...] = (FileInUseError, OSError, ValueError)
    kind = next(kind for kind in kinds if any(isinstance(error, kind) for error in failed))
    return kind(
        f"{len(failed)} recordings in {format_path(path)} could not be repaired (the others are whole): "
        + "; ".join(map(str, failed))
    )


def finish_episodes(folder: Path) -> Repaired | None:
    """Give the episodes in the black box of a folder files of their own, and remove the box.

    Args:
        folder: the folder, which the caller has locked.

    Returns:
        What was in the box; None: there is none.

    Raises:
        OSError: a file can't be written. The box stays then.
        ValueError: the box is damaged.
    """
    box = box_of(folder)
    if not box.is_dir():
        return None
    frames, envs, parts = 0, set(), episodes_left_in(box)
    for part in parts:
        before = sorted(folder.glob(f"{name_of(part)}.part_*.rrd"))
        with written_aside(folder / f"{name_of(part)}.rrd", overwrite=False) as hidden:
            write_whole(part, hidden, rows_in(before))
        for each in before:
            each.unlink()
        span = part.index.span("frame")
        episode = episode_in(part.properties)
        assert episode is not None, "it is of one episode"
        frames += 1 + (episode.length if span is None else span[1])  # all rows may be in the parts
        envs |= {part.schema.envs} if part.schema is not None else set()
    for torn in folder.glob(".env_*_episode_*.rrd"):  # the file that was being written
        torn.unlink()
    shutil.rmtree(box, ignore_errors=True)
    return Repaired(folder, frames, episodes=len(parts), envs=len(envs), cut_bytes=0, lacking={})


def name_of(part: FilePart) -> str:
    """Return the name that a recording gives itself."""
    return str(part.properties[RECORDING_INFO]["RecordingInfo:name"])


def write_whole(part: FilePart, target: Path, before: Iterable[Chunk] = ()) -> None:
    """Write a recording anew, with a footer and a layout.

    Args:
        part: the recording.
        target: the new file.
        before: chunks of rows to put before its own.
    """
    source, schema = part.file, part.schema
    assert schema is not None, "it is a recording of torchrl_rerun"
    try:
        LazyChunkStream.from_iter(itertools.chain(before, part.all_chunks())).write_rrd(
            target, application_id=part.application_id, recording_id=part.recording_id
        )
    except RuntimeError as error:
        raise OSError(f"{format_path(source)} could not be repaired: {error}") from error
    try:
        envs: Sequence[int | None] = [None]
        if schema.split != "episode":
            envs = shown_envs(schema.envs, schema.source.envs, family(source))
        add_layout(target, encode(layout(Recorded.of_schema(schema, envs)), part.application_id))
    except Exception as error:  # of a future version, perhaps: the data is worth more than its layout
        warnings.warn(f"the recording is complete, but has no layout: {error}", RuntimeWarning, stacklevel=3)


def _repair(part: FilePart, target: Path, mended: Path) -> Repaired:
    """Write a recording anew, with a footer and a layout. Return what is in it."""
    write_whole(part, mended)
    schema = part.schema
    assert schema is not None, "it is a recording of torchrl_rerun"
    frames = part.index.span("frame")
    return Repaired(
        target,
        frames=0 if frames is None else frames[1] - frames[0] + 1,
        episodes=sum(_episodes_of(part, schema, env) for env in schema.envs),
        envs=len(schema.envs),
        cut_bytes=part.torn_bytes,
        lacking=schema.lacking({path: part.count(path) for path in part.index.recorded_paths}),
    )


def _episodes_of(part: FilePart, schema: Schema, env: int) -> int:
    """Return how many episodes of an environment are in a recording, the unfinished one included."""
    paths = {
        schema.path_of(stream, env, agent) for stream, _ in schema.described for agent in range(stream.agent_count)
    }
    spans = [part.index.span_of(path, "episode") for path in part.index.recorded_paths if path in paths]
    return max(last for _, last in spans) - min(first for first, _ in spans) + 1 if spans else 0
