"""Following: replay trajectories in their environment, and add what can be seen in it at each moment."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torchrl._utils import seed_generator

from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.stored.segments import Segment
from torchrl_rerun.stored.states import (
    Divergence,
    convert_action,
    find_difference,
    find_state_setter,
    key_observations,
    name_of_env,
)
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.continuity import Continuity, stepped_in

MakeEnv = Callable[[], gymnasium.Env[Any, Any]]


class Sight(NamedTuple):
    """What is seen in one environment.

    Attributes:
        unknown: Value that stands for unknown ones.
        see: Function that returns the present value. Later steps don't change it.
    """

    unknown: npt.NDArray[Any]
    see: Callable[[], npt.NDArray[Any]]


class Seen(ABC):
    """Values that are seen in environments.

    Attributes:
        key: Key of the values.
        option: Option by which a user asks for them, for messages.
    """

    key: Key
    option: str

    @abstractmethod
    def sight_of(self, env: gymnasium.Env[Any, Any]) -> Sight:
        """Return what is seen in one environment.

        Args:
            env: Environment, after a reset.

        Raises:
            ValueError: The environment gives no such values.
        """


class Follower:
    """Adds what is seen in an environment to stored trajectories.

    There are two ways to follow a trajectory:

    - If the environment's state follows from the observation, the environment is set to each stored observation, looked at,
      and stepped once with the stored action, to compare. These are gymnasium's classic control, and MuJoCo environments
      whose observations begin with positions and velocities.
    - Any other environment is reset with the seed and takes the stored actions.

    Args:
        make_env: Function that makes an environment; called once for each environment.
        seen: Value that is added.
        seed: Seed that the environment, or the batch, was given. The first episode of each environment begins with the
            seed that TorchRL derives from it; later episodes have none. Default: None, for the seeds that are stored.

    Attributes:
        divergences: Steps at which environments and the stored data differ.
    """

    def __init__(self, make_env: MakeEnv, seen: Seen, seed: int | None = None) -> None:
        self._make_env = make_env
        self._seen = seen
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

    def add_to(self, segments: Iterator[Segment]) -> Iterator[Segment]:
        """Yield each time step of the segments as a segment of its own, with the values that are added.

        Raises:
            ValueError: The stored data doesn't fit the environment, no seed is known to begin an episode with, or the
                environment gives no such values.
        """
        continuity = Continuity()
        for segment in itertools.chain.from_iterable(segment.split_padded() for segment in segments):
            stepped = stepped_in(segment.tensordict)
            begun = continuity.begun(segment.tensordict, stepped).episodes
            begun[:, 0] |= segment.begins
            for i, moment in enumerate(segment.tensordict.unbind(-1)):
                mask = np.ones(len(begun), bool) if stepped is None else stepped[:, i]
                added = self._add(moment, mask, begun[:, i] & mask, segment.seeds)
                yield Segment(added.unsqueeze(-1), begun[:, i])

    def _add(
        self,
        moment: TensorDictBase,
        mask: npt.NDArray[np.bool_],
        begun: npt.NDArray[np.bool_],
        seeds: Sequence[int | None],
    ) -> TensorDictBase:
        if not self._replicas:
            self._replicas = [
                _Replica(self._make_env(), self._seen, seeds) for seeds in guess_first_seeds(self._seed, len(begun))
            ]
        key = self._seen.key
        if tensordicts.value_of(moment, key) is not None:
            raise ValueError(f"the source holds {name_of(key)} already: leave {self._seen.option} out")
        root, following = _collect_arrays(moment), _collect_arrays(moment.get("next"))
        before, after = [], []
        for i, replica in enumerate(self._replicas):
            now = {key: values[i] for key, values in root.items()}
            if begun[i]:
                self._note_divergence(i, replica, replica.begin(now, seeds[i] if seeds else None))
            before.append(replica.value)
            if mask[i]:
                self._note_divergence(
                    i, replica, replica.step(now, {key: values[i] for key, values in following.items()})
                )
            after.append(replica.value)
        out = moment.clone(recurse=False)
        out.set("next", moment.get("next").clone(recurse=False).set(key, _stack(after, moment.batch_size)))
        return out.set(key, _stack(before, moment.batch_size))

    def _note_divergence(self, env: int, replica: _Replica, divergence: tuple[Key, float] | None) -> None:
        if divergence is not None:
            self.divergences.append(Divergence(env, replica.episode, replica.at, *divergence))


class _Replica:
    """An environment that follows stored episodes.

    Attributes:
        env: Environment.
        value: What is seen of its present state.
        episode: Number of the present episode, from 0.
        at: Number of steps taken in the episode.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], seen: Seen, seeds: Sequence[int]) -> None:
        self.env = env
        self._seeds = seeds
        self._set_state = None if seeds else find_state_setter(env)
        env.reset(seed=0)
        self._sight = seen.sight_of(env)
        self.value = self._sight.unknown
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
                f"{name_of_env(self.env)} can't be set to a stored observation, so that its "
                "episodes are replayed from the reset: pass the seed (--seed)"
            )
        # TorchRL resets once when a seed is set, and once more at the rollout's beginning.
        resets = [reset for each in seeds for reset in (each, None)] or [None]
        divergences = (find_difference(key_observations(self.env.reset(seed=each)[0]), stored) for each in resets)
        first = next(divergences)
        return self._see(None if first is None or None in divergences else first)

    def step(self, before: Mapping[Key, Any], after: Mapping[Key, Any]) -> tuple[Key, float] | None:
        """Take the stored action. Return the key that differs from the stored result and by how much, or None."""
        self.at += 1
        if self._has_diverged:
            return None
        if not self._is_set:
            return self._set_to(after)
        if ("action",) not in before:
            raise ValueError("the source holds no 'action', without which no step can be taken again")
        observed, reward, *_ = self.env.step(convert_action(before["action",], self.env.action_space))
        actual = key_observations(observed) | {("reward",): np.asarray(reward)}
        divergence = find_difference(actual, after)
        if divergence is None and self._set_state is not None:
            return self._set_to(after)
        return self._see(divergence)

    def _set_to(self, stored: Mapping[Key, Any]) -> tuple[Key, float] | None:
        """Set the environment to a stored observation. Nothing is seen of an observation that is unknown (NaN)."""
        assert self._set_state is not None, "the caller checked it"
        observation = stored.get(("observation",))
        size = self.env.observation_space.shape
        if observation is None or observation.shape != size:
            there = "nothing" if observation is None else f"of shape {observation.shape}"
            raise ValueError(f"{name_of_env(self.env)} has observations of shape {size}; stored is {there}")
        self._is_set = bool(np.isfinite(observation.astype(np.float64)).all())
        if not self._is_set:
            self.value = self._sight.unknown
            return None
        self._set_state(observation.astype(np.float64))
        simulator = self.env.unwrapped
        seen = simulator._get_obs() if hasattr(simulator, "_get_obs") else observation  # noqa: SLF001 - gymnasium's own name
        return self._see(find_difference(key_observations(seen), stored))

    def _see(self, divergence: tuple[Key, float] | None) -> tuple[Key, float] | None:
        self._has_diverged = divergence is not None
        self.value = self._sight.unknown if self._has_diverged else self._sight.see()
        return divergence


