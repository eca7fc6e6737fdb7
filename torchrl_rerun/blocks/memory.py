"""Memory of blocks: arrays of this process alone, or in files that are mapped into memory and outlive the process."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.devices import Landing
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


NamedArrays = dict[str, npt.NDArray[Any]]
"""Arrays by their names."""

Fill = Callable[[NamedArrays], None]
"""Write to new arrays, before anybody else sees them."""


class Region:
    """Some arrays that were allocated together.

    Args:
        arrays: the arrays by their names.
        name: the name of the file that they are in. Default: none.
        remove: removes that file. Default: there is none.

    Attributes:
        arrays: the arrays by their names.
        name: the name of the file that they are in; empty if they are gone with the process.
    """

    def __init__(self, arrays: NamedArrays, name: str = "", remove: Callable[[], None] | None = None) -> None:
        self.arrays = arrays
        self.name = name
        self._remove = remove

    @property
    def is_kept(self) -> bool:
        """Whether the arrays outlive the process."""
        return bool(self.name)

    def free(self) -> None:
        """Give the memory back. Those that hold the arrays may use them as before."""
        if self._remove is not None:
            self._remove()


class Record(NamedTuple):
    """A record of a journal.

    Attributes:
        about: what it is, as JSON.
        arrays: its arrays. Those of Python objects are pickled.
    """

    about: Mapping[str, Any]
    arrays: NamedArrays


class Journal(Protocol):
    """A file that records are added to, and that is emptied when they are no longer needed."""

    def append(self, records: Sequence[Record]) -> None:
        """Add records.

        Args:
            records: the records.
        """

    def restart(self, about: Mapping[str, Any]) -> None:
        """Put one record in the place of all others, at once.

        Args:
            about: what it is, as JSON.
        """

    def clear(self) -> None:
        """Forget all records."""

    def remove(self) -> None:
        """Forget all records, and remove the file."""


class Memory(Protocol):
    """A place for what waits to be written.

    Attributes:
        is_kept: whether what is in it outlives the process.
        error: why it isn't kept, although it was to be; None: no reason.
        moment: the number of frames that were copied whole.
    """

    @property
    def is_kept(self) -> bool: ...  # noqa: D102

    @property
    def error(self) -> Exception | None: ...  # noqa: D102

    @property
    def moment(self) -> int: ...  # noqa: D102

    def describe(self, said: Mapping[str, Any]) -> None:
        """Describe the recording.

        Args:
            said: the description, as JSON.
        """

    def complete(self, landings: Sequence[Landing] = ()) -> None:
        """Note that all of a frame was copied, or is on its way.

        Args:
            landings: values from accelerators on their way. Default: there are none.
        """

    def amend(self, landings: Sequence[Landing]) -> None:
        """Note that other values of the last frame are on their way from accelerators."""

    def lease(self) -> int:
        """Return a number from 1 on, higher than all before."""

    def allocate(self, shapes: Mapping[str, Shape], about: Mapping[str, Any], fill: Fill | None = None) -> Region:
        """Return new arrays, full of zeros.

        Args:
            shapes: their dtypes and shapes by their names.
            about: a description that is kept with them, as JSON.
            fill: writes to them before anybody else sees them. Default: nothing is written.
        """

    def journal(self, name: str) -> Journal:
        """Return a journal. It has a file as soon as it has a record."""

    def replace_earlier(self) -> None:
        """Remove the black box of the earlier recording that this one replaces."""

    def restore_earlier(self) -> None:
        """Put the black box of the earlier recording back, after this one was removed."""

    def remove(self) -> None:
        """Give all of it back: nothing waits any more."""


class _NoJournal:
    def append(self, records: Sequence[Record]) -> None:
        pass

    def restart(self, about: Mapping[str, Any]) -> None:
        pass

    def clear(self) -> None:
        pass

    def remove(self) -> None:
        pass


class MaxAge(NamedTuple):
    """How long frames wait before they are written though there is room for more.

    Attributes:
        kept: seconds in memory that outlives the process: only a loss of power would lose them.
        otherwise: seconds in other memory.
    """

    kept: float
    otherwise: float

    @classmethod
    def always(cls, seconds: float) -> MaxAge:
        """Return the same time for all memory."""
        return cls(seconds, seconds)

    def seconds(self, memory: Memory) -> float:
        """Return how long frames wait in some memory, as it is now."""
        return self.kept if memory.is_kept else self.otherwise


class Heap:
    """Memory of this process, which is gone with it."""

    is_kept = False
    error = None
    moment = 0

    def __init__(self) -> None:
        self._leases = 0

    def describe(self, said: Mapping[str, Any]) -> None:
        """Do nothing: no other process can read this memory."""

    def complete(self, landings: Sequence[Landing] = ()) -> None:
        """Do nothing: no other process asks which frames are whole."""

    def amend(self, landings: Sequence[Landing]) -> None:
        """Do nothing: no other process asks which frames are whole."""

    def lease(self) -> int:
        """Return a number from 1 on, higher than all before."""
        self._leases += 1
        return self._leases

    def allocate(self, shapes: Mapping[str, Shape], about: Mapping[str, Any], fill: Fill | None = None) -> Region:
        """Return new arrays. The system gives them memory when they are written to."""
        del about
        arrays: NamedArrays = {name: np.zeros(shape, dtype) for name, (dtype, shape) in shapes.items()}
        if fill is not None:
            fill(arrays)
        return Region(arrays)

    def journal(self, name: str) -> Journal:
        """Return a journal that keeps nothing."""
        del name
        return _NoJournal()

    def replace_earlier(self) -> None:
        """Do nothing: an earlier recording leaves nothing here."""

    def restore_earlier(self) -> None:
        """Do nothing: an earlier recording leaves nothing here."""

    def remove(self) -> None:
        """Do nothing: it is gone when nobody holds it."""


def reserve(handle: int, size: int) -> None:
    """Give a file its size, and all its room on the disk, so that a full disk is an error now and never a signal later.

    Raises:
        OSError: there is no room, or the file system can't reserve it.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
        return
    zeros = bytes(1 << 20)  # macOS
    while size > 0:
        size -= os.write(handle, zeros[:size])


