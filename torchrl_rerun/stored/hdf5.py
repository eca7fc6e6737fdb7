"""HDF5 files: arrays over time at the root, or in one group for each episode."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.keys import REWARD, Key
from torchrl_rerun.stored.array_names import ACTION, OBSERVATION, ROLES
from torchrl_rerun.stored.columns import TEXT, Column, DamagedError, MissingColumn
from torchrl_rerun.stored.segments import StoredTrajectories, split_numbers
from torchrl_rerun.stored.trajectories import Trajectory, open_arrays, warn_of_left_out

if TYPE_CHECKING:
    import h5py

_UNREADABLE = (OSError, KeyError, RuntimeError, ValueError)
"""Exceptions of h5py for a broken link or a damaged chunk."""


def open_hdf5(path: Path, keys: Mapping[Key, str]) -> StoredTrajectories:
    """Return the trajectories in an HDF5 file.

    Args:
        path: File.
        keys: Names of arrays, by the keys that they become.

    Raises:
        ImportError: h5py isn't installed.
        ValueError: The file is damaged or holds no trajectory.
    """
    try:
        import h5py  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(f"{path} is HDF5, which needs h5py: pip install 'torchrl-rerun[hdf5]'") from error
    try:
        with h5py.File(path, "r") as file:
            groups = [group.name for group in _find_episodes(file, keys)] or ["/"]
            if groups == ["/"]:
                description, others = f"{path}: HDF5", {}
            else:
                description = f"{path}: HDF5, {len(groups):,} group{'s' * (len(groups) > 1)}"
                others = dict.fromkeys(_find_names_outside(file, groups), "in no episode")
    except _UNREADABLE as error:
        raise ValueError(f"{path} can't be read as HDF5: {error}") from None
    warn_of_left_out(path, others, set())

    def read() -> Generator[Trajectory]:
        with h5py.File(path, "r") as file:
            for name in groups:
                where = str(path) if name == "/" else f"{path}{name}"
                try:
                    columns = dict(_iterate_columns(file[name]))
                except _UNREADABLE as error:
                    raise ValueError(f"{where} can't be read as HDF5: {error}") from None
                yield Trajectory(where, columns, keys)

    return open_arrays(description, path, read, are_episodes=groups != ["/"])


def _find_episodes(file: h5py.File, keys: Mapping[Key, str]) -> list[Any]:
    """Return the groups of episodes, in the order of the numbers in their names."""
    essential = {alias for role in (OBSERVATION, ACTION, REWARD) for alias in ROLES[role]}
    essential |= {name.split("/")[0] for name in keys.values()}
    return sorted(_iterate_groups(essential, file, 2, set()), key=lambda group: split_numbers(group.name))


def _iterate_groups(names: set[str], group: Any, depth: int, seen: set[Any]) -> Iterator[Any]:
    """Yield the outermost groups that hold an array of some name, each group once, however often it is linked."""
    if _identify(group) in seen:
        return
    seen.add(_identify(group))
    if any(name.lower() in names or name in names for name in group):
        yield group
    elif depth:
        for _, item in _iterate_items(group):
            if _is_group(item):
                yield from _iterate_groups(names, item, depth - 1, seen)


def _iterate_items(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a group: hard links first, then others. A broken link is a :class:`MissingColumn`."""
    import h5py  # noqa: PLC0415 - an extra

    links = {name: group.get(name, getlink=True) for name in group}
    for name, link in sorted(links.items(), key=lambda each: not isinstance(each[1], h5py.HardLink)):
        try:
            yield name, group[name]
        except _UNREADABLE:
            target = (
                f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else getattr(link, "path", name)
            )
            yield name, MissingColumn(f"a link to {target}, which doesn't exist")


def _is_group(item: Any) -> bool:
    return hasattr(item, "keys")


