"""The black box: a folder beside a recording with all that waits to be written, which outlives the process.

Its files are mapped into memory. The operating system keeps their pages when the process is killed, however that happens.

- ``recording.json`` describes the recording.
- ``moment`` is the number of frames that were copied whole, values from accelerators included.
- Numbered files are arrays: those of the blocks, and running returns before them.
- ``*.journal`` are records of what was taken from the blocks, but isn't in the recording yet.

The owner of the recording owns the box: it holds the lock of the recording's file. Others only read. If somebody removes the
recording and begins another one of its name, the box at that name is the other's: so the owner reaches its own by the folder that
it has opened, and never by its name.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import shutil
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from torchrl_rerun.blocks.devices import Landing
from torchrl_rerun.blocks.memory import Fill, Heap, Journal, Record, Region, Shape, make_file
from torchrl_rerun.blocks.mirror import Mirror
from torchrl_rerun.blocks.object_log import pickled

VERSION = 1
"""Version of black boxes. One of another version isn't read: it must be repaired by the release that made it."""

DESCRIPTION = "recording.json"


def _machine() -> dict[str, str]:
    """Return the name of this machine, and an id of the time since it was started; empty if there is none."""
    booted = ""
    with contextlib.suppress(OSError):
        booted = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": platform.node(), "booted": booted}


MACHINE = _machine()
"""The machine, as a box says on which one it was made. What was not on the disk is gone when a machine starts again."""

MOMENT = "moment"

MOST_BYTES_OF_A_NAME = 255
"""Bytes of a file's name on most file systems, at the most."""

RECORDED, BATCH = "recorded", "batch"
"""Roles of blocks: of the environments that are recorded in detail, and of the rewards of all."""


def box_of(recording: Path) -> Path:
    """Return the path of the black box of a file, or of a folder of episodes.

    >>> str(box_of(Path("run.rrd"))), str(box_of(Path("run")))
    ('.run.rrd.black_box', 'run/.black_box')
    """
    if recording.suffix != ".rrd":
        return recording / ".black_box"
    if recording.is_symlink():  # the box lies beside the file, not beside the link
        recording = Path(os.path.realpath(recording))
    name = f".{recording.name}.black_box"
    if len(os.fsencode(name)) > MOST_BYTES_OF_A_NAME:
        name = f".{xxhash.xxh64_hexdigest(os.fsencode(recording.name))}.black_box"
    return recording.with_name(name)


class BlackBox:
    """Memory that outlives the process, in a folder beside the recording.

    The folder is made when it is needed. If a file can't be made, reserved or mapped, memory of the process serves, and
    :attr:`error` says why.

    Args:
        path: the folder. The caller owns the recording. A box that is there is of an earlier one, and put aside: see
            :meth:`replace_earlier`.

    Attributes:
        path: the folder.
        error: why some memory is gone with the process; None: all is kept.
        moment: the number of frames that were copied whole, or are on their way from accelerators.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: Exception | None = None
        self.moment = 0
        self._heap = Heap()
        self._process = os.getpid()
        self._lock = threading.RLock()  # the writer's thread makes journals, too
        self._files = self._journals = 0
        self._folder: int | None = None  # open
        self._moment: memoryview | None = None
        self._mirror: Mirror | None = None
        self._is_removed = self._has_put_aside = False

    @property
    def is_kept(self) -> bool:
        """Whether what is in it outlives the process."""
        return self.error is None and not self._is_removed

    def complete(self, landings: Sequence[Landing] = ()) -> None:
        """Note that all of a frame was copied, or is on its way.

        Args:
            landings: values from accelerators on their way. Default: there are none.
        """
        self.moment += 1
        if landings and self._mirror is None:
            self._mirror = Mirror(self._publish, self.give_up)
        if self._mirror is not None:
            self._mirror.put(self.moment, landings)
        elif self._moment is not None:
            self._moment[0] = self.moment

    def amend(self, landings: Sequence[Landing]) -> None:
        """Note that other values of the last frame are on their way from accelerators."""
        if landings and self._mirror is not None:
            self._mirror.put(self.moment, landings, is_late=True)

    def _publish(self, moment: int) -> None:
        """Tell how many frames are whole."""
        if self._moment is not None:
            self._moment[0] = moment

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
            self.replace(DESCRIPTION, json.dumps({"version": VERSION, "machine": MACHINE, **said}).encode())
        except OSError as error:
            self.give_up(error)

    def allocate(self, shapes: Mapping[str, Shape], about: Mapping[str, Any], fill: Fill | None = None) -> Region:
        """Return new arrays, full of zeros; in memory of the process if they can't be had in a file."""
        if self.is_kept:
            try:
                with self._lock:
                    folder = self.opened()
                    self._files += 1
                    name = f"{self._files:06}"
                arrays = make_file(folder, name, shapes, about, fill)
            except OSError as error:
                self.give_up(error)
            else:
                return Region(arrays, name, functools.partial(self.unlink, name))
        return self._heap.allocate(shapes, about, fill)

    def journal(self, name: str) -> Journal:
        """Return a journal. It has a file as soon as it has a record.

        Args:
            name: the beginning of its name; a number follows.
        """
        with self._lock:
            self._journals += 1
            return _FileJournal(self, f"{name}_{self._journals}.journal")

    def opened(self) -> int:
        """Return the open folder, made by now.

        Raises:
            OSError: it can't be made.
        """
        with self._lock:
            if self._is_removed:
                raise FileNotFoundError(f"{self.path} was removed: nothing waits any more")
            if self._folder is None:
                if self.path.is_dir():
                    shutil.rmtree(self._replaced, ignore_errors=True)
                    self.path.rename(self._replaced)
                    self._has_put_aside = True
                self.path.mkdir()
                self._folder = os.open(self.path, os.O_RDONLY)
                arrays = make_file(self._folder, MOMENT, {MOMENT: Shape(np.dtype(np.int64), (1,))}, {})
                self._moment = arrays[MOMENT].data
                self._moment[0] = self.moment
            return self._folder

    def replace(self, name: str, data: bytes) -> None:
        """Write a file whole: others see it as it was before, or all of it.

        Args:
            name: its name.
            data: what is in it.

        Raises:
            OSError: it can't be written.
        """
        folder, hidden = self.opened(), f".{name}"
        handle = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666, dir_fd=folder)
        try:
            write_all(handle, data)
        finally:
            os.close(handle)
        os.rename(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)

    def unlink(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._folder)

    def give_up(self, error: Exception) -> None:
        """Keep no more, because of an error."""
        if self.error is None:
            self.error = error.with_traceback(None)  # its frames, and those before them, hold blocks

    @property
    def _is_at_its_path(self) -> bool:
        """Whether the folder is where it was made. Somebody may have removed it, and another recording have made its own there."""
        if self._folder is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._folder), self.path.stat())
        except OSError:
            return False

    def move(self, path: Path) -> None:
        """Give the folder another name: that of the file in which the recording goes on."""
        with self._lock, contextlib.suppress(OSError):
            if self._is_at_its_path:
                shutil.rmtree(path, ignore_errors=True)
                self.path.rename(path)
            self.path = path

    @property
    def _replaced(self) -> Path:
        return self.path.with_name(f"{self.path.name}.replaced")

    def replace_earlier(self) -> None:
        """Remove the black box of the earlier recording that this one replaces."""
        shutil.rmtree(self._replaced, ignore_errors=True)

    def restore_earlier(self) -> None:
        """Put the black box of the earlier recording back, after this one was removed."""
        if self._has_put_aside:
            with contextlib.suppress(OSError):
                self._replaced.rename(self.path)

    def remove(self) -> None:
        """Remove the folder: all that was in it is written, or given up."""
        if self._process != os.getpid() or self._is_removed:
            return
        self._is_removed = True
        if self._mirror is not None:
            self._mirror.close()
        with self._lock:
            folder, self._moment = self._folder, None  # while it is mapped, its disk can't be unmounted
            if folder is None:
                return
            for name in os.listdir(folder):  # noqa: PTH208 - paths have no open folders
                self.unlink(name)
            if self._is_at_its_path:
                with contextlib.suppress(OSError):
                    self.path.rmdir()
            self._folder = None
            os.close(folder)


