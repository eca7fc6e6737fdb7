"""Blocks: bounded, preallocated memory that frames are copied into, and that the writer gets whole.

Small rows lie frame by frame, so that a step of thousands of environments is one copy. Rows of a page of memory and more lie
environment by environment, so that the writer can wrap them as they are.

All of a block lies in arrays that may outlive the process, with two exceptions. Python objects are copied into an
:class:`~torchrl_rerun.blocks.object_log.ObjectLog`, and values from accelerators into such arrays when they have arrived. A frame
is in a block when its event is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.devices import Arrival, Copy, Transfers, host_bits
from torchrl_rerun.blocks.events import Event, Events, as_slice
from torchrl_rerun.blocks.memory import Heap, Memory, NamedArrays, Shape
from torchrl_rerun.blocks.object_log import ObjectLog
from torchrl_rerun.kinds.objects import MISSING, size_of
from torchrl_rerun.kinds.schema import Moment, stream_from_schema, stream_to_schema
from torchrl_rerun.kinds.streams import PAGE, Stream
from torchrl_rerun.kinds.timelines import COLUMNS, Positions

if TYPE_CHECKING:
    import torch

ACTED = Moment.ACTED


MAX_STREAM_BYTES = 1 << 30
"""Upper bound on the bytes of one stream of an environment in a block: Arrow's offsets into its lists are 32-bit."""


MANY = 8
"""A frame is copied whole if at least one in so many environments has a row: to pick rows takes longer."""


EVENTS_PER_SLOT = 4
"""Upper bound on the events that a block notes, for each frame that it has room for."""


Arrays = Sequence[Any]
"""One array ``[envs, *stream.slot_shape]`` for each stream of a moment, in their order; None for a missing key."""


class FrameValues(NamedTuple):
    """The values of a frame, indexed by :class:`~torchrl_rerun.kinds.schema.Moment`; None for a moment that has none.

    Attributes:
        observed: the observations after the reset or step.
        stepped: the other values after a step, such as rewards.
        acted: the values that the policy wrote before a step. They belong to the frame before this one.
    """

    observed: Arrays | None = None
    stepped: Arrays | None = None
    acted: Arrays | None = None


class Frames(NamedTuple):
    """Consecutive frames, to be copied at once.

    Attributes:
        events: the resets and steps, one for each frame.
        times: where the values of each frame are along the time dimension, ``[frames]``.
        is_step: whether each is a step, bool ``[frames]``.
    """

    events: Sequence[Event]
    times: npt.NDArray[np.intp]
    is_step: npt.NDArray[np.bool_]


class RolloutValues(NamedTuple):
    """The values of many steps, as arrays ``[envs, time, *stream.slot_shape]`` in main memory.

    Attributes:
        after: the values of the frame after each step, and what the policy wrote before it.
        before: the observations before each step, for the frames of resets.
    """

    after: FrameValues
    before: Arrays

    def map(self, select: Callable[[Arrays | None], Arrays | None]) -> RolloutValues:
        """Return these values with a function applied to those of each moment."""
        return RolloutValues(FrameValues(*map(select, self.after)), select(self.before) or ())