def _identify(item: Any) -> tuple[Any, Any]:
    """Return a value that is equal for all links to one object."""
    import h5py  # noqa: PLC0415 - an extra

    info = h5py.h5o.get_info(item.id)
    return info.fileno, info.addr


def _iterate_columns(group: Any, prefix: Key = (), seen: set[Any] | None = None) -> Iterator[tuple[Key, Column]]:
    """Yield the arrays of a group and of its groups, each group once."""
    seen = set() if seen is None else seen
    seen.add(_identify(group))
    for name, item in _iterate_items(group):
        key = (*prefix, name)
        if isinstance(item, MissingColumn):
            yield key, item
        elif not _is_group(item):
            yield key, _Dataset(item) if hasattr(item, "chunks") else MissingColumn("not an array")
        elif _identify(item) in seen:
            yield key, MissingColumn("a second link to a group")
        else:
            yield from _iterate_columns(item, key, seen)


def _find_names_outside(file: h5py.File, groups: Sequence[str]) -> list[str]:
    """Return the names of arrays outside of some groups."""
    inside = tuple(f"{group}/" for group in groups)
    names = ("/".join(key) for key, _ in _iterate_columns(file))
    return [name for name in names if not f"/{name}".startswith(inside)]


class _Dataset:
    """Column of an HDF5 file.

    Args:
        dataset: Dataset of h5py.
    """

    def __init__(self, dataset: Any) -> None:
        import h5py  # noqa: PLC0415 - an extra

        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        self._rows = dataset.asstr(errors="surrogateescape") if is_text else dataset
        self.shape: tuple[int, ...] = dataset.shape or ()
        self.dtype: np.dtype[Any] = TEXT if is_text else dataset.dtype
        self.fault = _find_fault(dataset)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        try:
            values: npt.NDArray[Any] = self._rows[rows]
        except _UNREADABLE as error:
            raise DamagedError(str(error)) from None
        return values


def _find_fault(dataset: Any) -> str | None:
    """Return the reason why a dataset lacks data that its header states. HDF5 reads zeros there, without an error."""
    if dataset.shape is None:
        return "it is empty"
    try:
        if dataset.is_virtual:
            return _find_missing_source(dataset)
        if dataset.external:
            return _find_missing_file(dataset)
        if dataset.chunks is not None:
            chunks = math.prod(-(-rows // each) for rows, each in zip(dataset.shape, dataset.chunks, strict=True))
            written = dataset.id.get_num_chunks()
            return f"{chunks - written:,} of its {chunks:,} chunks were never written" if written < chunks else None
        stated, written = dataset.size * dataset.id.get_type().get_size(), dataset.id.get_storage_size()
    except _UNREADABLE as error:
        return str(error)
    return f"its header states {stated:,} bytes, of which {written:,} were written" if written < stated else None


def _find_missing_source(dataset: Any) -> str | None:
    import h5py  # noqa: PLC0415 - an extra

    folder = Path(dataset.file.filename).parent
    for source in dataset.virtual_sources():
        if source.file_name == ".":
            is_there = source.dset_name in dataset.file
        else:
            # HDF5 resolves the name beside this file, then from the working directory.
            paths = [path for path in (folder / source.file_name, Path(source.file_name)) if path.is_file()]
            is_there = bool(paths) and h5py.is_hdf5(paths[0])
            if is_there:
                with h5py.File(paths[0], "r") as other:
                    is_there = source.dset_name in other
        if not is_there:
            return f"its part {source.dset_name} of {source.file_name} doesn't exist"
    return None


def _find_missing_file(dataset: Any) -> str | None:
    missing = dataset.size * dataset.id.get_type().get_size()
    for name, offset, size in dataset.external:
        path = Path(name)  # HDF5 resolves the name from the working directory
        there = path.stat().st_size - offset if path.is_file() else -1
        if there < min(size, missing):
            return f"its part {name} {'is cut off' if path.is_file() else 'does not exist'}"
        missing -= min(size, there)
    return None
