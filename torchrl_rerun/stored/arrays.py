"""Stored arrays: trajectories as named arrays over time, in HDF5 or ``.npz`` files, or in memory."""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict

from torchrl_rerun.endings import FLAGS
from torchrl_rerun.stored.pieces import Piece, Stored, filled_like, spans
from torchrl_rerun.streams import Key, name_of
from torchrl_rerun.warning import warn

if TYPE_CHECKING:
    import h5py

_NEXT, _EPISODE = "next_observation", "episode"
_ALIASES = {
    "observation": ("observations", "obs", "states", "state"),
    _NEXT: ("next_observations", "next_obs", "next_states", "next_state"),
    "action": ("actions", "acts", "act"),
    "reward": ("rewards", "rews", "rew"),
    "terminated": ("terminations", "terminals", "terminal"),
    "truncated": ("truncations", "timeouts", "timeout"),
    "done": ("dones",),
    _EPISODE: ("episodes", "episode_id", "episode_ids", "traj_ids", "trajectory_ids"),
}
_ROLES = {alias: role for role, aliases in _ALIASES.items() for alias in (role, *aliases)}
_CENTRAL = ("observation", "action", "reward")


class Column(Protocol):
    """An array that may lie on the disk."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class Trajectory:
    """Arrays over time, of one episode or of several one after the other.

    Attributes:
        what: where they are.
        columns: the arrays, by what they were called.
        keys: what is meant by other names than the usual ones: the names of the arrays, by key.
        seed: of the first episode, if it is known.
    """

    what: str
    columns: Mapping[Key, Column]
    keys: Mapping[Key, str] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        there = {"/".join(name) for name in self.columns}
        for key, name in self.keys.items():
            if not any(each == name or each.startswith(f"{name}/") for each in there):
                raise ValueError(
                    f"{self.what} has no array {name!r} to be {name_of(key)}, but {', '.join(sorted(there))}"
                )
        if not any(key[0] in _CENTRAL for key in map(self._key, self.columns)):
            raise ValueError(
                f"{self.what} holds arrays called {', '.join(sorted(there)) or 'nothing'}, none of which is known to be "
                "observations, actions or rewards: say which is, as in --key observation=NAME"
            )

    def _key(self, name: Key) -> Key:
        """The key of an array."""
        for key, given in self.keys.items():
            parts = tuple(given.split("/"))
            if name[: len(parts)] == parts:
                return (*key, *name[len(parts) :])
        return (_ROLES.get(name[0].lower(), name[0]), *name[1:])

    @property
    def length(self) -> int:
        """Its steps."""
        named = {self._key(name): column for name, column in self.columns.items()}
        for role in ("action", "reward", *FLAGS, _NEXT):
            found = [column.shape[0] for key, column in named.items() if key[0] == role and column.shape]
            if found:
                return int(found[0])
        return max(0, max(int(column.shape[0]) for column in named.values() if column.shape) - 1)

    def pieces(self) -> Iterator[Piece]:
        """Its steps, in TorchRL's form: one environment's, one episode after the other."""
        length = self.length
        columns = self._usable(length)
        flags: dict[Key, npt.NDArray[np.bool_]] = {
            key: _as_flags(columns.pop(key)[:length]) for key in [(name,) for name in FLAGS] if key in columns
        }
        if flags and ("done",) not in flags:
            flags["done",] = np.logical_or.reduce(list(flags.values()))
        ends = np.zeros(length, bool)
        for values in flags.values():
            ends |= values.reshape(length, -1).any(axis=1)
        numbers = columns.pop((_EPISODE,), None)
        if numbers is not None:
            ids = np.asarray(numbers[:length]).reshape(length, -1)
            ends[:-1] |= (ids[1:] != ids[:-1]).any(axis=1)
        bytes_per_moment = 2 * sum(_row_bytes(column) for column in columns.values())
        starts = [0, *(np.flatnonzero(ends[:-1]) + 1), length]
        for begin, end in itertools.pairwise(starts):
            for at, until in spans(begin, end, bytes_per_moment):
                steps = _steps(columns, flags, at, until, length, is_end=until == end)
                yield Piece(steps, np.array([at == begin]), [self.seed if at == 0 else None])

    @property
    def taken_for(self) -> dict[str, Key]:
        """The keys that its arrays become, by their names; those that are left out aren't there."""
        length = self.length
        keys = {name: self._key(name) for name, column in self.columns.items() if _is_usable(column, length)}
        return {
            "/".join(name): ("next", "observation", *key[1:]) if key[0] == _NEXT else key for name, key in keys.items()
        }

    def _usable(self, length: int) -> dict[Key, Column]:
        usable: dict[Key, Column] = {}
        left_out = []
        for name, column in self.columns.items():
            if _is_usable(column, length):
                usable[self._key(name)] = column
            else:
                left_out.append(f"{'/'.join(name)} ({column.dtype} {tuple(column.shape)})")
        if left_out:
            warn(f"{self.what}: left out {', '.join(left_out)}: not numbers for each of {length:,} steps")
        return usable


