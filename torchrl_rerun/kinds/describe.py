"""Descriptions: the kind of each key, by the user's options or by its name, its spec and its first value."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torchrl_rerun.kinds.depth import Depth
from torchrl_rerun.kinds.fits import as_names
from torchrl_rerun.kinds.image import IMAGE_FORMATS, Image
from torchrl_rerun.kinds.keys import Key, as_key, name_of
from torchrl_rerun.kinds.kind import Kind, names_of_kinds, registered
from torchrl_rerun.kinds.leaf import Leaf, UnsupportedLeafError, check_name
from torchrl_rerun.kinds.mujoco_state import MuJoCoState
from torchrl_rerun.kinds.picture import ImageFormat
from torchrl_rerun.kinds.points3d import Points3D
from torchrl_rerun.kinds.scalars import Scalars
from torchrl_rerun.kinds.segmentation import Segmentation
from torchrl_rerun.kinds.state import State
from torchrl_rerun.kinds.streams import STORAGE, Stream
from torchrl_rerun.kinds.tensor import Tensor
from torchrl_rerun.kinds.text import Text
from torchrl_rerun.kinds.transforms3d import Transforms3D
from torchrl_rerun.kinds.urdf_joints import UrdfJoints

RECOGNISED: tuple[type[Kind], ...] = (Text, State, Depth, Segmentation, Image, Scalars, Tensor)
"""The kinds that keys have without being told, in the order in which they are asked."""

KINDS: tuple[type[Kind], ...] = (*RECOGNISED, Points3D, Transforms3D, MuJoCoState, UrdfJoints)
"""The kinds of this package."""


def describe(
    leaf: Leaf,
    kinds: Mapping[Key, Kind] | None = None,
    names: Mapping[Key, Sequence[str]] | None = None,
    image_format: ImageFormat = "jpeg",
) -> Stream:
    """Return how a key is recorded.

    Args:
        leaf: the key, its spec and its first value.
        kinds: kinds that the user chose, by key. Default: each key has the kind that it is recognised as.
        names: names that the user chose for the numbers of a row, for the categories or for the classes, by key.
        image_format: format of images whose kind has none.

    Raises:
        UnsupportedLeafError: no kind can hold the data.
        ValueError: the kind, the names or the format don't fit the data; the message names the key.

    >>> describe(Leaf(("action",), "float32", (2,)), names={("action",): ("left", "right")}).kind
    Scalars(names=('left', 'right'))
    """
    if leaf.dtype not in STORAGE:
        raise UnsupportedLeafError(f"{leaf.dtype} data can't be recorded")
    check_name(leaf.key)
    kind = (kinds or {}).get(leaf.key) or recognised(leaf)
    if isinstance(kind, Image) and kind.format is None:
        kind = replace(kind, format=image_format)
    kind = _fitted(kind, leaf)
    if leaf.key in (names or {}):
        kind = kind.named(leaf, (names or {})[leaf.key])
    return Stream(
        leaf.key, kind, leaf.dtype, leaf.shape, leaf.agents, varies=leaf.varies, shared=leaf.shared, device=leaf.device
    )


def refused_format(stream: Stream, kinds: Mapping[Key, Kind], image_format: ImageFormat) -> str | None:
    """Return the lossy format that a user asked for and that can't store a stream of pictures; None: there is none.

    ``image_format="jpeg"`` is the default, and counts as not asked for. Raw and PNG lose nothing, nor do formats in their place.
    """
    if not stream.is_picture:
        return None
    chosen = kinds.get(stream.key)
    asked = None if chosen is None else chosen.format
    if asked is None:
        asked = None if image_format == "jpeg" else image_format
    return None if asked in (None, "raw", "png", stream.kind.format) else asked


def check_format(name: str, value: Any) -> ImageFormat:
    """Return the format of all images.

    Args:
        name: the option's name, for messages.
        value: its value.

    Raises:
        TypeError: the value is no string.
        ValueError: there is no such format.
        ImportError: the format is a video, and PyAV is missing.
    """
    if not isinstance(value, str):
        raise TypeError(
            f"{name}={value!r} is of type {type(value).__name__}; pass a format for all images; "
            'kinds={"pixels": Image("png")} is about one key'
        )
    if value not in IMAGE_FORMATS:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, IMAGE_FORMATS))}")
    image_format = cast("ImageFormat", value)
    Image(image_format).check()
    return image_format


def check_kinds(name: str, value: Any) -> dict[Key, Kind]:
    """Return the kinds that a user chose, by key.

    Args:
        name: the option's name, for messages.
        value: a mapping of keys to kinds, or to their names; None: empty.

    Raises:
        TypeError: the value is no mapping.
        ValueError: there is no such kind.
        ImportError: a package is missing that a kind needs.

    >>> check_kinds("kinds", {"x": "tensor", ("next", "y"): Scalars(["a"])})
    {('x',): Tensor(), ('y',): Scalars(names=('a',))}
    """
    if not isinstance(value, Mapping | None):
        raise TypeError(
            f"{name}={value!r} is of type {type(value).__name__}; pass a dictionary, like "
            '{"observation": "scalars", "pixels": Image("png")}'
        )
    found = {as_key(key): _kind(f"{name}[{key!r}]", kind) for key, kind in (value or {}).items()}
    for key, kind in found.items():
        _checked(f"{name}[{name_of(key)}]", kind, type(kind))
        kind.check()
    return found


def check_names(name: str, value: Any) -> dict[Key, tuple[str, ...]]:
    """Return the names that a user chose, by key.

    Args:
        name: the option's name, for messages.
        value: a mapping of keys to lists of names; None: empty.

    Raises:
        TypeError: the value is no mapping, or has a string instead of a list.
    """
    if not isinstance(value, Mapping | None):
        raise TypeError(
            f'{name}={value!r} is of type {type(value).__name__}; pass a dictionary, like {{"action": ["left", "right"]}}'
        )
    for key, labels in (value or {}).items():
        if isinstance(labels, str):
            raise TypeError(f"{name}[{key!r}]={labels!r}: pass a list of names, even of one: [{labels!r}]")
    return {as_key(key): as_names(labels) for key, labels in (value or {}).items()}


def running_sum(reward: Leaf, key: Key) -> Stream:
    """Return the stream of the return: the running sum of a reward in each episode, in float64.

    Args:
        reward: the reward.
        key: the key of the return.
    """
    return Stream(key, Scalars(), "float64", reward.shape, reward.agents, reward_key=reward.key)


def recognised(leaf: Leaf) -> Kind:
    """Return the kind that a key has without being told.

    Args:
        leaf: the key, its spec and its first value.

    >>> recognised(Leaf(("done",), "bool", (1,))).name, recognised(Leaf(("map",), "float32", (8, 8))).name
    ('state', 'tensor')
    """
    found = (each.recognised(leaf) for each in RECOGNISED)
    return next(kind for kind in found if kind is not None)


def kind_from_schema(fields: Mapping[str, Any]) -> Kind:
    """Return the kind of a key by its fields in the schema.

    A class that can't be made of them, as its options have changed since, is as unknown as one that is not there.
    """
    kind = kind_called(fields["kind"])
    try:
        return kind.from_schema(fields)
    except Exception:
        return _unknown(fields["kind"])()


def kind_called(name: str) -> type[Kind]:
    """Return the kind that recordings call by a name.

    Args:
        name: of a kind whose class exists. Nothing is imported because a file says so: a class of your own must be imported
            before values of it can be read.

    >>> kind_called("image"), kind_called("forces").name
    (<class 'torchrl_rerun.kinds.image.Image'>, 'forces')
    """
    return registered(name) or _unknown(name)


@dataclass(frozen=True)
class _Unknown(Kind):
    """Stands for a kind whose class is not there: streams of it can be listed, and not read."""

    components = ()

    def check_readable(self, stream: Stream) -> None:
        raise ValueError(
            f"{name_of(stream.key)} is of kind {self.name!r}, which is not known here: import the module that defines it "
            "before reading, or read the other keys by their names"
        )


@functools.lru_cache(maxsize=64)
def _unknown(name: str) -> type[Kind]:
    kind: type[Kind] = type("UnknownKind", (_Unknown,), {})
    kind.name = name  # after the class is made: __init_subclass__ would register it
    return kind


def _kind(name: str, kind: Any) -> Kind:
    if isinstance(kind, Kind):
        return kind
    if isinstance(kind, type) and issubclass(kind, Kind):
        return kind()
    found = registered(kind) if isinstance(kind, str) else None
    if found is None:
        close = difflib.get_close_matches(str(kind).lower(), names_of_kinds(), 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        if isinstance(kind, type) and kind.__module__.startswith("rerun"):
            hint = " (an archetype of Rerun's is no kind: docs/kinds.md shows how to write one)"
        known = ", ".join(map(repr, names_of_kinds()))
        raise ValueError(f"{name}={kind!r}{hint}: choose one of {known}, or pass an object such as Image('png')")
    return found()


def _fitted(kind: Kind, leaf: Leaf) -> Kind:
    """Return a kind fitted to a key. An error of its own is a ValueError that names the key."""
    name = f"kinds[{name_of(leaf.key)}]"
    try:
        found = kind.fitted(leaf)
    except (ValueError, UnsupportedLeafError):
        raise
    except Exception as error:
        raise ValueError(f"{name}: {type(kind).__name__}.fitted failed ({type(error).__name__}: {error})") from error
    return _checked(name, found, type(kind))


def _checked(name: str, kind: Any, of: type[Kind]) -> Kind:
    """Return a kind that can be recorded.

    Raises:
        ValueError: the kind has no name, its options can't be compared or written to the schema, or ``fitted`` returned no kind.
    """
    if not isinstance(kind, Kind):
        raise ValueError(  # noqa: TRY004 - the user's `fitted` is wrong, and no argument
            f"{name}: {of.__qualname__}.fitted returned {kind!r}; return self, or a kind with more filled in"
        )
    if not isinstance(getattr(of, "name", None), str):
        raise ValueError(f'{name}: {of.__qualname__} has no name; set name = "..." in the class')  # noqa: TRY004
    try:
        hash(kind)
        json.dumps(kind.to_schema())
    except Exception as error:
        raise ValueError(
            f"{name}={kind!r}: options of a kind are hashable and have a form in JSON, like numbers, strings and tuples of "
            f"these ({error})"
        ) from error
    return kind
