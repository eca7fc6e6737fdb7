"""Loading: the recordings at a path, in a folder or in a catalog, opened to be read back."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.paths import format_path, make_absolute
from torchrl_rerun.reading.episodes import LoadedEpisodes
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.lacking import warn_of_lacking_episodes, warn_of_lacking_rows
from torchrl_rerun.reading.recordings import EpisodeRecording, OpenedRecording, schema_of
from torchrl_rerun.rrd.copies import copies_in, warn_of_copies
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.files import files_of, not_ours
from torchrl_rerun.rrd.listing import listing_of
from torchrl_rerun.rrd.parts import episode_in
from torchrl_rerun.rrd.reader import parts_in, why_unreadable
from torchrl_rerun.rrd.rests import warn_of_rests
from torchrl_rerun.rrd.segments import SegmentPart

if TYPE_CHECKING:
    from rerun.catalog import DatasetEntry

Place = str | os.PathLike[str]
"""A file, a folder, or a pattern of these."""


def load(source: Place | Iterable[Place] | DatasetEntry) -> LoadedEpisodes:
    """Return the episodes of recordings, to read them back as they were recorded.

    Only the descriptions in the files are read. DecodedRows are read when they are asked for.

    - The file of a run that was killed, or that goes on, is read up to the last step. Without its black box it is read as far
      as it is written, and a warning names the keys that lack rows.
    - A warning says if a file is a part of an episode whose rest is in the black box of its folder: load the folder.
    - A recording of which there are copies counts once, and a warning names them.

    Args:
        source: an ``.rrd`` file (its parts and the files of its workers come with it), a folder, a pattern such as
            ``"runs/*.rrd"``, or several of these; or a dataset of Rerun's catalog. A leading ``~`` is the user's home.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: there is no recording of ``torchrl_rerun``, or a file is damaged. Reading an episode raises it, too, if
            another file was put in the place of its file meanwhile.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_rerun import RerunRecorder, load
        >>> path = tempfile.mkdtemp() + "/run.rrd"
        >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
        >>> rollout = env.rollout(10)
        >>> env.close()
        >>> [episode] = load(path)
        >>> episode.properties.length == len(rollout)
        True
        >>> (episode.tensordict()["next", "observation"] == rollout["next", "observation"]).all()
        tensor(True)
    """
    if hasattr(source, "segment_store"):  # a dataset of Rerun's catalog, which needn't be installed
        found = list(_segments(cast("DatasetEntry", source)))
    else:
        given = [source] if isinstance(source, str | os.PathLike) else list(source)
        files = list({file.resolve(): file for each in given for file in _files(os.fspath(each))}.values())
        warn_of_rests(files)
        found = list(_histories(files))
        if files and not found:
            raise ValueError(why_unreadable(files[0]) or not_ours(files[0]))
    if not found:
        raise ValueError(f"there is no recording of torchrl_rerun in {source}")
    return LoadedEpisodes(found)


def _files(given: str) -> Iterator[Path]:
    """Yield the files that a path or a pattern stands for."""
    if glob.has_magic(given) and not make_absolute(given).exists():
        home, separator, below = given.partition("/") if given.startswith("~") else ("", "", given)
        pattern = glob.escape(os.path.expanduser(home)) + separator + below  # noqa: PTH111 - it is no path yet
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - it may be absolute
        matches = [match for match in found if Path(match).is_file() or Path(match).is_dir()]
        if not matches:
            raise FileNotFoundError(f"nothing matches {given!r}")
        for match in matches:
            yield from files_of(Path(match))
    else:
        yield from files_of(given)


def _histories(files: Sequence[Path]) -> Iterator[tuple[History, Episode | None]]:
    """Yield the recorded environments in some files, each with its episode if the recording is of one."""
    listing = listing_of(files)
    warn_of_lacking_episodes(listing.episodes)
    for found in listing.episodes:
        yield History(EpisodeRecording(found.paths, found.recording_id), found.episode.env), found.episode
    whole = {found.recording_id: found.path for found in listing.episodes}
    parts, copies, is_all = [], dict(listing.copies), len(files) == 1
    for part in _parts((*dict.fromkeys(listing.runs), *listing.unreadable), is_all=is_all):
        file, recording_id = part.file, part.recording_id
        if schema_of(part).split != "episode":
            parts.append(part)
        elif file in listing.unreadable:  # the others are listed
            if recording_id in whole:
                copies[file, recording_id] = whole[recording_id]
            elif not is_all:
                warn(f"left out: {why_unreadable(file) or f'{format_path(file)} is damaged'}", RuntimeWarning)
    copies |= copies_in(parts)
    warn_of_copies(copies)
    for recording in _recordings(part for part in parts if (part.file, part.recording_id) not in copies):
        warn_of_lacking_rows(recording)
        for env in recording.schema.envs:
            yield History(recording, env), None


def _segments(dataset: DatasetEntry) -> Iterator[tuple[History, Episode | None]]:
    """Yield the recorded environments in a dataset, each with its episode if the recording is of one."""
    for segment in dataset.segment_ids():
        part = SegmentPart.of(dataset, segment)
        if part.schema is not None:
            recording = OpenedRecording([part])
            episode = episode_in(part.properties) if recording.schema.split == "episode" else None
            for env in recording.schema.envs if episode is None else [episode.env]:
                yield History(recording, env), episode


def _parts(files: Sequence[Path], *, is_all: bool) -> Iterator[FilePart]:
    """Yield the parts of recordings of ``torchrl_rerun`` in some files. A warning names a file that is damaged.

    Args:
        files: the files.
        is_all: whether there is no other file, so that a damaged one is an error.

    Raises:
        ValueError: the only file can't be read.
    """
    for file in files:
        try:
            found = [part for part in parts_in(file) if part.schema is not None]
        except FileNotFoundError:
            if is_all:
                raise
            continue  # its recorder has removed it meanwhile
        except ValueError as error:
            said = f"{why_unreadable(file) or error}"
            if is_all:
                raise ValueError(said) from error
            warn(f"left out: {said}", RuntimeWarning)
            continue
        yield from found


def _recordings(parts: Iterable[FilePart]) -> Iterator[OpenedRecording[FilePart]]:
    """Yield recordings: parts of one id that follow one another and are read alike, and dumps of one run."""
    found: dict[tuple[Any, ...], list[FilePart]] = {}
    ends: dict[tuple[Any, ...], dict[str, int]] = {}
    for part in sorted(parts, key=lambda part: part.began):
        schema = schema_of(part)
        # A dump goes on where the one before ended.
        same = part.application_id if schema.split == "dump" else part.recording_id
        size, envs = schema.source.batch_size, schema.envs
        # A list of trajectories may have grown; recordings of several workers differ in their first environment.
        key = part.file.parent, same, schema.split, *((len(size), envs[:1]) if len(size) == 1 else (size, envs))
        reached = ends.setdefault(key, {})
        is_anew = any(first < reached.get(path, first) for path, (first, _) in part.steps.items())
        if key in found and (is_anew or not _are_read_alike(schema_of(found[key][-1]), schema)):
            of_one = found.pop(key)  # it was begun anew under the same name, or resumed with another environment
            reached.clear()
            yield OpenedRecording(of_one)
        found.setdefault(key, []).append(part)
        reached.update({path: last for path, (_, last) in part.steps.items()})
    for of_one in found.values():
        yield OpenedRecording(of_one)


def _are_read_alike(schema: Schema, other: Schema) -> bool:
    """Return whether rows of two parts are of the same numbers, and their scenes of the same models."""
    streams = {stream.key: stream for stream, _ in schema.described}
    return all(_are_alike(streams[each.key], each) for each, _ in other.described if each.key in streams)


def _are_alike(stream: Stream, other: Stream) -> bool:
    if not (stream.is_object or other.is_object) and (stream.dtype, stream.shape) != (other.dtype, other.shape):
        return False
    return all(
        [*one.assets()] == [*two.assets()] for (_, one), (_, two) in zip(stream.drawing, other.drawing, strict=False)
    )