def make_file(
    folder: int, name: str, shapes: Mapping[str, Shape], about: Mapping[str, Any], fill: Fill | None = None
) -> NamedArrays:
    """Return new arrays in a file that is mapped into memory. It gets its name when all is in it.

    Args:
        folder: the open folder that it is made in.
        name: its name.
        shapes: the dtypes and shapes of the arrays by their names.
        about: a description, as JSON.
        fill: writes to the arrays before the file gets its name. Default: they are full of zeros.

    Raises:
        OSError: the file can't be made, reserved or mapped.

    >>> import tempfile
    >>> path = tempfile.mkdtemp()
    >>> folder = os.open(path, os.O_RDONLY)
    >>> arrays = make_file(folder, "a", {"x": Shape(np.dtype(np.int64), (3,))}, {"name": "a"})
    >>> arrays["x"][:] = 1, 2, 3
    >>> about, arrays = read_file(Path(path, "a"))
    >>> about, arrays["x"].tolist()
    ({'name': 'a'}, [1, 2, 3])
    """
    layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
    at = 0
    for key, each in shapes.items():
        unit = PAGE if each.bytes >= PAGE else LINE
        at = -(-at // unit) * unit
        layout[key] = each.dtype.str, each.shape, at
        at += each.bytes
    head = json.dumps({"about": about, "arrays": layout}).encode()
    begin = _begin(len(head))
    hidden = f".{name}"
    handle = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666, dir_fd=folder)
    try:
        reserve(handle, begin + max(1, at))
        mapped = mmap.mmap(handle, begin + max(1, at))
        mapped[: len(MAGIC) + 8 + len(head)] = MAGIC + len(head).to_bytes(8, "little") + head
        arrays = _arrays_in(mapped, layout, begin)
        if fill is not None:
            fill(arrays)
        os.rename(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(hidden, dir_fd=folder)
        raise
    finally:
        os.close(handle)
    return arrays


def read_file(path: Path) -> tuple[dict[str, Any], NamedArrays]:
    """Return the description and the arrays in a file, as they are now. Its owner may write to it meanwhile.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is damaged.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is no file of arrays")
        size = int.from_bytes(file.read(8), "little")
        if len(MAGIC) + 8 + size > os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path} is damaged: its description ends behind it")
        try:
            head = json.loads(file.read(size))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return head["about"], _arrays_in(mapped, head["arrays"], _begin(size))
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error


def _begin(size: int) -> int:
    """Return where arrays begin behind a description of some bytes."""
    return -(-(len(MAGIC) + 8 + size) // PAGE) * PAGE


def _arrays_in(buffer: Any, layout: Mapping[str, Any], begin: int) -> NamedArrays:
    return {
        name: np.frombuffer(buffer, dtype, int(np.prod(shape, dtype=np.int64)), begin + at).reshape(shape)
        for name, (dtype, shape, at) in layout.items()
    }
