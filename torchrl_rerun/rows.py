"""Rows: what a recording holds of a key, as arrays again, bit for bit: the way back of ``columns.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.columns import EXACT
from torchrl_rerun.contents import rows_of
from torchrl_rerun.episodes import TIMELINES, Positions
from torchrl_rerun.streams import Stream


class Rows(NamedTuple):
    """Some rows of one entity, in the order in which they were recorded.

    Attributes:
        positions: where they are, ``[n, 5]``.
        values: ``[n, *stream.row_shape]`` of the dtype ``stream.storage``; of non-tensor data ``[n]`` objects.
    """

    positions: Positions
    values: npt.NDArray[Any]


def read_rows(files: Sequence[Path], path: str, stream: Stream) -> Iterator[Rows]:
    """The rows of an entity that isn't a picture, chunk by chunk.

    Args:
        files: the files of the recording, in their order.
        path: the entity path.
        stream: how it was recorded.
    """
    component, decode = _DECODERS[stream.kind]
    for file in files:
        for batch in rows_of(file, path):
            for name in component:
                if name in batch.schema.names:
                    held = batch.filter(batch.column(name).is_valid())  # others may have put chunks together
                    yield Rows(positions_of(held), decode(stream, held, name))


def positions_of(batch: pa.RecordBatch) -> Positions:
    """Where the rows of a chunk are, ``[n, 5]``."""
    columns = [batch.column(name) for name in TIMELINES]
    return np.stack([column.cast(pa.int64()).to_numpy(zero_copy_only=False) for column in columns], axis=1)


def _scalars(stream: Stream, batch: pa.RecordBatch, component: str) -> npt.NDArray[Any]:
    held = batch.column(component)
    numbers = _narrowed(stream, _flat(held))
    if EXACT in batch.schema.names:
        exact = batch.column(EXACT)
        size = math.prod(stream.row_shape)
        at = exact.is_valid().to_numpy(zero_copy_only=False)
        numbers.reshape(len(batch), size)[at] = _flat(exact).reshape(-1, size)
    return numbers.reshape(len(batch), *stream.row_shape)


def _narrowed(stream: Stream, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers as they are plotted, as the dtype in which they were buffered: each is there exactly."""
    if stream.dtype == "bfloat16":  # the upper half of a float32; a conversion would change the bits of NaN
        return (np.ascontiguousarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with np.errstate(invalid="ignore"):  # integers of 64 bits beyond the range, which come from the exact column
        return numbers.astype(stream.storage)


def _tensor(stream: Stream, batch: pa.RecordBatch, component: str) -> npt.NDArray[Any]:
    data = batch.column(component).flatten()
    shapes, buffers = data.field("shape"), data.field("buffer")
    if stream.dtype == "object":
        out = np.empty(len(batch), object)
        for row in range(len(batch)):
            held = buffers[row].value  # of a union
            out[row] = np.asarray(held.values).reshape(shapes[row].as_py())
        return out
    codes = set(buffers.type_codes.to_pylist())
    if len(codes) == 1:
        return _narrowed(stream, _flat(buffers.field(codes.pop()))).reshape(len(batch), *stream.row_shape)
    parts = [_narrowed(stream, np.asarray(buffers[row].value.values)) for row in range(len(batch))]
    return np.concatenate(parts).reshape(len(batch), *stream.row_shape)


def _text(_: Stream, batch: pa.RecordBatch, component: str) -> npt.NDArray[Any]:
    out = np.empty(len(batch), object)
    out[:] = batch.column(component).flatten().to_pylist()
    return out


def _flat(lists: pa.ListArray) -> npt.NDArray[Any]:
    """All values of some lists."""
    values: npt.NDArray[Any] = lists.flatten().to_numpy(zero_copy_only=False)
    return values


_Decode = Callable[[Stream, pa.RecordBatch, str], npt.NDArray[Any]]

_DECODERS: Mapping[str, tuple[tuple[str, ...], _Decode]] = {
    "scalars": (("Scalars:scalars",), _scalars),
    "state": (("Scalars:scalars",), _scalars),
    "tensor": (("Tensor:data", "BarChart:values"), _tensor),
    "text": (("TextDocument:text",), _text),
}
"""Of each kind the components in which it is stored, and how it is read."""
