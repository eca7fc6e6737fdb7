"""Rows of an episode: they wait in memory until it is over, and become a chunk for each key."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rerun.chunk import Chunk

from torchrl_rerun.blocks.block import stream_from_json, stream_to_json
from torchrl_rerun.blocks.env_rows import EnvRows, rows_not_in
from torchrl_rerun.blocks.memory import Heap, MaxAge, Memory, NamedArrays, Record
from torchrl_rerun.chunks.chunks import ChunkFactory
from torchrl_rerun.chunks.encoding import Encoding
from torchrl_rerun.chunks.losses import Losses
from torchrl_rerun.kinds.endings import Endings
from torchrl_rerun.kinds.episode import Episode, returns_of
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.objects import size_of
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.timelines import EPISODE, EPISODE_STEP, FRAME, LOG_TIME, REGROUPED, STEP, Positions

EPISODES = "episode"
"""The name of journals of episodes."""

GONE = "gone"
"""What a record says of an episode that isn't kept."""

_Recorded = tuple[Key, bool]
"""A key, and whether its values vary in shape; they may begin to do so within an episode."""


class EpisodeRows:
    """The rows of an episode that are in memory, and a copy of them that outlives the process.

    Args:
        env: environment index.
        episode: number of the episode.
        fps: frames per second of simulated time; None: no ``sim_time``.
        losses: told of values that could not be stored.
        memory: where the copy is. Default: there is none.

    Attributes:
        env: environment index.
        episode: number of the episode.
        first: number of the run's frame that the first of them is at.
        bytes: their size.
        parts: the files of the rows before them.
    """

    def __init__(self, env: int, episode: int, fps: float | None, losses: Losses, memory: Memory | None = None) -> None:
        self._memory = memory or Heap()
        self._journal = self._memory.journal(EPISODES)
        self.env = env
        self.episode = episode
        self.parts: list[Path] = []
        self._suffix: str | None = None
        self._fps = fps
        self._losses = losses
        self._length = 0
        self._began: tuple[int, int] | None = None
        self._return_key: Key | None = None
        self._return = np.nan
        self.clear()

    def suffix(self, stem: str, free_number: Callable[[str], str]) -> str:
        """Return the suffix of the names of its files, chosen once: another episode may have the name without.

        Args:
            stem: the name without a suffix.
            free_number: returns the suffix that makes a name free.
        """
        if self._suffix is None:
            self._suffix = free_number(stem)
        return self._suffix

    def clear(self) -> None:
        """Forget the rows: they are written."""
        self._pieces: list[EnvRows] = []
        self._not_kept: list[Callable[[], Record]] = []
        self.first = 0
        self.bytes = 0
        self._has_copy = self._began is not None
        if self._began is None:
            self._journal.clear()
        else:
            self._journal.restart(self._about)

    @property
    def _about(self) -> dict[str, Any]:
        """What the rows in the journal don't tell: how the episode began."""
        return {"env": self.env, "episode": self.episode, "began": self._began, "suffix": self._suffix}

    def end(self, episode: Episode) -> None:
        """Note that the episode is over, and waits.

        Args:
            episode: its properties.
        """
        self._not_kept.append(lambda: Record(self._about | {"over": episode.to_json()}, {}))

    def keep(self) -> None:
        """Copy what came since the last call to where it outlives the process: until then, it does so in the block that it is from.

        An episode that is over and isn't kept, or is written, before its block is given back costs no file.
        """
        if self._not_kept:
            self._journal.append([make() for make in self._not_kept])
            self._not_kept = []
            self._has_copy = True

    def add(self, piece: EnvRows, part: slice) -> None:
        """Copy a part of the rows of a block. :meth:`keep` must be called before the block is given back."""
        positions = piece.positions[part].copy(order="F")
        if not self.bytes:
            self.first = int(positions[0, FRAME])
        if self._began is None:
            self._began = int(positions[0, STEP] - positions[0, EPISODE_STEP]), int(positions[0, LOG_TIME])
        self.first = min(self.first, int(positions[0, FRAME]))
        self._length = max(self._length, int(positions[-1, EPISODE_STEP]))
        positions[:, FRAME] = positions[:, EPISODE_STEP] + positions[:, REGROUPED]
        values = [(stream, rows[part].copy()) for stream, rows in piece.values]
        if self._memory.is_kept:
            self._not_kept.append(functools.partial(self._record, piece.env, piece.positions[part], values))
        for stream, rows in values:
            if stream.reward_key and self._return_key in (None, stream.key):  # the first of several rewards
                self._return_key, self._return = stream.key, float(returns_of(rows[-1:])[0])
        self._pieces.append(EnvRows(piece.env, positions, values))
        self.bytes += positions.nbytes + sum(_bytes(rows) for _, rows in values)

    def _record(self, env: int, positions: Positions, values: Sequence[tuple[Stream, npt.NDArray[Any]]]) -> Record:
        """Return a record of rows, which :meth:`restore` takes.

        Args:
            env: index of the environment among the recorded ones.
            positions: where it was, by the frames of the run.
            values: per stream its rows.
        """
        arrays: NamedArrays = {"positions": np.ascontiguousarray(positions)}
        arrays |= {str(number): rows for number, (_, rows) in enumerate(values)}
        streams = [stream_to_json(stream) for stream, _ in values]
        return Record({"env": self.env, "episode": self.episode, "at": env, "streams": streams}, arrays)

    def restore(self, record: Record) -> Episode | None:
        """Take a record of a journal. Return the episode's properties if it says that the episode is over.

        Args:
            record: the record.
        """
        about, arrays = record
        if "streams" in about:
            rows = [(stream_from_json(said), arrays[str(at)]) for at, said in enumerate(about["streams"])]
            self.add(EnvRows(about["at"], np.asfortranarray(arrays["positions"]), rows), slice(None))
            return None
        self._began, self._suffix = tuple(about["began"]), about["suffix"]
        return Episode.from_json(about["over"]) if "over" in about else None

    @property
    def _start_time(self) -> datetime:
        return datetime.fromtimestamp((self._began or (0, 0))[1] / 1e9, UTC)

    @property
    def has_begun(self) -> bool:
        """Whether its first row has come, which tells when it began."""
        return self._began is not None

    def frames(self) -> dict[Key, npt.NDArray[np.int64]]:
        """Return the frames of the rows in memory, of each key."""
        found: dict[Key, list[npt.NDArray[np.int64]]] = {}
        for piece in self._pieces:
            for stream, _ in piece.values:
                found.setdefault(stream.key, []).append(piece.positions[:, FRAME])
        return {key: np.concatenate(frames) for key, frames in found.items()}

    def leave_out(self, there: Callable[[Stream], npt.NDArray[np.int64]]) -> None:
        """Forget the rows that are there already.

        Args:
            there: returns the frames within the episode of the rows of a stream that are there.
        """
        pieces = self._pieces
        self._pieces = [part for piece in pieces for part in rows_not_in(piece, piece.positions[:, FRAME], there)]

    def so_far(self) -> Episode:
        """Return the episode's properties as far as its rows tell them."""
        first_step, _ = self._began or (0, 0)
        return Episode(
            self.env,
            self.episode,
            self._return,
            self._length,
            interrupted=True,
            first_step=first_step,
            start_time=self._start_time,
        )

    def ended(self, ends: Sequence[Key]) -> Episode:
        """Return the episode's properties as far as its rows tell them, with how it ended if it did.

        Args:
            ends: the flags that end episodes.
        """
        found: dict[Key, npt.NDArray[Any]] = {}
        for piece in self._pieces:
            if piece.positions[-1, EPISODE_STEP] == self._length:
                found |= {stream.key: rows[-1:] for stream, rows in piece.values}
        how = Endings(ends).ended(found.get, 1) if self._length else None
        episode = self.so_far()
        if how is None:
            return episode
        terminated, truncated = bool(how.terminated[0]), bool(how.truncated[0])
        return replace(episode, interrupted=False, terminated=terminated, truncated=truncated)

    def chunks(self) -> Iterator[Chunk]:
        """Return one chunk for each key and agent."""
        # A new encoder: each part of a video begins with a keyframe.
        pictures = Encoding(self._fps, self._losses, max_age=MaxAge.always(float("inf")))
        factory = ChunkFactory(self._fps, pictures, self._losses)
        for rows in _by_streams(self._pieces):
            yield from factory.chunks(rows, None)
        yield from pictures.flush()

    def give_up(self) -> bool:
        """Note that the episode isn't kept. Return whether :meth:`discard` must wait until its last block is given back.

        Its first rows are in the copy, its last ones in a block: without the copy the block would have an episode without its
        beginning.
        """
        self._not_kept = []
        if self._has_copy:
            self._journal.append([Record({"env": self.env, "episode": self.episode, GONE: True}, {})])
        return self._has_copy

    def discard(self) -> None:
        """Remove the files that hold the rows before these, and the copy: the episode is written, or isn't kept."""
        for part in reversed(
            self.parts
        ):  # a kill in between leaves the first ones, which are of the episode's beginning
            part.unlink(missing_ok=True)
        self.parts.clear()
        self._not_kept = []
        self._journal.remove()


