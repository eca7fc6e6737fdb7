"""The part of a recording in one file, and its chunks, one at a time.

Chunks that are read are kept in memory for a while. Those that were left behind in a black box are in memory from the beginning.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rerun.chunk import Chunk

from torchrl_rerun.kinds.lasting import DamagedRowsError, counts_in, frames_of
from torchrl_rerun.paths import format_path
from torchrl_rerun.rrd.chunk_index import TIMELINES, ChunkEntry, ChunkIndex
from torchrl_rerun.rrd.encoding import STORE, chunk_in, fields_of
from torchrl_rerun.rrd.frame_codes import ALL, TIMES, Span
from torchrl_rerun.rrd.parts import PROPERTY_PATHS, Properties, RecordingPart, add_property

CACHE_BYTES = 64 << 20
"""Bytes of decompressed chunks that are kept in memory: the episodes that are read next are often in the same chunks."""

CHUNK_BYTES = 16 << 10
"""Bytes of memory that a chunk takes beside its rows: its schema, and pyarrow's least allocations (13 KB measured)."""


DAMAGES = (LookupError, OverflowError, TypeError, ValueError, pa.ArrowException)
"""The errors that decoding damaged bytes raises."""


class FileVersion(NamedTuple):
    """The identity of a file and its contents, which differs if another one takes its path.

    Attributes:
        device: the device that holds it.
        inode: its number there.
        written: time of its last change, in nanoseconds.
    """

    device: int
    inode: int
    written: int

    @classmethod
    def of(cls, opened: BinaryIO) -> FileVersion:
        """Return the version of an open file."""
        found = os.fstat(opened.fileno())
        return cls(found.st_dev, found.st_ino, found.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class FilePart(RecordingPart):
    """The part of a recording in one file.

    Attributes:
        index: where the chunks lie.
        store: how each chunk names the recording that it belongs to.
        version: the file that was looked at.
        torn_bytes: bytes behind the last whole message, in a file without a footer.
        is_torn: whether these are of a recorded message; else the process was killed while it wrote the footer.
        recovered: the chunks that were left behind in the black box beside an unfinished file.
    """

    index: ChunkIndex
    store: bytes
    version: FileVersion
    torn_bytes: int = 0
    is_torn: bool = False
    recovered: tuple[pa.RecordBatch, ...] = ()

    @functools.cached_property
    def began(self) -> int:
        """``log_time`` of the first row, in nanoseconds since the epoch; 0: there is none."""
        return min((self.index.span_of(path, "log_time")[0] for path in self.index.recorded_paths), default=0)

    @functools.cached_property
    def last_frame(self) -> int:
        """Number of the last frame; -1: there is none."""
        return max((self.index.span_of(path, "frame")[1] for path in self.index.recorded_paths), default=-1)

    @functools.cached_property
    def steps(self) -> Mapping[str, Span]:
        """The first and the last ``step`` of each entity."""
        return {path: self.index.span_of(path, "step") for path in self.index.recorded_paths}

    @property
    def size(self) -> int:
        """Bytes of its chunks: in the file, and in memory of those that were left behind."""
        return int(self.index.sizes.sum())

    def chunk_ids(self) -> frozenset[bytes]:
        """Return the ids of all chunks, which no other recording has."""
        return frozenset(self.index.ids[at : at + 16] for at in range(0, len(self.index.ids), 16))

    def chunks(self, path: str, span: Span = ALL) -> Iterator[pa.RecordBatch]:
        """Yield the chunks of an entity that may have rows in a span, in the order of their rows.

        Raises:
            OSError: the file can't be read, or is gone.
            ValueError: another file is in its place, or it is damaged.
        """
        for at in self.index.within(path, span).tolist():
            batch = _chunk(self, at)
            if damaged := [name for name in TIMES if not _is_timeline(batch.schema, name)]:
                raise ValueError(
                    f"{format_path(self.file)} is damaged: a chunk of {path} has no times called {', '.join(damaged)}"
                )
            yield batch

    def static_chunks(self, path: str) -> Iterator[pa.RecordBatch]:
        """Yield the chunks of what doesn't change of an entity.

        Raises:
            OSError: the file can't be read, or is gone.
            ValueError: another file is in its place, or it is damaged.
        """
        for at in self.index.at(path).tolist():
            if self.index.is_static[at]:
                yield _chunk(self, at)

    def count(self, path: str) -> int:
        """Return how many rows an entity has, with those that a stored row stands for.

        Raises:
            OSError: the file can't be read, or is gone.
            ValueError: another file is in its place, or it is damaged.
        """
        if path not in self._lasting_paths:
            return self.index.count(path)
        return sum(self._rows_in(at) for at in self.index.of_entity(path).tolist())

    @functools.cached_property
    def _lasting_paths(self) -> frozenset[str]:
        """The entities of which a stored row may stand for several."""
        schema = self.schema
        if schema is None:
            return frozenset()
        return frozenset(
            path for stream, _ in schema.described if stream.kind.lasts for path in schema.paths_of(stream)
        )

    def _rows_in(self, at: int) -> int:
        """Return how many rows a chunk stands for. Chunks with as many rows as steps hold all of them, and aren't read."""
        rows, (first, last) = int(self.index.rows[at]), self.index.times[at, TIMELINES.index("step")]
        try:
            counts = None if rows > last - first else counts_in(_chunk(self, at))
        except DamagedRowsError as error:
            raise ValueError(f"{format_path(self.file)} is damaged: {error}") from error
        return rows if counts is None else int(counts.sum())

    def all_chunks(self) -> Iterator[Chunk]:
        """Yield all chunks of the recording, as Rerun's writers and viewers take them, in the order of the file.

        Raises:
            OSError: the file can't be read, or is gone.
            ValueError: another file is in its place, or it is damaged.
        """
        for at in self.index.offsets.argsort().tolist():
            try:
                recovered = _recovered(self, at)
                chunks = Chunk.from_record_batch(_read_chunk(self, at) if recovered is None else recovered)
            except (RuntimeError, pa.ArrowException) as error:  # Rerun's own checks
                raise ValueError(f"{format_path(self.file)} is damaged: {error}") from error
            yield from chunks


def entry_of(batch: pa.RecordBatch, offset: int, size: int, properties: Properties) -> ChunkEntry:
    """Return what a chunk says of itself, and add it to the properties of its recording if it is of one."""
    said = batch.schema.metadata
    path = said[b"rerun:entity_path"].decode()
    if path in PROPERTY_PATHS:
        add_property(properties, path, batch)
    timelines = {each.name for each in batch.schema if (each.metadata or {}).get(b"rerun:kind") == b"index"}
    times: list[int] = []
    for name in TIMELINES:
        column = batch.column(name).cast(pa.int64()).to_numpy() if name in timelines and len(batch) else None
        times += (-1, -1) if column is None else (int(column.min()), int(column.max()))
    return ChunkEntry(
        path,
        bytes.fromhex(said[b"rerun:id"].decode().rpartition("_")[2]),
        offset,
        size,
        len(batch),
        not timelines,
        tuple(times),
    )


RECOVERED = 1 << 62
"""In place of the offset of the first chunk that isn't in the file."""


def _chunk(part: FilePart, at: int) -> pa.RecordBatch:
    """Return one of a part's chunks, which may be kept in memory."""
    recovered = _recovered(part, at)
    return _CACHE.chunk(part, at) if recovered is None else recovered


def _recovered(part: FilePart, at: int) -> pa.RecordBatch | None:
    """Return one of a part's chunks if it was left behind in the black box; else None."""
    number = int(part.index.offsets[at]) - RECOVERED
    return part.recovered[number] if number >= 0 else None


def frames_in(part: FilePart, path: str, first: int) -> npt.NDArray[np.int64]:
    """Return the frames of an entity's rows in a file, from some frame on."""
    at = part.index.at(path)
    last = part.index.times[at, TIMELINES.index("frame"), 1]
    # Static chunks have no frames; the frame 0 of a file may not be the first one that is asked for.
    chunks = (_read_chunk(part, each) for each in at[last >= max(first, 0)].tolist())
    return np.concatenate([np.empty(0, np.int64), *map(frames_of, chunks)])


def read_message(opened: BinaryIO, offset: int, size: int) -> bytes:
    """Return a message in an open file, which is shorter if the file ends before it does."""
    opened.seek(offset)
    return opened.read(size)


def _is_timeline(schema: pa.Schema, name: str) -> bool:
    """Return whether a chunk has a timeline of a name."""
    at = schema.get_field_index(name)
    return at >= 0 and bool(pa.types.is_int64(schema.field(at).type) or pa.types.is_timestamp(schema.field(at).type))


def _read_chunk(part: FilePart, at: int) -> pa.RecordBatch:
    """Return one of a part's chunks.

    Raises:
        OSError: the file can't be read, or is gone.
        ValueError: another file is in its place, or it is damaged.
    """
    file = part.file
    with file.open("rb") as opened:
        version = FileVersion.of(opened)
        message = read_message(opened, int(part.index.offsets[at]), int(part.index.sizes[at]))
    is_same = version[:2] == part.version[:2]
    try:
        fields = fields_of(message) if is_same else {}
        if is_same and fields[STORE] == part.store:
            return chunk_in(fields)
    except DAMAGES as error:
        if version == part.version:
            raise ValueError(f"{format_path(file)} is damaged: {error}") from error
    raise ValueError(
        f"{format_path(file)} was {'overwritten' if is_same else 'replaced'} since it was loaded: load it again"
    )


class _Cache:
    """The chunks that were read last, decompressed. Threads share them; a forked process has a copy."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Path, FileVersion, int], pa.RecordBatch] = OrderedDict()
        self._bytes = 0
        self.renew_lock()

    def renew_lock(self) -> None:
        """Replace the lock, which another thread may have held when this process was forked."""
        self._lock = threading.Lock()

    def chunk(self, part: FilePart, at: int) -> pa.RecordBatch:
        """Return one of a part's chunks, from memory or from the file."""
        key = part.file, part.version, int(part.index.offsets[at])  # another recording may be written to the same path
        with self._lock:
            batch = self._held.get(key)
            if batch is not None:
                self._held.move_to_end(key)
                return batch
        batch = _read_chunk(part, at)
        with self._lock:
            if key not in self._held:  # another thread may have read it meanwhile
                self._held[key] = batch
                self._bytes += batch.nbytes + CHUNK_BYTES
            while self._bytes > CACHE_BYTES and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes + CHUNK_BYTES
        return batch


_CACHE = _Cache()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_CACHE.renew_lock)
