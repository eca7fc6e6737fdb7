"""Streams: from a key, its spec and its first value to a kind, a storage type, names and entity paths.

A :class:`Leaf` says what a front end knows of a key; :func:`describe` decides how it is recorded, a :class:`Stream`.
Everything below (buffer, columns, layout, schema) reads streams and never asks where they came from.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import rerun as rr

Kind = Literal["image", "scalars", "tensor", "state", "text"]
"""How a key is shown: one of ``"image"``, ``"scalars"``, ``"tensor"``, ``"state"``, ``"text"``."""

ImageFormat = Literal["raw", "png", "jpeg", "h264"]
"""How images are stored: ``"raw"`` and ``"png"`` are exact, ``"jpeg"`` is small, ``"h264"`` (video) much smaller."""

Key = tuple[str, ...]
"""A tensordict key as a tuple of strings, without a leading ``"next"``."""

KINDS: tuple[str, ...] = get_args(Kind)
IMAGE_FORMATS: tuple[str, ...] = get_args(ImageFormat)
VIDEO_FORMATS: tuple[str, ...] = ("h264",)

PAGE = 4096

MAX_SCALARS = 64
"""The largest row that is plotted; anything larger is a tensor, but for one-hot values."""

MAX_CATEGORIES = 4096
"""The largest one-hot value that is a state."""

# torch's name of a dtype -> the numpy dtype that holds the same bits.
_STORAGE = {
    "bool": np.bool_,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "float16": np.float16,
    "bfloat16": np.uint16,  # numpy has no bfloat16: its bits travel as uint16
    "float32": np.float32,
    "float64": np.float64,
    "object": np.object_,  # non-tensor data: strings, arrays of varying shape
}


@dataclass(frozen=True)
class Leaf:
    """What a front end knows of one key before it is recorded.

    Attributes:
        key: the key, without ``"next"``.
        dtype: torch's name of the dtype (``"float32"``), or ``"object"`` for non-tensor data.
        shape: shape of one environment's value, the agent dimension included.
        agents: names along the first dimension of ``shape`` when that is an agent dimension, else empty.
        discrete: what the spec says of the values: ``"index"`` (categorical), ``"one_hot"``, or None.
        categories: how many values a discrete leaf can take, per number (``"index"``) or per one-hot segment.
        sample: one environment's value of non-tensor data, else None.
        shared: one value of non-tensor data stands for the whole batch.
        device: the accelerator that the values are on, as PyTorch names it; empty: none.
        names: what the environment is known to call its numbers, or the categories of a discrete leaf; empty: not known.
    """

    key: Key
    dtype: str
    shape: tuple[int, ...]
    agents: tuple[str, ...] = ()
    discrete: Literal["index", "one_hot"] | None = None
    categories: tuple[int, ...] = ()
    sample: Any = None
    shared: bool = False
    device: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stream:
    """How one key is recorded, in every environment.

    Attributes:
        key: the key, without ``"next"``.
        kind: how it is shown.
        dtype: torch's name of the dtype, or ``"object"``.
        shape: shape of one environment's value, the agent dimension included.
        agents: names of the agents; each has an entity of its own. Empty without an agent dimension.
        image_format: how images are stored; None for other kinds.
        channels: where an image keeps its channels: ``"HWC"``, ``"CHW"`` or ``"HW"``; empty for other kinds.
        discrete: ``"index"`` or ``"one_hot"`` for the states of a discrete spec, else None.
        categories: sizes of the one-hot segments of a discrete spec, or the number of categories.
        names: names of the numbers of a row (scalars) or of the categories (state); empty: none known.
        shared: one value stands for all environments, and is recorded for the first one logged.
        sums: the key of the reward whose running sum this is; empty for what the environment gives itself.
        device: the accelerator that the values come from; empty: none.
    """

    key: Key
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    agents: tuple[str, ...] = ()
    image_format: ImageFormat | None = None
    channels: Literal["HWC", "CHW", "HW", ""] = ""
    discrete: Literal["index", "one_hot"] | None = None
    categories: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    shared: bool = False
    sums: Key = ()
    device: str = ""

    @property
    def storage(self) -> np.dtype[Any]:
        """The numpy dtype in which rows are buffered, bit for bit."""
        return np.dtype(_STORAGE[self.dtype])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row at one entity: ``shape`` without the agent dimension."""
        return self.shape[1:] if self.agents else self.shape

    @property
    def is_large(self) -> bool:
        """Whether a row fills a page of memory."""
        return self.row_bytes >= PAGE

    @property
    def is_bulky(self) -> bool:
        """Whether it fills memory much sooner than numbers do, and is better kept apart from them."""
        return self.is_large or (self.dtype == "object" and self.kind in ("image", "tensor"))

    @property
    def is_flag(self) -> bool:
        """Whether this is a state of booleans, each up or down, and not a category."""
        return self.kind == "state" and self.dtype == "bool" and self.discrete is None

    @property
    def is_picture(self) -> bool:
        """Whether it is to be looked at as it is."""
        return self.kind == "image"

    @property
    def is_vector(self) -> bool:
        """Whether this is a tensor of one dimension, which is shown as bars."""
        return self.kind == "tensor" and self.dtype != "object" and len(self.row_shape) == 1

    @property
    def is_encoded(self) -> bool:
        """Whether its images are compressed, one by one or as a video."""
        return self.image_format not in (None, "raw")

    @property
    def is_video(self) -> bool:
        """Whether its images are stored as a video."""
        return self.image_format in VIDEO_FORMATS

    @property
    def lanes(self) -> int:
        """How many entities an environment has of this key."""
        return max(1, len(self.agents))

    @property
    def row_bytes(self) -> int:
        """Bytes of one environment's value in the buffer."""
        return self.storage.itemsize * math.prod(self.shape)

    def numbers(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Buffered rows as numbers: 16-bit floats as float32, which holds each of them exactly, all others as they are."""
        if self.dtype == "bfloat16":
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32) if self.dtype == "float16" else rows

    def path(self, env: int | None, lane: int = 0) -> list[str]:
        """The parts of the entity path of environment ``env``, for the agent at position ``lane``.

        Args:
            env: environment index; None: the recording is of one environment.
            lane: position of the agent.

        >>> Stream(("agents", "reward"), "scalars", "float32", (2, 1), agents=("fox", "hare")).path(3, 1)
        ['env_3', 'agents', 'reward', 'hare']
        """
        return [*([] if env is None else [f"env_{env}"]), *self.key, *self.agents[lane : lane + 1]]

    def as_json(self) -> dict[str, Any]:
        """What a reader must know to give the key back as it was."""
        fields: dict[str, Any] = {
            "key": list(self.key),
            "dtype": self.dtype,
            "shape": list(self.shape),
            "kind": self.kind,
        }
        for name in ("agents", "image_format", "channels", "discrete", "categories", "names", "shared", "sums"):
            value = getattr(self, name)
            if value:
                fields[name] = list(value) if isinstance(value, tuple) else value
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Stream:
        """The stream that :meth:`as_json` describes.

        Args:
            fields: what it gave; what belongs to no stream (a schema's ``moment``) is left out.
        """
        values: dict[str, Any] = {
            field.name: tuple(value) if isinstance(value := fields[field.name], list) else value
            for field in dataclasses.fields(cls)
            if field.name in fields
        }
        return cls(**values)


@functools.lru_cache(maxsize=1 << 16)
def entity_path(stream: Stream, env: int | None, lane: int = 0) -> str:
    """The entity path at which a stream of an environment is recorded, escaped by Rerun's own rules.

    Args:
        stream: the stream.
        env: environment index; None: the recording is of one environment.
        lane: position of the agent.
    """
    return rr.new_entity_path(stream.path(env, lane))


def batch_path(key: Key) -> str:
    """The entity path of the statistics of a key over all environments."""
    return rr.new_entity_path(["batch", *key])


class UnsupportedLeafError(TypeError):
    """A key holds data that no kind can record."""


def name_of(key: Key) -> str:
    """A key as the user would write it in a message.

    >>> name_of(("agents", "observation")), name_of(("pixels",))
    ("('agents', 'observation')", "'pixels'")
    """
    return repr(key[0] if len(key) == 1 else key)


def describe(
    leaf: Leaf,
    *,
    kinds: Mapping[Key, Kind],
    names: Mapping[Key, Sequence[str]],
    image_format: ImageFormat | Mapping[Key, ImageFormat],
) -> Stream:
    """Decide how a key is recorded.

    Args:
        leaf: what is known of the key.
        kinds: the user's overrides of the kind.
        names: the user's names of the numbers of a row, or of the categories; where there are none, even empty ones, the
            leaf's own.
        image_format: one format for all images, or one per key (``"jpeg"`` where a key is not named).

    Raises:
        UnsupportedLeafError: no kind can hold the data (complex numbers, objects that are neither text nor arrays).
        ValueError: the override, the names or the format don't fit the data; the message names the key.
    """
    if leaf.dtype not in _STORAGE:
        raise UnsupportedLeafError(f"{leaf.dtype} data can't be recorded")
    _check_name(leaf.key)
    row_shape = leaf.shape[1:] if leaf.agents else leaf.shape
    kind = kinds.get(leaf.key) or _kind(leaf, row_shape)
    _check_kind(leaf, kind, row_shape)
    channels: Literal["HWC", "CHW", "HW", ""] = ""
    stored: ImageFormat | None = None
    if kind == "image":
        if leaf.dtype != "object":
            channels = _channels(row_shape) or ""
        stored = image_format if isinstance(image_format, str) else image_format.get(leaf.key, "jpeg")
        stored = _possible_format(leaf, channels, row_shape, stored)
    return Stream(
        key=leaf.key,
        kind=kind,
        dtype=leaf.dtype,
        shape=leaf.shape,
        agents=leaf.agents,
        image_format=stored,
        channels=channels,
        discrete=leaf.discrete if kind == "state" else None,
        categories=leaf.categories if kind == "state" else (),
        names=_checked_names(leaf, kind, row_shape, names[leaf.key]) if leaf.key in names else _own_names(leaf, kind),
        shared=leaf.shared,
        device=leaf.device,
    )


def _check_name(key: Key) -> None:
    """Entity paths are made of parts that aren't empty, in UTF-8."""
    for part in key:
        if not part:
            raise UnsupportedLeafError("an empty name can't be part of an entity path")
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedLeafError("its name is no valid Unicode") from error


def _kind(leaf: Leaf, row_shape: tuple[int, ...]) -> Kind:
    size = math.prod(row_shape)
    if leaf.dtype == "object":
        return _kind_of_object(leaf)
    if leaf.discrete is not None and size <= _most(leaf, "state") and len(row_shape) <= 1:
        return "state"
    if _channels(row_shape) is not None and _is_picture(leaf.dtype, row_shape):
        return "image"
    if size <= MAX_SCALARS and len(row_shape) <= 1:
        return "state" if leaf.dtype == "bool" else "scalars"
    return "tensor"


def _most(leaf: Leaf, kind: Kind) -> int:
    """How many numbers a row of this kind may have."""
    return MAX_CATEGORIES if kind == "state" and leaf.discrete == "one_hot" else MAX_SCALARS


def _kind_of_object(leaf: Leaf) -> Kind:
    if isinstance(leaf.sample, str):
        return "text"
    if isinstance(leaf.sample, np.ndarray) and leaf.sample.dtype.name in _STORAGE:
        shape = leaf.sample.shape
        if _channels(shape) is not None and _is_picture(leaf.sample.dtype.name, shape):
            return "image"
        return "tensor"
    raise UnsupportedLeafError(f"{type(leaf.sample).__name__} data is neither text nor an array")


def _channels(shape: tuple[int, ...]) -> Literal["HWC", "CHW", "HW"] | None:
    """Where a picture of this shape keeps its channels, by the rule of TorchRL's ``VideoRecorder``; None: no picture."""
    if len(shape) == 2:
        return "HW"
    if len(shape) != 3 or not all(shape):
        return None
    if shape[0] in (1, 3, 4) and shape[1] > 4 and shape[2] > 4:
        return "CHW"
    if shape[2] in (1, 3, 4):
        return "HWC"
    return "CHW" if shape[0] in (1, 3, 4) else None


def _is_picture(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether data of this dtype and (image-like) shape is meant to be looked at, and not a matrix of numbers."""
    if dtype == "uint8":
        return len(shape) == 3 or min(shape) > 4
    if dtype in ("float16", "float32", "float64"):
        return len(shape) == 3 and sorted(shape)[1] > 4
    return False


def _possible_format(leaf: Leaf, channels: str, row_shape: tuple[int, ...], wanted: ImageFormat) -> ImageFormat:
    """What a format can't hold falls back to one that can.

    Floats can only be raw. JPEG and video have no alpha channel: such images are PNG, which keeps every bit. A video is of
    one size, which non-tensor data may not be.
    """
    dtype = leaf.sample.dtype.name if leaf.dtype == "object" else leaf.dtype
    if dtype != "uint8":
        return "raw"
    depth = 1 if channels == "HW" else row_shape[0] if channels == "CHW" else row_shape[-1] if row_shape else 3
    if depth == 4 and wanted not in ("raw", "png"):
        return "png"
    return "jpeg" if wanted in VIDEO_FORMATS and leaf.dtype == "object" else wanted


def _check_kind(leaf: Leaf, kind: Kind, row_shape: tuple[int, ...]) -> None:
    what = f"kinds[{name_of(leaf.key)}] = {kind!r}"
    if kind not in KINDS:
        raise ValueError(f"{what}: unknown kind; choose one of {', '.join(map(repr, KINDS))}")
    is_object = leaf.dtype == "object"
    if (kind == "text") != (is_object and isinstance(leaf.sample, str)):
        raise ValueError(f"{what} doesn't fit: 'text' is for strings in non-tensor data, and strings can only be text")
    if is_object:
        if kind in ("scalars", "state"):
            raise ValueError(f"{what} doesn't fit non-tensor data; choose 'image' or 'tensor'")
        return
    if kind == "image" and (
        _channels(row_shape) is None or leaf.dtype not in ("uint8", "float16", "float32", "float64")
    ):
        raise ValueError(
            f"{what} doesn't fit {leaf.dtype} of shape {row_shape}; an image is uint8 or float with 1, 3 or 4 channels"
        )
    most = _most(leaf, kind)
    if kind in ("scalars", "state") and (len(row_shape) > 1 or math.prod(row_shape) > most):
        raise ValueError(f"{what} doesn't fit shape {row_shape}; at most {most} numbers in one dimension")
    if kind == "state" and "float" in leaf.dtype:
        raise ValueError(f"{what} doesn't fit {leaf.dtype}; states are whole numbers or booleans")


def _own_names(leaf: Leaf, kind: Kind) -> tuple[str, ...]:
    """The leaf's names, if they still are names of what the user's kind shows."""
    return leaf.names if kind == ("scalars" if leaf.discrete is None else "state") else ()


def _checked_names(leaf: Leaf, kind: Kind, row_shape: tuple[int, ...], names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        return ()
    if kind == "scalars" and len(names) != math.prod(row_shape):
        raise ValueError(
            f"names[{name_of(leaf.key)}] has {len(names)} names, but a row has {math.prod(row_shape)} numbers"
        )
    if kind == "state" and leaf.discrete is not None and len(names) < max(leaf.categories):
        raise ValueError(
            f"names[{name_of(leaf.key)}] has {len(names)} names, but there are {max(leaf.categories)} categories"
        )
    if kind not in ("scalars", "state"):
        raise ValueError(f"names[{name_of(leaf.key)}]: a key of kind {kind!r} has no numbers to name")
    return tuple(str(name) for name in names)
