"""Interleaved batches: notice that the batches of several workers are recorded as if they came from one environment."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt
from tensordict import TensorDictBase

from torchrl_rerun.errors import warn
from torchrl_rerun.transform.continuity import begins_anew
from torchrl_rerun.transform.padded_batches import TRAJ_IDS, ended_in, traj_ids_in

MOST_INTERRUPTED = 64
"""Interrupted trajectories that are remembered."""


class Interleaved:
    """Warns once if trajectories that were interrupted go on later, by ``("collector", "traj_ids")`` and by their data."""

    def __init__(self) -> None:
        self._has_warned = False
        self._ids: npt.NDArray[np.int64] | None = None  # of the last steps, ``[envs]``
        self._ended: npt.NDArray[np.bool_] = np.empty(0, bool)
        self._interrupted: OrderedDict[int, TensorDictBase] = OrderedDict()  # ids, and the data after the last step

    def look(self, rollout: TensorDictBase, last: TensorDictBase | None) -> None:
        """Look at a rollout before it is recorded.

        Args:
            rollout: ``[*batch, time]``.
            last: the data after the last steps of the rollout before, ``[*batch]``; None: there was none.
        """
        if self._has_warned or rollout.get(TRAJ_IDS, None) is None:
            return
        rows = rollout.reshape(-1, rollout.batch_size[-1])
        ids = traj_ids_in(rows)
        if ids is None:
            return
        ended = ended_in(rows)
        changes_within = bool(((ids[:, 1:] != ids[:, :-1]) & ~ended[:, :-1]).any())
        if changes_within or self._goes_on_later(rows, ids[:, 0], last):
            self._has_warned = True
            warn(
                "the data comes from several workers: trajectories of one are interrupted by those of another, and each part "
                "is recorded as an episode. Pass split_trajs=True to the collector, or record each worker's batches by a "
                "recorder of its own",
                RuntimeWarning,
            )
        self._ids, self._ended = ids[:, -1].copy(), ended[:, -1]

    def _goes_on_later(self, rows: TensorDictBase, ids: npt.NDArray[np.int64], last: TensorDictBase | None) -> bool:
        """Return whether a trajectory goes on that was interrupted. Note those that are interrupted now.

        Args:
            rows: ``[envs, time]``.
            ids: the trajectories of the first steps, ``[envs]``.
            last: the data after the last steps of the rollout before.
        """
        if self._ids is None or last is None or len(self._ids) != len(ids):
            return False
        found = False
        for env in np.flatnonzero(np.isin(ids, list(self._interrupted))):
            before = self._interrupted.pop(int(ids[env]))
            found |= not begins_anew(before, rows[int(env), 0])
        flat = last.reshape(-1)
        for env in np.flatnonzero((self._ids != ids) & ~self._ended)[:MOST_INTERRUPTED]:
            self._interrupted[int(self._ids[env])] = flat[int(env)].clone()
        while len(self._interrupted) > MOST_INTERRUPTED:
            self._interrupted.popitem(last=False)
        return found
