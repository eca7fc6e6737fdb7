"""Run folders: the target of a run of which each episode gets a file of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import rerun.blueprint as rrb
from rerun.chunk import Chunk

from torchrl_rerun.blocks.black_box import BlackBox, box_of
from torchrl_rerun.paths import check_name, make_absolute
from torchrl_rerun.rrd.listing import list_episodes
from torchrl_rerun.rrd.locks import is_locked, leave, lock
from torchrl_rerun.rrd.repair import finish_episodes
from torchrl_rerun.rrd.runs import check_folder, elsewhere, make_folder, refuse_earlier_run
from torchrl_rerun.writing.episode_folder import EpisodeFolder, KeptEpisodes, episodes_in


class EpisodeTarget:
    """A run folder, with a recording of each episode that is kept.

    Args:
        path: the folder; it is made when it is opened.
        new_kept: makes the object that decides which episodes are kept. Default: all are.
        overwrite: whether the recordings that an earlier run left in it are replaced.
        run: the folder as it was when this run was closed or stopped, if this goes on with it.

    Attributes:
        path: the folder.

    Raises:
        PermissionError: the folder can't be written.
        ValueError: its name isn't UTF-8.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        new_kept: Callable[[], KeptEpisodes] | None = None,
        overwrite: bool = False,
        run: EpisodeFolder | None = None,
    ) -> None:
        self.path = make_absolute(path)
        self.overwrite = overwrite
        self._new_kept = new_kept
        self._run = run
        check_name(self.path)
        check_folder(self.path)

    @property
    def label(self) -> str:
        """Its name in messages."""
        return f"{self.path.name}/"

    @property
    def identity(self) -> str:
        """The path of the folder."""
        return str(self.path)

    @property
    def for_workers(self) -> str:
        """A sentence for messages: where several workers write."""
        return f"each writes into a folder of its own inside {self.label} (worker_0, ...), with its own keep"

    def resumed(self) -> EpisodeTarget:
        """Return the folder for a run that goes on after a restart, with the recordings that are there as its episodes."""
        return self.of_run(EpisodeFolder(self.path, self._kept()))

    def of_run(self, run: EpisodeFolder) -> EpisodeTarget:
        """Return the folder for a run that goes on.

        Args:
            run: the folder with the decisions so far.
        """
        return EpisodeTarget(self.path, new_kept=self._new_kept, run=run)

    def _kept(self) -> KeptEpisodes | None:
        return None if self._new_kept is None else self._new_kept()

    def earlier(self) -> list[Path]:
        """Return the recordings of the run that were there before this folder was opened."""
        return [path for path in episodes_in(self.path) if not path.name.startswith(".")]

    def elsewhere(self) -> list[Path]:
        """Return the episodes of this run from recorders on the other side: inside the batch, or outside if this is a worker's."""
        return elsewhere(self.path, episodes_in)

    def sibling(self, part: str) -> EpisodeTarget:
        """Return the folder of a worker, inside this one."""
        return EpisodeTarget(self.path / part, new_kept=self._new_kept, overwrite=self.overwrite)

    def family(self) -> list[int]:
        """Return no workers: a recording is of one environment."""
        return []

    def check_free(self) -> None:
        """Raise FileExistsError if an earlier run left recordings in the folder."""
        if there := episodes_in(self.path):
            refuse_earlier_run(self.path, there[0])
        if self._is_left_behind():
            refuse_earlier_run(self.path, box_of(self.path))

    def _is_left_behind(self) -> bool:
        """Return whether there is a black box of a run that ended, and not of one that is being recorded."""
        return box_of(self.path).is_dir() and not is_locked(self.path)

    def open(self) -> EpisodeWriter:
        """Claim the folder, and return what writes into it.

        Raises:
            FileInUseError: another live recorder writes to it.
            FileExistsError: an earlier run left recordings in it, and ``overwrite`` is false.
            OSError: it can't be made.
        """
        make_folder(self.path)
        is_left_behind = self._is_left_behind()
        handle = os.open(self.path, os.O_RDONLY)
        try:
            lock(handle, self.path)
            if self._run is not None:
                finish_episodes(self.path)
                self._run.take_over()
            elif not self.overwrite:
                self.check_free()
                if is_left_behind:
                    refuse_earlier_run(self.path, box_of(self.path))
        except BaseException:
            os.close(handle)
            raise
        return EpisodeWriter(
            self, self._run or EpisodeFolder(self.path, self._kept()), handle, is_new=self._run is None
        )


class EpisodeWriter:
    """An open run folder. Episodes are written to :attr:`episodes`; chunks that come otherwise are of none, and are dropped.

    Args:
        target: the folder.
        episodes: the recordings in it.
        handle: the open folder.
        is_new: whether the run begins with it.

    Attributes:
        target: the folder.
        episodes: the recordings in it.
        memory: the black box in it.
    """

    def __init__(self, target: EpisodeTarget, episodes: EpisodeFolder, handle: int, *, is_new: bool) -> None:
        self.target = target
        self.episodes = episodes
        self.memory = BlackBox(box_of(target.path))
        self._handle: int | None = handle
        self._is_new = is_new
        self._bytes_before = episodes.bytes
        episodes.error = self.error

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.target.label

    @property
    def location(self) -> str:
        """The path of the folder."""
        return str(self.target.path)

    def continuation(self) -> EpisodeTarget:
        """Return the folder for the episodes that come after it was closed."""
        return self.target if self._is_new else self.target.of_run(self.episodes)

    def write(self, chunks: Iterable[Chunk], *, application_id: str, recording_id: str) -> None:
        """Take all chunks and keep none: the output writes the files of episodes itself."""
        del application_id, recording_id
        for _ in chunks:
            pass

    def mark_whole(self) -> None:
        """Do nothing: each file is whole when it has its name."""

    def truncate(self) -> None:
        """Do nothing: each file is whole when it has its name."""

    def error(self) -> OSError | None:
        """Return an error if the folder was removed or replaced, else None."""
        if self._handle is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._handle), self.target.path.stat()):
                return None
        return FileNotFoundError(f"{self.target.path} was removed or replaced while it was being recorded to")

    def size(self) -> int:
        """Return how many bytes were written."""
        return self.episodes.bytes - self._bytes_before

    def files(self) -> list[Path]:
        """Return the recordings that are in the folder; none if it was removed."""
        try:
            return [found.path for found in list_episodes(self.target.path).episodes]
        except FileNotFoundError:
            return []

    def replace_earlier(self) -> None:
        """Remove the recordings that an earlier run left."""
        if self._is_new and self.target.overwrite:
            self.episodes.remove_all()
        self.memory.replace_earlier()
        self._is_new = False

    def embed(self, layout: rrb.Blueprint, *, application_id: str) -> None:
        """Do nothing: each file has got its layout."""

    def rename(self, suffix: str) -> None:
        """Do nothing: files are named after their episodes."""

    def discard(self) -> None:
        """Let go of the folder, and remove it if there is nothing in it."""
        self.memory.remove()
        self.memory.restore_earlier()
        self.close()
        with contextlib.suppress(OSError):
            self.target.path.rmdir()

    def leave(self) -> None:
        """Leave the folder to the parent of this forked process."""
        if self._handle is not None:
            leave(self._handle)

    def close(self) -> None:
        """Let go of the folder."""
        self.memory.remove()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
