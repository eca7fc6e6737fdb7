"""Events: what happened in each frame, as little of it as can be noted on the environment's thread."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.intp] | None
"""Positions among the recorded environments; None: all of them."""


class Event(NamedTuple):
    """What happened in one frame: environments were reset, or stepped.

    Attributes:
        frame: number of the frame.
        step: calls of ``env.step`` so far.
        log_time: when it happened, in nanoseconds since the epoch.
        is_step: they were stepped, not reset.
        rows: which environments.
    """

    frame: int
    step: int
    log_time: int
    is_step: bool
    rows: Rows


class Events:
    """What happened in a block, in order.

    Steps of all environments, which nearly all events are, are kept as numbers alone: going through thousands of Python
    objects would keep the GIL from the environment's thread for milliseconds.

    >>> events = Events()
    >>> for event in (Event(7, 6, 0, True, None), Event(8, 7, 1, True, None), Event(9, 7, 2, False, np.array([1]))):
    ...     events.append(event)
    >>> len(events), events.frames, [(first, last, event and event.frame) for first, last, event in events.runs()]
    (3, (7, 10), [(0, 2, None), (2, 3, 9)])
    """

    def __init__(self) -> None:
        self._numbers = array("q")
        self._others: dict[int, Event] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, event: Event) -> None:
        """Note an event."""
        frame, step, log_time, is_step, rows = event
        self._numbers.extend((frame, step, log_time))
        if rows is not None or not is_step:
            self._others[self._count] = event
        self._count += 1

    def drop(self, frame: int) -> None:
        """Forget the event of a frame, the last one, however much of it was noted."""
        while self._numbers and self._numbers[-3] >= frame:
            del self._numbers[-3:]
        self._count = len(self._numbers) // 3
        self._others.pop(self._count, None)

    def clear(self) -> None:
        """Forget all."""
        self._numbers = array("q")
        self._others.clear()
        self._count = 0

    @property
    def frames(self) -> tuple[int, int]:
        """The frames ``[first, last)`` of all events; there must be one."""
        return self._numbers[0], self._numbers[-3] + 1

    def numbers(self) -> npt.NDArray[np.int64]:
        """Frame, step and time of each: ``[n, 3]``."""
        return np.array(self._numbers, np.int64).reshape(-1, 3)

    def partial(self) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """The events that were of some environments only, and which: their positions and rows."""
        for position, event in self._others.items():
            if event.rows is not None:
                yield position, event.rows

    def runs(self) -> Iterator[tuple[int, int, Event | None]]:
        """Stretches ``[first, last)`` of steps of all environments (None), and every other event by itself."""
        first = 0
        for position, event in self._others.items():
            if first < position:
                yield first, position, None
            yield position, position + 1, event
            first = position + 1
        if first < self._count:
            yield first, self._count, None
