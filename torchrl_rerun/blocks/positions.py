"""Positions: frame, step and episode of each environment after each event."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.events import Event, Events
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


def advance_together(positions: Positions, stamps: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> Positions:
    """Return the positions after each of ``n`` steps of all environments, ``[envs, 6, n]``.

    Args:
        positions: their positions before the first of these steps, ``[envs, 6]``.
        stamps: frame, step and time of each, ``[n, 3]``.
        steps: how many steps of all environments were made up to each, ``[n]``.
    """
    after = np.repeat(positions[:, :, None], len(stamps), axis=2)
    after[:, _STAMPS] = stamps.T
    after[:, EPISODE_STEP] += steps
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
        stamps = events.numbers()
        # The last axis is time: number 0 is before the block, number i + 1 after its event i.
        self._positions = np.empty((len(start), COLUMNS, len(events) + 1), np.int64)
        self._positions[..., 0] = start
        for first, last, event in events.runs():
            before = self._positions[..., first]
            if event is None:
                steps = np.arange(1, last - first + 1)
                self._positions[..., first + 1 : last + 1] = advance_together(before, stamps[first:last], steps)
            else:
                self._positions[..., last] = advance(before, event)

    def at(self, env: int, events: npt.NDArray[np.intp]) -> Positions:
        """Return the positions of an environment after some events, ``[n, 6]``, each column contiguous.

        Args:
            env: index of the environment among the recorded ones.
            events: the numbers of the events in the block, in which it took part.
        """
        return self.before(env, events + 1)

    def before(self, env: int, events: npt.NDArray[np.intp]) -> Positions:
        """Return the positions of an environment before some events, ``[n, 6]``: where the policy saw it.

        Args:
            env: index of the environment among the recorded ones.
            events: the numbers of the events in the block.
        """
        positions: Positions = self._positions[env].take(events, axis=1).T
        return positions
