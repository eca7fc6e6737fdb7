"""Padded batches: lay out their trajectories, of any number and length, by environment."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase

from torchrl_rerun.kinds.endings import Endings
from torchrl_rerun.transform import tensordicts

MASK = ("collector", "mask")
TRAJ_IDS = ("collector", "traj_ids")

MOST_ABSENT = 16
"""Padded batches without an open trajectory, after which its environment index is free again: a collector that resets at each
batch never goes on with the trajectory."""


class Rollout(NamedTuple):
    """Consecutive moments of all environments.

    Attributes:
        tensordict: ``[envs, time]``, in TorchRL's form.
        begins: where an episode begins, whatever the data looks like, bool ``[envs, time]``.
        stepped: which environments were stepped, bool ``[envs, time]``; the rows of the others have no meaning.
    """

    tensordict: TensorDictBase
    begins: npt.NDArray[np.bool_]
    stepped: npt.NDArray[np.bool_]


def padding_mask(batch: TensorDictBase) -> npt.NDArray[np.bool_] | None:
    """Return which moments of a padded batch are data, bool ``[*batch]``; None: the batch isn't padded.

    The mask of a collector with ``split_trajs=True`` is ``("collector", "mask")``, that of ``split_trajectories`` is
    ``"mask"``. A mask is data of the environment if it has another shape or dtype, or if steps lead to it, too.
    """
    for key in (MASK, "mask"):
        mask = batch.get(key, None)
        if (
            isinstance(mask, torch.Tensor)
            and mask.dtype is torch.bool
            and mask.shape == batch.batch_size
            and batch.get(("next", key), None) is None
        ):
            found: npt.NDArray[np.bool_] = mask.cpu().numpy()
            return found
    return None


class Trajectories:
    """Give the trajectories of padded batches environment indices.

    - A trajectory keeps the index that its ``("collector", "traj_ids")`` first got.
    - A new trajectory gets the lowest index that is free.
    - An index is free if its trajectory has ended. Without ids a trajectory ends with its batch.

    Attributes:
        envs: number of indices that have been given.
    """

    def __init__(self) -> None:
        self.envs = 0
        self._open: dict[int, _Open] = {}  # by environment index: trajectories that haven't ended
        self._batch = 0

    def laid_out(self, batch: TensorDictBase, mask: npt.NDArray[np.bool_], envs: int = 0) -> Rollout:
        """Return the trajectories of a padded batch, side by side if they are of different environments.

        Args:
            batch: ``[*trajectories, time]``.
            mask: which moments are data, bool ``[*trajectories, time]``.
            envs: the number of environments, at least.
        """
        self._batch += 1
        time = batch.batch_size[-1]
        rows, valid = batch.reshape(-1, time), mask.reshape(-1, time)
        ids, ended = traj_ids_in(rows), ended_in(rows)
        trajectories: dict[int, list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], bool]]] = {}
        for row, moments in enumerate(map(np.flatnonzero, valid)):
            if len(moments):
                env, begins = self._index(None if ids is None else int(ids[row, moments[0]]))
                if ids is None or ended[row, moments[-1]]:
                    self._open.pop(env, None)
                else:
                    self._open[env] = _Open(int(ids[row, moments[-1]]), self._batch)
                trajectories.setdefault(env, []).append((np.full(len(moments), row), moments, begins))
        self._open = {env: each for env, each in self._open.items() if self._batch - each.batch <= MOST_ABSENT}
        self.envs = max(self.envs, envs)
        return _side_by_side(rows, trajectories, self.envs)

    def _index(self, number: int | None) -> tuple[int, bool]:
        """Return the environment index of a trajectory, and whether the trajectory is new."""
        for env, each in self._open.items():
            if each.number == number:
                return env, False
        env = next(env for env in range(len(self._open) + 1) if env not in self._open)
        self.envs = max(self.envs, env + 1)
        return env, True


class _Open(NamedTuple):
    """A trajectory that hasn't ended.

    Attributes:
        number: the id of the trajectory.
        batch: the last batch that held it.
    """

    number: int
    batch: int


def traj_ids_in(rows: TensorDictBase) -> npt.NDArray[np.int64] | None:
    """Return the trajectory of each step, ``[trajectories, time]``; None: it isn't known."""
    ids = rows.get(TRAJ_IDS, None)
    if not isinstance(ids, torch.Tensor) or ids.numel() != rows.numel():
        return None
    numbers: npt.NDArray[np.int64] = ids.cpu().numpy().reshape(rows.batch_size)
    return numbers


def ended_in(rows: TensorDictBase) -> npt.NDArray[np.bool_]:
    """Return which steps end an episode, ``[trajectories, time]``."""
    following = rows.get("next")
    ends = Endings(tensordicts.data_keys(following)).ended(
        functools.partial(tensordicts.flags_of, following), rows.numel()
    )
    return (np.zeros(rows.numel(), bool) if ends is None else ends.either).reshape(rows.batch_size)


def _side_by_side(rows: TensorDictBase, trajectories: dict[int, list[Any]], envs: int) -> Rollout:
    time = max((sum(len(moments) for _, moments, _ in of_env) for of_env in trajectories.values()), default=0)
    where = np.zeros((envs, time), np.intp)  # among all moments of all rows
    begins, stepped = np.zeros((envs, time), bool), np.zeros((envs, time), bool)
    for env, of_env in trajectories.items():
        at = 0
        for row, moments, is_new in of_env:
            until = at + len(moments)
            where[env, at:until] = row * rows.batch_size[-1] + moments
            begins[env, at] = is_new
            stepped[env, at:until] = True
            at = until
    # tensordict 0.14.3: a `NonTensorStack` that is indexed with two dimensions at once is of another batch size.
    laid = rows.reshape(-1)[torch.from_numpy(where.reshape(-1))].reshape(envs, time)
    return Rollout(laid, begins, stepped)
