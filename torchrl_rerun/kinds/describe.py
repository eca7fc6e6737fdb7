"""Describing: the kind of each key, by the user's options or by its name, its spec and its first value."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.kinds.depth import Depth
from torchrl_rerun.kinds.image import Image
from torchrl_rerun.kinds.kind import Kind, registered
from torchrl_rerun.kinds.picture import ImageFormat
from torchrl_rerun.kinds.points3d import Points3D
from torchrl_rerun.kinds.scalars import Scalars, as_names
from torchrl_rerun.kinds.segmentation import Segmentation
from torchrl_rerun.kinds.state import State
from torchrl_rerun.kinds.streams import (
    STORAGE,
    AnyKey,
    Key,
    Leaf,
    Stream,
    UnsupportedLeafError,
    as_key,
    check_name,
)
from torchrl_rerun.kinds.tensor import Tensor
from torchrl_rerun.kinds.text import Text

RECOGNISED: tuple[type[Kind], ...] = (Text, State, Depth, Segmentation, Image, Scalars, Tensor)
"""The kinds that keys have without being told, in the order in which they are asked."""

KINDS: tuple[type[Kind], ...] = (*RECOGNISED, Points3D)
"""The kinds of this package."""


@dataclass(frozen=True)
class KindOptions:
    """How the user wants keys to be recorded.

    Attributes:
        kinds: kind of each key, with its options. Default: by its name, its spec and its first value.
        names: names of the numbers of a row, of the categories or of the classes of each key.
        image_format: format of all images whose kind doesn't say. Default: ``"jpeg"``.
    """

    kinds: Mapping[Key, Kind] = field(default_factory=dict)
    names: Mapping[Key, tuple[str, ...]] = field(default_factory=dict)
    image_format: ImageFormat = "jpeg"

    @classmethod
    def checked(
        cls,
        kinds: Mapping[AnyKey, Kind | str] | None = None,
        names: Mapping[AnyKey, Sequence[str]] | None = None,
        image_format: ImageFormat = "jpeg",
    ) -> Self:
        """Return the options if they make sense.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: a kind or a format isn't known.
            ImportError: a video format is asked for, and PyAV is missing.
        """
        if not isinstance(kinds, Mapping | None):
            raise TypeError(
                f"kinds={kinds!r} is of type {type(kinds).__name__}; pass a dictionary, like "
                '{"observation": "scalars", "pixels": Image("png")}'
            )
        if not isinstance(names, Mapping | None):
            raise TypeError(
                f"names={names!r} is of type {type(names).__name__}; pass a dictionary, like "
                '{"action": ["left", "right"]}'
            )
        if not isinstance(image_format, str):
            raise TypeError(
                f"image_format={image_format!r} is of type {type(image_format).__name__}; pass a format for all images; "
                'kinds={"pixels": Image("png")} is about one key'
            )
        found = {as_key(key): _kind(key, kind) for key, kind in (kinds or {}).items()}
        for kind in (Image(image_format), *found.values()):
            kind.check()
        for key, labels in (names or {}).items():
            if isinstance(labels, str):
                raise TypeError(f"names[{key!r}]={labels!r}: pass a list of names, even of one: [{labels!r}]")
        return cls(found, {as_key(key): as_names(labels) for key, labels in (names or {}).items()}, image_format)

    def describe(self, leaf: Leaf) -> Stream:
        """Return how a key is recorded.

        Args:
            leaf: the key, its spec and its first value.

        Raises:
            UnsupportedLeafError: no kind can hold the data.
            ValueError: the kind, the names or the format don't fit the data; the message names the key.

        >>> KindOptions(names={("action",): ("left", "right")}).describe(Leaf(("action",), "float32", (2,))).kind
        Scalars(names=('left', 'right'))
        """
        if leaf.dtype not in STORAGE:
            raise UnsupportedLeafError(f"{leaf.dtype} data can't be recorded")
        check_name(leaf.key)
        kind = self._with_format(self.kinds.get(leaf.key) or recognised(leaf)).fitted(leaf)
        if leaf.key in self.names:
            kind = kind.named(leaf, self.names[leaf.key])
        return Stream(
            leaf.key,
            kind,
            leaf.dtype,
            leaf.shape,
            leaf.agents,
            varies=leaf.varies,
            shared=leaf.shared,
            device=leaf.device,
        )

    def _with_format(self, kind: Kind) -> Kind:
        is_open = isinstance(kind, Image) and kind.format is None
        return replace(kind, format=self.image_format) if is_open else kind  # type: ignore[call-arg]

    def refused_format(self, stream: Stream) -> ImageFormat | None:
        """Return the lossy format that was asked for by name and can't store a stream of pictures; None: there is none."""
        if not stream.is_picture:
            return None
        kind = self.kinds.get(stream.key)
        asked = kind.format if isinstance(kind, Image) else None
        if asked is None:
            asked = None if self.image_format == "jpeg" else self.image_format  # JPEG for all is the default
        return None if asked in (None, "raw", "png", stream.kind.format) else asked

    def unknown(self, recorded: Iterable[Key]) -> dict[str, list[Key]]:
        """Return the keys that an option names though they are not recorded, by the option's name."""
        there = set(recorded)
        options: dict[str, Mapping[Key, Any]] = {"kinds": self.kinds, "names": self.names}
        found = {option: [key for key in keys if key not in there] for option, keys in options.items()}
        return {option: keys for option, keys in found.items() if keys}


def running_sum(reward: Leaf, key: Key) -> Stream:
    """Return the stream of the return: the running sum of a reward in each episode, in float64.

    Args:
        reward: the reward.
        key: the key of the return.
    """
    return Stream(key, Scalars(), "float64", reward.shape, reward.agents, sums=reward.key)


def recognised(leaf: Leaf) -> Kind:
    """Return the kind that a key has without being told.

    Args:
        leaf: the key, its spec and its first value.

    >>> recognised(Leaf(("done",), "bool", (1,))).name, recognised(Leaf(("map",), "float32", (8, 8))).name
    ('state', 'tensor')
    """
    found = (each.recognised(leaf) for each in RECOGNISED)
    return next(kind for kind in found if kind is not None)


def kind_called(name: str) -> type[Kind]:
    """Return the kind that recordings call by a name.

    Args:
        name: of a kind whose class exists. Nothing is imported because a file says so: a class of your own must be imported
            before values of it can be read.

    >>> kind_called("forces")().values(None, None)
    Traceback (most recent call last):
    ValueError: kind 'forces' is not known here: import the module that defines it before reading
    """
    return registered(name) or _unknown(name)


@dataclass(frozen=True)
class _Unknown(Kind):
    """Stands for a kind whose class is not there: streams of it can be listed, and not read."""

    components = ()

    def values(self, stream: Stream, batch: pa.RecordBatch) -> npt.NDArray[Any]:
        del stream, batch
        raise ValueError(f"kind {self.name!r} is not known here: import the module that defines it before reading")


@functools.lru_cache(maxsize=64)
def _unknown(name: str) -> type[Kind]:
    kind: type[Kind] = type("UnknownKind", (_Unknown,), {})
    kind.name = name  # afterwards: else the class would be registered by it
    return kind


def _kind(key: AnyKey, kind: Any) -> Kind:
    if isinstance(kind, Kind):
        return kind
    if isinstance(kind, type) and issubclass(kind, Kind):
        return kind()
    found = registered(kind) if isinstance(kind, str) else None
    if found is None:
        names = ", ".join(repr(each.name) for each in KINDS)
        raise ValueError(f"kinds[{key!r}]={kind!r}: choose one of {names}, or pass an object such as Image('png')")
    return found()
