"""Cameras: take pictures of Gymnasium's and Stable-Baselines3's environments."""

from __future__ import annotations

from typing import Any

import gymnasium

from torchrl_rerun.recording.camera import Camera, NoPictureError, Picture, as_picture


class EnvCamera(Camera[gymnasium.Env[Any, Any]]):
    """Renders one environment.

    With ``render_mode="rgb_array_list"``, ``render()`` returns all frames since the last call, and forgets them. The wrapper
    returns them to the user, who would miss them.

    Attributes:
        history: the frames that the environment has forgotten, for the next ``render()`` of the user.
    """

    example = 'gym.make(..., render_mode="rgb_array")'

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Any] = []

    def look(self, env: gymnasium.Env[Any, Any], envs: list[int]) -> dict[int, Any]:
        """Return the picture of the environment."""
        rendered = env.render()
        if isinstance(rendered, list):
            if not rendered:
                raise NoPictureError("it gave an empty list: it was rendered already")
            self.history += rendered
            rendered = rendered[-1]
        return dict.fromkeys(envs, rendered)

    def forget(self) -> None:
        """Forget the frames of the episode before: environments that give lists forget them at a reset."""
        self.history = []


class VectorCamera(Camera[Any]):
    """Renders a vector environment, whose ``render()`` returns one picture for each environment."""

    example = 'gym.make_vec(..., render_mode="rgb_array")'

    def look(self, env: Any, envs: list[int]) -> dict[int, Any]:
        """Return the pictures of all environments."""
        return dict(enumerate(each_of(env.render(), 1 + max(envs))))


class VecEnvCamera(Camera[Any]):
    """Renders a vector environment of Stable-Baselines3: those environments alone that are recorded."""

    example = 'make_vec_env(..., env_kwargs={"render_mode": "rgb_array"})'

    def look(self, env: Any, envs: list[int]) -> dict[int, Any]:
        """Return the pictures of some environments."""
        if env.render_mode != "rgb_array":
            raise NoPictureError(f"its render_mode is {env.render_mode!r}")
        return dict(zip(envs, env.env_method("render", indices=envs), strict=True))


def each_of(rendered: Any, least: int) -> list[Picture]:
    """Return the pictures of a batch, one by one.

    Args:
        rendered: the result of ``render()``: a list or tuple of pictures, or an array ``[envs, height, width, channels]``.
        least: the number of pictures that there must be.

    Raises:
        NoPictureError: the result isn't one picture for each environment.
    """
    pictures = rendered if isinstance(rendered, list | tuple) else None
    if pictures is None and getattr(rendered, "ndim", 0) == 4:
        pictures = list(as_picture(rendered))
    if pictures is None or len(pictures) < least:
        what = type(rendered).__name__ if rendered is not None else "nothing"
        raise NoPictureError(f"it gave {what}, not a picture of each environment")
    return list(pictures)
