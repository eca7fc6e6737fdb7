"""A robot in a URDF file, read by Rerun's own loader: its joints, and the shapes of its links."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rerun.urdf import UrdfJoint, UrdfTree

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.shapes3d import GREY, WHITE, Floats, Form, MeshFile, Shape, product
from torchrl_rerun.kinds.urdf_joints import Joint, Mimic, Tree

MOVING = ("revolute", "continuous", "prismatic")
"""The types of joints that have a position of one number."""

_PREFIX = "robot"


class Robot(NamedTuple):
    """A robot.

    Attributes:
        tree: its joints.
        shapes: its shapes. The body of each is the number of a link.
    """

    tree: Tree
    shapes: tuple[Shape, ...]


def robot_at(path: str | os.PathLike[str]) -> Robot:
    """Return the robot in a URDF file.

    Args:
        path: path of the file. Meshes are looked for from its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no URDF, or has a joint of several numbers.
    """
    found = Path(path)
    if not found.exists():
        raise FileNotFoundError(f"there is no URDF at {os.fspath(path)!r}")
    return _read(found.resolve(), found.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read(path: Path, changed: int) -> Robot:
    del changed  # another file by then
    try:
        found = UrdfTree.from_file_path(path, _PREFIX)
        tree = _tree(found)
        looks = _looks(found)
    except SeveralNumbersError:
        raise
    except Exception as error:
        raise ValueError(f"{str(path)!r} can't be read as a URDF: {error}") from error
    shapes = [*_shapes(found, tree, looks)]
    missing = [name for name, shape in shapes if shape is None]
    if missing:  # rerun-sdk 0.41 says so in its own log alone
        warn(
            f"{', '.join(missing)} of {str(path)!r} is not drawn: its mesh can't be read. Meshes are looked for from the file's "
            "folder, and packages from ROS_PACKAGE_PATH"
        )
    return Robot(tree, tuple(shape for _, shape in shapes if shape is not None))


class SeveralNumbersError(ValueError):
    """A joint has a position of several numbers."""


def _tree(found: UrdfTree) -> Tree:
    """Return the joints, in an order in which each is behind that which moves the link before it."""
    after: dict[str, list[UrdfJoint]] = {}
    for joint in found.joints():
        after.setdefault(joint.parent_link, []).append(joint)
        if joint.joint_type not in (*MOVING, "fixed"):
            raise SeveralNumbersError(
                f"joint {joint.name!r} is {joint.joint_type}, whose position isn't one number: make it fixed"
            )
    links, ordered = [found.root_link().name], []
    waiting = deque(links)
    while waiting:
        for joint in after.get(waiting.popleft(), ()):
            ordered.append(joint)
            links.append(joint.child_link)
            waiting.append(joint.child_link)
    numbers = {joint.name: number for number, joint in enumerate(ordered)}
    return Tree(tuple(links), tuple(_joint(joint, links, numbers) for joint in ordered))


def _joint(joint: UrdfJoint, links: list[str], numbers: Mapping[str, int]) -> Joint:
    mimic, axis = joint.mimic, np.array(joint.axis, np.float64)
    length = np.linalg.norm(axis)
    return Joint(
        joint.name,
        joint.joint_type,
        links.index(joint.parent_link),
        links.index(joint.child_link),
        joint.origin_xyz,
        tuple(_quaternion(*joint.origin_rpy).tolist()),
        tuple((axis / length if length else np.array([1.0, 0.0, 0.0])).tolist()),
        None
        if mimic is None or mimic.joint not in numbers
        else Mimic(numbers[mimic.joint], mimic.multiplier, mimic.offset),
    )


def _quaternion(roll: float, pitch: float, yaw: float) -> Floats:
    """Return the quaternion of rotations about the fixed axes x, y and z, in this order."""
    about = [
        np.array([*(np.sin(angle / 2) * np.eye(3)[at]), np.cos(angle / 2)])
        for at, angle in enumerate((roll, pitch, yaw))
    ]
    return product(about[2], product(about[1], about[0]))


def _looks(found: UrdfTree) -> dict[str, dict[str, Any]]:
    """Return the components of Rerun's entities, by their paths."""
    looks: dict[str, dict[str, Any]] = {}
    for chunk in found.stream(include_joint_transforms=False):
        batch = chunk.to_record_batch()
        components = looks.setdefault(chunk.entity_path, {})
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if ":" in name:
                [components[name.partition(":")[2]]] = column.to_pylist()
                components.setdefault("archetypes", set()).add(name.partition(":")[0])
    return looks


def _shapes(found: UrdfTree, tree: Tree, looks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Shape | None]]:
    """Yield what is seen of links: names, and shapes, None for one that can't be drawn."""
    for number, link in enumerate(tree.links):
        for at, path in enumerate(found.get_visual_geometry_paths(link)):
            name = link if not at else f"{link}_{at}"
            yield name, _shape(name, number, looks.get(path, {}))


def _shape(name: str, link: int, look: Mapping[str, Any]) -> Shape | None:
    """Return a shape; None: its mesh can't be read."""
    archetypes = look.get("archetypes", ())
    mesh, size = None, (1.0, 1.0, 1.0)
    if "Boxes3D" in archetypes:
        form, size = Form.BOX, tuple(look["half_sizes"][0])
    elif "Ellipsoids3D" in archetypes:
        form, size = Form.ELLIPSOID, tuple(look["half_sizes"][0])
    elif "Cylinders3D" in archetypes or "Capsules3D" in archetypes:
        form = Form.CYLINDER if "Cylinders3D" in archetypes else Form.CAPSULE
        size = (look["radii"][0], look["lengths"][0] / 2, 0.0)
    elif "Asset3D" in archetypes:
        form, size = Form.MESH, tuple(look.get("scales", [size])[0])
        mesh = MeshFile(name, bytes(look["blob"][0]), look["media_type"][0])
    else:
        return None
    return Shape(
        name,
        form,
        link,
        size,
        tuple(look["translations"][0]),
        tuple(look["quaternions"][0]),
        _color(look, mesh),
        mesh,
    )


def _color(look: Mapping[str, Any], mesh: MeshFile | None) -> tuple[int, ...]:
    [packed] = look.get("colors") or look.get("albedo_factor") or [None]
    if packed is not None:
        return tuple(int(packed).to_bytes(4, "big"))
    return GREY if mesh is None or mesh.media_type == "model/stl" else WHITE  # others have colours of their own
