"""Buffers: two blocks each, one of which the environment's thread fills while the other is written."""

from __future__ import annotations

import collections
import contextlib
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rerun.chunk import Chunk

from torchrl_rerun.blocks.block import MAX_STREAM_BYTES, Arrays, Block, Track
from torchrl_rerun.blocks.devices import Transfers
from torchrl_rerun.blocks.events import Event
from torchrl_rerun.kinds.timelines import Positions

MAX_SLOTS = 2048
"""Frames of a block at the most. More would not be cheaper, and files would grow: LZ4 finds a time column in another
one only if both lie within 64 KiB."""


BLOCKS = 2


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
