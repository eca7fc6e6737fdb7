"""Columns: arrays over time, in memory or on disk, and checks that they can be read."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tensordict import NonTensorStack

from torchrl_rerun.stored.segments import fill_unknown, split_time

TEXT = np.dtype("U")
"""Dtype of columns of strings."""

_TEXT_BYTES = 64
"""Assumed size of a string that has not been read, in bytes."""

_MOST_UNPACKED = 1032
"""Largest ratio of DEFLATE: bytes that one compressed byte can hold."""


class Column(Protocol):
    """Array over time, ``[rows, ...]``.

    Attributes:
        shape: Shape as the file's header states it, ``(rows, ...)``.
        dtype: NumPy dtype; :data:`TEXT` for strings.
        fault: Reason why the file doesn't hold what its header states. None: no fault was found.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102

    @property
    def fault(self) -> str | None: ...  # noqa: D102

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """Read consecutive rows. Raise :class:`DamagedError` if these can't be read."""


class DamagedError(ValueError):
    """An array can't be read. The message gives the reason, without the array's name."""


class MissingColumn:
    """Column that a file names and doesn't hold.

    Args:
        fault: Reason.
    """

    shape: tuple[int, ...] = ()
    dtype = np.dtype("V0")

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        raise DamagedError(self.fault)


class ArrayColumn:
    """Column in memory.

    Args:
        values: Array ``[rows, ...]``, or a list of strings.
    """

    fault: str | None = None

    def __init__(self, values: Any) -> None:
        is_text = isinstance(values, list) and bool(values) and all(isinstance(each, str) for each in values)
        self._values = np.array(values, object) if is_text else np.asarray(values)
        self.shape = self._values.shape
        self.dtype = TEXT if is_text else self._values.dtype

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        return self._values[rows]


def explain_unsupported(column: Column) -> str | None:
    """Return the reason why a column's dtype can't be recorded; None if it can.

    >>> explain_unsupported(ArrayColumn(np.zeros(3))), explain_unsupported(ArrayColumn(["left", "right"]))
    (None, None)
    >>> explain_unsupported(ArrayColumn(np.array([{}, []], object)))
    'Python objects, which are never loaded'
    """
    if column.dtype.kind in "biuf" or (column.dtype.kind == "U" and len(column.shape) == 1):
        return None
    if column.dtype.kind == "O":
        return "Python objects, which are never loaded"
    return (
        f"{'strings' if column.dtype.kind == 'U' else column.dtype} {column.shape}, which are neither numbers nor texts"
    )


def count_row_bytes(column: Column) -> int:
    """Return the size of one row in bytes."""
    width = int(np.prod(column.shape[1:], dtype=np.float64))
    return width * (column.dtype.itemsize or _TEXT_BYTES)


def exceeds_packed_size(stated: int, packed: int, *, is_packed: bool) -> bool:
    """Return whether a header states more bytes than the packed ones can hold.

    >>> exceeds_packed_size(1000, 10, is_packed=True), exceeds_packed_size(10**13, 10, is_packed=True)
    (False, True)
    """
    return stated > (packed * _MOST_UNPACKED if is_packed else packed)


def find_column_damage(column: Column) -> str | None:
    """Read all rows of a column once. Return the reason why they can't be read; None if they can."""
    try:
        for begin, end in split_time(0, column.shape[0], count_row_bytes(column)):
            convert_rows(column[begin:end])
    except DamagedError as error:
        return str(error)
    return None


def convert_rows(rows: npt.NDArray[Any]) -> Any:
    """Return rows as a tensor ``[rows, ...]``, or as a stack of strings ``[rows]``.

    PyTorch has no ``longdouble``; these numbers become float64.

    Raises:
        DamagedError: A ``longdouble`` has no exact float64.
    """
    if rows.dtype.kind in "OU":
        return NonTensorStack(*map(str, rows))
    if rows.dtype.kind == "f" and rows.dtype.itemsize > 8:
        doubles = rows.astype(np.float64)
        if not np.array_equal(doubles.astype(rows.dtype), rows, equal_nan=True):
            raise DamagedError(f"{rows.dtype} numbers that float64 doesn't hold exactly: save them as float64")
        rows = doubles
    rows = np.ascontiguousarray(rows)
    return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=not rows.flags.writeable))


def concatenate_rows(first: Any, *others: Any) -> Any:
    """Return several results of :func:`convert_rows` as one, ``[rows, ...]``."""
    if isinstance(first, torch.Tensor):
        return torch.cat([first, *others])
    return NonTensorStack(*(text for each in (first, *others) for text in each.tolist()))


def make_unknown_rows(values: Any) -> Any:
    """Return rows that stand for missing ones: NaN; 0 or an empty string if the dtype has no NaN."""
    return fill_unknown(values) if isinstance(values, torch.Tensor) else NonTensorStack(*[""] * len(values))
