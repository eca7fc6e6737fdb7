"""Columns: arrays over time that may lie on a disk, what they can hold, and what can be wrong with them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tensordict import NonTensorStack

from torchrl_rerun.stored.pieces import filled_like, spans

TEXT = np.dtype("U")
"""The dtype of a column of strings."""

_TEXT_BYTES = 64
"""Bytes of a string, as long as it has not been read."""

_MOST_UNPACKED = 1032
"""Bytes that DEFLATE makes of one byte, at most."""


class Column(Protocol):
    """An array over time, one row for each moment.

    Attributes:
        shape: ``(rows, ...)``.
        dtype: a NumPy dtype; :data:`TEXT` for strings.
        fault: why its bytes are not what its description says. None: nothing is known against them.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102

    @property
    def fault(self) -> str | None: ...  # noqa: D102

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]:
        """Read consecutive rows. Raise :class:`DamagedError` if they can't be read."""


class DamagedError(ValueError):
    """An array can't be read: its bytes are not what its description says. The message says why, without its name."""


class Missing:
    """A column that a file names and doesn't hold.

    Args:
        fault: why.
    """

    shape: tuple[int, ...] = ()
    dtype = np.dtype("V0")

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        raise DamagedError(self.fault)


class InMemory:
    """A column of an array or a list of strings that has been read already.

    Args:
        values: ``[rows, ...]``.
    """

    fault: str | None = None

    def __init__(self, values: Any) -> None:
        is_text = isinstance(values, list) and bool(values) and all(isinstance(each, str) for each in values)
        self._values = np.array(values, object) if is_text else np.asarray(values)
        self.shape = self._values.shape
        self.dtype = TEXT if is_text else self._values.dtype

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        return self._values[rows]


def why_not_data(column: Column) -> str | None:
    """Return why a column's type can't be recorded; None if it can.

    >>> why_not_data(InMemory(np.zeros(3))), why_not_data(InMemory(["left", "right"]))
    (None, None)
    >>> why_not_data(InMemory(np.array([{}, []], object)))
    'Python objects, which are never loaded'
    """
    if column.dtype.kind in "biuf" or (column.dtype.kind == "U" and len(column.shape) == 1):
        return None
    if column.dtype.kind == "O":
        return "Python objects, which are never loaded"
    return f"{'strings' if column.dtype.kind == 'U' else column.dtype} {column.shape}, no numbers and no text"


def row_bytes(column: Column) -> int:
    """Return the bytes of one row."""
    width = int(np.prod(column.shape[1:], dtype=np.float64))
    return width * (column.dtype.itemsize or _TEXT_BYTES)


def too_much_for(claimed: int, packed: int, *, is_packed: bool) -> bool:
    """Tell whether a header claims more bytes than the packed ones can hold.

    >>> too_much_for(1000, 10, is_packed=True), too_much_for(10**13, 10, is_packed=True)
    (False, True)
    """
    return claimed > (packed * _MOST_UNPACKED if is_packed else packed)


def damage_in(column: Column) -> str | None:
    """Read all rows of a column once, and return why they can't be read; None if they can."""
    try:
        for begin, end in spans(0, column.shape[0], row_bytes(column)):
            as_values(column[begin:end])
    except DamagedError as error:
        return str(error)
    return None


def as_values(rows: npt.NDArray[Any]) -> Any:
    """Return rows as a tensordict takes them: a tensor ``[rows, ...]``, or a stack of strings ``[rows]``.

    PyTorch has no ``longdouble``: such numbers become float64.

    Raises:
        DamagedError: a ``longdouble`` isn't exactly a float64.
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


def joined(first: Any, *others: Any) -> Any:
    """Return rows of :func:`as_values`, one after the other."""
    if isinstance(first, torch.Tensor):
        return torch.cat([first, *others])
    return NonTensorStack(*(text for each in (first, *others) for text in each.tolist()))


def unknown_like(values: Any) -> Any:
    """Return what stands for rows that aren't stored: NaN; 0 or an empty string if there is no NaN."""
    return filled_like(values) if isinstance(values, torch.Tensor) else NonTensorStack(*[""] * len(values))
