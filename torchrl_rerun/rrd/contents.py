"""Contents: what a file says of what is in it, without its rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rerun.chunk import LazyChunkStream, RrdReader, StoreEntry

from torchrl_rerun.kinds.schema import EPISODE, PROPERTY, RECORDING_INFO, NewerSchemaError, Schema, check_version
from torchrl_rerun.paths import check_name, shown
from torchrl_rerun.rrd.files import why_unreadable

PROPERTY_PATHS = {f"/__properties/{name}": name for name in (EPISODE, PROPERTY, RECORDING_INFO)}
"""Where the properties are that are known here, and their names."""


@dataclass(frozen=True)
class Contents:
    """A recording in a file.

    Attributes:
        file: the file; of a segment of a catalog, which is in none, the names of its dataset and of itself.
        application_id: what the run is called.
        recording_id: what the recording is called; those of several files may be one.
        properties: the fields of its properties, by the names of these.
        is_finished: whether the file has the footer by which a reader finds its rows.
        has_layout: whether there is one in the file.
    """

    file: Path
    application_id: str
    recording_id: str
    properties: dict[str, dict[str, Any]]
    is_finished: bool
    has_layout: bool

    def __post_init__(self) -> None:
        """Refuse a recording of a version that is not known yet.

        Raises:
            ValueError: it was made by a newer version; names the file.
        """
        try:
            check_version(self.properties.get(PROPERTY, {}).get("schema", ""))
        except NewerSchemaError as error:
            raise ValueError(f"{self.file} was {error}") from error

    @property
    def schema(self) -> Schema | None:
        """The recording's own description; None: it is none of ``torchrl_rerun``."""
        said = self.properties.get(PROPERTY, {}).get("schema")
        return None if said is None else Schema.from_json(said)


def contents_of(file: Path) -> list[Contents]:
    """The recordings in a file. Of a finished one nothing else is read.

    Raises:
        ValueError: there is nothing in it, or Rerun can't read it; says why, and what to do. (Of a few damages to a property's own bytes Rerun dies instead, with rerun-sdk
            0.41; a file that ends too early, or in zeros, is none of them.)
    """
    check_name(file)
    try:
        return _contents_of(file)
    except RuntimeError as error:
        raise ValueError(why_unreadable(file) or f"{shown(file)} is damaged: {error}") from error


def _contents_of(file: Path) -> list[Contents]:
    reader = _reader(file)
    recordings = reader.recordings()
    if not recordings:
        raise ValueError(f"there is nothing in {shown(file)}")
    has_layout = bool(reader.blueprints())
    found = []
    for recording in recordings:
        stream, is_finished = _stream(reader, recording)
        chunks = stream.filter(content=list(PROPERTY_PATHS), is_static=True).to_chunks()
        properties: dict[str, dict[str, Any]] = {}
        for chunk in chunks:
            add_property(properties, chunk.entity_path, chunk.to_record_batch())
        found.append(
            Contents(file, recording.application_id, recording.recording_id, properties, is_finished, has_layout)
        )
    return found


def rows_of(file: Path, path: str) -> Iterator[pa.RecordBatch]:
    """The rows of an entity in a file, chunk by chunk, in the order in which they were written.

    Of a finished file no other chunks are read.

    Args:
        file: the file.
        path: the entity path.
    """
    reader = _reader(file)
    for recording in reader.recordings():
        stream, _ = _stream(reader, recording)
        for chunk in stream.filter(content=path, is_static=False):
            if chunk.entity_path == path:
                yield chunk.to_record_batch()


def index_of(file: Path) -> pa.Table | None:
    """The footer's table of a file's chunks: columns ``chunk_entity_path``, ``chunk_num_rows``, ``frame:start`` and so on.

    None: the file has no footer.
    """
    reader = _reader(file)
    tables = []
    for recording in reader.recordings():
        try:
            store = reader.store(store=recording)
        except RuntimeError:
            return None
        tables.append(pa.table(store._chunk_index().to_arrow()))  # noqa: SLF001 - public is a text alone (rerun-sdk 0.41)
    return pa.concat_tables(tables, promote_options="default")


def _reader(file: Path) -> RrdReader:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file without a footer is "legacy"
        reader = RrdReader(file)
        reader.recordings()
    return reader


def _stream(reader: RrdReader, recording: StoreEntry) -> tuple[LazyChunkStream, bool]:
    """The chunks of a recording, and whether only those are read that pass a filter."""
    try:
        return reader.store(store=recording).stream(), True
    except RuntimeError:  # no footer says where they are: all are read
        return reader.stream(store=recording), False


def add_property(properties: dict[str, dict[str, Any]], path: str, batch: pa.RecordBatch) -> None:
    """Note a property's fields, single values as they are, several as lists: the last one of each counts.

    Others may have put the fields of a property into chunks of their own.

    Args:
        properties: those that are known, by their names.
        path: where the property is.
        batch: its chunk.
    """
    row = {name: batch.column(name)[-1].as_py() for name in batch.schema.names if name != "rerun.controls.RowId"}
    fields = {name: values[0] if len(values) == 1 else values for name, values in row.items() if values is not None}
    properties.setdefault(PROPERTY_PATHS[path], {}).update(fields)


def is_whole(path: Path) -> bool:
    """Whether a file has all that closing a recording gives it: a footer and a layout."""
    reader = reader_of(path)
    return reader is not None and has_footer(reader) and bool(reader.blueprints())


def has_footer(reader: RrdReader | None) -> bool:
    """Whether a file has the footer by which the viewer finds its recording."""
    if reader is None:
        return False
    try:
        reader.store()
    except (RuntimeError, ValueError):  # there is none, or nothing that it could be of
        return False
    return True


def reader_of(path: Path) -> RrdReader | None:
    """A reader of the file; None if it ends within a message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file without a footer is "legacy"
        try:
            reader = RrdReader(path)
            reader.recordings()  # not before this does it look at the whole of a file without a footer
        except RuntimeError:
            return None
        return reader
