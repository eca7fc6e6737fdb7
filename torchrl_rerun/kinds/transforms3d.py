"""Transforms3D: where bodies are in space, with the shapes that are fixed to them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.kinds import assets
from torchrl_rerun.kinds.arrow import Column
from torchrl_rerun.kinds.kind import Kind, View
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.picture import FLOATS
from torchrl_rerun.kinds.shapes3d import Form, Geometry, Poses, once, rotated, vectors_column
from torchrl_rerun.kinds.streams import Stream

QuaternionOrder = Literal["xyzw", "wxyz"]
"""The order of the numbers of a quaternion: ``"wxyz"`` in MuJoCo and in Isaac Lab before 3.0, else ``"xyzw"``."""

Up = Literal["z", "y"]
"""The axis that points up."""

AXES, ROOT = "axes", "root"
"""Names of the entities of the axes of bodies that have no shapes, and of the body that the view follows."""

TRAIL = "trail"
"""Name of the entity of the points where the root was."""

TRAIL_SHARE, TRAIL_COLOR = 0.02, (255, 200, 0)
"""Radius of a point of the trail as a share of the scene's, and its colour."""

_AXES_COLORS = [(255, 80, 80), (80, 220, 80), (90, 130, 255)]

BACKGROUND = (60, 75, 95)
"""Colour behind a scene. Black, the viewer's, makes dark robots hard to see."""

EYE = (1.8, -2.4, 1.0)
"""Where the viewer's eye is at first, from the middle of the scene, in radii of the sphere around it; z is up."""


