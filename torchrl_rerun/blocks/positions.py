"""Positions: frame, step and episode of each environment after each event."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.events import Event, Events, as_slice
from torchrl_rerun.kinds.timelines import COLUMNS, EPISODE, EPISODE_STEP, FRAME, LOG_TIME, REGROUPED, STEP, Positions

_STAMPS = [FRAME, STEP, LOG_TIME]


def advance(positions: Positions, event: Event) -> Positions:
    """Return the positions of all environments after an event, ``[envs, 6]``.

    Args:
        positions: their positions before it, ``[envs, 6]``, which stay as they are.
        event: the event.
    """
    after = positions.copy()
    touched = slice(None) if event.envs is None else event.envs
    moved = after[touched]
    moved[:, FRAME], moved[:, STEP], moved[:, LOG_TIME] = event[:3]
    if event.is_step:
        moved[:, EPISODE_STEP] += 1
    else:
        moved[:, REGROUPED] += 1
    after[touched] = moved
    if not event.is_step:
        begun = slice(None) if event.envs_begun is None else event.envs_begun
        first = after[begun]
        first[:, EPISODE] += 1
        first[:, EPISODE_STEP] = first[:, REGROUPED] = 0
        after[begun] = first
    return after


class Timelines:
    """Positions of all environments at the frames of a block, derived from its events on the writer's thread.

    Args:
        start: their positions before its first frame, ``[envs, 6]``.
        events: its events, one for each frame.

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
        touched, begun = events.touched(envs).T, events.begun(envs).T
        # The last axis is time: number 0 is before the block, number i + 1 after its event i.
        self._positions = np.empty((envs, COLUMNS, count + 1), np.int64)
        latest = np.zeros((envs, count + 1), np.intp)
        np.maximum.accumulate(touched * np.arange(1, count + 1), axis=1, out=latest[:, 1:])
        stamps = np.concatenate([np.zeros((1, len(_STAMPS)), np.int64), events.numbers()])
        for column, values in zip(_STAMPS, stamps.T, strict=True):
            self._positions[:, column] = np.where(latest > 0, values[latest], start[:, column, None])
        self._positions[:, EPISODE, 0] = start[:, EPISODE]
        self._positions[:, EPISODE, 1:] = begun
        np.cumsum(self._positions[:, EPISODE], axis=1, out=self._positions[:, EPISODE])
        for column, counted in ((EPISODE_STEP, events.are_steps), (REGROUPED, ~events.are_steps)):
            counts = np.zeros((envs, count + 1), np.int64)
            np.cumsum(touched & counted, axis=1, out=counts[:, 1:])
            since = np.where(begun, counts[:, 1:], np.iinfo(np.int64).min)  # the count when the episode began
            since = np.maximum.accumulate(np.concatenate([-start[:, column, None], since], axis=1), axis=1)
            np.subtract(counts, since, out=self._positions[:, column])

    def at(self, env: int, events: npt.NDArray[np.intp]) -> Positions:
        """Return the positions of an environment after some events, ``[n, 6]``, each column contiguous. They are not to be changed.

        Args:
            env: index of the environment among the recorded ones.
            events: the numbers of the events in the block, ascending, in which it took part.
        """
        return self.before(env, events + 1)

    def before(self, env: int, events: npt.NDArray[np.intp]) -> Positions:
        """Return the positions of an environment before some events: where the policy saw it. Otherwise as :meth:`at`.

        Args:
            env: index of the environment among the recorded ones.
            events: the numbers of the events in the block, ascending.
        """
        if not len(events):
            return np.empty((0, COLUMNS), np.int64)
        positions: Positions = self._positions[env]
        consecutive = as_slice(events)
        return (positions[:, consecutive] if isinstance(consecutive, slice) else positions.take(events, axis=1)).T
