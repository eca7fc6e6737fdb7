"""The black box: a folder beside a recording with all that waits to be written, which outlives the process.

Its files are mapped into memory. The operating system keeps their pages when the process is killed, however that happens.

- ``recording.json`` describes the recording.
- ``moment`` is the number of frames that were copied whole.
- Numbered files are arrays: those of the blocks, and running returns before them.
- ``*.journal`` are records of what was taken from the blocks, but isn't in the recording yet.

The owner of the recording owns the box: it holds the lock of the recording's file. Others only read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import shutil
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.episode_notes import NOTES
from torchrl_rerun.blocks.memory import Heap, Journal, NamedArrays, Record, Region, Shape, make_file, read_file
from torchrl_rerun.blocks.object_log import logged_objects, unpickled

VERSION = 1
"""Version of black boxes. One of another version isn't read: it must be repaired by the release that made it."""

DESCRIPTION = "recording.json"

MOMENT = "moment"

RECORDED, BATCH, RETURNS = "recorded", "batch", "returns"
"""Roles of arrays: blocks of the environments that are recorded in detail, those of the rewards of all, running returns."""

TRIES = 10
"""How often a box is read anew because its owner has written a block meanwhile."""


def box_of(recording: Path) -> Path:
    """Return the path of the black box of a file, or of a folder of episodes.

    >>> str(box_of(Path("run.rrd"))), str(box_of(Path("run")))
    ('.run.rrd.black_box', 'run/.black_box')
    """
    if recording.suffix == ".rrd":
        return recording.with_name(f".{recording.name}.black_box")
    return recording / ".black_box"


class BlackBox:
    """Memory that outlives the process, in a folder beside the recording.

    The folder is made when it is needed. If a file can't be made, reserved or mapped, memory of the process serves, and
    :attr:`error` says why.

    Args:
        path: the folder. One that is there is replaced: the caller owns the recording.

    Attributes:
        path: the folder.
        error: why some memory is gone with the process; None: all is kept.
        moment: the number of frames that were copied whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        self.moment = 0
        self._heap = Heap()
        self._process = os.getpid()
        self._lock = threading.RLock()  # the writer's thread may move the folder
        self._files = 0
        self._journals = 0
        self._moment: memoryview | None = None
        self._is_removed = False

    @property
    def is_kept(self) -> bool:
        """Whether what is in it outlives the process."""
        return self.error is None and not self._is_removed

    def complete(self) -> None:
        """Note that all of a frame was copied."""
        self.moment += 1
        if self._moment is not None:
            self._moment[0] = self.moment

    def lease(self) -> int:
        """Return a number from 1 on, higher than all before."""
        return self._heap.lease()

    def describe(self, said: Mapping[str, Any]) -> None:
        """Describe the recording.

        Args:
            said: the description, as JSON.
        """
        if not self.is_kept:
            return
        try:
            with self._lock:
                self._make()
                hidden = self.path / f".{DESCRIPTION}"
                hidden.write_text(json.dumps({"version": VERSION, **said}))
                hidden.replace(self.path / DESCRIPTION)
        except OSError as error:
            self._give_up(error)

    def allocate(self, shapes: Mapping[str, Shape], about: Mapping[str, Any]) -> Region:
        """Return new arrays, full of zeros; in memory of the process if they can't be had in a file."""
        if self.is_kept:
            try:
                with self._lock:
                    self._make()
                    self._files += 1
                    name = f"{self._files:06}"
                    return Region(
                        make_file(self.path / name, shapes, about), name, functools.partial(self._remove, name)
                    )
            except OSError as error:
                self._give_up(error)
        return self._heap.allocate(shapes, about)

    def journal(self, name: str) -> Journal:
        """Return a journal. It has a file as soon as it has a record.

        Args:
            name: the beginning of its name; a number follows.
        """
        with self._lock:
            self._journals += 1
            return _FileJournal(self, f"{name}_{self._journals}.journal")

    def _make(self) -> None:
        if self._moment is None:
            shutil.rmtree(self.path, ignore_errors=True)
            self.path.mkdir()
            arrays = make_file(self.path / MOMENT, {MOMENT: Shape(np.dtype(np.int64), (1,))}, {})
            self._moment = arrays[MOMENT].data
            self._moment[0] = self.moment

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.path / name).unlink(missing_ok=True)

    def _give_up(self, error: OSError) -> None:
        if self.error is None:
            self.error = error

    def move(self, path: Path) -> None:
        """Give the folder another name: that of the file in which the recording goes on."""
        with self._lock, contextlib.suppress(OSError):
            shutil.rmtree(path, ignore_errors=True)
            self.path.rename(path)
            self.path = path

    def remove(self) -> None:
        """Remove the folder: all that was in it is written, or given up."""
        if self._process == os.getpid() and not self._is_removed:
            self._is_removed = True
            if self._moment is not None:
                shutil.rmtree(self.path, ignore_errors=True)
                self._moment = None  # while it is mapped, its disk can't be unmounted


_RECORD = struct.Struct("<4sIQ")
_RECORD_MAGIC = b"rec1"


class _FileJournal:
    """A file of records: magic, sizes of description and arrays, the description as JSON, the bytes of the arrays."""

    def __init__(self, box: BlackBox, name: str) -> None:
        self._box = box
        self._name = name
        self._file: BinaryIO | None = None

    @property
    def _path(self) -> Path:
        return self._box.path / self._name

    def append(self, about: Mapping[str, Any], arrays: NamedArrays | None = None) -> None:
        """Add a record.

        Args:
            about: what it is, as JSON.
            arrays: its arrays. Those of Python objects are pickled.
        """
        if not self._box.is_kept:
            return
        layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
        held: list[Any] = []
        for name, array in (arrays or {}).items():
            if array.dtype == object:
                data: Any = pickle.dumps([array], 5)
            else:
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            layout[name] = array.dtype.str, array.shape, len(data)
            held.append(data)
        said = json.dumps({"about": about, "arrays": layout}).encode()
        begin = 0
        try:
            if self._file is None:
                with self._box._lock:  # noqa: SLF001 - its own journal
                    self._file = self._path.open("ab", buffering=0)
            begin = os.fstat(self._file.fileno()).st_size
            self._write(_RECORD.pack(_RECORD_MAGIC, len(said), sum(map(len, held))) + said)
            for data in held:
                self._write(data)
        except OSError as error:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file.fileno(), begin)
            self._box._give_up(error)  # noqa: SLF001 - its own journal

    def _write(self, data: Any) -> None:
        assert self._file is not None, "it is open"
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def clear(self) -> None:
        """Forget all records."""
        if self._file is not None:
            os.ftruncate(self._file.fileno(), 0)

    def remove(self) -> None:
        """Forget all records, and remove the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)


# --- reading ---


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


def read_box(path: Path) -> Snapshot | None:
    """Return what is in a black box; None: there is none, or nothing in it yet. Its owner may go on meanwhile.

    What the owner takes out of it meanwhile is in the recording: read that afterwards.

    Args:
        path: the folder.

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
    """Return what differs if there is more in a black box than before.

    Args:
        path: the folder.

    Raises:
        ValueError: the box is damaged.
    """
    sizes = []
    for file in path.iterdir():
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
    while at + _RECORD.size <= len(data):
        magic, described, size = _RECORD.unpack_from(data, at)
        begin = at + _RECORD.size
        at = begin + described + size
        if magic != _RECORD_MAGIC or at > len(data):
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
