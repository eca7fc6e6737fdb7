"""States: set environments of Gymnasium to stored observations, take stored actions, and compare what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from torchrl_rerun.kinds.keys import Key, name_of

TOLERANCE = 1e-4
"""Largest relative difference from a stored number (absolute below 1): stored states are rounded."""


@dataclass(frozen=True)
class Divergence:
    """Step at which an environment and the stored data differ.

    Attributes:
        env: Environment index.
        episode: Number of the episode in its environment, from 0.
        step: Step within the episode, from 1; 0 is the reset.
        key: Key with the largest difference.
        difference: Largest absolute difference; infinite if the shapes differ.
    """

    env: int
    episode: int
    step: int
    key: Key
    difference: float

    def __str__(self) -> str:
        return f"environment {self.env}, episode {self.episode}, step {self.step}: {name_of(self.key)} differs by {self.difference:g}"


def find_state_setter(env: gymnasium.Env[Any, Any]) -> Callable[[npt.NDArray[np.float64]], None] | None:
    """Return a function that sets an environment to an observation, or None if its state doesn't follow from one.

    >>> env = gymnasium.make("Pendulum-v1")
    >>> find_state_setter(env)(np.array([0.0, 1.0, 0.5]))
    >>> env.unwrapped.state.round(3)
    array([1.571, 0.5  ])
    >>> find_state_setter(gymnasium.make("FrozenLake-v1")) is None
    True
    """
    simulator: Any = env.unwrapped
    module, name = type(simulator).__module__, type(simulator).__name__
    if module.startswith("gymnasium.envs.classic_control."):
        state_of = _STATES.get(name)
        return None if state_of is None else lambda observation: setattr(simulator, "state", state_of(observation))
    if module.startswith("gymnasium.envs.mujoco.") and env.observation_space.shape == simulator.observation_space.shape:
        unobserved = _count_unobserved_positions(simulator)
        return None if unobserved is None else lambda observation: _set_mujoco(simulator, unobserved, observation)
    return None


def _count_unobserved_positions(simulator: Any) -> int | None:
    """Return how many leading positions MuJoCo observations leave out, or None if they aren't positions and velocities."""
    structure = getattr(simulator, "observation_structure", None)
    if structure is not None:
        return int(structure.get("skipped_qpos", 0))
    unobserved = simulator.model.nq + simulator.model.nv - simulator.observation_space.shape[0]
    return unobserved if unobserved >= 0 else None


def _set_mujoco(simulator: Any, unobserved: int, observation: npt.NDArray[np.float64]) -> None:
    """Set MuJoCo to an observation. Unobserved positions and velocities that observations clip stay as they are."""
    data, split = simulator.data, simulator.model.nq - unobserved
    speeds = slice(split, split + simulator.model.nv)
    seen = simulator._get_obs()[speeds]  # noqa: SLF001 - gymnasium's own name
    positions = np.concatenate([data.qpos[:unobserved], observation[:split]])
    velocities = np.where(seen == data.qvel, observation[speeds], data.qvel)
    if data.time == 0.0:
        simulator.set_state(positions, velocities)
    else:  # `set_state` would recompute forces of the last step, which observations and rewards contain
        data.qpos[:], data.qvel[:] = positions, velocities


_STATES: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "CartPoleEnv": lambda seen: seen,
    "MountainCarEnv": lambda seen: seen,
    "Continuous_MountainCarEnv": lambda seen: seen,
    "PendulumEnv": lambda seen: np.array([np.arctan2(seen[1], seen[0]), seen[2]]),
    "AcrobotEnv": lambda seen: np.array([np.arctan2(seen[1], seen[0]), np.arctan2(seen[3], seen[2]), seen[4], seen[5]]),
}
"""Functions from an observation to the state, by the class of gymnasium's classic control."""


def convert_action(stored: npt.NDArray[Any], space: spaces.Space[Any]) -> Any:
    """Return a stored action in the form that gymnasium takes. One-hot actions become numbers.

    Raises:
        ValueError: The action doesn't fit the space.

    >>> convert_action(np.array([0, 0, 1]), spaces.Discrete(3)), convert_action(np.array([1]), spaces.Discrete(3))
    (2, 1)
    """
    flat = stored.reshape(-1)
    match space:
        case spaces.Discrete() if flat.size == 1:
            action: Any = int(flat[0])
        case spaces.Discrete() if flat.size == space.n:
            action = int(flat.argmax() + space.start)
        case spaces.MultiDiscrete() if flat.size == space.nvec.size:
            action = flat.reshape(space.shape).astype(space.dtype)
        case spaces.MultiDiscrete() if flat.size == space.nvec.sum():
            parts = np.split(flat, np.cumsum(space.nvec.reshape(-1))[:-1])
            action = np.array([part.argmax() for part in parts], space.dtype).reshape(space.shape)
        case spaces.Box() | spaces.MultiBinary() if flat.size == np.prod(space.shape):
            action = flat.reshape(space.shape).astype(space.dtype)
        case _:
            raise ValueError(f"a stored action of {stored.dtype} {stored.shape} doesn't fit {space}")
    return action


def key_observations(observed: Any, key: Key = ("observation",)) -> dict[Key, npt.NDArray[Any]]:
    """Return an observation by the keys under which TorchRL and Minari store it."""
    if not isinstance(observed, dict):
        return {key: np.asarray(observed)}
    return {
        found: value for name, each in observed.items() for found, value in key_observations(each, (*key, name)).items()
    }


def find_difference(actual: Mapping[Key, npt.NDArray[Any]], stored: Mapping[Key, Any]) -> tuple[Key, float] | None:
    """Return the key that differs most from the stored data and by how much; None if all are within the tolerance."""
    worst: tuple[Key, float] | None = None
    for key, value in actual.items():
        known = stored.get(key, stored.get(key[1:]))
        if known is None:
            if key == ("reward",):
                continue
            raise ValueError(f"the source holds no {name_of(key)}, with which steps that are taken again are compared")
        if value.size == 1 and known.size > 1 and known.sum() == known.max() == 1:  # one-hot
            known = known.argmax()
        if known.size != value.size:
            return key, float("inf")
        a, b = value.reshape(-1).astype(np.float64), known.reshape(-1).astype(np.float64)
        off = np.abs(a - b)
        off[np.isnan(b)] = 0.0  # not stored, such as the last observation of an episode
        if (off > TOLERANCE * np.maximum(1.0, np.abs(b))).any() and (worst is None or off.max() > worst[1]):
            worst = key, float(off.max())
    return worst


def name_of_env(env: gymnasium.Env[Any, Any]) -> str:
    """Return the id of an environment, for messages."""
    return env.spec.id if env.spec is not None else str(env)
