"""Where each environment is: frame, step, episode and return counters, kept for the environments that are recorded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.streams import Key, Stream

Rows = npt.NDArray[np.intp] | None
"""Positions among the recorded environments; None: all of them."""

FRAME, STEP, EPISODE, EPISODE_STEP, LOG_TIME = range(5)
"""Columns of :attr:`Episodes.position`, in the order in which the timelines are written."""

TIMELINES = ("frame", "step", "episode", "episode_step", "log_time")

MAX_LOGGED_ENVS = 64
FEW_LOGGED_ENVS = 16


class Episodes:
    """Counts frames, steps and episodes, and sums rewards, for ``envs`` environments.

    An episode runs from a reset to the step that ends it, per environment, counted from 0 per environment. ``frame``
    grows by one with each recorded reset or step call, whatever environments it concerns; ``step`` counts the calls of
    ``env.step``.

    Attributes:
        position: int64 ``[envs, 5]``, the columns of :data:`TIMELINES` at each environment's last frame; ``log_time``
            in nanoseconds since the epoch. The episode is -1 before the first reset.
        frames: how many frames there have been.
        steps: how many calls of ``env.step`` there have been.

    >>> episodes = Episodes(2)
    >>> episodes.begin(None)
    >>> episodes.advance(np.array([1]))
    >>> episodes.position[:, :4].tolist()  # frame, step, episode, episode_step of each environment
    [[0, 0, 0, 0], [1, 1, 0, 1]]
    """

    def __init__(self, envs: int) -> None:
        self.position = np.zeros((envs, len(TIMELINES)), np.int64)
        self.position[:, EPISODE] = -1
        self.frames = 0
        self.steps = 0
        self._returns: dict[Key, npt.NDArray[np.float64]] = {}
        self._all_begun = False

    def begin(self, rows: Rows) -> None:
        """The environments ``rows`` were reset: a new frame, at step 0 of a new episode."""
        at = slice(None) if rows is None else rows
        self._stamp(at)
        self.position[at, EPISODE] += 1
        self.position[at, EPISODE_STEP] = 0
        for returns in self._returns.values():
            returns[at] = 0.0

    def advance(self, rows: Rows) -> None:
        """The environments ``rows`` were stepped: a new frame, one step on in the same episode."""
        self.steps += 1
        at = slice(None) if rows is None else rows
        self._stamp(at)
        self.position[at, EPISODE_STEP] += 1

    def never_begun(self, rows: Rows) -> Rows:
        """Those of ``rows`` that were never reset, an empty array if there are none."""
        if self._all_begun:
            return _NONE
        fresh = self.position[:, EPISODE] < 0
        self._all_begun = not fresh.any()
        return np.flatnonzero(fresh) if rows is None else rows[fresh[rows]]

    def returns(self, stream: Stream, reward: npt.NDArray[Any] | None, rows: Rows) -> npt.NDArray[np.float64]:
        """The running sums of a reward, of all environments: float64 ``[envs, *stream.shape]``.

        Args:
            stream: the stream of the sums.
            reward: what to add for the environments ``rows``; None: nothing, they were reset.
            rows: the environments that were stepped.
        """
        total = self._returns.get(stream.key)
        if total is None:
            total = self._returns[stream.key] = np.zeros((len(self.position), *stream.shape))
        if reward is not None:
            if rows is None:
                total += reward
            else:
                total[rows] += reward[rows]
        return total

    def _stamp(self, at: slice | npt.NDArray[np.intp]) -> None:
        self.position[at, FRAME] = self.frames
        self.position[at, STEP] = self.steps
        self.position[at, LOG_TIME] = time.time_ns()
        self.frames += 1


_NONE: npt.NDArray[np.intp] = np.empty(0, np.intp)


def resolve_envs(logged_envs: int | slice | Sequence[int] | str | None, envs: int) -> list[int]:
    """Which environments to record, as sorted indices.

    Args:
        logged_envs: an index, several, a slice, ``"all"``, or None: all of up to 64, else the first 16.
        envs: how many there are.

    Raises:
        IndexError: an index is out of range.

    >>> resolve_envs(slice(0, None, 2), 5), resolve_envs(-1, 5), len(resolve_envs(None, 4096))
    ([0, 2, 4], [4], 16)
    """
    if logged_envs is None:
        return list(range(envs if envs <= MAX_LOGGED_ENVS else FEW_LOGGED_ENVS))
    if isinstance(logged_envs, str):
        if logged_envs != "all":
            raise ValueError(f"logged_envs={logged_envs!r}: pass indices, a slice, 'all' or None")
        return list(range(envs))
    if isinstance(logged_envs, slice):
        chosen = list(range(envs))[logged_envs]
    else:
        chosen = [logged_envs] if isinstance(logged_envs, int) else [int(env) for env in logged_envs]
    wrong = [env for env in chosen if not -envs <= env < envs]
    if wrong or not chosen:
        raise IndexError(f"logged_envs={logged_envs!r} doesn't fit: there are {envs} environments, 0 to {envs - 1}")
    return sorted({env % envs for env in chosen})
