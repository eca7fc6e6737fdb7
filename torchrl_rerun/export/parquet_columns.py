"""Columns of Parquet files: the values of a key as an Arrow array, null if a value is missing."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.objects import JSON, as_json, is_unicode
from torchrl_rerun.kinds.streams import Stream

MEDIA_TYPE = "media_type"
"""The metadata of a field that says what its texts are."""


class Nature(NamedTuple):
    """The type of a value that is a Python object or an array of its own shape.

    Attributes:
        kind: ``"string"``, ``"bytes"``, ``"array"``, or ``"other"``: a value that JSON has a form for.
        dtype: for an array the name of its dtype.
        dims: for an array the number of its dimensions.
    """

    kind: str
    dtype: str = ""
    dims: int = 0

    def __str__(self) -> str:
        if self.kind == "array":
            return f"arrays of {self.dtype} with {self.dims} dimension{'' if self.dims == 1 else 's'}"
        return {"string": "strings", "other": "other values"}.get(self.kind, self.kind)


@dataclass(frozen=True)
class Form:
    """The way in which the column of a key is made whose values are objects.

    Attributes:
        made: returns an Arrow array of values, none of which is missing.
        metadata: metadata of the column's field.
    """

    made: Callable[[Sequence[Any]], pa.Array]
    metadata: dict[str, str] | None = None


def natures_of(stream: Stream, values: npt.NDArray[Any]) -> set[Nature]:
    """Return the natures of the values of a key that are objects.

    Args:
        stream: the key.
        values: ``[n]`` or ``[n, agents]``.
    """
    return {_nature(stream, value) for value in values.flat}


def _nature(stream: Stream, value: Any) -> Nature:
    if isinstance(value, np.ndarray):
        return Nature("array", stream.dtype if stream.varies else value.dtype.name, value.ndim)
    if isinstance(value, bytes):
        return Nature("bytes")
    return Nature("string" if isinstance(value, str) and is_unicode(value) else "other")


def form_of(stream: Stream, natures: Collection[Nature]) -> Form:
    """Decide how the values of a key that are objects become a column.

    Args:
        stream: the key.
        natures: the natures of all its values.

    Raises:
        ValueError: no column can hold them all; names the key.
    """
    kinds = {each.kind for each in natures}
    if not natures and stream.varies:
        return Form(functools.partial(_nested, dims=len(stream.row_shape), dtype=stream.number_type))
    if kinds <= {"string"}:
        return Form(functools.partial(pa.array, type=pa.string()))
    if kinds == {"bytes"}:
        return Form(functools.partial(pa.array, type=pa.binary()))
    if kinds <= {"string", "other"}:
        return Form(_json, {MEDIA_TYPE: JSON})
    if kinds == {"array"} and len(natures) == 1:
        [one] = natures
        if not one.dtype.startswith("complex"):
            return Form(functools.partial(_nested, dims=one.dims, dtype=np.dtype(_number_type(stream, one.dtype))))
    raise ValueError(
        f"{name_of(stream.key)} holds {' and '.join(sorted(map(str, natures)))}, for which Parquet has no column: leave that "
        f"key out, or choose episodes that hold one of them alone; episode[{name_of(stream.key)}] of load() gives the values"
    )


def column_of(
    stream: Stream, values: npt.NDArray[Any], is_there: npt.NDArray[np.bool_], form: Form | None = None
) -> pa.Array:
    """Return the values of a key as a column, null where there is none.

    Args:
        stream: the key.
        values: ``[n, *shape]``, or objects, ``[n]`` or ``[n, agents]``.
        is_there: bool ``[n]``: whether there is a value.
        form: how the column of objects is made; None: the values are numbers.
    """
    shape = values.shape[1:]
    if form is not None:
        return _of_objects(stream, values[is_there], is_there, form)
    values = _as_numbers(stream, values)
    if 0 in shape:  # Arrow has no lists of fixed size 0
        return _spread(_nested(list(values[is_there]), dims=len(shape), dtype=values.dtype), is_there)
    mask = None if is_there.all() else ~is_there
    flat = np.ascontiguousarray(values).reshape(-1)
    if shape in {(), (1,)}:
        return pa.array(flat, mask=mask)
    lists = pa.FixedSizeListArray.from_arrays(
        pa.array(flat), math.prod(shape), mask=None if mask is None else pa.array(mask)
    )
    if len(shape) == 1:
        return lists
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(lists.type.value_type, shape), lists)


def _of_objects(stream: Stream, present: npt.NDArray[Any], is_there: npt.NDArray[np.bool_], form: Form) -> pa.Array:
    """Return a column of objects. The objects of agents are a list."""
    agents = len(stream.agents)
    elements = list(present.reshape(-1, *present.shape[2:]) if agents else present)
    column = form.made([_as_numbers(stream, each) if isinstance(each, np.ndarray) else each for each in elements])
    if agents:
        column = pa.ListArray.from_arrays(_offsets(np.full(len(present), agents)), column)
    return _spread(column, is_there)


def _spread(column: pa.Array, is_there: npt.NDArray[np.bool_]) -> pa.Array:
    """Return a column with its values at the rows that have one, and null at the others."""
    return column if is_there.all() else column.take(pa.array(np.cumsum(is_there) - 1, mask=~is_there))


def _json(values: Sequence[Any]) -> pa.Array:
    texts = [as_json(value.item() if isinstance(value, np.generic) else value) for value in values]
    return pa.array(texts, pa.string())


def _nested(arrays: Sequence[npt.NDArray[Any]], *, dims: int, dtype: npt.DTypeLike) -> pa.Array:
    """Return arrays of any sizes as nested lists, one level for each dimension."""
    column = pa.array(np.concatenate([np.empty(0, dtype), *(each.reshape(-1) for each in arrays)]))
    for dim in reversed(range(dims)):
        column = pa.ListArray.from_arrays(_offsets(np.fromiter(_lengths(arrays, dim), np.int64)), column)
    return column


def _lengths(arrays: Sequence[npt.NDArray[Any]], dim: int) -> Iterator[int]:
    for each in arrays:
        for _ in range(math.prod(each.shape[:dim])):
            yield each.shape[dim]


def _offsets(lengths: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), pa.int32())


def _as_numbers(stream: Stream, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values as numbers that Parquet has: bfloat16 as float32."""
    return stream.numbers(values) if stream.dtype == "bfloat16" else values


def _number_type(stream: Stream, dtype: str) -> npt.DTypeLike:
    return np.float32 if stream.dtype == "bfloat16" else dtype