@dataclass(frozen=True)
class StreamGroup:
    """Streams that always get their rows together.

    Attributes:
        moment: when they get rows.
        streams: the streams. Running returns take no room: they are derived from the rewards.
        at: where the values of each stream are among those of the moment.
        has_rewards: whether rewards are among them. Running returns need the rewards of all steps, recorded or not.
    """

    moment: Moment
    streams: tuple[Stream, ...]
    at: tuple[int, ...] = ()
    has_rewards: bool = False

    def part(self, at: Sequence[int]) -> StreamGroup:
        """Return a group of some of the streams.

        Args:
            at: where the values of these streams are among those of the moment.
        """
        return replace(self, streams=tuple(self.streams[self.at.index(i)] for i in at), at=tuple(at))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one environment."""
        return sum(stream.row_bytes for stream in self.stored)

    @property
    def stored(self) -> tuple[Stream, ...]:
        """The streams whose values are stored."""
        return tuple(stream for stream in self.streams if not stream.reward_key)

    def to_json(self) -> dict[str, Any]:
        """Return the group as JSON has it."""
        return {
            "moment": self.moment.name,
            "at": self.at,
            "has_rewards": self.has_rewards,
            "streams": [*map(stream_to_json, self.streams)],
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> StreamGroup:
        """Return the group that :meth:`to_json` described."""
        streams = tuple(map(stream_from_json, said["streams"]))
        return cls(Moment[said["moment"]], streams, tuple(said["at"]), said["has_rewards"])


def stream_to_json(stream: Stream) -> dict[str, Any]:
    """Return a stream as JSON has it."""
    return stream_to_schema(stream) | {"device": stream.device}


def stream_from_json(said: Mapping[str, Any]) -> Stream:
    """Return the stream that :func:`stream_to_json` described."""
    return replace(stream_from_schema(said), device=said["device"])


class Values:
    """The values of one stream in a block.

    Args:
        stream: the stream.
        envs: number of recorded environments.
        slots: number of frames that there is room for.
        array: memory for them, of :meth:`shape`. Default: new memory.
        is_sent: whether they come from an accelerator, into pinned memory. ``array`` is then where they are copied to when they
            have arrived; None: nowhere. Default: False.

    Attributes:
        stream: the stream.
        is_objects: whether the values are Python objects.
        lies_by_env: whether the rows of an environment lie side by side.
        array: ``[slots, envs, *stream.slot_shape]``, or ``[envs, slots, *stream.slot_shape]`` if it lies by environment.
        slots: for each slot its part of the array, if the values come from an accelerator; else empty.
        kept: an array of the same shape, which values from an accelerator are copied to when they have arrived; None: nowhere.
    """

    def __init__(
        self, stream: Stream, envs: int, slots: int, array: npt.NDArray[Any] | None = None, *, is_sent: bool = False
    ) -> None:
        self.stream = stream
        self.is_objects = stream.is_object
        self.lies_by_env = _lies_by_env(stream)
        self.slots: Sequence[torch.Tensor] = ()
        self.kept = array if is_sent else None
        self.array: npt.NDArray[Any]
        if is_sent:
            pinned = Transfers.allocate(self.shape(stream, envs, slots).shape, stream.dtype)
            self.array, self.slots = host_bits(pinned), pinned.unbind()
        elif array is not None:
            self.array = array
        else:
            self.array = np.empty(self.shape(stream, envs, slots).shape, stream.storage)

    @staticmethod
    def shape(stream: Stream, envs: int, slots: int) -> Shape:
        """Return dtype and shape of the array.

        Args:
            stream: the stream.
            envs: number of recorded environments.
            slots: number of frames that there is room for.
        """
        envs = 1 if stream.shared else envs
        sizes = (envs, slots) if _lies_by_env(stream) else (slots, envs)
        return Shape(stream.storage, (*sizes, *stream.slot_shape))

    @property
    def by_frame(self) -> npt.NDArray[Any]:
        """The values, ``[slots, envs, *stream.slot_shape]``."""
        return self.array.swapaxes(0, 1) if self.lies_by_env else self.array

    def rows(self, env: int, slots: slice | npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """Return the rows of an environment in some slots, ``[n, *stream.slot_shape]``."""
        of_env: npt.NDArray[Any] = self.array[env, slots] if self.lies_by_env else self.array[slots, env]
        return of_env


def _lies_by_env(stream: Stream) -> bool:
    return stream.is_large and not stream.device  # from an accelerator a frame comes in one piece


class _GroupCopy(NamedTuple):
    """How :meth:`Block.add` copies the values of a group. A number says where a value is among those of its moment.

    Attributes:
        moment: when the group gets rows.
        has_rewards: whether it gets rows of all environments that are stepped, recorded or not.
        first: the number of its first value; None: it has none.
        number: the number of the group.
        by_frame: arrays ``[slots, envs, ...]`` in main memory, and the numbers of their values.
        by_env: arrays ``[envs, slots, ...]`` in main memory, and the numbers of their values.
        objects: the numbers of the values that are Python objects.
        on_device: for each accelerator that copies values: these, and their number.
    """

    moment: Moment
    has_rewards: bool
    first: int | None
    number: int
    by_frame: list[tuple[npt.NDArray[Any], int]]
    by_env: list[tuple[npt.NDArray[Any], int]]
    objects: list[int]
    on_device: list[tuple[Transfers, list[tuple[Values, int]]]]

    def having_rows(self, frames: Frames) -> npt.NDArray[np.intp]:
        """Return the numbers of the frames in which the group has rows, if it has values in all of them."""
        if self.has_rewards:
            having = [event.envs is None or len(event.envs) > 0 for event in frames.events]
        elif self.moment is ACTED:
            having = [event.envs_before is None or len(event.envs_before) > 0 for event in frames.events]
        else:
            having = [event.envs_after is None or len(event.envs_after) > 0 for event in frames.events]
        may_have = np.array(having, np.bool_)
        return np.flatnonzero(may_have if self.moment is Moment.OBSERVED else may_have & frames.is_step)


class Block:
    """The frames of a piece of time, of all groups of streams.

    Args:
        groups: the groups of streams.
        envs: number of recorded environments.
        slots: number of frames that there is room for.
        object_capacity: bytes of Python objects that make it full. Default: 1 GiB.
        transfers: what copies from each device that values lie on. Default: all values are in main memory.
        memory: where it lies. Default: memory of this process.
        role: what a black box calls it. Default: nothing.

    Attributes:
        groups: the groups of streams.
        envs: number of recorded environments.
        start: where the environments were before its first frame, ``[envs, 6]``.
        events: the resets and steps, one for each frame.
        values: per group, the values of each stream; running returns have none.
        lease: the number of its lease, higher than those before; 0: it is free.
        object_bytes: bytes of the Python objects in it.
        room: lower bound on the number of further frames that there is room for.
        is_heavy: whether it is full of Python objects, though there is room for more frames.
        is_retired: whether it is not used again when it is free.
    """

    def __init__(
        self,
        groups: Sequence[StreamGroup],
        envs: int,
        slots: int,
        *,
        object_capacity: int = MAX_STREAM_BYTES,
        transfers: Mapping[str, Transfers] | None = None,
        memory: Memory | None = None,
        role: str = "",
    ) -> None:
        self.groups = tuple(groups)
        self.envs = envs
        self._memory = memory or Heap()
        self._transfers = dict(transfers or {})
        shapes = _shapes(self.groups, envs, slots, is_kept=self._memory.is_kept)
        about = {"role": role, "envs": envs, "slots": slots, "groups": [group.to_json() for group in self.groups]}
        self._region = self._memory.allocate(shapes, about)
        arrays = self._region.arrays
        self._head = arrays["head"].data
        self.start: Positions = arrays["start"]
        self.events = Events(arrays)
        self.values = [
            [self._values_of(stream, f"{number}.{at}", slots) for at, stream in enumerate(group.stored)]
            for number, group in enumerate(self.groups)
        ]
        self.lease = 0
        self.object_bytes = 0
        self.is_heavy = False
        self.is_retired = False
        self._object_capacity = object_capacity
        self._objects = ObjectLog(self._memory, self._region)
        self._many = envs / MANY
        self._slots = slots
        self._filled = [0] * len(self.groups)  # slots
        self.room = slots
        self._arrivals: list[Arrival] = []
        self._copies = [
            self._copy_of(number, *parts) for number, parts in enumerate(zip(self.groups, self.values, strict=True))
        ]

    @classmethod
    def copied(cls, about: Mapping[str, Any], arrays: NamedArrays, moment: int) -> Block | None:
        """Return a copy of a block in a black box, without its Python objects; None: it is free.

        Args:
            about: what the box says of it.
            arrays: its arrays, which its owner may write to meanwhile.
            moment: the number of frames that were copied whole. Later ones are left out.
        """
        lease, count = arrays["head"].tolist()
        events = Events({name: np.array(arrays[name]) for name in ("events", "picks")}, count)
        events.drop_after(events.before(moment))
        if not lease or not len(events):
            return None
        groups = [StreamGroup.from_json(each) for each in about["groups"]]
        block = cls(groups, about["envs"], 1)
        block.lease, block.start, block.events = lease, np.array(arrays["start"]), events
        block.values = [
            [
                Values(
                    stream, about["envs"], 0, _filled(stream, f"{number}.{at}", events.of_group(number), about, arrays)
                )
                for at, stream in enumerate(group.stored)
            ]
            for number, group in enumerate(groups)
        ]
        return block

    def is_as_in(self, arrays: NamedArrays) -> bool:
        """Return whether the block in a black box that this is a copy of was not used for something else meanwhile."""
        return bool(arrays["head"][_LEASE] == self.lease)

    def put_objects(self, group: int, slot: int, objects: Sequence[npt.NDArray[Any]]) -> None:
        """Put back Python objects of a frame.

        Args:
            group: the number of the group of streams.
            slot: the group's slot.
            objects: object arrays ``[envs, ...]``, one for each of its streams that are of objects.
        """
        of_objects = (values for values in self.values[group] if values.is_objects)
        for values, array in zip(of_objects, objects, strict=True):
            values.array[slot] = array

    def _values_of(self, stream: Stream, name: str, slots: int) -> Values:
        """Return memory for a stream's values: an array of the region, if it has one."""
        array = self._region.arrays.get(name)
        if stream.device not in self._transfers:
            return Values(stream, self.envs, slots, array)
        return Values(stream, self.envs, slots, array if self._region.is_kept else None, is_sent=True)

    def _copy_of(self, number: int, group: StreamGroup, stored: Sequence[Values]) -> _GroupCopy:
        """Return how the values of a group are copied."""
        pairs = list(zip(stored, group.at, strict=True))
        on_host = [(values, i) for values, i in pairs if not values.stream.device]
        on_device = [
            (transfers, [(values, i) for values, i in pairs if values.stream.device == device])
            for device, transfers in self._transfers.items()
        ]
        return _GroupCopy(
            group.moment,
            group.has_rewards,
            group.at[0] if group.at else None,
            number,
            by_frame=[(values.array, i) for values, i in on_host if not values.lies_by_env],
            by_env=[(values.array, i) for values, i in on_host if values.lies_by_env],
            objects=[i for values, i in pairs if values.is_objects],
            on_device=[(transfers, arrays) for transfers, arrays in on_device if arrays],
        )

    def begin(self, start: Positions) -> None:
        """Begin at a position.

        Args:
            start: where the environments are before the first frame, ``[envs, 6]``; ``[0, 6]`` for statistics,
                which need none.
        """
        self._head[_COUNT] = 0
        self.start[: len(start)] = start
        self.lease = self._head[_LEASE] = self._memory.lease()

    def clear(self) -> None:
        """Empty the block."""
        self.lease = self._head[_LEASE] = 0
        self.events.clear()
        self._filled = [0] * len(self.groups)
        for group in self.values:
            for values in group:
                if values.is_objects:
                    values.array[:] = None  # let go of the strings and arrays
        self._objects.clear()
        self.object_bytes = 0
        self.is_heavy = False
        self.room = self._slots

    def free(self) -> None:
        """Give the memory back."""
        self._objects.free()
        self._region.free()

    def touch(self) -> None:
        """Write to each page of the block's memory, so that the system has mapped it before it is needed."""
        for group in self.values:
            for values in group:
                for array in (values.array, values.kept):
                    if array is not None and not values.is_objects:
                        array.reshape(-1).view(np.uint8)[::PAGE] = 0

    @property
    def returns(self) -> list[Stream]:
        """The running returns that are derived from rewards in the block."""
        return [stream for group in self.groups for stream in group.streams if stream.reward_key]

    @property
    def event_of_slot(self) -> list[npt.NDArray[np.intp]]:
        """Per group, the number of the event of each of its slots."""
        return [self.events.of_group(group) for group in range(len(self.groups))]

    @property
    def bytes(self) -> int:
        """Bytes of the frames in the block."""
        rows = sum(group.row_bytes * n for group, n in zip(self.groups, self._filled, strict=True))
        return self.envs * rows + self.object_bytes

    def has_room(self) -> bool:
        """Return whether there is room for one more frame."""
        if self.room <= 0:  # so many frames have come, but perhaps no group had rows in all of them
            self.room = min(self._slots - max(self._filled, default=0), self.events.room(self.envs))
        return self.room > 0

    def add(self, event: Event, values: FrameValues, after: int | None = None) -> None:
        """Copy a frame into the block.

        Args:
            event: the reset or step.
            values: the values of all environments. A group without values gets no rows.
            after: the number of frames that were copied whole before it. Default: all so far.
        """
        envs_after, filled, having_rows = event.envs_after, self._filled, 0
        self.room -= 1
        for moment, has_rewards, first, number, by_frame, by_env, objects, on_device in self._copies:
            arrays = values[moment]
            if arrays is None or (first is not None and arrays[first] is None):
                continue
            # As `having_rows` has it: a call for each group would take 3 % of a step.
            envs = event.envs if has_rewards else event.envs_before if moment is ACTED else envs_after
            if envs is not None and not len(envs):
                continue
            slot = filled[number]
            filled[number] = slot + 1
            having_rows |= 1 << number
            if envs is None or len(envs) >= self._many:
                for array, i in by_frame:  # `presence` leaves out the environments without a row
                    array[slot] = arrays[i]
            else:
                for array, i in by_frame:
                    if array.shape[1] == self.envs:
                        array[slot, envs] = arrays[i][envs]
                    elif envs[0] == 0:  # values that all environments share are stored with the first one
                        array[slot] = arrays[i]
            for array, i in by_env:
                if envs is None:
                    array[:, slot] = arrays[i]
                else:
                    array[envs, slot] = arrays[i][envs]
            if objects:
                self._weigh(arrays[i] for i in objects)
                self._objects.append(len(self.events), number, slot, [arrays[i] for i in objects])
            for transfers, arrays_there in on_device:  # whole frames: `presence` tells which of their rows count
                for into, i in arrays_there:
                    copy = None if into.kept is None else Copy(into.kept, into.array, slot)
                    transfers.add(into.slots[slot], arrays[i], copy)
        self.events.append(event, having_rows, self._memory.moment if after is None else after)
        self._head[_COUNT] = len(self.events)

    def amend(self, event: Event, amended: Event, values: FrameValues) -> None:
        """Put another event, with other values, in the place of the last one. A black box has one or the other.

        Args:
            event: the last event.
            amended: the event in its place. Groups that have a row of the last one have a row of it.
            values: the values of all environments.
        """
        self._forget_last(event)
        self.add(amended, values, self._memory.moment - 1)

    def add_many(self, frames: Frames, values: RolloutValues) -> None:
        """Copy frames into the block, which must have room for them. No stream may be of Python objects, or on a device.

        Args:
            frames: the frames.
            values: the values of all environments.
        """
        having_rows = np.zeros((len(frames.events), len(self.groups)), np.bool_)
        self.room -= len(frames.events)
        for each in self._copies:
            after = values.after[each.moment]
            if after is None:
                continue
            chosen = each.having_rows(frames)
            if not len(chosen):
                continue
            first = self._filled[each.number]
            self._filled[each.number] += len(chosen)
            having_rows[chosen, each.number] = True
            is_step, times = frames.is_step[chosen], frames.times[chosen]
            parts = [(after, np.flatnonzero(is_step))]
            if each.moment is Moment.OBSERVED:
                parts.append((values.before, np.flatnonzero(~is_step)))
            for arrays, at in parts:
                if len(at):
                    slots, where = as_slice(at + first), as_slice(times[at])
                    for array, i in each.by_frame:
                        array[slots] = arrays[i][:, where].swapaxes(0, 1)
                    for array, i in each.by_env:
                        array[:, slots] = arrays[i][:, where]
        packed = np.packbits(having_rows, axis=1, bitorder="little")
        data, size, moment = packed.tobytes(), packed.shape[1], self._memory.moment
        for number, event in enumerate(frames.events):
            self.events.append(event, int.from_bytes(data[number * size : (number + 1) * size], "little"), moment)
        self._head[_COUNT] = len(self.events)

    def drop_after(self, count: int) -> None:
        """Forget all events but the first ones, however much of their frames was copied.

        Args:
            count: number of the events that stay.
        """
        self.events.drop_after(count)
        self._drop_slots()
        self._head[_COUNT] = len(self.events)
        self.room = 0  # to be counted anew

    def drop(self, event: Event) -> None:
        """Forget an event if it is the last one, however much of its frame was copied."""
        self._forget_last(event)
        self._head[_COUNT] = len(self.events)

    def _forget_last(self, event: Event) -> None:
        self.events.drop(event)
        self._drop_slots()

    def _drop_slots(self) -> None:
        """Forget the slots of events that were forgotten."""
        self._filled = [*map(len, self.event_of_slot)]
        self._objects.drop_after(len(self.events))

    def _weigh(self, objects: Iterable[npt.NDArray[Any]]) -> None:
        self.object_bytes += sum(size_of(value) for values in objects for value in values.flat)
        self.is_heavy = self.object_bytes > self._object_capacity

    def seal(self) -> None:
        """Take no more frames, and note the copies that are on their way from accelerators."""
        self._arrivals = [arrival for transfers in self._transfers.values() for arrival in transfers.arrivals()]

    def wait(self) -> None:
        """Wait until all values have arrived. Called on the writer's thread."""
        for arrival in self._arrivals:
            arrival.synchronize()
        self._arrivals.clear()

    def presence(self, group: int) -> npt.NDArray[np.bool_] | None:
        """Return in which slots of a group each environment has a row, ``[slots, envs]``; None if in all of them."""
        is_before = self.groups[group].moment is ACTED
        return self.events.recorded(self.events.of_group(group), self.envs, before=is_before)


