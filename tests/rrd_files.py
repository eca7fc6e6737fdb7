"""Read footers, indexes of chunks and rows of ``.rrd`` files with Rerun's own reader."""

from __future__ import annotations

import warnings

import pyarrow as pa
from rerun.chunk import RrdReader


def has_footer(path) -> bool:
    """Return whether a file has a footer with the index of its chunks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file without a footer is "legacy"
        try:
            RrdReader(path).store()
        except (RuntimeError, ValueError):
            return False
    return True


def is_whole(path) -> bool:
    """Return whether a file has a footer and a layout, as after `close()`."""
    return has_footer(path) and bool(RrdReader(path).blueprints())


def index_of(path) -> pa.Table:
    """Return the table of a finished file's chunks: columns ``chunk_entity_path``, ``chunk_byte_offset``, ..."""
    return pa.table(RrdReader(path).store()._chunk_index().to_arrow())


def rows_of(path, entity) -> list[pa.RecordBatch]:
    """Return the rows of an entity in a finished file, a record batch for each chunk."""
    found = RrdReader(path).store().stream().filter(content=entity, is_static=False)
    return [chunk.to_record_batch() for chunk in found if chunk.entity_path == entity]
