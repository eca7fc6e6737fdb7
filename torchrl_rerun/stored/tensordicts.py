"""Stored tensordicts, saved with PyTorch or mapped from elsewhere, as trajectories. They are data, and never code."""

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
from torchrl_rerun.stored.pieces import Piece, Stored, filled_like, one_after_another, spans
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.padded_batches import MASK, padding_mask

_SAFE = [TensorDict, LazyStackedTensorDict, NonTensorData, NonTensorStack, _make_td]
_TRAJECTORIES = (("collector", "traj_ids"), ("traj_ids",), ("episode",))
"""What TorchRL's collectors and data sets call the number of a trajectory."""

_MAPPED_BYTES = 32 << 20
"""After so many the mapping is made anew."""


def saved(path: Path) -> Stored:
    """Return what ``torch.save`` made of a tensordict, as TorchRL's ``TensorDictRecorder`` does, or of a list of them.

    Nothing in the file is executed, and of an uncompressed file only what is looked at is read.

    Raises:
        ValueError: it holds something else.
    """
    try:
        loaded = _loaded(path)
    except Exception as error:  # whatever a damaged pickle leads to
        raise ValueError(_why_not_loaded(path, error)) from None
    again = _loaded if _is_zip(path) else lambda _: loaded
    what = f"{path}: a saved TensorDict"
    if isinstance(loaded, TensorDictBase):
        return of_tensordict(loaded, lambda: again(path), what, path)
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
    if not any(each.batch_dims for each in loaded):  # moments, one after the other
        return of_tensordict(_stacked(loaded), lambda: _stacked(again(path)), f"{path}: a saved list of steps", path)
    parts = [
        of_tensordict(each, functools.partial(_element, again, path, i), what, path) for i, each in enumerate(loaded)
    ]
    return one_after_another(f"{path}: a saved list of {len(parts):,} TensorDicts", parts)


def _element(again: Callable[[Path], Any], path: Path, index: int) -> TensorDictBase:
    element: TensorDictBase = again(path)[index]
    return element


def _stacked(moments: Sequence[TensorDictBase]) -> TensorDictBase:
    stacked: TensorDictBase = LazyStackedTensorDict.lazy_stack(list(moments), 0)
    return stacked


def _loaded(path: Path) -> Any:
    with safe_globals(_SAFE):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _why_not_loaded(path: Path, error: Exception) -> str:
    try:
        with safe_globals(_SAFE):
            unsafe = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it is no such file at all, or of before PyTorch 1.6
        unsafe = []
    if unsafe or isinstance(error, pickle.UnpicklingError):
        names = ", ".join(sorted(unsafe)) or "Python objects"
        return (
            f"{path} is a pickle that asks for {names}, and is refused: a stored rollout is data, never code. Only tensors, "
            "numbers and texts in a TensorDict are read; what is memory-mapped can be saved as td.clone()"
        )
    return f"{path} can't be read as what torch.save makes: {str(error).splitlines()[0]}"


def of_tensordict(
    stored: TensorDictBase,
    again: Callable[[], TensorDictBase],
    what: str,
    path: Path,
    order: npt.NDArray[np.int64] | None = None,
) -> Stored:
    """Return a tensordict as trajectories.

    Args:
        stored: ``[*batch, time]``.
        again: maps it again: what was looked at stays in memory for as long as the mapping lives.
        what: what it is.
        path: where it is.
        order: it is a storage, ``[time, *batch]``, of which these rows are meant, in this order.

    Raises:
        ValueError: it holds no steps.
    """
    if not stored.batch_dims:
        raise ValueError(f"{path} is a TensorDict without a batch size: one moment, where [*batch, time] is needed")
    if not _bytes(stored):
        raise ValueError(f"{path} is a TensorDict of {tuple(stored.batch_size)} that holds no numbers")
    if "next" not in stored.keys():
        if order is not None or not any(key[-1] in (*FLAGS, "reward") for key in tensordicts.data_keys(stored)):
            keys = ", ".join("/".join(key) for key in tensordicts.data_keys(stored))
            raise ValueError(f"{path} is a TensorDict of {keys}, and no rollout: 'next' is missing")
        return Stored(what, len(stored), lambda: _of_moments(stored, again))
    if order is None and padding_mask(stored) is not None:
        return of_trajectories(stored, again, what, path)
    is_flat = stored.batch_dims == 1
    takes_rows = is_flat or order is not None
    length = len(stored) if takes_rows else stored.batch_size[-1]
    starts: npt.NDArray[np.intp] = np.zeros(0, np.intp)
    ids = _trajectories(stored) if is_flat else None
    if ids is not None:
        order = np.arange(length) if order is None else order
        order = order[np.argsort(_first_come(ids[order]), kind="stable")]
        starts = np.flatnonzero(ids[order][1:] != ids[order][:-1]) + 1
    moments = length if order is None else len(order)

    def pieces() -> Iterator[Piece]:
        envs = stored.batch_size.numel() // max(1, stored.batch_size[0 if takes_rows else -1])
        cuts = [0, *starts, moments]
        for mapped, at, until in _mapped_anew(again, cuts, _bytes(stored) / max(1, moments)):
            rows = slice(at, until) if order is None else order[at:until]
            taken = _taken(mapped, rows, takes_rows=takes_rows)
            yield Piece(taken, np.full(envs, at in starts), padding=padding_mask(taken))

    says_ends = ids is not None or any(key[-1] in FLAGS for key in tensordicts.data_keys(stored.get("next")))
    return Stored(what, moments, pieces, without_ends=() if says_ends else (path,))


