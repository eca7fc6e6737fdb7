"""Streams: from a key, its spec and its first value to a kind, a storage type, names and entity paths.

A :class:`Leaf` says what a front end knows of a key; :func:`describe` decides how it is recorded, a :class:`Stream`.
Everything below (buffer, columns, layout, schema) reads streams and never asks where they came from.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import rerun as rr

Kind = Literal["image", "depth", "segmentation", "scalars", "tensor", "state", "text"]
"""How a key is shown: one of ``"image"``, ``"depth"``, ``"segmentation"``, ``"scalars"``, ``"tensor"``, ``"state"``,
``"text"``."""

ImageFormat = Literal["raw", "png", "jpeg", "h264", "av1"]
"""How images are stored: ``"raw"`` and ``"png"`` are exact, ``"jpeg"`` is small, ``"h264"`` and ``"av1"`` (video) much
smaller."""

Stacks = Literal["all", "newest", "none"]
"""What of a stack of frames is recorded; ``"none"``: it isn't taken for one."""

Channels = Literal["HWC", "CHW", "HW", ""]
"""Where a picture keeps its channels; empty: it is none, or each one by itself says so."""

Key = tuple[str, ...]
"""A tensordict key as a tuple of strings, without a leading ``"next"``."""

KINDS: tuple[str, ...] = get_args(Kind)
IMAGE_FORMATS: tuple[str, ...] = get_args(ImageFormat)
VIDEO_FORMATS: tuple[str, ...] = ("h264", "av1")
STACKS: tuple[str, ...] = get_args(Stacks)
PICTURES: tuple[str, ...] = ("image", "depth", "segmentation")
"""The kinds that are pictures, in the order in which they are laid out."""

JPEG_QUALITY = 90

PAGE = 4096

MAX_SCALARS = 64
"""The largest row that is plotted; anything larger is a tensor, but for one-hot values."""

MAX_CATEGORIES = 4096
"""The largest one-hot value that is a state."""

MAX_STACK, MIN_STACKED = 16, 32
"""What isn't said to be a stack of frames is taken for one if it has so many channels at the most, and is so high and wide
at the least: planes of a board are neither."""

_FLOATS = ("float16", "float32", "float64")
_INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")

