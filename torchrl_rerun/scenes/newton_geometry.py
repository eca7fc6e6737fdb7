"""The shapes of a Newton model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.shapes3d import WHITE, WORLD, Form, Geometry, Mesh, Shape

ENDLESS = 40.0
"""Metres from the middle to the sides of a plane that has no end."""

TILES = 1.0
"""Tiles of a plane's pattern, a metre."""

_LIGHT, _DARK, _TILE = 0.55, 0.4, 16


def geometry_of_world(model: Any, world: int, bodies: npt.NDArray[np.int64], *, draws_all: bool) -> Geometry:
    """Return the shapes of a world, and those that all worlds share.

    Args:
        model: Newton's model.
        world: the number of the world.
        bodies: the numbers of its bodies.
        draws_all: whether invisible shapes are drawn.
    """
    at = {int(body): row for row, body in enumerate(bodies)}
    shapes = [shape for number in _shapes(model, world, draws_all) if (shape := _shape(model, number, at)) is not None]
    return Geometry(_names(model, bodies), shapes)


def look_of_world(model: Any, world: int, bodies: npt.NDArray[np.int64], *, draws_all: bool) -> bytes:
    """Return bytes that differ if worlds have different shapes. The arguments are those of :func:`geometry_of_world`."""
    numbers = _shapes(model, world, draws_all)
    own = [number for number in numbers if model.shape_world.numpy()[number] >= 0]
    order = {int(body): row for row, body in enumerate(bodies)}
    of_bodies = np.array([order.get(int(body), WORLD) for body in model.shape_body.numpy()[own]])
    moving = np.array(own, np.intp)[of_bodies >= 0]
    parts = (model.shape_type, model.shape_scale, model.shape_transform)
    return of_bodies.tobytes() + b"".join(part.numpy()[moving].tobytes() for part in parts)


def _shapes(model: Any, world: int, draws_all: bool) -> list[int]:
    """Return the numbers of the shapes that are drawn."""
    import newton  # noqa: PLC0415 - of those who simulate with it

    of_world, flags = model.shape_world.numpy(), model.shape_flags.numpy()
    seen = draws_all | (flags & int(newton.ShapeFlags.VISIBLE) != 0)
    numbers: list[int] = np.flatnonzero(((of_world == world) | (of_world < 0)) & seen).tolist()
    return numbers


def _names(model: Any, bodies: npt.NDArray[np.int64]) -> list[str]:
    """Return names of bodies, of which no two are the same."""
    labels = [str(model.body_label[body]) for body in bodies]
    return [label if labels.count(label) == 1 else f"{label}_{row}" for row, label in enumerate(labels)]


def _shape(model: Any, number: int, at: dict[int, int]) -> Shape | None:
    """Return a shape; None: it can't be drawn."""
    import newton  # noqa: PLC0415 - of those who simulate with it

    kinds = newton.GeoType
    kind, scale = kinds(int(model.shape_type.numpy()[number])), model.shape_scale.numpy()[number].tolist()
    forms = {
        kinds.SPHERE: Form.SPHERE,
        kinds.ELLIPSOID: Form.ELLIPSOID,
        kinds.CAPSULE: Form.CAPSULE,
        kinds.CYLINDER: Form.CYLINDER,
        kinds.BOX: Form.BOX,
    }
    is_barrel = kind == kinds.CYLINDER and scale[2] > 0
    mesh, size = None, tuple(scale)
    if kind not in forms or is_barrel:
        mesh = _mesh(model, number, kind, scale)
        if mesh is None:
            return None
        size = size if kind in (kinds.MESH, kinds.CONVEX_MESH) else (1.0, 1.0, 1.0)
    transform = model.shape_transform.numpy()[number].tolist()
    body = int(model.shape_body.numpy()[number])
    return Shape(
        str(model.shape_label[number]),
        Form.PLANE if kind == kinds.PLANE else Form.MESH if mesh is not None else forms[kind],
        at.get(body, WORLD),
        size,
        tuple(transform[:3]),
        tuple(transform[3:]),
        WHITE if mesh is not None and mesh.texture is not None else _color(model, number),
        mesh,
    )


def _color(model: Any, number: int) -> tuple[int, ...]:
    shares = np.clip(model.shape_color.numpy()[number], 0, 1)
    return (*np.round(shares * 255).astype(int).tolist(), 255)


def _mesh(model: Any, number: int, kind: Any, scale: list[float]) -> Mesh | None:
    """Return the triangles of a shape; None: it has none."""
    import newton  # noqa: PLC0415 - of those who simulate with it

    kinds, source, name = newton.GeoType, model.shape_source[number], f"{model.shape_label[number]}_{number}"
    if kind == kinds.PLANE:
        return _plane(name, scale)
    if kind in (kinds.MESH, kinds.CONVEX_MESH):
        found = source
    elif kind == kinds.HFIELD:
        heights = source.min_z + source.data * (source.max_z - source.min_z)
        found = newton.Mesh.create_heightfield(
            heights.T, source.hx * 2, source.hy * 2, ground_z=source.min_z, compute_inertia=False
        )
    elif kind == kinds.CONE:
        found = newton.Mesh.create_cone(scale[0], scale[1], up_axis=newton.Axis.Z, compute_inertia=False)
    elif kind == kinds.CYLINDER:
        found = newton.Mesh.create_cylinder(
            scale[0], scale[1], up_axis=newton.Axis.Z, barrel_radius=scale[2], compute_inertia=False
        )
    else:
        return None
    texture = found.texture if isinstance(found.texture, np.ndarray) and found.texture.dtype == np.uint8 else None
    return Mesh(
        name,
        np.array(found.vertices, np.float32),
        np.array(found.indices, np.uint32).reshape(-1, 3),
        None if found.normals is None else np.array(found.normals, np.float32),
        None if texture is None or found.uvs is None else np.array(found.uvs, np.float32),
        None if texture is None or found.uvs is None else texture[..., :3],
    )


def _plane(name: str, scale: list[float]) -> Mesh:
    """Return a checkered plane."""
    half = np.array([each / 2 or ENDLESS for each in np.maximum(scale[:2], 0)])
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64) * half
    fields = np.kron([[_LIGHT, _DARK], [_DARK, _LIGHT]], np.ones((_TILE, _TILE)))
    return Mesh(
        name,
        np.column_stack([corners, np.zeros(4)]).astype(np.float32),
        np.array([(0, 1, 2), (0, 2, 3)], np.uint32),
        np.tile(np.array([0, 0, 1], np.float32), (4, 1)),
        (corners * TILES / 2).astype(np.float32),
        np.repeat(np.round(fields * 255).astype(np.uint8)[..., None], 3, -1),
    )
