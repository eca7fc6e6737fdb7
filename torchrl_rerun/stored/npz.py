"""NumPy archives of ``np.savez`` and ``np.savez_compressed``, read row by row and never as a whole."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.stored.columns import Column, DamagedError, MissingColumn, exceeds_packed_size
from torchrl_rerun.stored.segments import StoredTrajectories
from torchrl_rerun.stored.trajectories import Trajectory, open_arrays

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
"""Exceptions of ``zipfile`` and NumPy for a member that is damaged, encrypted, or of an unknown compression."""

_ROWS_AT_ONCE = 1024


def open_npz(path: Path, keys: Mapping[Key, str]) -> StoredTrajectories:
    """Return the trajectories in a NumPy archive.

    Args:
        path: Archive.
        keys: Names of arrays, by the keys that they become.

    Raises:
        ValueError: The archive is damaged or holds no trajectory.
    """

    def read() -> Generator[Trajectory]:
        try:
            archive = zipfile.ZipFile(path)
        except _UNREADABLE as error:
            raise ValueError(f"{path} looks like a NumPy archive that is damaged or cut off: {error}") from None
        with archive:
            yield Trajectory(str(path), _open_columns(archive), keys)

    return open_arrays(f"{path}: NumPy arrays", path, read, are_episodes=False)


def _open_columns(archive: zipfile.ZipFile) -> dict[Key, Column]:
    columns: dict[Key, Column] = {}
    for name in archive.namelist():
        if name.endswith("/"):
            continue
        key = tuple(name.removesuffix(".npy").split("/"))
        columns[key] = _open_column(archive, name) if name.endswith(".npy") else MissingColumn("not a NumPy array")
    return columns


def _open_column(archive: zipfile.ZipFile, name: str) -> Column:
    try:
        return _Member(archive, name)
    except _UNREADABLE as error:
        return MissingColumn(str(error))


class _Member:
    """Column of a NumPy archive.

    Args:
        archive: Archive.
        name: Name of the member.

    Raises:
        ValueError: The member's header can't be read.
    """

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive, self._name = archive, name
        self._open()
        info = archive.getinfo(name)
        stated = self._count_bytes(self.shape[0] if self.shape else 1)
        stored = info.file_size - self._file.tell()
        self.fault: str | None = None
        is_packed = info.compress_type != zipfile.ZIP_STORED
        is_known = not self.dtype.hasobject
        if is_known and (
            stated != stored or exceeds_packed_size(info.file_size, info.compress_size, is_packed=is_packed)
        ):
            self.fault = (
                f"its header states {self.dtype} {self.shape}, {stated:,} bytes, of which {stored:,} are stored"
            )

    def _open(self) -> None:
        self._file = self._archive.open(self._name)
        version = np.lib.format.read_magic(self._file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, is_fortran, self.dtype = read(self._file)
        if is_fortran and len(self.shape) > 1:
            raise ValueError("its order is Fortran's: save np.ascontiguousarray(...) of it")
        self._at = 0
        self._last = np.empty((0, *self.shape[1:]), self.dtype)

    def _count_bytes(self, rows: int) -> int:
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
                self._read(min(begin - self._at, _ROWS_AT_ONCE))
            known = self._last[len(self._last) - (self._at - begin) :]
            if end > self._at:
                known = np.concatenate([known, self._read(end - self._at)])
        except _UNREADABLE as error:
            raise DamagedError(str(error)) from None
        self._last = known
        return known[: end - begin]

    def _read(self, rows: int) -> npt.NDArray[Any]:
        size = self._count_bytes(rows)
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError("it is cut off")
        self._at += rows
        if self._at == self.shape[0]:
            self._file.read(1)  # zipfile verifies the checksum at the end
        self._last = np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])
        return self._last
