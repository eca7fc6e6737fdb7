"""Models of MuJoCo's that change: environments make new ones at a reset, or write other sizes and places into theirs."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt


class Change(Enum):
    """What a model has that differs from the recorded one's."""

    NONE = "nothing that is drawn"
    LOOKS = "other shapes, or other places of bodies that never move"
    POSES = "other bodies or joints"


_JOINTS = (
    "body_parentid",
    "body_mocapid",
    "body_jntadr",
    "body_jntnum",
    "jnt_type",
    "jnt_qposadr",
    "jnt_pos",
    "jnt_axis",
    "qpos0",
)
"""The arrays from which ``mj_kinematics`` works out where the bodies are, beside the state and the frames of bodies."""

_FRAMES = ("body_pos", "body_quat")
"""The arrays of the frames of bodies."""

_SHAPES = (
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
)
"""The arrays that say what is drawn at the bodies."""

_SITES = ("site_pos", "site_size", "site_rgba")
"""The same of sites."""


class RecordedModel:
    """The model by which states are drawn.

    Args:
        model: an ``mjModel``.
        sites: whether sites are drawn.
    """

    def __init__(self, model: Any, *, sites: bool) -> None:
        self._model = model
        self._moving = _moving(model)
        self._looks = (*_FRAMES, *_SHAPES, *(_SITES if sites else ()))

    def change_to(self, model: Any) -> Change:
        """Return how another model differs from it.

        Args:
            model: an ``mjModel``.
        """
        if self._differs(model, _JOINTS) or self._differs(model, _FRAMES, self._moving):
            return Change.POSES
        return Change.LOOKS if self._differs(model, self._looks) else Change.NONE

    def _differs(self, model: Any, names: Iterable[str], rows: Any = ...) -> bool:
        # By their bytes: sizes that aren't a number equal themselves.
        return any(getattr(model, name)[rows].tobytes() != getattr(self._model, name)[rows].tobytes() for name in names)


def _moving(model: Any) -> npt.NDArray[np.bool_]:
    """Return which bodies move by joints, or carry one that does, bool ``[bodies]``."""
    moving: npt.NDArray[np.bool_] = np.array(model.body_weldid) != 0
    for body in range(model.nbody - 1, 0, -1):  # parents come first
        moving[model.body_parentid[body]] |= moving[body]
    return moving
