"""Memory-mapped tensordicts, and dumps of replay buffers: mapped read-only, and only if they are whole."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import LazyStackedTensorDict, TensorDict, TensorDictBase
from tensordict._utils_key_json import _encode_key_for_filesystem
from torch.overrides import TorchFunctionMode

from torchrl_rerun.stored.pieces import Stored
from torchrl_rerun.stored.tensordicts import of_tensordict, of_trajectories
from torchrl_rerun.transform import tensordicts

STORAGE = "storage_metadata.json"
"""What a replay buffer's storage has beside its tensordict."""

DESCRIPTION = "meta.json"
"""What a memory-mapped tensordict says of its keys."""


def memory_mapped(path: Path) -> Stored:
    """Return a memory-mapped tensordict: a folder, or an archive of one.

    Raises:
        ValueError: it isn't whole, or can't be loaded without executing what is in it.
    """
    return of_tensordict(_mapped(path), lambda: _mapped(path), f"{path}: a memory-mapped TensorDict", path)


def replay_buffer(path: Path) -> Stored:
    """Return what a replay buffer of TorchRL dumped: oldest first, and trajectory by trajectory if they are numbered.

    Args:
        path: the folder that was dumped to, or the storage in it.

    Raises:
        ValueError: it isn't whole, or doesn't hold a tensordict.
    """
    storage = path if (path / STORAGE).exists() else path / "storage"
    described = _described(storage / STORAGE)
    if described.get("is_pytree"):
        raise ValueError(f"{path} is a replay buffer of other things than tensordicts, which are no trajectories")
    stored = _mapped(storage)
    writer = storage.parent / "writer" / "metadata.json"
    written = _described(writer) if writer.exists() else {}
    rows, cursor = described.get("len"), written.get("cursor", 0)
    count = written.get("write_count", cursor)
    is_known = isinstance(cursor, int) and isinstance(count, int) and stored.batch_size.numel()
    if not is_known or not isinstance(rows, int) or rows < 0:
        raise ValueError(f"{storage / STORAGE} doesn't say how many rows there are, and can't be read")
    size = stored.batch_size[1:].numel()
    # A storage of several dimensions, time first, counts steps; one of a single dimension counts what it was extended by.
    counts_steps = size == 1 or rows == size * min(count, len(stored)) or rows > len(stored)
    rows //= size if counts_steps else 1
    if rows > len(stored):
        raise ValueError(f"{path} is to hold {rows:,} rows, of which there are {len(stored):,}")
    # A storage that is full is written to from its beginning again.
    order = np.arange(rows) if rows < len(stored) else np.roll(np.arange(rows), -(cursor % max(1, rows)))
    what = f"{path}: a replay buffer"
    if counts_steps:
        return of_tensordict(stored, lambda: _mapped(storage), what, path, order)
    return of_trajectories(stored, lambda: _mapped(storage), what, path, order)


def _described(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {error}") from None
    if not isinstance(described, dict):
        raise ValueError(f"{path} can't be read: it describes nothing")  # noqa: TRY004 - the file is at fault
    return described


class _ReadOnly(TorchFunctionMode):
    """Maps files read-only. tensordict (0.14) maps files that can be written so that a short one grows to what is said."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = {**(kwargs or {}), "shared": False} if func is torch.from_file else kwargs or {}
        return func(*args, **kwargs)


def _mapped(path: Path) -> TensorDictBase:
    """Map a tensordict.

    Raises:
        ValueError: it isn't whole, or can't be loaded without executing what is in it.
    """
    try:
        with _ReadOnly():
            mapped = TensorDict.load_memmap(path, allow_pickle=False)
        if path.is_dir():
            _check_whole(mapped, path)
        else:
            with zipfile.ZipFile(path) as archive:
                _check_whole(mapped, zipfile.Path(archive))
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} can't be loaded as a memory-mapped TensorDict: {error}") from None
    return mapped


def _check_whole(mapped: TensorDictBase, folder: Path | zipfile.Path) -> None:
    """Compare what was mapped with its description: tensordict (0.14) leaves out keys whose file is missing.

    Raises:
        ValueError: a key is missing, or has another shape than all.
    """
    if not tensordicts.is_group(mapped):
        return
    if isinstance(mapped, LazyStackedTensorDict):
        numbers = [each.name for each in folder.iterdir() if each.name.isdecimal()]
        if len(numbers) != len(mapped.tensordicts):
            raise ValueError(
                f"{folder} holds {len(numbers)} parts, of which {len(mapped.tensordicts)} follow one another"
            )
        for number, each in enumerate(mapped.tensordicts):
            _check_whole(each, folder / str(number))
        return
    for key, described in json.loads((folder / DESCRIPTION).read_text()).items():
        if not isinstance(described, dict):
            continue
        value = mapped.get(key, None)
        if value is None:
            raise ValueError(f"{key!r} is described in {folder / DESCRIPTION}, and its file is missing")
        if value.shape[: mapped.batch_dims] != mapped.batch_size:
            raise ValueError(f"{key!r} is of {tuple(value.shape)}, in a TensorDict of {tuple(mapped.batch_size)}")
        if isinstance(value, TensorDictBase):
            inside = folder / _encode_key_for_filesystem(key)
            _check_whole(value, inside if inside.exists() else folder / key)
