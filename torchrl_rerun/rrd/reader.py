"""The reader of ``.rrd`` files: which recordings a file holds, their chunks one at a time, and what is wrong with it.

Everything in the package that looks into a recorded file does so through this module. Rerun's own reader gives all chunks
of an entity one after the other, refuses a file that a killed process left, and ends the process at some damages
(rerun-sdk 0.41). An episode of a long recording is in a few chunks of each entity.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rerun.chunk import Chunk

from torchrl_rerun.blocks.black_box import Snapshot, box_of, read_box, state_of
from torchrl_rerun.kinds.lasting import DamagedRowsError, counts_in, frames_of
from torchrl_rerun.kinds.schema import PROPERTY, NewerSchemaError
from torchrl_rerun.paths import check_name, format_path, is_file
from torchrl_rerun.rrd.chunk_index import TIMELINES, ChunkEntry, ChunkIndex
from torchrl_rerun.rrd.encoding import (
    STORE,
    Fields,
    chunk_in,
    fields_of,
    is_recording,
    names_of,
    repeated_fields_of,
    table_in,
)
from torchrl_rerun.rrd.frame_codes import ALL, TIMES, Span
from torchrl_rerun.rrd.framing import CHUNK, FOOTER, HEADER_BYTES, MAGIC, MESSAGE, MESSAGES, Footer, messages
from torchrl_rerun.rrd.locks import is_locked
from torchrl_rerun.rrd.parts import PROPERTY_PATHS, Properties, RecordingPart, add_property, episode_in

if TYPE_CHECKING:
    from torchrl_rerun.rrd.left_behind import LeftEpisode

CACHE_BYTES = 64 << 20
"""Bytes of decompressed chunks that are kept in memory: the episodes that are read next are often in the same chunks."""

CHUNK_BYTES = 16 << 10
"""Bytes of memory that a chunk takes beside its rows: its schema, and pyarrow's least allocations (13 KB measured)."""


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


def parts_in(file: Path) -> list[FilePart]:
    """Return the parts of recordings in a file. Of a finished file only the footer and the properties are read.

    A file without a footer, which a process writes or left when it was killed, is read as far as its messages are whole. What
    is in the black box beside it comes on top: all up to the last step.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is no recording, or is damaged.
    """
    if file.is_dir():
        return list(_in_box_of_episodes(file, state_of(file)))
    with file.open("rb") as opened:
        begins = opened.read(len(MAGIC))
        footer = _footer_of(opened) if begins == MAGIC else None
        # Before the file: its owner may write a block meanwhile.
        box = read_box(box_of(file)) if footer is None and box_of(file).exists() else None
        if box is None:
            _check_magic(begins, file)
        try:
            if footer is not None:
                return _by_footer(opened, file, footer)
            found = _scan(opened, file)
            return found if box is None else _with_rest(opened, file, found, box)
        except (NewerSchemaError, _FileError):
            raise
        except _DAMAGES as error:
            raise ValueError(f"{format_path(file)} is damaged: {error}") from error


def is_unfinished(path: Path) -> bool:
    """Return whether something was recorded at a path that isn't finished: its program still runs, or was killed."""
    if path.is_dir():
        return path == box_of(path.parent)
    try:
        with path.open("rb") as opened:
            begins = opened.read(len(MAGIC))
            return begins in (b"", MAGIC) and (not begins or _footer_of(opened) is None)
    except OSError:
        return False


def why_unreadable(file: Path) -> str | None:
    """Return why Rerun can't open a file, and what to do about it; None: it can.

    Raises:
        OSError: the file can't be looked at.
    """
    name = format_path(file)
    if file.is_dir():
        return _unfinished(file.parent)
    try:
        check_name(file)
        is_file(file)
        with file.open("rb") as opened:
            begins = opened.read(len(MAGIC))
            if begins in (b"", MAGIC) and is_locked(file):
                return f"{name} is still being recorded: it can be opened when its environment is closed"
            if not (begins == b"" and box_of(file).is_dir()):
                _check_magic(begins, file)
            if begins == b"" or _footer_of(opened) is None:
                return _unfinished(file)
    except ValueError as error:
        return str(error)
    return None


