"""Joints of a URDF: numbers of a key, from which the writer works out where the links of a robot are."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds import assets
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.shapes3d import Floats, Poses, product, rotated
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.transforms3d import Transforms3D

NO_JOINT = -1
"""Stands for a number that is no joint's position."""


@dataclass(frozen=True)
class UrdfJoints(Transforms3D):
    """Positions of a robot's joints among the numbers of a row. Made by ``RerunRecorder(scene=Urdf(...))``.

    Args:
        tree: the digest of the robot's joints.
        joints: for each number of a row the number of the joint whose position it is, or :data:`NO_JOINT`.
    """

    name = "urdf"
    is_bulky = False

    tree: str = ""
    joints: tuple[int, ...] = ()

    def fitted(self, leaf: Leaf) -> Self:
        if leaf.size != len(self.joints):
            raise self.misfit(leaf, f"{leaf.size} numbers; joints are named for {len(self.joints)}")
        return self

    def poses(self, stream: Stream, rows: npt.NDArray[Any]) -> Poses:
        numbers = stream.numbers(rows).astype(np.float64, copy=False).reshape(len(rows), -1)
        tree = tree_of(self.tree)
        given: dict[int, Floats] = {joint: numbers[:, at] for at, joint in enumerate(self.joints) if joint != NO_JOINT}
        positions, quaternions = tree.poses(given, len(rows))
        return Poses(positions, quaternions, self.bodies)

    def assets(self) -> Iterator[str]:
        yield from super().assets()
        yield self.tree


class Mimic(NamedTuple):
    """A joint that follows another one.

    Attributes:
        joint: the number of the other one.
        multiplier: the factor of its position.
        offset: radians or metres that are added.
    """

    joint: int
    multiplier: float
    offset: float


class Joint(NamedTuple):
    """A joint of a robot.

    Attributes:
        name: its name.
        form: URDF's name of its type: ``"revolute"``, ``"continuous"``, ``"prismatic"`` or ``"fixed"``.
        parent: the number of the link before it.
        child: the number of the link behind it.
        position: of its frame in that of the link before it, metres.
        quaternion: of its frame in that of the link before it; x, y, z and w.
        axis: in its frame, of length 1.
        mimic: how it follows another one; None: it doesn't.
    """

    name: str
    form: str
    parent: int
    child: int
    position: tuple[float, ...]
    quaternion: tuple[float, ...]
    axis: tuple[float, ...]
    mimic: Mimic | None = None


class Tree(NamedTuple):
    """The joints of a robot.

    Attributes:
        links: names of the links.
        joints: the joints, each behind that which moves the link before it.
    """

    links: tuple[str, ...]
    joints: tuple[Joint, ...]

    def poses(self, given: Mapping[int, Floats], count: int) -> tuple[Floats, Floats]:
        """Return where the links are, in the frame of the first one.

        Args:
            given: positions of joints at ``count`` moments, radians or metres, by their numbers. Others are at 0.
            count: number of moments.

        Returns:
            Positions ``[count, links, 3]`` in metres, and quaternions ``[count, links, 4]``.
        """
        positions, quaternions = np.zeros((count, len(self.links), 3)), np.zeros((count, len(self.links), 4))
        quaternions[..., 3] = 1
        for number, joint in enumerate(self.joints):
            turned, at = quaternions[:, joint.parent], positions[:, joint.parent]
            at = at + rotated(turned, np.array(joint.position))
            turned = product(turned, np.array(joint.quaternion))
            axis, value = np.array(joint.axis), self._value(number, given, count)
            if joint.form == "prismatic":
                at = at + rotated(turned, axis * value[:, None])
            elif joint.form != "fixed":
                half = value[:, None] / 2
                turned = product(turned, np.concatenate([axis * np.sin(half), np.cos(half)], axis=-1))
            positions[:, joint.child], quaternions[:, joint.child] = at, turned
        return positions, quaternions

    def fixing(self, link: int) -> Joint | None:
        """Return the joint that fixes a link to the one before it; None: the link moves, or is the first one."""
        return next((joint for joint in self.joints if joint.child == link and joint.form == "fixed"), None)

    def _value(self, number: int, given: Mapping[int, Floats], count: int) -> Floats:
        """Return the positions of a joint."""
        mimic = self.joints[number].mimic
        if number in given:
            return given[number]
        if mimic is None:
            return np.zeros(count)
        return mimic.multiplier * self._value(mimic.joint, given, count) + mimic.offset

    def to_bytes(self) -> bytes:
        """Return the tree as JSON."""
        return json.dumps(self).encode()

    @classmethod
    def from_bytes(cls, stored: bytes) -> Tree:
        """Return the tree that :meth:`to_bytes` described."""
        links, joints = json.loads(stored)
        return cls(tuple(links), tuple(map(_joint, joints)))


def _joint(stored: list[Any]) -> Joint:
    *told, mimic = stored
    return Joint._make([*told, mimic and Mimic._make(mimic)])


@functools.lru_cache(maxsize=64)
def tree_of(digest: str) -> Tree:
    """Return the joints of a robot.

    Raises:
        KeyError: they aren't known in this process.
    """
    return Tree.from_bytes(assets.asset(digest))


def remember_tree(tree: Tree) -> str:
    """Keep the joints of a robot in this process, and return the digest by which a kind names them."""
    return assets.remember(tree.to_bytes())
