"""Known rates: frames per second of simulated time of Gymnasium's environments that can't be asked."""

from __future__ import annotations

import re
from collections.abc import Mapping

_ROBOT = re.compile(r"gymnasium\.envs\.mujoco\.(\w+)_v5:")


_ROBOTS_FPS: Mapping[str, float] = {
    "ant": 20.0,
    "half_cheetah": 20.0,
    "hopper": 125.0,
    "humanoid": 67.0,
    "humanoidstandup": 67.0,
    "inverted_double_pendulum": 20.0,
    "inverted_pendulum": 25.0,
    "pusher": 20.0,
    "reacher": 50.0,
    "swimmer": 25.0,
    "walker2d": 125.0,
}
"""Frame rates of gymnasium's robots of version 5, with their own ``frame_skip``. Only their instances know the rate, and
instances in workers can't be asked."""


def registered_fps(name: str | None) -> float | None:
    """Return the frame rate of a registered gymnasium environment; None if it is unknown.

    Args:
        name: the id of the environment.
    """
    import gymnasium  # noqa: PLC0415 - the engine imports no framework
    from gymnasium.envs.registration import load_env_creator  # noqa: PLC0415

    try:
        entry_point = gymnasium.spec(name or "").entry_point
        if isinstance(entry_point, str) and (robot := _ROBOT.match(entry_point)):
            return _ROBOTS_FPS[robot[1]]
        creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        return float(getattr(creator, "metadata", {})["render_fps"])
    except Exception:  # not registered, not importable here, or without a frame rate
        return None