def parts_by_episode(piece: EnvRows) -> Iterator[tuple[int, slice]]:
    """Yield the number of each episode in the rows of an environment, and which rows are of it."""
    episodes = piece.positions[:, EPISODE]
    bounds = [0, *(np.flatnonzero(episodes[1:] != episodes[:-1]) + 1).tolist(), len(episodes)]
    for first, last in itertools.pairwise(bounds):
        yield int(episodes[first]), slice(first, last)


def _by_streams(pieces: Sequence[EnvRows]) -> Iterator[EnvRows]:
    """Yield the rows of an episode, joined over its pieces. Streams that have rows in the same pieces are yielded together."""
    numbers: dict[_Recorded, list[int]] = {}  # of the pieces with rows of a stream
    for number, piece in enumerate(pieces):
        for stream, _ in piece.values:
            numbers.setdefault((stream.key, stream.varies), []).append(number)
    together: dict[tuple[int, ...], list[_Recorded]] = {}
    for recorded, of_stream in numbers.items():
        together.setdefault(tuple(of_stream), []).append(recorded)
    for of_streams, streams in together.items():
        group = [pieces[number] for number in of_streams]
        found = [{(stream.key, stream.varies): (stream, rows) for stream, rows in piece.values} for piece in group]
        yield EnvRows(
            group[0].env,
            np.asfortranarray(np.concatenate([piece.positions for piece in group])),
            [(found[0][each][0], np.concatenate([rows[each][1] for rows in found])) for each in streams],
        )


def _bytes(rows: npt.NDArray[Any]) -> int:
    return sum(map(size_of, rows.reshape(-1))) if rows.dtype == object else rows.nbytes
