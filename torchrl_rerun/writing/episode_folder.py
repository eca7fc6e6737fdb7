"""The folder of episodes: a file for each episode that is kept."""

from __future__ import annotations

import contextlib
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rerun.chunk import Chunk, LazyChunkStream

from torchrl_rerun.chunks.episode_recordings import free_suffix
from torchrl_rerun.kinds.episode import Episode, EpisodeKey
from torchrl_rerun.rrd.asset_files import FOLDER, asset_files
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.blueprints import EncodedLayout, add_layout
from torchrl_rerun.rrd.listing import list_episodes
from torchrl_rerun.rrd.reader import why_unreadable

_OURS = re.compile(r"\.?env_\d+_episode_\d+(_\d+)?(\.part_\d+)?\.rrd")


class KeptEpisodes(ABC):
    """Follows the episodes that are over, and decides which of them are kept."""

    @abstractmethod
    def offer(self, episode: Episode) -> list[Episode]:
        """Take an episode that is over. Return those that may have to go, itself included; :meth:`holds` decides."""

    @abstractmethod
    def holds(self, episode: Episode) -> bool:
        """Return whether an episode that was offered is kept. Once it isn't, it never is again."""

    @abstractmethod
    def forget(self, episode: Episode) -> None:
        """Forget an episode that is gone."""


class EpisodeFolder:
    """Recordings of one episode each in a folder, and the decision which of them stay there.

    Args:
        path: the folder.
        kept: decides which episodes are kept; None: all are.

    Attributes:
        path: the folder.
        bytes: size of the recordings that were written to it, those included that are gone.
        error: returns an error if the folder was removed or replaced, else None. Another run may record in a new folder of its
            name: nothing is written or removed there.
    """

    def __init__(self, path: Path, kept: KeptEpisodes | None) -> None:
        self.path = path
        self.bytes = 0
        self.error: Callable[[], OSError | None] = lambda: None
        self._kept = kept
        self._files: dict[EpisodeKey, tuple[Path, ...]] = {}

    @property
    def may_replace(self) -> bool:
        """Whether an episode may go for another one, so that it is worth waiting before it is written."""
        return self._kept is not None

    def decide(self, episode: Episode) -> list[Episode]:
        """Decide about an episode that is over. Return those that aren't kept any longer, which may be itself."""
        if self._kept is None:
            return []
        gone = [each for each in self._kept.offer(episode) if not self._kept.holds(each)]
        for each in gone:
            self._kept.forget(each)
        return gone

    def free_number(self, stem: str) -> str:
        """Return the suffix that makes a name free if another episode has it: nothing, ``_2``, ``_3`` and so on."""
        return free_suffix(
            stem, lambda name: any((self.path / f"{name}{part}.rrd").exists() for part in ("", ".part_0"))
        )

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
            chunks: the chunks of the recording.
            application_id: id of the run.
            recording_id: id of the recording.
            layout: the layout that the viewer opens it with.
            of: the episode, unless the recording is a part of one.

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
            self._check()
            self.bytes += unfinished.stat().st_size
            unfinished.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            if failed:  # Rerun would wrap it beyond recognition
                raise failed[0] from None
            raise
        if of is not None and self._kept is not None:
            self._files[of.key] = (path,)
        return path

    def write_shared(self, chunks: Sequence[Chunk], *, application_id: str) -> None:
        """Write what all recordings have in common, unless it is there and whole.

        Args:
            chunks: the chunks; if there are none, nothing is written.
            application_id: id of the run.

        Raises:
            OSError: it can't be written.
        """
        if not chunks:
            return
        stored = (chunk.to_record_batch() for chunk in chunks)
        digest = hashlib.blake2b(digest_size=8)
        for batch in stored:
            digest.update(batch.drop_columns(["rerun.controls.RowId"]).serialize())
        path = self.path / FOLDER / f"{digest.hexdigest()}.rrd"
        if path.exists() and why_unreadable(path) is None:
            return
        self._check()
        with written_aside(path, overwrite=True) as aside:
            LazyChunkStream.from_iter(chunks).write_rrd(
                aside, application_id=application_id, recording_id=digest.hexdigest()
            )

    def _check(self) -> None:
        gone = self.error()
        if gone is not None:
            raise gone

    def remove(self, episode: Episode) -> None:
        """Remove the file of an episode that isn't kept, if it has one."""
        for path in self._files.pop(episode.key, ()):
            if self.error() is None:
                path.unlink(missing_ok=True)

    def remove_all(self) -> None:
        """Remove the recordings that are there."""
        for path in (*episodes_in(self.path), *asset_files(self.path)):
            path.unlink(missing_ok=True)

    def take_over(self) -> None:
        """Decide about the episodes of the run that are there, together with those to come."""
        for path in episodes_in(self.path):
            if path.name.startswith("."):  # of a killed program, which was writing it
                path.unlink(missing_ok=True)
        if self._kept is None or self._files:
            return
        for found in list_episodes(self.path).episodes:
            if found.path.parent == self.path:  # not of a worker, in a folder of its own
                self._files[found.episode.key] = found.paths
                for gone in self.decide(found.episode):
                    self.remove(gone)


def episodes_in(folder: Path) -> list[Path]:
    """Return the recordings of episodes in a folder itself, those included that a killed program was writing."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if _OURS.fullmatch(path.name))


def _noting(chunks: Iterable[Chunk], failed: list[Exception]) -> Iterator[Chunk]:
    try:
        yield from chunks
    except Exception as error:
        failed.append(error)
        raise
