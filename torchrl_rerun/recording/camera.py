"""The camera: render environments at the frames that are recorded."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.leaf import Leaf, UnsupportedLeafError
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording.looks import EnvT, Gone, Look, Taken
from torchrl_rerun.recording.options import Options

PIXELS: Key = ("pixels",)
"""The key of rendered pictures, the one that TorchRL gives them."""

Picture = npt.NDArray[Any]


class NoPictureError(Exception):
    """``render()`` gave no picture that can be recorded."""


class Camera(Look[EnvT]):
    """Render environments, each at most once at any moment.

    The first picture says the dtype and shape of all. If a later picture differs or fails, the frame is recorded without
    pictures, with one warning; recording and training go on.
    """

    key = PIXELS
    option = "render=True"

    example: str
    """An environment that can be rendered, for messages."""

    def __init__(self) -> None:
        self._leaf: Leaf | None = None
        self._taken: dict[int, Any] = {}  # pictures of the first moment, by environment
        self._warned = False

    @abstractmethod
    def look(self, env: EnvT, envs: list[int]) -> dict[int, Any]:
        """Return pictures of some environments of the flattened batch, at least, by their indices.

        Args:
            env: the environment.
            envs: the indices.

        Raises:
            NoPictureError: it gives none.
        """

    def described(self, env: EnvT, envs: Sequence[int], options: Options) -> Stream:
        """Return the stream of the pictures: see :meth:`Look.described`."""
        return described_pictures(options, self.first(env, envs[0]))

    def first(self, env: EnvT, index: int) -> Leaf:
        """Return the facts about the pictures, when a recording begins.

        If rendering fails and has worked before, the pictures are taken to be as they were.

        Args:
            env: the environment.
            index: the environment of the flattened batch that is rendered.

        Raises:
            ValueError: the environment can't be rendered.
        """
        try:
            self._taken = self.look(env, [index])
            picture = as_picture(self._taken[index])
        except Exception as error:
            self._taken = {}
            if self._leaf is None:
                raise ValueError(
                    f"render=True needs an environment whose render() gives a picture, such as {self.example}: "
                    f"{_said(error)}"
                ) from error
            self._warn(error)
            return self._leaf
        self._leaf = Leaf(PIXELS, picture.dtype.name, picture.shape)
        return self._leaf

    def at(self, env: Callable[[], EnvT], gone: Gone | None = None) -> Taken:
        """Return the function that renders the present moment; pictures of a later one are black: see :meth:`Look.at`."""
        taken, self._taken = self._taken, {}
        return functools.partial(self._pictures, env, gone, taken)

    def _pictures(
        self, env: Callable[[], EnvT], gone: Gone | None, taken: dict[int, Any], envs: Sequence[int]
    ) -> list[Picture] | None:
        try:
            missing = [index for index in envs if index not in taken]
            if missing:
                taken |= self.look(env(), missing)
            pictures = [self._checked(taken[index]) for index in envs]
            later = None if gone is None else gone()
        except Exception as error:  # training goes on, and so does the recording
            self._warn(error)
            return None
        if later is None:
            return pictures
        return [
            np.zeros_like(picture) if later[index] else picture for index, picture in zip(envs, pictures, strict=True)
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


def as_picture(rendered: Any) -> Picture:
    """Return the picture of one environment as an array.

    Args:
        rendered: the result of ``render()``.

    Raises:
        NoPictureError: the result is no picture.

    >>> as_picture("SFFF")
    Traceback (most recent call last):
    torchrl_rerun.recording.camera.NoPictureError: it gave text, not a picture
    """
    if hasattr(rendered, "detach"):  # a tensor of PyTorch's, which needn't be imported
        rendered = rendered.detach().cpu().numpy()
    if isinstance(rendered, np.ndarray):
        return rendered
    if isinstance(rendered, str):
        raise NoPictureError("it gave text, not a picture")
    if isinstance(rendered, list | tuple):
        raise NoPictureError(f"it gave a list of {len(rendered)}, not one picture")
    raise NoPictureError(f"it gave {rendered!r:.80}, not a picture")


def described_pictures(options: Options, leaf: Leaf) -> Stream:
    """Return the stream of rendered pictures.

    Args:
        options: the options of the recorder.
        leaf: the facts about the pictures.

    Raises:
        ValueError: they can't be recorded as pictures.
    """
    try:
        stream = options.describe(leaf)
    except UnsupportedLeafError as reason:
        raise ValueError(f"render() gives no picture: {reason}") from reason
    if not stream.kind.is_camera and not options.choose_kind_of(PIXELS):
        raise ValueError(f"render() gives no picture, but {leaf.dtype} of shape {leaf.shape}")
    return stream


def _said(error: Exception) -> str:
    if isinstance(error, EOFError):  # of a pipe
        return "a worker ended, by an error of its own that it has printed"
    return str(error) if isinstance(error, NoPictureError) else f"{type(error).__name__}: {error}"
