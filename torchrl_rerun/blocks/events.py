"""Events: the resets and steps of a block, rows of fixed size that are written on the environment's thread."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.memory import NamedArrays, Shape
from torchrl_rerun.kinds.episode import Episode

EnvIndices = npt.NDArray[np.intp] | None
"""Indices among the recorded environments; None: all of them."""


NO_ENVS: npt.NDArray[np.intp] = np.empty(0, np.intp)


class Event(NamedTuple):
    """A reset or a step of environments.

    Attributes:
        frame: number of the frame. The next event has the same number if this one isn't recorded.
        step: number of calls of ``env.step`` so far.
        log_time: its time, in nanoseconds since the epoch.
        is_step: whether it is a step, not a reset.
        envs: the environments that were reset or stepped.
        envs_before: the environments whose frame before this one is recorded; the action of the step belongs to that frame.
        envs_after: the environments whose frame is recorded now.
        begun: of a reset, the environments whose episodes begin; None: all of ``envs``. In the others only some groups of
            agents were reset, and their episodes go on.
    """

    frame: int
    step: int
    log_time: int
    is_step: bool
    envs: EnvIndices
    envs_before: EnvIndices
    envs_after: EnvIndices
    begun: EnvIndices = None

    @property
    def envs_begun(self) -> EnvIndices:
        """The environments whose episodes begin with a reset."""
        return self.envs if self.begun is None else self.begun

    @property
    def is_recorded(self) -> bool:
        """Whether the event makes a frame. One of other environments does, too, for the statistics over all."""
        return self.envs_after is self.envs or self.envs_after is None or len(self.envs_after) > 0

    @property
    def leaves_no_row(self) -> bool:
        """Whether nothing of it is recorded: it is only counted."""
        return not self.is_recorded and self.envs_before is not None and not len(self.envs_before)


_ENVS, _BEFORE, _AFTER, _BEGUN = range(4)
_ALL = -1  # in place of a number of environments
_PICKS = struct.Struct("<8i")
_OF_ALL = _PICKS.pack(*(_ALL, 0) * 4)
_FRAME, _STEP, _LOG_TIME, _MOMENT, _USED = range(5)


class Events:
    """The events of a block, in order.

    What happened is noted in arrays that may lie in a black box: to go through thousands of Python objects would keep the GIL
    from the environment's thread for milliseconds. A row is of one event:

    - int64 ``[5]``: frame, step and time; the moment, see :class:`~torchrl_rerun.blocks.memory.Memory`; how many of the picks
      are used by the events so far;
    - int32 ``[4, 2]``: of the environments that it is about, of those whose frame before and whose frame after it is recorded,
      and of those whose episodes begin, how many there are, and where they are among the picks. -1 stands for all;
    - flags, a bit each: whether it is a step, and which groups of streams have a row.

    Args:
        arrays: the arrays of :meth:`shapes`. Default: new ones, for 64 events of some groups and environments.
        count: number of the events in them. Default: 0.

    >>> events = Events()
    >>> second = np.array([1])
    >>> events.append(Event(7, 6, 0, True, None, None, None))
    >>> events.append(Event(8, 7, 1, True, None, None, None), 0b001)
    >>> events.append(Event(9, 7, 2, False, second, second, second), 0b101)
    >>> len(events), events.frames, [(first, last, event and event.frame) for first, last, event in events.runs()]
    (3, (7, 10), [(0, 2, None), (2, 3, 9)])
    >>> [events.of_group(group).tolist() for group in range(3)]
    [[1, 2], [], [2]]
    """

    def __init__(self, arrays: NamedArrays | None = None, count: int = 0) -> None:
        if arrays is None:
            arrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in self.shapes(64, 64, 8).items()}
        rows, self._picks = arrays["events"], arrays["picks"]
        self._flag_bytes = rows.shape[1] - _HEAD
        self._row = struct.Struct(f"<5q{_PICKS.size}s{self._flag_bytes}s")
        self._flags: dict[int, bytes] = {}
        fields = [("stamps", "<i8", 5), ("picks", "<i4", (4, 2)), ("flags", "u1", self._flag_bytes)]
        self._rows = rows.view(np.dtype(fields)).reshape(-1)
        self._bytes = rows.data.cast("B")
        self._count = count
        self._used = int(self._rows["stamps"][count - 1, _USED]) if count else 0

    @staticmethod
    def shapes(capacity: int, envs: int, groups: int) -> dict[str, Shape]:
        """Return the shapes of the arrays.

        Args:
            capacity: number of events.
            envs: number of recorded environments.
            groups: number of groups of streams.
        """
        return {
            "events": Shape(np.dtype(np.uint8), (capacity, _HEAD + 8 * (1 + groups // 64))),
            "picks": Shape(np.dtype(np.int32), (max(1, envs) * (4 + capacity),)),
        }

    def __len__(self) -> int:
        return self._count

    def room(self, envs: int) -> int:
        """Return a lower bound on the number of further events that there is room for.

        Args:
            envs: number of recorded environments.
        """
        return min(len(self._rows) - self._count, (len(self._picks) - self._used) // max(1, 4 * envs))

    def append(self, event: Event, groups: int = 0, moment: int = 0) -> None:
        """Note an event.

        Args:
            event: the event.
            groups: the groups of streams that have a row: bit ``i`` stands for group ``i``.
            moment: the number of the moment.
        """
        frame, step, log_time, is_step, envs, before, after, begun = event
        if envs is None and before is None and after is None and begun is None:
            picks = _OF_ALL
        else:
            first = self._picked_at(envs)
            second = first if before is envs else self._picked_at(before)
            third = first if after is envs else second if after is before else self._picked_at(after)
            picks = _PICKS.pack(*first, *second, *third, *self._picked_at(begun))
        said = groups << 1 | is_step
        flags = self._flags.get(said)
        if flags is None:
            flags = self._flags[said] = said.to_bytes(self._flag_bytes, "little")
        row = self._row
        row.pack_into(self._bytes, self._count * row.size, frame, step, log_time, moment, self._used, picks, flags)
        self._count += 1

    def _picked_at(self, envs: EnvIndices) -> tuple[int, int]:
        """Note environments among the picks. Return how many they are, and where."""
        if envs is None:
            return _ALL, 0
        count, at = len(envs), self._used
        self._picks[at : at + count] = envs
        self._used = at + count
        return count, at

    def drop_after(self, count: int) -> None:
        """Forget all events but the first ones, however much of the others was noted."""
        self._count = min(count, self._count)
        self._used = int(self._rows["stamps"][self._count - 1, _USED]) if self._count else 0

    def drop(self, event: Event) -> None:
        """Forget an event if it is the last one, however much of it was noted."""
        last = self._rows["stamps"][self._count - 1] if self._count else None
        is_last = last is not None and (last[_FRAME], last[_LOG_TIME]) == (event.frame, event.log_time)
        self.drop_after(self._count - is_last)

    def clear(self) -> None:
        """Forget all events."""
        self._count = self._used = 0

    @property
    def frames(self) -> tuple[int, int]:
        """The frames ``[first, last)`` of the events, of which there must be one."""
        frames = self._rows["stamps"][: self._count, _FRAME]
        return int(frames[0]), int(frames[-1]) + 1

    def numbers(self) -> npt.NDArray[np.int64]:
        """Return frame, step and time of each event, ``[n, 3]``."""
        numbers: npt.NDArray[np.int64] = self._rows["stamps"][: self._count, :_MOMENT]
        return numbers

    def before(self, moment: int) -> int:
        """Return how many events were noted before a moment."""
        return int(np.searchsorted(self._rows["stamps"][: self._count, _MOMENT], moment))

    def of_group(self, group: int) -> npt.NDArray[np.intp]:
        """Return the numbers of the events in which a group of streams has a row: of each of its slots."""
        at = group + 1
        return np.flatnonzero(self._rows["flags"][: self._count, at // 8] & (1 << at % 8))

    @property
    def are_steps(self) -> npt.NDArray[np.bool_]:
        """Whether each event is a step, not a reset, ``[n]``."""
        return (self._rows["flags"][: self._count, 0] & 1).astype(np.bool_)

    def touched(self, envs: int) -> npt.NDArray[np.bool_]:
        """Return which environments were reset or stepped in each event, ``[n, envs]``."""
        return self._masks(slice(self._count), _ENVS, envs)

    def begun(self, envs: int) -> npt.NDArray[np.bool_]:
        """Return in which environments an episode begins with each event, ``[n, envs]``."""
        begun = self._masks(slice(self._count), _BEGUN, envs)
        are_all_begun = self._rows["picks"][: self._count, _BEGUN, 0] == _ALL
        begun[are_all_begun] = self._masks(are_all_begun, _ENVS, envs)
        return begun & ~self.are_steps[:, None]

    def recorded(self, events: npt.NDArray[np.intp], envs: int, *, before: bool) -> npt.NDArray[np.bool_] | None:
        """Return which environments are recorded in some events, ``[n, envs]``; None if all are in each of them.

        Args:
            events: the numbers of the events.
            envs: number of recorded environments.
            before: whether it is about the frames before the events, not those after them.
        """
        which = _BEFORE if before else _AFTER
        if (self._rows["picks"][events, which, 0] == _ALL).all():
            return None
        return self._masks(events, which, envs)

    def _masks(self, events: Any, which: int, envs: int) -> npt.NDArray[np.bool_]:
        """Return which environments were picked in some events, ``[n, envs]``."""
        counts, at = self._rows["picks"][: self._count][events, which].T.astype(np.intp)
        masks = np.repeat((counts == _ALL)[:, None], envs, axis=1)
        counts = np.maximum(counts, 0)
        ends = counts.cumsum()
        numbers = np.repeat(np.arange(len(counts)), counts)
        places = np.arange(len(numbers)) + np.repeat(at - ends + counts, counts)
        masks[numbers, self._picks[places]] = True
        return masks

    def runs(self) -> Iterator[tuple[int, int, Event | None]]:
        """Return stretches ``[first, last)`` of steps of all environments (None), and every other event by itself."""
        rows = self._rows[: self._count]
        first = 0
        for position in np.flatnonzero((rows["picks"][:, _ENVS, 0] != _ALL) | (rows["flags"][:, 0] & 1 == 0)).tolist():
            if first < position:
                yield first, position, None
            yield position, position + 1, self._event(position)
            first = position + 1
        if first < self._count:
            yield first, self._count, None

    def _event(self, position: int) -> Event:
        row = self._rows[position]
        frame, step, log_time = row["stamps"][:_MOMENT].tolist()
        envs, before, after, begun = (None if pick[0] == _ALL else self._picked(pick) for pick in row["picks"])
        return Event(frame, step, log_time, bool(row["flags"][0] & 1), envs, before, after, begun)

    def _picked(self, pick: npt.NDArray[np.int32]) -> npt.NDArray[np.intp]:
        count, at = pick.tolist()
        return self._picks[at : at + count].astype(np.intp)


_HEAD = struct.calcsize("<5q") + _PICKS.size
"""Bytes of a row before its flags."""


def as_slice(numbers: npt.NDArray[np.intp]) -> slice | npt.NDArray[np.intp]:
    """Return ascending numbers as a slice if they follow one another: NumPy copies a slice faster.

    >>> as_slice(np.array([3, 4, 5])), as_slice(np.array([3, 5]))
    (slice(3, 6, None), array([3, 5]))
    """
    first, last = int(numbers[0]), int(numbers[-1])
    return slice(first, last + 1) if last - first + 1 == len(numbers) else numbers


class EndedEpisode(NamedTuple):
    """An episode that is over.

    Attributes:
        env: index of its environment among the recorded ones.
        episode: its properties.
        before: the frame that all its rows are before.
        since: when it was over, in seconds of the monotonic clock.
    """

    env: int
    episode: Episode
    before: int
    since: float
