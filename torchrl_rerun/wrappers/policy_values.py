"""Policy values: note what a policy of Stable-Baselines3 says beside its actions, for the step that takes these actions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.wrappers.readers import as_array
from torchrl_rerun.wrappers.stepped import NO_EXTRAS

VALUE, LOG_PROB = ("value",), ("log_prob",)
"""Keys of what a policy says beside its actions."""


class PolicyValues:
    """A forward hook of PyTorch that notes the last values and log-probabilities of a policy.

    Copies of the policy have a hook that does nothing.

    Args:
        policy: the policy.
        envs: the number of environments. Calls of other batch sizes are the user's own.
    """

    def __init__(self, policy: Any, envs: int) -> None:
        self._envs = envs
        self._said: tuple[Any, Any] | None = None  # the policy and its output, until a step takes the actions
        self._has_warned = False
        self._handle = policy.register_forward_hook(self)

    def __call__(self, policy: Any, _inputs: Any, output: Any) -> None:
        """Note an output of the policy; called by PyTorch after each call of it. Raises nothing.

        Args:
            policy: the policy.
            output: its output: actions, values and log-probabilities.
        """
        try:
            if isinstance(output, tuple) and len(output) == 3 and all(len(each) == self._envs for each in output):
                self._said = policy, tuple(each.detach() for each in output)
        except Exception:  # an output of no known form is no reason to stop
            self._said = None

    def __reduce__(self) -> Any:
        return _make_idle_hook, ()

    def beside(self, actions: Any) -> Mapping[Key, npt.NDArray[Any]]:
        """Return values and log-probabilities ``[envs]`` of some actions; empty unless the policy's last actions are these.

        Args:
            actions: the actions that the environments take.
        """
        said, self._said = self._said, None
        if said is None:
            return NO_EXTRAS
        policy, (given, values, log_probs) = said
        with contextlib.suppress(Exception):  # a policy of the user's own
            if np.array_equal(_as_taken(policy, as_array(given)), as_array(actions)):
                return {VALUE: _one_each(values), LOG_PROB: _one_each(log_probs)}
        if not self._has_warned:
            self._has_warned = True
            warn(
                "'value' and 'log_prob' are not recorded with actions that are not the policy's: a wrapper changes them"
            )
        return NO_EXTRAS

    def remove(self) -> None:
        """Remove the hook from the policy."""
        self._handle.remove()


def _as_taken(policy: Any, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a policy's actions as Stable-Baselines3 passes them to the environment: within the bounds of a Box."""
    space = policy.action_space
    if not isinstance(space, spaces.Box):
        return actions
    if policy.squash_output:
        unscaled: npt.NDArray[Any] = policy.unscale_action(actions)
        return unscaled
    clipped: npt.NDArray[Any] = np.clip(actions, space.low, space.high)
    return clipped


def _one_each(numbers: Any) -> npt.NDArray[Any]:
    """Return the first number of each environment, ``[envs]``."""
    array = as_array(numbers)
    return array.reshape(len(array), -1)[:, 0]


def _make_idle_hook() -> Any:
    """Return the hook of a copy of a policy."""
    return _idle_hook


def _idle_hook(_policy: Any, _inputs: Any, _output: Any) -> None:
    """Do nothing."""
