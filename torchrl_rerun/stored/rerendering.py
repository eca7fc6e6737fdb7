"""Rendering afterwards: replay trajectories without pictures in their environment, and add what it renders."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torchrl._utils import seed_generator

from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.recording.camera import PIXELS, NoPictureError, as_picture
from torchrl_rerun.stored.segments import Segment
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.continuity import Continuity, stepped_in

MakeEnv = Callable[[], gymnasium.Env[Any, Any]]

TOLERANCE = 1e-4
"""Largest relative difference from a stored number (absolute below 1): stored states are rounded."""


@dataclass(frozen=True)
class Divergence:
    """Step at which an environment and the stored data differ. The rest of the episode has no pictures.

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


class Rerenderer:
    """Adds pictures to stored trajectories.

    There are two ways to follow a trajectory:

    - If the environment's state follows from the observation, the environment is set to each stored observation, rendered,
      and stepped once with the stored action, to compare. These are gymnasium's classic control, and MuJoCo environments
      whose observations begin with positions and velocities.
    - Any other environment is reset with the seed and takes the stored actions.

    Unknown pictures are black.

    Args:
        make_env: Function that makes an environment with ``render_mode="rgb_array"``; called once for each environment.
        seed: Seed that the environment, or the batch, was given. The first episode of each environment begins with the
            seed that TorchRL derives from it; later episodes have none. Default: None, for the seeds that are stored.

    Attributes:
        divergences: Steps at which environments and the stored data differ.

    Raises:
        ValueError: The environment renders no pictures.
    """

    def __init__(self, make_env: MakeEnv, seed: int | None = None) -> None:
        self._make_env = make_env
        self._seed = seed
        self._replicas: list[_Replica] = []
        self.divergences: list[Divergence] = []

    @property
    def needs_no_seed(self) -> bool:
        """Whether a seed was given although the environment's state follows from the observation."""
        return self._seed is not None and any(find_state_setter(replica.env) is not None for replica in self._replicas)

    def close(self) -> None:
        """Close the environments."""
        for replica in self._replicas:
            replica.env.close()

    def render(self, segments: Iterator[Segment]) -> Iterator[Segment]:
        """Yield each time step of the segments as a segment of its own, with pictures.

        Raises:
            ValueError: The stored data doesn't fit the environment, or no seed is known to begin an episode with.
        """
        continuity = Continuity()
        for segment in itertools.chain.from_iterable(segment.split_padded() for segment in segments):
            stepped = stepped_in(segment.tensordict)
            begun = continuity.begun(segment.tensordict, stepped).episodes
            begun[:, 0] |= segment.begins
            for i, moment in enumerate(segment.tensordict.unbind(-1)):
                mask = np.ones(len(begun), bool) if stepped is None else stepped[:, i]
                rendered = self._add_pictures(moment, mask, begun[:, i] & mask, segment.seeds)
                yield Segment(rendered.unsqueeze(-1), begun[:, i])

    def _add_pictures(
        self,
        moment: TensorDictBase,
        mask: npt.NDArray[np.bool_],
        begun: npt.NDArray[np.bool_],
        seeds: Sequence[int | None],
    ) -> TensorDictBase:
        if not self._replicas:
            self._replicas = [_Replica(self._make_env(), seeds) for seeds in guess_first_seeds(self._seed, len(begun))]
        if tensordicts.value_of(moment, PIXELS) is not None:
            raise ValueError(f"the source holds {name_of(PIXELS)} already: leave render out")
        root, following = _collect_arrays(moment), _collect_arrays(moment.get("next"))
        before, after = [], []
        for i, replica in enumerate(self._replicas):
            now = {key: values[i] for key, values in root.items()}
            if begun[i]:
                self._note_divergence(i, replica, replica.begin(now, seeds[i] if seeds else None))
            before.append(replica.picture)
            if mask[i]:
                self._note_divergence(
                    i, replica, replica.step(now, {key: values[i] for key, values in following.items()})
                )
            after.append(replica.picture)
        out = moment.clone(recurse=False)
        out.set("next", moment.get("next").clone(recurse=False).set(PIXELS, _stack(after, moment.batch_size)))
        return out.set(PIXELS, _stack(before, moment.batch_size))

    def _note_divergence(self, env: int, replica: _Replica, divergence: tuple[Key, float] | None) -> None:
        if divergence is not None:
            self.divergences.append(Divergence(env, replica.episode, replica.at, *divergence))


