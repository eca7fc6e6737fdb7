"""The shapes of a MuJoCo model: its geoms, by MuJoCo's own rules for sizes, colours and textures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.mujoco_state import XYZW
from torchrl_rerun.kinds.shapes3d import WORLD, Form, Geometry, Mesh, Shape, product, rotated
from torchrl_rerun.scenes.bounds import around_spheres

ENDLESS = 40.0
"""Metres from the middle to the sides of a plane that has no end."""

MOST_PIXELS = 512
"""Sides of textures are made smaller than this by leaving out pixels."""

CHECKER_PIXELS = 64
"""The same of the textures of planes, which are repeated."""

CONTRAST = 0.4
"""The share of their contrast that textures of planes keep: a floor that is black and white draws the eye away from the robot."""

_GREY = (0.5, 0.5, 0.5, 1.0)
"""The colour of a geom that has none: that of its material counts."""


def geometry_of_model(model: Any, groups: Sequence[int], *, sites: bool) -> Geometry:
    """Return the shapes of a model.

    Args:
        model: an ``mjModel``.
        groups: the groups of geoms that are drawn.
        sites: whether sites are drawn.
    """
    bodies = [model.body(number).name or f"body_{number}" for number in range(model.nbody)]
    shapes = [shape for number in range(model.ngeom) if (shape := _geom(model, number, groups)) is not None]
    if sites:
        shapes += _sites(model, groups)
    return Geometry(bodies, _with_still_ones(model, shapes))


def sphere_around(model: Any) -> tuple[tuple[float, ...], float]:
    """Return middle and radius of the sphere around the geoms that move, where a simulation begins.

    Args:
        model: an ``mjModel``.
    """
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    moving = [number for number in range(model.ngeom) if _moves(model, int(model.geom_bodyid[number]))]
    if not moving:
        return tuple(model.stat.center.tolist()), float(model.stat.extent)
    return around_spheres(np.array(data.geom_xpos[moving]), np.array(model.geom_rbound[moving]))


def _moves(model: Any, body: int) -> bool:
    return bool(model.body_weldid[body] != 0 or model.body_mocapid[model.body_rootid[body]] >= 0)


def _with_still_ones(model: Any, shapes: Sequence[Shape]) -> Iterator[Shape]:
    """Yield shapes; those of bodies that never move are fixed to the world."""
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    for shape in shapes:
        body = shape.body
        if _moves(model, body):
            yield shape
            continue
        turned = np.array(data.xquat[body])[XYZW]
        position = np.array(data.xpos[body]) + rotated(turned, np.array(shape.position))
        quaternion = product(turned, np.array(shape.quaternion))
        yield shape.moved(WORLD, position, quaternion)


def _geom(model: Any, number: int, groups: Sequence[int]) -> Shape | None:
    """Return the shape of a geom; None: it isn't drawn."""
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    kinds = mujoco.mjtGeom
    color = _color(model, number)
    if int(model.geom_group[number]) not in groups or color[3] == 0:
        return None
    forms = _forms()
    form = Form.MESH
    kind, size = int(model.geom_type[number]), tuple(model.geom_size[number].tolist())
    name = model.geom(number).name or f"geom_{number}"
    mesh = None
    if kind not in forms:
        if kind == kinds.mjGEOM_PLANE:
            form, mesh = Form.PLANE, _plane(model, number, name)
        elif kind == kinds.mjGEOM_HFIELD:
            mesh = _height_field(model, int(model.geom_dataid[number]))
        elif kind in (kinds.mjGEOM_MESH, kinds.mjGEOM_SDF):
            mesh = _mesh(model, number)
        else:
            return None
        size = (1.0, 1.0, 1.0)
    quaternion = np.array(model.geom_quat[number])[XYZW]
    return Shape(
        name,
        forms.get(kind, form),
        int(model.geom_bodyid[number]),
        size,
        tuple(model.geom_pos[number].tolist()),
        tuple(quaternion.tolist()),
        color,
        mesh,
    )


def _forms() -> dict[int, Form]:
    """Return the forms of geoms and sites that Rerun has, too, by MuJoCo's types."""
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    kinds = mujoco.mjtGeom
    return {
        int(kinds.mjGEOM_SPHERE): Form.SPHERE,
        int(kinds.mjGEOM_ELLIPSOID): Form.ELLIPSOID,
        int(kinds.mjGEOM_CAPSULE): Form.CAPSULE,
        int(kinds.mjGEOM_CYLINDER): Form.CYLINDER,
        int(kinds.mjGEOM_BOX): Form.BOX,
    }


def _color(model: Any, geom: int) -> tuple[int, ...]:
    """Return the colour of a geom: its own, unless that is the default and it has a material."""
    rgba, material = model.geom_rgba[geom], int(model.geom_matid[geom])
    if material >= 0 and np.allclose(rgba, _GREY):
        rgba = model.mat_rgba[material]
    return _as_bytes(rgba)


def _as_bytes(rgba: npt.NDArray[Any]) -> tuple[int, ...]:
    return tuple(np.clip(np.nan_to_num(np.round(rgba * 255)), 0, 255).astype(int).tolist())


