"""Blocks: bounded, preallocated memory that steps are copied into and that is handed over whole.

A :class:`Block` keeps each environment's rows next to one another, so that the writer can wrap them as Arrow columns
without copying. The :class:`Buffer` owns two blocks: one that the env's thread fills while the other is being written.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.episodes import TIMELINES, Rows
from torchrl_rerun.schema import Moment
from torchrl_rerun.streams import Key, Stream

MAX_ROWS = 1 << 16
"""Rows of a block at the most: an array of a few bytes a row gains nothing from more."""

MAX_STREAM_BYTES = 1 << 30
"""Bytes of one stream in a block at the most: Arrow's offsets into its lists are 32-bit."""

BLOCKS = 2


@dataclass(frozen=True)
class Track:
    """Streams that always get their rows together, and so share one set of time columns.

    Attributes:
        streams: what is stored.
        moment: when they get rows; the buffer doesn't look at it.
    """

    streams: tuple[Stream, ...]
    moment: Moment

    @property
    def row_bytes(self) -> int:
        """Bytes of one environment's row."""
        return 8 * len(TIMELINES) + sum(stream.row_bytes for stream in self.streams)


class Block:
    """A piece of time of all tracks.

    Args:
        tracks: what is stored.
        envs: number of recorded environments.
        rows: how many rows of each environment and track there is room for.

    Attributes:
        values: per track and key, ``[envs, lanes, rows, *row_shape]``.
        positions: per track, the time columns, int64 ``[envs, rows, 5]``.
        lengths: per track, how many rows each environment has, ``[envs]``.
        frames: how many frames are in the block.
        object_bytes: size of the Python objects in it, in bytes.
        started: when the first frame came, by ``time.monotonic()``.
    """

    def __init__(self, tracks: Sequence[Track], envs: int, rows: int) -> None:
        self.tracks = tuple(tracks)
        # np.empty takes no memory until it is written to.
        self.values: list[dict[Key, npt.NDArray[Any]]] = [
            {
                stream.key: np.empty(
                    (1 if stream.shared else envs, stream.lanes, rows, *stream.row_shape), stream.storage
                )
                for stream in track.streams
            }
            for track in self.tracks
        ]
        self.positions = [np.empty((envs, rows, len(TIMELINES)), np.int64) for _ in self.tracks]
        self.lengths = [np.zeros(envs, np.intp) for _ in self.tracks]
        self.frames = 0
        self.object_bytes = 0
        self.started = 0.0
        self._envs = envs
        self._rows = rows
        self._grouped = {s.key for track in self.tracks for s in track.streams if s.agents}
        self._objects = [[s.key for s in track.streams if s.dtype == "object"] for track in self.tracks]
        # While all environments have as many rows, that number says it all; None once they differ.
        self._level: list[int | None] = [0] * len(self.tracks)
        self._room = rows

    def clear(self) -> None:
        """Make the block empty, to be filled again."""
        for track, lengths in enumerate(self.lengths):
            lengths[:] = 0
            self._level[track] = 0
            for key in self._objects[track]:
                self.values[track][key][:] = None  # let go of the strings and arrays
        self.frames = 0
        self.object_bytes = 0
        self._room = self._rows

    def has_room(self) -> bool:
        """Whether every environment can get one more row in every track."""
        if self._room <= 0:  # so many frames have come; it may be that no environment had a row in all of them
            self._room = self._rows - max(int(lengths.max(initial=0)) for lengths in self.lengths)
        return self._room > 0

    def begin_frame(self) -> None:
        """A frame comes: each environment gets at most one row in each track."""
        if not self.frames:
            self.started = time.monotonic()
        self.frames += 1
        self._room -= 1

    def append(
        self,
        track: int,
        rows: Rows,
        position: npt.NDArray[np.int64],
        values: Mapping[Key, npt.NDArray[Any]],
    ) -> None:
        """Copy one row of each of ``rows`` into the block.

        Args:
            track: which track.
            rows: the environments that get a row; None: all.
            position: time columns of all environments, ``[envs, 5]``.
            values: per key, the values of all environments, ``[envs, *stream.shape]``; ``[1]`` of what they share.
        """
        level = self._level[track]
        lengths = self.lengths[track]
        if rows is None and level is not None:
            # The common case: all environments are stepped and have as many rows.
            self.positions[track][:, level] = position
            for key, target in self.values[track].items():
                if key in self._grouped:
                    target[:, :, level] = values[key]
                else:
                    target[:, 0, level] = values[key]
            lengths += 1
            self._level[track] = level + 1
        else:
            self._level[track] = None
            rows = np.arange(self._envs) if rows is None else rows
            at = lengths[rows]
            self.positions[track][rows, at] = position[rows]
            for key, target in self.values[track].items():
                if target.shape[0] != self._envs:  # shared by all environments: kept for the first
                    if rows[0] == 0:
                        target[0, 0, at[0]] = values[key][0]
                elif key in self._grouped:
                    target[rows, :, at] = values[key][rows]
                else:
                    target[rows, 0, at] = values[key][rows]
            lengths[rows] += 1
        for key in self._objects[track]:
            self.object_bytes += sum(_size(value) for value in values[key])