def find_maker(env: str | MakeEnv, option: str, **arguments: Any) -> MakeEnv:
    """Return the function that makes an environment.

    Args:
        env: Registered id of gymnasium, or the function.
        option: Option by which a user asks for it, for messages.
        arguments: Arguments of ``gymnasium.make``.

    Raises:
        ValueError: No environment has this id.
    """
    if callable(env):
        return env
    try:
        gymnasium.spec(env)
    except gymnasium.error.Error as error:
        raise ValueError(f"{option}={env!r}: {error}") from None
    return lambda: gymnasium.make(env, disable_env_checker=True, **arguments)


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


def _collect_arrays(tensordict: TensorDictBase) -> dict[Key, npt.NDArray[Any]]:
    """Return the tensors of a tensordict as arrays, ``[envs, ...]``."""
    found = {key: tensordicts.value_of(tensordict, key) for key in tensordicts.data_keys(tensordict)}
    return {
        key: tensordicts.as_array(value, tensordict.batch_size)
        for key, value in found.items()
        if isinstance(value, torch.Tensor)
    }


def _stack(values: Sequence[npt.NDArray[Any]], batch_size: torch.Size) -> torch.Tensor:
    return torch.from_numpy(np.stack(values)).reshape(*batch_size, *values[0].shape)
