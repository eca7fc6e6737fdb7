"""Looks: what Gymnasium's and Stable-Baselines3's environments are asked for beside what they return."""

from __future__ import annotations

from typing import Any

from torchrl_rerun.recording.camera import Camera
from torchrl_rerun.recording.looks import Look
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.scene import Scene
from torchrl_rerun.scenes.known import unwrapped


def looks_for(options: Options, camera: Camera[Any]) -> list[Look[Any]]:
    """Return what environments are asked for.

    Args:
        options: the options of the recorder.
        camera: renders the environments.
    """
    looks: list[Look[Any]] = [camera] if options.render else []
    if options.scene_sources:
        looks.append(Scene(options.scene_sources, unwrapped))
    return looks
