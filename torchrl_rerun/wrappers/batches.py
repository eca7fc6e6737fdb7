"""Batches: resets and steps of vector environments, in each of Gymnasium's three modes of resetting environments that are done.

========== ============================================================== ==========================================
mode       a call of ``step``                                             the last observation of an episode
========== ============================================================== ==========================================
NEXT_STEP  resets the environments whose episodes ended with the call     returned by the call that ends the episode
           before, and ignores their actions
SAME_STEP  resets the environments whose episodes end with this call      ``info["final_obs"]``
DISABLED   resets nothing; ``reset(options={"reset_mask": ...})`` does    returned by the call that ends the episode
========== ============================================================== ==========================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.kinds.objects import MISSING
from torchrl_rerun.wrappers.facts import seeds_of_batch
from torchrl_rerun.wrappers.front_end import FrontEnd
from torchrl_rerun.wrappers.infos import FINAL_INFO, StepInfos, info_of, infos_at
from torchrl_rerun.wrappers.readers import Reader, as_array
from torchrl_rerun.wrappers.stepped import NO_EXTRAS, Mask, Stepped, Within

FINAL_OBSERVATIONS = ("final_obs", "final_observation", "terminal_observation")
"""Names of infos that hold the last observations: of Gymnasium 1.1 and later, of earlier ones, of Stable-Baselines3."""


class Ended(NamedTuple):
    """Episodes that end with a call of ``step``, of which there is one at least.

    Attributes:
        done: the environments whose episodes end, bool ``[envs]``.
        ends: how they end.
        first_info: the infos, of which those of environments that were reset within the step are of the reset.
    """

    done: npt.NDArray[np.bool_]
    ends: Ends
    first_info: Any

    @classmethod
    def of(cls, terminated: Any, truncated: Any, done: Any, first_info: Any) -> Ended:
        """Return the episodes that end, of flags as arrays, tensors or lists.

        Args:
            terminated: flags of all environments.
            truncated: flags of all environments.
            done: either of them.
            first_info: the infos that go with the next episodes.
        """
        return cls(_as_flags(done), Ends(_as_flags(terminated), _as_flags(truncated)), first_info)


class Batch:
    """Record the resets and steps of a batch of environments.

    Args:
        front_end: records them.
        envs: the number of environments.
        mode: when environments that are done are reset.
        seeds_follow: whether a single seed is that of the first environment, and those after it have the following ones.
    """

    def __init__(self, front_end: FrontEnd, envs: int, mode: AutoresetMode, *, seeds_follow: bool = False) -> None:
        self._front_end = front_end
        self._envs = envs
        # `AutoresetMode.SAME_STEP` is a call of Python's in Python 3.11.
        self._is_same_step, self._is_next_step = mode is AutoresetMode.SAME_STEP, mode is AutoresetMode.NEXT_STEP
        self._down = np.zeros((envs, 1), np.bool_)
        self._seeds_follow = seeds_follow
        self._was_done: npt.NDArray[np.bool_] | None = None  # None: no environment was
        self._seeds: list[int | None] = [None] * envs

    def reset(self, observation: Any, info: Any, mask: Mask = None, seed: Any = None) -> None:
        """Record that environments were reset.

        Args:
            observation: the observations of all environments.
            info: their infos.
            mask: the environments that were reset. Default: all.
            seed: the seed of all, or the seed of each. Default: none.
        """
        if mask is None:
            self._was_done = None
        elif self._was_done is not None:
            self._was_done = self._was_done & ~mask
        self._note_seeds(seed, mask)
        self._front_end.reset(observation, info, mask, self._known_seeds)

    def step(self, action: Any, result: tuple[Any, Any, Any, Any, Any]) -> None:
        """Record a call of ``step`` of Gymnasium's.

        Args:
            action: the actions.
            result: observation, reward, terminated, truncated and info.
        """
        try:
            observation, reward, terminated, truncated, info = result
            done = _either(terminated, truncated)
            ended = Ended.of(terminated, truncated, done, info) if np.count_nonzero(done) else None
        except Exception as error:  # a result of no form that is known: training goes on
            self._front_end.fail(error)
            return
        self.record((observation, reward, info), ended, (action, NO_EXTRAS))

    def record(
        self,
        result: tuple[Any, Any, Any],
        ended: Ended | None,
        acted: tuple[Any, Mapping[Any, Any]],
        properties: Mapping[str, Any] = NO_EXTRAS,
    ) -> None:
        """Record a call of ``step``.

        Args:
            result: observations, rewards and infos of all environments.
            ended: the episodes that end; None: none does.
            acted: the actions, and what else the policy wrote, by its key.
            properties: properties of the episodes that end within the step.
        """
        front_end, reset = self._front_end, self._was_done
        observation, reward, info = result
        if ended is None:
            self._was_done = None
            stepped = Stepped((observation, info, self._down, self._down, self._down), (reward, info), acted)
            if reset is None:  # nearly always
                front_end.step(stepped)
                return
            ends = within = None
        else:
            done, ends, within, said = ended.done, ended.ends, None, info
            if self._is_same_step:
                within, said = Within(done, last_of(info), properties), StepInfos(info, done)
            self._was_done = done if self._is_next_step else None
            stepped = Stepped((observation, ended.first_info, *ends, done), (reward, said), acted)
        if reset is None or not reset.any():
            front_end.step(stepped, None, ends, within, self._known_seeds if within is not None else ())
            return
        if reset.all():
            front_end.count_step()
            front_end.reset(observation, info, None, self._known_seeds)
            return
        front_end.step(stepped, ~reset, ends)
        front_end.reset(observation, info, reset, self._known_seeds)

    @property
    def _known_seeds(self) -> Sequence[int | None]:
        return self._seeds if self._front_end.must_know_seeds else ()

    def _note_seeds(self, seed: Any, mask: Mask) -> None:
        if seed is None:
            return
        is_of_all = not hasattr(seed, "__len__")
        for env, each in enumerate(seeds_of_batch(seed, self._envs, follow_one_another=self._seeds_follow)):
            if (is_of_all or each is not None) and (mask is None or mask[env]):
                self._seeds[env] = each


def _either(terminated: Any, truncated: Any) -> npt.NDArray[Any]:
    """Return whether episodes end, of flags as arrays, tensors or lists."""
    either = terminated | truncated if hasattr(terminated, "detach") else np.logical_or(terminated, truncated)
    return as_array(either)


def is_up(flag: Any) -> bool:
    """Return whether a flag of one environment is up.

    Args:
        flag: a truth value, in an array or a list, too.

    >>> is_up(True), is_up([False]), is_up(np.array([True]))
    (True, False, True)
    """
    return bool(flag) if isinstance(flag, bool | np.bool_) else bool(as_array(flag).any())


def _as_flags(value: Any) -> npt.NDArray[np.bool_]:
    is_there = type(value) is np.ndarray and value.dtype == np.bool_
    return value if is_there else as_array(value).astype(np.bool_)


def copied(action: Any) -> Any:
    """Return a copy of actions: the environment may change its own.

    Args:
        action: the actions, of one environment or of a batch.
    """
    if type(action) is np.ndarray:
        return action.copy()
    try:
        return _copied(action)
    except Exception:  # of a type of the user's own
        return action


def _copied(action: Any) -> Any:
    if isinstance(action, np.ndarray):
        return np.array(action)
    if hasattr(action, "detach"):
        return action.detach().clone()
    if isinstance(action, Mapping):
        return {name: _copied(part) for name, part in action.items()}
    if isinstance(action, list | tuple):
        parts = [_copied(part) for part in action]
        if isinstance(action, list):
            return parts
        return type(action)(*parts) if hasattr(action, "_fields") else tuple(parts)
    return action


def last_of(info: Any) -> Callable[[Reader, int], Any]:
    """Return the function that finds the last observation and info of an episode in the infos of the step that ended it.

    Args:
        info: the infos of all environments.
    """

    def last(reader: Reader, env: int) -> Any:
        part, *steps = reader.field.steps
        if reader.stream.key[0] == "info" and part == 1:
            found = info_of(info, (FINAL_INFO, *steps), env)
            if found is MISSING and not isinstance(info, Mapping) and info_of(info, (FINAL_INFO,), env) is MISSING:
                found = info_of(info, tuple(steps), env)  # Stable-Baselines3's are those of the step
            if found is MISSING:
                raise KeyError(steps)
            return found
        return _observation_of(info, steps, env)

    return last


def _observation_of(info: Any, steps: Sequence[Any], env: int) -> Any:
    """Return a part of an environment's last observation. KeyError: it isn't known."""
    if isinstance(info, Mapping):
        name = _final_in(info)
        final, is_of_one = info[name], False
        if isinstance(final, list) or (isinstance(final, np.ndarray) and final.dtype == object):
            final, is_of_one = final[env], True
    else:
        known = infos_at(info, env)
        if not isinstance(known, Mapping):
            raise KeyError(FINAL_OBSERVATIONS[0])
        name = _final_in(known)
        final, is_of_one = known[name], True
    if final is None:
        raise KeyError(name)
    for step in steps:
        final = final[step]
    return final if is_of_one else final[env]


def _final_in(infos: Mapping[str, Any]) -> str:
    """Return the name of the last observations among infos. KeyError: there are none."""
    for name in FINAL_OBSERVATIONS:
        if name in infos:
            return name
    raise KeyError(FINAL_OBSERVATIONS[0])
