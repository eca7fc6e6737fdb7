"""Exact numbers: the component beside ``Scalars`` for integers that float64 doesn't hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

EXACT = "torchrl_rerun:exact"
"""The component that holds integers as they were, where ``Scalars:scalars`` can't, and the numbers of a picture that the
viewer would show in other colours."""


EXACT_FLOATS = 2**53
"""The largest integer up to which float64 holds each one."""


def are_exact_floats(numbers: npt.NDArray[Any]) -> bool:
    """Whether float64 holds each of some numbers to the bit; of a NaN of fewer bits that isn't said.

    >>> are_exact_floats(np.array([2**53])), are_exact_floats(np.array([2**53 + 1]))
    (True, False)
    """
    if numbers.dtype.kind == "f":
        return numbers.dtype.itemsize == 8 or not np.isnan(numbers).any()
    return numbers.dtype.itemsize < 8 or not ((numbers > EXACT_FLOATS) | (numbers < -EXACT_FLOATS)).any()
