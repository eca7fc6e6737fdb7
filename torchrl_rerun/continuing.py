"""Continuing: whether a moment of stored data goes on with the episode of the one before it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase

from torchrl_rerun import specs

FLAGS = ("done", "terminated", "truncated")


class Continuity:
    """Remembers what the last step of each environment led to."""

    def __init__(self) -> None:
        self._last: TensorDictBase | None = None

    def forget(self) -> None:
        """What comes next goes on with nothing."""
        self._last = None

    def begun(self, moment: TensorDictBase) -> npt.NDArray[np.bool_]:
        """Which environments are at the start of an episode: those whose last step ended one, or wasn't the one before.

        Args:
            moment: root keys at t, of all environments.
        """
        count = moment.batch_size.numel()
        if self._last is None or self._last.batch_size != moment.batch_size:
            return np.ones(count, bool)
        begun = np.zeros(count, bool)
        for key in specs.data_keys(self._last):
            value, following = specs.value_of(self._last, key), specs.value_of(moment, key)
            if specs.is_non_tensor(value):
                continue
            before = specs.as_array(value, moment.batch_size)
            if key[-1] in FLAGS:
                begun |= before.reshape(count, -1).any(axis=1)
            elif following is not None and not specs.is_non_tensor(following) and key[-1] != "reward":
                now = specs.as_array(following, moment.batch_size)
                same = np.array(
                    [np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(before, now, strict=True)]
                )
                begun |= ~same
        return begun

    def step(self, following: TensorDictBase, stepped: torch.Tensor | None) -> None:
        """Remember what a step led to.

        Args:
            following: ``("next", ...)`` keys, of all environments.
            stepped: which environments were; None: all. The rows of the others stay as they were the last time.
        """
        last = following.clone()
        if stepped is not None and self._last is not None:
            last = last.where(stepped.reshape(following.batch_size), self._last)
        self._last = last


def stepped_in(moment: TensorDictBase) -> torch.Tensor | None:
    """Which environments a moment of stored data is of: a ``"mask"`` says what is not padding, ``"_step"`` who was stepped."""
    return next((moment.get(key) for key in ("mask", "_step") if moment.get(key, None) is not None), None)
