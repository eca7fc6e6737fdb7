"""The sources that ``scene=True`` asks, and how environments without wrappers are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.scenes.isaac_lab import IsaacLab
from torchrl_rerun.scenes.mujoco import MuJoCo
from torchrl_rerun.scenes.newton import Newton
from torchrl_rerun.scenes.source import Restorer, SceneError, Source

SOURCES: tuple[Source, ...] = (MuJoCo(), Newton(), IsaacLab())
"""What may simulate an environment, in the order in which they are asked."""


def unwrapped(env: Any) -> Sequence[Any]:
    """Return environments of Gymnasium, of Stable-Baselines3 or of ``dm_control`` without wrappers: one each.

    Args:
        env: a single environment, or a vector environment.

    Raises:
        SceneError: they are in other processes.
    """
    inner = getattr(env, "unwrapped", env)
    if hasattr(inner, "parent_pipes") or hasattr(inner, "remotes"):  # Gymnasium's, and Stable-Baselines3's
        raise in_workers("the sub-environments", "SyncVectorEnv or DummyVecEnv")
    parts = getattr(inner, "envs", None)
    if isinstance(parts, list | tuple):
        return [each for part in parts for each in unwrapped(part)]
    return [inner]


def restorer_of(simulated: Any, stream: Stream) -> Restorer | None:
    """Return what sets a simulation to the values of a stream; None if no source has it: see :meth:`Source.restorer`.

    Args:
        simulated: the environment as its maker wrote it, without wrappers.
        stream: the stream.
    """
    return next((each for source in SOURCES if (each := source.restorer(simulated, stream)) is not None), None)


def in_workers(which: str, instead: str) -> SceneError:
    """Return the error of environments in other processes.

    Args:
        which: the environments, for the message.
        instead: what keeps them in this process.
    """
    return SceneError(
        f"scene=True reads simulators in its own process, and {which} are in others: make the recorder inside the workers, have "
        f"a key carry the state out (scene=MuJoCo(model=..., key='qpos')), or use {instead}"
    )
