"""What is in a black box at a moment, read by anybody. Its owner may go on meanwhile, and isn't disturbed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchrl_rerun.blocks.black_box import DESCRIPTION, MACHINE, MOMENT, RECORD, RECORD_MAGIC, VERSION
from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.episode_notes import NOTES
from torchrl_rerun.blocks.memory import NamedArrays, Record, read_file
from torchrl_rerun.blocks.object_log import logged_objects, unpickled
from torchrl_rerun.blocks.returns import RETURNS
from torchrl_rerun.errors import warn
from torchrl_rerun.paths import format_path

TRIES = 10
"""How often a box is read anew because its owner has written a block meanwhile."""


class Snapshot(NamedTuple):
    """What is in a black box at a moment.

    Attributes:
        said: the description of the recording.
        moment: the number of frames that were copied whole.
        blocks: the blocks that aren't written, with their roles, in the order in which they were begun.
        journals: the records of each journal that has any, in order, by their names.
        others: other arrays, with what they are about.
    """

    said: dict[str, Any]
    moment: int
    blocks: list[tuple[str, Block]]
    journals: dict[str, list[Record]]
    others: list[Record]


def _why_incomplete(machine: Mapping[str, str], *, is_in_use: bool) -> str | None:
    """Return why not all pages of a box may be here, as a clause; None: all are.

    The pages come to the disk, and to other machines, in any order: what is there may never have been true.

    Args:
        machine: the machine that it was made on.
        is_in_use: whether its owner is recording.
    """
    if machine["booted"] == MACHINE["booted"] or not machine["booted"]:
        return None  # a container may have a name of its own
    if machine["host"] == MACHINE["host"]:
        return "the machine was started again since, and not all of it may have been on the disk"
    return f"it is being written on {machine['host']}, and not all of it may be here yet" if is_in_use else None


def read_box(path: Path, *, is_in_use: bool) -> Snapshot | None:
    """Return what is in a black box; None: there is none, or nothing in it yet. Its owner may go on meanwhile.

    What the owner takes out of it meanwhile is in the recording: read that afterwards.

    Args:
        path: the folder.
        is_in_use: whether its owner is recording.

    Raises:
        ValueError: it is damaged, or of another version.
    """
    for _ in range(TRIES):
        try:
            said = json.loads((path / DESCRIPTION).read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise ValueError(f"{path / DESCRIPTION} is damaged: {error}") from error
        if said.get("version") != VERSION:
            raise ValueError(f"{path} is of version {said.get('version')}, and this release reads version {VERSION}")
        if why := _why_incomplete(said["machine"], is_in_use=is_in_use):
            warn(f"what is in {format_path(path)} is left out: {why}", RuntimeWarning)
            return None
        with contextlib.suppress(FileNotFoundError):  # the box was removed meanwhile
            found = _read(path, said)
            if found is not None:
                return found
    return Snapshot(said, _moment_of(path), [], dict(_journals(path)), [])


def _read(path: Path, said: dict[str, Any]) -> Snapshot | None:
    """Return what is in a box; None: a block was written and used again meanwhile."""
    moment = _moment_of(path)
    files: dict[str, Record] = {}
    for file in sorted(path.glob("[0-9]*")):
        with contextlib.suppress(FileNotFoundError):  # its block isn't needed any more
            files[file.name] = Record(*read_file(file))
    areas: dict[str, list[Record]] = {}
    for each in files.values():
        if "objects_of" in each.about:
            areas.setdefault(each.about["objects_of"], []).append(each)
    others = [
        Record(each.about, {key: np.array(array) for key, array in each.arrays.items()})
        for each in files.values()
        if each.about.get("role") in (RETURNS, NOTES)
    ]
    blocks: list[tuple[str, Block]] = []
    for name, (about, arrays) in files.items():
        if "groups" not in about:
            continue
        objects = [
            each.arrays["objects"] for each in sorted(areas.get(name, ()), key=lambda each: each.about["number"])
        ]
        block = Block.copied(about, arrays, moment)
        if block is None:
            continue
        for area in objects:
            for logged in logged_objects(area, len(block.events)):
                block.put_objects(*logged)
        if not block.is_as_in(arrays):
            return None
        blocks.append((about["role"], block))
    blocks.sort(key=lambda each: each[1].lease)
    return Snapshot(said, moment, blocks, dict(_journals(path)), others)


def _moment_of(path: Path) -> int:
    try:
        return int(read_file(path / MOMENT)[1][MOMENT][0])
    except FileNotFoundError:
        return 0


def state_of(path: Path) -> tuple[Any, ...]:
    """Return what differs if there is more in a black box than before; nothing if there is no box.

    Args:
        path: the folder.

    Raises:
        ValueError: the box is damaged.
    """
    sizes = []
    try:
        files = list(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # its owner has finished the recording
        return ()
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            sizes.append((file.name, file.stat().st_ino, file.stat().st_size))
    return _moment_of(path), *sorted(sizes)


def _journals(path: Path) -> Iterator[tuple[str, list[Record]]]:
    for file in sorted(path.glob("*.journal")):
        with contextlib.suppress(FileNotFoundError):
            records = list(_records(file.read_bytes()))
            if records:
                yield file.name, records


def _records(data: bytes) -> Iterator[Record]:
    """Yield the whole records of a journal."""
    at = 0
    while at + RECORD.size <= len(data):
        magic, described, size = RECORD.unpack_from(data, at)
        begin = at + RECORD.size
        at = begin + described + size
        if magic != RECORD_MAGIC or at > len(data):
            return
        said = json.loads(data[begin : begin + described])
        arrays: NamedArrays = {}
        end = begin + described
        for name, (dtype, shape, length) in said["arrays"].items():
            part = data[end : end + length]
            end += length
            if np.dtype(dtype) == object:
                [arrays[name]] = unpickled(part)
            else:
                arrays[name] = np.frombuffer(part, dtype).reshape(shape)
        yield Record(said["about"], arrays)
