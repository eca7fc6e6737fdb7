"""Memory of blocks: arrays of this process alone, or in files that are mapped into memory and outlive the process."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.streams import PAGE

MAGIC = b"rlblack1"
"""The first bytes of a file of arrays."""

LINE = 64
"""Bytes of a line of the processor's cache, at a multiple of which each array begins."""


class Shape(NamedTuple):
    """The dtype and the shape of an array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the array."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


Arrays = dict[str, npt.NDArray[Any]]
"""Arrays by their names."""


class Region(Protocol):
    """Some arrays that were allocated together.

    Attributes:
        arrays: the arrays by their names. Their contents are arbitrary at first.
    """

    @property
    def arrays(self) -> Arrays: ...  # noqa: D102

    def free(self) -> None:
        """Give the memory back. The arrays may still be read, by those that hold them."""


class Memory(Protocol):
    """A place for arrays."""

    def allocate(self, shapes: Mapping[str, Shape], about: Mapping[str, Any]) -> Region:
        """Return new arrays.

        Args:
            shapes: their dtypes and shapes by their names.
            about: a description that is kept with them, as JSON.

        Raises:
            OSError: there is no room for them.
        """


@dataclass
class HeapRegion:
    """Arrays of this process."""

    arrays: Arrays

    def free(self) -> None:
        """Forget the arrays."""
        self.arrays = {}


class Heap:
    """Memory of this process, which is gone with it."""

    def allocate(self, shapes: Mapping[str, Shape], about: Mapping[str, Any]) -> HeapRegion:
        """Return new arrays. The system gives them memory when they are written to."""
        del about
        return HeapRegion({name: np.empty(shape, dtype) for name, (dtype, shape) in shapes.items()})


@dataclass
class MappedRegion:
    """Arrays in a file that is mapped into memory.

    Attributes:
        arrays: the arrays by their names.
        path: the file.
    """

    arrays: Arrays
    path: Path

    def free(self) -> None:
        """Remove the file. The arrays stay mapped for those that hold them."""
        self.arrays = {}
        self.path.unlink(missing_ok=True)


@dataclass
class MappedFolder:
    """A folder of files that are mapped into memory, and which the system keeps when the process is killed.

    Each file is reserved in full when it is made. So a full disk is an error then, and never a signal (SIGBUS) later.

    Args:
        path: the folder. It is made with the first file.

    >>> import tempfile
    >>> memory = MappedFolder(Path(tempfile.mkdtemp(), "box"))
    >>> region = memory.allocate({"x": Shape(np.dtype(np.int64), (3,))}, {"name": "a"})
    >>> region.arrays["x"][:] = 1, 2, 3
    >>> about, arrays = read_arrays(region.path)
    >>> about, arrays["x"].tolist()
    ({'name': 'a'}, [1, 2, 3])
    """

    path: Path
    _count: int = field(default=0, init=False)

    def allocate(self, shapes: Mapping[str, Shape], about: Mapping[str, Any]) -> MappedRegion:
        """Return new arrays in a file of their own.

        Raises:
            OSError: the file can't be made, reserved or mapped.
        """
        layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
        at = 0
        for name, each in shapes.items():
            unit = PAGE if each.bytes >= PAGE else LINE
            at = -(-at // unit) * unit
            layout[name] = each.dtype.str, each.shape, at
            at += each.bytes
        head = json.dumps({"about": about, "arrays": layout}).encode()
        begin = -(-(len(MAGIC) + 8 + len(head)) // PAGE) * PAGE
        self.path.mkdir(exist_ok=True)
        path = self.path / f"{self._count:06}"
        self._count += 1
        hidden = path.with_suffix(".new")
        handle = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _reserve(handle, begin + max(1, at))
            mapped = mmap.mmap(handle, begin + max(1, at))
            mapped[: len(MAGIC) + 8 + len(head)] = MAGIC + len(head).to_bytes(8, "little") + head
            hidden.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                hidden.unlink()
            raise
        finally:
            os.close(handle)
        return MappedRegion(_arrays_in(mapped, layout, begin), path)


def _reserve(handle: int, size: int) -> None:
    """Give a file its size, and all its room on the disk."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
        return
    zeros = bytes(1 << 20)  # macOS
    while size > 0:
        size -= os.write(handle, zeros[:size])


def _arrays_in(buffer: Any, layout: Mapping[str, Any], begin: int) -> Arrays:
    return {
        name: np.frombuffer(buffer, dtype, int(np.prod(shape, dtype=np.int64)), begin + at).reshape(shape)
        for name, (dtype, shape, at) in layout.items()
    }


def read_arrays(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Return the description and the arrays in a file, as they are now, read-only. Its owner may write to it meanwhile.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is damaged.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is no file of arrays")
        size = int.from_bytes(file.read(8), "little")
        whole = os.fstat(file.fileno()).st_size
        if size > whole:
            raise ValueError(f"{path} is damaged: its description ends behind it")
        try:
            head = json.loads(file.read(size))
            begin = -(-(len(MAGIC) + 8 + size) // PAGE) * PAGE
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return head["about"], _arrays_in(mapped, head["arrays"], begin)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
