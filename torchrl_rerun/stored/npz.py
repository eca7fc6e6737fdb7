"""NumPy archives: arrays that ``np.savez`` or ``np.savez_compressed`` wrote, read from their beginnings to their ends."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.streams import Key
from torchrl_rerun.stored.columns import Column, DamagedError, Missing, too_much_for
from torchrl_rerun.stored.pieces import Stored
from torchrl_rerun.stored.trajectories import Trajectory, stored_arrays

_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    OverflowError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What a damaged or encrypted member raises, or one that was packed in an unknown way."""

_SOME_ROWS = 1024


def npz(path: Path, keys: Mapping[Key, str]) -> Stored:
    """Return the trajectories in a NumPy archive.

    Args:
        path: the archive.
        keys: names of arrays, by the keys that they are to be.

    Raises:
        ValueError: it can't be read, or holds no trajectory.
    """

    def opened() -> Generator[Trajectory]:
        try:
            archive = zipfile.ZipFile(path)
        except _UNREADABLE as error:
            raise ValueError(f"{path} looks like a NumPy archive that is damaged or cut off: {error}") from None
        with archive:
            yield Trajectory(str(path), _columns(archive), keys)

    return stored_arrays(f"{path}: NumPy arrays", path, opened, are_episodes=False)


def _columns(archive: zipfile.ZipFile) -> dict[Key, Column]:
    columns: dict[Key, Column] = {}
    for name in archive.namelist():
        if name.endswith("/"):
            continue
        called = tuple(name.removesuffix(".npy").split("/"))
        columns[called] = _column(archive, name) if name.endswith(".npy") else Missing("no NumPy array")
    return columns


def _column(archive: zipfile.ZipFile, name: str) -> Column:
    try:
        return _Member(archive, name)
    except _UNREADABLE as error:
        return Missing(str(error))


class _Member:
    """A member of an archive, which is never in memory as a whole.

    Args:
        archive: the archive.
        name: the member.

    Raises:
        ValueError: its header can't be read.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive, self._name = archive, name
        self._open()
        info = archive.getinfo(name)
        claimed = self._size(self.shape[0] if self.shape else 1)
        there = info.file_size - self._file.tell()
        self.fault: str | None = None
        is_packed = info.compress_type != zipfile.ZIP_STORED
        is_known = not self.dtype.hasobject
        if is_known and (claimed != there or too_much_for(info.file_size, info.compress_size, is_packed=is_packed)):
            self.fault = f"its header says {self.dtype} {self.shape}, {claimed:,} bytes, and {there:,} are there"

    def _open(self) -> None:
        self._file = self._archive.open(self._name)
        version = np.lib.format.read_magic(self._file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, is_fortran, self.dtype = read(self._file)
        if is_fortran and len(self.shape) > 1:
            raise ValueError("it is stored column by column: save np.ascontiguousarray(...) of it")
        self._at = 0
        self._last = np.empty((0, *self.shape[1:]), self.dtype)

    def _size(self, rows: int) -> int:
        size = rows * self.dtype.itemsize
        for each in self.shape[1:]:
            size *= each
        return size

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        begin, end, _ = rows.indices(self.shape[0])
        try:
            if begin < self._at - len(self._last):
                self._open()
            while self._at < begin:
                self._read(min(begin - self._at, _SOME_ROWS))
            known = self._last[len(self._last) - (self._at - begin) :]
            if end > self._at:
                known = np.concatenate([known, self._read(end - self._at)])
        except _UNREADABLE as error:
            raise DamagedError(str(error)) from None
        self._last = known
        return known[: end - begin]

    def _read(self, rows: int) -> npt.NDArray[Any]:
        size = self._size(rows)
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError("it ends too early")
        self._at += rows
        if self._at == self.shape[0]:
            self._file.read(1)  # at its end the checksum is looked at
        self._last = np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])
        return self._last
