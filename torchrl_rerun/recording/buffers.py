"""The buffers of a recording: which of them a stream goes to, and how full blocks come to the writer's queue."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence

from torchrl_rerun.blocks.block import FrameValues, StreamGroup
from torchrl_rerun.blocks.buffer import Buffer, oldest_waiting
from torchrl_rerun.blocks.devices import Devices
from torchrl_rerun.blocks.events import Event
from torchrl_rerun.blocks.lease import BlockLease
from torchrl_rerun.chunks.output import BlockOutput, Output
from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Moment
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording.logged_envs import MAX_LOGGED_ENVS
from torchrl_rerun.writing.writer import WriterThread

SHORT_BLOCK = 100
"""Frames of a block below which the chunks themselves cost several times as much as their data."""

CHUNK_SECONDS = 250e-6
"""Seconds that a chunk costs the writer, however small; `make bench ARGS="--only parts scaling"` measures them."""


class Buffers:
    """Small rows, bulky rows, and the rewards of all environments, each in a buffer of its own.

    Bulky rows such as images fill blocks quickly: they must not cut the chunks of numbers short.

    Args:
        small: the buffer of small rows.
        bulky: the buffer of bulky rows.
        capacity: bytes for both together.
        go_together: whether blocks of small rows are not to be written much later than the bulky rows of their frames. An episode
            whose rows haven't all come can't be dropped. Default: they are written when they are full.
        writer: takes the blocks that are full.
        output: makes chunks of them.
        devices: copy values from accelerators into the blocks.

    Attributes:
        devices: copy values from accelerators into the blocks.
        small, bulky: the buffers of the recorded environments.
        batch: the buffer of the rewards of all environments, if there are statistics over these.
        in_use: ``small`` and ``bulky``, unless they store nothing.
        must_catch_up: whether :meth:`catch_up` is to be called before the next frame.
        seconds_waited: how long the environment's thread has waited for the writer.
    """

    def __init__(
        self,
        small: Buffer,
        bulky: Buffer,
        writer: WriterThread,
        output: Output,
        *,
        capacity: int,
        devices: Devices,
        go_together: bool = False,
    ) -> None:
        self.devices = devices
        self.small = small
        self.bulky = bulky
        self.batch: Buffer | None = None
        self.in_use: tuple[Buffer, ...] = ()
        self.must_catch_up = False
        self.seconds_waited = 0.0
        self._go_together = go_together
        self._capacity = capacity
        self._writer = writer
        self._output = output
        self._batch_output: BlockOutput = output
        self._is_stopped = False

    @property
    def _all(self) -> tuple[Buffer, ...]:
        return (self.small, self.bulky) if self.batch is None else (self.small, self.bulky, self.batch)

    @property
    def targets(self) -> tuple[Buffer, ...]:
        """The buffers that get frames."""
        return self.in_use if self.batch is None else (self.batch, *self.in_use)

    # --- which streams they store ---

    def store(self, moment: Moment, streams: Sequence[Stream], reward_keys: Collection[Key]) -> None:
        """Store the streams of a moment, too.

        Args:
            moment: when they have rows.
            streams: the streams; running returns come last.
            reward_keys: the rewards of which running returns are recorded. They are never bulky: a block must hold them and
                their returns.
        """
        groups = [*_grouped(moment, streams, reward_keys)]
        for buffer, bulk in ((self.small, False), (self.bulky, True)):
            added = [group for group, is_bulky in groups if is_bulky is bulk]
            if added:
                self._store(buffer, (*buffer.groups, *added))
        self._share_out()

    def store_batch(self, buffer: Buffer, output: BlockOutput, groups: Sequence[StreamGroup]) -> None:
        """Store the rewards of all environments.

        Args:
            buffer: the buffer for them.
            output: makes chunks of them.
            groups: the rewards, and their returns.
        """
        self.batch, self._batch_output = buffer, output
        self._store(buffer, groups)

    def vary(self, before: Stream, moment: Moment, stream: Stream, at: int) -> None:
        """Store a stream among the bulky ones, by itself: its rows vary in shape from now on.

        Args:
            before: the stream as it was.
            moment: when it has rows.
            stream: the stream as it is from now on.
            at: where its values are among those of the moment.
        """
        for buffer in (self.small, self.bulky):
            self._store(buffer, _without(buffer.groups, before))
        self._store(self.bulky, (*self.bulky.groups, StreamGroup(moment, (stream,), (at,))))
        self._share_out()

    def split_where_keys_are_missing(self, values: FrameValues) -> None:
        """Give keys that come without the others of their group a group of their own: each has its own rows then."""
        for buffer in (self.small, self.bulky):
            groups: list[StreamGroup] = []
            for group in buffer.groups:
                arrays = values[group.moment]
                there = [i for i in group.at if arrays is not None and arrays[i] is not None]
                if there and len(there) < len(group.at):
                    groups += [group.part(there), group.part([i for i in group.at if i not in there])]
                else:
                    groups.append(group)
            if len(groups) > len(buffer.groups):
                self._store(buffer, groups)

    def grow(self, envs: int, batch: int) -> None:
        """Make room for more environments.

        Args:
            envs: how many are recorded.
            batch: how many there are.
        """
        for buffer in self._all:
            self._flush(buffer)
            buffer.grow(batch if buffer is self.batch else envs)

    def _store(self, buffer: Buffer, groups: Sequence[StreamGroup]) -> None:
        self._flush(buffer)
        buffer.store(groups)

    def _share_out(self) -> None:
        """Divide the bound on what waits: small rows get what full blocks of them need, and up to half of it."""
        self.in_use = tuple(buffer for buffer in (self.small, self.bulky) if buffer.groups)
        if len(self.in_use) > 1:
            small = min(self._capacity // 2, self.small.bytes_at_most)
            for buffer, capacity in ((self.small, small), (self.bulky, self._capacity - small)):
                self._flush(buffer)
                buffer.resize(capacity)

    # --- blocks are enqueued ---

    def free_block_for(self, buffer: Buffer, blocking_lease: BlockLease) -> bool:
        """Enqueue the lease that blocks a frame, or wait until the writer releases it.

        Args:
            buffer: the buffer that a frame was to be added to.
            blocking_lease: the lease that :meth:`Buffer.add` returned.

        Returns:
            Whether the frame can be added now; False if nothing is written any more.
        """
        if not self.is_open:
            return False
        if not blocking_lease.is_enqueued:
            self._enqueue(buffer, blocking_lease)
            return True
        began = time.monotonic()
        try:
            while not blocking_lease.wait(0.1):
                if not self.is_open:
                    return False
        finally:
            self.seconds_waited += time.monotonic() - began
        return True

    def flush(self, buffers: Sequence[Buffer] | None = None) -> None:
        """Enqueue all that waits in some buffers. Default: in all."""
        for buffer in self._all if buffers is None else buffers:
            self._flush(buffer)

    def catch_up(self) -> None:
        """Enqueue the small rows of the frames whose bulky rows are enqueued."""
        self.must_catch_up = False
        self._flush(self.small)

    def stale(self, now: int) -> list[Buffer]:
        """Return the buffers whose first frame is older than it may be.

        Args:
            now: nanoseconds since the epoch.
        """
        return [buffer for buffer in self._all if buffer.is_stale(now)]

    def prepare(self) -> None:
        """Have the writer touch the memory of blocks that aren't needed yet, while the others are filled."""
        for buffer in self._all:
            lease = buffer.prepare()
            if lease is not None:
                self._enqueue(buffer, lease)

    def warn_of_short_blocks(self, envs: int, buffer_bytes: int) -> None:
        """Warn if so many environments are recorded in detail that a block has few rows of each: chunks cost most then.

        Args:
            envs: number of environments that are recorded in detail.
            buffer_bytes: bytes of all buffers together, as the user gave them.
        """
        small = self.small
        if envs <= MAX_LOGGED_ENVS or not small.groups or small.slots >= SHORT_BLOCK:
            return
        entities = sum(stream.agent_count for group in small.groups for stream in group.streams)
        cost = entities * CHUNK_SECONDS / small.slots
        needed = -(-SHORT_BLOCK * buffer_bytes // small.slots >> 20)
        warn(
            f"{envs} environments are recorded in detail, and only {small.slots} frames of them fit into half "
            f"of buffer_bytes: each environment's step takes the writer about {cost * 1e6:.0f} us, "
            f"{cost * envs * 1e3:.0f} ms for all. Record fewer with logged_envs=..., or more at once with "
            f"buffer_bytes={needed} << 20"
        )

    def drop(self, event: Event) -> None:
        """Forget the frame that is being added, however much of it was copied."""
        for buffer in self._all:
            buffer.drop(event)
        self.devices.forget()

    def stop(self) -> None:
        """Enqueue nothing more."""
        self._is_stopped = True

    def free(self) -> None:
        """Let go of the memory. The garbage collector may find a closed recorder long after it."""
        for buffer in self._all:
            buffer.free()

    @property
    def is_open(self) -> bool:
        """Whether frames in the buffers will be written."""
        return not self._is_stopped and self._writer.is_taking()

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame that isn't written in full; None if all are."""
        return oldest_waiting(self._all)

    @property
    def waiting_bytes(self) -> int:
        """Bytes in blocks that aren't written."""
        return sum(buffer.waiting_bytes for buffer in self._all)

    def _flush(self, buffer: Buffer) -> None:
        leases = buffer.seal()
        if self.is_open:
            for lease in leases:
                self._enqueue(buffer, lease)

    def _enqueue(self, buffer: Buffer, lease: BlockLease) -> None:
        self._writer.put_lease(lease, self._batch_output if buffer is self.batch else self._output)
        lease.mark_enqueued()
        if self._go_together and buffer is self.bulky:
            self.must_catch_up = True  # later: some of the frame that is being added may be among the small rows


def _grouped(
    moment: Moment, streams: Sequence[Stream], reward_keys: Collection[Key]
) -> Iterator[tuple[StreamGroup, bool]]:
    """Return groups of streams, and whether they are bulky: small ones, bulky ones and returns by themselves."""
    places: dict[bool, list[int]] = {False: [], True: []}
    for i, stream in enumerate(streams):
        if not stream.reward_key:
            places[stream.is_bulky and stream.key not in reward_keys].append(i)
    for is_bulky, at in places.items():
        if at:
            has_rewards = any(streams[i].key in reward_keys for i in at)
            yield StreamGroup(moment, tuple(streams[i] for i in at), tuple(at), has_rewards), is_bulky
    returns = tuple(stream for stream in streams if stream.reward_key)
    if returns:
        yield StreamGroup(moment, returns), False


def _without(groups: Sequence[StreamGroup], stream: Stream) -> tuple[StreamGroup, ...]:
    """Return groups of streams without one of the streams."""
    parts = [
        (group, [i for i, each in zip(group.at, group.streams, strict=False) if each != stream]) for group in groups
    ]
    return tuple(group if len(at) == len(group.at) else group.part(at) for group, at in parts if at or not group.at)
