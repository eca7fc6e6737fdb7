"""Exact numbers: a second column for values that the plotted one rounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.kinds.arrow import Column, flat, lists

if TYPE_CHECKING:
    from torchrl_rerun.kinds.streams import Stream

EXACT = "torchrl_rerun:exact"
"""The component that holds numbers as they were, if the viewer is shown others."""

EXACT_FLOATS = 2**53
"""The largest integer up to which float64 holds each one."""


def are_exact_floats(numbers: npt.NDArray[Any]) -> bool:
    """Return whether float64 holds each of some numbers to the bit. Floats of fewer bits must not be NaN for it.

    >>> are_exact_floats(np.array([2**53])), are_exact_floats(np.array([2**53 + 1]))
    (True, False)
    """
    if numbers.dtype.kind == "f":
        return numbers.dtype.itemsize == 8 or not np.isnan(numbers).any()
    return numbers.dtype.itemsize < 8 or not ((numbers > EXACT_FLOATS) | (numbers < -EXACT_FLOATS)).any()


def exact_column(numbers: npt.NDArray[Any]) -> Column:
    """Return the column that holds numbers as they are.

    Args:
        numbers: ``[n, ...]``, as ``stream.numbers(rows)`` gives them.
    """
    return Column(EXACT, None, None, lists(flat(numbers), len(numbers)))


def restored(stream: Stream, batch: pa.RecordBatch, shown: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows as they were, from the numbers that the viewer is shown and the exact ones beside them.

    Args:
        stream: the stream.
        batch: ``n`` rows; those with an exact value are taken from it.
        shown: the numbers of all rows that the viewer is shown, in one dimension.
    """
    numbers = stream.narrowed(shown)
    if EXACT in batch.schema.names:
        exact = batch.column(EXACT)
        size = math.prod(stream.row_shape)
        at = exact.is_valid().to_numpy(zero_copy_only=False)
        numbers.reshape(len(batch), size)[at] = stream.narrowed(flattened(exact)).reshape(-1, size)
    return numbers.reshape(len(batch), *stream.row_shape)


def flattened(rows: pa.ListArray) -> npt.NDArray[Any]:
    """Return all values of some lists, in one dimension."""
    values: npt.NDArray[Any] = rows.flatten().to_numpy(zero_copy_only=False)
    return values
