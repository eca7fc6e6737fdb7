"""Stored tensordicts: files of ``torch.save`` and memory maps, read as trajectories without running code."""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import LazyStackedTensorDict, NonTensorData, NonTensorStack, TensorDict, TensorDictBase
from tensordict._reductions import _make_td
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from torchrl_rerun.kinds.endings import FLAGS, Endings
from torchrl_rerun.kinds.keys import is_reward
from torchrl_rerun.stored.segments import Segment, StoredTrajectories, concatenate, fill_unknown, split_time
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.padded_batches import MASK, padding_mask

_SAFE = [TensorDict, LazyStackedTensorDict, NonTensorData, NonTensorStack, _make_td]
_TRAJECTORY_IDS = (("collector", "traj_ids"), ("traj_ids",), ("episode",))
"""Keys of trajectory ids in TorchRL's collectors and data sets."""

_MAPPED_BYTES = 32 << 20
"""Bytes read from a mapping before the file is mapped anew: pages that were read stay in memory until then."""


def open_saved(path: Path) -> StoredTrajectories:
    """Return the trajectories of a tensordict, or a list of tensordicts, that ``torch.save`` wrote.

    ``TensorDictRecorder`` of TorchRL writes such files. Zip files are mapped, so that only the data in use is read.

    Raises:
        ValueError: The file is damaged, asks for code to be executed, or holds other data.
    """
    try:
        loaded = _load(path)
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(_explain_failure(path, error)) from None
    load_again = _load if _is_zip(path) else lambda _: loaded
    description = f"{path}: a saved TensorDict"
    if isinstance(loaded, TensorDictBase):
        return open_tensordict(loaded, lambda: load_again(path), description, path)
    if (
        not isinstance(loaded, list | tuple)
        or not loaded
        or not all(isinstance(each, TensorDictBase) for each in loaded)
    ):
        inside = sorted({type(each).__name__ for each in loaded}) if isinstance(loaded, list | tuple) else []
        of = f" of {', '.join(inside) or 'nothing'}" if isinstance(loaded, list | tuple) else ""
        raise ValueError(
            f"{path} was saved with torch.save, but is a {type(loaded).__name__}{of} and neither a TensorDict nor a list of them"
        )
    if not any(each.batch_dims for each in loaded):  # time steps, one after another
        return open_tensordict(_stack(loaded), lambda: _stack(load_again(path)), f"{path}: a saved list of steps", path)
    parts = [
        open_tensordict(each, functools.partial(_take_element, load_again, path, i), description, path)
        for i, each in enumerate(loaded)
    ]
    return concatenate(f"{path}: a saved list of {len(parts):,} TensorDicts", parts)


def _take_element(load_again: Callable[[Path], Any], path: Path, index: int) -> TensorDictBase:
    element: TensorDictBase = load_again(path)[index]
    return element


def _stack(time_steps: Sequence[TensorDictBase]) -> TensorDictBase:
    stacked: TensorDictBase = LazyStackedTensorDict.lazy_stack(list(time_steps), 0)
    return stacked


def _load(path: Path) -> Any:
    with safe_globals(_SAFE):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _explain_failure(path: Path, error: Exception) -> str:
    try:
        with safe_globals(_SAFE):
            unsafe = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # another format, or older than PyTorch 1.6
        unsafe = []
    if unsafe or isinstance(error, pickle.UnpicklingError):
        names = ", ".join(sorted(unsafe)) or "Python objects"
        return (
            f"{path} is a pickle that asks for {names}, and is refused: code in a file is never executed. Only tensors, numbers "
            "and texts in a TensorDict are read; save a memory-mapped TensorDict as td.clone()"
        )
    return f"{path} can't be read as a file of torch.save: {str(error).splitlines()[0]}"


