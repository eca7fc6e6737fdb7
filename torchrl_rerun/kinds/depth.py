"""Depth: pictures of distances, coloured by the viewer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import rerun as rr

from torchrl_rerun.kinds.fits import is_number, refuse_objects
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.picture import FLOATS, INTEGERS, Picture, plane_of
from torchrl_rerun.kinds.streams import Stream

_NAME = re.compile(r"(.*[^a-z])?depth([^a-z]?(image|img|map))?", re.IGNORECASE)


@dataclass(frozen=True)
class Depth(Picture):
    """Pictures of distances: one channel of numbers.

    Args:
        meter: how many units of depth are a meter, such as 1000 for millimeters. Default: the viewer's, 1000 for whole
            numbers and 1 for floats.
        channels: ``"HW"``, ``"HWC"`` or ``"CHW"``. Default: as the shape says.
    """

    name = "depth"
    archetype = "DepthImage"
    components = ("DepthImage:buffer",)

    meter: float | None = None

    def __post_init__(self) -> None:
        if self.meter is not None:
            if not isinstance(self.meter, int | float | np.number) or not 0 < self.meter < math.inf:
                raise ValueError(f"meter={self.meter!r}: pass a positive number, the units of depth in a meter")
            object.__setattr__(self, "meter", float(self.meter))
        super().__post_init__()

    @classmethod
    def recognised(cls, leaf: Leaf) -> Self | None:
        is_depth = leaf.dtype in (*FLOATS, "uint8", "uint16", "uint32") and _NAME.fullmatch(leaf.key[-1])
        return cls() if is_depth and is_number(leaf) and is_wide(leaf) else None

    def fitted(self, leaf: Leaf) -> Self:
        refuse_objects(self, leaf)
        if plane_of(leaf.row_shape) is None or leaf.dtype not in (*FLOATS, *INTEGERS):
            raise self.misfit(leaf, f"{leaf.dtype} of shape {leaf.row_shape}; depth is one channel of numbers")
        return replace(self, channels=self.channels_in(leaf))

    def static(self, stream: Stream, agent: int) -> Iterable[Any]:
        del stream, agent
        return () if self.meter is None else rr.DepthImage.columns(meter=[self.meter])

    @property
    def format(self) -> str:
        """Depth is stored as it is."""
        return "raw"

    def to_schema(self) -> dict[str, Any]:
        told = {"image_format": self.format, "channels": self.channels}
        return told if self.meter is None else {**told, "meter": self.meter}

    @classmethod
    def from_schema(cls, fields: Mapping[str, Any]) -> Self:
        return cls(fields.get("meter"), channels=fields.get("channels", ""))


def is_wide(leaf: Leaf) -> bool:
    """Return whether a key has one channel, and more than four rows and columns: no board of a game, no small matrix."""
    plane = plane_of(leaf.row_shape)
    return plane is not None and min(plane) > 4
