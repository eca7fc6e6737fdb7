"""The sphere around a scene, by which a view's eye is placed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.shapes3d import Geometry

LEAST = 0.2
"""Radius of the smallest sphere, and of the room around bodies without shapes, in metres."""


def sphere_around(geometry: Geometry, poses: npt.NDArray[np.floating]) -> tuple[tuple[float, ...], float]:
    """Return middle and radius of the sphere around the bodies that move.

    Args:
        geometry: their shapes.
        poses: where they are, ``[bodies, 7]``.
    """
    positions = poses[:, :3]
    radii = np.maximum(geometry.radii, LEAST)[:, None]
    lowest, highest = np.nanmin(positions - radii, 0), np.nanmax(positions + radii, 0)
    center = (lowest + highest) / 2
    return tuple(map(float, center)), float(np.linalg.norm(highest - lowest) / 2)
