"""The encoding of what lies in the messages of an ``.rrd`` file: protobuf, and Arrow in it (rerun-sdk 0.41)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

Fields = Mapping[int, Any]
"""The fields of a protobuf message by their numbers: ints, and bytes of any meaning."""

# Fields of Rerun's messages. A footer holds an index of each store: of each recording, and of the layout.
INDEX = 1  # of a footer
STORE, TABLE = 1, 4  # of an index; a chunk names its store by the same number
TABLE_PAYLOAD, TABLE_COMPRESSION, TABLE_SIZE = 2, 3, 4
_CHUNK_COMPRESSION, _CHUNK_SIZE, _CHUNK_PAYLOAD = 2, 3, 5
_STORE_KIND, _STORE_ID, _STORE_APPLICATION = 1, 2, 3
_RECORDING = 1
_LZ4 = 2
_CODEC = pa.Codec("lz4_raw")


def repeated_fields_of(message: bytes) -> list[tuple[int, Any]]:
    """Return the numbers and values of the fields of a protobuf message: ints, and bytes of any meaning.

    Raises:
        ValueError: the bytes are no such message, or a field has another type.
    """
    found: list[tuple[int, Any]] = []
    at, size = 0, len(message)
    while at < size:
        tag, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        if tag & 7 == 2:
            if at + value > size:
                raise ValueError(f"field {tag >> 3} ends behind the message's end")
            found.append((tag >> 3, message[at : at + value]))
            at += value
        elif tag & 7 == 0:
            found.append((tag >> 3, value))
        else:
            raise ValueError(f"field {tag >> 3} has the unexpected type {tag & 7}")
    return found


def fields_of(message: bytes) -> dict[int, Any]:
    """Return the fields of a protobuf message by their numbers. The last one of a repeated field counts.

    Raises:
        ValueError: the bytes are no such message, or a field has another type.
    """
    return dict(repeated_fields_of(message))


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    if at < len(message) and message[at] < 128:  # nearly all of them
        return message[at], at + 1
    value = shift = 0
    for byte in message[at : at + 10]:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
        if byte < 128:
            return value, at
    raise ValueError("a number has no end")


def message_of(fields: Fields) -> bytes:
    """Return the protobuf message of some fields."""
    return b"".join(encoded_field(number, value) for number, value in fields.items())


def encoded_field(number: int, value: bytes | int) -> bytes:
    """Return one field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def is_recording(store: bytes) -> bool:
    """Return whether a store is a recording; else it is a layout."""
    kind: int = fields_of(store)[_STORE_KIND]
    return kind == _RECORDING


def names_of(store: bytes) -> tuple[str, str]:
    """Return the application id and the recording id of a store."""
    fields = fields_of(store)
    application: bytes = fields_of(fields[_STORE_APPLICATION])[1]
    recording: bytes = fields[_STORE_ID]
    return application.decode(), recording.decode()


def table_in(index: Fields) -> pa.Table:
    """Return the table of a store's chunks that an index holds: ``chunk_entity_path``, ``chunk_byte_offset``, ..."""
    fields = fields_of(index[TABLE])
    plain = _plain(fields[TABLE_PAYLOAD], fields.get(TABLE_COMPRESSION), fields.get(TABLE_SIZE))
    return pa.ipc.open_stream(plain).read_all()


def with_table(index: Fields, table: pa.Table) -> bytes:
    """Return an index with another table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    plain = sink.getvalue()
    packed = {
        TABLE_PAYLOAD: _CODEC.compress(plain, asbytes=True),
        TABLE_COMPRESSION: _LZ4,
        TABLE_SIZE: plain.size,
    }
    return message_of({**index, TABLE: message_of({**fields_of(index[TABLE]), **packed})})


def chunk_in(fields: Fields) -> pa.RecordBatch:
    """Return the chunk in a message.

    Raises:
        ValueError: the message is damaged.
    """
    try:
        plain = _plain(fields[_CHUNK_PAYLOAD], fields.get(_CHUNK_COMPRESSION), fields.get(_CHUNK_SIZE))
        batch = pa.ipc.open_stream(plain).read_next_batch()
        batch.validate(full=True)  # Arrow's kernels trust offsets: a wrong one ends the process
        if "\N{REPLACEMENT CHARACTER}" in batch.schema.to_string(truncate_metadata=False):
            _check_names(batch.schema)
    except (KeyError, OSError, StopIteration, UnicodeDecodeError, pa.ArrowException) as error:
        raise ValueError(f"a chunk is damaged: {error!r}") from error
    return batch


def _check_names(fields: Iterable[pa.Field]) -> None:
    """Raise UnicodeDecodeError if a name or a text about a field isn't UTF-8, at which Rerun ends the process."""
    for field in fields:
        field.name  # noqa: B018 - decoded when it is asked for
        for text in (field.metadata or {}).items():
            b"".join(text).decode()
        _check_names(field.type.field(i) for i in range(field.type.num_fields))


def _plain(payload: bytes, compression: int | None, size: int | None) -> Any:
    return _CODEC.decompress(payload, size) if compression == _LZ4 else payload
