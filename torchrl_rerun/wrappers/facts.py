"""Facts: find out what a front end tells of Gymnasium's environments: name, frame rate, seeds, and the place in a batch."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import numpy as np

from torchrl_rerun.recording.known_names import Names, of_id, of_simulator

_BATCHES = ("gymnasium.vector.sync_vector_env", "stable_baselines3.common.vec_env.dummy_vec_env")
"""Modules that make the environments of a batch in this process."""


def id_of(env: Any) -> str | None:
    """Return the id that an environment, or a vector environment, is registered under; None: it has none.

    Args:
        env: the environment.
    """
    inner = env.unwrapped
    for owner in (inner, *list(getattr(inner, "envs", ()))[:1]):
        spec = getattr(getattr(owner, "unwrapped", owner), "spec", None)
        if isinstance(name := getattr(spec, "id", None), str):
            return name
    return None


def id_in(description: str) -> str | None:
    """Return the id in an environment's own description; None: there is none.

    >>> id_in("<TimeLimit<OrderEnforcing<PassiveEnvChecker<CartPoleEnv<CartPole-v1>>>>>"), id_in("<Mine instance>")
    ('CartPole-v1', None)
    """
    found = re.search(r"<([^<>\\s]+)>", description)
    return found[1] if found and "-v" in found[1] else None


def rate_of(env: Any) -> float | None:
    """Return the frames per second of simulated time, ``metadata["render_fps"]`` or ``1 / dt``; None if neither is there.

    Args:
        env: the environment, or a vector environment.
    """
    for owner in (env, env.unwrapped):
        metadata = getattr(owner, "metadata", None)
        if isinstance(metadata, Mapping) and metadata.get("render_fps"):
            return float(metadata["render_fps"])
    dt = getattr(env.unwrapped, "dt", None) or getattr(env.unwrapped, "step_dt", None)
    return 1.0 / float(dt) if isinstance(dt, int | float) and dt > 0 else None


def names_of(env: Any) -> Names:
    """Return the names of the numbers of an environment's observations and actions.

    Args:
        env: the environment.
    """
    return of_simulator(env.unwrapped)


def names_of_batch(env: Any) -> Names:
    """Return the names of the numbers of a vector environment's observations and actions.

    Args:
        env: the vector environment.
    """
    inner = list(getattr(env.unwrapped, "envs", ()))[:1]
    return of_simulator(inner[0].unwrapped) if inner else of_id(id_of(env) or "")


def seed_of(env: Any) -> int | None:
    """Return the last seed of an environment; None if it is unknown, or random.

    Args:
        env: the environment.
    """
    return known_seed(getattr(env.unwrapped, "_np_random_seed", None))  # the public property would seed it


def known_seed(value: Any) -> int | None:
    """Return a seed as a property of an episode; None if it is no number that can be stored. Random seeds have 128 bits.

    Args:
        value: the seed.

    >>> known_seed(3), known_seed(3.0), known_seed(2**70)
    (3, None, None)
    """
    try:
        seed = operator.index(value)
    except TypeError:
        return None
    return seed if 0 <= seed < 1 << 63 else None


def seeds_of_batch(seed: Any, envs: int, *, follow_one_another: bool) -> list[int | None]:
    """Return the seed of each environment of a batch; None: unknown.

    Args:
        seed: the seed that ``reset`` took: a number, or one for each environment.
        envs: the number of environments.
        follow_one_another: whether a number is the seed of the first environment, and those after it have the following ones.

    >>> seeds_of_batch(5, 2, follow_one_another=True), seeds_of_batch([None, 7], 2, follow_one_another=False)
    ([5, 6], [None, 7])
    """
    unknown: list[int | None] = [None] * envs
    try:
        if np.ndim(seed):
            return ([known_seed(each) for each in seed] + unknown)[:envs]
        first = operator.index(seed)
    except Exception:  # of no form that is known: the environment has taken it
        return unknown
    return [known_seed(first + env) for env in range(envs)] if follow_one_another else unknown


def is_made_from_spec(wrapper: Any) -> bool:
    """Return whether ``gymnasium.make`` makes a wrapper, because the spec of an environment holds it.

    Args:
        wrapper: the wrapper, a method of which calls this function.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - nothing public says it
    while frame is not None and frame.f_locals.get("self") is wrapper:
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == "gymnasium.envs.registration"


def is_made_for_batch() -> bool:
    """Return whether the caller is called by a vector environment that makes its environments in this process."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - nothing public says it
    while frame is not None:
        if frame.f_globals.get("__name__") in _BATCHES:
            return True
        frame = frame.f_back
    return False
