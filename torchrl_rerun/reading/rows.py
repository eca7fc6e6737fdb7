"""Rows: the values of a key as arrays, bit for bit, which is the way back of ``writing/chunks.py``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.lasting import ROWS, DamagedRowsError, counts_in
from torchrl_rerun.kinds.objects import OBJECTS, objects_in
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.rrd.frame_codes import ALL, FrameCodes, Span, codes_of, frames_of
from torchrl_rerun.rrd.parts import RecordingPart

UNKNOWN = -1
"""Stands for the number of a frame that no row tells."""


@dataclass(frozen=True)
class RowFrames:
    """The frames of the rows of one environment, in order.

    If a group of agents is reset by itself two rows have one code: the frame that the step led to, and the frame from which
    the next step leads. Their frames differ.

    Attributes:
        codes: episode and step in one number, ``[n]``.
        frames: the numbers of the frames, ``[n]``; :data:`UNKNOWN` for rows that aren't stored: theirs are the only frames
            with their codes.
    """

    codes: FrameCodes
    frames: FrameCodes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, at: slice | npt.NDArray[Any]) -> RowFrames:
        return RowFrames(self.codes[at], self.frames[at])

    @property
    def order(self) -> npt.NDArray[np.intp] | None:
        """Indices that sort the frames; None if they are sorted."""
        codes, frames = self.codes, self.frames
        if (codes[1:] > codes[:-1]).all():
            return None
        if ((codes[1:] > codes[:-1]) | ((codes[1:] == codes[:-1]) & (frames[1:] >= frames[:-1]))).all():
            return None
        return np.lexsort((frames, codes))

    @property
    def are_apart(self) -> bool:
        """Whether no two frames have one code."""
        return bool((self.codes[1:] > self.codes[:-1]).all())

    def find(self, others: RowFrames) -> npt.NDArray[np.intp]:
        """Return the index of each of some frames among these; -1 if it is not among them."""
        if np.array_equal(self.codes, others.codes) and (self.are_apart or np.array_equal(self.frames, others.frames)):
            return np.arange(len(self))
        if not len(self):
            return np.full(len(others), -1)
        at = np.searchsorted(self.codes, others.codes)
        is_wrong = np.zeros(len(at), np.bool_)
        if not (self.are_apart and others.are_apart):
            at, is_wrong = self._find_by_frame(at, others)
        at[at == len(self)] = 0
        at[(self.codes[at] != others.codes) | is_wrong] = -1
        return at

    def _find_by_frame(
        self, at: npt.NDArray[np.intp], others: RowFrames
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Return the indices of frames with one code by their numbers, and the mask of those with no such number."""
        most = int(np.unique(self.codes, return_counts=True)[1].max())
        for _ in range(most - 1):
            following = np.minimum(at + 1, len(self) - 1)
            at = np.where(
                (self.codes[following] == others.codes) & (self.frames[following] <= others.frames), following, at
            )
        several = [codes[np.flatnonzero(codes[1:] == codes[:-1])] for codes in (self.codes, others.codes)]
        here = np.minimum(at, len(self) - 1)
        return at, np.isin(others.codes, np.concatenate(several)) & (self.frames[here] != others.frames)


def joined(several: Iterable[RowFrames]) -> RowFrames:
    """Return several lists of frames as one, one after the other."""
    found = list(several)
    none = np.zeros(0, np.int64)
    codes, frames = ([none, *column] for column in ([each.codes for each in found], [each.frames for each in found]))
    return RowFrames(np.concatenate(codes), np.concatenate(frames))


def together(several: Iterable[RowFrames]) -> RowFrames:
    """Return the frames at which any of several keys has a row."""
    found: list[RowFrames] = []
    for places in several:
        if len(places) and not any(np.array_equal(places.codes, other.codes) for other in found if other.are_apart):
            found.append(places)
    if len(found) < 2:
        return joined(found)
    all_of_them = joined(found)
    found_in_order = all_of_them[np.lexsort((all_of_them.frames, all_of_them.codes))]
    codes, frames = found_in_order.codes, found_in_order.frames
    is_new = np.ones(len(codes), np.bool_)
    is_new[1:] = (codes[1:] != codes[:-1]) | (frames[1:] != frames[:-1])
    apart = found_in_order[is_new]
    is_told = np.zeros(len(apart), np.bool_)  # by another key, which has a row behind that knows its number
    is_told[:-1] = (apart.frames[:-1] == UNKNOWN) & (apart.codes[1:] == apart.codes[:-1])
    return apart[~is_told]


class DecodedRows(NamedTuple):
    """Rows of one entity, in the order in which they were recorded.

    Attributes:
        places: frames of the rows, ``[n]``.
        values: ``[n, *stream.row_shape]`` of the dtype ``stream.storage``; of Python objects ``[n]``.
    """

    places: RowFrames
    values: npt.NDArray[Any]


class RawRows(NamedTuple):
    """Rows of one entity, not decoded.

    Attributes:
        places: frames of the rows, ``[n]``.
        batch: columns of the rows.
    """

    places: RowFrames
    batch: pa.RecordBatch


