"""Expected rows of an iteration's recordings: the tests' reference, with returns, parts and chosen keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import rerun as rr
import torch
from tensordict import TensorDictBase

from readback import Recorded, same
from reference import Reference, per_env
from torchrl_rerun.transform.padded_batches import MOST_ABSENT

Key = tuple[str, ...]


class Witness(Reference):
    """Notes observed values, like `Reference`, of the environments and keys that are recorded.

    Args:
        envs: number of environments.
        logged: indices of the environments that are recorded.
        keys: recorded keys. None: all.
        first_env: index of the first environment, not 0 in the workers of a batched environment.
    """

    def __init__(self, envs: int, logged: Iterable[int], keys: Sequence[Key] | None, *, first_env: int = 0) -> None:
        super().__init__(envs)
        self.first_env = first_env
        self.logged = set(logged)
        self._keys = None if keys is None else {"/".join(key) for key in keys}
        self._returns: dict[tuple[int, str], torch.Tensor] = {}
        self._rewards: dict[str, torch.Tensor] = {}
        self.in_doubt: dict[int, int] = {}  # the last episode of each environment whose rewards may have been lost
        self.ended = [self.lengths()]  # number of rows of each key at the end of each part

    def lengths(self) -> dict[tuple[int, str], int]:
        return {key: len(rows) for key, rows in self.rows.items()}

    def reset(
        self,
        observed: dict[int, dict[str, Any]],
        rewards: dict[str, torch.Tensor] | None = None,
        begun: list[int] | None = None,
    ) -> None:
        """Note a reset.

        Args:
            observed: by environment, key -> value.
            rewards: a zero for each path of a reward.
            begun: environments whose episodes begin. Default: None, all of ``observed``.
        """
        observed = {env: values for env, values in observed.items() if env in self.logged}
        if not observed:
            return
        zeros = {path: zero.double() for path, zero in (rewards or {}).items() if self._wants(path)}
        for env in observed if begun is None else begun:
            self._returns |= {(env, path): zero for path, zero in zeros.items()}
        super().reset({env: values | self._sums(env) for env, values in observed.items()}, begun)

    def steps(self, acted: dict[int, dict[str, Any]], outcome: dict[int, dict[str, Any]]) -> None:
        acted = {env: values for env, values in acted.items() if env in self.logged}
        outcome = {env: values for env, values in outcome.items() if env in self.logged}
        if not outcome:
            self.step += 1
            return
        for env, path in self._returns:
            if env in outcome:
                self._returns[env, path] = self._returns[env, path] + outcome[env][path].double()
        super().steps(acted, {env: values | self._sums(env) for env, values in outcome.items()})

    def add(self, env: int, key: str, value: Any) -> None:
        if "episode_return" in key or self._wants(key):
            super().add(env, key, value)

    def _wants(self, path: str) -> bool:
        return self._keys is None or any(path == key or path.startswith(f"{key}/") for key in self._keys)

    def _sums(self, env: int) -> dict[str, Any]:
        sums = {path: total for (number, path), total in self._returns.items() if number == env}
        return {path.replace("reward", "episode_return"): total for path, total in sums.items()}

    @property
    def episodes(self) -> int:
        """Number of episodes that have begun, over all recorded environments."""
        return sum(at["episode"] + 1 for env, at in enumerate(self.at) if env in self.logged)

    def end_part(self, *, lost: bool = False) -> None:
        """Note that the recording was closed. Later frames are in another file.

        Args:
            lost: whether rows may be missing. Returns are summed when rows are written: the return of an episode that
                was lost in part may be NaN.
        """
        if lost:
            self.in_doubt = {env: at["episode"] for env, at in enumerate(self.at)}
        self.ended.append(self.lengths())

    def check(self, recorded: Recorded, part: int, *, least: dict[tuple[int, str], int] | None = None) -> int:
        """Compare a file with the noted values, bit for bit except video.

        Args:
            recorded: content of the file.
            part: index of the file.
            least: number of rows of each key that all parts together must hold. None: all rows.

        Returns:
            Number of rows that were compared.
        """
        first = self.ended[part]
        last = self.ended[part + 1] if part + 1 < len(self.ended) else self.lengths()
        paths: dict[str, tuple[int, str]] = {}
        for env, key in self.rows:
            paths[rr.new_entity_path([f"env_{self.first_env + env}", *key.split("/")])] = (env, key)
        strangers = {path for path in recorded.entities if path not in paths}
        assert not strangers, f"nobody gave {strangers}"
        video = {path for path, rows in recorded.entities.items() if rows.samples}
        compared = 0
        for path, key in paths.items():
            wanted = self.rows[key][first.get(key, 0) : last.get(key, 0)]
            entity = recorded.entities.get(path)
            length = 0 if entity is None else len(entity.values)
            needed = len(wanted) if least is None else max(0, min(len(wanted), least.get(key, 0) - first.get(key, 0)))
            assert needed <= length <= len(wanted), f"{path}: {length} rows, not {needed} to {len(wanted)}"
            for at in range(length):
                where = f"{path}, row {at} of {length}"
                for timeline in ("frame", "step", "episode", "episode_step"):
                    found, right = entity.times[at][timeline], getattr(wanted[at], timeline)
                    assert found == right, f"{where}: {timeline} {found}, not {right}"
                found, right = entity.values[at], wanted[at].value
                in_doubt = "episode_return" in key[1] and wanted[at].episode <= self.in_doubt.get(key[0], -1)
                if in_doubt and found.isnan().all():
                    continue
                if path in video:  # lossy video: equal in size, not in values
                    found, right = (found.dtype, found.shape), (right.dtype, right.shape)
                assert same(found, right), f"{where}: {found!r}, not {right!r}"
            compared += length
        return compared


class Indices:
    """Environment indices of trajectories.

    A trajectory keeps the index that its id got first. A new one takes the lowest index without an open trajectory.
    A trajectory is open until it ends, or is missing in more than ``MOST_ABSENT`` batches.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[int, int]] = {}  # by index: the id, and the last batch with that id
        self._batch = 0

    def of(self, batch: TensorDictBase) -> dict[int, list[tuple[TensorDictBase, bool]]]:
        """Return the moments of a padded batch ``[trajectories, time]`` by index, and whether each begins an episode.

        Args:
            batch: a batch with ids, from `split_trajectories`.
        """
        self._batch += 1
        lanes: dict[int, list[tuple[TensorDictBase, bool]]] = {}
        for row in batch.reshape(
            -1, batch.batch_size[-1]
        ):  # torchrl 0.14: a batch of single steps keeps its batch size
            row = row[row["collector", "mask"]]
            number = int(row["collector", "traj_ids"][0])
            known = [index for index, (other, _) in self._open.items() if other == number]
            index = known[0] if known else min({*range(len(self._open) + 1)} - {*self._open})
            lanes.setdefault(index, []).extend((row[t], not known and t == 0) for t in range(len(row)))
            self._open[index] = number, self._batch
            if row["next", "done"][-1].any():
                del self._open[index]
        self._open = {index: each for index, each in self._open.items() if self._batch - each[1] <= MOST_ABSENT}
        return lanes


def values_of(tensordict: TensorDictBase, keys: Sequence[Key], envs: list[int] | None = None) -> dict[int, dict]:
    """Return values by environment and path, like `per_env`, with texts as strings."""
    names = [key[0] if len(key) == 1 else key for key in keys if tensordict.get(key, None) is not None]
    batch = tensordict if tensordict.batch_dims else tensordict.unsqueeze(0)
    out = per_env(batch, names, envs)
    for values in out.values():
        for key, value in values.items():
            if not isinstance(value, torch.Tensor | str):
                values[key] = value.data if hasattr(value, "data") else value
    return out
