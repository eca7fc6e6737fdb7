"""Events: the resets and steps of a block, noted in a few numbers each on the environment's thread."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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


class Events:
    """The events of a block, in order.

    Steps of all environments, which nearly all events are, are stored as numbers: to go through thousands of Python objects
    would keep the GIL from the environment's thread for milliseconds.

    >>> events = Events()
    >>> second = np.array([1])
    >>> events.append(Event(7, 6, 0, True, None, None, None))
    >>> events.append(Event(8, 7, 1, True, None, None, None))
    >>> events.append(Event(9, 7, 2, False, second, second, second))
    >>> len(events), events.frames, [(first, last, event and event.frame) for first, last, event in events.runs()]
    (3, (7, 10), [(0, 2, None), (2, 3, 9)])
    """

    def __init__(self) -> None:
        self._numbers = array("q")
        self._others: dict[int, Event] = {}  # all that aren't steps of all environments
        self._picked: dict[int, Event] = {}  # steps of all environments of which not all is recorded
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, event: Event) -> None:
        """Note an event."""
        frame, step, log_time, is_step, envs, before, after, _ = event
        self._numbers.extend((frame, step, log_time))
        if envs is not None or not is_step:
            self._others[self._count] = event
        elif before is not None or after is not None:
            self._picked[self._count] = event
        self._count += 1

    def extend(self, events: Iterable[Event]) -> None:
        """Note several events."""
        for event in events:
            self.append(event)

    def drop_after(self, count: int) -> None:
        """Forget all events but the first ones, however much of the others was noted."""
        del self._numbers[3 * count :]
        self._count = len(self._numbers) // 3
        for noted in (self._others, self._picked):
            for number in [number for number in noted if number >= count]:
                del noted[number]

    def drop(self, event: Event) -> None:
        """Forget an event if it is the last one, however much of it was noted."""
        if self._numbers and (self._numbers[-3], self._numbers[-1]) == (event.frame, event.log_time):
            del self._numbers[-3:]
        self._count = len(self._numbers) // 3
        self._others.pop(self._count, None)
        self._picked.pop(self._count, None)

    def clear(self) -> None:
        """Forget all events."""
        self._numbers = array("q")
        self._others.clear()
        self._picked.clear()
        self._count = 0

    @property
    def frames(self) -> tuple[int, int]:
        """The frames ``[first, last)`` of the events, of which there must be one."""
        return self._numbers[0], self._numbers[-3] + 1

    def numbers(self) -> npt.NDArray[np.int64]:
        """Return frame, step and time of each event, ``[n, 3]``."""
        return np.array(self._numbers, np.int64).reshape(-1, 3)

    def partial(self, *, before: bool) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """Return the positions of the events in which not all environments are recorded, and the recorded environments.

        Args:
            before: whether it is about the frames before the events, not those after them.
        """
        for position, event in (*self._others.items(), *self._picked.items()):
            envs = event.envs_before if before else event.envs_after
            if envs is not None:
                yield position, envs

    def runs(self) -> Iterator[tuple[int, int, Event | None]]:
        """Return stretches ``[first, last)`` of steps of all environments (None), and every other event by itself."""
        first = 0
        for position, event in self._others.items():
            if first < position:
                yield first, position, None
            yield position, position + 1, event
            first = position + 1
        if first < self._count:
            yield first, self._count, None


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
