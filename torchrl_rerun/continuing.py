"""Continuing: whether a moment of stored data goes on with the episode of the one before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase

from torchrl_rerun import specs

FLAGS = ("done", "terminated", "truncated")

Begun = npt.NDArray[np.bool_]
"""Which environments are at the start of an episode, at each of some moments: ``[envs, time]``."""


class Continuity:
    """Remembers what the last step of each environment led to."""

    def __init__(self) -> None:
        self._last: TensorDictBase | None = None

    def forget(self) -> None:
        """What comes next goes on with nothing."""
        self._last = None

    def begun(self, rollout: TensorDictBase) -> Begun:
        """Who is at the start of an episode: whose last step ended one, or wasn't the one before.

        Args:
            rollout: ``[*batch, time]``, what comes next.
        """
        within = None if stepped_in(rollout) is not None else _begun_within(rollout)
        if within is None:
            return np.stack([self._one(moment) for moment in rollout.unbind(-1)], axis=1)
        within[:, 0] = self._begun_at(rollout[..., 0])
        self._last = rollout[..., -1].get("next").clone()
        return within

    def _one(self, moment: TensorDictBase) -> npt.NDArray[np.bool_]:
        begun = self._begun_at(moment)
        last, stepped = moment.get("next").clone(), stepped_in(moment)
        if stepped is not None and self._last is not None:
            # The rows of environments that were left out stay as they were the last time.
            last = last.where(stepped.reshape(moment.batch_size), self._last)
        self._last = last
        return begun

    def _begun_at(self, moment: TensorDictBase) -> npt.NDArray[np.bool_]:
        count = moment.batch_size.numel()
        if self._last is None or self._last.batch_size != moment.batch_size:
            return np.ones(count, bool)
        begun = np.zeros(count, bool)
        for key in specs.data_keys(self._last):
            before, now = specs.value_of(self._last, key), specs.value_of(moment, key)
            if not specs.is_non_tensor(before):
                begun |= _parts(key[-1], before, now, moment.batch_size, 1)[:, 0]
        return begun


def stepped_in(data: TensorDictBase) -> torch.Tensor | None:
    """Which environments stored data is of: a ``"mask"`` says what is not padding, a ``"_step"`` who was stepped."""
    return next((data.get(key) for key in ("mask", "_step") if data.get(key, None) is not None), None)


def _begun_within(rollout: TensorDictBase) -> Begun | None:
    """Who begins an episode after the first moment; None: that must be looked at moment by moment."""
    size, time = rollout.batch_size[:-1], rollout.batch_size[-1]
    begun = np.zeros((size.numel(), time), bool)
    following = rollout.get("next")
    for key in specs.data_keys(following) if time > 1 else ():
        before, now = specs.value_of(following, key), specs.value_of(rollout, key)
        if specs.is_uneven(before) or specs.is_uneven(now):
            return None
        if not specs.is_non_tensor(before):
            led_to, follows = _along(before, len(size), 0), _along(now, len(size), 1)
            begun[:, 1:] |= _parts(key[-1], led_to, follows, size, time - 1)
    return begun


def _along(value: Any, dim: int, begin: int) -> Any:
    """All values over time but the last one, or but the first one."""
    return value.narrow(dim, begin, value.shape[dim] - 1) if isinstance(value, torch.Tensor) else value


def _parts(name: str, before: torch.Tensor, now: Any, size: torch.Size, time: int) -> Begun:
    """Where one key says that a step wasn't followed by what comes next."""
    shape = (size.numel(), time)
    led_to = specs.as_array(before, size)
    if name in FLAGS:
        return np.asarray(led_to.reshape(*shape, -1).any(axis=-1))
    if now is None or specs.is_non_tensor(now) or name == "reward":
        return np.zeros(shape, bool)
    follows = specs.as_array(now, size)
    if follows.shape != led_to.shape:
        return np.ones(shape, bool)
    differs: npt.NDArray[np.bool_] = np.asarray(follows != led_to)
    if led_to.dtype.kind in "fc":
        differs &= (follows == follows) | (led_to == led_to)  # noqa: PLR0124 - NaN is followed by NaN
    return np.asarray(differs.reshape(*shape, -1).any(axis=-1))
