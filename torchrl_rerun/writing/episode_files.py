"""Episode files: the output that gives each episode a recording, written when the episode is over and kept."""

from __future__ import annotations

import collections
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rerun.blueprint as rrb
from rerun.chunk import Chunk

from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.buffer import Buffer, oldest_waiting
from torchrl_rerun.blocks.env_rows import EnvRows, rows_by_env
from torchrl_rerun.blocks.events import EndedEpisode
from torchrl_rerun.blocks.memory import Memory
from torchrl_rerun.blocks.returns import RunningReturns
from torchrl_rerun.chunks.episode_recordings import EpisodeRecordings
from torchrl_rerun.chunks.episode_rows import EpisodeRows, parts_by_episode
from torchrl_rerun.chunks.losses import Losses
from torchrl_rerun.kinds.episode import Episode, EpisodeKey
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Source, TimedStream
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.rrd.blueprints import EncodedLayout, encode
from torchrl_rerun.rrd.reader import rows_in
from torchrl_rerun.writing.episode_folder import EpisodeFolder


class EpisodeFiles:
    """Makes a recording of each episode that is kept, without ``/env_{i}``; its ``frame`` is the ``episode_step``.

    Rows wait in memory until their episode is over. An episode that isn't kept is dropped without having been encoded. If
    memory doesn't suffice, the largest of the episodes in progress goes to the disk in parts. These become one file, or are
    removed, when the episode is over.

    Args:
        folder: the folder of the recordings.
        source: the environments.
        envs: the environment index of each recorded environment.
        returns: the running returns so far.
        ended: the episodes that are over, in order; the environment's thread adds them.
        buffers: the buffers that rows wait in before they come here.
        application_id, recording_id: ids of the run.
        capacity: bytes that may wait in memory.
        max_age: seconds that an episode waits, when it is over, for others to take its place.
        memory: where rows that wait are copied to.
    """

    def __init__(
        self,
        folder: EpisodeFolder,
        source: Source,
        envs: Sequence[int],
        returns: RunningReturns,
        *,
        ended: collections.deque[EndedEpisode],
        buffers: Sequence[Buffer],
        application_id: str,
        recording_id: str,
        capacity: int,
        max_age: float,
        memory: Memory,
    ) -> None:
        self._folder = folder
        self._recordings = EpisodeRecordings(source, recording_id)
        self._envs = list(envs)
        self._returns = returns
        self._application_id = application_id
        self._memory = memory
        self._capacity = capacity
        self._max_age = max_age
        self._layout: EncodedLayout | None = None
        self._ended = ended
        self._buffers = buffers
        self._in_progress: dict[tuple[int, int], EpisodeRows] = {}
        self._waiting: dict[EpisodeKey, _Finished] = {}
        self._given_up: list[EpisodeRows] = []
        self._last_over = np.full(len(self._envs), -1)
        self._has_warned = False
        self._losses = Losses()

    def lay_out(self, layout: rrb.Blueprint) -> None:
        """Note the layout that the viewer opens an episode with."""
        try:
            self._layout = encode(layout, self._application_id)
        except (LookupError, ValueError) as error:
            warnings.warn(f"the recordings are complete, but have no layout: {error}", RuntimeWarning, stacklevel=2)

    # --- the interface of an output ---

    def grow(self, source: Source, envs: Sequence[int]) -> None:
        """Write more environments from now on; no block may be on its way.

        Args:
            source: the environments.
            envs: the environment index of each recorded environment.
        """
        self._last_over = np.append(self._last_over, np.full(len(envs) - len(self._envs), -1))
        self._recordings.source, self._envs = source, list(envs)

    def describe(
        self, described: Sequence[TimedStream], new: Sequence[Stream], statistics: Sequence[Key], ends: Sequence[Key]
    ) -> Iterable[Chunk]:
        """Note the description, which each file contains. Return no chunks."""
        del new, statistics
        self._recordings.describe(described, ends)
        self._folder.write_shared(self._recordings.shared, application_id=self._application_id)
        return ()

    def chunks(self, block: Block) -> Iterable[Chunk]:
        """Take the rows of a block. Return no chunks: episodes are written to files of their own."""
        self._discard_given_up()  # the block before this one was given back
        for piece in rows_by_env(block, len(self._envs), self._returns):
            for episode, part in parts_by_episode(piece):
                self._take(piece, episode, part)
        self._finish_complete(besides=block)  # what isn't kept takes no room
        self._relieve()
        return ()

    def due(self) -> Iterable[Chunk]:
        """Finish the episodes that are over, and write those that have waited long enough. Return no chunks."""
        self._finish_complete()
        due = time.monotonic() - self._max_age
        for finished in [each for each in self._waiting.values() if each.since <= due]:
            self._write(finished)
        self._discard_given_up()
        return ()

    def flush(self, complete: int) -> Iterable[Chunk]:
        """Write all episodes, those in progress as parts. Return no chunks.

        Args:
            complete: the frame before which all rows have come. After Ctrl-C more may come until this is gone through.
        """
        self._finish(len(self._ended), complete)
        for finished in list(self._waiting.values()):
            self._write(finished)
        for rows in self._in_progress.values():
            self._write_part(rows)
        self._discard_given_up()
        return ()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the rows that wait."""
        return sum(rows.bytes for rows in self._all_rows())

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame of which a row waits; None if none does."""
        return min((rows.first for rows in self._all_rows() if rows.bytes), default=None)

    def _all_rows(self) -> list[EpisodeRows]:
        """Return the rows in memory. Other threads call this, too."""
        return [*tuple(self._in_progress.values()), *(finished.rows for finished in tuple(self._waiting.values()))]

    # --- rows ---

    def _take(self, piece: EnvRows, episode: int, part: slice) -> None:
        if episode <= self._last_over[piece.env]:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"environment {self._envs[piece.env]} was stepped after its episode was over, without a reset: what came "
                    "of that belongs to no episode, and is not recorded",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return
        key = piece.env, episode
        rows = self._in_progress.get(key)
        if rows is None:
            rows = self._in_progress[key] = EpisodeRows(
                self._envs[piece.env], episode, self._recordings.source.fps, self._losses, self._memory
            )
        rows.add(piece, part)

    def _relieve(self) -> None:
        """Make room in memory: write the episodes that are over first."""
        for finished in list(self._waiting.values()):
            if self.waiting_bytes <= self._capacity:
                return
            self._write(finished)
        while self.waiting_bytes > self._capacity:
            self._write_part(max(self._in_progress.values(), key=lambda rows: rows.bytes))

    # --- episodes ---

    def _finish_complete(self, besides: Block | None = None) -> None:
        """Finish the episodes that are over and of which all rows have come.

        Args:
            besides: the block whose rows have just come. Default: none is being taken.
        """
        count = len(self._ended)  # before the buffers are asked: more may be over by then
        waiting = oldest_waiting(self._buffers, besides)
        self._finish(count, sys.maxsize if waiting is None else waiting)

    def _finish(self, count: int, complete: int) -> None:
        """Finish the first episodes that are over if all of their rows have come, and keep the rows of all others.

        Args:
            count: number of the episodes that are over, at the most.
            complete: the frame before which all rows have come.
        """
        over = 0
        while over < count and self._ended[over].before <= complete:
            self._end(self._ended[over])
            over += 1
        for rows in self._all_rows():
            rows.keep()
        for _ in range(over):  # what the rows of these don't tell is kept with them by now
            self._ended.popleft()

    def _end(self, over: EndedEpisode) -> None:
        self._last_over[over.env] = max(self._last_over[over.env], over.episode.episode)
        rows = self._in_progress.pop((over.env, over.episode.episode), None)
        if rows is None:
            return  # no row of it was recorded, or it was over before: Ctrl-C came in between
        if not over.episode.length:  # it was reset, or the recording closed, before its first step
            self._give_up(rows)
            return
        rows.end(over.episode)
        self._decide(_Finished(over.episode, rows, over.since, []))

    def _decide(self, finished: _Finished) -> None:
        """Decide whether an episode that is over is kept, and which others it takes the place of.

        The file of an episode that goes is removed when the new one is on the disk: a kill in between would cost both.
        """
        stays = True
        for gone in self._folder.decide(finished.episode):
            waiting = self._waiting.pop(gone.key, None)
            if gone is finished.episode:
                stays = False
            elif waiting is None:
                finished.replaces.append(gone)
            else:
                self._give_up(waiting.rows)
                finished.replaces.extend(waiting.replaces)
        if not stays:
            self._give_up(finished.rows)
            self._remove(finished.replaces)
            return
        self._waiting[finished.episode.key] = finished
        if not self._folder.may_replace:
            self._write(finished)

    def _give_up(self, rows: EpisodeRows) -> None:
        """Let go of an episode that isn't kept."""
        if rows.give_up():
            self._given_up.append(rows)
        else:
            self._discard(rows)

    def _discard_given_up(self) -> None:
        """Let go of the episodes that weren't kept, whose blocks were given back."""
        for rows in self._given_up:
            self._discard(rows)
        self._given_up = []

    def _discard(self, rows: EpisodeRows) -> None:
        """Let go of the rows of an episode, and of the files with parts of them, if these are in this folder."""
        if self._folder.error() is not None:
            rows.parts.clear()
        rows.discard()

    def _remove(self, episodes: Iterable[Episode]) -> None:
        for episode in episodes:
            self._folder.remove(episode)

    def _write(self, finished: _Finished) -> None:
        episode, rows = finished.episode, finished.rows
        self._write_file(rows, episode, self._stem(rows), of=episode)
        self._discard(rows)
        del self._waiting[episode.key]
        self._remove(finished.replaces)

    def _write_part(self, rows: EpisodeRows) -> None:
        """Write the rows of an episode in progress to a file whose name says that it is a part."""
        if rows.bytes:
            stem = f"{self._stem(rows)}.part_{len(rows.parts)}"
            rows.parts.append(self._write_file(rows, rows.so_far(), stem))
            rows.clear()

    def _write_file(self, rows: EpisodeRows, episode: Episode, stem: str, of: Episode | None = None) -> Path:
        return self._folder.write_file(
            stem,
            self._recordings.chunks(rows, episode, stem, () if of is None else rows_in(rows.parts)),
            application_id=self._application_id,
            recording_id=self._recordings.recording_id(rows, self._suffix(rows)),
            layout=self._layout,
            of=of,
        )

    def _stem(self, rows: EpisodeRows) -> str:
        return f"{self._recordings.name(rows)}{self._suffix(rows)}"

    def _suffix(self, rows: EpisodeRows) -> str:
        return rows.suffix(self._recordings.name(rows), self._folder.free_number)


class _Finished(NamedTuple):
    """An episode that is over and kept so far, but not written.

    Attributes:
        episode: its properties.
        rows: its rows.
        since: when it was over, in seconds of the monotonic clock.
        replaces: the episodes whose files are removed when it has one.
    """

    episode: Episode
    rows: EpisodeRows
    since: float
    replaces: list[Episode]