def open_tensordict(
    stored: TensorDictBase,
    remap: Callable[[], TensorDictBase],
    description: str,
    path: Path,
    order: npt.NDArray[np.int64] | None = None,
    *,
    rows_are_trajectories: bool = False,
) -> StoredTrajectories:
    """Return the trajectories of a tensordict.

    Args:
        stored: ``[*batch, time]``.
        remap: Function that maps the file again, which frees the pages that were read.
        description: Path and format, for messages.
        path: File or folder.
        order: For a storage of a replay buffer, ``[time, *batch]``: indices of its rows, oldest first. Default: None, for
            any other tensordict.
        rows_are_trajectories: The first dimension counts trajectories, ``[trajectories, *batch, time]``.

    Raises:
        ValueError: The tensordict holds no steps, or no ``"next"``.
    """
    if not stored.batch_dims:
        raise ValueError(
            f"{path} is a TensorDict without a batch size: a rollout of batch size [*batch, time] is needed"
        )
    if not _count_bytes(stored):
        raise ValueError(f"{path} is a TensorDict of batch size {tuple(stored.batch_size)} without any numbers")
    if "next" not in stored.keys():
        keys = tensordicts.data_keys(stored)
        if order is not None or not any(key[-1] in FLAGS or is_reward(key) for key in keys):
            names = ", ".join(map("/".join, keys))
            raise ValueError(f"{path} is a TensorDict of {names}, and no rollout: 'next' is missing")
        return StoredTrajectories(description, len(stored), lambda: _read_moments(stored, remap))
    if rows_are_trajectories or (order is None and padding_mask(stored) is not None):
        return _open_padded(stored, remap, description, order)
    is_flat = stored.batch_dims == 1
    takes_rows = is_flat or order is not None
    length = len(stored) if takes_rows else stored.batch_size[-1]
    starts: npt.NDArray[np.intp] = np.zeros(0, np.intp)
    ids = _find_trajectory_ids(stored) if is_flat else None
    if ids is not None:
        order = np.arange(length) if order is None else order
        order = order[np.argsort(_number_by_appearance(ids[order]), kind="stable")]
        starts = np.flatnonzero(ids[order][1:] != ids[order][:-1]) + 1
    num_time_steps = length if order is None else len(order)

    def read() -> Iterator[Segment]:
        envs = stored.batch_size.numel() // max(1, stored.batch_size[0 if takes_rows else -1])
        cuts = [0, *starts, num_time_steps]
        for mapped, at, until in _iterate_remapped(remap, cuts, _count_bytes(stored) / max(1, num_time_steps)):
            rows = slice(at, until) if order is None else order[at:until]
            taken = _take_rows(mapped, rows, takes_rows=takes_rows)
            yield Segment(taken, np.full(envs, at in starts), padding=padding_mask(taken))

    marks_ends = ids is not None or any(key[-1] in FLAGS for key in tensordicts.data_keys(stored.get("next")))
    return StoredTrajectories(description, num_time_steps, read, files_without_ends=() if marks_ends else (path,))


def _open_padded(
    stored: TensorDictBase,
    remap: Callable[[], TensorDictBase],
    description: str,
    order: npt.NDArray[np.int64] | None,
) -> StoredTrajectories:
    """Return trajectories that are padded, or of one length, ``[*trajectories, time]``."""
    time = stored.batch_size[-1]
    others = stored.batch_size[1:-1].numel()
    chosen = np.arange(len(stored)) if order is None else order

    def read() -> Iterator[Segment]:
        for mapped, at, until in _iterate_remapped(remap, [0, len(chosen)], _count_bytes(stored) / max(1, len(stored))):
            rows = _take_rows(mapped, chosen[at:until], takes_rows=True, is_time=False).reshape(-1, time)
            padding = padding_mask(rows)
            if padding is None:
                padding = np.ones(rows.batch_size, bool)
                rows = rows.copy().set(MASK, torch.from_numpy(padding))
            yield Segment(rows, np.zeros(len(rows), bool), padding=padding)

    return StoredTrajectories(description, len(chosen) * others * time, read)


def _iterate_remapped(
    remap: Callable[[], TensorDictBase], cuts: Sequence[int], bytes_per_time_step: float
) -> Iterator[tuple[TensorDictBase, int, int]]:
    """Yield a mapping and a range of time steps in it, for each segment between cuts. Map the file anew now and then."""
    mapped, read = remap(), 0
    for begin, end in itertools.pairwise(cuts):
        for at, until in split_time(begin, end, bytes_per_time_step):
            yield mapped, at, until
            read += until - at
            if read * bytes_per_time_step > _MAPPED_BYTES:
                mapped, read = remap(), 0


