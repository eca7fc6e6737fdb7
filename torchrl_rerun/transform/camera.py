"""The camera: render environments at the frames that are recorded."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, TransformedEnv

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.recording.logged_envs import Render
from torchrl_rerun.transform import partial_resets

PIXELS: Key = ("pixels",)
"""The key of rendered pictures, the one that TorchRL gives them."""

Picture = npt.NDArray[Any]


class NoPictureError(Exception):
    """``render()`` gave no picture that can be recorded."""


class Camera:
    """Render environments, each at most once at any moment.

    The first picture says the dtype and shape of all. If a later picture differs or fails, the frame is recorded without
    pictures, with one warning; recording and training go on.
    """

    def __init__(self) -> None:
        self._leaf: Leaf | None = None
        self._taken: dict[int, Any] = {}  # pictures of the first moment, by environment
        self._warned = False
        self._view: tuple[EnvBase, list[int], EnvBase] | None = None

    def first(self, env: EnvBase | None, index: int) -> Leaf:
        """Return the facts about the pictures, when a recording begins.

        If rendering fails and has worked before, the pictures are taken to be as they were.

        Args:
            env: the environment.
            index: the environment of the flattened batch that is rendered.

        Raises:
            ValueError: the environment can't be rendered.
        """
        self._view = None  # of workers that may have been closed since
        try:
            self._taken = self._look(env, [index])
            picture = as_picture(self._taken[index])
        except Exception as error:
            self._taken = {}
            if self._leaf is None:
                raise ValueError(
                    f"render=True needs an environment whose render() gives a picture, such as GymEnv(..., "
                    f'render_mode="rgb_array"): {_said(error)}'
                ) from error
            self._warn(error)
            return self._leaf
        self._leaf = Leaf(PIXELS, picture.dtype.name, picture.shape)
        return self._leaf

    def at(self, env: Callable[[], EnvBase | None], following: TensorDictBase | None = None) -> Render:
        """Return the function that renders the present moment. Call it before the next one.

        Args:
            env: returns the environment.
            following: the data after the step. Default: the moment is a reset.
        """
        taken, self._taken = self._taken, {}
        return functools.partial(self._pictures, env, following, taken)

    def _pictures(
        self,
        env: Callable[[], EnvBase | None],
        following: TensorDictBase | None,
        taken: dict[int, Any],
        envs: Sequence[int],
    ) -> list[Picture] | None:
        try:
            known = env()
            missing = [index for index in envs if index not in taken]
            if missing:
                taken |= self._look(known, missing)
            pictures = [self._checked(taken[index]) for index in envs]
            gone = None if following is None else partial_resets.reset_within_step(known, following)
        except Exception as error:  # training goes on, and so does the recording
            self._warn(error)
            return None
        if gone is None:
            return pictures
        return [
            np.zeros_like(picture) if gone[index] else picture for index, picture in zip(envs, pictures, strict=True)
        ]

    def _checked(self, rendered: Any) -> Picture:
        picture, leaf = as_picture(rendered), self._leaf
        assert leaf is not None, "it was described"
        if (picture.dtype.name, picture.shape) != (leaf.dtype, leaf.shape):
            raise NoPictureError(
                f"it is {picture.dtype.name} {picture.shape}, and the recording began with {leaf.dtype} {leaf.shape}"
            )
        return picture

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warn(f"'pixels' is not recorded where render() gives no such picture as at first: {_said(error)}")

    def _look(self, env: EnvBase | None, envs: list[int]) -> dict[int, Any]:
        """Return pictures of some environments of the flattened batch, at least, by their indices."""
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


def as_picture(rendered: Any) -> Picture:
    """Return the picture of one environment as an array.

    Args:
        rendered: the result of ``render()``.

    Raises:
        NoPictureError: the result is no picture.

    >>> as_picture("SFFF")
    Traceback (most recent call last):
    torchrl_rerun.transform.camera.NoPictureError: it gave text, not a picture
    """
    if isinstance(rendered, torch.Tensor):
        rendered = rendered.detach().cpu().numpy()
    if isinstance(rendered, np.ndarray):
        return rendered
    if isinstance(rendered, str):
        raise NoPictureError("it gave text, not a picture")
    if isinstance(rendered, list | tuple):
        raise NoPictureError(f"it gave a list of {len(rendered)}, not one picture")
    raise NoPictureError(f"it gave {rendered!r:.80}, not a picture")


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


def _said(error: Exception) -> str:
    if isinstance(error, EOFError):  # of a pipe
        return "a worker ended, by an error of its own that it has printed"
    return str(error) if isinstance(error, NoPictureError) else f"{type(error).__name__}: {error}"
