"""The expected rows of a recording, worked out from a rollout with plain lists, one environment at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from readback import Recorded, same


@dataclass
class Row:
    frame: int
    step: int
    episode: int
    episode_step: int
    value: Any


class Reference:
    """Count frames, steps and episodes of each environment in the obvious way."""

    def __init__(self, envs: int) -> None:
        self.envs = envs
        self.frame = -1
        self.step = 0
        self.at = [{"frame": None, "step": 0, "episode": -1, "episode_step": 0} for _ in range(envs)]
        self.rows: dict[tuple[int, str], list[Row]] = {}

    def add(self, env: int, key: str, value: Any) -> None:
        value = value.clone() if isinstance(value, torch.Tensor) else value
        self.rows.setdefault((env, key), []).append(Row(value=value, **self.at[env]))

    def reset(self, observed: dict[int, dict[str, Any]], begun: list[int] | None = None) -> None:
        """Note a reset.

        Args:
            observed: by environment that was reset, key -> value.
            begun: environments whose episodes begin. Default: None, all of ``observed``.
        """
        self.frame += 1
        for env, values in observed.items():
            begins = begun is None or env in begun
            self.at[env] = {
                "frame": self.frame,
                "step": self.step,
                "episode": self.at[env]["episode"] + begins,
                "episode_step": 0 if begins else self.at[env]["episode_step"],
            }
            for key, value in values.items():
                self.add(env, key, value)

    def steps(self, acted: dict[int, dict[str, Any]], outcome: dict[int, dict[str, Any]]) -> None:
        """Note a step. ``acted`` and ``outcome``: by environment that was stepped, key -> value."""
        for env, values in acted.items():
            for key, value in values.items():
                self.add(env, key, value)
        self.frame += 1
        self.step += 1
        for env, values in outcome.items():
            self.at[env] = {
                "frame": self.frame,
                "step": self.step,
                "episode": self.at[env]["episode"],
                "episode_step": self.at[env]["episode_step"] + 1,
            }
            for key, value in values.items():
                self.add(env, key, value)

    def compare(self, recorded: Recorded, *, first_env: int = 0, exact: bool = True) -> None:
        """Assert that a recording has every expected row and no other, returns aside: see ``compare_returns``."""
        wanted = {f"/env_{env + first_env}/{key}" for env, key in self.rows}
        found = {path for path in recorded.entities if "episode_return" not in path}
        assert found == wanted
        for (env, key), rows in self.rows.items():
            entity = recorded[f"/env_{env + first_env}/{key}"]
            where = f"env {env}, {key}"
            for timeline in ("frame", "step", "episode", "episode_step"):
                assert entity.along(timeline) == [getattr(row, timeline) for row in rows], (where, timeline)
            if exact:
                for value, row in zip(entity.values, rows, strict=True):
                    assert same(value, row.value), (where, row.frame, value, row.value)
        self.compare_returns(recorded, first_env)

    def compare_returns(self, recorded: Recorded, first_env: int = 0) -> None:
        """Assert that returns are the running sums of rewards, 0 at each reset."""
        for env in range(self.envs):
            rewards = {row.frame: row for row in self.rows.get((env, "reward"), ())}
            if not rewards:
                continue
            entity = recorded[f"/env_{env + first_env}/episode_return"]
            total: Any = None
            for times, value in zip(entity.times, entity.values, strict=True):
                if times["episode_step"] == 0:
                    total = torch.zeros_like(value)
                else:
                    total = total + rewards[times["frame"]].value.double()
                assert torch.equal(value, total)


def per_env(tensordict: TensorDictBase, keys: list[Any], envs: list[int] | None = None) -> dict[int, dict[str, Any]]:
    """Return ``{env: {path: value}}`` of a tensordict of all environments. Each agent of a group has a path."""
    batch_dims = tensordict.batch_dims
    flat = tensordict.select(*keys)
    flat = flat.reshape(-1) if batch_dims != 1 else flat
    out: dict[int, dict[str, Any]] = {}
    for env in envs if envs is not None else range(flat.shape[0]):
        values, row = out.setdefault(env, {}), flat[env]
        for key in keys:
            value = row.get(key)
            path = key if isinstance(key, str) else "/".join(key)
            grouped = isinstance(key, tuple) and flat.get(key[:-1]).batch_dims > 1
            if grouped:
                for agent in range(value.shape[0]):
                    values[f"{path}/agent_{agent}"] = value[agent]
            else:
                values[path] = value
    return out


def of_rollout(
    rollout: TensorDictBase,
    *,
    observed: list[Any],
    stepped: list[Any] = ("reward",),  # type: ignore[assignment]
    acted: list[Any] = ("action",),  # type: ignore[assignment]
    done: Any = "done",
    reference: Reference | None = None,
    continues: bool = False,
    reset_after_last: bool = False,
) -> Reference:
    """Return the reference of a rollout ``[*batch, time]`` whose environments are reset when they are done.

    ``continues``: the rollout goes on at the end of ``reference``.
    ``reset_after_last``: environments that are done at the last step were reset, too.
    """
    time = rollout.shape[-1]
    envs = rollout[..., 0].numel()
    reference = reference or Reference(envs)
    if not continues:
        reference.reset(per_env(rollout[..., 0], observed))
    for t in range(time):
        moment = rollout[..., t]
        following = moment.get("next")
        reference.steps(per_env(moment, list(acted)), per_env(following, [*observed, *stepped]))
        flags = following.get(done).reshape(envs, -1)
        ended = flags.any(-1).nonzero().flatten().tolist()
        if ended and t + 1 < time:
            begun = flags.all(-1).nonzero().flatten().tolist()  # otherwise only some agents were reset
            reference.reset(per_env(rollout[..., t + 1], observed, ended), begun)
    return reference


def leaves(tensordict):
    """Return the values of a tensordict by key, non-tensor data as lists."""
    found = {}
    for key in tensordict.keys(True, True, is_leaf=lambda kind: not issubclass(kind, TensorDict)):
        value = tensordict.get(key)
        found[key] = value if isinstance(value, torch.Tensor) else value.tolist()
    return found


def assert_same(found, wanted):
    """Assert that a recording and a rollout hold equal keys and values."""
    assert found.batch_size == wanted.batch_size
    found, wanted = leaves(found), leaves(wanted)
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        assert same(found[key], value), key


def of_episodes(rollout):
    """Return the steps ``[time]`` of each episode in a rollout, by environment and episode, with plain lists."""
    flat = rollout.reshape(-1, rollout.shape[-1])
    found = {}
    for env in range(flat.shape[0]):
        done = flat[env]["next", "done"].reshape(flat.shape[1], -1).any(-1)
        ends = sorted({*(done.nonzero().flatten() + 1).tolist(), flat.shape[1]})
        for episode, (first, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            found[env, episode] = flat[env, first:end]
    return found
