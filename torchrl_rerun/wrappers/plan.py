"""The plan: what is known of environments, and how all that is recorded is read. Each step only follows it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gymnasium import spaces

from torchrl_rerun.kinds.endings import DONE, TERMINATED, TRUNCATED
from torchrl_rerun.kinds.keys import REWARD
from torchrl_rerun.recording.known_names import Names
from torchrl_rerun.wrappers.readers import Readers

OBSERVED_ROOT = ("observation", "info", "terminated", "truncated", "done")
"""The parts of what is read at a reset and after a step. Flags are down at a reset, as TorchRL has them."""
STEPPED_ROOT = ("reward", "info")
"""The parts of what is read after a step alone."""
ACTED_ROOT = ("action", "extras")
"""The parts of what is read of the policy."""

FLAGS = ((DONE,), (TERMINATED,), (TRUNCATED,))
"""Keys of the flags."""

OUTCOMES = ((REWARD,), *FLAGS)
"""Keys of what a step leads to."""


@dataclass(frozen=True)
class About:
    """The environments that a front end records.

    Attributes:
        envs: the number of environments in a batch; None: one environment, whose values have no batch dimension.
        observation_space: the space of one environment's observation.
        action_space: the space of one environment's action.
        name: returns the name of the environment; None: it has none.
        fps: returns the frames per second of simulated time; None: unknown.
        names: returns names of the numbers of observations and actions.
        spec: returns the text that one environment can be made from again; None: unknown.
        origin: the front end, spaces and whatever else the schema says, as JSON has it.
        reward_shape: the shape of one environment's reward.
    """

    envs: int | None
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    name: Callable[[], str | None]
    fps: Callable[[], float | None]
    names: Callable[[], Names] = Names
    spec: Callable[[], str | None] = lambda: None
    origin: Mapping[str, Any] = field(default_factory=dict)
    reward_shape: tuple[int, ...] = (1,)

    @property
    def batch_size(self) -> tuple[int, ...]:
        """The batch size of the environments, as TorchRL has it."""
        return () if self.envs is None else (self.envs,)


@dataclass(frozen=True)
class Plan:
    """The readers of all that is recorded.

    Attributes:
        observed: of observations and flags. They read :data:`OBSERVED_ROOT`.
        stepped: of what else a step leads to; None: no step has been seen. They read :data:`STEPPED_ROOT`.
        acted: of what the policy wrote. They read :data:`ACTED_ROOT`.
    """

    observed: Readers
    stepped: Readers | None = None
    acted: Readers | None = None

    @functools.cached_property
    def flags(self) -> list[int]:
        """Where the flags are among the observations."""
        return [at for at, reader in enumerate(self.observed) if reader.stream.key in FLAGS]
