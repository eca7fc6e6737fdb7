"""Changes: values of a key that are of another dtype or shape than its first one, and so are not recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.leaf import UnsupportedLeafError
from torchrl_rerun.kinds.streams import Stream


class ChangedError(Exception):
    """A value has another dtype or shape than the key's first value.

    Args:
        found: the dtype and shape of the value.
        is_shape_alone: whether the dtype is that of the first value.
        wider: a dtype that holds the numbers of this value, and those of the first value's dtype. Default: there is none.
        advice: advice to the user.
    """

    def __init__(self, found: str, *, is_shape_alone: bool = False, wider: str = "", advice: str = "") -> None:
        super().__init__(found)
        self.is_shape_alone = is_shape_alone
        self.wider = wider
        self.advice = advice


def warn_of_change(stream: Stream, value: object, error: Exception) -> None:
    """Warn that a key is not recorded while its values are as one of them is.

    Args:
        stream: how the key is recorded.
        value: the value.
        error: the reason.
    """
    change = str(error)
    if not isinstance(error, ChangedError | UnsupportedLeafError):
        change = f"{type(value).__name__} ({error})"
    advice = f". {error.advice}" if isinstance(error, ChangedError) and error.advice else ""
    warn(
        f"{name_of(stream.key)} is not recorded while it is {change}: the recording began with "
        f"{stream.dtype} {stream.shape}{advice}"
    )


def wider_dtype(before: np.dtype[Any], found: np.dtype[Any]) -> str:
    """Return the name of the dtype that holds the numbers of two dtypes; empty if there is none.

    >>> wider_dtype(np.dtype(np.float32), np.dtype(np.float64)), wider_dtype(np.dtype(np.float32), np.dtype(np.int64))
    ('float64', '')
    """
    is_of_one_sort = before.kind == found.kind and before.kind in "iufc"
    return str(np.result_type(before, found).name) if is_of_one_sort else ""


def without_ones(shape: Sequence[int]) -> list[int]:
    """Return the sizes of a shape but for those of 1: some environments return () at a reset and (1,) at a step.

    >>> without_ones((1, 3, 1))
    [3]
    """
    return [size for size in shape if size != 1]