def _unfinished(path: Path) -> str:
    name = format_path(path)
    return (
        f"{name} isn't finished: its program still runs, or was killed; then "
        f"`torchrl-rerun repair {shlex.quote(name)}` makes it whole"
    )


def _footer_of(opened: BinaryIO) -> Footer | None:
    """Return the footer of a finished file; None: the file has none, or a damaged one."""
    try:
        return Footer.read(opened)
    except ValueError:
        return None


class _FileError(ValueError):
    """An error whose message names the file."""


def _check_magic(begins: bytes, file: Path) -> None:
    if not begins:
        raise _FileError(f"{format_path(file)} is empty: nothing was recorded in it")
    if begins != MAGIC:
        raise _FileError(f"{format_path(file)} is not a recording: it doesn't begin as an .rrd file does")


_DAMAGES = (LookupError, OverflowError, TypeError, ValueError, pa.ArrowException)
"""The errors that decoding damaged bytes raises."""


def _by_footer(opened: BinaryIO, file: Path, footer: Footer) -> list[FilePart]:
    indexes = [fields_of(index) for _, index in repeated_fields_of(footer.payload)]
    recordings = [index for index in indexes if is_recording(index[STORE])]
    found = []
    for index in recordings:
        chunks = ChunkIndex.of_table(table_in(index))
        properties: Properties = {}
        for path in PROPERTY_PATHS:
            for at in chunks.at(path).tolist():
                message = _read(opened, int(chunks.offsets[at]), int(chunks.sizes[at]))
                add_property(properties, path, chunk_in(fields_of(message)))
        found.append(
            _part(
                file,
                index[STORE],
                properties=properties,
                index=chunks,
                is_finished=True,
                has_layout=len(recordings) < len(indexes),
                version=FileVersion.of(opened),
            )
        )
    return found


def _scan(opened: BinaryIO, file: Path) -> list[FilePart]:
    """Return what a process left that was killed, or that still records."""
    size, end, is_torn = opened.seek(0, 2), HEADER_BYTES, True
    entries: dict[bytes, list[ChunkEntry]] = {}
    properties: dict[bytes, Properties] = {}
    for start, kind, length in messages(opened, size):
        offset = start + MESSAGE.size
        if kind not in (FOOTER, *MESSAGES):
            raise _FileError(f"{format_path(file)} is damaged at byte {start:,} of {size:,}: no message begins there")
        if kind == FOOTER or offset + length > size:
            is_torn = kind != FOOTER or not length  # zeros are what a file system may leave
            break
        end = offset + length
        if kind == CHUNK:
            fields = fields_of(_read(opened, offset, length))
            entry = _entry(fields, offset, length, properties)
            entries.setdefault(fields[STORE], []).append(entry)
    recordings = [store for store in entries if is_recording(store)]
    return [
        _part(
            file,
            store,
            properties=properties.get(store, {}),
            index=ChunkIndex.of_entries(entries[store]),
            is_finished=False,
            has_layout=len(recordings) < len(entries),
            version=FileVersion.of(opened),
            torn_bytes=size - end,
            is_torn=is_torn and end < size,
        )
        for store in recordings
    ]


def _entry(fields: Fields, offset: int, size: int, properties: dict[bytes, Properties]) -> ChunkEntry:
    """Return what a chunk says of itself, and add it to the properties of its recording if it is of one."""
    return _entry_of(chunk_in(fields), offset, size, properties.setdefault(fields[STORE], {}))


def _entry_of(batch: pa.RecordBatch, offset: int, size: int, properties: Properties) -> ChunkEntry:
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


def _with_rest(opened: BinaryIO, file: Path, found: list[FilePart], box: Snapshot) -> list[FilePart]:
    """Return the parts in an unfinished file, together with what is in its black box."""
    # Which few recordings need: it makes chunks.
    from torchrl_rerun.rrd.left_behind import rest_of_run  # noqa: PLC0415

    ids = box.said["application_id"], box.said["recording_id"]
    part = next((part for part in found if part.recording_id == ids[1]), None)
    if part is None:
        nothing = ChunkIndex.of_entries([])
        part = FilePart(
            file=file,
            application_id=ids[0],
            recording_id=ids[1],
            properties={},
            is_finished=False,
            has_layout=False,
            index=nothing,
            store=b"",
            version=FileVersion.of(opened),
        )
    schema = part.properties.get(PROPERTY, {}).get("schema")
    recovered = tuple(rest_of_run(box, functools.partial(_frames_in, part), schema))
    properties: dict[bytes, Properties] = {part.store: dict(part.properties)}
    entries = [
        _entry_of(batch, _RECOVERED + number, batch.nbytes, properties[part.store])
        for number, batch in enumerate(recovered)
    ]
    whole = replace(
        part,
        properties=properties[part.store],
        index=part.index.with_more(ChunkIndex.of_entries(entries)),
        recovered=recovered,
    )
    return [*(each for each in found if each is not part), whole]