@dataclass(frozen=True)
class Transforms3D(Kind):
    """Where bodies are: position and quaternion, ``[bodies, 7]``, or ``[7]`` of one. Shown as axes, or as the bodies' shapes.

    Args:
        quaternion: the order of the last four numbers, ``"xyzw"`` or ``"wxyz"``. Default: ``"xyzw"``.
        length: length of the axes in the scene's unit, metres mostly. Default: 0.2.
        bodies: names of the bodies. Default: their numbers.
        geometry: the digest of the shapes of the bodies, which a scene knows (``RerunRecorder(scene=...)``). Default: none.
        center: the middle of the scene, which the view looks at first.
        radius: radius of the sphere around what moves.
        root: number of the body that the view follows. Default: -1, none.
        grid: whether a grid is drawn at height 0. Default: True.
        up: the axis that points up, ``"z"`` or ``"y"``. Default: ``"z"``.
        spacing: distance of environments that are shown in one scene, side by side. Default: 0, each has a view of its own.
        trail: number of frames of which the way of the root is shown. Default: 0, none.

    Raises:
        ValueError: ``quaternion`` or ``up`` is none of the choices, or ``length`` isn't positive.

    >>> Transforms3D("wxyz", length=0.1, bodies=["cart", "pole"], root=0).bodies
    ('cart', 'pole')
    """

    name = "transforms3d"
    is_bulky: ClassVar[bool] = True
    is_scene: ClassVar[bool] = True

    quaternion: QuaternionOrder = "xyzw"
    length: float = 0.2
    bodies: tuple[str, ...] = ()
    geometry: str = ""
    center: tuple[float, ...] = (0.0, 0.0, 0.5)
    radius: float = 1.0
    root: int = -1
    grid: bool = True
    up: Up = "z"
    spacing: float = 0.0
    trail: int = 0

    def __post_init__(self) -> None:
        if self.quaternion not in get_args(QuaternionOrder):
            raise ValueError(f"quaternion={self.quaternion!r}: choose one of 'xyzw', 'wxyz'")
        if self.up not in get_args(Up):
            raise ValueError(f"up={self.up!r}: choose one of 'z', 'y'")
        if not self.length > 0:
            raise ValueError(f"length={self.length!r}: pass a positive number")
        object.__setattr__(self, "bodies", tuple(self.bodies))

    def fitted(self, leaf: Leaf) -> Self:
        shape = leaf.row_shape
        if not leaf.is_array or leaf.row_dtype not in (*FLOATS, "bfloat16"):
            raise self.misfit(leaf, f"{leaf.row_dtype} data; positions and quaternions are floats")
        if shape[-1:] != (7,) or len(shape) > 2:
            raise self.misfit(leaf, f"shape {shape}; poses are [bodies, 7], or [7] of one body")
        count = 1 if len(shape) == 1 else shape[0]
        if self.bodies and len(self.bodies) != count:
            raise self.misfit(leaf, f"shape {shape} with names of {len(self.bodies)} bodies")
        return self

    def poses(self, stream: Stream, rows: npt.NDArray[Any]) -> Poses:
        """Return where the bodies are.

        Args:
            stream: the stream.
            rows: its rows, ``[n, *stream.row_shape]``.
        """
        numbers = stream.numbers(rows).astype(np.float64, copy=False).reshape(len(rows), -1, 7)
        order = [3, 4, 5, 6] if self.quaternion == "xyzw" else [4, 5, 6, 3]
        return Poses(numbers[..., :3], numbers[..., order], self.bodies)

    def below(self, stream: Stream, rows: npt.NDArray[Any]) -> Mapping[str, list[Column]]:
        return self.drawn(self.poses(stream, rows))

    def drawn(self, poses: Poses) -> Mapping[str, list[Column]]:
        """Return the columns of the shapes, by the names of their entities; of bodies without shapes those of their axes."""
        if self.geometry:
            drawn = {each.entity: each.columns(poses) for each in geometry_of(self.geometry).attachments}
        else:
            drawn = {AXES: self._axes(poses)}
        if self.root >= 0:
            at = poses.positions[:, self.root : self.root + 1]
            drawn[ROOT] = [vectors_column("Points3D", "positions", "Position3D", at)]
            if self.trail:  # the eye would follow the middle of a trail
                drawn[TRAIL] = drawn[ROOT]
        return drawn

    def _axes(self, poses: Poses) -> list[Column]:
        axes = rotated(poses.quaternions[..., None, :], self.length * np.eye(3))
        origins = np.broadcast_to(poses.positions[..., None, :], axes.shape)
        count = len(axes)
        return [
            vectors_column("Arrows3D", "vectors", "Vector3D", axes.reshape(count, -1, 3)),
            vectors_column("Arrows3D", "origins", "Position3D", origins.reshape(count, -1, 3)),
        ]

    def static_below(self, stream: Stream, number: int) -> Iterator[tuple[str, Iterable[Any]]]:
        ways = rr.components.ViewCoordinates
        yield "", rr.ViewCoordinates.columns(xyz=[ways.RIGHT_HAND_Z_UP if self.up == "z" else ways.RIGHT_HAND_Y_UP])
        if self.spacing:  # seen from the scene itself, nothing moves
            yield "", rr.Transform3D.columns(translation=[self._upright(*place_of(number, self.spacing))])
        if self.root >= 0 and self.trail:
            yield TRAIL, rr.Points3D.columns(radii=[self.radius * TRAIL_SHARE], colors=[TRAIL_COLOR])
        if self.geometry:
            yield from geometry_of(self.geometry).static()
            return
        count = 1 if len(stream.row_shape) == 1 else stream.row_shape[0]
        labels = [label for name in self.bodies for label in (name, "", "")]
        yield (
            AXES,
            once(rr.Arrows3D.from_fields(colors=_AXES_COLORS * count, labels=labels or None, show_labels=False)),
        )

    def assets(self) -> Iterator[str]:
        if self.geometry:
            yield self.geometry

    def view(self, stream: Stream) -> View:
        del stream
        return View(
            rrb.Spatial3DView,
            self._looking(self.center, self.radius),
            is_large=True,
            rank=0,
            follows=ROOT if self.root >= 0 else "",
            frames={TRAIL: self.trail} if self.root >= 0 and self.trail else {},
            together=self._all if self.spacing else None,
        )

    def _looking(self, center: Sequence[float], radius: float) -> dict[str, Any]:
        """Return the options of a view that looks at a part of the scene."""
        eye = [middle + radius * share for middle, share in zip(center, self._upright(*EYE), strict=True)]
        return {
            "background": rrb.Background(color=BACKGROUND),
            "line_grid": self.grid,
            "eye_controls": rrb.EyeControls3D(kind=rrb.Eye3DKind.Orbital, position=eye, look_target=center),
        }

    def _upright(self, x: float, y: float, z: float) -> list[float]:
        """Return a vector, given with z up, in the directions of the scene."""
        return [x, y, z] if self.up == "z" else [x, z, -y]

    def _all(self, entities: Sequence[str], name: str) -> rrb.View:
        """Return one view of the scenes of several environments. Planes of the first one are shown alone: they lie in one another."""
        contents = [f"+ {entity}/**" for entity in entities]
        contents += [f"- {entity}/world/{Form.PLANE.value}/**" for entity in entities[1:]]
        last = np.array([self._upright(*place_of(number, self.spacing)) for number in range(len(entities))])
        center = np.array(self.center) + (last.min(0) + last.max(0)) / 2
        radius = self.radius + float(np.linalg.norm(last.max(0) - last.min(0))) / 3
        return rrb.Spatial3DView(origin="/", name=name, contents=contents, **self._looking(center.tolist(), radius))


def place_of(number: int, spacing: float) -> list[float]:
    """Return where an environment stands among those that are shown side by side: in a square that grows.

    >>> [place_of(number, 2.0)[:2] for number in range(4)]
    [[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]]
    """
    ring = math.isqrt(number)
    beyond = number - ring * ring
    column, row = (ring, beyond) if beyond <= ring else (2 * ring - beyond, ring)
    return [column * spacing, row * spacing, 0.0]


_geometries: dict[str, Geometry] = {}


def remember_geometry(geometry: Geometry) -> str:
    """Keep the shapes of a scene in this process, and return the digest by which a kind names them."""
    digest = assets.remember(geometry.to_bytes())
    _geometries[digest] = geometry
    return digest


def geometry_of(digest: str) -> Geometry:
    """Return the shapes of a scene; of another process those facts alone by which they are placed.

    Raises:
        KeyError: it isn't known in this process.
    """
    return _geometries[digest] if digest in _geometries else _stored_geometry(digest)


@functools.lru_cache(maxsize=64)
def _stored_geometry(digest: str) -> Geometry:
    return Geometry.from_bytes(assets.asset(digest))
