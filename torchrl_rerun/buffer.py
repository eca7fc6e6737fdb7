"""Blocks: bounded, preallocated memory that steps are copied into and that is handed over whole.

A :class:`Block` holds a piece of time. Small rows lie frame by frame, so that a step of thousands of environments is one
copy; large ones, from a page of memory on, lie environment by environment, so that the writer can wrap them as they are.
A :class:`Buffer` owns two blocks: one that the env's thread fills while the other is being written.
"""

from __future__ import annotations

import collections
import contextlib
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rerun.chunk import Chunk

from torchrl_rerun.devices import Arrival, Transfers
from torchrl_rerun.episodes import Positions
from torchrl_rerun.events import Event, Events
from torchrl_rerun.objects import size_of
from torchrl_rerun.schema import Moment
from torchrl_rerun.streams import PAGE, Stream

ACTED = Moment.ACTED

MAX_SLOTS = 2048
"""Frames of a block at the most. More would not be cheaper, and files would grow: LZ4 finds a time column in another
one only if both lie within 64 KiB."""

MAX_STREAM_BYTES = 1 << 30
"""Bytes of one stream of an environment in a block at the most: Arrow's offsets into its lists are 32-bit."""

BLOCKS = 2

MANY = 8
"""The share of the environments from which on a frame is copied whole: picking rows takes longer."""

EVENTS_PER_SLOT = 4
"""Events that a block notes at the most, for each frame that it has room for."""

Arrays = Sequence[Any]
"""One array ``[envs, *stream.slot_shape]`` for each stream of a moment, in their order; None for what is missing."""


@dataclass(frozen=True)
class Track:
    """Streams that always get their rows together.

    Attributes:
        moment: when they get rows.
        streams: what is stored. Those that are sums of others take no room: they are worked out from them.
        at: where the values of each stream are among those of the moment.
        is_summed: rewards are among them. Sums need those of all steps, also of steps that aren't recorded.
    """

    moment: Moment
    streams: tuple[Stream, ...]
    at: tuple[int, ...] = ()
    is_summed: bool = False

    def part(self, at: Sequence[int]) -> Track:
        """A track of some of its streams, those whose values are at ``at``."""
        return replace(self, streams=tuple(self.streams[self.at.index(i)] for i in at), at=tuple(at))

    @property
    def row_bytes(self) -> int:
        """Bytes of one environment's row."""
        return sum(stream.row_bytes for stream in self.streams if not stream.sums)