@functools.lru_cache(maxsize=2)  # readers come for one episode after the other
def _in_box_of_episodes(path: Path, state: tuple[Any, ...]) -> tuple[FilePart, ...]:
    """Return the episodes in the black box of a folder, which have no files yet, or not all of their rows in one.

    Args:
        path: the box.
        state: what differs if there is more in it.
    """
    del state
    from torchrl_rerun.rrd.left_behind import Part, rest_of_episodes  # noqa: PLC0415 - it makes chunks

    box = read_box(path)
    there: dict[str, list[Part]] = {}
    for file in () if box is None else sorted(path.parent.glob("env_*_episode_*.rrd")):
        with contextlib.suppress(OSError, ValueError):  # other readers tell of it
            for part in parts_in(file):
                episode = episode_in(part.properties)
                if episode is not None:
                    name = _WITHOUT_SUFFIX.sub("", file.name)
                    there.setdefault(name, []).append((file, episode, functools.partial(_frames_in, part, first=0)))
    return () if box is None else tuple(_left_part(path, box, each) for each in rest_of_episodes(box, there))


_WITHOUT_SUFFIX = re.compile(r"(?<=_episode_\d{6})(_\d+)?(\.part_\d+)?\.rrd")


def _left_part(path: Path, box: Snapshot, left: LeftEpisode) -> FilePart:
    properties: Properties = {}
    entries = [
        _entry_of(batch, _RECOVERED + number, batch.nbytes, properties) for number, batch in enumerate(left.chunks)
    ]
    found = path.stat()
    return FilePart(
        file=path,
        application_id=box.said["application_id"],
        recording_id=left.recording_id,
        properties=properties,
        is_finished=False,
        has_layout=False,
        index=ChunkIndex.of_entries(entries),
        store=b"",
        version=FileVersion(found.st_dev, found.st_ino, found.st_mtime_ns),
        recovered=tuple(left.chunks),
    )


_RECOVERED = 1 << 62
"""In place of the offset of the first chunk that isn't in the file."""


def _chunk(part: FilePart, at: int) -> pa.RecordBatch:
    """Return one of a part's chunks, which may be kept in memory."""
    recovered = _recovered(part, at)
    return _CACHE.chunk(part, at) if recovered is None else recovered


def _recovered(part: FilePart, at: int) -> pa.RecordBatch | None:
    """Return one of a part's chunks if it was left behind in the black box; else None."""
    number = int(part.index.offsets[at]) - _RECOVERED
    return part.recovered[number] if number >= 0 else None


def _frames_in(part: FilePart, path: str, first: int) -> npt.NDArray[np.int64]:
    """Return the frames of an entity's rows in a file, from some frame on."""
    at = part.index.at(path)
    last = part.index.times[at, TIMELINES.index("frame"), 1]
    chunks = (_read_chunk(part, each) for each in at[last >= first].tolist())
    return np.concatenate([np.empty(0, np.int64), *map(frames_of, chunks)])


def _part(file: Path, store: bytes, **known: Any) -> FilePart:
    application_id, recording_id = names_of(store)
    return FilePart(file=file, application_id=application_id, recording_id=recording_id, store=store, **known)


def _read(opened: BinaryIO, offset: int, size: int) -> bytes:
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
        message = _read(opened, int(part.index.offsets[at]), int(part.index.sizes[at]))
    is_same = version[:2] == part.version[:2]
    try:
        fields = fields_of(message) if is_same else {}
        if is_same and fields[STORE] == part.store:
            return chunk_in(fields)
    except _DAMAGES as error:
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
