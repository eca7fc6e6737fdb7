"""Framing: what an ``.rrd`` file is made of besides Rerun's own encoding of chunks (rerun-sdk 0.41).

A header; messages, each with its kind and its length before it; a last message, the footer, which says where each chunk
lies; and a trailer of fixed size, which says where the footer lies. What a killed process leaves has neither of the two.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import xxhash

MAGIC = b"RRF2"
HEADER_BYTES = 12
MESSAGE = struct.Struct("<QQ")
FOOTER = 0  # or zeros: what some file systems leave of a growing file when the power goes
MESSAGES = (1, 2, 3)
TRAILER = struct.Struct("<QQI8sI")
_TRAILER_MAGIC = MAGIC + b"FOOT"
_FOOTERS = 1  # the format allows for more, its readers don't
_SEED = 7850921


@dataclass(frozen=True)
class Footer:
    """The end of a finished file.

    Attributes:
        start: where its message begins; before that are the messages of the recording.
        payload: the encoded index.
    """

    start: int
    payload: bytes

    @classmethod
    def read(cls, file: BinaryIO) -> Self:
        """The footer of a finished file.

        Raises:
            ValueError: there is none at the file's end.
        """
        size = file.seek(0, 2)
        if size < HEADER_BYTES + MESSAGE.size + TRAILER.size:
            raise ValueError("it is too short to have a footer")
        file.seek(size - TRAILER.size)
        start, length, _, magic, footers = TRAILER.unpack(file.read(TRAILER.size))
        if (magic, footers) != (_TRAILER_MAGIC, _FOOTERS):
            raise ValueError("it doesn't end with a footer")
        if start + length + TRAILER.size != size or start < HEADER_BYTES + MESSAGE.size:
            raise ValueError(f"its footer is said to be {length:,} bytes at {start:,}, and the file has {size:,}")
        file.seek(start - MESSAGE.size)
        tail = file.read(MESSAGE.size + length)
        if len(tail) != MESSAGE.size + length or MESSAGE.unpack_from(tail) != (FOOTER, length):
            raise ValueError(f"there is no footer at byte {start:,}, where it is said to be")
        return cls(start - MESSAGE.size, tail[MESSAGE.size :])

    def encoded(self) -> bytes:
        """The bytes of the message, and of the trailer behind it."""
        length = len(self.payload)
        checksum = xxhash.xxh32_intdigest(self.payload, seed=_SEED)
        trailer = TRAILER.pack(self.start + MESSAGE.size, length, checksum, _TRAILER_MAGIC, _FOOTERS)
        return MESSAGE.pack(FOOTER, length) + self.payload + trailer


def messages(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """Where each message of a file of ``size`` bytes begins, its kind, and its length without these two numbers.

    Of the last one all the rest may be missing; and what follows the footer is no message.
    """
    start = HEADER_BYTES
    while start + MESSAGE.size <= size:
        file.seek(start)
        kind, length = MESSAGE.unpack(file.read(MESSAGE.size))
        yield start, kind, length
        start += MESSAGE.size + length


def fields_of(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of an encoded protobuf message: numbers, and bytes of any meaning.

    Raises:
        ValueError: it is none, or has fields of other types.
    """
    stream = io.BytesIO(message)
    while stream.tell() < len(message):
        number, kind = divmod(_read_varint(stream), 8)
        if kind not in (0, 2):
            raise ValueError(f"field {number} has the unexpected type {kind}")
        value = _read_varint(stream)
        yield number, stream.read(value) if kind else value


def _read_varint(stream: io.BytesIO) -> int:
    value = shift = 0
    while True:
        (byte,) = stream.read(1)
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value
