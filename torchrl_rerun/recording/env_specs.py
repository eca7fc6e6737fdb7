"""Specs: the text from which ``gymnasium.make`` makes the recorded environment again, keyword arguments and wrappers included."""

from __future__ import annotations

import dataclasses
from typing import Any

ENV_SPEC = "env_spec"
"""The name of the text in a schema's origin."""


def spec_to_json(env: Any) -> str | None:
    """Return the spec of a Gymnasium environment as JSON; None if it has none, or one with functions, which JSON can't have.

    Of a vector environment it is the spec of one environment. Those in other processes aren't asked: a worker of
    Stable-Baselines3 would die of a spec that can't be pickled. What ``gymnasium.make_vec`` was told is known with them, too.

    Args:
        env: the environment, or vector environment.
    """
    try:
        envs = list(getattr(env.unwrapped, "envs", ())) if hasattr(env.unwrapped, "num_envs") else []
        spec = (envs[0] if envs else env).spec
        text = (_of_one(spec) if "vectorization_mode" in spec.kwargs else spec).to_json()
    except Exception:  # gymnasium has no type for what JSON can't have
        return None
    return text if isinstance(text, str) else None


def _of_one(spec: Any) -> Any:
    """Return the spec of one environment, of the spec that ``gymnasium.make_vec`` gives a vector environment."""
    kwargs = {name: value for name, value in spec.kwargs.items() if name not in _OF_BATCHES}
    steps = kwargs.pop("max_episode_steps", spec.max_episode_steps)
    return dataclasses.replace(
        spec,
        max_episode_steps=None if steps == -1 else steps,
        disable_env_checker=bool(kwargs.pop("disable_env_checker", spec.disable_env_checker)),
        kwargs=kwargs,
    )


_OF_BATCHES = ("num_envs", "vectorization_mode", "vector_kwargs")
"""Keyword arguments that ``make_vec`` takes, and ``make`` doesn't."""
