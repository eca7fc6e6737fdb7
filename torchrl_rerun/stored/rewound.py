"""Rewound environments: what rewinding asks of an environment, and Gymnasium's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from torchrl_rerun.kinds.endings import TERMINATED, TRUNCATED
from torchrl_rerun.kinds.keys import REWARD, Key, name_of
from torchrl_rerun.scenes.known import unwrapped
from torchrl_rerun.stored.states import Divergence, convert_action
from torchrl_rerun.wrappers.fields import ACTION, fields, observation_fields, observation_root

Moment = Mapping[Key, npt.NDArray[Any]]
"""What an environment gives after a reset or a step, by key."""

Row = Callable[[Key], npt.NDArray[Any] | None]
"""Returns the recorded value of a key at a moment; None: there is none."""

RESETS = 3
"""Resets after a seed was set, at most, until the first recorded episode began: TorchRL's ``set_seed`` resets, too."""


class RewindError(ValueError):
    """An environment can't be put back to a recorded step; the message says what is missing, or where they part.

    Attributes:
        divergence: the step at which the environment and the recording differ. None: something is missing.
    """

    def __init__(self, message: str, divergence: Divergence | None = None) -> None:
        super().__init__(message)
        self.divergence = divergence


class Rewound(ABC):
    """An environment that is put back to a recorded step.

    Attributes:
        simulated: the environment as its maker wrote it, without wrappers.
        inner: the environment of Gymnasium; None: there is none.
        action_keys: keys of the actions.
        observation_keys: keys of the simulator's observations, which transforms and wrappers may have changed.
    """

    simulated: Any
    inner: gymnasium.Env[Any, Any] | None
    action_keys: Sequence[Key]
    observation_keys: Sequence[Key]

    @abstractmethod
    def reset(self) -> Moment:
        """Reset the environment."""

    @abstractmethod
    def seeded(self, seed: int) -> Iterator[Moment]:
        """Yield what resets with a seed, and resets after these, give.

        Args:
            seed: the seed.
        """

    @abstractmethod
    def take_up(self, row: Row) -> None:
        """Take up values that are carried from step to step beside the simulator.

        Args:
            row: what was recorded at the step from which the environment goes on.
        """

    @abstractmethod
    def step(self, row: Row) -> Moment:
        """Take the recorded actions.

        Args:
            row: what was recorded before the step.
        """

    @abstractmethod
    def result(self, row: Row, *, is_set: bool) -> Any:
        """Return what ``reset`` would return in the present state.

        Args:
            row: what was recorded at this moment.
            is_set: whether the simulator was set to its state after a reset, so that the reset's observation is another's.
        """

    def count(self, steps: int, rewards: float) -> None:
        """Let what counts steps have counted these.

        Args:
            steps: the number of steps since the reset.
            rewards: the sum of their rewards.
        """
        if hasattr(self.simulated, "_step_limit"):  # dm_control 1.0.50: there is no public name
            self.simulated._step_count = steps  # noqa: SLF001
        wrapper = self.inner
        while isinstance(wrapper, gymnasium.Wrapper):
            counter: Any = wrapper  # gymnasium 1.4: types of wrappers leave out what they count
            if isinstance(wrapper, gymnasium.wrappers.TimeLimit):
                counter._elapsed_steps = steps  # noqa: SLF001 - there is no public name
            elif isinstance(wrapper, gymnasium.wrappers.RecordEpisodeStatistics):
                counter.episode_lengths, counter.episode_returns = steps, rewards
            wrapper = wrapper.env


class RewoundGymnasium(Rewound):
    """An environment of Gymnasium.

    Args:
        env: the environment.

    Raises:
        ValueError: it is a batch.
    """

    inner: gymnasium.Env[Any, Any]

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self.inner = env
        refuse_batch(getattr(env.unwrapped, "num_envs", None))
        [self.simulated] = unwrapped(env)
        self._fields = observation_fields(env.observation_space)
        self.observation_keys = [field.key for field in self._fields]
        self.action_keys = [field.key for field in fields(env.action_space, ACTION)]
        self._last: tuple[Any, dict[str, Any]] = None, {}

    def reset(self) -> Moment:
        """Reset the environment: see :meth:`Rewound.reset`."""
        self._last = self.inner.reset()
        return self._observed()

    def seeded(self, seed: int) -> Iterator[Moment]:
        """Yield what resets give: see :meth:`Rewound.seeded`."""
        self._last = self.inner.reset(seed=seed)
        yield self._observed()
        for _ in range(RESETS - 1):
            yield self.reset()

    def take_up(self, row: Row) -> None:
        """Do nothing: Gymnasium's environments carry nothing outside of themselves."""
        del row

    def step(self, row: Row) -> Moment:
        """Take the recorded actions: see :meth:`Rewound.step`."""
        action = _assembled(self.inner.action_space, ACTION, row)
        observation, reward, terminated, truncated, info = self.inner.step(action)
        self._last = observation, info
        outcome = {REWARD: reward, TERMINATED: terminated, TRUNCATED: truncated}
        return {**self._observed(), **{(name,): np.asarray(value) for name, value in outcome.items()}}

    def result(self, row: Row, *, is_set: bool) -> tuple[Any, dict[str, Any]]:
        """Return an observation and infos: see :meth:`Rewound.result`."""
        if not is_set:
            return self._last
        info: dict[str, Any]
        # gymnasium 1.4: what MuJoCo's environments say at a reset follows from their state
        info = getattr(self.simulated, "_get_reset_info", dict)()
        space = self.inner.observation_space
        return _assembled(space, observation_root(space), row), info

    def _observed(self) -> Moment:
        observation = self._last[0]
        return {field.key: np.asarray(field.of_one(observation)) for field in self._fields if field.form == "array"}


def _assembled(space: spaces.Space[Any], key: Key, row: Row) -> Any:
    """Return a value of a space from the recorded values of its parts.

    Args:
        space: the space.
        key: the key of the space.
        row: what was recorded.

    Raises:
        RewindError: a part doesn't come back as it was.
        ValueError: a part doesn't fit the space.
    """
    match space:
        case spaces.Dict():
            return {name: _assembled(part, (*key, str(name)), row) for name, part in space.spaces.items()}
        case spaces.Tuple():
            return tuple(_assembled(part, (*key, str(index)), row) for index, part in enumerate(space.spaces))
    return convert_action(np.asarray(exactly(row, key)), space)


def exactly(row: Row, key: Key) -> npt.NDArray[Any]:
    """Return the recorded value of a key.

    Args:
        row: what was recorded.
        key: the key.

    Raises:
        RewindError: there is none that comes back as it was.
    """
    stored = row(key)
    if stored is None:
        raise RewindError(f"{name_of(key)} is not recorded, or doesn't come back as it was")
    return stored


def refuse_batch(envs: object) -> None:
    """Raise ValueError if an environment is a batch.

    Args:
        envs: the size of the batch; None: it is none.
    """
    if envs is not None:
        raise ValueError(f"one environment is rewound at a time, and this is a batch of {envs}")
