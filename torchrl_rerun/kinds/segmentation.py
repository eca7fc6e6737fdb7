"""Segmentation: pictures of classes, each in a colour of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import rerun as rr

from torchrl_rerun.kinds.depth import is_wide
from torchrl_rerun.kinds.fits import as_names, is_number, refuse_objects
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.picture import INTEGERS, Channels, Picture, plane_of
from torchrl_rerun.kinds.streams import Stream

_NAME = re.compile(
    r"(.*[^a-z])?(segmentation|(semantic|instance)([^a-z]?seg)?|seg)([^a-z]?(image|img|map|mask|ids?))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Segmentation(Picture):
    """Pictures of classes: one channel of whole numbers or booleans.

    Args:
        classes: name of each class, from 0. Default: the numbers.
        channels: ``"HW"``, ``"HWC"`` or ``"CHW"``. Default: as the shape says.

    >>> Segmentation(["floor", "wall"])
    Segmentation(channels='', classes=('floor', 'wall'))
    """

    name = "segmentation"
    archetype = "SegmentationImage"
    components = ("SegmentationImage:buffer",)

    classes: tuple[str, ...] = ()

    def __init__(self, classes: Sequence[str] = (), *, channels: Channels = "") -> None:
        object.__setattr__(self, "classes", as_names(classes))
        object.__setattr__(self, "channels", channels)
        self.__post_init__()

    @classmethod
    def recognised(cls, leaf: Leaf) -> Self | None:
        is_segmentation = leaf.dtype in INTEGERS and _NAME.fullmatch(leaf.key[-1])
        return cls() if is_segmentation and is_number(leaf) and is_wide(leaf) else None

    def fitted(self, leaf: Leaf) -> Self:
        refuse_objects(self, leaf)
        if plane_of(leaf.row_shape) is None or leaf.dtype not in ("bool", *INTEGERS):
            raise self.misfit(
                leaf, f"{leaf.dtype} of shape {leaf.row_shape}; a segmentation is one channel of whole numbers"
            )
        return replace(self, channels=self.channels_in(leaf))

    def named(self, leaf: Leaf, names: Sequence[str]) -> Self:
        del leaf
        return replace(self, classes=tuple(names))

    def static(self, stream: Stream, agent: int) -> Iterable[Any]:
        del stream, agent
        if not self.classes:
            return ()
        context = rr.components.AnnotationContext(list(enumerate(self.classes)))
        return rr.AnnotationContext.columns(context=context)

    @property
    def format(self) -> str:
        """Segmentations are stored as they are."""
        return "raw"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.classes

    def to_schema(self) -> dict[str, Any]:
        told: dict[str, Any] = {"image_format": self.format, "channels": self.channels}
        return {**told, "names": list(self.classes)} if self.classes else told

    @classmethod
    def from_schema(cls, fields: Mapping[str, Any]) -> Self:
        return cls(fields.get("names", ()), channels=fields.get("channels", ""))
