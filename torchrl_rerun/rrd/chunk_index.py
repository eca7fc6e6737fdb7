"""The index of a recording in a file: where each of its chunks lies, of which entity it is, and which times it spans."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.rrd.frame_codes import Span

Integers = npt.NDArray[np.int64]

TIMELINES = ("episode", "episode_step", "step", "log_time", "frame")
_EPISODE, _EPISODE_STEP, _, _LOG_TIME, _ = range(5)
_LAST_STEP = (1 << 32) - 1
_BOUNDS = [f"{name}:{end}" for name in TIMELINES for end in ("start", "end")]


class ChunkEntry(NamedTuple):
    """An entry of the index: the entity, the place and the times of a chunk.

    Attributes:
        path: its entity path.
        id: its id, 16 bytes, which no other chunk of any recording has.
        offset: of its message in the file, in bytes, behind kind and length.
        size: of its message in bytes.
        rows: the number of its rows.
        is_static: whether its rows hold at all times.
        times: the first and the last value on each of :data:`TIMELINES`; -1: the chunk isn't on it.
    """

    path: str
    id: bytes
    offset: int
    size: int
    rows: int
    is_static: bool
    times: tuple[int, ...]


@dataclass(frozen=True)
class ChunkIndex:
    """The chunks of a recording in a file, ``n`` of them.

    Attributes:
        paths: the entity paths.
        entities: int64 ``[n]``: at which of ``paths`` each chunk is.
        offsets: int64 ``[n]``: offset of each message in the file, in bytes, behind kind and length.
        sizes: int64 ``[n]``: bytes of each message.
        rows: int64 ``[n]``: rows of each chunk.
        is_static: bool ``[n]``: whether the rows hold at all times.
        bounds: the columns ``frame:start``, ``frame:end`` and so on, of the timelines that any chunk is on.
        ids: the ids of the chunks, 16 bytes each.
    """

    paths: Sequence[str]
    entities: Integers
    offsets: Integers
    sizes: Integers
    rows: Integers
    is_static: npt.NDArray[np.bool_]
    bounds: pa.Table
    ids: bytes

    def __len__(self) -> int:
        return len(self.offsets)

    @classmethod
    def of_table(cls, table: pa.Table) -> ChunkIndex:
        """Return the index that the table in a footer holds."""
        paths = table.column("chunk_entity_path").combine_chunks().dictionary_encode()
        offsets, sizes, rows = (
            table.column(f"chunk_{name}").to_numpy().astype(np.int64)
            for name in ("byte_offset", "byte_size", "num_rows")
        )
        return cls(
            paths.dictionary.to_pylist(),
            paths.indices.to_numpy().astype(np.int64),
            offsets,
            sizes,
            rows,
            table.column("chunk_is_static").to_numpy(),
            table.select([name for name in table.schema.names if name in _BOUNDS]),
            b"".join(table.column("chunk_id").to_pylist()),
        )

    @classmethod
    def of_entries(cls, entries: Sequence[ChunkEntry]) -> ChunkIndex:
        """Return the index of chunks that were found one by one."""
        number_of = {path: number for number, path in enumerate(dict.fromkeys(entry.path for entry in entries))}
        numbers = np.array([(number_of[each.path], each.offset, each.size, each.rows) for each in entries], np.int64)
        entities, offsets, sizes, rows = numbers.reshape(-1, 4).T
        times = np.array([entry.times for entry in entries], np.int64).reshape(-1, len(_BOUNDS))
        return cls(
            list(number_of),
            entities,
            offsets,
            sizes,
            rows,
            np.array([entry.is_static for entry in entries], np.bool_),
            pa.table(dict(zip(_BOUNDS, times.T, strict=True))),
            b"".join(entry.id for entry in entries),
        )

    def with_more(self, more: ChunkIndex) -> ChunkIndex:
        """Return the index of these chunks and others."""
        paths = list(dict.fromkeys((*self.paths, *more.paths)))
        number_of = {path: number for number, path in enumerate(paths)}
        entities = [number_of[each.paths[at]] for each in (self, more) for at in each.entities.tolist()]
        offsets, sizes, rows, is_static = (
            np.concatenate([getattr(each, name) for each in (self, more)])
            for name in ("offsets", "sizes", "rows", "is_static")
        )
        bounds = pa.concat_tables([self.bounds, more.bounds])
        return ChunkIndex(
            paths, np.array(entities, np.int64), offsets, sizes, rows, is_static, bounds, self.ids + more.ids
        )

    @functools.cached_property
    def times(self) -> Integers:
        """The first and the last value on each of :data:`TIMELINES`, int64 ``[n, 5, 2]``; -1: the chunk isn't on it."""
        columns = []
        there = self.bounds.schema.names
        for name in _BOUNDS:
            if name in there:
                columns.append(self.bounds.column(name).cast(pa.int64()).fill_null(-1).to_numpy())
            else:  # no chunk is on that timeline
                columns.append(np.full(len(self), -1))
        return np.stack(columns, axis=1).reshape(-1, len(TIMELINES), 2)

    def at(self, path: str) -> Integers:
        """Return which chunks are at an entity path, in the order of the index."""
        return np.flatnonzero(self.entities == self.paths.index(path)) if path in self.paths else np.zeros(0, np.int64)

    def of_entity(self, path: str) -> Integers:
        """Return which chunks are at an entity path and on the timelines of a recorder, in the order of their rows."""
        return self._by_path.get(path, np.zeros(0, np.int64))

    def within(self, path: str, span: Span) -> Integers:
        """Return which chunks of an entity may have rows in a span, in the order of their rows."""
        at = self.of_entity(path)
        first, last = self._codes
        return at[(first[at] <= span[1]) & (last[at] >= span[0])]

    def count(self, path: str) -> int:
        """Return how many rows an entity has."""
        return int(self.rows[self.of_entity(path)].sum())

    def sums(self) -> Iterator[tuple[str, int, int]]:
        """Yield each entity path with the number of its rows that change over time, and the bytes of all its chunks."""
        count = len(self.paths)
        rows = np.bincount(self.entities, self.rows * ~self.is_static, count).astype(np.int64)
        sizes = np.bincount(self.entities, self.sizes, count).astype(np.int64)
        yield from zip(self.paths, rows.tolist(), sizes.tolist(), strict=True)

    def span(self, timeline: str) -> Span | None:
        """Return the first and the last value on one of :data:`TIMELINES`; None: no chunk is on it."""
        first, last = self.times[:, TIMELINES.index(timeline)].T
        is_there = first >= 0
        return (int(first[is_there].min()), int(last[is_there].max())) if is_there.any() else None

    def span_of(self, path: str, timeline: str) -> Span:
        """Return the first and the last value of an entity's rows on one of :data:`TIMELINES`."""
        times = self.times[self.of_entity(path), TIMELINES.index(timeline)]
        return int(times[:, 0].min()), int(times[:, 1].max())

    @property
    def recorded_paths(self) -> list[str]:
        """The entity paths that have rows on the timelines of a recorder."""
        return list(self._by_path)

    @functools.cached_property
    def _by_path(self) -> dict[str, Integers]:
        began = self.times[:, _LOG_TIME, 0]
        at = np.flatnonzero(self.times[:, _EPISODE, 0] >= 0)  # without static rows and statistics over environments
        # Other programs may have put the chunks into another order.
        at = at[np.lexsort((self.offsets[at], began[at], self.entities[at]))]
        bounds = np.flatnonzero(np.diff(self.entities[at])) + 1
        return {self.paths[int(self.entities[part[0]])]: part for part in np.split(at, bounds) if len(part)}

    @functools.cached_property
    def _codes(self) -> tuple[Integers, Integers]:
        """The frame codes between which the rows of each chunk lie."""
        (first_episode, last_episode), (first_step, last_step) = (
            self.times[:, at].T for at in (_EPISODE, _EPISODE_STEP)
        )
        is_within_one = first_episode == last_episode
        first = first_episode << 32 | np.where(is_within_one, first_step, 0)
        return first, last_episode << 32 | np.where(is_within_one, last_step, _LAST_STEP)
