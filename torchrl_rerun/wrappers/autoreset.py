"""Autoreset: when a batch resets the environments that are done, and what its spaces are, as far as it tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from torchrl_rerun.wrappers.readers import as_array
from torchrl_rerun.wrappers.stepped import Mask

Modes = AutoresetMode | str | None
"""A mode, its value (``"SameStep"``), or None: as the environment says."""

_MANISKILL = "mani_skill"

_SIMULATORS = {
    # Resets within `step`, and gives no last observation.
    "isaaclab": AutoresetMode.SAME_STEP,
    "omni": AutoresetMode.SAME_STEP,
    _MANISKILL: AutoresetMode.DISABLED,
}
"""Modes of environments that are batched although they are a ``gymnasium.Env``, by the package of their class."""


def reset_mask_in(options: Any, env: Any, mode: AutoresetMode | None) -> Mask:
    """Return which environments a call of ``reset`` is about, by its options; None: all.

    Read them before the call: ``SyncVectorEnv`` removes the mask from them.

    - ``"env_idx"``, indices: of ManiSkill's environments alone.
    - ``"reset_mask"``: of ``SyncVectorEnv`` and ``AsyncVectorEnv``, and of all others whose mode is DISABLED.
    - All others reset all, whatever the options say.

    Args:
        options: the options of the call.
        env: the environments.
        mode: when those that are done are reset.
    """
    if not isinstance(options, Mapping):
        return None
    envs, inner = env.unwrapped.num_envs, env.unwrapped
    takes_mask = mode is AutoresetMode.DISABLED or isinstance(inner, SyncVectorEnv | AsyncVectorEnv)
    given = options.get("reset_mask") if takes_mask else None
    indices = options.get("env_idx") if _package_of(inner) == _MANISKILL else None
    if given is None and indices is None:
        return None
    try:
        if given is not None:
            mask = np.array(as_array(given), np.bool_)
        else:
            mask = np.zeros(envs, np.bool_)
            mask[as_array(indices)] = True
    except Exception:  # the environment refuses it, too
        return None
    return None if mask.shape != (envs,) or mask.all() else mask


def mode_of(env: Any, given: Modes, default: AutoresetMode | None) -> AutoresetMode:
    """Return when an environment resets those of its batch that are done.

    Args:
        env: the environment.
        given: the user's word; None: none.
        default: the mode of an environment that doesn't say; None: it must.

    Raises:
        ValueError: there is no such mode, or the environment doesn't say.
    """
    said = given if given is not None else getattr(env, "metadata", {}).get("autoreset_mode")
    if said is not None:
        try:
            return said if isinstance(said, AutoresetMode) else AutoresetMode(said)
        except ValueError:
            known = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise ValueError(f"autoreset_mode={said!r}: choose one of {known}") from None
    found = _SIMULATORS.get(_package_of(env.unwrapped), default)
    if found is None:
        raise ValueError(
            f"{type(env.unwrapped).__name__} is a batch of {env.unwrapped.num_envs} environments, and doesn't say when it resets "
            "those that are done: pass autoreset_mode='NextStep' (the call of step after it), 'SameStep' (the same call) or "
            "'Disabled' (the user does)"
        )
    return found


def _package_of(env: Any) -> str:
    return type(env).__module__.partition(".")[0]


def single_spaces(env: Any) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Return the spaces of the observation and of the action of one environment of a batch.

    Args:
        env: the environment.
    """
    found = []
    for name in ("observation_space", "action_space"):
        single = getattr(env, f"single_{name}", None) or getattr(env.unwrapped, f"single_{name}", None)
        found.append(_unbatched(getattr(env, name)) if single is None else single)
    return found[0], found[1]


def _unbatched(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the space of one environment, of a batch's: without the first dimension."""
    match space:
        case spaces.Dict():
            return spaces.Dict({name: _unbatched(part) for name, part in space.spaces.items()})
        case spaces.Box() if space.shape:
            return spaces.Box(space.low[0], space.high[0], dtype=space.dtype)
        case spaces.MultiDiscrete() if space.nvec.ndim == 1:
            return spaces.Discrete(int(space.nvec[0]), start=int(space.start[0]))
        case spaces.MultiDiscrete():
            return spaces.MultiDiscrete(space.nvec[0], start=space.start[0])
    return space