def _texture(model: Any, geom: int, most: int) -> npt.NDArray[np.uint8] | None:
    """Return the picture on a geom; None: it has none that is flat."""
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    material = int(model.geom_matid[geom])
    if material < 0:
        return None
    number = int(model.mat_texid[material][mujoco.mjtTextureRole.mjTEXROLE_RGB])
    if number < 0 or model.tex_type[number] != mujoco.mjtTexture.mjTEXTURE_2D:
        return None
    height, width, channels = (int(each[number]) for each in (model.tex_height, model.tex_width, model.tex_nchannel))
    start = int(model.tex_adr[number])
    pixels = np.array(model.tex_data[start : start + height * width * channels]).reshape(height, width, channels)
    step = -(-max(height, width) // most)
    pixels = pixels[::step, ::step]
    return np.ascontiguousarray(pixels[..., :3] if channels >= 3 else np.repeat(pixels[..., :1], 3, -1))


def _plane(model: Any, geom: int, name: str) -> Mesh:
    """Return a plane as two triangles, with its texture repeated as MuJoCo does it."""
    size = model.geom_size[geom][:2]
    half = np.array([each or ENDLESS for each in size])
    texture = _texture(model, geom, CHECKER_PIXELS)
    if texture is not None:
        mean = texture.mean((0, 1), keepdims=True)
        texture = (mean + CONTRAST * (texture - mean)).astype(np.uint8)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
    vertices = np.column_stack([corners * half, np.zeros(4)]).astype(np.float32)
    coordinates = None
    if texture is not None:
        material = int(model.geom_matid[geom])
        repeats = np.array(model.mat_texrepeat[material], np.float64)
        # Repeats are of a metre if the texture is uniform or the plane endless, else of the whole plane.
        times = np.array(
            [repeats[i] * (half[i] if model.mat_texuniform[material] or not size[i] else 0.5) for i in range(2)]
        )
        coordinates = ((corners + 1) * times).astype(np.float32)
    return Mesh(
        name,
        vertices,
        np.array([(0, 1, 2), (0, 2, 3)], np.uint32),
        np.tile(np.array([0, 0, 1], np.float32), (4, 1)),
        coordinates,
        texture,
    )


def _height_field(model: Any, number: int) -> Mesh:
    rows, columns = int(model.hfield_nrow[number]), int(model.hfield_ncol[number])
    x_half, y_half, height, _ = model.hfield_size[number].tolist()
    start = int(model.hfield_adr[number])
    heights = np.array(model.hfield_data[start : start + rows * columns]).reshape(rows, columns) * height
    x, y = np.meshgrid(np.linspace(-x_half, x_half, columns), np.linspace(-y_half, y_half, rows))
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    first = (row * columns + column).ravel()
    triangles = np.concatenate(
        [
            np.column_stack([first, first + 1, first + columns + 1]),
            np.column_stack([first, first + columns + 1, first + columns]),
        ]
    )
    normals = np.dstack([*(-each for each in np.gradient(heights, y[:, 0], x[0])[::-1]), np.ones_like(heights)])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return Mesh(
        model.hfield(number).name or f"height_field_{number}",
        np.dstack([x, y, heights]).reshape(-1, 3).astype(np.float32),
        triangles.astype(np.uint32),
        normals.reshape(-1, 3).astype(np.float32),
    )


def _mesh(model: Any, geom: int) -> Mesh:
    number = int(model.geom_dataid[geom])
    start, count = int(model.mesh_vertadr[number]), int(model.mesh_vertnum[number])
    faces = slice(int(model.mesh_faceadr[number]), int(model.mesh_faceadr[number]) + int(model.mesh_facenum[number]))
    vertices = np.array(model.mesh_vert[start : start + count])
    triangles = np.array(model.mesh_face[faces])
    of_normals, first_normal = np.array(model.mesh_facenormal[faces]), int(model.mesh_normaladr[number])
    first_coordinate = int(model.mesh_texcoordadr[number])
    texture = _texture(model, geom, MOST_PIXELS) if first_coordinate >= 0 else None
    name = model.mesh(number).name or f"mesh_{number}"
    if texture is None and np.array_equal(of_normals, triangles):
        normals = np.array(model.mesh_normal[first_normal : first_normal + count])
        return Mesh(name, vertices, triangles.astype(np.uint32), normals)
    # Corners that share a vertex have normals or coordinates of their own: each triangle gets vertices of its own.
    coordinates = None
    if texture is not None:
        at = first_coordinate + np.array(model.mesh_facetexcoord[faces]).ravel()
        coordinates = np.array(model.mesh_texcoord)[at]
    return Mesh(
        name if texture is None else f"{name}_{int(model.geom_matid[geom])}",
        vertices[triangles.ravel()],
        np.arange(triangles.size, dtype=np.uint32).reshape(-1, 3),
        np.array(model.mesh_normal)[first_normal + of_normals.ravel()],
        coordinates,
        texture,
    )


def _sites(model: Any, groups: Sequence[int]) -> Iterator[Shape]:
    """Yield the shapes of sites."""
    forms = _forms()
    for number in range(model.nsite):
        color = _as_bytes(model.site_rgba[number])
        if int(model.site_group[number]) in groups and color[3]:
            yield Shape(
                model.site(number).name or f"site_{number}",
                forms[int(model.site_type[number])],
                int(model.site_bodyid[number]),
                tuple(model.site_size[number].tolist()),
                tuple(model.site_pos[number].tolist()),
                tuple(np.array(model.site_quat[number])[XYZW].tolist()),
                color,
            )
