"""Minari data sets on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.stored.columns import ArrayColumn, Column
from torchrl_rerun.stored.segments import Segment, StoredTrajectories
from torchrl_rerun.stored.trajectories import Trajectory, warn_of_left_out

if TYPE_CHECKING:
    from minari import MinariDataset


def find_data_folder(path: Path) -> Path | None:
    """Return the folder of a data set's episodes: ``path`` or ``path/data``. None if neither is a data set."""
    for folder in (path, path / "data"):
        metadata = folder / "metadata.json"
        if metadata.is_file() and "total_episodes" in _read_metadata(metadata):
            return folder
    return None


def _read_metadata(metadata: Path) -> dict[str, Any]:
    try:
        described = json.loads(metadata.read_text())
    except ValueError:
        return {}
    return described if isinstance(described, dict) else {}


def find_local(name: str) -> Path | None:
    """Return the folder of the data set with an id, or None if Minari has none of this id on this machine."""
    try:
        from minari.storage import get_dataset_path  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    try:
        return find_data_folder(Path(get_dataset_path(name)))
    except ValueError:  # not an id
        return None


def open_minari(path: Path) -> StoredTrajectories:
    """Return the episodes of a Minari data set, with their seeds.

    Args:
        path: Folder of the data set.

    Raises:
        ImportError: Minari isn't installed.
        ValueError: The data set is damaged.
    """
    try:
        from minari import MinariDataset  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(
            f"{path} is a Minari data set, which needs Minari: pip install 'torchrl-rerun[minari]'"
        ) from error
    folder = find_data_folder(path)
    assert folder is not None, "the caller found it"
    try:
        found = MinariDataset(folder)
        facts = list(found.storage.get_episode_metadata(found.episode_indices))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} can't be read as a Minari data set: {error}") from None
    lengths = [int(each["total_steps"]) for each in facts]
    seeds = [each.get("seed") for each in facts]
    spec = found.env_spec
    name = None if spec is None else spec.id
    return StoredTrajectories(
        f"{path}: a Minari data set", sum(lengths), lambda: _read_episodes(path, found, seeds), env_name=name
    )


def _read_episodes(path: Path, found: MinariDataset, seeds: Sequence[Any]) -> Iterator[Segment]:
    """Yield the steps of all episodes, with one episode in memory at a time."""
    warned: set[str] = set()
    for index, seed in enumerate(seeds):
        where = f"{path}, episode {index}"
        try:
            episode = found[index]
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{where}, can't be read: {error}") from None
        columns = dict[Key, Column]()
        for name in ("observations", "actions", "rewards", "terminations", "truncations", "infos"):
            columns |= dict(_iterate_arrays((name,), getattr(episode, name)))
        is_given = isinstance(seed, int | np.integer) and seed >= 0
        trajectory = Trajectory(where, columns, seed=int(seed) if is_given else None)
        warn_of_left_out(path, trajectory.left_out, warned)
        yield from trajectory.read_segments()


def _iterate_arrays(key: Key, value: Any) -> Iterator[tuple[Key, Column]]:
    """Yield the arrays of a value that may be a dictionary or a tuple."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _iterate_arrays((*key, str(name)), each)
    elif isinstance(value, tuple):
        for i, each in enumerate(value):
            yield from _iterate_arrays((*key, str(i)), each)
    else:
        yield key, ArrayColumn(value)