def of_trajectories(
    stored: TensorDictBase,
    again: Callable[[], TensorDictBase],
    what: str,
    path: Path,
    order: npt.NDArray[np.int64] | None = None,
) -> Stored:
    """Return a list of trajectories, padded ones or of one length.

    Args:
        stored: ``[*trajectories, time]``.
        again: maps it again.
        what: what it is.
        path: where it is.
        order: of its first dimension these are meant, in this order. Default: all.

    Raises:
        ValueError: there is no ``"next"`` in it.
    """
    if "next" not in stored.keys():
        raise ValueError(f"{path} is a TensorDict of {', '.join(map(str, stored.keys()))}: 'next' is missing")
    time = stored.batch_size[-1]
    of_each = stored.batch_size[1:-1].numel()
    chosen = np.arange(len(stored)) if order is None else order

    def pieces() -> Iterator[Piece]:
        for mapped, at, until in _mapped_anew(again, [0, len(chosen)], _bytes(stored) / max(1, len(stored))):
            rows = _taken(mapped, chosen[at:until], takes_rows=True, is_time=False).reshape(-1, time)
            padding = padding_mask(rows)
            if padding is None:
                padding = np.ones(rows.batch_size, bool)
                rows = rows.copy().set(MASK, torch.from_numpy(padding))
            yield Piece(rows, np.zeros(len(rows), bool), padding=padding)

    return Stored(what, len(chosen) * of_each * time, pieces)


def _mapped_anew(
    again: Callable[[], TensorDictBase], cuts: Sequence[int], bytes_per_moment: float
) -> Iterator[tuple[TensorDictBase, int, int]]:
    """Pieces of time between cuts, each with a mapping in which to look at it; no mapping grows large."""
    mapped, moments = again(), 0
    for begin, end in itertools.pairwise(cuts):
        for at, until in spans(begin, end, bytes_per_moment):
            yield mapped, at, until
            moments += until - at
            if moments * bytes_per_moment > _MAPPED_BYTES:
                mapped, moments = again(), 0


def _taken(
    stored: TensorDictBase, rows: slice | npt.NDArray[np.int64], *, takes_rows: bool, is_time: bool = True
) -> TensorDictBase:
    """Return some rows, ``[*batch, time]``: a view if they are consecutive.

    Args:
        stored: the tensordict.
        rows: which, along its first dimension, or along its last.
        takes_rows: whether they are along its first dimension.
        is_time: whether that is time.
    """
    index: Any = rows
    if not isinstance(rows, slice):
        is_run = (np.diff(rows) == 1).all()
        index = slice(int(rows[0]), int(rows[-1]) + 1) if is_run else torch.from_numpy(rows)
    if not takes_rows:
        return stored[..., index]
    taken = stored[index]
    return taken if taken.batch_dims == 1 or not is_time else taken.permute(*range(1, taken.batch_dims), 0)


def _trajectories(stored: TensorDictBase) -> npt.NDArray[np.int64] | None:
    """The number of the trajectory of each row, if they are numbered."""
    for key in _TRAJECTORIES:
        ids = stored.get(key, None)
        if isinstance(ids, torch.Tensor) and ids.numel() == len(stored) and not ids.is_floating_point():
            return ids.reshape(-1).numpy().astype(np.int64)
    return None


def _first_come(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers in the order in which they come first.

    >>> _first_come(np.array([7, 7, 3, 7, 5, 3]))
    array([0, 0, 1, 0, 2, 1])
    """
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]


def _bytes(stored: TensorDictBase) -> int:
    """Return the bytes of all tensors; of a lazy stack each by itself, since they may differ in shape."""
    if isinstance(stored, LazyStackedTensorDict):
        return sum(map(_bytes, stored.tensordicts))
    values = [stored.get(key) for key in stored.keys()]
    groups = (value for value in values if tensordicts.is_group(value))
    tensors = (value for value in values if isinstance(value, torch.Tensor))
    return sum(map(_bytes, groups)) + sum(value.numel() * value.element_size() for value in tensors)


def _of_moments(stored: TensorDictBase, again: Callable[[], TensorDictBase]) -> Iterator[Piece]:
    """What ``TensorDictRecorder`` saw, ``[time, *batch]``: of each moment what had come about, and no actions.

    Where there are rewards all moments are steps, and what the first one of an episode was stepped from isn't known.
    Where there are none it records resets as well, so that what follows an end is a reset.
    """
    keys = tensordicts.data_keys(stored)
    observed = [key for key in keys if key[-1] != "reward"]
    has_rewards = len(observed) < len(keys)
    before: TensorDictBase | None = None
    pieces = _mapped_anew(again, [0, len(stored)], _bytes(stored) / max(1, len(stored)))
    for moment in (moment for mapped, at, until in pieces for moment in mapped[at:until].unbind(0)):
        stepped = torch.full(moment.batch_size, has_rewards or before is not None)
        unknown = moment.select(*observed).apply(filled_like)
        root = unknown
        if before is not None:
            ended = _ended(before)
            root = before.select(*observed)
            if has_rewards:
                root = unknown.where(ended, root)
            else:
                stepped &= ~ended
        if stepped.any():
            transition = root.clone(recurse=False).set("next", moment).set("_step", stepped)
            yield Piece(transition.unsqueeze(-1), np.zeros(stepped.numel(), bool))
        before = moment


def _ended(moment: TensorDictBase) -> torch.Tensor:
    """Return which environments' episodes a moment ends."""
    size = moment.batch_size
    ends = Endings(tensordicts.data_keys(moment)).of(functools.partial(tensordicts.flags_of, moment), size.numel())
    return torch.zeros(size, dtype=torch.bool) if ends is None else torch.from_numpy(ends.either).reshape(size)
