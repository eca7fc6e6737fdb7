"""Isaac Lab: where the bodies of articulations and rigid objects are, read for all environments at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from torchrl_rerun.kinds.shapes3d import Form, Geometry, Poses, Shape, product, rotated
from torchrl_rerun.kinds.transforms3d import QuaternionOrder, Transforms3D, remember_geometry
from torchrl_rerun.scenes.bounds import SPACING, sphere_around
from torchrl_rerun.scenes.devices import device_of, indices_on, numbers_in
from torchrl_rerun.scenes.source import SceneError, Simulation, Source, attribute
from torchrl_rerun.scenes.urdf_robot import Robot, robot_at

FAMILIES = ("articulations", "rigid_objects", "rigid_object_collections")
"""Attributes of Isaac Lab's scenes that map names to objects with bodies."""

POSES = (
    "body_link_pose_w",
    "object_link_pose_w",
    "body_link_state_w",
    "object_link_state_w",
    "body_state_w",
    "object_state_w",
)
"""Attributes of an object's data with the poses of its bodies, ``[envs, bodies, 7 or more]``. Which there are depends on the version."""

MARK = (0.03, 0.03, 0.03)
"""Half the sides of the box that stands for a body without shapes, metres."""


@dataclass(frozen=True, init=False)
class IsaacLab(Source):
    """Isaac Lab's scene: ``RerunRecorder(scene=IsaacLab(...))``.

    Of each environment the poses of the bodies of its articulations, rigid objects and collections of these are recorded:
    ``[bodies, 7]`` float32, positions relative to the environment's origin. They are read from ``env.unwrapped.scene`` for
    all environments at once. On a GPU they are copied as keys are, which nothing waits for.

    The shapes are in USD, which isn't read. Bodies are drawn as axes, or with the shapes of a URDF that you name.

    Args:
        urdf: URDF files by the names of objects, ``{"robot": "go2.urdf"}``. A link is drawn at the body of its name; one that
            was merged into another by a fixed joint, at that one. Default: none.
        objects: names of the objects that are recorded. Default: all.
        quaternion: the order of the numbers of quaternions, ``"xyzw"`` or ``"wxyz"``. Default: ``"wxyz"`` if the poses are
            tensors of PyTorch, as before Isaac Lab 3, else ``"xyzw"``.
        together: whether many environments are shown in one scene, side by side. Default: False, each has a view.

    Raises:
        FileNotFoundError: a URDF isn't there.
        ValueError: a URDF can't be read, or ``quaternion`` is no such order.
    """

    simulator = "Isaac Lab"

    urdf: Mapping[str, str]
    objects: tuple[str, ...] | None
    quaternion: QuaternionOrder | None
    together: bool

    def __init__(
        self,
        urdf: Mapping[str, str | os.PathLike[str]] | None = None,
        *,
        objects: Sequence[str] | None = None,
        quaternion: QuaternionOrder | None = None,
        together: bool = False,
    ) -> None:
        if quaternion is not None:
            Transforms3D(quaternion)  # which refuses others
        files = {name: os.fspath(path) for name, path in (urdf or {}).items()}
        for path in files.values():
            robot_at(path)
        chosen = None if objects is None else tuple(objects)
        told = {"urdf": files, "objects": chosen, "quaternion": quaternion, "together": together}
        for name, value in told.items():
            object.__setattr__(self, name, value)

    def find(self, simulated: Sequence[Any], envs: Sequence[int]) -> Simulation | None:
        """Return the simulation of some environments: see :meth:`Source.find`."""
        scene = attribute(simulated[0], "scene") if len(simulated) == 1 else None
        if scene is None or not hasattr(scene, "env_origins") or not isinstance(_family(scene, FAMILIES[0]), Mapping):
            return None
        there = {name: each for family in FAMILIES for name, each in (_family(scene, family) or {}).items()}
        for name in (*self.urdf, *(self.objects or ())):
            if name not in there:
                raise SceneError(f"Isaac Lab's scene has no object {name!r}; there are {', '.join(there)}")
        tracked = [
            _Tracked.of(name, each) for name, each in there.items() if self.objects is None or name in self.objects
        ]
        if not tracked:
            raise SceneError("Isaac Lab's scene has no articulations and no rigid objects: there is nothing to record")
        return _Scene(self, scene, tracked, envs)


