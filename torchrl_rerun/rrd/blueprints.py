"""Embedding a layout for the viewer into a finished ``.rrd`` file, in place."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.rrd.encoding import (
    INDEX,
    STORE,
    Fields,
    encoded_field,
    fields_of,
    repeated_fields_of,
    table_in,
    with_table,
)
from torchrl_rerun.rrd.framing import FOOTER, MESSAGE, TRAILER, Footer, messages

_OFFSETS = "chunk_byte_offset"


@dataclass(frozen=True)
class EncodedLayout:
    """A layout as files hold it; see :func:`encode`.

    Attributes:
        messages: its messages.
        index: the fields of its index in a file's footer.
        chunks: the table in the index, with offsets from the beginning of ``messages``.
    """

    messages: bytes
    index: Fields
    chunks: pa.Table

    def index_at(self, start: int) -> bytes:
        """Return the field of a footer that holds the layout's index, if its messages begin at byte ``start``."""
        return encoded_field(INDEX, with_table(self.index, _moved(self.chunks, lambda offset: start + offset)))


class _Structure(pickle.Pickler):
    """Pickles layouts so that those are equal that differ in the random ids of their views alone."""

    def __init__(self, into: io.BytesIO) -> None:
        super().__init__(into)
        self.fast = True  # equal texts are written as equal texts, whether or not they are one object
        self._ids: dict[uuid.UUID, int] = {}

    def persistent_id(self, found: Any) -> Any:
        """Return the number of an id in the order of their coming; None for anything else."""
        return self._ids.setdefault(found, len(self._ids)) if isinstance(found, uuid.UUID) else None


class EncodedLayouts:
    """The layouts that were encoded last: the recorders of a program mostly have one and the same.

    rerun-sdk 0.41: a layout that was encoded leaves four threads and 2 MB behind for as long as the process lives, and so a
    program that makes recorders for days would run out of both.

    Args:
        size: how many are kept. Default: 8.
    """

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._known: OrderedDict[tuple[str, bytes], EncodedLayout] = OrderedDict()

    def encode(self, layout: rrb.Blueprint, application_id: str) -> EncodedLayout:
        """Encode a layout once, for as many files as there are.

        Args:
            layout: the layout.
            application_id: name of the run that the files are of.

        Raises:
            LookupError, ValueError: this version of Rerun encodes layouts in another way.
        """
        structure = io.BytesIO()
        try:
            _Structure(structure).dump(layout)
        except Exception:  # of a user's own object in it, whatever it is
            return _encode(layout, application_id)
        key = application_id, structure.getvalue()
        encoded = self._known.pop(key, None) or _encode(layout, application_id)
        self._known[key] = encoded  # several threads may do this at once: each call is atomic, and what is lost is time
        while len(self._known) > self._size:
            with contextlib.suppress(KeyError):
                self._known.popitem(last=False)
        return encoded


encode = EncodedLayouts().encode


def _encode(layout: rrb.Blueprint, application_id: str) -> EncodedLayout:
    stream = rr.RecordingStream(application_id, send_properties=False)
    storage = rr.binary_stream(recording=stream)  # not `Blueprint.save`: that writes with the SDK's file sink
    stream.send_blueprint(layout)
    encoded = storage.read(flush=True, flush_timeout_sec=10.0) or b""

    footer = Footer.read(io.BytesIO(encoded))
    indexes = repeated_fields_of(footer.payload)
    if len(indexes) != 1:
        raise ValueError(f"Rerun encodes the layout as {len(indexes)} stores")
    index = fields_of(indexes[0][1])
    kept, moved = b"", {}
    for start, kind, length in messages(io.BytesIO(encoded), footer.start):
        message = encoded[start : start + MESSAGE.size + length]
        if kind != FOOTER and index[STORE] in message:  # other messages announce a recording, which stays empty
            moved[start + MESSAGE.size] = len(kept) + MESSAGE.size
            kept += message
    return EncodedLayout(kept, index, _moved(table_in(index), moved.__getitem__))


def _moved(chunks: pa.Table, where: Callable[[int], int]) -> pa.Table:
    """Return the table with other offsets."""
    column = chunks.schema.get_field_index(_OFFSETS)
    field = chunks.schema.field(column)
    offsets = [where(offset) for offset in chunks[_OFFSETS].to_pylist()]
    return chunks.set_column(column, field, pa.array(offsets, field.type))


def add_layout(path: Path, layout: EncodedLayout, *, handle: int | None = None) -> None:
    """Put a layout into a finished file, so that the viewer opens with it.

    The recorded chunks stay where they are in the file. The layout is written behind them, and then a footer that
    indexes both. Whatever happens meanwhile, no recorded chunk is lost: a file that a kill leaves can be repaired.

    Args:
        path: the file.
        layout: the layout.
        handle: descriptor of the file, if it is open for reading and writing.

    Raises:
        OSError: the layout couldn't be added; the file is as it was.
    """
    try:
        with path.open("rb+", buffering=0) if handle is None else io.FileIO(handle, "rb+", closefd=False) as file:
            _add(file, layout)
    except (OSError, ValueError) as error:
        raise OSError(f"the layout could not be added to {path}: {error}") from error


def _add(file: io.FileIO, layout: EncodedLayout) -> None:
    footer = Footer.read(file)
    start, size = footer.start, file.seek(0, os.SEEK_END)
    payload = footer.payload + layout.index_at(start)  # lists of protobuf are joined by joining their bytes
    end = layout.messages + Footer(start + len(layout.messages), payload).encoded()
    file.seek(start)
    before = file.read(size - start)
    try:
        # The bytes beyond the old end come first: on a full disk nothing has been changed yet.
        _write(file, size, end[len(before) : -TRAILER.size] + bytes(TRAILER.size))
        # Until here a repair finds all recorded chunks, and ends at the head of the old footer.
        _write(file, start + MESSAGE.size, end[MESSAGE.size : len(before)])
        _write(file, start, end[: MESSAGE.size])
        # The trailer comes last: by it readers tell a finished file.
        _write(file, start + len(end) - TRAILER.size, end[-TRAILER.size :])
    except BaseException:
        file.truncate(size)
        _write(file, start, before)
        raise


def _write(file: io.FileIO, at: int, data: bytes) -> None:
    file.seek(at)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
