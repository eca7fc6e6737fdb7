"""Partial resets: find out which environments and which groups of agents were reset, also within a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torchrl.envs import AutoResetTransform, EnvBase, GymWrapper, IsaacLabWrapper, SerialEnv, TransformedEnv

from torchrl_rerun.kinds.endings import deciding
from torchrl_rerun.kinds.keys import Key, as_key
from torchrl_rerun.transform.environments import transforms_of
from torchrl_rerun.transform.tensordicts import data_keys, is_uneven, value_of

Resets = Mapping[Key, torch.Tensor]
"""Masks of the agents that were reset, bool ``[*batch, ...]``, by group; ``()`` is the environment itself."""


def resets_in(env: EnvBase, tensordict: TensorDictBase) -> Resets:
    """Return the masks of a partial reset, of the outermost groups that it names; empty: everything is reset.

    Args:
        env: the environment.
        tensordict: the data that was passed to the reset.
    """
    given = {key[:-1]: mask for key in map(as_key, env.reset_keys) if (mask := tensordict.get(key, None)) is not None}
    return {
        group: mask for group, mask in given.items() if not any(group[:depth] in given for depth in range(len(group)))
    }


def resets_by_group(env: EnvBase) -> bool:
    """Return whether groups of agents are reset apart: no flag is of the whole environment."""
    return bool(env.reset_keys) and "_reset" not in env.reset_keys


def reset_envs(env: EnvBase, resets: Resets, count: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return the environments of which any agent was reset, and those whose episodes begin, bool ``[envs]`` each.

    Args:
        env: the environment.
        resets: the masks of the reset, at least one.
        count: the number of environments.
    """
    each = {group: mask.cpu().numpy().reshape(count, -1) for group, mask in resets.items()}
    touched = np.logical_or.reduce([mask.any(axis=1) for mask in each.values()])
    if () in each:
        return touched, touched
    groups = {key[:-1] for key in deciding(as_key(key) for key in env.done_keys)}
    if not groups <= each.keys():
        return touched, np.zeros(count, bool)
    return touched, np.logical_and.reduce([each[group].all(axis=1) for group in groups])


def regrouped(observed: TensorDictBase, present: TensorDictBase, resets: Resets) -> TensorDictBase:
    """Return the data after a reset of some groups. As in TorchRL's rollouts, agents that weren't reset keep their data.

    Args:
        observed: the data after the reset.
        present: the data before the reset.
        resets: the masks of the reset.
    """
    out = observed.clone(recurse=False)
    for key in data_keys(observed):
        after, before = value_of(observed, key), value_of(present, key)
        if before is None or is_uneven(before):
            continue
        group = next((group for group in resets if key[: len(group)] == group), None)
        if group is None:
            out.set(key, before)
        elif isinstance(after, torch.Tensor) and isinstance(before, torch.Tensor) and after.shape == before.shape:
            dims = (observed.get(group) if group else observed).batch_dims
            mask = resets[group]
            mask = mask.flatten(dims).any(-1) if mask.ndim > dims else mask
            out.set(key, torch.where(mask.reshape(*mask.shape, *[1] * (after.ndim - dims)), after, before))
    return out


def resets_itself(env: EnvBase) -> bool:
    """Return whether a step that ends an episode returns the first observation of the next one."""
    return bool(env.__dict__.get("_torchrl_native_autoreset", False))


def reset_within_step(env: EnvBase | None, following: TensorDictBase) -> torch.Tensor | None:
    """Return the environments that a step has ended and reset, bool ``[envs]``; None: none resets itself within a step.

    The answer is where the flags are, which may be an accelerator: nothing waits for it.

    Args:
        env: the environment.
        following: the data after the step, of all environments.
    """
    if env is None or not _resets_within_steps(env):
        return None
    return _ended(env, following)


def _ended(env: EnvBase, following: TensorDictBase) -> torch.Tensor:
    """Return the environments whose episodes a step has ended, bool ``[envs]``."""
    count = following.batch_size.numel()
    return torch.stack([following.get(key).reshape(count, -1).any(-1) for key in env.done_keys]).any(0)


def _resets_within_steps(env: EnvBase) -> bool:
    while isinstance(env, TransformedEnv | SerialEnv):
        if resets_itself(env):
            return True
        if isinstance(env, SerialEnv):
            return any(map(_resets_within_steps, env._envs))  # noqa: SLF001 - there is no public way to them
        if any(isinstance(transform, AutoResetTransform) for transform in transforms_of(env)):
            return True
        env = env.base_env
    mode = getattr(getattr(env, "_env", None), "autoreset_mode", None) if isinstance(env, GymWrapper) else None
    within = mode is gymnasium.vector.AutoresetMode.SAME_STEP or isinstance(env, IsaacLabWrapper)
    return within or resets_itself(env)


def without_last_observations(
    keys: Sequence[Key], observed: Sequence[Any], env: EnvBase | None, following: TensorDictBase
) -> list[Any]:
    """Return the observations of an environment that resets itself, NaN (or 0) where an episode ended.

    The last observation is lost inside such a simulator. TorchRL's rollouts hold NaN, too, and the first observation of the
    next episode comes as a reset.

    Args:
        keys: the keys of the observations.
        observed: their values, ``[envs, ...]`` each; None for those that are missing.
        env: the environment.
        following: the data after the step.
    """
    out = list(observed)
    if env is None:
        return out
    done = _ended(env, following)
    ours = set(map(as_key, env.observation_keys))
    for i, (key, values) in enumerate(zip(keys, observed, strict=True)):
        if key not in ours or values is None:
            continue
        if isinstance(values, torch.Tensor):
            # On an accelerator: to ask whether any episode ended would be to wait for the answer.
            mask = done.reshape(len(done), *[1] * (values.ndim - 1))
            out[i] = torch.where(mask, torch.nan if values.is_floating_point() else 0, values).to(values.dtype)
        elif values.dtype != object and done.any():
            out[i] = values.copy()
            out[i][done.cpu().numpy()] = np.nan if values.dtype.kind == "f" else 0
    return out
