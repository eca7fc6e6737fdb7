"""The run folder: a file for each episode that stays."""

from __future__ import annotations

import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import rerun.blueprint as rrb
from rerun.chunk import Chunk, LazyChunkStream

from torchrl_rerun.kinds.episode import Episode, EpisodeKey
from torchrl_rerun.paths import absolute, check_name
from torchrl_rerun.rrd.blueprints import EncodedLayout, add_layout
from torchrl_rerun.rrd.listing import list_episodes
from torchrl_rerun.rrd.locks import lock
from torchrl_rerun.rrd.runs import check_folder, elsewhere, make_folder, refuse_earlier_run

_OURS = re.compile(r"\.?env_\d+_episode_\d+(_\d+)?(\.part_\d+)?\.rrd")


class RunFolder:
    """A folder of recordings of one episode each, and which of them stay there.

    Args:
        path: the folder; it is made when it is opened.
        keeper: makes what decides which finished episodes stay; None: all stay.
        overwrite: remove the recordings that an earlier run left in it.

    Attributes:
        path: the folder.
        bytes: of the recordings that were written to it, also of those that are gone.

    Raises:
        PermissionError: the folder can't be written.
        ValueError: its name isn't UTF-8.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, keeper: Callable[[], Keeper] | None = None, overwrite: bool = False
    ) -> None:
        self.path = absolute(path)
        self.overwrite = overwrite
        self.bytes = 0
        self._new_keeper = keeper
        self._keeper = None if keeper is None else keeper()
        self._files: dict[EpisodeKey, tuple[Path, ...]] = {}
        self._handle: int | None = None
        self._is_ours = False
        check_name(self.path)
        check_folder(self.path)

    # --- which episodes stay ---

    @property
    def keeps_all(self) -> bool:
        """Whether every episode stays."""
        return self._keeper is None

    def decide(self, episode: Episode) -> list[Episode]:
        """An episode is over. Returns those that don't stay any longer, which may be itself."""
        if self._keeper is None:
            return []
        gone = [each for each in self._keeper.offer(episode) if not self._keeper.holds(each)]
        for each in gone:
            self._keeper.forget(each)
        return gone

    def free_number(self, stem: str) -> str:
        """What makes a name one that isn't taken by an episode of the same numbers: nothing, ``_2``, ``_3`` and so on."""
        number, added = 1, ""
        while any((self.path / f"{stem}{added}{part}.rrd").exists() for part in ("", ".part_0")):
            number += 1
            added = f"_{number}"
        return added

    def write_file(
        self,
        stem: str,
        chunks: Iterable[Chunk],
        *,
        application_id: str,
        recording_id: str,
        layout: EncodedLayout | None = None,
        of: Episode | None = None,
    ) -> Path:
        """Write a recording. It gets its name when it is whole.

        Args:
            stem: the name, without ``.rrd``.
            chunks: what is in it.
            application_id: what the run is called.
            recording_id: what the recording is called.
            layout: what the viewer opens it with.
            of: the episode, if it is all of one.

        Raises:
            OSError: it can't be written.
        """
        unfinished = self.path / f".{stem}.rrd"
        failed: list[Exception] = []
        try:
            LazyChunkStream.from_iter(_noting(chunks, failed)).write_rrd(
                unfinished, application_id=application_id, recording_id=recording_id
            )
            if layout is not None:
                add_layout(unfinished, layout)
            path = self.path / f"{stem}.rrd"
            self.bytes += unfinished.stat().st_size
            unfinished.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            if failed:  # Rerun would wrap it beyond recognition
                raise failed[0] from None
            raise
        if of is not None and self._keeper is not None:
            self._files[of.key] = (path,)
        return path

    def remove(self, episode: Episode) -> None:
        """An episode doesn't stay: remove its file, if it has one."""
        for path in self._files.pop(episode.key, ()):
            path.unlink(missing_ok=True)

    # --- what a sink is ---

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{self.path.name}/"

    @property
    def location(self) -> str:
        """Where it is found."""
        return str(self.path)

    @property
    def identity(self) -> str:
        """What recorders that share it have in common."""
        return str(self.path)

    @property
    def for_workers(self) -> str:
        """What becomes of it in several workers."""
        return f"each writes into a folder of its own inside {self.label} (worker_0, ...), with its own keep"

    def continuation(self) -> RunFolder:
        """The same: what comes after ``close()`` goes into further files of it."""
        return self

    def resumed(self) -> RunFolder:
        """The same, knowing that what is there is of this run."""
        resumed = RunFolder(self.path, keeper=self._new_keeper)
        resumed._is_ours = True
        return resumed

    def earlier(self) -> list[Path]:
        """The files of the run that were there before this sink was opened."""
        return [path for path in episodes_in(self.path) if not path.name.startswith(".")]

    def elsewhere(self) -> list[Path]:
        """Return the episodes of this run from recorders on the other side: inside the batch, or outside if this is a worker's."""
        return elsewhere(self.path, episodes_in)

    def sibling(self, part: str) -> RunFolder:
        """The folder of a worker."""
        return RunFolder(self.path / part, keeper=self._new_keeper, overwrite=self.overwrite)

    def family(self) -> list[int]:
        """Its recordings are of one environment each."""
        return []

    def check_free(self) -> None:
        """Raise FileExistsError if an earlier run left recordings in the folder."""
        if there := episodes_in(self.path):
            refuse_earlier_run(self.path, there[0])

    def open(self) -> None:
        """Claim the folder.

        Raises:
            FileInUseError: another live recorder writes to it.
            FileExistsError: an earlier run left recordings in it, and ``overwrite`` is false.
            OSError: it can't be made.
        """
        make_folder(self.path)
        self._handle = os.open(self.path, os.O_RDONLY)
        try:
            lock(self._handle, self.path)
            if not (self._is_ours or self.overwrite):
                self.check_free()
            self._take_over_what_is_there()
        except FileExistsError:
            self.close()
            raise

    def _take_over_what_is_there(self) -> None:
        """Which of the episodes of before stay is decided again, together with those to come."""
        if not self._is_ours:
            return
        for path in episodes_in(self.path):
            if path.name.startswith("."):  # what a killed program was writing
                path.unlink(missing_ok=True)
        if self._keeper is None or self._files:
            return
        for found in list_episodes(self.path).episodes:
            if found.path.parent == self.path:  # not of a worker, in a folder of its own
                self._files[found.episode.key] = found.paths
                for gone in self.decide(found.episode):
                    self.remove(gone)

    def keep(self) -> None:
        """There is something to keep: remove what an earlier run left."""
        if not self._is_ours and self.overwrite:
            for path in episodes_in(self.path):
                path.unlink(missing_ok=True)
        self._is_ours = True

    def write(self, chunks: Iterable[Chunk], *, application_id: str, recording_id: str) -> None:
        """Let the chunks come: those of episodes are written by themselves."""
        del application_id, recording_id
        for _ in chunks:
            pass

    def trouble(self) -> OSError | None:
        """What became of the folder, if it can't be found any more."""
        if self._handle is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._handle), self.path.stat()):
                return None
        return FileNotFoundError(f"{self.path} was removed or replaced while it was being recorded to")

    def check(self) -> None:
        """Raise what became of the folder, if it can't be found any more."""
        trouble = self.trouble()
        if trouble is not None:
            raise trouble

    def size(self) -> int:
        """Bytes that were written."""
        return self.bytes

    def files(self) -> list[Path]:
        """The recordings that are in it."""
        return [found.path for found in list_episodes(self.path).episodes]

    def settle(self) -> None:
        """Each file is whole when it has its name."""

    truncate = settle

    def embed(self, layout: rrb.Blueprint, *, application_id: str) -> None:
        """Each file has got its own."""

    def discard(self) -> None:
        """Let go of the folder, and remove it if there is nothing in it."""
        self.close()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def close(self) -> None:
        """Let go of the folder."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def episodes_in(folder: Path) -> list[Path]:
    """Return the recordings of episodes in a folder itself, those that a killed program was writing included."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _OURS.fullmatch(path.name))


def _noting(chunks: Iterable[Chunk], failed: list[Exception]) -> Iterator[Chunk]:
    try:
        yield from chunks
    except Exception as error:
        failed.append(error)
        raise


class Keeper(ABC):
    """Follows the episodes, and says which of them stay."""

    @abstractmethod
    def offer(self, episode: Episode) -> list[Episode]:
        """An episode is over. Returns those that may have to go, itself included; :meth:`holds` says which."""

    @abstractmethod
    def holds(self, episode: Episode) -> bool:
        """Whether an episode that was offered stays. Once it doesn't, it never does again."""

    @abstractmethod
    def forget(self, episode: Episode) -> None:
        """An episode is gone, and is asked for no more."""
