"""Buffers: two blocks each, one of which the environment's thread fills while the other is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from torchrl_rerun.blocks.block import MAX_STREAM_BYTES, Block, Frames, FrameValues, RolloutValues, StreamGroup
from torchrl_rerun.blocks.devices import Devices
from torchrl_rerun.blocks.events import Event
from torchrl_rerun.blocks.lease import BlockLease
from torchrl_rerun.blocks.memory import Heap, MaxAge, Memory
from torchrl_rerun.kinds.timelines import Positions

MAX_SLOTS = 2048
"""Frames of a block at the most. More would not be cheaper, and files would grow: LZ4 finds a time column in another
one only if both lie within 64 KiB."""


BLOCKS = 2


class Buffer:
    """Two blocks that take turns, and the bound on the bytes that wait.

    A buffer neither waits nor writes: :meth:`add` and :meth:`seal` return leases, which their caller enqueues for the writer.

    Args:
        envs: number of recorded environments.
        capacity: bytes for both blocks together. A block holds at least one frame of everything, however large.
        max_age: how long a frame waits at most: then its block is full though it has room, if the other one is free.
        devices: copy values from accelerators, when their :meth:`~torchrl_rerun.blocks.devices.Devices.send` is called after
            a frame was added to all buffers. Default: no value is on one.
        memory: where blocks lie. Default: memory of this process.
        role: what a black box calls its blocks. Default: nothing.
    """

    def __init__(
        self,
        envs: int,
        capacity: int,
        *,
        max_age: MaxAge,
        devices: Devices | None = None,
        memory: Memory | None = None,
        role: str = "",
    ) -> None:
        self._memory = memory or Heap()
        self._role = role
        self._devices = devices or Devices()
        self._capacity = capacity
        self._envs = envs
        self._max_age = max_age
        self._groups: tuple[StreamGroup, ...] = ()
        self._has_rewards = False
        self._blocks: list[Block] | None = None  # None: they are made when the first is needed
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
        self._has_rewards = any(group.has_rewards for group in groups)
        self._retire()

    def _retire(self) -> None:
        """Use the blocks no more: their memory is given back when they are written."""
        for block in self._blocks or ():
            block.is_retired = True
            if block not in self._taken:
                block.free()
        self._blocks = None

    def _made(self) -> list[Block]:
        """Return the blocks, made by now."""
        if self._blocks is None:
            devices = sorted({stream.device for group in self._groups for stream in group.streams if stream.device})
            transfers = {device: self._devices.transfers(device) for device in devices}
            self._blocks = [
                Block(
                    self._groups,
                    self._envs,
                    self.slots,
                    object_capacity=self._capacity // BLOCKS,
                    transfers=transfers,
                    memory=self._memory,
                    role=self._role,
                )
                for _ in range(BLOCKS if self._groups else 0)
            ]
        return self._blocks

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
        values: FrameValues,
        positions: Callable[[], Positions],
        *,
        may_change: bool = False,
    ) -> BlockLease | None:
        """Copy a frame into a block that has room for it, or return the lease that blocks it.

        If a lease is returned nothing was copied. Enqueue it unless it is enqueued already, else wait for its release; then
        add the frame again.

        Args:
            event: what happens in the frame.
            values: the values of all environments.
            positions: returns where the environments are before the frame; called at the start of a block.
            may_change: whether :meth:`amend` may follow.
        """
        block = self._block
        if block is None and event.leaves_no_row and not self._has_rewards and not may_change:
            return None  # the next block begins after it
        if (
            block is None
            or event.log_time > self._expires
            or (block.room <= 0 and not block.has_room())
            or block.is_heavy
        ):
            blocking_lease = self._start_block(event, positions)
            if blocking_lease is not None:
                return blocking_lease
            block = self._block
            assert block is not None, "it was just begun"
        block.add(event, values)
        return None

    def make_room(self, event: Event, positions: Callable[[], Positions]) -> BlockLease | None:
        """Begin a block unless the one in use has room, or return the lease that blocks it, as :meth:`add` does.

        Args:
            event: what happens in the next frame.
            positions: returns where the environments are before the frame.
        """
        block = self._block
        if block is not None and event.log_time <= self._expires and block.has_room() and not block.is_heavy:
            return None
        return self._start_block(event, positions)

    @property
    def takes_many(self) -> bool:
        """Whether :meth:`add_many` can be used: all values are arrays in main memory."""
        return not any(stream.is_object or stream.device for group in self._groups for stream in group.streams)

    @property
    def room(self) -> int:
        """Number of frames that :meth:`add_many` can add at once, after :meth:`make_room`."""
        return 0 if self._block is None else self._block.room

    def add_many(self, frames: Frames, values: RolloutValues) -> None:
        """Copy frames into the block in use.

        Args:
            frames: at most :attr:`room` frames.
            values: the values of all environments.
        """
        assert self._block is not None, "there is room for the frames"
        self._block.add_many(frames, values)

    @property
    def count(self) -> int:
        """Number of events in the block in use."""
        return 0 if self._block is None else len(self._block.events)

    def drop_after(self, count: int) -> None:
        """Forget all events of the block in use but the first ones, however much of their frames was copied."""
        if self._block is not None:
            self._block.drop_after(count)

    def drop(self, event: Event) -> None:
        """Forget the frame that is being added, however much of it was copied."""
        if self._block is not None:
            self._block.drop(event)

    def amend(self, event: Event, amended: Event, values: FrameValues) -> None:
        """Put another event, with other values, in the place of the last one. Called again it does the same.

        Args:
            event: the last one that was added, with ``may_change``; nothing was sealed since.
            amended: the same step; more of it may be recorded.
            values: the values of all environments.
        """
        if self._block is not None:
            self._block.amend(event, amended, values)

    def seal(self) -> Iterator[BlockLease]:
        """Add no more to the block in use. Return the leases to enqueue, oldest first.

        Ctrl-C may come at any point: the next call returns what this one didn't. A lease may be enqueued twice then,
        since nobody knows whether Ctrl-C came before or after; the second time nothing is written.
        """
        self._block = None
        for lease in tuple(self._leases):
            if not lease.is_enqueued and lease.first is not None:
                if len(lease.block.events):
                    lease.seal()
                else:  # Ctrl-C came before its first frame
                    self._leases.remove(lease)
        return (lease for lease in tuple(self._leases) if not lease.is_enqueued)

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
        for block in self._blocks or ():
            block.free()
        self._groups, self._blocks, self._block, self._leases = (), None, None, deque()

    def is_stale(self, now: int) -> bool:
        """Return whether the first frame of the block in use is older than it may be.

        Args:
            now: nanoseconds since the epoch.
        """
        return self._block is not None and now > self._expires

    def oldest_waiting(self, besides: Block | None = None) -> int | None:
        """Return the number of the first frame that isn't written; None if all are.

        Args:
            besides: a block whose frames count as written. Default: none.
        """
        waiting = (lease for lease in tuple(self._leases) if not lease.is_released and lease.block is not besides)
        return next((lease.first for lease in waiting if lease.first is not None), None)

    @property
    def waiting_bytes(self) -> int:
        """Bytes in blocks that aren't written."""
        return sum(lease.block.bytes for lease in tuple(self._leases) if not lease.is_released)

    def _start_block(self, event: Event, positions: Callable[[], Positions]) -> BlockLease | None:
        """Go on with another block if this one is full, or is old and the other one is free.

        Returns:
            The lease that must be enqueued or released first; None if a block is ready.
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
        self._expires = event.log_time + 1e9 * self._max_age.seconds(self._memory)
        # The action of a step that makes no frame itself is a row of the frame before it.
        self._leases.append(BlockLease(block, event.frame if event.is_recorded else event.frame - 1))
        self._block = block
        return None

    def _free_block(self) -> Block | None:
        taken = self._taken
        return next((block for block in self._made() if block not in taken), None)

    @property
    def _taken(self) -> list[Block]:
        """The blocks that aren't free."""
        return [lease.block for lease in tuple(self._leases) if not lease.is_released]


def oldest_waiting(buffers: Sequence[Buffer], besides: Block | None = None) -> int | None:
    """Return the number of the first frame that isn't written of any buffer; None if all are.

    Args:
        buffers: the buffers.
        besides: a block whose frames count as written. Default: none.
    """
    waiting = (buffer.oldest_waiting(besides) for buffer in buffers)
    return min((frame for frame in waiting if frame is not None), default=None)
