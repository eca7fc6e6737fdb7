"""Timelines: frame, step and episode of each row of a block, derived from its events on the writer's thread."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.events import Events
from torchrl_rerun.kinds.timelines import COLUMNS, EPISODE, EPISODE_STEP, FRAME, LOG_TIME, REGROUPED, STEP, Positions


class Timelines:
    """Positions of all environments at the frames of a block.

    Args:
        start: where they were before its first frame, ``[envs, 6]``.
        events: its events, one for each frame.

    >>> from torchrl_rerun.blocks.events import Event
    >>> events = Events()
    >>> second = np.array([1])
    >>> events.append(Event(9, 8, 80, False, second, second, second))
    >>> events.append(Event(10, 9, 90, True, None, None, None))
    >>> timelines = Timelines(np.array([[8, 8, 0, 8, 70, 0], [8, 8, 0, 8, 70, 0]]), events)
    >>> timelines.at(0, np.array([1])).tolist(), timelines.at(1, np.array([0, 1])).tolist()
    ([[10, 9, 0, 9, 90, 0]], [[9, 8, 1, 0, 80, 0], [10, 9, 1, 1, 90, 0]])
    >>> timelines.before(0, np.array([1])).tolist()
    [[8, 8, 0, 8, 70, 0]]
    """

    def __init__(self, start: Positions, events: Events) -> None:
        envs, count = len(start), len(events)
        self._start = start
        self._of_events = events.numbers()
        # Row 0 is before the block, row i + 1 after its event i.
        self._latest = np.zeros((count + 1, envs), np.int32)
        self._episode = np.empty((count + 1, envs), np.int64)
        self._episode_step = np.empty((count + 1, envs), np.int64)
        self._regrouped = np.empty((count + 1, envs), np.int64)
        self._episode[0], self._episode_step[0] = start[:, EPISODE], start[:, EPISODE_STEP]
        self._regrouped[0] = start[:, REGROUPED]
        for first, last, event in events.runs():
            after = slice(first + 1, last + 1)
            self._episode[after] = self._episode[first]
            self._regrouped[after] = self._regrouped[first]
            if event is None:
                self._episode_step[after] = self._episode_step[first] + np.arange(1, last - first + 1)[:, None]
                self._latest[after] = np.arange(first + 1, last + 1, dtype=np.int32)[:, None]
                continue
            at = slice(None) if event.rows is None else event.rows
            self._episode_step[last] = self._episode_step[first]
            self._latest[last] = self._latest[first]
            self._latest[last, at] = last
            if event.is_step:
                self._episode_step[last, at] += 1
            else:
                begins = slice(None) if event.begins is None else event.begins
                self._regrouped[last, at] += 1
                self._episode[last, begins] += 1
                self._episode_step[last, begins] = self._regrouped[last, begins] = 0

    def at(self, env: int, frames: npt.NDArray[np.intp]) -> Positions:
        """Return the positions of an environment after some events, ``[n, 6]``.

        Args:
            env: index of the environment among the recorded ones.
            frames: the numbers of the events in the block, in which it took part.
        """
        return self._positions(env, frames + 1)

    def before(self, env: int, frames: npt.NDArray[np.intp]) -> Positions:
        """Return the positions of an environment before some events, ``[n, 6]``: where the policy saw it.

        Args:
            env: index of the environment among the recorded ones.
            frames: the numbers of the events in the block.
        """
        return self._positions(env, frames)

    def _positions(self, env: int, rows: npt.NDArray[np.intp]) -> Positions:
        # Fortran order: each timeline is a column of its own, contiguous.
        out = np.empty((len(rows), COLUMNS), np.int64, order="F")
        out[:, EPISODE] = self._episode[rows, env]
        out[:, REGROUPED] = self._regrouped[rows, env]
        out[:, EPISODE_STEP] = self._episode_step[rows, env]
        latest = self._latest[rows, env]
        for i, column in enumerate((FRAME, STEP, LOG_TIME)):
            out[:, column] = self._of_events[latest - 1, i]
        if len(rows) and not latest[0]:
            earlier = latest == 0
            out[earlier] = self._start[env]
        return out
