"""Repairing a file that a killed process left, which lacks its footer, its layout and maybe the end of a message."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rerun.chunk import LazyChunkStream

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Schema, shown_envs
from torchrl_rerun.layout.blueprint import layout
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.paths import check_name, find_target, format_path, is_file, make_absolute
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.blueprints import add_layout, encode
from torchrl_rerun.rrd.locks import lock
from torchrl_rerun.rrd.reader import FilePart, parts_in
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


def repair(path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Repaired | None:
    """Make a recording whole that a killed process left: torn within a message, without a footer or a layout.

    - Whole chunks stay, bit for bit. The unfinished message at the end is cut off.
    - The layout is made from the recording's own schema.
    - The repaired file is written beside the other one and takes its place at the very end, so that nothing is lost
      whatever goes wrong.
    - A link stays: the file that it leads to is repaired, or written.

    Args:
        path: the recording. A leading ``~`` is the user's home, as in all paths.
        out: path of the repaired file. Default: the place of the other one.

    Returns:
        The result; None if the file is whole already. It is then left as it is, and copied to ``out`` if given.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: the path is a folder.
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
    target = source if out is None else find_target(out).resolve()
    if not is_file(source):
        raise IsADirectoryError(f"{format_path(source)} is a folder: pass the files in it that are to be repaired")
    check_name(source)
    with source.open("rb") as file:
        if target != source and target.exists():
            raise FileExistsError(f"{format_path(target)} exists; choose another path")
        lock(file.fileno(), source)
        part = _part_to_repair(source)
        if part.is_finished and part.has_layout:
            if target != source:
                with written_aside(target, overwrite=False) as hidden:
                    shutil.copyfile(source, hidden)
            return None
        with written_aside(target, overwrite=target == source) as hidden:
            return _repair(part, target, hidden)


def _part_to_repair(source: Path) -> FilePart:
    """Return the recording in a file.

    Raises:
        ValueError: the file holds none of torchrl_rerun, or several.
    """
    # `rerun rrd route` leaves an empty recording beside each layout that it joins to a file (rerun-sdk 0.41).
    found = [part for part in parts_in(source) if len(part.index)]
    if len(found) > 1:
        raise ValueError(f"{format_path(source)} holds several recordings; a recorder writes one")
    if not found or found[0].schema is None:
        raise ValueError(
            f"{format_path(source)} holds nothing to repair: no recording of torchrl_rerun has begun in it"
        )
    return found[0]


def _repair(part: FilePart, target: Path, mended: Path) -> Repaired:
    """Write a recording anew, with a footer and a layout."""
    source, schema = part.file, part.schema
    assert schema is not None, "it is a recording of torchrl_rerun"
    try:
        LazyChunkStream.from_iter(part.all_chunks()).write_rrd(
            mended, application_id=part.application_id, recording_id=part.recording_id
        )
    except RuntimeError as error:
        raise OSError(f"{format_path(source)} could not be repaired: {error}") from error
    try:
        envs = shown_envs(schema.envs, schema.source.envs, family(source))
        add_layout(mended, encode(layout(Recorded.of_schema(schema, envs)), part.application_id))
    except Exception as error:  # of a future version, perhaps: the data is worth more than its layout
        warnings.warn(f"the recording is complete, but has no layout: {error}", RuntimeWarning, stacklevel=3)
    shutil.copymode(source, mended)
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
