"""Arrow: chunks of columns that wrap the memory of arrays.

Rerun's own ``.columns()`` would copy the data several times and cost a hundred times as much (measured with rerun-sdk 0.41).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rerun.chunk import Chunk

from torchrl_rerun.kinds.timelines import FRAME, LOG_TIME, TIMELINES, Positions

NANOSECONDS = 1_000_000_000

LOG_TIME_BITS = 25
"""Bits by which ``log_time`` is rounded down, to 34 ms: LZ4 needs 5 bytes for each time that differs from the one before."""


class Column(NamedTuple):
    """One component column: its name, the archetype and component type it belongs to, and a list of values per row."""

    component: str
    archetype: str | None
    component_type: str | None
    values: pa.Array


_TIME_TYPES = {"log_time": pa.timestamp("ns"), "sim_time": pa.duration("ns")}

Times = dict[str, pa.Array]
"""Time columns, by the names of their timelines."""


class Entity(NamedTuple):
    """The columns of one entity of a chunk."""

    path: str
    columns: list[Column]


def times_of(positions: Positions, fps: float | None, timelines: Sequence[int] = range(len(TIMELINES))) -> Times:
    """Return the time columns of rows, by the names of their timelines.

    ``log_time`` is rounded down to ``2**25`` ns, but for that of the first row.

    Args:
        positions: positions of the rows, ``[n, 6]``.
        fps: frames per second of simulated time. None: no ``sim_time``.
        timelines: columns of ``positions`` to make. Default: all.
    """
    times: Times = {TIMELINES[i]: flat(positions[:, i]) for i in timelines}
    times["log_time"] = flat(_rounded(positions[:, LOG_TIME])).view(pa.timestamp("ns"))
    if fps is not None:
        times["sim_time"] = pa.array((positions[:, FRAME] * (NANOSECONDS / fps)).astype("timedelta64[ns]"))
    return times


def _rounded(log_times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return times rounded down. The first one is exact, and none that comes after it is rounded to a time before it."""
    rounded = log_times >> LOG_TIME_BITS << LOG_TIME_BITS
    first = log_times[0]
    return np.where((log_times >= first) & (rounded < first), first, rounded)


def chunks_of(times: Times, entities: Sequence[Entity]) -> Iterator[Chunk]:
    """Return the chunks of several entities that share their times: together they cost a third of one by one."""
    columns = [column for entity in entities for column in entity.columns]
    counts = tuple(len(entity.columns) for entity in entities)
    schema = _schema(tuple(times), counts, tuple((*column[:3], column.values.type) for column in columns))
    arrays = [*times.values(), *(column.values for column in columns)]
    made = Chunk.from_record_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    for entity, chunk in zip(entities, made, strict=True):
        yield chunk.with_entity_path(entity.path)


@functools.lru_cache(maxsize=1024)
def _schema(
    timelines: tuple[str, ...],
    counts: tuple[int, ...],
    columns: tuple[tuple[str, str | None, str | None, pa.DataType], ...],
) -> pa.Schema:
    """Return the schema of several entities. Their paths are placeholders: chunks get theirs when they are made."""
    fields = [
        pa.field(name, _TIME_TYPES.get(name, pa.int64()), metadata={"rerun:kind": "index", "rerun:index_name": name})
        for name in timelines
    ]
    owners = [number for number, count in enumerate(counts) for _ in range(count)]
    for number, (component, archetype, component_type, values_type) in zip(owners, columns, strict=True):
        metadata = {
            "rerun:kind": "data",
            "rerun:component": component,
            "rerun:entity_path": f"/entity_{number}",
        }
        if archetype is not None:
            metadata["rerun:archetype"] = f"rerun.archetypes.{archetype}"
        if component_type is not None:
            metadata["rerun:component_type"] = f"rerun.components.{component_type}"
        fields.append(pa.field(f"{number}:{component}", values_type, metadata=metadata))
    return pa.schema(fields)


# --- arrays ---


def number_lists(rows: npt.NDArray[Any]) -> Column:
    """Return the column of numbers to plot, ``[n, ...]``, in their own dtype."""
    return Column("Scalars:scalars", "Scalars", None, lists(flat(rows), len(rows)))


def flat(values: npt.NDArray[Any]) -> pa.Array:
    """Return numbers as an Arrow array of one dimension, without a copy unless they are booleans."""
    values = np.ascontiguousarray(values).reshape(-1)
    if values.dtype == bool:
        return pa.array(values)  # Arrow packs them into bits
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def lists(values: pa.Array, rows: int, *, not_null: bool = False) -> pa.ListArray:
    """Return ``rows`` lists of equal length."""
    kind = pa.list_(pa.field("item", values.type, nullable=not not_null))
    return pa.ListArray.from_arrays(_offsets(rows, len(values) // rows), values, type=kind)


@functools.lru_cache(maxsize=256)
def _offsets(rows: int, each: int) -> pa.Array:
    return pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(each))


def blobs(files: Sequence[bytes]) -> pa.ListArray:
    """Return files as lists of bytes."""
    offsets = np.zeros(len(files) + 1, np.int32)
    np.cumsum([len(file) for file in files], out=offsets[1:])
    data = pa.array(np.frombuffer(b"".join(files), np.uint8))
    return pa.ListArray.from_arrays(
        pa.array(offsets), data, type=pa.list_(pa.field("item", pa.uint8(), nullable=False))
    )
