"""The reader of ``.rrd`` files: which recordings a file holds, their chunks one at a time, and what is wrong with it.

Everything in the package that looks into a recorded file does so through this module. Rerun's own reader gives all chunks
of an entity one after the other, refuses a file that a killed process left, and ends the process at some damages
(rerun-sdk 0.41). An episode of a long recording is in a few chunks of each entity.
"""

from __future__ import annotations

import os
import shlex
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rerun.chunk import Chunk

from torchrl_rerun.blocks.black_box import box_of
from torchrl_rerun.kinds.schema import NewerSchemaError
from torchrl_rerun.paths import check_name, format_path, is_file
from torchrl_rerun.rrd.chunk_index import ChunkEntry, ChunkIndex
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
from torchrl_rerun.rrd.file_part import DAMAGES, FilePart, FileVersion, entry_of, read_message
from torchrl_rerun.rrd.framing import CHUNK, FOOTER, HEADER_BYTES, MAGIC, MESSAGE, MESSAGES, Footer, messages
from torchrl_rerun.rrd.locks import is_locked
from torchrl_rerun.rrd.parts import PROPERTY_PATHS, Properties, add_property


def parts_in(file: Path) -> list[FilePart]:
    """Return the parts of recordings in a file. Of a finished file only the footer and the properties are read.

    A file without a footer, which a process writes or left when it was killed, is read as far as its messages are whole. What
    is in the black box beside it comes on top: all up to the last step.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is no recording, or is damaged.
    """
    if file.is_dir():
        found: list[FilePart] = _box_parts().episodes_in(file, parts_in)
        return found
    with file.open("rb") as opened:
        begins = opened.read(len(MAGIC))
        footer = _footer_of(opened) if begins == MAGIC else None
        # Before the file: its owner may write a block meanwhile.
        box = _box_parts().box_beside(file) if footer is None and box_of(file).exists() else None
        if box is None:
            _check_magic(begins, file)
        try:
            if footer is not None:
                return _by_footer(opened, file, footer)
            found = _scan(opened, file)
            return found if box is None else _box_parts().with_rest(opened, file, found, box)
        except (NewerSchemaError, _FileError):
            raise
        except DAMAGES as error:
            raise ValueError(f"{format_path(file)} is damaged: {error}") from error


def episodes_left_in(box: Path) -> list[FilePart]:
    """Return the episodes in the black box of a folder, as they are now. Readers may be given those of a moment ago.

    Raises:
        ValueError: the box is damaged.
    """
    return list(_box_parts().episodes_left_in(box, parts_in))


def _box_parts() -> types.ModuleType:
    """Return the module that reads black boxes, which few recordings need: it makes chunks, and `ls` must start soon."""
    from torchrl_rerun.rrd import box_parts  # noqa: PLC0415

    return box_parts


def rows_in(files: Iterable[Path]) -> Iterator[Chunk]:
    """Yield the chunks of rows in files that are parts of one recording, without what doesn't change over time."""
    for file in files:
        for part in parts_in(file):
            yield from (chunk for chunk in part.all_chunks() if not chunk.is_static)


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
        return _still_recorded(format_path(file.parent)) if is_locked(file.parent) else _unfinished(file.parent)
    try:
        check_name(file)
        is_file(file)
        with file.open("rb") as opened:
            begins = opened.read(len(MAGIC))
            if begins in (b"", MAGIC) and is_locked(file):
                return _still_recorded(name)
            if not (begins == b"" and box_of(file).is_dir()):
                _check_magic(begins, file)
            if begins == b"" or _footer_of(opened) is None:
                return _unfinished(file)
    except ValueError as error:
        return str(error)
    return None


def _still_recorded(name: str) -> str:
    return (
        f"{name} is still being recorded: its program runs, or hangs. torchrl-rerun reads it up to the last step, Rerun when its "
        "environment is closed"
    )


def _unfinished(path: Path) -> str:
    name = format_path(path)
    why = (
        "its program was killed, or gave the recording up"
        if os.name != "nt"
        else "its program still runs, or was killed"
    )
    return f"{name} isn't finished: {why}; `torchrl-rerun repair {shlex.quote(name)}` makes it whole"


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


def _by_footer(opened: BinaryIO, file: Path, footer: Footer) -> list[FilePart]:
    indexes = [fields_of(index) for _, index in repeated_fields_of(footer.payload)]
    recordings = [index for index in indexes if is_recording(index[STORE])]
    found = []
    for index in recordings:
        chunks = ChunkIndex.of_table(table_in(index))
        properties: Properties = {}
        for path in PROPERTY_PATHS:
            for at in chunks.at(path).tolist():
                message = read_message(opened, int(chunks.offsets[at]), int(chunks.sizes[at]))
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
            fields = fields_of(read_message(opened, offset, length))
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
    return entry_of(chunk_in(fields), offset, size, properties.setdefault(fields[STORE], {}))


def _part(file: Path, store: bytes, **known: Any) -> FilePart:
    application_id, recording_id = names_of(store)
    return FilePart(file=file, application_id=application_id, recording_id=recording_id, store=store, **known)