_LEASE, _COUNT = range(2)


def _shapes(groups: Sequence[StreamGroup], envs: int, slots: int, *, is_kept: bool) -> dict[str, Shape]:
    """Return the shapes of all arrays of a block but those of Python objects; of values from accelerators, if they are kept."""
    shapes = {
        "head": Shape(np.dtype(np.int64), (2,)),
        "start": Shape(np.dtype(np.int64), (envs, COLUMNS)),
        **Events.shapes(EVENTS_PER_SLOT * slots, envs, len(groups)),
    }
    for number, group in enumerate(groups):
        for at, stream in enumerate(group.stored):
            if not stream.is_object and (is_kept or not stream.device):
                shapes[f"{number}.{at}"] = Values.shape(stream, envs, slots)
    return shapes


def _filled(
    stream: Stream, name: str, slots: npt.NDArray[np.intp], about: Mapping[str, Any], arrays: NamedArrays
) -> npt.NDArray[Any]:
    """Return a copy of the filled slots of a stream in a black box; of Python objects as many that are missing."""
    if stream.is_object:
        return np.full(Values.shape(stream, about["envs"], len(slots)).shape, MISSING, object)
    return np.array(arrays[name][:, : len(slots)] if _lies_by_env(stream) else arrays[name][: len(slots)])