def _take_rows(
    stored: TensorDictBase, rows: slice | npt.NDArray[np.int64], *, takes_rows: bool, is_time: bool = True
) -> TensorDictBase:
    """Return some rows, ``[*batch, time]``: a view if they are consecutive.

    Args:
        stored: Tensordict.
        rows: Indices along the first dimension if ``takes_rows``, else along the last.
        takes_rows: Index the first dimension.
        is_time: The first dimension is time, and becomes the last of the result.
    """
    index: Any = rows
    if not isinstance(rows, slice):
        is_run = (np.diff(rows) == 1).all()
        index = slice(int(rows[0]), int(rows[-1]) + 1) if is_run else torch.from_numpy(rows)
    if not takes_rows:
        return stored[..., index]
    taken = stored[index]
    return taken if taken.batch_dims == 1 or not is_time else taken.permute(*range(1, taken.batch_dims), 0)


def _find_trajectory_ids(stored: TensorDictBase) -> npt.NDArray[np.int64] | None:
    """Return the trajectory id of each row, ``[rows]``, or None if no ids are stored."""
    for key in _TRAJECTORY_IDS:
        ids = stored.get(key, None)
        if isinstance(ids, torch.Tensor) and ids.numel() == len(stored) and not ids.is_floating_point():
            return ids.reshape(-1).numpy().astype(np.int64)
    return None


def _number_by_appearance(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Renumber ids by the order in which they first appear.

    >>> _number_by_appearance(np.array([7, 7, 3, 7, 5, 3]))
    array([0, 0, 1, 0, 2, 1])
    """
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]


def _count_bytes(stored: TensorDictBase) -> int:
    """Return the size of all tensors in bytes. Parts of a lazy stack may differ in shape, so each counts by itself."""
    if isinstance(stored, LazyStackedTensorDict):
        return sum(map(_count_bytes, stored.tensordicts))
    values = [stored.get(key) for key in stored.keys()]
    groups = (value for value in values if tensordicts.is_group(value))
    tensors = (value for value in values if isinstance(value, torch.Tensor))
    return sum(map(_count_bytes, groups)) + sum(value.numel() * value.element_size() for value in tensors)


def _read_moments(stored: TensorDictBase, remap: Callable[[], TensorDictBase]) -> Iterator[Segment]:
    """Yield the steps of a recording of ``TensorDictRecorder``, ``[time, *batch]``, which has no actions and no ``"next"``.

    With rewards, every moment is a step, and the first observation of an episode is unknown. Without rewards, resets are
    moments too, so that the moment after an end is a reset.
    """
    keys = tensordicts.data_keys(stored)
    observed = [key for key in keys if not is_reward(key)]
    has_rewards = len(observed) < len(keys)
    before: TensorDictBase | None = None
    segments = _iterate_remapped(remap, [0, len(stored)], _count_bytes(stored) / max(1, len(stored)))
    for moment in (moment for mapped, at, until in segments for moment in mapped[at:until].unbind(0)):
        stepped = torch.full(moment.batch_size, has_rewards or before is not None)
        unknown = moment.select(*observed).apply(fill_unknown)
        root = unknown
        if before is not None:
            ended = _find_ended(before)
            root = before.select(*observed)
            if has_rewards:
                root = unknown.where(ended, root)
            else:
                stepped &= ~ended
        if stepped.any():
            transition = root.clone(recurse=False).set("next", moment).set("_step", stepped)
            yield Segment(transition.unsqueeze(-1), np.zeros(stepped.numel(), bool))
        before = moment


def _find_ended(moment: TensorDictBase) -> torch.Tensor:
    """Return the mask of environments whose episode ends at a moment, bool ``[*batch]``."""
    size = moment.batch_size
    ends = Endings(tensordicts.data_keys(moment)).ended(functools.partial(tensordicts.flags_of, moment), size.numel())
    return torch.zeros(size, dtype=torch.bool) if ends is None else torch.from_numpy(ends.either).reshape(size)
