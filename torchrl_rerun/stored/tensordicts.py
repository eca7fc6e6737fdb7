"""Stored tensordicts: saved with PyTorch, memory-mapped, or dumped by a replay buffer. They are data, and never code."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import LazyStackedTensorDict, NonTensorData, NonTensorStack, TensorDict, TensorDictBase
from tensordict._reductions import _make_td
from tensordict.base import _is_leaf_nontensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from torchrl_rerun import specs
from torchrl_rerun.endings import FLAGS
from torchrl_rerun.stored.pieces import Piece, Stored, filled_like, spans

_SAFE = [TensorDict, LazyStackedTensorDict, NonTensorData, NonTensorStack, _make_td]
_TRAJECTORIES = (("collector", "traj_ids"), ("traj_ids",), ("episode",))
"""What TorchRL's collectors and data sets call the number of a trajectory."""

_MAPPED_BYTES = 32 << 20
"""After so many the mapping is made anew."""

STORAGE = "storage_metadata.json"
"""What a replay buffer's storage has beside its tensordict."""


def saved(path: Path) -> Stored:
    """What ``torch.save`` made of a tensordict, such as TorchRL's ``TensorDictRecorder``.

    Nothing in the file is executed, and of an uncompressed file only what is looked at is read.

    Raises:
        ValueError: it holds something else.
    """
    try:
        loaded = _loaded(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(_why_not_loaded(path, error)) from None
    if not isinstance(loaded, TensorDictBase):
        raise ValueError(f"{path} was saved with torch.save, but is a {type(loaded).__name__} and not a TensorDict")  # noqa: TRY004 - the file is at fault
    again = _loaded if _is_zip(path) else lambda _: loaded
    return _of(loaded, lambda: again(path), f"{path}: a saved TensorDict", path)


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


def memory_mapped(path: Path) -> Stored:
    """A memory-mapped tensordict: a folder, or an archive of one.

    Raises:
        ValueError: it can't be loaded, or not without executing what is in it.
    """
    return _of(_mapped(path), lambda: _mapped(path), f"{path}: a memory-mapped TensorDict", path)


def _mapped(path: Path) -> TensorDictBase:
    try:
        return TensorDict.load_memmap(path, allow_pickle=False)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} can't be loaded as a memory-mapped TensorDict: {error}") from None


def replay_buffer(path: Path) -> Stored:
    """What a replay buffer of TorchRL dumped: oldest first, and trajectory by trajectory if they are numbered.

    Args:
        path: the folder that was dumped to, or the storage in it.

    Raises:
        ValueError: it doesn't hold a tensordict.
    """
    storage = path if (path / STORAGE).exists() else path / "storage"
    described = json.loads((storage / STORAGE).read_text())
    if described["is_pytree"]:
        raise ValueError(f"{path} is a replay buffer of other things than tensordicts, which are no trajectories")
    stored = _mapped(storage)
    rows = described["len"] // max(1, stored.batch_size[1:].numel())
    writer = storage.parent / "writer" / "metadata.json"
    cursor = json.loads(writer.read_text()).get("cursor", 0) if writer.exists() else 0
    # A storage that is full is written to from its beginning again.
    order = np.arange(rows) if rows < len(stored) else np.roll(np.arange(rows), -(cursor % max(1, rows)))
    return _of(stored, lambda: _mapped(storage), f"{path}: a replay buffer", path, order)


def _of(
    stored: TensorDictBase,
    again: Callable[[], TensorDictBase],
    what: str,
    path: Path,
    order: npt.NDArray[np.int64] | None = None,
) -> Stored:
    """A tensordict as trajectories.

    Args:
        stored: ``[*batch, time]``.
        again: maps it again: what was looked at stays in memory for as long as the mapping lives.
        what: what it is.
        path: where it is.
        order: it is a storage, ``[time, *batch]``, of which these rows are meant, in this order.
    """
    if not stored.batch_dims:
        raise ValueError(f"{path} is a TensorDict without a batch size: one moment, where [*batch, time] is needed")
    if "next" not in stored.keys():
        if order is not None or not any(key[-1] in (*FLAGS, "reward") for key in specs.data_keys(stored)):
            keys = ", ".join("/".join(key) for key in specs.data_keys(stored))
            raise ValueError(f"{path} is a TensorDict of {keys}, and no rollout: 'next' is missing")
        return Stored(what, len(stored), lambda: _of_moments(stored, again))
    is_flat = stored.batch_dims == 1
    if order is None:
        order, takes_rows = np.arange(stored.batch_size[-1]), is_flat
    else:
        takes_rows = True
    starts = np.zeros(len(order), bool)
    ids = _trajectories(stored) if is_flat else None
    if ids is not None:
        order = order[np.argsort(_first_come(ids[order]), kind="stable")]
        starts[1:] = ids[order][1:] != ids[order][:-1]
    rows = order

    def pieces() -> Iterator[Piece]:
        envs = stored.batch_size.numel() // max(1, stored.batch_size[0 if takes_rows else -1])
        cuts = [0, *np.flatnonzero(starts), len(rows)]
        for mapped, at, until in _mapped_anew(again, cuts, _bytes(stored) / max(1, len(rows))):
            yield Piece(_taken(mapped, rows[at:until], takes_rows=takes_rows), np.full(envs, starts[at]))

    return Stored(what, len(rows), pieces)


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


def _taken(stored: TensorDictBase, rows: npt.NDArray[np.int64], *, takes_rows: bool) -> TensorDictBase:
    """Some rows, ``[*batch, time]``: a view where they are consecutive."""
    first, last = int(rows[0]), int(rows[-1])
    is_run = last - first == len(rows) - 1 and (np.diff(rows) == 1).all()
    index: Any = slice(first, last + 1) if is_run else torch.from_numpy(rows)
    if not takes_rows:
        return stored[..., index]
    taken = stored[index]
    return taken if taken.batch_dims == 1 else taken.permute(*range(1, taken.batch_dims), 0)


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
    leaves = stored.values(include_nested=True, leaves_only=True, is_leaf=_is_leaf_nontensor)
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, torch.Tensor))


def _of_moments(stored: TensorDictBase, again: Callable[[], TensorDictBase]) -> Iterator[Piece]:
    """What ``TensorDictRecorder`` saw, ``[time, *batch]``: of each moment what had come about, and no actions.

    Where there are rewards all moments are steps, and what the first one of an episode was stepped from isn't known.
    Where there are none it records resets as well, so that what follows an end is a reset.
    """
    keys = specs.data_keys(stored)
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
    """Which environments' episodes a moment ends."""
    flags = [moment.get(key) for key in specs.data_keys(moment) if key[-1] in FLAGS]
    size = moment.batch_size
    ended = torch.zeros(size, dtype=torch.bool)
    for flag in flags:
        ended |= flag.reshape(*size, -1).any(-1)
    return ended
