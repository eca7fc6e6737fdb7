"""Environments: find out the name, the frame rate and the seeds of an environment, and what is within it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torchrl.envs import (
    AsyncEnvPool,
    Compose,
    ConditionalSkip,
    EnvBase,
    ParallelEnv,
    SerialEnv,
    Transform,
    TransformedEnv,
)

from torchrl_rerun.recording.env_specs import spec_to_json
from torchrl_rerun.recording.known_rates import registered_fps


def is_pool(env: EnvBase | None) -> bool:
    """Return whether an environment is a pool that can be stepped asynchronously."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return isinstance(env, AsyncEnvPool)


def hides_skipped_steps(env: EnvBase | None) -> bool:
    """Return whether an environment within this one skips steps, which can't be seen outside of it."""
    within = [env.base_env] if isinstance(env, TransformedEnv) else []
    while within:
        each = within.pop()
        if isinstance(each, TransformedEnv):
            if any(isinstance(transform, ConditionalSkip) for transform in transforms_of(each)):
                return True
            within.append(each.base_env)
        elif isinstance(each, SerialEnv):
            within += each._envs if not each.is_closed else []  # noqa: SLF001 - there is no public way
    return False


def flat(transforms: Iterable[Transform]) -> list[Transform]:
    """Return transforms one by one, with those of a ``Compose`` in its place.

    Args:
        transforms: the transforms.
    """
    return [
        each
        for transform in transforms
        for each in (flat(transform) if isinstance(transform, Compose) else [transform])
    ]


def transforms_of(env: EnvBase | None) -> list[Transform]:
    """Return the transforms of an environment, without those of environments within it.

    Args:
        env: the environment; None: there is none.
    """
    return flat([env.transform]) if isinstance(env, TransformedEnv) and env.transform is not None else []


def env_name(env: EnvBase | None) -> str | None:
    """Return the name of an environment (``CartPole-v1``, ``walker-run``, ``flocking``); None if it has none."""
    inner = innermost(env)
    if isinstance(inner, ParallelEnv):
        # torchrl 0.14: a worker that is asked for an attribute it lacks dies.
        described = inner.meta_data
        if isinstance(described, list):  # of each worker, if different functions made them
            described = described[0]
        named = re.search(r"\(env=([^\s,()]+)(?:, task=([^\s,()]+))?", str(described.env_str))
        return "-".join(filter(None, named.groups())) if named else None
    for attribute in ("env_name", "scenario_name"):
        name = getattr(inner, attribute, None)
        if isinstance(name, str) and name:
            task = getattr(inner, "task_name", None)  # of dm_control
            return f"{name}-{task}" if isinstance(task, str) and task else name
    name = getattr(getattr(getattr(inner, "_env", None), "spec", None), "id", None)
    return name if isinstance(name, str) else None


def spec(env: EnvBase | None) -> str | None:
    """Return the spec of an environment of gymnasium as JSON; None if it is another one, or in other processes."""
    inner = innermost(env)
    return None if isinstance(inner, ParallelEnv) else spec_to_json(getattr(inner, "_env", None))


def seeds(env: EnvBase | None) -> list[int | None]:
    """Return the last seed of each environment of the flattened batch; None if it is unknown, or random."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if env is None or isinstance(env, ParallelEnv) or env.is_closed:
        return [None] * (0 if env is None else env.batch_size.numel())
    if isinstance(env, SerialEnv):
        return [seed for each in env._envs for seed in seeds(each)]  # noqa: SLF001 - there is no public way to them
    simulator = getattr(getattr(env, "_env", None), "unwrapped", None)
    seed = getattr(simulator, "_np_random_seed", None)  # the public property would seed it
    is_given = isinstance(seed, int) and 0 <= seed < 1 << 63  # gymnasium draws random seeds of 128 bits
    return [seed if is_given else None] * env.batch_size.numel()


def frames_per_second(env: EnvBase | None) -> float | None:
    """Return the frames per second of simulated time, ``metadata["render_fps"]`` or ``1 / dt``; None if neither is there.

    Environments of dm_control have neither, and a ``control_timestep()``.
    """
    inner = innermost(env)
    if isinstance(inner, ParallelEnv):
        return registered_fps(env_name(inner))
    simulator = getattr(inner, "_env", None)
    for owner in (simulator, getattr(simulator, "unwrapped", None)):
        metadata = getattr(owner, "metadata", None)
        if isinstance(metadata, dict) and metadata.get("render_fps"):
            return float(metadata["render_fps"])
    dt = getattr(getattr(simulator, "world", None), "dt", None) or getattr(simulator, "dt", None)
    if dt is None and callable(timestep := getattr(simulator, "control_timestep", None)):
        dt = timestep()
    return 1.0 / float(dt) if isinstance(dt, int | float) and dt > 0 else None


def innermost(env: EnvBase | None) -> EnvBase | None:
    """Return the environment below all transforms; of a ``SerialEnv``, its first one.

    Args:
        env: the environment; None: there is none.
    """
    while isinstance(env, TransformedEnv | SerialEnv):
        if isinstance(env, TransformedEnv):
            env = env.base_env
        elif env.is_closed:
            return None
        else:
            env = env._envs[0]  # noqa: SLF001 - a SerialEnv has no public way to its environments
    return env
