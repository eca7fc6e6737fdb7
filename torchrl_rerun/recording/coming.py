"""Coming frames: the resets and steps of a rollout that are to be recorded at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.block import Arrays
from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.recording.logged_envs import LoggedEnvs


class Coming(NamedTuple):
    """The frames of many steps, in order: before each step a reset, if environments are reset.

    Attributes:
        times: the number of each frame's step, ``[frames]``.
        is_step: whether each is a step, not a reset, ``[frames]``.
        begun: the environments that are reset before each step, ``[envs, time]``.
        stepped: the environments that are stepped, ``[envs, time]``; None: all, each time.
        is_of_all: whether each concerns all environments, ``[frames]``.
    """

    times: npt.NDArray[np.intp]
    is_step: npt.NDArray[np.bool_]
    begun: npt.NDArray[np.bool_]
    stepped: npt.NDArray[np.bool_] | None
    is_of_all: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, begun: npt.NDArray[np.bool_], stepped: npt.NDArray[np.bool_] | None) -> Coming:
        """Return all frames."""
        time = begun.shape[1]
        everyone = np.ones((1, time), bool)
        both = begun, everyone if stepped is None else stepped
        is_there, is_of_all = (
            np.stack([call(each, axis=0) for each in both], axis=1).reshape(-1) for call in (np.any, np.all)
        )
        [numbers] = np.nonzero(is_there)
        return cls(numbers // 2, numbers % 2 == 1, begun, stepped, is_of_all[numbers])

    @property
    def left(self) -> int:
        """Number of frames."""
        return len(self.times)

    def mask(self, number: int) -> npt.NDArray[np.bool_] | None:
        """Return the environments that a frame concerns, ``[envs]``; None: all."""
        if self.is_of_all[number]:
            return None
        chosen = self.stepped if self.is_step[number] else self.begun
        assert chosen is not None, "else it concerns all"
        mask: npt.NDArray[np.bool_] = chosen[:, self.times[number]]
        return mask

    def after(self, count: int) -> Coming:
        """Return the frames without the first ones."""
        return self._replace(times=self.times[count:], is_step=self.is_step[count:], is_of_all=self.is_of_all[count:])


def at_time(arrays: Arrays | None, at: int) -> Arrays | None:
    """Return the values at one time, ``[envs, ...]``, of values ``[envs, time, ...]``."""
    return None if arrays is None else [array[:, at] for array in arrays]


def ends_at(ends: Ends | None, at: int, logged: LoggedEnvs) -> Ends | None:
    """Return the ends of the recorded environments at a step; None if no episode ends."""
    if ends is None or not (ends.terminated[:, at].any() or ends.truncated[:, at].any()):
        return None
    return logged.ends(Ends(ends.terminated[:, at], ends.truncated[:, at]))
