"""Padding of values that are missing, or vary in shape, so that one array holds them, beside a mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.kinds.streams import Stream

RECORDED = "recorded"
"""The name below which the masks stand: ``("recorded", key)``, bool, True if a value was recorded."""

_BFLOAT16_NAN = 0x7FC0

Shape = tuple[int, ...]


def mask_name(schema: Schema) -> str:
    """Return the name below which masks stand: ``"recorded"``, with ``_`` appended until no key begins with it."""
    taken = {stream.key[0] for stream, _ in schema.described}
    name = RECORDED
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True)
class Form:
    """The masks and shapes that the values of several environments, episodes or steps need to fit together.

    Attributes:
        masked: keys with a missing value, or with values of several shapes.
        shapes: for keys that vary in shape, the shape that holds each value, as far as it is known.
    """

    masked: frozenset[Key] = frozenset()
    shapes: Mapping[Key, Shape] = field(default_factory=dict)

    def __or__(self, other: Form) -> Form:
        """Return the form that both fit in."""
        both = self.shapes.keys() & other.shapes.keys()
        uneven = {key for key in both if self.shapes[key] != other.shapes[key]}
        shapes = {
            **self.shapes,
            **other.shapes,
            **{key: largest([self.shapes[key], other.shapes[key]]) for key in both},
        }
        return Form(self.masked | other.masked | uneven, shapes)


def largest(shapes: Iterable[Shape]) -> Shape:
    """Return the shape that holds each of some shapes. Shapes of fewer dimensions get leading ones.

    >>> largest([(2, 3), (4, 1), (5,)])
    (4, 5)
    """
    found = list(shapes)
    dims = max(map(len, found), default=0)
    return tuple(max(sizes) for sizes in zip(*((1,) * (dims - len(shape)) + shape for shape in found), strict=True))


def filling(stream: Stream) -> Any:
    """Return the value that stands for a missing one: NaN; 0 if the dtype has no NaN; None for non-tensor data."""
    if stream.dtype == "object":
        return None
    if stream.dtype == "bfloat16":
        return _BFLOAT16_NAN
    return np.nan if stream.number_type.kind in "fc" else 0


def taken(stream: Stream, values: npt.NDArray[Any], rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Return the values at some rows, ``[m, ...]``, filled if there is none.

    Args:
        stream: the key.
        values: ``[n, ...]``.
        rows: int64 ``[m]``: the rows; -1: there is none.
    """
    is_there = rows >= 0
    if is_there.all():
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (rows[1:] > rows[:-1]).all():
            return values[rows[0] : rows[0] + len(rows)]  # a view
        return values[rows]
    out = np.full((len(rows), *values.shape[1:]), filling(stream), values.dtype)
    out[is_there] = values[rows[is_there]]
    return out


def padded(
    stream: Stream, values: npt.NDArray[Any], shape: Shape | None = None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return values of several shapes padded to one, ``[n, *shape]``, and the mask of their numbers.

    Args:
        stream: the key.
        values: arrays, ``[n]`` or ``[n, agents]``; anything else among them is filled.
        shape: the shape. Default: the smallest that holds each value.
    """
    shape = largest(shapes_of(values)) if shape is None else shape
    out = np.full((*values.shape, *shape), filling(stream), stream.number_type)
    mask = np.zeros(out.shape, np.bool_)
    for at in np.ndindex(values.shape):
        value = values[at]
        if isinstance(value, np.ndarray):
            part = (*at, *[0] * (len(shape) - value.ndim), *map(slice, value.shape))
            out[part], mask[part] = value, True
    return out, mask


def shapes_of(values: npt.NDArray[Any]) -> set[Shape]:
    """Return the shapes of the arrays among some objects."""
    return {value.shape for value in values.flat if isinstance(value, np.ndarray)}
