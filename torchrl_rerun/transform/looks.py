"""Looks: what TorchRL's environments are asked for beside their keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv

from torchrl_rerun.recording.looks import Look
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.scene import Scene
from torchrl_rerun.scenes.known import in_workers, unwrapped
from torchrl_rerun.transform.camera import EnvCamera


def looks_for(options: Options) -> list[Look[EnvBase | None]]:
    """Return what environments are asked for.

    Args:
        options: the options of the recorder.
    """
    looks: list[Look[EnvBase | None]] = []
    if options.render:
        looks.append(EnvCamera())
    if options.scene_sources:
        looks.append(Scene(options.scene_sources, simulated))
    return looks


def simulated(env: EnvBase | None) -> Sequence[Any]:
    """Return environments as their makers wrote them, without TorchRL's wrappers: one each.

    Raises:
        SceneError: they are in other processes.
    """
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if isinstance(env, SerialEnv):
        if env.is_closed:  # it makes its environments at the first reset
            return []
        return [each for part in env._envs for each in simulated(part)]  # noqa: SLF001 - there is no public way to them
    if isinstance(env, ParallelEnv):
        raise in_workers("the environments of a ParallelEnv", "SerialEnv")
    inner = getattr(env, "_env", None)
    return [env] if inner is None else unwrapped(inner)
