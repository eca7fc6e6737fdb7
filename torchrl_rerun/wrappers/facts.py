"""Facts: find out what a front end tells of Gymnasium's environments: name, frame rate, seeds, and the place in a batch."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

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
    seed = getattr(env.unwrapped, "_np_random_seed", None)  # the public property would seed it
    return seed if isinstance(seed, int) and 0 <= seed < 1 << 63 else None  # random seeds have 128 bits


def is_made_for_batch() -> bool:
    """Return whether the caller is called by a vector environment that makes its environments in this process."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - nothing public says it
    while frame is not None:
        if frame.f_globals.get("__name__") in _BATCHES:
            return True
        frame = frame.f_back
    return False
