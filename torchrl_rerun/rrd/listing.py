"""Listing the episodes that have recordings of their own, and what they came to, without reading their rows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from torchrl_rerun.blocks.black_box import box_of
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.kinds.schema import EPISODE_PROPERTY, PROPERTY
from torchrl_rerun.paths import check_name, format_path, is_file, make_absolute
from torchrl_rerun.rrd.copies import Copies, copies_claimed
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.files import recordings_in
from torchrl_rerun.rrd.parts import EPOCH, episode_in
from torchrl_rerun.rrd.reader import parts_in
from torchrl_rerun.rrd.rests import warn_of_rests


@dataclass(frozen=True)
class RecordedEpisode:
    """An episode that has a recording of its own.

    Attributes:
        episode: its properties.
        recording_id: id of its recording.
        paths: its files, one after the other; several if it was dumped before it was over. The last one may be the black
            box of the folder.
        size: bytes of all its files.
    """

    episode: Episode
    recording_id: str
    paths: tuple[Path, ...]
    size: int

    @property
    def path(self) -> Path:
        """The file with the properties of the episode, which is the last one, and the only one if the episode ended."""
        return self.paths[-1]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files without the black box of the folder; empty if nothing of the episode is in a file yet."""
        return tuple(path for path in self.paths if not is_box(path))

    @property
    def is_in_box(self) -> bool:
        """Whether the episode, or the rest of it, is in the black box of the folder."""
        return len(self.files) < len(self.paths)


def is_box(path: Path) -> bool:
    """Return whether a path is that of the black box of a folder of episodes.

    >>> is_box(Path("runs/.black_box")), is_box(Path("runs/env_0_episode_000000.rrd"))
    (True, False)
    """
    return path == box_of(path.parent)


@dataclass(frozen=True)
class Listing:
    """The recordings in a folder.

    Attributes:
        episodes: the episodes that have recordings of their own, in the order in which they began.
        runs: files of ``torchrl_rerun`` that hold whole runs.
        unreadable: files that hold nothing, are torn or damaged, or are still being written.
        copies: recordings of episodes that count in another file: that file, by their own file and recording id.
    """

    episodes: list[RecordedEpisode]
    runs: list[Path]
    unreadable: list[Path]
    copies: Copies = field(default_factory=dict)


def list_episodes(path: str | os.PathLike[str], progress: Callable[[Sequence[Path]], Iterable[Path]] = iter) -> Listing:
    """Return the recordings in a folder and in the folders in it. Only the properties of each file are read.

    Recordings of other programs are left out, and so are hidden files and folders.

    Args:
        path: the folder, or an ``.rrd`` file. A leading ``~`` is the user's home. Links to folders are followed.
        progress: called with the files; yields them one by one.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: the path is a device, a pipe or a socket.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_rerun import RerunRecorder, list_episodes
        >>> folder = tempfile.mkdtemp()
        >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(folder, split="episode"))
        >>> rollout = env.rollout(100)
        >>> env.close()
        >>> [found] = list_episodes(folder).episodes
        >>> found.path.name, found.episode.length == len(rollout)
        ('env_0_episode_000000.rrd', True)
    """
    root = make_absolute(path)
    files = [root] if is_file(root) else [*recordings_in(root)]
    warn_of_rests(files)
    return listing_of(progress(files))


def listing_of(files: Iterable[Path]) -> Listing:
    """Return the recordings in some files; see :func:`list_episodes`."""
    parts: list[_EpisodePart] = []
    runs: list[Path] = []
    unreadable: list[Path] = []
    for file in _with_later_ones(files):
        try:
            size, found = file.stat().st_size, complete_parts_in(file)
        except (OSError, ValueError):
            if file.exists():  # a recorder may have removed it meanwhile
                unreadable.append(file)
            continue
        for part in found:
            episode = episode_in(part.properties)
            if episode is not None:
                of_part = part.size if file.is_dir() else size
                parts.append(_EpisodePart(episode, file, part.recording_id, part.start_time, of_part))
            elif PROPERTY in part.properties:
                runs.append(file)
    copies = copies_claimed((each.file, each.recording_id, each.start_time) for each in parts)
    recordings: dict[tuple[Path, str], list[_EpisodePart]] = {}
    for each in parts:
        if (each.file, each.recording_id) not in copies:
            recordings.setdefault((each.file.parent, each.recording_id), []).append(each)
    episodes = [_joined(recording_id, of_one) for (_, recording_id), of_one in recordings.items()]
    episodes.sort(key=lambda each: beginning(each.episode))
    return Listing(episodes, runs, unreadable, copies)


