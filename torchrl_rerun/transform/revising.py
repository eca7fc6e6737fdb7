"""Revisions of the last step: its flags are read again, once the transforms behind the recorder have changed them."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase

from torchrl_rerun.kinds.endings import FLAGS, Ends
from torchrl_rerun.recording.last_step import PENDING, Pending, Revision
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.chain import Chain
from torchrl_rerun.transform.plan import Plan
from torchrl_rerun.transform.stepping import Stepping


class Outcome:
    """The data after the last step. Transforms behind the recorder may change it, or put other data in its place.

    Args:
        following: the data after the step.
        recording: the recording of the step.
        plan: the plan by which the step was read.
        chain: the transforms around the recorder.
        stepping: the step; None: it isn't known.
        values: the values that the recorder saw.
        arrays: the arrays that were recorded of them.

    Attributes:
        following: the data after the step, the latest that is known.
    """

    __slots__ = ("_arrays", "_chain", "_plan", "_recording", "_stepping", "_values", "_versions", "following")

    def __init__(
        self,
        following: TensorDictBase,
        recording: Recording,
        plan: Plan,
        chain: Chain,
        stepping: weakref.ref[Stepping] | None,
        *,
        values: Sequence[Any],
        arrays: Sequence[Any],
    ) -> None:
        self.following = following
        self._recording = recording
        self._plan = plan
        self._chain = chain
        self._stepping = stepping
        self._values = values
        self._versions = _versions_of(values)
        self._arrays = arrays

    def follow(self, following: TensorDictBase) -> None:
        """Look at other data after the step: a transform has put it in the place of the data before."""
        self.following = following

    def revise(self, at_once: bool) -> Revision | Pending | None:
        """Return the flags of the step as they are now; None if they haven't changed.

        Args:
            at_once: whether the flags are final now, though transforms are still at work.
        """
        if not at_once and self._is_under_way():
            return PENDING
        following, seen = self.following, self._values
        if following.batch_size != self._recording.source.batch_size:
            return None
        now = self._plan.following.values(following)
        if all(map(operator.is_, now, seen)) and _versions_of(now) == self._versions:
            return None  # nearly always
        revised = self._changed(now)
        if revised is None:
            return None
        count = len(self._plan.observed.each)
        nobody = np.zeros(following.batch_size.numel(), np.bool_)
        ends = (self._plan.ends(following) or Ends(nobody, nobody)) if self._recording.must_know_ends else None
        return Revision(revised[:count], revised[count:], ends)

    def _changed(self, now: Sequence[Any]) -> list[Any] | None:
        """Return the arrays with the flags that have changed; None if none has."""
        revised = [*self._arrays]
        has_changed = False
        for i, (reader, value, seen, version, array) in enumerate(
            zip(self._plan.following, now, self._values, self._versions, self._arrays, strict=True)
        ):
            if value is None:
                continue
            is_recorded_flag = reader.key[-1] in FLAGS and array is not None
            if value is seen or _is_same_memory(value, seen):
                if _version_of(value) == version:
                    continue
                # It was written to in place: the value that was copied can't be compared with any more.
                if is_recorded_flag:
                    has_changed = True
                else:
                    self._chain.warn_of_change(reader.key)
            elif reader.stream.device:
                if is_recorded_flag:  # to compare it would be to wait for the accelerator
                    revised[i], has_changed = value.reshape(array.shape), True
            elif (is_recorded_flag or not self._chain.has_warned) and _is_other(value, array):
                if is_recorded_flag and value.numel() == array.size:
                    revised[i], has_changed = _plain(value, array.shape), True
                else:
                    self._chain.warn_of_change(reader.key)
        return revised if has_changed else None

    def _is_under_way(self) -> bool:
        """Return whether transforms behind the recorder are still at work, on another thread perhaps."""
        stepping = None if self._stepping is None else self._stepping()
        return stepping is not None and stepping.goes_on

    def is_under_way_elsewhere(self) -> bool:
        """Return whether transforms behind the recorder are at work on another thread than this one."""
        stepping = None if self._stepping is None else self._stepping()
        return stepping is not None and stepping.goes_on_elsewhere


_version = operator.attrgetter("_version")


def _versions_of(values: Sequence[Any]) -> list[int]:
    """Return how often each value has been written to."""
    try:
        return [*map(_version, values)]
    except (AttributeError, RuntimeError):
        return [*map(_version_of, values)]


def _version_of(value: Any) -> int:
    """Return how often a tensor has been written to; 0 if PyTorch doesn't say, as of tensors of inference mode."""
    try:
        version: int = _version(value)
    except (AttributeError, RuntimeError):
        return 0
    return version


def _is_same_memory(a: Any, b: Any) -> bool:
    """Return whether two values are views of the same numbers."""
    return (
        isinstance(a, torch.Tensor)
        and isinstance(b, torch.Tensor)
        and (a.data_ptr(), a.dtype, a.numel()) == (b.data_ptr(), b.dtype, b.numel())
    )


def _is_other(value: Any, recorded: Any) -> bool:
    """Return whether a value holds other numbers than those recorded; None: none are."""
    if not isinstance(value, torch.Tensor) or value.is_nested or value.layout is not torch.strided or recorded is None:
        return False
    if recorded.dtype == object:  # values of shapes of their own
        return value.numel() != sum(each.size for each in recorded.flat if isinstance(each, np.ndarray))
    if value.numel() != recorded.size:
        return True
    other = _plain(value, recorded.shape)
    return not (
        np.array_equal(other, recorded) or (other.dtype.kind == "f" and np.array_equal(other, recorded, equal_nan=True))
    )


def _plain(value: torch.Tensor, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return a tensor as an array of a shape."""
    return tensordicts.as_array(value, torch.Size()).reshape(shape)
