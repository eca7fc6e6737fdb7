"""Rows: what a recording holds of a key, as arrays again, bit for bit: the way back of ``columns.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.chunks import ALL, Codes, Part, Span, codes_of
from torchrl_rerun.columns import EXACT
from torchrl_rerun.streams import Stream


class Rows(NamedTuple):
    """Some rows of one entity, in the order in which they were recorded.

    Attributes:
        codes: where they are, ``[n]``.
        values: ``[n, *stream.row_shape]`` of the dtype ``stream.storage``; of non-tensor data ``[n]`` objects.
    """

    codes: Codes
    values: npt.NDArray[Any]


class Held(NamedTuple):
    """Some rows of one entity, not decoded.

    Attributes:
        codes: where they are, ``[n]``.
        batch: their columns.
    """

    codes: Codes
    batch: pa.RecordBatch


def held_of(parts: Iterable[Part], path: str, span: Span) -> Iterator[Held]:
    """What is recorded of an entity in a span."""
    for part in parts:
        for batch in part.chunks(path, span):
            for name in batch.schema.names:
                if ":" in name and name not in _SPARSE and batch.column(name).null_count:
                    batch = batch.filter(batch.column(name).is_valid())  # noqa: PLW2901 - others put chunks together
            codes = codes_of(batch)
            first, end = np.searchsorted(codes, [span[0], span[1] + 1]) if span != ALL else (0, len(codes))
            if end > first:
                yield Held(codes[first:end], batch.slice(first, end - first))


def codes_in(held: Iterable[Held]) -> Codes:
    """Where all rows are."""
    codes = np.concatenate([np.zeros(0, np.int64), *(codes for codes, _ in held)])
    return codes if _is_sorted(codes) else np.sort(codes)


def rows_in(held: Iterable[Held], stream: Stream) -> Rows:
    """The rows of an entity that isn't a picture.

    Args:
        held: what is recorded of it.
        stream: how it was recorded.
    """
    codes, values = [np.zeros(0, np.int64)], [np.zeros((0, *stream.row_shape), stream.storage)]
    for at, batch in held:
        codes.append(at)
        values.append(_DECODERS[stream.kind](stream, batch))
    rows = Rows(np.concatenate(codes), np.concatenate(values))
    if _is_sorted(rows.codes):
        return rows
    order = np.argsort(rows.codes, kind="stable")  # others may have put chunks into another order
    return Rows(rows.codes[order], rows.values[order])


def _is_sorted(codes: Codes) -> bool:
    return bool((codes[1:] >= codes[:-1]).all())


def _scalars(stream: Stream, batch: pa.RecordBatch) -> npt.NDArray[Any]:
    held = batch.column("Scalars:scalars")
    numbers = _narrowed(stream, _flat(held))
    if EXACT in batch.schema.names:
        exact = batch.column(EXACT)
        size = math.prod(stream.row_shape)
        at = exact.is_valid().to_numpy(zero_copy_only=False)
        numbers.reshape(len(batch), size)[at] = _narrowed(stream, _flat(exact)).reshape(-1, size)
    return numbers.reshape(len(batch), *stream.row_shape)


def _narrowed(stream: Stream, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers as they are plotted, as the dtype in which they were buffered: each is there exactly."""
    if stream.dtype == "bfloat16":  # the upper half of a float32; a conversion would change the bits of NaN
        return (np.ascontiguousarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(invalid="ignore"):  # integers of 64 bits beyond the range, which come from the exact column
        return numbers.astype(stream.storage, copy=False)


def _tensor(stream: Stream, batch: pa.RecordBatch) -> npt.NDArray[Any]:
    data = batch.column("BarChart:values" if "BarChart:values" in batch.schema.names else "Tensor:data").flatten()
    shapes, buffers = data.field("shape"), data.field("buffer")
    if buffers.offset:  # of a slice of a union pyarrow 26 gives the types, and the wrong offsets
        buffers = buffers.take(pa.array(np.arange(len(batch))))
    if stream.dtype == "object":
        out = np.empty(len(batch), object)
        for row in range(len(batch)):
            held = buffers[row].value  # of a union
            out[row] = np.asarray(held.values).reshape(shapes[row].as_py())
        return out
    types = np.unique(buffers.type_codes.to_numpy())
    if len(types) == 1:  # all of one type lie one after the other, whichever part of them this is
        lists = buffers.field(int(types[0])).slice(buffers.offsets[0].as_py(), len(batch))
        return _narrowed(stream, _flat(lists)).reshape(len(batch), *stream.row_shape)
    parts = [_narrowed(stream, np.asarray(buffers[row].value.values)) for row in range(len(batch))]
    return np.concatenate(parts).reshape(len(batch), *stream.row_shape)


def _text(_: Stream, batch: pa.RecordBatch) -> npt.NDArray[Any]:
    out = np.empty(len(batch), object)
    out[:] = batch.column("TextDocument:text").flatten().to_pylist()
    return out


def _flat(lists: pa.ListArray) -> npt.NDArray[Any]:
    """All values of some lists."""
    values: npt.NDArray[Any] = lists.flatten().to_numpy(zero_copy_only=False)
    return values


_DECODERS: Mapping[str, Callable[[Stream, pa.RecordBatch], npt.NDArray[Any]]] = {
    "scalars": _scalars,
    "state": _scalars,
    "tensor": _tensor,
    "text": _text,
}

_SPARSE = frozenset({"StateChange:state", EXACT})
"""The components that not all rows of their entities have."""