def _is_usable(column: Column, length: int) -> bool:
    return column.dtype.kind in "biuf" and bool(column.shape) and column.shape[0] in {length, length + 1}


def _steps(
    columns: Mapping[Key, Column],
    flags: Mapping[Key, npt.NDArray[np.bool_]],
    at: int,
    until: int,
    length: int,
    *,
    is_end: bool,
) -> TensorDict:
    """Some consecutive steps of one episode.

    What its last step led to may not be stored: that is NaN then, or 0 where there is no NaN.
    """
    root, following = TensorDict(batch_size=[until - at]), TensorDict(batch_size=[until - at])
    has_next = {key[1:] for key in columns if key[0] == _NEXT}
    for key, column in columns.items():
        is_longer = column.shape[0] == length + 1
        if key[0] == "reward":
            following.set(key, _column(_tensor(column[at:until])))
        elif key[0] == _NEXT:
            following.set(("observation", *key[1:]), _tensor(column[at:until]))
        elif key[0] == "observation" or is_longer:
            knows_last = (is_longer and until == length) or not is_end
            rows = _tensor(column[at : until + knows_last])
            root.set(key, rows[: until - at])
            if key[0] != "observation" or key[1:] not in has_next:
                following.set(key, rows[1:] if knows_last else torch.cat([rows[1:], filled_like(rows[-1:])]))
        else:
            root.set(key, _tensor(column[at:until]))
    for key, values in flags.items():
        following.set(key, _column(torch.from_numpy(values[at:until])))
        before = torch.from_numpy(values[at:until]).roll(1, 0)
        before[0] = False
        root.set(key, _column(before))
    return root.set("next", following)


def _as_flags(values: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(values).astype(bool)


def _tensor(values: Any) -> torch.Tensor:
    array = np.ascontiguousarray(values)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _column(values: torch.Tensor) -> torch.Tensor:
    """Rewards and flags ``[time, 1]``, as TorchRL has them."""
    return values.unsqueeze(-1) if values.ndim == 1 else values


def _row_bytes(column: Column) -> int:
    return column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=np.int64))


def stored_as(
    what: str, trajectories: Sequence[Callable[[], Trajectory]], lengths: Sequence[int], **known: Any
) -> Stored:
    """Trajectories, one after the other.

    Args:
        what: what they are stored as.
        trajectories: open them.
        lengths: their steps.
        known: what else is known of them.
    """

    def pieces() -> Iterator[Piece]:
        for each in trajectories:
            yield from each().pieces()

    return Stored(what, sum(lengths), pieces, **known)


# --- .npz ---


