"""HDF5: arrays at the root of a file, or in a group for each episode."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.streams import Key
from torchrl_rerun.stored.columns import TEXT, Column, DamagedError, Missing
from torchrl_rerun.stored.layouts import ACTION, OBSERVATION, REWARD, ROLES
from torchrl_rerun.stored.pieces import Stored, natural
from torchrl_rerun.stored.trajectories import Trajectory, stored_arrays, warn_of_left_out

if TYPE_CHECKING:
    import h5py

_UNREADABLE = (OSError, KeyError, RuntimeError, ValueError)
"""What h5py raises if a link leads nowhere, or a chunk can't be read."""


def hdf5(path: Path, keys: Mapping[Key, str]) -> Stored:
    """Return the trajectories in an HDF5 file.

    Args:
        path: the file.
        keys: names of arrays, by the keys that they are to be.

    Raises:
        ImportError: h5py isn't installed.
        ValueError: it can't be read, or holds no trajectory.
    """
    try:
        import h5py  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(f"{path} is HDF5, which needs h5py: pip install 'torchrl-rerun[hdf5]'") from error
    try:
        with h5py.File(path, "r") as file:
            groups = [group.name for group in _episodes_in(file, keys)] or ["/"]
            if groups == ["/"]:
                what, others = f"{path}: HDF5", {}
            else:
                what = f"{path}: HDF5, {len(groups):,} group{'s' * (len(groups) > 1)}"
                others = dict.fromkeys(_names_outside(file, groups), "in no episode")
    except _UNREADABLE as error:
        raise ValueError(f"{path} can't be read as HDF5: {error}") from None
    warn_of_left_out(path, others, set())

    def opened() -> Generator[Trajectory]:
        with h5py.File(path, "r") as file:
            for name in groups:
                where = str(path) if name == "/" else f"{path}{name}"
                try:
                    columns = dict(_columns(file[name]))
                except _UNREADABLE as error:
                    raise ValueError(f"{where} can't be read as HDF5: {error}") from None
                yield Trajectory(where, columns, keys)

    return stored_arrays(what, path, opened, are_episodes=groups != ["/"])


def _episodes_in(file: h5py.File, keys: Mapping[Key, str]) -> list[Any]:
    """Return the groups that hold an episode each, in the order of the numbers in their names."""
    central = {alias for role in (OBSERVATION, ACTION, REWARD) for alias in ROLES[role]}
    central |= {name.split("/")[0] for name in keys.values()}
    return sorted(_groups_with(central, file, 2, set()), key=lambda group: natural(group.name))


def _groups_with(names: set[str], group: Any, depth: int, seen: set[Any]) -> Iterator[Any]:
    """Yield a group, or those in it, that hold one of some names; none of them twice, however it is linked."""
    if _place(group) in seen:
        return
    seen.add(_place(group))
    if any(name.lower() in names or name in names for name in group):
        yield group
    elif depth:
        for _, item in _items(group):
            if _is_group(item):
                yield from _groups_with(names, item, depth - 1, seen)


def _items(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in a group, what is in the file itself before links to it. What a link misses is a :class:`Missing`."""
    import h5py  # noqa: PLC0415 - an extra

    links = {name: group.get(name, getlink=True) for name in group}
    for name, link in sorted(links.items(), key=lambda each: not isinstance(each[1], h5py.HardLink)):
        try:
            yield name, group[name]
        except _UNREADABLE:
            target = (
                f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else getattr(link, "path", name)
            )
            yield name, Missing(f"a link to {target}, which isn't there")


def _is_group(item: Any) -> bool:
    return hasattr(item, "keys")


def _place(item: Any) -> tuple[Any, Any]:
    """Return what two links to one object have in common."""
    import h5py  # noqa: PLC0415 - an extra

    info = h5py.h5o.get_info(item.id)
    return info.fileno, info.addr


def _columns(group: Any, prefix: Key = (), seen: set[Any] | None = None) -> Iterator[tuple[Key, Column]]:
    """Yield the arrays in a group and in the groups in it, each group once."""
    seen = set() if seen is None else seen
    seen.add(_place(group))
    for name, item in _items(group):
        key = (*prefix, name)
        if isinstance(item, Missing):
            yield key, item
        elif not _is_group(item):
            yield key, _Dataset(item) if hasattr(item, "chunks") else Missing("no array")
        elif _place(item) in seen:
            yield key, Missing("a link to a group that has another name")
        else:
            yield from _columns(item, key, seen)


def _names_outside(file: h5py.File, groups: Sequence[str]) -> list[str]:
    """Return the names of arrays that are in none of some groups."""
    inside = tuple(f"{group}/" for group in groups)
    names = ("/".join(key) for key, _ in _columns(file))
    return [name for name in names if not f"/{name}".startswith(inside)]


class _Dataset:
    """An array in an HDF5 file.

    Args:
        dataset: a dataset of h5py.
    """

    def __init__(self, dataset: Any) -> None:
        import h5py  # noqa: PLC0415 - an extra

        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        self._rows = dataset.asstr(errors="surrogateescape") if is_text else dataset
        self.shape: tuple[int, ...] = dataset.shape or ()
        self.dtype: np.dtype[Any] = TEXT if is_text else dataset.dtype
        self.fault = _fault(dataset)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        try:
            values: npt.NDArray[Any] = self._rows[rows]
        except _UNREADABLE as error:
            raise DamagedError(str(error)) from None
        return values


def _fault(dataset: Any) -> str | None:
    """Return why a dataset holds less than it says; HDF5 would read zeros instead."""
    if dataset.shape is None:
        return "it is empty"
    try:
        if dataset.is_virtual:
            return _missing_sources(dataset)
        if dataset.external:
            return _missing_files(dataset)
        if dataset.chunks is not None:
            chunks = math.prod(-(-rows // each) for rows, each in zip(dataset.shape, dataset.chunks, strict=True))
            there = dataset.id.get_num_chunks()
            return f"{chunks - there:,} of its {chunks:,} chunks were never written" if there < chunks else None
        claimed, there = dataset.size * dataset.id.get_type().get_size(), dataset.id.get_storage_size()
    except _UNREADABLE as error:
        return str(error)
    return f"it is to have {claimed:,} bytes, of which {there:,} were written" if there < claimed else None


def _missing_sources(dataset: Any) -> str | None:
    import h5py  # noqa: PLC0415 - an extra

    folder = Path(dataset.file.filename).parent
    for source in dataset.virtual_sources():
        if source.file_name == ".":
            is_there = source.dset_name in dataset.file
        else:
            # HDF5 looks for it beside this file, then from the working directory.
            paths = [path for path in (folder / source.file_name, Path(source.file_name)) if path.is_file()]
            is_there = bool(paths) and h5py.is_hdf5(paths[0])
            if is_there:
                with h5py.File(paths[0], "r") as other:
                    is_there = source.dset_name in other
        if not is_there:
            return f"{source.dset_name} of {source.file_name}, which is a part of it, isn't there"
    return None


def _missing_files(dataset: Any) -> str | None:
    missing = dataset.size * dataset.id.get_type().get_size()
    for name, offset, size in dataset.external:
        path = Path(name)  # HDF5 looks for it from the working directory
        there = path.stat().st_size - offset if path.is_file() else -1
        if there < min(size, missing):
            return f"{name}, which holds a part of it, {'is cut off' if path.is_file() else 'is not there'}"
        missing -= min(size, there)
    return None
