"""Minari's data sets, on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchrl_rerun.kinds.streams import Key
from torchrl_rerun.stored.columns import Column, InMemory
from torchrl_rerun.stored.pieces import Piece, Stored
from torchrl_rerun.stored.trajectories import Trajectory, warn_of_left_out

if TYPE_CHECKING:
    from minari import MinariDataset


def data_folder(path: Path) -> Path | None:
    """Where the episodes of a data set are: its folder, or the one called ``data`` in it. None: it isn't one."""
    for folder in (path, path / "data"):
        metadata = folder / "metadata.json"
        if metadata.is_file() and "total_episodes" in _described(metadata):
            return folder
    return None


def _described(metadata: Path) -> dict[str, Any]:
    try:
        described = json.loads(metadata.read_text())
    except ValueError:
        return {}
    return described if isinstance(described, dict) else {}


def local(name: str) -> Path | None:
    """The folder of a data set that Minari has here by its id; None: there is none."""
    try:
        from minari.storage import get_dataset_path  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    try:
        return data_folder(Path(get_dataset_path(name)))
    except ValueError:  # it is no id
        return None


def minari_set(path: Path) -> Stored:
    """A data set, with the seeds of its episodes.

    Args:
        path: its folder.

    Raises:
        ImportError: Minari isn't installed.
        ValueError: it can't be read.
    """
    try:
        from minari import MinariDataset  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(f"{path} is a Minari data set: pip install 'torchrl-rerun[minari]'") from error
    folder = data_folder(path)
    assert folder is not None, "it was looked for"
    try:
        found = MinariDataset(folder)
        facts = list(found.storage.get_episode_metadata(found.episode_indices))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} can't be read as a Minari data set: {error}") from None
    lengths = [int(each["total_steps"]) for each in facts]
    seeds = [each.get("seed") for each in facts]
    spec = found.env_spec
    name = None if spec is None else spec.id
    return Stored(f"{path}: a Minari data set", sum(lengths), lambda: _pieces(path, found, seeds), env_name=name)


def _pieces(path: Path, found: MinariDataset, seeds: Sequence[Any]) -> Iterator[Piece]:
    """Yield the steps of all episodes, of which one at a time is in memory."""
    already: set[str] = set()
    for index, seed in enumerate(seeds):
        where = f"{path}, episode {index}"
        try:
            episode = found[index]
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"{where}, can't be read: {error}") from None
        columns = dict[Key, Column]()
        for name in ("observations", "actions", "rewards", "terminations", "truncations", "infos"):
            columns |= dict(_leaves((name,), getattr(episode, name)))
        is_given = isinstance(seed, int | np.integer) and seed >= 0
        trajectory = Trajectory(where, columns, seed=int(seed) if is_given else None)
        warn_of_left_out(path, trajectory.left_out, already)
        yield from trajectory.pieces()


def _leaves(key: Key, value: Any) -> Iterator[tuple[Key, Column]]:
    """Yield the arrays of a space that may be a dictionary or a tuple."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves((*key, str(name)), each)
    elif isinstance(value, tuple):
        for i, each in enumerate(value):
            yield from _leaves((*key, str(i)), each)
    else:
        yield key, InMemory(value)