class _Tracked(NamedTuple):
    """An object whose bodies are recorded.

    Attributes:
        name: its name.
        data: its data.
        poses: name of the attribute of its data that has the poses.
        bodies: names of its bodies.
    """

    name: str
    data: Any
    poses: str
    bodies: tuple[str, ...]

    @classmethod
    def of(cls, name: str, found: Any) -> _Tracked:
        """Return an object of a scene.

        Raises:
            SceneError: its data has no poses.
        """
        data = found.data
        poses = next((each for each in POSES if getattr(data, each, None) is not None), None)
        if poses is None:
            raise SceneError(
                f"the data of {name!r} has none of {', '.join(POSES)}: this version of Isaac Lab isn't known"
            )
        count = getattr(data, poses).shape[1]
        names = getattr(found, "body_names", None) or getattr(found, "object_names", None) or ()
        if len(names) != count:
            names = [str(number) for number in range(count)]
        return cls(name, data, poses, tuple(names))

    def values(self) -> Any:
        """Return the poses as they are now, ``[envs, bodies, 7 or more]``."""
        return getattr(self.data, self.poses)


class _Scene(Simulation):
    """The scene of a batch of environments.

    Args:
        source: the options.
        scene: Isaac Lab's scene.
        tracked: its objects.
        envs: the environments that are recorded.
    """

    dtype = "float32"

    def __init__(self, source: IsaacLab, scene: Any, tracked: Sequence[_Tracked], envs: Sequence[int]) -> None:
        self._scene, self._tracked = scene, tracked
        first = tracked[0].values()
        self.device = device_of(first)
        names = [
            each.name if len(each.bodies) == 1 else f"{each.name}/{body}" for each in tracked for body in each.bodies
        ]
        self.shape = (len(names), 7)
        order = source.quaternion or ("wxyz" if hasattr(first, "detach") else "xyzw")
        shapes = [*_shapes(tracked, source.urdf, names)] if source.urdf else []
        geometry = Geometry(names, shapes)
        poses = self.read(envs[:1])
        if self.device:
            poses = poses.cpu().numpy()
        picked = [3, 4, 5, 6] if order == "xyzw" else [4, 5, 6, 3]
        center, radius = sphere_around(geometry, Poses(poses[..., :3], poses[..., picked]))
        self.kind = Transforms3D(
            order,
            bodies=geometry.bodies,
            geometry=remember_geometry(geometry) if shapes else "",
            center=center,
            radius=radius,
            root=0,
            spacing=SPACING * radius if source.together else 0.0,
        )

    def read(self, envs: Sequence[int]) -> Any:
        parts = [self._rows(each.values(), envs)[..., :7] for each in self._tracked]
        origins = self._rows(self._scene.env_origins, envs)
        if not self.device:
            poses = np.concatenate(parts, axis=1)
            poses[..., :3] -= origins[:, np.newaxis]
            return poses
        import torch  # noqa: PLC0415 - only if values are on an accelerator

        joined = torch.cat(parts, 1)
        joined[..., :3] -= origins[:, None]
        return joined

    def _rows(self, values: Any, envs: Sequence[int]) -> Any:
        """Return the rows of environments."""
        found = numbers_in(values, self.device)
        if len(envs) == len(found):
            return found
        return found[indices_on(self.device, tuple(envs))] if self.device else found[list(envs)]


def _family(scene: Any, name: str) -> Any:
    """Return the objects of a family; None: there are none."""
    try:
        return getattr(scene, name, None)
    except NotImplementedError:  # Isaac Lab with Newton refuses some families
        return None


def _shapes(tracked: Sequence[_Tracked], urdf: Mapping[str, str], names: Sequence[str]) -> Iterator[Shape]:
    """Yield the shapes of all bodies: those of URDF files, and boxes for bodies that have none."""
    start = 0
    seen = set()
    for each in tracked:
        if each.name in urdf:
            for shape in _of_robot(robot_at(urdf[each.name]), each.bodies):
                seen.add(start + shape.body)
                yield replace(shape, body=start + shape.body)
        start += len(each.bodies)
    for number, name in enumerate(names):
        if number not in seen:
            yield Shape(name, Form.BOX, number, MARK)


def _of_robot(robot: Robot, bodies: Sequence[str]) -> Iterator[Shape]:
    """Yield the shapes of a robot. The body of each is its position in ``bodies``."""
    links, tree = robot.tree.links, robot.tree
    for shape in robot.shapes:
        link, position, quaternion = shape.body, np.array(shape.position), np.array(shape.quaternion)
        while links[link] not in bodies and (joint := tree.fixing(link)) is not None:
            turned = np.array(joint.quaternion)
            position = np.array(joint.position) + rotated(turned, position)
            quaternion = product(turned, quaternion)
            link = joint.parent
        if links[link] in bodies:
            yield shape.moved(bodies.index(links[link]), position, quaternion)