class Buffer:
    """Two blocks that take turns, and the bound on what waits.

    Args:
        envs: number of recorded environments.
        capacity: bytes for both blocks together. A block holds at least one row of everything, however large.
        hand_over: takes a block that is full; it must call :meth:`give_back` when it is done with it.
        alive: whether blocks are still being taken; where not, waiting for one would be for ever.
        max_age: seconds after which a block is handed over though it is not full, if the other one is free.
    """

    def __init__(
        self,
        envs: int,
        capacity: int,
        hand_over: Callable[[Block], None],
        alive: Callable[[], bool],
        max_age: float,
    ) -> None:
        self._envs = envs
        self._capacity = capacity
        self._hand_over = hand_over
        self._alive = alive
        self._max_age = max_age
        self._tracks: tuple[Track, ...] = ()
        self._free: queue.SimpleQueue[Block] = queue.SimpleQueue()
        self._block: Block | None = None
        self.lost_frames = 0
        """Frames that were dropped because nobody takes blocks any more."""

    @property
    def tracks(self) -> tuple[Track, ...]:
        """What is stored; setting it hands over what is there, and starts blocks of the new form."""
        return self._tracks

    @tracks.setter
    def tracks(self, tracks: Sequence[Track]) -> None:
        self.flush()
        self._tracks = tuple(tracks)
        self._block = None
        self._free = queue.SimpleQueue()  # blocks of the old form are not given back here
        bytes_per_row = self._envs * sum(track.row_bytes for track in tracks)
        widest = max((stream.row_bytes for track in tracks for stream in track.streams), default=1)
        rows = min(MAX_ROWS, MAX_STREAM_BYTES // max(1, widest), self._capacity // BLOCKS // max(1, bytes_per_row))
        rows = max(1, rows)
        for _ in range(BLOCKS):
            self._free.put(Block(self._tracks, self._envs, rows))

    def frame(self) -> Block | None:
        """The block to copy the next frame into, with room for it; None if it can't be kept any more."""
        block = self._block
        if block is not None and (self._is_full(block) or (self._is_old(block) and not self._free.empty())):
            self._pass_on(block)
            block = None
        if block is None:
            block = self._block = self._next_block()
        if block is None:
            self.lost_frames += 1
            return None
        block.begin_frame()
        return block

    def flush(self) -> None:
        """Hand over what there is."""
        if self._block is not None and self._block.frames:
            self._pass_on(self._block)
            self._block = None

    def give_back(self, block: Block) -> None:
        """A block was written and can be filled again. Called on the writer's thread."""
        if block.tracks is self._tracks:
            block.clear()
            self._free.put(block)

    @property
    def waiting_frames(self) -> int:
        """Frames in the block that is being filled."""
        return 0 if self._block is None else self._block.frames

    def _pass_on(self, block: Block) -> None:
        self._block = None
        if self._alive():
            self._hand_over(block)
        else:
            self.lost_frames += block.frames

    def _is_full(self, block: Block) -> bool:
        return not block.has_room() or block.object_bytes > self._capacity // BLOCKS

    def _is_old(self, block: Block) -> bool:
        return bool(block.frames) and time.monotonic() - block.started > self._max_age

    def _next_block(self) -> Block | None:
        while self._alive():
            try:
                return self._free.get(timeout=0.1)
            except queue.Empty:
                continue
        return None


def _size(value: object) -> int:
    return len(value) if isinstance(value, str) else int(getattr(value, "nbytes", 64))