def raw_rows_of(parts: Iterable[RecordingPart], stream: Stream, path: str, span: Span) -> Iterator[RawRows]:
    """Return the rows of an entity in a span, not decoded.

    Args:
        parts: the parts of the recording.
        stream: the stream.
        path: the entity path.
        span: first and last code of the frames.
    """
    # A value may last from the episode's start, and other programs may have split chunks.
    since = (span[0] >> 32 << 32, span[1]) if stream.kind.lasts and span != ALL else span
    for part in parts:
        for batch in part.chunks(path, since):
            # The row before the first one may stand for that, too.
            first, end = _between(codes_of(batch), span)
            first = max(0, first - 1)
            held = with_any(batch.slice(first, end - first), values_of(stream))
            with naming_damage(stream):
                places, held = _with_lasting(RowFrames(codes_of(held), frames_of(held)), held)
            first, end = _between(places.codes, span)
            if end > first:
                yield RawRows(places[first:end], held.slice(first, end - first))


def _between(codes: FrameCodes, span: Span) -> tuple[int, int]:
    """Return the bounds of the rows in a span."""
    if span == ALL:
        return 0, len(codes)
    first, end = np.searchsorted(codes, [span[0], span[1] + 1])
    return int(first), int(end)


_NOT_REPEATED = (ROWS, "rerun.controls.RowId", "frame", "episode", "episode_step", "sim_time")
"""Columns of a stored row that the rows after it don't have in common with it."""


def _with_lasting(places: RowFrames, held: pa.RecordBatch) -> tuple[RowFrames, pa.RecordBatch]:
    """Return rows with those after them that have their values: a row may stand for several steps in a row.

    Raises:
        ValueError: the numbers of these rows are damaged.
    """
    counts = counts_in(held)
    if counts is None:
        return places, held
    rows = np.repeat(np.arange(len(held)), counts)
    later = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    frames = np.where(later == 0, places.frames[rows], UNKNOWN)
    needed = held.select([name for name in held.schema.names if name not in _NOT_REPEATED])
    return RowFrames(places.codes[rows] + later, frames), needed.take(pa.array(rows))


def values_of(stream: Stream) -> tuple[str, ...]:
    """Return the names of the components of which each row of a stream has one."""
    return (*stream.kind.components, *OBJECTS) if stream.is_object else stream.kind.components


def is_of_kind(stream: Stream, held: RawRows) -> bool:
    """Return whether rows are stored by the kind of their stream. Others may be objects, stored one by one."""
    return any(name in stream.kind.components for name in held.batch.schema.names)


def with_any(batch: pa.RecordBatch, components: Iterable[str]) -> pa.RecordBatch:
    """Return the rows that have any of some components. Other programs may have joined chunks."""
    columns = [batch.column(name) for name in batch.schema.names if name in components]
    if not columns:
        return batch
    if not all(column.null_count for column in columns):
        return batch
    is_there = np.any([column.is_valid().to_numpy(zero_copy_only=False) for column in columns], axis=0)
    return batch if is_there.all() else batch.filter(pa.array(is_there))


def places_in(held: Iterable[RawRows]) -> RowFrames:
    """Return the frames of rows, in order."""
    places = joined(each.places for each in held)
    return places if (order := places.order) is None else places[order]


def rows_in(held: Iterable[RawRows], stream: Stream) -> DecodedRows:
    """Return the decoded rows of an entity whose values are no pictures.

    Args:
        held: the rows, not decoded.
        stream: the stream.

    Raises:
        ValueError: the kind of the stream is not known here, or gives other values than were recorded; the message names
            the key.
    """
    stream.kind.check_readable(stream)
    decode = objects_in if stream.is_object else stream.kind.values
    shape = () if stream.is_object else stream.row_shape
    places, values = [], [np.zeros((0, *shape), stream.storage)]
    for at, batch in held:
        with naming_damage(stream):
            found = decode(stream, batch)
        if found.dtype != stream.storage or found.shape[1:] != shape or len(found) != len(batch):
            raise ValueError(
                f"{type(stream.kind).__name__}.values gave {found.dtype} {found.shape} for {len(batch)} rows of "
                f"{name_of(stream.key)}, which are {stream.storage} {shape}"
            )
        places.append(at)
        values.append(found)
    return in_order(DecodedRows(joined(places), np.concatenate(values)))


@contextlib.contextmanager
def naming_damage(stream: Stream) -> Iterator[None]:
    """Raise ValueError, with the name of the key, if a chunk lacks a column or has one that is damaged."""
    try:
        yield
    except (KeyError, DamagedRowsError) as error:
        raise ValueError(f"a chunk of {name_of(stream.key)} is damaged: {error}") from error


def in_order(rows: DecodedRows) -> DecodedRows:
    """Return rows in the order of their frames. Other programs may have reordered chunks."""
    order = rows.places.order
    return rows if order is None else DecodedRows(rows.places[order], rows.values[order])
