"""Parts of recordings in black boxes: what a file lacks, and episodes that have no files yet."""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from torchrl_rerun.blocks.black_box import box_of
from torchrl_rerun.blocks.snapshot import TRIES, Snapshot, read_box, state_of
from torchrl_rerun.kinds.schema import PROPERTY
from torchrl_rerun.rrd.asset_files import remember_assets, remember_assets_beside
from torchrl_rerun.rrd.chunk_index import ChunkIndex
from torchrl_rerun.rrd.file_part import RECOVERED, FilePart, FileVersion, entry_of, frames_in
from torchrl_rerun.rrd.left_behind import Part, rest_of_episodes, rest_of_run
from torchrl_rerun.rrd.locks import is_locked
from torchrl_rerun.rrd.parts import Properties, episode_in


def box_beside(file: Path) -> Snapshot | None:
    """Return what is in the black box beside a file; None: nothing."""
    return read_box(box_of(file), is_in_use=is_locked(file))


def with_rest(opened: BinaryIO, file: Path, found: list[FilePart], box: Snapshot) -> list[FilePart]:
    """Return the parts in an unfinished file, together with what is in its black box."""
    ids = box.said["application_id"], box.said["recording_id"]
    part = next((part for part in found if part.recording_id == ids[1]), None)
    whole = part or _empty(file, *ids, FileVersion.of(opened))
    schema = whole.properties.get(PROPERTY, {}).get("schema")
    remember_assets([whole])
    rest = rest_of_run(box, functools.partial(frames_in, whole), schema)
    return [*(each for each in found if each is not part), _with_chunks(whole, tuple(rest))]


def _empty(file: Path, application_id: str, recording_id: str, version: FileVersion) -> FilePart:
    """Return the part of a recording in a file that has nothing of it."""
    return FilePart(
        file=file,
        application_id=application_id,
        recording_id=recording_id,
        properties={},
        is_finished=False,
        has_layout=False,
        index=ChunkIndex.of_entries([]),
        store=b"",
        version=version,
    )


def _with_chunks(part: FilePart, chunks: tuple[pa.RecordBatch, ...]) -> FilePart:
    """Return a part together with chunks that are in no file."""
    properties: Properties = {name: dict(fields) for name, fields in part.properties.items()}
    entries = [entry_of(chunk, RECOVERED + number, chunk.nbytes, properties) for number, chunk in enumerate(chunks)]
    index = part.index.with_more(ChunkIndex.of_entries(entries))
    return replace(part, properties=properties, index=index, recovered=chunks)


def episodes_in(path: Path, parts_in: Callable[[Path], list[FilePart]]) -> list[FilePart]:
    """Return the episodes in the black box of a folder, which have no files yet, or not all of their rows in one.

    Args:
        path: the box.
        parts_in: returns the parts in a file.
    """
    try:
        folder = path.parent.stat()
    except FileNotFoundError:
        return []
    # The time changes when a file of the folder gets its name, or is removed.
    state = folder.st_dev, folder.st_ino, folder.st_mtime_ns, state_of(path)
    if abs(time.time_ns() - folder.st_mtime_ns) < TICK:
        return list(episodes_left_in(path, parts_in))
    return list(_episodes_in(path, parts_in, state))


TICK = 1_000_000_000
"""Nanoseconds within which two changes of a folder may have one time."""


@functools.lru_cache(maxsize=2)  # readers come for one episode after the other
def _episodes_in(
    path: Path, parts_in: Callable[[Path], list[FilePart]], state: tuple[Any, ...]
) -> tuple[FilePart, ...]:
    del state  # which differs if there is more in the box, or in the folder
    return episodes_left_in(path, parts_in)


def episodes_left_in(path: Path, parts_in: Callable[[Path], list[FilePart]]) -> tuple[FilePart, ...]:
    """Return the episodes in the black box of a folder as they are now; see :func:`episodes_in`."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(FileNotFoundError):  # the parts of an episode are removed when it is over
            return _episodes_left_in(path, parts_in)
    return _episodes_left_in(path, parts_in)


def _episodes_left_in(path: Path, parts_in: Callable[[Path], list[FilePart]]) -> tuple[FilePart, ...]:
    version = _version_of(path)
    box = None if version is None else read_box(path, is_in_use=is_locked(path.parent))
    if version is None or box is None:
        return ()
    remember_assets_beside(path.parent, parts_in)
    there: dict[str, list[Part]] = {}
    for file in sorted(path.parent.glob("env_*_episode_*.rrd")):
        with contextlib.suppress(OSError, ValueError):  # other readers tell of it
            for part in parts_in(file):
                episode = episode_in(part.properties)
                if episode is not None:
                    there.setdefault(_name_of(file), []).append(Part(episode, part))
    application_id = box.said["application_id"]
    return tuple(
        _with_chunks(_empty(path, application_id, left.recording_id, version), tuple(left.chunks))
        for left in rest_of_episodes(box, there)
    )


def _version_of(path: Path) -> FileVersion | None:
    """Return the version of a black box; None: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return FileVersion(found.st_dev, found.st_ino, found.st_mtime_ns)


def _name_of(file: Path) -> str:
    """Return the name of the file of an episode without its suffix.

    >>> _name_of(Path("env_0_episode_000003_2.part_0.rrd")), _name_of(Path("env_0_episode_1234567.rrd"))
    ('env_0_episode_000003', 'env_0_episode_1234567')
    """
    return re.sub(r"(?<=\d)(_\d+)?(\.part_\d+)?\.rrd", "", file.name)
