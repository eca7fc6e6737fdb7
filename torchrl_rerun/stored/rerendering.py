"""Rendering afterwards: the pictures of trajectories that were stored without any."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from torchrl_rerun.recording.camera import PIXELS, NoPictureError, as_picture
from torchrl_rerun.stored.following import Seen, Sight
from torchrl_rerun.stored.states import name_of_env


class Pictures(Seen):
    """Pictures ``[height, width, 3]`` uint8 that an environment renders. Unknown ones are black."""

    key = PIXELS
    option = "render"

    def sight_of(self, env: gymnasium.Env[Any, Any]) -> Sight:
        """Return the pictures of an environment: see :meth:`Seen.sight_of`."""
        try:
            black = np.zeros_like(as_picture(env.render()))
        except NoPictureError as error:
            raise ValueError(f"{env} can't be rendered: {error}; make it with render_mode='rgb_array'") from None
        except Exception as error:  # a graphics library can raise anything
            raise ValueError(
                f"{name_of_env(env)} can't be rendered here: {type(error).__name__}: {error}. Without a display "
                "set the environment variables MUJOCO_GL=egl (MuJoCo) and SDL_VIDEODRIVER=dummy before Python starts"
            ) from error
        return Sight(black, lambda: np.array(as_picture(env.render())))
