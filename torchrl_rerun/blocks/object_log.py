"""Python objects of a block, copied to where they outlive the process: texts, and arrays of shapes of their own.

Each frame's objects of a group are an entry: four int64, which are the number of the event, the group, the slot and the size
of what follows; then the objects by ``pickle``, of which nothing is made but plain values and NumPy arrays when they are read.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.memory import Memory, Region, Shape
from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.objects import MISSING, Lost

AREA_BYTES = 1 << 18
"""Bytes of the first area for objects. Each further one has twice as many, or as many as an entry needs."""

_ENTRY = struct.Struct("<4q")


class ObjectLog:
    """The objects of the frames in a block, in areas that are reserved when they are needed.

    Args:
        memory: where the areas are; if it isn't kept, nothing is copied.
        block: the memory of the block.
    """

    def __init__(self, memory: Memory, block: Region) -> None:
        self._memory = memory
        self._block = block
        self._areas: list[_Area] = []
        self._entries: list[_Place] = []

    def append(self, event: int, group: int, slot: int, arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Copy objects.

        Args:
            event: the number of the event in the block.
            group: the number of the group of streams.
            slot: the group's slot.
            arrays: object arrays ``[envs, ...]``, one for each of its streams that are of objects.
        """
        if not self._block.is_kept:
            return
        data = pickled(arrays)
        size = _ENTRY.size + len(data)
        if not self._areas or self._areas[-1].room(self._end) < size:
            region = self._memory.allocate(
                {"objects": Shape(np.dtype(np.uint8), (max(size + _ENTRY.size, AREA_BYTES << len(self._areas)),))},
                {"objects_of": self._block.name, "number": len(self._areas)},
            )
            if not region.is_kept:
                return  # these will be missing if the process is killed
            self._areas.append(_Area(region, region.arrays["objects"].data))
            at = 0
        else:
            at = self._end
        area = self._areas[-1]
        area.bytes[at + _ENTRY.size : at + size] = data
        if area.room(at + size) >= _ENTRY.size:
            _ENTRY.pack_into(area.bytes, at + size, 0, 0, 0, 0)
        _ENTRY.pack_into(area.bytes, at, event, group, slot, len(data))
        self._entries.append(_Place(event, len(self._areas) - 1, at, at + size))

    @property
    def _end(self) -> int:
        """Where the next entry begins in the last area."""
        last = self._entries[-1] if self._entries else None
        return last.end if last is not None and last.area == len(self._areas) - 1 else 0

    def drop_after(self, event: int) -> None:
        """Forget the objects of an event and of those after it.

        Args:
            event: the number of the event.
        """
        while self._entries and self._entries[-1].event >= event:
            place = self._entries.pop()
            _ENTRY.pack_into(self._areas[place.area].bytes, place.begin, 0, 0, 0, 0)

    def clear(self) -> None:
        """Forget all objects, and give all areas back but the first."""
        self.drop_after(0)
        for area in self._areas[1:]:
            area.region.free()
        del self._areas[1:]

    def free(self) -> None:
        """Give all areas back."""
        for area in self._areas:
            area.region.free()
        self._areas.clear()
        self._entries.clear()


def pickled(arrays: Sequence[npt.NDArray[Any]]) -> bytes:
    """Return object arrays as bytes that :func:`unpickled` takes. A :class:`~torchrl_rerun.kinds.objects.Lost` stands for what it
    wouldn't take.

    Args:
        arrays: the arrays.

    >>> [kept] = unpickled(pickled([np.array(["a", print, MISSING], object)]))
    >>> kept[0], kept[1].what, kept[2] is MISSING
    ('a', 'builtin_function_or_method', True)
    """
    out = io.BytesIO()
    _Pickler(out, 5).dump(list(arrays))
    return out.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Called for all but plain values of Python, and for the functions and classes that arrays are made of."""
        if isinstance(obj, np.ndarray | np.generic | np.dtype | Lost | pickle.PickleBuffer) or (
            (getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)) in _HARMLESS
        ):
            return NotImplemented
        return Lost, (type(obj).__name__,)


class _Area(NamedTuple):
    region: Region
    bytes: memoryview

    def room(self, at: int) -> int:
        return len(self.bytes) - at


class _Place(NamedTuple):
    """Where an entry is."""

    event: int
    area: int
    begin: int
    end: int


class LoggedObjects(NamedTuple):
    """The objects of a frame.

    Attributes:
        group: the number of the group of streams.
        slot: the group's slot.
        arrays: object arrays ``[envs, ...]``, one for each of its streams that are of objects.
    """

    group: int
    slot: int
    arrays: list[npt.NDArray[Any]]


def logged_objects(area: npt.NDArray[np.uint8], events: int) -> Iterator[LoggedObjects]:
    """Yield the objects in an area.

    Args:
        area: the area.
        events: number of events of the block that count.

    Objects of another kind than are ever logged are left out, with a warning.
    """
    data, at = area.data, 0
    while at + _ENTRY.size <= len(data):
        event, group, slot, size = _ENTRY.unpack_from(data, at)
        begin = at + _ENTRY.size
        if not 0 < size <= len(data) - begin or event >= events:
            return
        at = begin + size
        try:
            yield LoggedObjects(group, slot, unpickled(bytes(data[begin:at])))
        except ValueError as error:
            warn(f"some objects are left out: {error}", RuntimeWarning)


def unpickled(data: bytes) -> list[npt.NDArray[Any]]:
    """Return what was pickled, if it is plain values and NumPy arrays. No code that a file names is run.

    Raises:
        ValueError: it is something else.

    >>> unpickled(pickle.dumps([np.array(["a", None], object), np.ones(1)]))
    [array(['a', None], dtype=object), array([1.])]
    >>> unpickled(pickle.dumps(print))
    Traceback (most recent call last):
    ...
    ValueError: a black box is damaged: builtins.print is no plain value
    """
    try:
        found: list[npt.NDArray[Any]] = _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # of damaged bytes, any
        raise ValueError(f"a black box is damaged: {error}") from error
    return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torchrl_rerun.kinds.objects", "MISSING"):
            return MISSING
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        raise ValueError(f"{module}.{name} is no plain value")


_HARMLESS = {
    ("torchrl_rerun.kinds.objects", "Lost"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}
"""What pickled NumPy arrays and numbers name."""