RECORD = struct.Struct("<4sIQ")
RECORD_MAGIC = b"rec1"


class _FileJournal:
    """A file of records: magic, sizes of description and arrays, the description as JSON, the bytes of the arrays.

    There may be thousands of journals, of episodes that wait. So none keeps its file open.
    """

    def __init__(self, box: BlackBox, name: str) -> None:
        self._box = box
        self._name = name
        self._has_file = False

    def append(self, records: Sequence[Record]) -> None:
        """Add records.

        Args:
            records: the records.
        """
        if not self._box.is_kept:
            return
        try:
            handle = self._open(os.O_CREAT | os.O_APPEND)
        except OSError as error:
            self._box.give_up(error)
            return
        begin = os.fstat(handle).st_size
        try:
            write_all(handle, b"".join(part for record in records for part in _bytes_of(record)))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, begin)
            self._box.give_up(error)
        finally:
            os.close(handle)

    def restart(self, about: Mapping[str, Any]) -> None:
        """Put one record in the place of all others, at once.

        Args:
            about: what it is, as JSON.
        """
        if not self._box.is_kept:
            return
        try:
            self._box.replace(self._name, b"".join(_bytes_of(Record(about, {}))))
            self._has_file = True
        except OSError as error:
            self._box.give_up(error)

    def clear(self) -> None:
        """Forget all records."""
        if self._has_file:
            with contextlib.suppress(OSError):
                os.close(self._open(os.O_TRUNC))

    def remove(self) -> None:
        """Forget all records, and remove the file."""
        if self._has_file:
            self._has_file = False
            self._box.unlink(self._name)

    def _open(self, flags: int) -> int:
        handle = os.open(self._name, os.O_WRONLY | flags, 0o666, dir_fd=self._box.opened())
        self._has_file = True
        return handle


def _bytes_of(record: Record) -> Iterator[Any]:
    """Yield the bytes of a record, in parts."""
    layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
    held: list[Any] = []
    for name, array in record.arrays.items():
        if array.dtype == object:
            data: Any = pickled([array])
        else:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        layout[name] = array.dtype.str, array.shape, len(data)
        held.append(data)
    said = json.dumps({"about": record.about, "arrays": layout}).encode()
    yield RECORD.pack(RECORD_MAGIC, len(said), sum(map(len, held))) + said
    yield from held


def write_all(handle: int, data: Any) -> None:
    """Write all bytes to an open file.

    Raises:
        OSError: they can't be written.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
