"""Shapes of a scene in space: fixed to bodies, told once, and drawn where the bodies are.

Shapes of one form are the instances of one entity: an entity for each body would cost the writer five times as much, and
half as much again on disk (``make bench ARGS="--only scene"``).
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr

from torchrl_rerun.kinds.arrow import Column, flat

Floats = npt.NDArray[np.float64]

WORLD = -1
"""The body of shapes that don't move."""

IDENTITY = (0.0, 0.0, 0.0, 1.0)
"""The quaternion, x, y, z and w, of no rotation."""


class Form(Enum):
    """The form of a shape, and the name of the entity that all shapes of this form are instances of."""

    SPHERE = "spheres"
    ELLIPSOID = "ellipsoids"
    CAPSULE = "capsules"
    CYLINDER = "cylinders"
    BOX = "boxes"
    MESH = "meshes"
    PLANE = "planes"


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles.

    Attributes:
        name: name of the entity.
        vertices: positions in metres, ``[n, 3]``.
        triangles: three vertices each, ``[m, 3]``.
        normals: ``[n, 3]``. Default: the viewer's.
        texture_coordinates: ``[n, 2]``; from 0 to 1, and beyond where the texture is repeated. Default: none.
        texture: a picture uint8 ``[height, width, 3]``. Default: none.
    """

    name: str
    vertices: npt.NDArray[Any]
    triangles: npt.NDArray[Any]
    normals: npt.NDArray[Any] | None = None
    texture_coordinates: npt.NDArray[Any] | None = None
    texture: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class MeshFile:
    """Triangles in a file, which the viewer reads.

    Attributes:
        name: name of the entity.
        contents: the bytes of the file.
        media_type: its format, such as ``"model/stl"``.
    """

    name: str
    contents: bytes
    media_type: str


WHITE = (255, 255, 255, 255)
"""The colour that leaves that of a mesh or texture as it is."""

GREY = (180, 180, 180, 255)
"""The colour of shapes that have none."""


@dataclass(frozen=True, eq=False)
class Shape:
    """A shape that is fixed to a body.

    Attributes:
        name: its name.
        form: its form.
        body: number of the body; :data:`WORLD` for shapes that don't move.
        size: three numbers in metres: the radius of a sphere; radius and half the length (without the caps) of capsules and
            cylinders, along z; half the sides of boxes, and half the axes of ellipsoids. Of meshes and planes the factors by
            which they are scaled.
        position: in the body's frame, metres.
        quaternion: in the body's frame; x, y, z and w.
        color: red, green, blue and alpha, 0 to 255.
        mesh: the triangles of a mesh or plane.
    """

    name: str
    form: Form
    body: int
    size: tuple[float, ...] = (1.0, 1.0, 1.0)
    position: tuple[float, ...] = (0.0, 0.0, 0.0)
    quaternion: tuple[float, ...] = IDENTITY
    color: tuple[int, ...] = GREY
    mesh: Mesh | MeshFile | None = None

    def moved(self, body: int, position: Floats, quaternion: Floats) -> Shape:
        """Return the shape, fixed to another body.

        Args:
            body: number of the body.
            position: in its frame, metres.
            quaternion: in its frame; x, y, z and w.
        """
        return replace(self, body=body, position=tuple(position.tolist()), quaternion=tuple(quaternion.tolist()))


class Poses(NamedTuple):
    """Where bodies are at ``n`` moments.

    Attributes:
        positions: metres, ``[n, bodies, 3]``.
        quaternions: x, y, z and w, ``[n, bodies, 4]``.
        bodies: names of the bodies; empty if they have none.

    >>> Poses(np.zeros((50, 2, 3)), np.zeros((50, 2, 4)), ("world", "torso"))
    Poses(positions=[50, 2, 3], quaternions=[50, 2, 4], bodies=('world', 'torso'))
    """

    positions: Floats
    quaternions: Floats
    bodies: tuple[str, ...] = ()

    def __repr__(self) -> str:
        shapes = (f"{name}={list(getattr(self, name).shape)}" for name in ("positions", "quaternions"))
        return f"Poses({', '.join(shapes)}, bodies={self.bodies})"


class Attachments(NamedTuple):
    """The shapes of one entity, as far as they must be known to place them.

    Attributes:
        entity: name of the entity, below that of the scene.
        form: the form of the shapes.
        bodies: number of the body of each, ``[k]``.
        positions: in the frames of the bodies, ``[k, 3]``.
        quaternions: in the frames of the bodies, ``[k, 4]``.
        scales: factors by which meshes are scaled that only the viewer reads, ``[k, 3]``; ``[0, 3]``: they aren't.
    """

    entity: str
    form: Form
    bodies: npt.NDArray[np.int64]
    positions: Floats
    quaternions: Floats
    scales: Floats

    def columns(self, poses: Poses) -> list[Column]:
        """Return the columns that place the shapes.

        Args:
            poses: where the bodies are.
        """
        turned = poses.quaternions[:, self.bodies]
        positions = poses.positions[:, self.bodies] + rotated(turned, self.positions)
        archetype, name = _PLACED[self.form]
        columns = [vectors_column(archetype, name, "Translation3D", positions)]
        if self.form is not Form.SPHERE:  # which looks the same from all sides
            columns.append(vectors_column(archetype, "quaternions", "RotationQuat", product(turned, self.quaternions)))
        if len(self.scales):  # rerun-sdk 0.41 ignores those that don't change if the positions do
            scales = np.broadcast_to(self.scales, (len(positions), *self.scales.shape))
            columns.append(vectors_column(archetype, "scales", "Scale3D", scales))
        return columns


_PLACED = {
    Form.SPHERE: ("Ellipsoids3D", "centers"),
    Form.ELLIPSOID: ("Ellipsoids3D", "centers"),
    Form.CAPSULE: ("Capsules3D", "translations"),
    Form.CYLINDER: ("Cylinders3D", "centers"),
    Form.BOX: ("Boxes3D", "centers"),
    Form.MESH: ("InstancePoses3D", "translations"),
    Form.PLANE: ("InstancePoses3D", "translations"),
}
"""By form: the archetype that places shapes, and its name of their positions."""


class Geometry:
    """The shapes of a scene.

    Args:
        bodies: names of the bodies.
        shapes: the shapes.

    Attributes:
        bodies: names of the bodies.
        attachments: the shapes that move, by entity.
    """

    def __init__(self, bodies: Sequence[str], shapes: Iterable[Shape]) -> None:
        self.bodies = tuple(bodies)
        moving: dict[str, list[Shape]] = {}
        still: dict[str, list[Shape]] = {}
        for entity, shape in _with_entities(shapes):
            moves = shape.body != WORLD
            (moving if moves else still).setdefault(entity, []).append(shape)
        self._moving, self._still = moving, still
        self.attachments = [_attachments(entity, each) for entity, each in moving.items()]

    @property
    def is_floating(self) -> bool:
        """Whether there is no shape that doesn't move, such as a floor."""
        return not self._still

    @property
    def moving(self) -> list[Shape]:
        """The shapes that move."""
        return [shape for shapes in self._moving.values() for shape in shapes]

    def static(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield what doesn't change: the name of each entity, and its columns as Rerun's archetypes give them."""
        for entity, shapes in self._moving.items():
            yield entity, once(*_look(shapes))
        for entity, shapes in self._still.items():
            placed = _attachments(entity, shapes)
            archetype, name = _PLACED[placed.form]
            fields = {name: placed.positions, "quaternions": placed.quaternions}
            if len(placed.scales):
                fields["scales"] = placed.scales
            yield f"world/{entity}", once(*_look(shapes), getattr(rr, archetype).from_fields(**fields))

    def to_bytes(self) -> bytes:
        """Return the names of the bodies and the attachments, by which poses can be drawn later.

        A digest of how the shapes look is with them, so that no two geometries have the same bytes.
        """
        file = io.BytesIO()
        shapes = [shape for each in (self._moving, self._still) for some in each.values() for shape in some]
        looks = hashlib.blake2b(b"".join(_seen(shape) for shape in shapes), digest_size=8).hexdigest()
        arrays: dict[str, Any] = {"bodies": np.array(self.bodies), "looks": np.array(looks)}
        for number, each in enumerate(self.attachments):
            arrays |= {
                f"{number}.entity": np.array([each.entity, each.form.value]),
                f"{number}.bodies": each.bodies,
                f"{number}.positions": each.positions,
                f"{number}.quaternions": each.quaternions,
                f"{number}.scales": each.scales,
            }
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, stored: bytes) -> Geometry:
        """Return the geometry that :meth:`to_bytes` described, by which poses can be drawn: it has no shapes any more."""
        with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
            geometry = cls(arrays["bodies"].tolist(), ())
            for number in itertools.takewhile(lambda each: f"{each}.entity" in arrays, itertools.count()):
                entity, form = arrays[f"{number}.entity"].tolist()
                rest = (arrays[f"{number}.{name}"] for name in ("bodies", "positions", "quaternions", "scales"))
                geometry.attachments.append(Attachments(entity, Form(form), *rest))
        return geometry


def _with_entities(shapes: Iterable[Shape]) -> Iterator[tuple[str, Shape]]:
    """Yield shapes with the names of their entities. Meshes that differ have different ones, also where they are named alike."""
    alike: dict[str, list[bytes]] = {}
    for shape in shapes:
        entity = _entity_of(shape)
        if shape.mesh is not None:
            digests = alike.setdefault(entity, [])
            digest = hashlib.blake2b(_content(shape.mesh), digest_size=8).digest()
            if digest not in digests:
                digests.append(digest)
            number = 1 + digests.index(digest)
            entity = entity if number == 1 else f"{entity}_{number}"
        yield entity, shape


def _entity_of(shape: Shape) -> str:
    if shape.mesh is None:
        return str(shape.form.value)
    look = "_".join(f"{each:02x}" for each in shape.color)
    scale = "" if shape.size == (1.0, 1.0, 1.0) else "_" + "_".join(f"{each:g}" for each in shape.size)
    return f"{shape.form.value}/{rr.escape_entity_path_part(shape.mesh.name)}/{look}{scale}"


def _seen(shape: Shape) -> bytes:
    """Return bytes that differ if shapes look different, or are elsewhere."""
    told = (shape.name, shape.form.value, shape.body, shape.size, shape.position, shape.quaternion, shape.color)
    return repr(told).encode() + (b"" if shape.mesh is None else _content(shape.mesh))


def _content(mesh: Mesh | MeshFile) -> bytes:
    """Return bytes that differ if meshes do."""
    parts = (getattr(mesh, each.name) for each in fields(mesh))
    return b"".join(each.tobytes() if isinstance(each, np.ndarray) else repr(each).encode() for each in parts)


def _attachments(entity: str, shapes: Sequence[Shape]) -> Attachments:
    positions = np.array([shape.position for shape in shapes], np.float64)
    quaternions = np.array([shape.quaternion for shape in shapes], np.float64)
    form = shapes[0].form
    if form is Form.CAPSULE:  # Rerun's begin at their origin, and are not centred
        below = np.array([(0.0, 0.0, -shape.size[1]) for shape in shapes])
        positions = positions + rotated(quaternions, below)
    scales = np.array([shape.size for shape in shapes if isinstance(shape.mesh, MeshFile)], np.float64).reshape(-1, 3)
    scales = scales[: 0 if (scales == 1).all() else None]
    return Attachments(
        entity, form, np.array([shape.body for shape in shapes], np.int64), positions, quaternions, scales
    )


def _look(shapes: Sequence[Shape]) -> list[Any]:
    """Return the archetypes of what shapes of one entity look like."""
    form, mesh = shapes[0].form, shapes[0].mesh
    size = np.array([shape.size for shape in shapes], np.float32)
    colors = [shape.color for shape in shapes]
    if isinstance(mesh, MeshFile):
        color = None if colors[0] == WHITE else colors[0]
        return [rr.Asset3D(contents=mesh.contents, media_type=mesh.media_type, albedo_factor=color)]
    if mesh is not None:
        return [
            rr.Mesh3D(
                vertex_positions=mesh.vertices * size[0],
                triangle_indices=mesh.triangles,
                vertex_normals=mesh.normals,
                vertex_texcoords=mesh.texture_coordinates,
                albedo_texture=mesh.texture,
                albedo_factor=colors[0],
            )
        ]
    told: dict[str, Any] = {"colors": colors, "labels": [shape.name for shape in shapes], "show_labels": False}
    if form in (Form.CAPSULE, Form.CYLINDER):
        told |= {"radii": size[:, 0], "lengths": 2 * size[:, 1]}
    else:
        told["half_sizes"] = np.repeat(size[:, :1], 3, 1) if form is Form.SPHERE else size
    return [getattr(rr, _PLACED[form][0]).from_fields(**told, fill_mode="solid")]


def once(*archetypes: Any) -> list[Any]:
    """Return the columns of one row of archetypes."""
    batches = (batch for each in archetypes for batch in each.as_component_batches())
    return [batch.partition([len(batch.as_arrow_array())]) for batch in batches]


# --- rotations ---


def product(first: Floats, second: Floats) -> Floats:
    """Return the quaternions ``[..., 4]`` of rotations one after the other: the second one in the frame of the first one."""
    x, y, z, w = (first[..., i] for i in range(4))
    a, b, c, d = (second[..., i] for i in range(4))
    return np.stack(
        [
            w * a + x * d + y * c - z * b,
            w * b - x * c + y * d + z * a,
            w * c + x * b - y * a + z * d,
            w * d - x * a - y * b - z * c,
        ],
        axis=-1,
    )


def rotated(quaternions: Floats, vectors: Floats) -> Floats:
    """Return vectors ``[..., 3]``, rotated by unit quaternions ``[..., 4]``.

    >>> rotated(np.array([0.0, 0.0, 1.0, 0.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [-1.0, -2.0, 3.0]
    """
    x, y, z, w = (quaternions[..., i] for i in range(4))
    a, b, c = (vectors[..., i] for i in range(3))
    # Twice the cross product of the axis with the vector. Without np.cross, which takes ten times as long.
    d, e, f = 2 * (y * c - z * b), 2 * (z * a - x * c), 2 * (x * b - y * a)
    return np.stack(
        [a + w * d + y * f - z * e, b + w * e + z * d - x * f, c + w * f + x * e - y * d],
        axis=-1,
    )


# --- columns ---

_SIZED = {size: pa.list_(pa.field("item", pa.float32(), nullable=False), size) for size in (3, 4)}


def vectors(values: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """Return vectors ``[..., 3]`` or quaternions ``[..., 4]`` as Rerun's components have them."""
    with np.errstate(over="ignore"):  # a simulation that blew up is infinitely far away
        shown = values.astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(flat(shown), type=_SIZED[values.shape[-1]])


def vectors_column(archetype: str, name: str, component: str, rows: npt.NDArray[Any]) -> Column:
    """Return the column of a component of three or four numbers, of which each row has the same number.

    Args:
        archetype: Rerun's name of the archetype.
        name: its name of the component.
        component: Rerun's name of the component's type.
        rows: ``[n, k, 3 or 4]``.
    """
    return _column(archetype, name, component, rows, np.arange(len(rows) + 1) * rows.shape[1])


def list_column(archetype: str, name: str, component: str, rows: Sequence[npt.NDArray[Any]]) -> Column:
    """Return the column of a component of three or four numbers, of which rows have different numbers.

    Args:
        archetype: Rerun's name of the archetype.
        name: its name of the component.
        component: Rerun's name of the component's type.
        rows: ``n`` arrays ``[k, 3 or 4]``.
    """
    return _column(archetype, name, component, np.concatenate(rows), np.cumsum([0, *map(len, rows)]))


def _column(
    archetype: str, name: str, component: str, values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]
) -> Column:
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), vectors(values))
    return Column(f"{archetype}:{name}", archetype, component, lists)
