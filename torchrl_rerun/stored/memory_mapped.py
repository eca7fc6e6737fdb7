"""Memory-mapped tensordicts and dumps of replay buffers: mapped read-only, and refused unless they are complete."""

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

from torchrl_rerun.stored.segments import StoredTrajectories
from torchrl_rerun.stored.tensordicts import open_tensordict
from torchrl_rerun.transform import tensordicts

STORAGE = "storage_metadata.json"
"""File with the metadata of a replay buffer's storage."""

DESCRIPTION = "meta.json"
"""File with the description of a memory-mapped tensordict's keys."""


def open_memory_mapped(path: Path) -> StoredTrajectories:
    """Return the trajectories of a memory-mapped tensordict: a folder, or a zip archive of one.

    Raises:
        ValueError: The tensordict is incomplete, or can't be loaded without executing code in it.
    """
    return open_tensordict(
        _map_tensordict(path), lambda: _map_tensordict(path), f"{path}: a memory-mapped TensorDict", path
    )


def open_replay_buffer(path: Path) -> StoredTrajectories:
    """Return the trajectories of a dump of a TorchRL replay buffer: oldest rows first, grouped by trajectory id if stored.

    Args:
        path: Folder of the dump, or the storage in it.

    Raises:
        ValueError: The dump is incomplete, or doesn't hold a tensordict.
    """
    storage = path if (path / STORAGE).exists() else path / "storage"
    metadata = _read_metadata(storage / STORAGE)
    if metadata.get("is_pytree"):
        raise ValueError(f"{path} is a replay buffer that doesn't hold tensordicts: only tensordicts can be replayed")
    stored = _map_tensordict(storage)
    writer = storage.parent / "writer" / "metadata.json"
    written = _read_metadata(writer) if writer.exists() else {}
    rows, cursor = metadata.get("len"), written.get("cursor", 0)
    count = written.get("write_count", cursor)
    is_known = isinstance(cursor, int) and isinstance(count, int) and stored.batch_size.numel()
    if not is_known or not isinstance(rows, int) or rows < 0:
        raise ValueError(f"{storage / STORAGE} doesn't state the number of rows: the dump is damaged")
    size = stored.batch_size[1:].numel()
    # A storage of several dimensions, time first, counts steps. One of a single dimension counts the rows added to it.
    counts_steps = size == 1 or rows == size * min(count, len(stored)) or rows > len(stored)
    rows //= size if counts_steps else 1
    if rows > len(stored):
        raise ValueError(f"{path} states {rows:,} rows, of which {len(stored):,} exist: the dump is damaged")
    # A full storage overwrites its oldest rows, so that the oldest remaining row is at the cursor.
    order = np.arange(rows) if rows < len(stored) else np.roll(np.arange(rows), -(cursor % max(1, rows)))
    description = f"{path}: a replay buffer"
    return open_tensordict(
        stored, lambda: _map_tensordict(storage), description, path, order, rows_are_trajectories=not counts_steps
    )


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read: {error}") from None
    if not isinstance(described, dict):
        raise ValueError(f"{path} can't be read: it isn't a JSON object")  # noqa: TRY004 - the file is at fault
    return described


class _ReadOnly(TorchFunctionMode):
    """Maps files read-only. tensordict 0.14 maps writable files shared, which enlarges a file that was cut off."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = {**(kwargs or {}), "shared": False} if func is torch.from_file else kwargs or {}
        return func(*args, **kwargs)


def _map_tensordict(path: Path) -> TensorDictBase:
    """Map a tensordict read-only.

    Raises:
        ValueError: The tensordict is incomplete, or can't be loaded without executing code in it.
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
    """Compare a mapped tensordict with its description. tensordict 0.14 leaves out keys whose file is missing.

    Raises:
        ValueError: A key is missing, or its shape doesn't begin with the batch size.
    """
    if not tensordicts.is_group(mapped):
        return
    if isinstance(mapped, LazyStackedTensorDict):
        numbers = [each.name for each in folder.iterdir() if each.name.isdecimal()]
        if len(numbers) != len(mapped.tensordicts):
            raise ValueError(
                f"{folder} holds {len(numbers)} parts, whose numbers are consecutive only up to {len(mapped.tensordicts)}"
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
            raise ValueError(
                f"{key!r} has shape {tuple(value.shape)}, in a TensorDict of batch size {tuple(mapped.batch_size)}"
            )
        if isinstance(value, TensorDictBase):
            inside = folder / _encode_key_for_filesystem(key)
            _check_whole(value, inside if inside.exists() else folder / key)