class _Replica:
    """An environment that follows stored episodes.

    Attributes:
        env: Environment.
        picture: Picture of its present state, ``[height, width, 3]`` uint8; black if unknown.
        episode: Number of the present episode, from 0.
        at: Number of steps taken in the episode.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], seeds: Sequence[int]) -> None:
        self.env = env
        self._seeds = seeds
        self._set_state = None if seeds else find_state_setter(env)
        env.reset(seed=0)
        try:
            self._black = np.zeros_like(as_picture(env.render()))
        except NoPictureError as error:
            raise ValueError(f"{env} can't be rendered: {error}; make it with render_mode='rgb_array'") from None
        except Exception as error:  # a graphics library can raise anything
            raise ValueError(
                f"{env.spec.id if env.spec else env} can't be rendered here: {type(error).__name__}: {error}. Without a display "
                "set the environment variables MUJOCO_GL=egl (MuJoCo) and SDL_VIDEODRIVER=dummy before Python starts"
            ) from error
        self.picture = self._black
        self.episode = -1
        self.at = 0
        self._has_diverged = False
        self._is_set = True  # its state is the stored one

    def begin(self, stored: Mapping[Key, Any], seed: int | None) -> tuple[Key, float] | None:
        """Begin an episode. Return the key that differs from the stored reset and by how much, or None."""
        self.episode, self.at, self._has_diverged = self.episode + 1, 0, False
        if self._set_state is not None:
            self.env.reset()
            return self._set_to(stored)
        is_first = self.episode == 0
        seeds = self._seeds if is_first and self._seeds else [] if seed is None else [seed]
        if is_first and not seeds:
            raise ValueError(
                f"{self.env.spec.id if self.env.spec else self.env} can't be set to a stored observation, so that its "
                "episodes are replayed from the reset: pass the seed (--seed)"
            )
        # TorchRL resets once when a seed is set, and once more at the rollout's beginning.
        resets = [reset for each in seeds for reset in (each, None)] or [None]
        divergences = (_find_difference(_key_observations(self.env.reset(seed=each)[0]), stored) for each in resets)
        first = next(divergences)
        return self._render(None if first is None or None in divergences else first)

    def step(self, before: Mapping[Key, Any], after: Mapping[Key, Any]) -> tuple[Key, float] | None:
        """Take the stored action. Return the key that differs from the stored result and by how much, or None."""
        self.at += 1
        if self._has_diverged:
            return None
        if not self._is_set:
            return self._set_to(after)
        if ("action",) not in before:
            raise ValueError("the source holds no 'action', without which no step can be rendered")
        observed, reward, *_ = self.env.step(convert_action(before["action",], self.env.action_space))
        actual = _key_observations(observed) | {("reward",): np.asarray(reward)}
        divergence = _find_difference(actual, after)
        if divergence is None and self._set_state is not None:
            return self._set_to(after)
        return self._render(divergence)

    def _set_to(self, stored: Mapping[Key, Any]) -> tuple[Key, float] | None:
        """Set the environment to a stored observation and render it. An observation that is unknown (NaN) has no picture."""
        assert self._set_state is not None, "the caller checked it"
        observation = stored.get(("observation",))
        size = self.env.observation_space.shape
        if observation is None or observation.shape != size:
            there = "nothing" if observation is None else f"of shape {observation.shape}"
            raise ValueError(
                f"{self.env.spec.id if self.env.spec else self.env} has observations of shape {size}; stored is {there}"
            )
        self._is_set = bool(np.isfinite(observation.astype(np.float64)).all())
        if not self._is_set:
            self.picture = self._black
            return None
        self._set_state(observation.astype(np.float64))
        simulator = self.env.unwrapped
        seen = simulator._get_obs() if hasattr(simulator, "_get_obs") else observation  # noqa: SLF001 - gymnasium's own name
        return self._render(_find_difference(_key_observations(seen), stored))

    def _render(self, divergence: tuple[Key, float] | None) -> tuple[Key, float] | None:
        self._has_diverged = divergence is not None
        self.picture = self._black if self._has_diverged else np.array(as_picture(self.env.render()))
        return divergence


def guess_first_seeds(seed: int | None, envs: int) -> list[list[int]]:
    """Return the seeds that the environments of a batch may have begun with, the likeliest first; empty without a seed.

    ``SerialEnv`` and ``ParallelEnv`` draw a worker's seed from the seed of the worker before. Vectorized environments of
    gymnasium (``GymEnv(..., num_envs=n)``) add 1.

    >>> guess_first_seeds(3, 2), guess_first_seeds(None, 2)
    ([[3], [2346560485, 4]], [[], []])
    """
    if seed is None:
        return [[] for _ in range(envs)]
    drawn = [seed]
    for _ in range(envs - 1):
        drawn.append(seed_generator(drawn[-1]))
    return [list(dict.fromkeys((each, seed + i))) for i, each in enumerate(drawn)]


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


def _key_observations(observed: Any, key: Key = ("observation",)) -> dict[Key, npt.NDArray[Any]]:
    """Return an observation by the keys under which TorchRL and Minari store it."""
    if not isinstance(observed, dict):
        return {key: np.asarray(observed)}
    return {
        found: value
        for name, each in observed.items()
        for found, value in _key_observations(each, (*key, name)).items()
    }


def _find_difference(actual: Mapping[Key, npt.NDArray[Any]], stored: Mapping[Key, Any]) -> tuple[Key, float] | None:
    """Return the key that differs most from the stored data and by how much; None if all are within the tolerance."""
    worst: tuple[Key, float] | None = None
    for key, value in actual.items():
        known = stored.get(key, stored.get(key[1:]))
        if known is None:
            if key == ("reward",):
                continue
            raise ValueError(f"the source holds no {name_of(key)}, with which rendered steps are compared")
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


def _collect_arrays(tensordict: TensorDictBase) -> dict[Key, npt.NDArray[Any]]:
    """Return the tensors of a tensordict as arrays, ``[envs, ...]``."""
    found = {key: tensordicts.value_of(tensordict, key) for key in tensordicts.data_keys(tensordict)}
    return {
        key: tensordicts.as_array(value, tensordict.batch_size)
        for key, value in found.items()
        if isinstance(value, torch.Tensor)
    }


def _stack(pictures: Sequence[npt.NDArray[Any]], batch_size: torch.Size) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).reshape(*batch_size, *pictures[0].shape)