class Values:
    """What is stored of one stream in a block.

    Args:
        stream: the stream.
        envs: number of recorded environments.
        slots: how many frames there is room for.

    Attributes:
        array: ``[slots, envs, *stream.slot_shape]``, or ``[envs, slots, *stream.slot_shape]`` if it lies by environment.
    """

    def __init__(self, stream: Stream, envs: int, slots: int) -> None:
        self.stream = stream
        self.is_objects = stream.is_object
        # From an accelerator a frame comes in one piece.
        self.lies_by_env = stream.is_large and not stream.device
        envs = 1 if stream.shared else envs
        sizes = (envs, slots) if self.lies_by_env else (slots, envs)
        allocate = Transfers.allocate if stream.device else np.empty  # which takes no memory until it is written to
        self.array: npt.NDArray[Any] = allocate((*sizes, *stream.slot_shape), stream.storage)

    @property
    def by_frame(self) -> npt.NDArray[Any]:
        """``[slots, envs, *stream.slot_shape]``."""
        return self.array.swapaxes(0, 1) if self.lies_by_env else self.array

    def of(self, env: int, slots: slice | npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """The rows ``[n, *stream.slot_shape]`` of an environment in some slots."""
        rows: npt.NDArray[Any] = self.array[env, slots] if self.lies_by_env else self.array[slots, env]
        return rows


class Block:
    """A piece of time of all tracks.

    Args:
        tracks: what is stored.
        envs: number of recorded environments.
        slots: how many frames there is room for.
        object_capacity: bytes of Python objects that make it full.
        transfers: per device that values come from, who copies from there.

    Attributes:
        start: where the environments were before it.
        events: what happened.
        frames: per track, which of these events gave it rows.
        values: per track, what is stored of each stream that is no sum.
        room: how many more frames there is room for, at least.
        is_heavy: whether it is full of Python objects, though it has room for more.
    """

    def __init__(
        self,
        tracks: Sequence[Track],
        envs: int,
        slots: int,
        *,
        object_capacity: int = MAX_STREAM_BYTES,
        transfers: Mapping[str, Transfers] | None = None,
    ) -> None:
        self.tracks = tuple(tracks)
        self.start: Positions = np.empty((0, 0), np.int64)
        self.events = Events()
        self.frames: list[list[int]] = [[] for _ in self.tracks]
        self.values = [[Values(stream, envs, slots) for stream in t.streams if not stream.sums] for t in self.tracks]
        self.object_bytes = 0
        self.is_heavy = False
        self._object_capacity = object_capacity
        self._envs = envs
        self._many = envs / MANY
        self._slots = slots
        self.room = slots
        self._transfers = dict(transfers or {})
        self._arrivals: list[Arrival] = []
        # What `add` goes through, for each track: its moment, whether it is summed, where its first value is, its frames;
        # and arrays and where their values are, of streams that lie by frame, that lie by environment, that are Python objects, and
        # that are on an accelerator.
        self._plan = []
        for track, frames, values in zip(self.tracks, self.frames, self.values, strict=True):
            pairs = list(zip(values, track.at, strict=True))
            near = [(v, i) for v, i in pairs if not v.stream.device]
            far = [(v, i) for v, i in pairs if v.stream.device]
            by_frame = [(v.array, i) for v, i in near if not v.lies_by_env]
            by_env = [(v.array, i) for v, i in pairs if v.lies_by_env]
            objects = [i for v, i in pairs if v.is_objects]
            first = track.at[0] if track.at else None
            self._plan.append((track.moment, track.is_summed, first, frames, by_frame, by_env, objects, far))

    def clear(self) -> None:
        """Make the block empty, to be filled again."""
        self.events.clear()
        for frames in self.frames:
            frames.clear()
        for track in self.values:
            for values in track:
                if values.is_objects:
                    values.array[:] = None  # let go of the strings and arrays
        self.object_bytes = 0
        self.is_heavy = False
        self.room = self._slots

    def touch(self) -> None:
        """Write to each page of its memory, so that the system has given it when it is needed."""
        for track in self.values:
            for values in track:
                if not values.is_objects:
                    values.array.reshape(-1).view(np.uint8)[::PAGE] = 0

    @property
    def bytes(self) -> int:
        """Bytes of the frames in it."""
        slots = [len(frames) for frames in self.frames]
        rows = sum(track.row_bytes * n for track, n in zip(self.tracks, slots, strict=True))
        return self._envs * rows + self.object_bytes

    def has_room(self) -> bool:
        """Whether there is room for one more frame."""
        if self.room <= 0:  # so many frames have come; it may be that no track had rows in all of them
            most = max(map(len, self.frames), default=0)
            self.room = min(self._slots - most, EVENTS_PER_SLOT * self._slots - len(self.events))
        return self.room > 0

    def add(self, event: Event, moments: Sequence[Arrays | None]) -> None:
        """Copy a frame into the block.

        Args:
            event: what happened.
            moments: per moment, the values of all environments; None for a moment that had none. Where the values of a
                track are missing, it gets no rows.
        """
        number, after = len(self.events), event.after
        self.events.append(event)
        self.room -= 1
        for moment, is_summed, first, frames, by_frame, by_env, objects, far in self._plan:
            arrays = moments[moment]
            if arrays is None or (first is not None and arrays[first] is None):
                continue
            rows = event.rows if is_summed else event.before if moment is ACTED else after
            if rows is not None and not len(rows):
                continue
            slot = len(frames)
            frames.append(number)
            if rows is None or len(rows) >= self._many:
                for array, i in by_frame:  # of those that have no row, too: `presence` leaves them out
                    array[slot] = arrays[i]
            else:
                for array, i in by_frame:
                    if array.shape[1] == self._envs:
                        array[slot, rows] = arrays[i][rows]
                    elif rows[0] == 0:  # what all environments share is kept for the first
                        array[slot] = arrays[i]
            for array, i in by_env:
                if rows is None:
                    array[:, slot] = arrays[i]
                else:
                    array[rows, slot] = arrays[i][rows]
            if objects:
                self._weigh(arrays[i] for i in objects)
            if far:
                self._transfer(far, slot, arrays)

    def drop(self, event: Event) -> None:
        """Forget an event if it is the last one, however much of its frame was copied."""
        self.events.drop(event)
        for frames in self.frames:
            while frames and frames[-1] >= len(self.events):
                frames.pop()

    def _weigh(self, objects: Iterable[npt.NDArray[Any]]) -> None:
        self.object_bytes += sum(size_of(value) for values in objects for value in values.flat)
        self.is_heavy = self.object_bytes > self._object_capacity

    def _transfer(self, far: Sequence[tuple[Values, int]], slot: int, arrays: Arrays) -> None:
        """Begin to copy a slot from accelerators: whole, for which of its rows count is known without it."""
        for device, transfers in self._transfers.items():
            transfers.copy([(values.array[slot], arrays[i]) for values, i in far if values.stream.device == device])

    def seal(self) -> None:
        """No more frames come: note what is still on its way from accelerators."""
        self._arrivals = [transfers.arrival() for transfers in self._transfers.values()]

    def wait(self) -> None:
        """Return when all values have arrived. For the writer's thread."""
        for arrival in self._arrivals:
            arrival.synchronize()
        self._arrivals.clear()

    def presence(self, track: int) -> npt.NDArray[np.bool_] | None:
        """In which slots of a track each environment has a row, ``[slots, envs]``; None: in all of them."""
        frames = np.array(self.frames[track], np.intp)
        present = None
        for position, rows in self.events.partial(before=self.tracks[track].moment is ACTED):
            slot = int(np.searchsorted(frames, position))
            if slot < len(frames) and frames[slot] == position:
                if present is None:
                    present = np.ones((len(frames), self._envs), np.bool_)
                present[slot] = False
                present[slot, rows] = True
        return present


@dataclass(eq=False, slots=True)
class Turn:
    """A block's turn: from its first frame until it is written.

    Attributes:
        first: number of its first frame.
        block: the block.
        frames: its frames ``[first, last)``; None while more may come.
        is_handed_over: the writer has it.
        is_written: the writer is done with it, and the block may be in its next turn.
    """

    first: int
    block: Block
    frames: tuple[int, int] | None = None
    is_handed_over: bool = False
    is_written: bool = False


class Buffer:
    """Two blocks that take turns, and the bound on what waits.

    Args:
        envs: number of recorded environments.
        capacity: bytes for both blocks together. A block holds at least one frame of everything, however large.
        chunks: turns a block into chunks.
        hand_over: takes this buffer and the turn of a block that is full; :meth:`give_back` must be called when what
            :meth:`chunks` makes of it is written. After Ctrl-C it may be called again with the same turn.
        alive: whether blocks are still being taken; where not, waiting for one would be for ever.
        waited: called when the env's thread had to wait for a block.
        max_age: seconds after which a block is handed over though it is not full, if the other one is free.

    Attributes:
        seconds_waited: how long the env's thread has waited for the writer.
    """

    def __init__(
        self,
        envs: int,
        capacity: int,
        chunks: Callable[[Block], Iterator[Chunk]],
        hand_over: Callable[[Buffer, Turn], None],
        *,
        alive: Callable[[], bool],
        max_age: float,
        waited: Callable[[], None] = lambda: None,
    ) -> None:
        self._chunks = chunks
        self._capacity = capacity
        self.seconds_waited = 0.0
        self._envs = envs
        self._hand_over = hand_over
        self._alive = alive
        self._waited = waited
        self._max_age = max_age * 1e9
        self._tracks: tuple[Track, ...] = ()
        self._is_summed = False
        self._blocks: list[Block] = []
        self._in_preparation: Block | None = None
        self._block: Block | None = None
        self._expires = 0.0
        # Those that aren't over, in order. Which blocks are free follows from them: Ctrl-C can't lose one.
        self._turns: collections.deque[Turn] = collections.deque()
        self._given_back: queue.SimpleQueue[None] = queue.SimpleQueue()  # wakes who waits for a block

    @property
    def tracks(self) -> tuple[Track, ...]:
        """What is stored; setting it hands over what is there, and starts blocks of the new form."""
        return self._tracks

    @tracks.setter
    def tracks(self, tracks: Sequence[Track]) -> None:
        self.flush()
        self._tracks = tuple(tracks)
        self._is_summed = any(track.is_summed for track in tracks)
        devices = sorted({stream.device for track in tracks for stream in track.streams if stream.device})
        transfers = {device: Transfers(device) for device in devices}
        self._blocks = [
            Block(self._tracks, self._envs, self.slots, object_capacity=self._capacity // BLOCKS, transfers=transfers)
            for _ in range(BLOCKS if tracks else 0)
        ]

    def prepare(self) -> Iterator[Chunk]:
        """Keep a block that isn't needed at once from use, until what this returns has been gone through.

        That is for the writer's thread: the system may take a tenth of a second to find memory for a large block, when it
        is written to for the first time.
        """
        self._in_preparation = self._free_block()
        return self._prepared(self._in_preparation)

    def _prepared(self, block: Block | None) -> Iterator[Chunk]:
        if block is not None:
            block.touch()
            self._in_preparation = None
            self._wake()
        yield from ()

    def grow(self, envs: int) -> None:
        """Hand over what is there, and start blocks of more environments."""
        self.flush()
        self._envs = envs
        self.tracks = self._tracks

    @property
    def capacity(self) -> int:
        """Bytes for both blocks; setting it hands over what is there, and starts blocks of the new size."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        if capacity != self._capacity:
            self._capacity = capacity
            self.tracks = self._tracks

    @property
    def slots(self) -> int:
        """Frames that a block holds."""
        frame_bytes = max(1, self._frame_bytes)
        widest = max((stream.row_bytes for track in self._tracks for stream in track.streams), default=1)
        return max(1, min(MAX_SLOTS, MAX_STREAM_BYTES // max(1, widest), self._capacity // BLOCKS // frame_bytes))

    @property
    def bytes_at_most(self) -> int:
        """Bytes of its blocks if nothing but their number of frames bounds them."""
        return BLOCKS * MAX_SLOTS * self._frame_bytes

    @property
    def _frame_bytes(self) -> int:
        return self._envs * sum(track.row_bytes for track in self._tracks)

    def add(
        self,
        event: Event,
        moments: Sequence[Arrays | None],
        positions: Callable[[], Positions],
        *,
        may_change: bool = False,
    ) -> bool:
        """Copy a frame into a block that has room for it; False: nobody takes blocks any more.

        Args:
            event: what happens in the frame.
            moments: per moment, the values of all environments; None for a moment that had none.
            positions: where the environments are before it; asked at the start of a block.
            may_change: whether :meth:`amend` may follow.
        """
        block = self._block
        if block is None and event.leaves_no_row and not self._is_summed and not may_change:
            return True  # the next block begins after it
        if (
            block is None
            or event.log_time > self._expires
            or (block.room <= 0 and not block.has_room())
            or block.is_heavy
        ):
            block = self._next_block(event, positions)
            if block is None:
                return False
        block.add(event, moments)
        return True

    def drop(self, event: Event) -> None:
        """Forget what is being added, however much of it was copied."""
        if self._block is not None:
            self._block.drop(event)

    def amend(self, event: Event, amended: Event, moments: Sequence[Arrays | None]) -> None:
        """Put another event, with other values, in the place of the last one. Called again it does the same.

        Args:
            event: the last one that was added, with ``may_change``; nothing was handed over since.
            amended: the same step; more of it may be recorded.
            moments: as for :meth:`add`.
        """
        if self._block is not None:
            self._block.drop(event)
            self._block.add(amended, moments)

    def flush(self) -> None:
        """Hand over what there is.

        Ctrl-C may come at any point of it: the next call hands over what this one didn't. It may do so twice, since
        nobody knows whether Ctrl-C came before or after; the second time nothing is written.
        """
        self._block = None  # nothing more is added
        if not self._alive():
            return
        for turn in tuple(self._turns):
            if turn.is_handed_over:
                continue
            if not len(turn.block.events):  # Ctrl-C came before its first frame
                self._turns.remove(turn)
                continue
            if turn.frames is None:
                turn.block.seal()
                turn.frames = turn.block.events.frames
            self._hand_over(self, turn)
            turn.is_handed_over = True

    def is_old(self, now: int) -> bool:
        """Whether the first frame of what there is is older than it may be.

        Args:
            now: nanoseconds since the epoch.
        """
        return self._block is not None and now > self._expires

    def chunks(self, turn: Turn) -> Iterator[Chunk]:
        """The chunks of a block whose turn it is. Called on the writer's thread."""
        if not turn.is_written:
            yield from self._chunks(turn.block)

    def give_back(self, turn: Turn) -> None:
        """A block was written and can be filled again. Called on the writer's thread."""
        if turn.is_written:
            return
        turn.is_written = True
        turn.block.clear()
        self._turns.popleft()
        self._wake()

    def _wake(self) -> None:
        if self._given_back.empty():
            self._given_back.put(None)

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame that isn't written; None: all are."""
        with contextlib.suppress(IndexError):  # the writer's thread may take the last one away
            return self._turns[0].first
        return None

    @property
    def waiting_bytes(self) -> int:
        """Bytes in blocks that aren't written."""
        return sum(turn.block.bytes for turn in tuple(self._turns))

    def _next_block(self, event: Event, positions: Callable[[], Positions]) -> Block | None:
        """The block to go on with: another one if this one is full, or is old and the other one is free."""
        block = self._block
        if block is not None and block.has_room() and not block.is_heavy and self._free_block() is None:
            return block  # it is old, but the writer is behind: then fewer and longer blocks are better
        start = positions()
        self.flush()
        block = self._wait_for_block()
        if block is not None:
            block.start = start
            self._expires = event.log_time + self._max_age
            self._turns.append(Turn(event.frame, block))
            self._block = block
        return block

    def _free_block(self) -> Block | None:
        taken = [self._in_preparation, *(turn.block for turn in tuple(self._turns))]
        return next((block for block in self._blocks if block not in taken), None)

    def _wait_for_block(self) -> Block | None:
        block = self._free_block()
        if block is not None:
            return block
        began = time.monotonic()
        try:
            while block is None and self._alive():
                with contextlib.suppress(queue.Empty):
                    self._given_back.get(timeout=0.1)
                block = self._free_block()
        finally:
            self.seconds_waited += time.monotonic() - began
            self._waited()
        return block
