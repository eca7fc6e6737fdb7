"""The camera: render TorchRL's environments, those in batches and in worker processes, too."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv

from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.recording.camera import Camera, NoPictureError


class EnvCamera(Camera[EnvBase | None]):
    """Renders TorchRL's environments."""

    example = 'GymEnv(..., render_mode="rgb_array")'

    def __init__(self) -> None:
        super().__init__()
        self._view: tuple[EnvBase, list[int], EnvBase] | None = None

    def first(self, env: EnvBase | None, index: int) -> Leaf:
        """Return the facts about the pictures, when a recording begins: see :meth:`Camera.first`."""
        self._view = None  # of workers that may have been closed since
        return super().first(env, index)

    def look(self, env: EnvBase | None, envs: list[int]) -> dict[int, Any]:
        """Return pictures of some environments of the flattened batch, at least, by their indices: see :meth:`Camera.look`."""
        with torch.random.fork_rng(devices=()):
            return self._render(env, envs)

    def _render(self, env: EnvBase | None, envs: list[int]) -> dict[int, Any]:
        while isinstance(env, TransformedEnv):
            env = env.base_env
        if env is None:
            raise NoPictureError("there is no environment")
        if isinstance(env, SerialEnv):
            size = env.batch_size[1:].numel()
            rendered: dict[int, Any] = {}
            for i, group in itertools.groupby(envs, lambda index: index // size):
                each = self._render(env._envs[i], [index % size for index in group])  # noqa: SLF001 - no public way
                rendered |= {i * size + index: picture for index, picture in each.items()}
            return rendered
        if isinstance(env, ParallelEnv):
            return dict(zip(envs, self._of_workers(env, envs).render(), strict=True))
        render = env.render  # once: TorchRL's `__getattr__` takes a tenth of a millisecond
        options = inspect.signature(render).parameters
        if "mode" in options:
            render = functools.partial(render, mode="rgb_array")
        if "env_index" in options:  # VMAS
            return {index: render(env_index=index) for index in envs}
        if not env.batch_dims:
            return {0: render()}
        return dict(enumerate(_each(render(), env.batch_size)))

    def _of_workers(self, env: ParallelEnv, envs: list[int]) -> EnvBase:
        """Return an environment of some of the workers."""
        if env.batch_dims > 1:
            raise NoPictureError(
                "a ParallelEnv of batches can't be asked for single pictures; record inside its workers"
            )
        if len(envs) == env.num_workers:
            return env
        if self._view is None or self._view[0] is not env or self._view[1] != envs:
            self._view = env, envs, env[envs]  # torchrl 0.14: takes as long as a small picture
        return self._view[2]


def _each(rendered: Any, batch_size: torch.Size) -> Sequence[Any]:
    """Return the pictures of a batch, one by one."""
    count = batch_size.numel()
    if isinstance(rendered, np.ndarray | torch.Tensor):
        if rendered.shape[: len(batch_size)] != batch_size:
            raise NoPictureError(f"it gave {tuple(rendered.shape)}, not a picture of each of {count} environments")
        return list(rendered.reshape(count, *rendered.shape[len(batch_size) :]))
    if not isinstance(rendered, list | tuple) or len(rendered) != count:
        raise NoPictureError(f"it gave {type(rendered).__name__}, not a picture of each of {count} environments")
    return rendered
