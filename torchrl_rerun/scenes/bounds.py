"""The sphere around a scene, by which a view's eye is placed."""

from __future__ import annotations

import numpy as np

from torchrl_rerun.kinds.shapes3d import Floats, Form, Geometry, Mesh, Poses, Shape, rotated

AROUND = 0.1
"""Metres around the origins of bodies, which may have no shapes."""

SPACING = 3.0
"""Distance of environments side by side, in radii of the sphere around what moves."""


def sphere_around(geometry: Geometry, poses: Poses) -> tuple[tuple[float, ...], float]:
    """Return middle and radius of the sphere around the bodies that move.

    Args:
        geometry: their shapes.
        poses: where they are at one moment or more.
    """
    middles, reaches = [poses.positions.reshape(-1, 3)], [np.full(poses.positions[..., 0].size, AROUND)]
    for shape in geometry.moving:
        at = poses.positions[:, shape.body] + rotated(poses.quaternions[:, shape.body], np.array(shape.position))
        middles.append(at)
        reaches.append(np.full(len(at), reach(shape)))
    return around_spheres(np.concatenate(middles), np.concatenate(reaches))


def around_spheres(middles: Floats, radii: Floats) -> tuple[tuple[float, ...], float]:
    """Return middle and radius of a sphere around others: in the middle of their box, and no larger than it must be there.

    Args:
        middles: metres, ``[n, 3]``; NaN if a body isn't known.
        radii: metres, ``[n]``.

    >>> around_spheres(np.array([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]), np.array([1.0, 1.0]))
    ((2.0, 0.0, 0.0), 3.0)
    """
    far = radii[:, None]
    center = (np.nanmin(middles - far, 0) + np.nanmax(middles + far, 0)) / 2
    return tuple(map(float, center)), float(np.nanmax(np.linalg.norm(middles - center, axis=-1) + radii))


def reach(shape: Shape) -> float:
    """Return how far a shape reaches from its middle, metres; of meshes that aren't read how far their origin is away, 0."""
    mesh, size = shape.mesh, np.array(shape.size)
    if mesh is not None:
        return float(np.linalg.norm(mesh.vertices * size, axis=-1).max(initial=0)) if isinstance(mesh, Mesh) else 0.0
    if shape.form is Form.SPHERE:
        return shape.size[0]
    if shape.form is Form.ELLIPSOID:
        return float(size.max())
    if shape.form in (Form.CAPSULE, Form.CYLINDER):
        return float(size[:2].sum())
    return float(np.linalg.norm(size))
