"""Buffers: two blocks each, one of which the environment's thread fills while the other is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from torchrl_rerun.blocks.block import MAX_STREAM_BYTES, Arrays, Block, StreamGroup
from torchrl_rerun.blocks.devices import Transfers
from torchrl_rerun.blocks.events import Event
from torchrl_rerun.blocks.lease import BlockLease
from torchrl_rerun.kinds.timelines import Positions

MAX_SLOTS = 2048
"""Frames of a block at the most. More would not be cheaper, and files would grow: LZ4 finds a time column in another
one only if both lie within 64 KiB."""


BLOCKS = 2


class Buffer:
    """Two blocks that take turns, and the bound on the bytes that wait.

    A buffer neither waits nor writes: :meth:`add` and :meth:`seal` return leases, which their caller hands on to the writer.

    Args:
        envs: number of recorded environments.
        capacity: bytes for both blocks together. A block holds at least one frame of everything, however large.
        max_age: seconds after which a block is full though it has room, if the other one is free.
    """

    def __init__(self, envs: int, capacity: int, *, max_age: float) -> None:
        self._capacity = capacity
        self._envs = envs
        self._max_age = max_age * 1e9
        self._groups: tuple[StreamGroup, ...] = ()
        self._is_summed = False
        self._blocks: list[Block] = []
        self._block: Block | None = None
        self._expires = 0.0
        # In order. Which blocks are free follows from the leases that aren't released: Ctrl-C can't lose one.
        self._leases: deque[BlockLease] = deque()

    @property
    def groups(self) -> tuple[StreamGroup, ...]:
        """The groups of streams that are stored."""
        return self._groups

    def store(self, groups: Sequence[StreamGroup]) -> None:
        """Store other groups of streams: seal the block in use, and start blocks of the new form."""
        self.seal()
        self._groups = tuple(groups)
        self._is_summed = any(group.is_summed for group in groups)
        devices = sorted({stream.device for group in groups for stream in group.streams if stream.device})
        transfers = {device: Transfers(device) for device in devices}
        self._blocks = [
            Block(self._groups, self._envs, self.slots, object_capacity=self._capacity // BLOCKS, transfers=transfers)
            for _ in range(BLOCKS if groups else 0)
        ]

    def grow(self, envs: int) -> None:
        """Seal the block in use, and start blocks of more environments."""
        self.seal()
        self._envs = envs
        self.store(self._groups)

    def resize(self, capacity: int) -> None:
        """Seal the block in use, and start blocks of another size.

        Args:
            capacity: bytes for both blocks together.
        """
        if capacity != self._capacity:
            self._capacity = capacity
            self.store(self._groups)

    @property
    def slots(self) -> int:
        """Number of frames that a block holds."""
        frame_bytes = max(1, self._frame_bytes)
        widest = max((stream.row_bytes for group in self._groups for stream in group.streams), default=1)
        return max(1, min(MAX_SLOTS, MAX_STREAM_BYTES // max(1, widest), self._capacity // BLOCKS // frame_bytes))

    @property
    def bytes_at_most(self) -> int:
        """Bytes of its blocks if nothing but their number of frames bounds them."""
        return BLOCKS * MAX_SLOTS * self._frame_bytes

    @property
    def _frame_bytes(self) -> int:
        return self._envs * sum(group.row_bytes for group in self._groups)

    def add(
        self,
        event: Event,
        moments: Sequence[Arrays | None],
        positions: Callable[[], Positions],
        *,
        may_change: bool = False,
    ) -> BlockLease | None:
        """Copy a frame into a block that has room for it, or return the lease that is in the way.

        If a lease is returned nothing was copied. Hand it on to the writer unless the writer has it, else wait for its
        release; then add the frame again.

        Args:
            event: what happens in the frame.
            moments: per moment, the values of all environments; None for a moment that had none.
            positions: returns where the environments are before the frame; called at the start of a block.
            may_change: whether :meth:`amend` may follow.
        """
        block = self._block
        if block is None and event.leaves_no_row and not self._is_summed and not may_change:
            return None  # the next block begins after it
        if (
            block is None
            or event.log_time > self._expires
            or (block.room <= 0 and not block.has_room())
            or block.is_heavy
        ):
            in_the_way = self._start_block(event, positions)
            if in_the_way is not None:
                return in_the_way
            block = self._block
            assert block is not None, "it was just begun"
        block.add(event, moments)
        return None

    def drop(self, event: Event) -> None:
        """Forget the frame that is being added, however much of it was copied."""
        if self._block is not None:
            self._block.drop(event)

    def amend(self, event: Event, amended: Event, moments: Sequence[Arrays | None]) -> None:
        """Put another event, with other values, in the place of the last one. Called again it does the same.

        Args:
            event: the last one that was added, with ``may_change``; nothing was sealed since.
            amended: the same step; more of it may be recorded.
            moments: per moment, the values of all environments; None for a moment that had none.
        """
        if self._block is not None:
            self._block.drop(event)
            self._block.add(amended, moments)

    def seal(self) -> Iterator[BlockLease]:
        """Add no more to the block in use. Return the leases to hand on to the writer, oldest first.

        Ctrl-C may come at any point: the next call returns what this one didn't. A lease may be handed on twice then,
        since nobody knows whether Ctrl-C came before or after; the second time nothing is written.
        """
        self._block = None
        for lease in tuple(self._leases):
            if not lease.is_handed_on and lease.first is not None:
                if len(lease.block.events):
                    lease.seal()
                else:  # Ctrl-C came before its first frame
                    self._leases.remove(lease)
        return (lease for lease in tuple(self._leases) if not lease.is_handed_on)

    def prepare(self) -> BlockLease | None:
        """Return a lease of a block that isn't in use, without frames, for the writer to touch its memory; None if all are.

        The system may take a tenth of a second to find memory for a large block, when it is written to for the first time.
        """
        block = self._free_block()
        if block is None:
            return None
        lease = BlockLease(block)
        self._leases.appendleft(lease)  # the writer gets it before the block that is being filled
        return lease

    def free(self) -> None:
        """Let go of the memory: nothing is added any more."""
        self._blocks, self._block, self._leases = [], None, deque()

    def is_old(self, now: int) -> bool:
        """Return whether the first frame of the block in use is older than it may be.

        Args:
            now: nanoseconds since the epoch.
        """
        return self._block is not None and now > self._expires

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame that isn't written; None if all are."""
        firsts = (lease.first for lease in tuple(self._leases) if not lease.is_released)
        return next((first for first in firsts if first is not None), None)

    @property
    def waiting_bytes(self) -> int:
        """Bytes in blocks that aren't written."""
        return sum(lease.block.bytes for lease in tuple(self._leases) if not lease.is_released)

    def _start_block(self, event: Event, positions: Callable[[], Positions]) -> BlockLease | None:
        """Go on with another block if this one is full, or is old and the other one is free.

        Returns:
            The lease that is in the way of another block.
        """
        block = self._block
        if block is not None and block.has_room() and not block.is_heavy and self._free_block() is None:
            return None  # it is old, but the writer is behind: then fewer and longer blocks are better
        unsent = next(self.seal(), None)
        if unsent is not None:
            return unsent
        self._leases = deque(lease for lease in self._leases if not lease.is_released)
        block = self._free_block()
        if block is None:
            return self._leases[0]
        block.begin(positions())
        self._expires = event.log_time + self._max_age
        self._leases.append(BlockLease(block, event.frame))
        self._block = block
        return None

    def _free_block(self) -> Block | None:
        taken = [lease.block for lease in tuple(self._leases) if not lease.is_released]
        return next((block for block in self._blocks if block not in taken), None)


def oldest_waiting(buffers: Sequence[Buffer]) -> int | None:
    """Return the number of the first frame that isn't written of any buffer; None if all are."""
    waiting = (buffer.oldest_waiting for buffer in buffers)
    return min((frame for frame in waiting if frame is not None), default=None)
