"""The black box: a folder beside a recording with all that waits to be written, which outlives the process.

Its files are mapped into memory. The operating system keeps their pages when the process is killed, however that happens.

- ``recording.json`` describes the recording.
- ``moment`` is the number of frames that were copied whole, values from accelerators included.
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
import platform
import shutil
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from torchrl_rerun.blocks.devices import Landing
from torchrl_rerun.blocks.memory import Heap, Journal, NamedArrays, Region, Shape, make_file
from torchrl_rerun.blocks.mirror import Mirror

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

RECORDED, BATCH = "recorded", "batch"
"""Roles of blocks: of the environments that are recorded in detail, and of the rewards of all."""


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
        moment: the number of frames that were copied whole, or are on their way from accelerators.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: Exception | None = None
        self.moment = 0
        self._heap = Heap()
        self._process = os.getpid()
        self._lock = threading.RLock()  # the writer's thread may move the folder
        self._files = 0
        self._open: list[_FileJournal] = []
        self._journals = 0
        self._moment: memoryview | None = None
        self._mirror: Mirror | None = None
        self._is_made = self._is_removed = False

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
            self._mirror = Mirror(self._publish, self._give_up)
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
            with self._lock:
                self._make()
                hidden = self.path / f".{DESCRIPTION}"
                hidden.write_text(json.dumps({"version": VERSION, "machine": MACHINE, **said}))
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
            self._is_made = True
            arrays = make_file(self.path / MOMENT, {MOMENT: Shape(np.dtype(np.int64), (1,))}, {})
            self._moment = arrays[MOMENT].data
            self._moment[0] = self.moment

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self.path / name).unlink(missing_ok=True)

    def _give_up(self, error: Exception) -> None:
        if self.error is None:
            self.error = error.with_traceback(None)  # its frames, and those before them, hold blocks

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
            if self._mirror is not None:
                self._mirror.close()
            if self._is_made:
                for journal in self._open:
                    journal.close()
                shutil.rmtree(self.path, ignore_errors=True)
                self._moment = None  # while it is mapped, its disk can't be unmounted


RECORD = struct.Struct("<4sIQ")
RECORD_MAGIC = b"rec1"


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
                    self._box._open.append(self)  # noqa: SLF001
            begin = os.fstat(self._file.fileno()).st_size
            self._write(RECORD.pack(RECORD_MAGIC, len(said), sum(map(len, held))) + said)
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
            self.close()
            with self._box._lock:  # noqa: SLF001
                self._box._open.remove(self)  # noqa: SLF001
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
