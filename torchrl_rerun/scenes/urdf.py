"""URDF: a robot is drawn by the positions of its joints, which a key has."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchrl_rerun.kinds.keys import AnyKey, Key, as_key, name_of
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.shapes3d import Geometry, Poses
from torchrl_rerun.kinds.transforms3d import remember_geometry
from torchrl_rerun.kinds.urdf_joints import NO_JOINT, UrdfJoints, remember_tree
from torchrl_rerun.scenes.bounds import SPACING, sphere_around
from torchrl_rerun.scenes.source import Simulation, Source
from torchrl_rerun.scenes.urdf_robot import MOVING, Robot, robot_at


@dataclass(frozen=True, init=False)
class Urdf(Source):
    """A robot in a URDF file, drawn by numbers of a key: ``RerunRecorder(scene=Urdf("robot.urdf", joints={...}))``.

    The key is recorded, plotted and read back as it is. The robot is drawn beside it, at ``/env_{i}/{key}/scene``; its base
    doesn't move. Rerun's loader reads the file and its meshes (STL, OBJ, DAE, glTF).

    Args:
        path: path of the file. Meshes are looked for from its folder.
        joints: a key, and for each of its numbers the name of the joint whose position that is, in radians or metres, or
            None. Joints that aren't named are at 0, unless they mimic another one.
        together: whether many environments are shown in one scene, side by side. Default: False, each has a view.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no URDF; it has no joint of such a name; or there are several keys, or none.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchrl.envs import PendulumEnv
        >>> from torchrl_rerun import RerunRecorder, Urdf, load
        >>> folder = Path(tempfile.mkdtemp())
        >>> written = (folder / "arm.urdf").write_text(
        ...     '<robot name="arm"><link name="base"/><link name="rod"><visual><origin xyz="0 0 0.5"/><geometry>'
        ...     '<cylinder radius="0.05" length="1"/></geometry></visual></link><joint name="hinge" type="continuous">'
        ...     '<parent link="base"/><child link="rod"/><axis xyz="0 1 0"/></joint></robot>'
        ... )
        >>> scene = Urdf(folder / "arm.urdf", joints={"th": ["hinge"]})
        >>> env = PendulumEnv().append_transform(RerunRecorder(folder / "run.rrd", scene=scene))
        >>> rollout = env.rollout(3)
        >>> env.close()
        >>> load(folder / "run.rrd")[0].poses().bodies
        ('base', 'rod')
    """

    simulator = "Urdf"

    path: str
    key: Key
    joints: tuple[str | None, ...]
    together: bool

    def __init__(
        self, path: str | os.PathLike[str], joints: Mapping[AnyKey, Sequence[str | None]], *, together: bool = False
    ) -> None:
        if not isinstance(joints, Mapping) or len(joints) != 1:
            raise ValueError(
                'joints has one key, and a name or None for each of its numbers: {"observation": ["hip", None]}'
            )
        [(key, names)] = joints.items()
        if isinstance(names, str):
            raise ValueError(f"joints[{key!r}]={names!r}: pass a list of names, even of one: [{names!r}]")  # noqa: TRY004 - as for several keys
        told = {"path": os.fspath(path), "key": as_key(key), "joints": tuple(names), "together": together}
        for name, value in told.items():
            object.__setattr__(self, name, value)
        self._numbers(robot_at(path))

    def find(self, simulated: Sequence[Any], envs: Sequence[int]) -> Simulation | None:
        """Return None: a key has the positions of the joints."""
        del simulated, envs
        return None

    def kind_of(self, leaf: Leaf) -> UrdfJoints:
        """Return the kind by which the key is drawn: see :meth:`Source.kind_of`."""
        if leaf.size != len(self.joints) or not leaf.is_array:
            raise ValueError(
                f"Urdf(joints=...) names {len(self.joints)} numbers of {name_of(leaf.key)}, and it has {leaf.size}: pass a name "
                "or None for each"
            )
        robot = robot_at(self.path)
        geometry = Geometry(robot.tree.links, robot.shapes)
        center, radius = sphere_around(geometry, Poses(*robot.tree.poses({}, 1)))
        return UrdfJoints(
            bodies=geometry.bodies,
            geometry=remember_geometry(geometry),
            center=center,
            radius=radius,
            spacing=SPACING * radius if self.together else 0.0,
            tree=remember_tree(robot.tree),
            joints=self._numbers(robot),
        )

    def _numbers(self, robot: Robot) -> tuple[int, ...]:
        """Return the numbers of the joints that are named."""
        numbers = {joint.name: at for at, joint in enumerate(robot.tree.joints) if joint.form in MOVING}
        for name in self.joints:
            if name is not None and name not in numbers:
                close = difflib.get_close_matches(str(name), numbers, 1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise ValueError(
                    f"{self.path!r} has no joint {name!r}{hint} that moves; there are {', '.join(numbers)}"
                )
        twice = {name for name in self.joints if name is not None and self.joints.count(name) > 1}
        if twice:
            raise ValueError(f"joints names {', '.join(sorted(twice))} twice")
        return tuple(NO_JOINT if name is None else numbers[name] for name in self.joints)