_DEPTH = re.compile(r"(.*[^a-z])?depth([^a-z]?(image|img|map))?", re.IGNORECASE)
_SEGMENTATION = re.compile(
    r"(.*[^a-z])?(segmentation|(semantic|instance)([^a-z]?seg)?|seg)([^a-z]?(image|img|map|mask|ids?))?",
    re.IGNORECASE,
)

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
    "complex64": np.complex64,
    "complex128": np.complex128,
    "object": np.object_,  # non-tensor data: Python's own values and arrays
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
        varies: each value has a shape of its own; ``shape`` is that of the first environment's first one.
        shared: one value of non-tensor data stands for the whole batch.
        device: the accelerator that the values are on, as PyTorch names it; empty: none.
        names: what the environment is known to call its numbers, or the categories of a discrete leaf; empty: not known.
        stack: how many frames an image is known to be a stack of; 0: that isn't known.
    """

    key: Key
    dtype: str
    shape: tuple[int, ...]
    agents: tuple[str, ...] = ()
    discrete: Literal["index", "one_hot"] | None = None
    categories: tuple[int, ...] = ()
    sample: Any = None
    varies: bool = False
    shared: bool = False
    device: str = ""
    names: tuple[str, ...] = ()
    stack: int = 0


@dataclass(frozen=True)
class Stream:
    """How one key is recorded, in every environment.

    Attributes:
        key: the key, without ``"next"``.
        kind: how it is shown.
        dtype: torch's name of the dtype, or ``"object"``.
        shape: shape of one environment's value, the agent dimension included; if it varies, of the first one.
        agents: names of the agents; each has an entity of its own. Empty without an agent dimension.
        varies: values of other shapes than ``shape`` are recorded, too: each is a tensor by itself.
        image_format: how pictures are stored; None for other kinds.
        jpeg_quality: the quality of JPEG files, 0 for other formats.
        channels: where a picture keeps its channels: ``"HWC"``, ``"CHW"`` or ``"HW"``; empty for other kinds. Of four
            dimensions the first are frames, and this is about the others.
        stack: how many frames a picture is a stack of, the newest one last: along the first of four dimensions, else
            along the channels; 0: it is none.
        newest: whether of a stack only the newest frame is recorded; else they are side by side.
        discrete: ``"index"`` or ``"one_hot"`` for the states of a discrete spec, else None.
        categories: sizes of the one-hot segments of a discrete spec, or the number of categories.
        names: names of the numbers of a row (scalars) or of the categories (state); empty: none known.
        shared: one value stands for all environments, and is recorded for the first one logged.
        sums: the key of the reward whose running sum this is; empty for what the environment gives itself.
        device: the accelerator that the values come from; empty: none.
        place: the parts of the entity path instead of those of the key, if another stream has its path; else empty.
    """

    key: Key
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    agents: tuple[str, ...] = ()
    varies: bool = False
    image_format: ImageFormat | None = None
    jpeg_quality: int = 0
    channels: Channels = ""
    stack: int = 0
    newest: bool = False
    discrete: Literal["index", "one_hot"] | None = None
    categories: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    shared: bool = False
    sums: Key = ()
    device: str = ""
    place: Key = ()

    @property
    def is_object(self) -> bool:
        """Whether a row is a Python object: non-tensor data, or an array of a shape of its own."""
        return self.dtype == "object" or self.varies

    @property
    def is_of_any_size(self) -> bool:
        """Whether pictures of any size are stored as pictures: each by itself, and not as a stack or in a video."""
        return self.is_object and not self.stack and not self.is_video

    @property
    def number_type(self) -> np.dtype[Any]:
        """The numpy dtype that holds the values' bits."""
        return np.dtype(_STORAGE[self.dtype])

    @property
    def storage(self) -> np.dtype[Any]:
        """The numpy dtype in which rows are buffered, bit for bit."""
        return np.dtype(np.object_) if self.is_object else self.number_type

    @property
    def slot_shape(self) -> tuple[int, ...]:
        """Shape of one environment's value in the buffer: of Python objects there is one for each agent."""
        return self.shape if not self.is_object else (len(self.agents),) if self.agents else ()

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
        return self.is_large or self.varies or (self.dtype == "object" and self.kind in ("image", "tensor"))

    @property
    def is_picture(self) -> bool:
        """Whether it is looked at: an image, depth or a segmentation."""
        return self.kind in PICTURES

    @property
    def held_shape(self) -> tuple[int, ...]:
        """Shape of what is recorded of a row: of a stack perhaps one frame."""
        if not self.newest:
            return self.row_shape
        frames = 0 if len(self.row_shape) == 4 or self.channels == "CHW" else 2
        shape = list(self.row_shape)
        shape[frames] //= self.stack
        return tuple(shape)

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """Height, width and depth of each picture, of one size, as it is shown: the frames of a stack are side by side.

        >>> Stream(("pixels",), "image", "uint8", (4, 84, 96), channels="CHW", stack=4).picture_shape
        (84, 384, 1)
        """
        shape = self.row_shape
        beside = 1 if self.newest else max(1, self.stack)
        frame = shape[1:] if len(shape) == 4 else shape
        depth, *size = (
            (1, *frame) if self.channels == "HW" else frame if self.channels == "CHW" else (frame[2], *frame[:2])
        )
        return size[0], size[1] * beside, depth if len(shape) == 4 else depth // max(1, self.stack)

    @property
    def is_flag(self) -> bool:
        """Whether this is a state of booleans, each up or down, and not a category."""
        return self.kind == "state" and self.dtype == "bool" and self.discrete is None

    @property
    def is_vector(self) -> bool:
        """Whether this is a tensor of one dimension, which is shown as bars."""
        is_real = not (self.is_object or self.is_complex)
        return self.kind == "tensor" and is_real and len(self.row_shape) == 1

    @property
    def is_complex(self) -> bool:
        """Whether each number is two: a real and an imaginary part."""
        return self.dtype.startswith("complex")

    @property
    def is_plain(self) -> bool:
        """Whether the values are tensors of one shape of real numbers, which any format holds."""
        return not (self.is_object or self.is_complex)

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
        return self.storage.itemsize * math.prod(self.slot_shape)

    def numbers(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Buffered rows as numbers: 16-bit floats as float32, which holds each of them exactly, all others as they are.

        Of complex numbers the real and the imaginary parts are along a last dimension of their own.
        """
        if rows.dtype == object:
            return rows
        if self.dtype == "bfloat16":
            return (rows.astype(np.uint32) << 16).view(np.float32)
        if self.is_complex:
            return np.ascontiguousarray(rows)[..., None].view(np.dtype(f"float{rows.dtype.itemsize * 4}"))
        return rows.astype(np.float32) if self.dtype == "float16" else rows

    def path(self, env: int | None, lane: int = 0) -> list[str]:
        """The parts of the entity path of environment ``env``, for the agent at position ``lane``.

        Args:
            env: environment index; None: the recording is of one environment.
            lane: position of the agent.

        >>> Stream(("agents", "reward"), "scalars", "float32", (2, 1), agents=("fox", "hare")).path(3, 1)
        ['env_3', 'agents', 'reward', 'hare']
        """
        return [*([] if env is None else [f"env_{env}"]), *(self.place or self.key), *self.agents[lane : lane + 1]]

    def as_json(self) -> dict[str, Any]:
        """What a reader must know to give the key back as it was."""
        fields: dict[str, Any] = {
            "key": list(self.key),
            "dtype": self.dtype,
            "shape": list(self.shape),
            "kind": self.kind,
        }
        for name in _WHERE_THEY_APPLY:
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


_WHERE_THEY_APPLY = (
    "agents",
    "varies",
    "image_format",
    "jpeg_quality",
    "channels",
    "stack",
    "newest",
    "discrete",
    "categories",
    "names",
    "shared",
    "sums",
    "place",
)


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
    jpeg_quality: int = JPEG_QUALITY,
    stacks: Stacks | Mapping[Key, Stacks] = "all",
) -> Stream:
    """Decide how a key is recorded.

    Args:
        leaf: what is known of the key.
        kinds: the user's overrides of the kind.
        names: the user's names of the numbers of a row, of the categories, or of the classes of a segmentation; where there
            are none, even empty ones, the leaf's own.
        image_format: one format for all images, or one per key (``"jpeg"`` where a key is not named).
        jpeg_quality: of JPEG files.
        stacks: what is recorded of stacks of frames, of all or per key (``"all"`` where a key is not named).

    Raises:
        UnsupportedLeafError: no kind can hold numbers of that dtype.
        ValueError: the override, the names or the format don't fit the data; the message names the key.
    """
    if leaf.dtype not in _STORAGE:
        raise UnsupportedLeafError(f"{leaf.dtype} data can't be recorded")
    _check_name(leaf.key)
    row_shape = leaf.shape[1:] if leaf.agents else leaf.shape
    if isinstance(leaf.sample, np.ndarray):
        row_shape = leaf.sample.shape
    wanted = stacks if isinstance(stacks, str) else stacks.get(leaf.key, "all")
    stack = 0 if wanted == "none" else _stack(leaf, row_shape)
    kind = kinds.get(leaf.key) or _kind(leaf, row_shape, stack)
    stack = stack if kind == "image" else 0
    _check_kind(leaf, kind, row_shape, stack)
    _check_stack(leaf, row_shape, stack, stacks)
    channels: Channels = ""
    stored: ImageFormat | None = None
    if kind in PICTURES:
        channels = (_axes(row_shape) if stack else _channels(row_shape)) or ""
        asked = image_format if isinstance(image_format, str) else image_format.get(leaf.key, "jpeg")
        stored = _possible_format(leaf, channels, row_shape, stack, asked) if kind == "image" else "raw"
    return Stream(
        key=leaf.key,
        kind=kind,
        dtype=leaf.dtype,
        shape=leaf.shape,
        agents=leaf.agents,
        varies=leaf.varies,
        image_format=stored,
        jpeg_quality=jpeg_quality if stored == "jpeg" else 0,
        channels=channels,
        stack=stack,
        newest=stack > 0 and wanted == "newest",
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


def _kind(leaf: Leaf, row_shape: tuple[int, ...], stack: int) -> Kind:
    size = math.prod(row_shape)
    if leaf.dtype == "object":
        return _kind_of_object(leaf)
    if leaf.dtype.startswith("complex"):
        return "tensor"
    if leaf.varies:  # each row is shown by itself
        is_image = _channels(row_shape) is not None and _is_picture(leaf.dtype, row_shape)
        return "image" if stack or is_image else "tensor"
    if leaf.discrete is not None and size <= _most(leaf, "state") and len(row_shape) <= 1:
        return "state"
    if _is_plane(row_shape) and min(_plane(row_shape)) > 4:
        if leaf.dtype in (*_FLOATS, "uint8", "uint16", "uint32") and _DEPTH.fullmatch(leaf.key[-1]):
            return "depth"
        if leaf.dtype in _INTEGERS and _SEGMENTATION.fullmatch(leaf.key[-1]):
            return "segmentation"
    if stack or (_channels(row_shape) is not None and _is_picture(leaf.dtype, row_shape)):
        return "image"
    if size <= MAX_SCALARS and len(row_shape) <= 1:
        return "state" if leaf.dtype == "bool" else "scalars"
    return "tensor"


def _most(leaf: Leaf, kind: Kind) -> int:
    """How many numbers a row of this kind may have."""
    return MAX_CATEGORIES if kind == "state" and leaf.discrete == "one_hot" else MAX_SCALARS


def _kind_of_object(leaf: Leaf) -> Kind:
    if not isinstance(leaf.sample, np.ndarray) or leaf.sample.dtype.name not in _STORAGE or leaf.sample.dtype == object:
        return "text"
    shape = leaf.sample.shape
    if _channels(shape) is not None and _is_picture(leaf.sample.dtype.name, shape):
        return "image"
    return "tensor"


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


def _is_plane(shape: tuple[int, ...]) -> bool:
    """Whether it is a picture of one channel."""
    channels = _channels(shape)
    return channels == "HW" or (channels == "CHW" and shape[0] == 1) or (channels == "HWC" and shape[-1] == 1)


def _plane(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of a picture of one channel."""
    return shape if len(shape) == 2 else shape[1:] if _channels(shape) == "CHW" else shape[:2]


def _stack(leaf: Leaf, shape: tuple[int, ...]) -> int:
    """How many frames a picture of this shape is a stack of; 0: it is none.

    Along a dimension of their own (gymnasium's ``FrameStackObservation``) or along the channels (TorchRL's
    ``CatFrames``), which are then neither 1 nor 3: a multiple of three are colours. Four along the first dimension are the
    usual grey ones of Atari; VideoRecorder's rule would take them for RGBA, which is rare with the channels first.
    """
    if leaf.dtype not in ("uint8", *_FLOATS):
        return 0
    axes = _axes(shape)
    if len(shape) == 4:
        is_one = axes is not None and shape[0] <= MAX_STACK and min(_size(shape[1:], axes)) >= MIN_STACKED
        return shape[0] if is_one else 0
    if axes is None or axes == "HW":
        return 0
    depth = shape[0] if axes == "CHW" else shape[-1]
    if leaf.stack:
        return leaf.stack if depth % leaf.stack == 0 and depth // leaf.stack in (1, 3, 4) else 0
    if depth in (1, 3) or (depth == 4 and axes == "HWC") or depth > MAX_STACK or min(_size(shape, axes)) < MIN_STACKED:
        return 0
    return depth // 3 if depth % 3 == 0 else depth


def _axes(shape: tuple[int, ...]) -> Literal["HWC", "CHW", "HW"] | None:
    """Where a stack of frames keeps its channels, be they as many as they may; None: it can't be one."""
    if len(shape) == 4:
        return None if (found := _channels(shape[1:])) == "HW" else found
    if len(shape) != 3 or not all(shape):
        return None
    return "CHW" if shape[0] < shape[-1] else "HWC"


def _size(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Height and width."""
    return shape[1:] if axes == "CHW" else shape[:2]


def _is_picture(dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether data of this dtype and (image-like) shape is meant to be looked at, and not a matrix of numbers."""
    if dtype == "uint8":
        return len(shape) == 3 or min(shape) > 4
    if dtype in _FLOATS:
        return len(shape) == 3 and sorted(shape)[1] > 4
    return False


def _possible_format(
    leaf: Leaf, channels: str, row_shape: tuple[int, ...], stack: int, wanted: ImageFormat
) -> ImageFormat:
    """What a format can't hold falls back to one that can.

    Floats can only be raw. JPEG and video have no alpha channel: such images are PNG, which keeps every bit. A video is of
    one size, which non-tensor data may not be.
    """
    dtype = leaf.sample.dtype.name if leaf.dtype == "object" else leaf.dtype
    if dtype != "uint8":
        return "raw"
    shape = row_shape[1:] if len(row_shape) == 4 else row_shape
    depth = 1 if channels == "HW" else shape[0] if channels == "CHW" else shape[-1] if shape else 3
    if stack and len(row_shape) == 3:
        depth //= stack
    if depth == 4 and wanted not in ("raw", "png"):
        return "png"
    return "jpeg" if wanted in VIDEO_FORMATS and (leaf.dtype == "object" or leaf.varies) else wanted


def _check_kind(leaf: Leaf, kind: Kind, row_shape: tuple[int, ...], stack: int) -> None:
    what = f"kinds[{name_of(leaf.key)}] = {kind!r}"
    if kind not in KINDS:
        raise ValueError(f"{what}: unknown kind; choose one of {', '.join(map(repr, KINDS))}")
    is_object, dtype = leaf.dtype == "object", leaf.dtype
    if isinstance(leaf.sample, np.ndarray):
        dtype = leaf.sample.dtype.name
    elif (kind == "text") != is_object:
        raise ValueError(f"{what} doesn't fit: 'text' is for non-tensor data, and what is no array can only be text")
    if is_object and kind in ("depth", "segmentation", "scalars", "state"):
        raise ValueError(f"{what} doesn't fit non-tensor data; choose 'image' or 'tensor'")
    if kind == "image" and not stack and (_channels(row_shape) is None or dtype not in ("uint8", *_FLOATS)):
        raise ValueError(
            f"{what} doesn't fit {dtype} of shape {row_shape}; an image is uint8 or float with 1, 3 or 4 channels, or "
            "a stack of such frames"
        )
    if kind == "depth" and not (_is_plane(row_shape) and leaf.dtype in (*_FLOATS, *_INTEGERS)):
        raise ValueError(f"{what} doesn't fit {leaf.dtype} of shape {row_shape}; depth is one channel of numbers")
    if kind == "segmentation" and not (_is_plane(row_shape) and leaf.dtype in ("bool", *_INTEGERS)):
        raise ValueError(
            f"{what} doesn't fit {leaf.dtype} of shape {row_shape}; a segmentation is one channel of whole numbers"
        )
    if dtype.startswith("complex") and kind != "tensor":
        raise ValueError(f"{what} doesn't fit {dtype}; complex numbers are tensors")
    most = _most(leaf, kind)
    if kind in ("scalars", "state") and (len(row_shape) > 1 or math.prod(row_shape) > most):
        raise ValueError(f"{what} doesn't fit shape {row_shape}; at most {most} numbers in one dimension")
    if kind == "state" and "float" in leaf.dtype:
        raise ValueError(f"{what} doesn't fit {leaf.dtype}; states are whole numbers or booleans")


def _own_names(leaf: Leaf, kind: Kind) -> tuple[str, ...]:
    """The leaf's names, if they still are names of what the user's kind shows."""
    return leaf.names if kind == ("scalars" if leaf.discrete is None else "state") else ()


def _check_stack(leaf: Leaf, row_shape: tuple[int, ...], stack: int, stacks: Stacks | Mapping[Key, Stacks]) -> None:
    """Who names a key must mean a stack of frames."""
    if not isinstance(stacks, str) and stacks.get(leaf.key, "none") != "none" and not stack:
        raise ValueError(
            f"stacks[{name_of(leaf.key)}] = {stacks[leaf.key]!r} doesn't fit {leaf.dtype} of shape {row_shape}, which is not "
            "recorded as a stack of frames: those are images [frames, H, W] or [frames, H, W, C], or frames along the channels"
        )


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
    if kind not in ("scalars", "state", "segmentation"):
        raise ValueError(f"names[{name_of(leaf.key)}]: a key of kind {kind!r} has no numbers to name")
    return tuple(str(name) for name in names)


AnyKey = str | tuple[Any, ...]
"""A key as users write it: a string, or a tuple of strings, maybe nested."""


def as_key(key: AnyKey) -> Key:
    """Return a key as a tuple of strings, without a leading ``"next"``.

    >>> as_key("pixels"), as_key(("next", ("agents", "reward")))
    (('pixels',), ('agents', 'reward'))
    """
    flat: list[str] = []
    for part in (key,) if isinstance(key, str) else key:
        flat.extend((part,) if isinstance(part, str) else as_key(part))
    return tuple(flat[1:] if len(flat) > 1 and flat[0] == "next" else flat)