def npz(path: Path, keys: Mapping[Key, str]) -> Stored:
    """Arrays that ``np.savez`` or ``np.savez_compressed`` wrote.

    Raises:
        ValueError: they can't be read, or are no trajectory.
    """

    def opened() -> Trajectory:
        archive = zipfile.ZipFile(path)
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        columns = {tuple(name.removesuffix(".npy").split("/")): _Member(archive, name) for name in members}
        return Trajectory(str(path), columns, keys)

    arrays = opened()
    return stored_as(f"{path}: NumPy arrays", [opened], [arrays.length], arrays=arrays.taken_for)


class _Member:
    """An array in a zip file, read from its beginning to its end: so it is never in memory as a whole."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive, self._name = archive, name
        self._open()

    def _open(self) -> None:
        self._file = self._archive.open(self._name)
        version = np.lib.format.read_magic(self._file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, is_fortran, self.dtype = read(self._file)
        if self.dtype.hasobject:
            raise ValueError(
                f"{self._archive.filename} holds Python objects under {self._name.removesuffix('.npy')!r}, and is refused: "
                "a stored rollout is data, never code"
            )
        if is_fortran and len(self.shape) > 1:
            raise ValueError(
                f"{self._archive.filename}: {self._name.removesuffix('.npy')!r} is stored column by column, and can't be "
                "read step by step: save np.ascontiguousarray(...) of it"
            )
        self._at = 0
        self._last = np.empty((0, *self.shape[1:]), self.dtype)

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        begin, end, _ = rows.indices(self.shape[0])
        if begin < self._at - len(self._last):
            self._open()
        while self._at < begin:
            self._read(min(begin - self._at, 1024))
        known = self._last[len(self._last) - (self._at - begin) :]
        if end > self._at:
            known = np.concatenate([known, self._read(end - self._at)])
        self._last = known
        return known[: end - begin]

    def _read(self, count: int) -> npt.NDArray[Any]:
        size = count * self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError(f"{self._archive.filename}: {self._name!r} ends too early")
        self._at += count
        self._last = np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
        return self._last


# --- HDF5 ---


def hdf5(path: Path, keys: Mapping[Key, str]) -> Stored:
    """Arrays in an HDF5 file: at its root, or a group for each episode.

    Raises:
        ImportError: h5py isn't installed.
        ValueError: they can't be read, or are no trajectory.
    """
    try:
        import h5py  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(f"{path} is HDF5, which needs h5py: pip install 'torchrl-rerun[hdf5]'") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} can't be read as HDF5: {error}") from None
    groups = _episodes_in(file, keys) or [file]
    what = f"{path}: HDF5" + (f", {len(groups):,} group{'s' * (len(groups) > 1)}" if groups != [file] else "")

    def opener(group: Any) -> Callable[[], Trajectory]:
        where = f"{path}" + (group.name if group is not file else "")
        return lambda: Trajectory(where, dict(_datasets(group)), keys)

    openers = [opener(group) for group in groups]
    lengths: list[int] = []
    taken_for: dict[str, Key] = {}
    for opened in openers:
        trajectory = opened()
        lengths.append(trajectory.length)
        taken_for |= trajectory.taken_for
    return stored_as(what, openers, lengths, arrays=taken_for)


def _episodes_in(file: h5py.File, keys: Mapping[Key, str]) -> list[Any]:
    """The groups that hold an episode each, in the order of the numbers in their names."""
    found: list[Any] = []
    central = {alias for alias, role in _ROLES.items() if role in _CENTRAL} | {
        name.split("/")[0] for name in keys.values()
    }

    def look(group: Any, depth: int) -> None:
        if any(name.lower() in central for name in group):
            found.append(group)
        elif depth:
            for name in group:
                if hasattr(group[name], "keys"):
                    look(group[name], depth - 1)

    look(file, 2)
    return sorted(
        found, key=lambda group: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", group.name)]
    )


def _datasets(group: Any, prefix: Key = ()) -> Iterator[tuple[Key, Column]]:
    for name, item in group.items():
        if hasattr(item, "keys"):
            yield from _datasets(item, (*prefix, name))
        elif item.shape is not None:
            yield (*prefix, name), item