def _with_later_ones(files: Iterable[Path]) -> Iterator[Path]:
    """Yield files. After a black box yield those that its owner has written since, which hold what the box doesn't any more."""
    seen: set[Path] = set()
    for file in files:
        seen.add(file)
        yield file
        if file == box_of(file.parent):
            found = sorted(each for each in file.parent.glob("*.rrd") if not each.name.startswith("."))
            yield from (each for each in found if each not in seen and each.is_file())


def files_of_episode(folder: Path, recording_id: str) -> tuple[Path, ...]:
    """Return the files of an episode's recording as they are now, in the order of their rows.

    Args:
        folder: the folder that they are in.
        recording_id: id of the recording, as the recorder made it.
    """
    files = [*paths_like(folder, recording_id), box_of(folder)]
    found = listing_of(file for file in files if file.exists())
    return next((each.paths for each in found.episodes if each.recording_id == recording_id), ())


def paths_like(folder: Path, recording_id: str) -> list[Path]:
    """Return the files in a folder that have the name of an episode's recording, perhaps with a suffix behind it.

    Args:
        folder: the folder.
        recording_id: id of the recording, as the recorder made it.
    """
    said = re.match(r"e(?P<env>\d+)_ep(?P<episode>\d+(_\d{1,5}(?=_))?)", recording_id)
    if said is None:
        return []
    name = f"env_{said['env']}_episode_{said['episode']}"
    return sorted([*folder.glob(f"{name}.rrd"), *folder.glob(f"{name}.part_*.rrd")])


def complete_parts_in(file: Path) -> list[FilePart]:
    """Return what a file holds of each recording, if the viewer can open it and it says what its episode came to.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is no recording, is empty, damaged or unfinished; says which.
    """
    check_name(file)
    found = parts_in(file)
    if not found and not file.is_dir():
        raise ValueError(f"there is nothing in {format_path(file)}")
    for part in found:
        if part.is_torn or not (part.is_finished or EPISODE_PROPERTY in part.properties):
            raise ValueError(f"{format_path(file)} is not finished: what there is of it is not all that there would be")
    return found


@dataclass(frozen=True)
class _EpisodePart:
    """A file of an episode's recording. An episode that was dumped before it was over has several.

    Attributes:
        episode: what the file says of the episode.
        file: the file.
        recording_id: id of the recording.
        start_time: when the recording began, in nanoseconds since the epoch.
        size: bytes of the file.
    """

    episode: Episode
    file: Path
    recording_id: str
    start_time: int | None
    size: int

    @property
    def is_partial(self) -> bool:
        """Whether the file was written before the episode was over, or is a black box."""
        return ".part_" in self.file.name or self.file.is_dir()


def _joined(recording_id: str, parts: list[_EpisodePart]) -> RecordedEpisode:
    """Return an episode, of which several files may be parts."""
    # A kill may come after an episode was written as a whole, and before its parts are removed.
    whole = {part.episode.start_time for part in parts if not part.is_partial}
    parts = [part for part in parts if not (part.is_partial and part.episode.start_time in whole)]
    parts = sorted(parts, key=lambda part: (part.episode.length, not part.episode.interrupted, part.file.is_dir()))
    files = tuple(part.file for part in parts)
    return RecordedEpisode(parts[-1].episode, recording_id, files, sum(part.size for part in parts))


def beginning(episode: Episode) -> tuple[datetime, int, int, int]:
    """Return the sort key that puts episodes into the order in which they began."""
    return episode.start_time or EPOCH, episode.first_step, episode.env, episode.episode
