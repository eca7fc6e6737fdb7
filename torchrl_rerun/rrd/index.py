"""Chunks: where those of a recording lie in a file, so that each can be read by itself.

Rerun's own reader gives all chunks of an entity, one after the other, and takes tens of milliseconds to open a file; it
refuses one that a killed process left (rerun-sdk 0.41). An episode of a long recording is in a few chunks of each entity.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.paths import shown
from torchrl_rerun.rrd.contents import PROPERTY_PATHS, Contents, add_property
from torchrl_rerun.rrd.framing import FOOTER, MAGIC, MESSAGE, Footer, fields_of, messages

if TYPE_CHECKING:
    from rerun.catalog import DatasetEntry

Codes = npt.NDArray[np.int64]
"""A number for each row that says where it is, ``episode << 32 | episode_step``: they grow within an environment."""

Span = tuple[int, int]
"""The first and the last code of some rows."""

ALL: Span = 0, 2**63 - 1

CACHE_BYTES = 64 << 20
"""Decompressed chunks that are held in memory: the episodes that come next are often in the same ones."""


class Place(NamedTuple):
    """Where a chunk is.

    Attributes:
        first, last: the codes of its rows lie between these.
        offset, size: its bytes in the file.
        rows: how many it has.
    """

    first: int
    last: int
    offset: int
    size: int
    rows: int


class Part(Protocol):
    """What one file, or one segment of a catalog, holds of a recording."""

    @property
    def contents(self) -> Contents:
        """What it says of itself."""

    def chunks(self, path: str, span: Span) -> Iterator[pa.RecordBatch]:
        """The chunks of an entity that may have rows in a span, in the order of their rows."""

    def count(self, path: str) -> int | None:
        """How many rows an entity has; None: only reading them tells."""


def episode_span(episode: int) -> Span:
    """All of an episode."""
    return episode << 32, (episode + 1 << 32) - 1


def codes_of(batch: pa.RecordBatch) -> Codes:
    """Where the rows of a chunk are."""
    episode, step = (batch.column(name).to_numpy() for name in ("episode", "episode_step"))
    codes: Codes = episode << 32 | step
    return codes


def times_of(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """When the rows of a chunk were recorded, in nanoseconds since the epoch."""
    times: npt.NDArray[np.int64] = batch.column("log_time").cast(pa.int64()).to_numpy()
    return times


# --- files ---


@dataclass(frozen=True)
class FilePart:
    """What a file holds of a recording; see :class:`Part`.

    Attributes:
        contents: what it says of itself.
        began: ``log_time`` of its first row, nanoseconds since the epoch; 0: there is none.
        last_frame: number of its last frame; -1: there is none.
        steps: the first and the last ``step`` of each entity.
        places: where the chunks of each entity are.
        chunk_ids: those of all chunks, 16 bytes each.
        store: what each chunk says of the recording that it belongs to.
        file_id: device and inode of the file.
        stamp: when the file was written.
    """

    contents: Contents
    began: int
    last_frame: int
    steps: Mapping[str, tuple[int, int]]
    places: Mapping[str, Sequence[Place]]
    chunk_ids: bytes
    store: bytes
    file_id: tuple[int, int]
    stamp: int

    def ids(self) -> frozenset[bytes]:
        """The ids of all its chunks, which no other recording has."""
        return frozenset(self.chunk_ids[at : at + 16] for at in range(0, len(self.chunk_ids), 16))

    def chunks(self, path: str, span: Span) -> Iterator[pa.RecordBatch]:
        """The chunks of an entity that may have rows in a span, in the order of their rows."""
        for place in self.places.get(path, ()):
            if span == ALL:
                yield _chunk(self, place)
            elif place.first <= span[1] and place.last >= span[0]:
                yield _CACHE.chunk(self, place)

    def count(self, path: str) -> int | None:
        """How many rows an entity has."""
        return sum(place.rows for place in self.places.get(path, ()))


def parts_in(file: Path) -> list[FilePart]:
    """What a file holds of each recording. Of a file without a footer all is read that is whole in it.

    Raises:
        OSError: it can't be read.
        ValueError: it is no recording, or damaged.
    """
    with file.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{shown(file)} is not a recording: it doesn't begin as an .rrd file does")
        try:
            footer = Footer.read(opened)
        except ValueError:
            return _without_footer(opened, file)
        return _by_footer(opened, file, footer)


# Fields of Rerun's protobuf messages (rerun-sdk 0.41).
_STORE, _TABLE = 1, 4  # of a store's index in the footer
_TABLE_BYTES, _TABLE_SIZE = 2, 4
_CHUNK = 2  # the kind of a message
_COMPRESSION, _SIZE, _PAYLOAD = 2, 3, 5  # of a chunk, beside its store
_LZ4 = 2
_KIND, _RECORDING_ID, _APPLICATION = 1, 2, 3  # of a store
_RECORDING = 1

_TIMES = ("episode", "episode_step", "step", "log_time", "frame")
_CODEC = pa.Codec("lz4_raw")


def _by_footer(opened: BinaryIO, file: Path, footer: Footer) -> list[FilePart]:
    indexes = [dict(fields_of(index)) for _, index in fields_of(footer.payload)]
    has_layout = any(_kind(index[_STORE]) != _RECORDING for index in indexes)
    found = []
    for index in indexes:
        if _kind(index[_STORE]) == _RECORDING:
            table = dict(fields_of(index[_TABLE]))
            plain = _CODEC.decompress(table[_TABLE_BYTES], table[_TABLE_SIZE])
            rows = _Rows.of_table(pa.ipc.open_stream(plain).read_all())
            properties: dict[str, dict[str, Any]] = {}
            for path, offset, size in zip(rows.paths, rows.offsets.tolist(), rows.sizes.tolist(), strict=True):
                if path in PROPERTY_PATHS:
                    add_property(properties, path, _decoded(dict(fields_of(_read(opened, offset, size)))))
            found.append(rows.part(opened, file, index[_STORE], properties, is_finished=True, has_layout=has_layout))
    return found


def _without_footer(opened: BinaryIO, file: Path) -> list[FilePart]:
    """What a process left that was killed, or that still records: up to where it ends within a message."""
    size = opened.seek(0, 2)
    rows: dict[bytes, list[tuple[Any, ...]]] = {}
    ids: dict[bytes, list[bytes]] = {}
    properties: dict[bytes, dict[str, dict[str, Any]]] = {}
    for start, kind, length in messages(opened, size):
        offset = start + MESSAGE.size
        if kind == FOOTER or offset + length > size:
            break
        if kind != _CHUNK:
            continue
        fields = dict(fields_of(_read(opened, offset, length)))
        store, batch = fields[_STORE], _decoded(fields)
        path = batch.schema.metadata[b"rerun:entity_path"].decode()
        ids.setdefault(store, []).append(bytes.fromhex(batch.schema.metadata[b"rerun:id"].decode().rpartition("_")[2]))
        if path in PROPERTY_PATHS:
            add_property(properties.setdefault(store, {}), path, batch)
        if set(_TIMES) <= set(batch.schema.names) and len(batch):  # an episode's properties have an "episode", too
            times = (batch.column(name).cast(pa.int64()).to_numpy() for name in _TIMES)
            ends = (end for column in times for end in (column.min(), column.max()))
            rows.setdefault(store, []).append((path, offset, length, len(batch), *ends))
    return [
        _Rows.of_list(rows.get(store, []), ids[store]).part(
            opened, file, store, said, is_finished=False, has_layout=False
        )
        for store, said in properties.items()
    ]


class _Rows(NamedTuple):
    """A table of chunks."""

    paths: list[str]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    """``[chunks, 10]``: the first and the last of each of ``_TIMES``; -1 where there is none."""
    ids: bytes

    @classmethod
    def of_table(cls, table: pa.Table) -> _Rows:
        """From a footer."""

        def column(name: str) -> npt.NDArray[np.int64]:
            if name not in table.schema.names:  # nothing was recorded
                return np.full(len(table), -1)
            values = table.column(name)
            numbers: npt.NDArray[np.int64] = values.cast(pa.int64()).fill_null(-1).to_numpy()
            return numbers

        times = [column(f"{name}:{end}") for name in _TIMES for end in ("start", "end")]
        offsets, sizes, counts = (column(f"chunk_{name}") for name in ("byte_offset", "byte_size", "num_rows"))
        paths, ids = table.column("chunk_entity_path").to_pylist(), b"".join(table.column("chunk_id").to_pylist())
        return cls(paths, offsets, sizes, counts, np.stack(times, axis=1), ids)

    @classmethod
    def of_list(cls, rows: Sequence[tuple[Any, ...]], ids: Sequence[bytes]) -> _Rows:
        """From what was found in a file."""
        numbers = np.array([row[1:] for row in rows], np.int64).reshape(len(rows), 3 + 2 * len(_TIMES))
        offsets, sizes, counts = numbers[:, :3].T
        return cls([row[0] for row in rows], offsets, sizes, counts, numbers[:, 3:], b"".join(ids))

    def part(
        self,
        opened: BinaryIO,
        file: Path,
        store: bytes,
        properties: dict[str, dict[str, Any]],
        *,
        is_finished: bool,
        has_layout: bool,
    ) -> FilePart:
        at = np.flatnonzero(self.times[:, 0] >= 0)  # neither what doesn't change, nor statistics over all environments
        at = at[np.lexsort((self.offsets[at], self.times[at, 6]))]  # others may have put them into another order
        first_episode, last_episode, first_step, last_step = self.times[at, :4].T
        within_one = first_episode == last_episode
        first = first_episode << 32 | np.where(within_one, first_step, 0)
        last = last_episode << 32 | np.where(within_one, last_step, 0xFFFFFFFF)
        places: dict[str, list[Place]] = {}
        steps: dict[str, tuple[int, int]] = {}
        columns = (first, last, self.offsets[at], self.sizes[at], self.counts[at])
        for row, *place in zip(at.tolist(), *(column.tolist() for column in columns), strict=True):
            path = self.paths[row]
            places.setdefault(path, []).append(Place(*place))
            before = steps.get(path, (2**63 - 1, 0))
            steps[path] = min(before[0], int(self.times[row, 4])), max(before[1], int(self.times[row, 5]))
        began = self.times[at, 6]
        fields = dict(fields_of(store))
        contents = Contents(
            file,
            dict(fields_of(fields[_APPLICATION]))[1].decode(),
            fields[_RECORDING_ID].decode(),
            properties,
            is_finished,
            has_layout,
        )
        found = os.fstat(opened.fileno())
        return FilePart(
            contents,
            int(began.min(initial=2**63 - 1)) if len(at) else 0,
            int(self.times[at, 9].max(initial=-1)),
            steps,
            places,
            self.ids,
            store,
            (found.st_dev, found.st_ino),
            found.st_mtime_ns,
        )


def _kind(store: bytes) -> int:
    kind: int = dict(fields_of(store))[_KIND]
    return kind


def _read(opened: BinaryIO, offset: int, size: int) -> bytes:
    opened.seek(offset)
    return opened.read(size)


def _chunk(part: FilePart, place: Place) -> pa.RecordBatch:
    """A chunk of a file.

    Raises:
        OSError: the file can't be read, or is gone.
        ValueError: another one is in its place, or it is damaged.
    """
    file = part.contents.file
    with file.open("rb") as opened:
        found = os.fstat(opened.fileno())
        message = _read(opened, place.offset, place.size)
    is_same = (found.st_dev, found.st_ino) == part.file_id
    try:
        fields = dict(fields_of(message)) if is_same else {}
        if is_same and fields[_STORE] == part.store:
            return _decoded(fields)
    except (LookupError, OverflowError, ValueError) as error:
        if found.st_mtime_ns == part.stamp:
            raise ValueError(f"{shown(file)} is damaged: {error}") from error
    raise ValueError(f"{shown(file)} was {'overwritten' if is_same else 'replaced'} since it was loaded: load it again")


def _decoded(fields: Mapping[int, Any]) -> pa.RecordBatch:
    """The record batch of a chunk's message, by its fields.

    Raises:
        ValueError: it is damaged.
    """
    try:
        payload = fields[_PAYLOAD]
        if fields[_COMPRESSION] == _LZ4:
            payload = _CODEC.decompress(payload, fields[_SIZE])
        return pa.ipc.open_stream(payload).read_next_batch()
    except (KeyError, OSError, pa.ArrowException) as error:
        raise ValueError(f"a chunk is damaged: {error!r}") from error


class _Cache:
    """The chunks that were asked for last."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Path, int, int], pa.RecordBatch] = OrderedDict()
        self._bytes = 0

    def chunk(self, part: FilePart, place: Place) -> pa.RecordBatch:
        """A chunk of a file."""
        file = part.contents.file
        key = file, part.stamp, place.offset  # another recording may be written to the same path
        batch = self._held.pop(key, None)
        if batch is None:
            batch = _chunk(part, place)
            self._bytes += batch.nbytes
        self._held[key] = batch
        while self._bytes > CACHE_BYTES and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return batch


_CACHE = _Cache()


# --- catalogs ---


class SegmentPart:
    """A segment of a dataset of Rerun's catalog; see :class:`Part`. Of an entity all chunks are read.

    Args:
        dataset: the dataset.
        segment: the segment's id.
    """

    def __init__(self, dataset: DatasetEntry, segment: str) -> None:
        self._store = dataset.segment_store(segment)
        chunks = self._store.stream().filter(content=list(PROPERTY_PATHS), is_static=True).to_chunks()
        properties: dict[str, dict[str, Any]] = {}
        for chunk in chunks:
            add_property(properties, chunk.entity_path, chunk.to_record_batch())
        self.contents = Contents(Path(dataset.name, segment), dataset.name, segment, properties, True, True)  # noqa: FBT003

    def chunks(self, path: str, span: Span) -> Iterator[pa.RecordBatch]:
        """The chunks of an entity, in the order of their rows."""
        del span
        found = (chunk.to_record_batch() for chunk in self._store.stream().filter(content=path, is_static=False))
        yield from sorted((batch for batch in found if len(batch)), key=lambda batch: int(codes_of(batch)[0]))

    def count(self, path: str) -> int | None:
        """How many rows an entity has: only reading them tells."""
        del path
        return None
