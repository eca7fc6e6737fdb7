"""The frame of an ``.rrd`` file: header, messages, footer and trailer (rerun-sdk 0.41).

=========  =================================================================================================
header     12 bytes: the magic number, the version, the options
messages   each with its kind and its length in bytes before it; a chunk is one message
footer     the last message: says for each store where its chunks lie
trailer    36 bytes: says where the footer lies
=========  =================================================================================================

A process that is killed leaves a file without footer and trailer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Self

import xxhash

MAGIC = b"RRF2"
HEADER_BYTES = 12
MESSAGE = struct.Struct("<QQ")
FOOTER = 0  # or zeros, which some file systems leave at the end of a growing file when the power goes
CHUNK = 2
MESSAGES = (1, CHUNK, 3)
TRAILER = struct.Struct("<QQI8sI")
_TRAILER_MAGIC = MAGIC + b"FOOT"
_FOOTERS = 1  # the format allows several, Rerun's readers don't
_SEED = 7850921


@dataclass(frozen=True)
class Footer:
    """The end of a finished file.

    Attributes:
        start: offset in bytes of its message. The messages of the recording lie before it.
        payload: the encoded indexes.
    """

    start: int
    payload: bytes

    @classmethod
    def read(cls, file: BinaryIO) -> Self:
        """Return the footer of a finished file.

        Raises:
            ValueError: the file doesn't end with a footer, or the footer is damaged.
        """
        size = file.seek(0, 2)
        if size < HEADER_BYTES + MESSAGE.size + TRAILER.size:
            raise ValueError("the file is too short to have a footer")
        file.seek(size - TRAILER.size)
        start, length, checksum, magic, footers = TRAILER.unpack(file.read(TRAILER.size))
        if (magic, footers) != (_TRAILER_MAGIC, _FOOTERS):
            raise ValueError("the file doesn't end with a footer")
        if start + length + TRAILER.size != size or start < HEADER_BYTES + MESSAGE.size:
            raise ValueError(f"the footer is said to be {length:,} bytes at {start:,}, and the file has {size:,}")
        file.seek(start - MESSAGE.size)
        tail = file.read(MESSAGE.size + length)
        if len(tail) != MESSAGE.size + length or MESSAGE.unpack_from(tail) != (FOOTER, length):
            raise ValueError(f"there is no footer at byte {start:,}, where it is said to be")
        payload = tail[MESSAGE.size :]
        if _checksum(payload) != checksum:
            raise ValueError("the footer is damaged")
        return cls(start - MESSAGE.size, payload)

    def encoded(self) -> bytes:
        """Return the bytes of the message and of the trailer behind it."""
        length = len(self.payload)
        trailer = TRAILER.pack(self.start + MESSAGE.size, length, _checksum(self.payload), _TRAILER_MAGIC, _FOOTERS)
        return MESSAGE.pack(FOOTER, length) + self.payload + trailer


def _checksum(payload: bytes) -> int:
    return xxhash.xxh32_intdigest(payload, seed=_SEED)


def messages(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield the offset, the kind and the length in bytes of each message of a file.

    The length doesn't count the 16 bytes of kind and length. The last message may end behind the file's end. Bytes
    behind the footer are taken for messages, too: stop there.

    Args:
        file: the file.
        size: its size in bytes.
    """
    start = HEADER_BYTES
    while start + MESSAGE.size <= size:
        file.seek(start)
        kind, length = MESSAGE.unpack(file.read(MESSAGE.size))
        yield start, kind, length
        start += MESSAGE.size + length
