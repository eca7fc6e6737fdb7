"""Models of MuJoCo's that change: environments make new ones at a reset, or write other sizes and places into theirs."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any


class Change(Enum):
    """What a model has that differs from the recorded one's."""

    NONE = "nothing that is drawn"
    LOOKS = "other shapes"
    POSES = "other bodies or joints"


_POSES = [
    "body_parentid",
    "body_mocapid",
    "body_jntadr",
    "body_jntnum",
    "body_pos",
    "body_quat",
    "jnt_type",
    "jnt_qposadr",
    "jnt_pos",
    "jnt_axis",
    "qpos0",
]
"""The arrays from which ``mj_kinematics`` works out where the bodies are, beside the state."""

_LOOKS = [
    "geom_type",
    "geom_bodyid",
    "geom_dataid",
    "geom_matid",
    "geom_group",
    "geom_pos",
    "geom_quat",
    "geom_size",
    "geom_rgba",
    "mat_rgba",
    "mesh_vert",
    "hfield_size",
    "hfield_data",
    "site_pos",
    "site_size",
    "site_rgba",
]
"""The arrays that say what is drawn at the bodies."""


def change_of(model: Any, recorded: Any, *, sites: bool) -> Change:
    """Return how a model differs from the recorded one.

    Args:
        model: an ``mjModel``.
        recorded: the ``mjModel`` by which its states are drawn.
        sites: whether sites are drawn.
    """
    if _differ(model, recorded, _POSES):
        return Change.POSES
    looks = (name for name in _LOOKS if sites or not name.startswith("site_"))
    return Change.LOOKS if _differ(model, recorded, looks) else Change.NONE


def _differ(model: Any, recorded: Any, names: Iterable[str]) -> bool:
    # By their bytes: sizes that aren't a number equal themselves.
    return any(getattr(model, name).tobytes() != getattr(recorded, name).tobytes() for name in names)
