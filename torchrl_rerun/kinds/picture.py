"""Pictures: the base of the kinds that are looked at. Raw pictures are stored here, each row as one buffer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.kinds.arrow import Column, blobs, flat, lists
from torchrl_rerun.kinds.exact import EXACT
from torchrl_rerun.kinds.kind import Kind, View
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.streams import Stream

Channels = Literal["HWC", "CHW", "HW", ""]
"""Where a picture keeps its channels; empty: not known yet."""

ImageFormat = Literal["raw", "png", "jpeg", "h264", "av1"]
"""How images are stored: ``"raw"`` and ``"png"`` are exact, ``"jpeg"`` is small, ``"h264"`` and ``"av1"`` (video) much
smaller."""

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")

COLOR_MODELS = {1: rr.ColorModel.L, 3: rr.ColorModel.RGB, 4: rr.ColorModel.RGBA}
"""Rerun's color models by the number of channels."""

_DEPTHS = {model.value: depth for depth, model in COLOR_MODELS.items()}

Tag = TypeVar("Tag")

Stored = tuple[Tag, bytes | npt.NDArray[Any], bool]
"""A stored picture: any tag that the reader gave it, a file, a sample of a video or the pixels, and whether decoding can
begin with it."""


@dataclass(frozen=True)
class Picture(Kind):
    """Pictures ``[height, width]``, ``[height, width, channels]`` or ``[channels, height, width]``."""

    archetype: ClassVar[str]
    is_picture: ClassVar[bool] = True

    channels: Channels = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if self.channels not in get_args(Channels):
            raise ValueError(f"channels={self.channels!r}: choose one of 'HWC', 'CHW', 'HW'")

    def channels_in(self, leaf: Leaf) -> Channels:
        """Return where the pictures of a key keep their channels.

        Raises:
            ValueError: the option ``channels`` doesn't fit the shape.
        """
        shape, found = leaf.row_shape, channels_of(leaf.row_shape)
        if not self.channels or self.channels == found:
            return found or ""
        depth = shape[0 if self.channels == "CHW" else -1] if len(shape) == 3 else 0
        if self.channels == "HW" or depth not in COLOR_MODELS:
            raise self.misfit(leaf, f"shape {shape} with channels={self.channels!r}")
        return self.channels

    @property
    def is_video(self) -> bool:
        """Whether pictures can be decoded only after those before them."""
        return False

    # --- stored ---

    def columns(self, stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
        return self.raw(self.as_pictures(stream, rows))

    def raw(self, pictures: npt.NDArray[Any], *extra: Column) -> list[Column]:
        """Return the columns of raw pictures.

        Args:
            pictures: ``[n, height, width, depth]``.
            extra: further columns.
        """
        pixels = flat(np.ascontiguousarray(pictures).reshape(-1).view(np.uint8))
        return self.raw_columns(lists(pixels, len(pictures), not_null=True), self._formats(pictures), *extra)

    def raw_of_any_size(self, pictures: list[npt.NDArray[Any]]) -> list[Column]:
        """Return the columns of raw pictures ``[height, width, depth]`` of any sizes."""
        formats = pa.concat_arrays([self._formats(picture[None]) for picture in pictures])
        return self.raw_columns(blobs([picture.tobytes() for picture in pictures]), formats)

    def raw_columns(self, buffers: pa.Array, formats: pa.Array, *extra: Column) -> list[Column]:
        """Return the columns of buffers and their formats, one of each for a row."""
        return [
            Column(f"{self.archetype}:buffer", self.archetype, "ImageBuffer", lists(buffers, len(buffers))),
            Column(f"{self.archetype}:format", self.archetype, "ImageFormat", lists(formats, len(formats))),
            *extra,
        ]

    def _formats(self, pictures: npt.NDArray[Any]) -> pa.Array:
        return _image_formats(*pictures.shape, pictures.dtype, is_image=self.is_camera)

    def as_pictures(self, stream: Stream, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return rows as pictures that can be shown, ``[n, height, width, depth]``, all of one size.

        Args:
            stream: the stream.
            rows: ``[n, *stream.row_shape]``, or arrays of one shape.
        """
        del stream
        return channels_last(np.stack(list(rows)) if rows.dtype == object else rows, self.channels)

    # --- read back ---

    def stored(self, batch: pa.RecordBatch) -> Iterator[tuple[bytes | npt.NDArray[Any], bool]]:
        """Return each row as it is stored, and whether it can be decoded without those before it.

        Args:
            batch: rows that have a picture.
        """
        formats = batch.column(f"{self.archetype}:format").flatten().to_pylist()
        # Pictures that the viewer would show wrongly are there once more as they were.
        exact = batch.column(EXACT) if EXACT in batch.schema.names else [pa.scalar(None)] * len(batch)
        buffers = each_bytes(batch.column(f"{self.archetype}:buffer"))
        for buffer, said, numbers in zip(buffers, formats, exact, strict=True):
            if numbers.is_valid:
                pixels = numbers.values.to_numpy(zero_copy_only=False)
            else:
                pixels = buffer.view(rr.ChannelDatatype(said["channel_datatype"]).to_np_dtype())
            yield pixels.reshape(said["height"], said["width"], _DEPTHS.get(said["color_model"], 1)), True

    def decoded(self, stream: Stream, coming: Iterable[Stored[Tag]]) -> Iterator[tuple[Tag, npt.NDArray[Any]]]:
        """Return pictures ``[height, width, depth]`` as they were shown, each with its tag, in their order.

        Args:
            stream: the stream.
            coming: stored pictures.
        """
        del stream
        for tag, pixels, _ in coming:
            yield tag, cast("npt.NDArray[Any]", pixels)

    def size(self, stream: Stream) -> tuple[int, int, int] | None:
        """Return height, width and depth of each picture as it is shown; None: they vary."""
        if self.is_of_any_size(stream):
            return None
        height, width, depth = channels_last(np.empty((1, *stream.row_shape), np.bool_), self.channels).shape[1:]
        return height, width, depth

    def row(self, stream: Stream, picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a picture ``[height, width, depth]`` as the row that it was made of: the way back of :meth:`as_pictures`.

        Args:
            stream: the stream.
            picture: one picture, which may be larger than the recorded one, at the right, below and in depth.
        """
        size = self.size(stream)
        if size is not None:
            height, width, depth = size
            picture = picture[:height, :width, :depth]
        if self.channels == "CHW":
            return np.moveaxis(picture, -1, 0)
        return picture[..., 0] if self.channels == "HW" else picture

    # --- shown ---

    def view(self, stream: Stream) -> View:
        del stream
        return View(rrb.Spatial2DView, rank=0, is_large=True)


def channels_last(pictures: npt.NDArray[Any], channels: str) -> npt.NDArray[Any]:
    """Return pictures ``[n, *shape]`` with their channels where ``channels`` says, as ``[n, height, width, depth]``.

    >>> channels_last(np.zeros((5, 3, 84, 96), np.uint8), "CHW").shape
    (5, 84, 96, 3)
    """
    if channels == "CHW":
        return np.ascontiguousarray(np.moveaxis(pictures, 1, -1))
    return pictures[..., None] if channels == "HW" else pictures


def channels_of(shape: tuple[int, ...]) -> Literal["HWC", "CHW", "HW"] | None:
    """Return where a picture of this shape keeps its channels, by the rule of TorchRL's ``VideoRecorder``; None: no picture.

    >>> channels_of((3, 84, 84)), channels_of((84, 84, 3)), channels_of((84, 84)), channels_of((84, 84, 7))
    ('CHW', 'HWC', 'HW', None)
    """
    if len(shape) == 2:
        return "HW"
    if len(shape) != 3 or not all(shape):
        return None
    if shape[0] in (1, 3, 4) and shape[1] > 4 and shape[2] > 4:
        return "CHW"
    if shape[2] in (1, 3, 4):
        return "HWC"
    return "CHW" if shape[0] in (1, 3, 4) else None


def plane_of(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return height and width of a picture of one channel; None: it is none.

    >>> plane_of((1, 84, 96)), plane_of((84, 96)), plane_of((3, 84, 96))
    ((84, 96), (84, 96), None)
    """
    channels = channels_of(shape)
    if channels == "HW":
        return shape
    if channels == "CHW":
        return shape[1:] if shape[0] == 1 else None
    return shape[:2] if channels == "HWC" and shape[-1] == 1 else None


def each_bytes(column: pa.ListArray) -> Iterator[npt.NDArray[np.uint8]]:
    """Return the one value of each row, without a copy."""
    values = column.flatten()
    data, ends = values.values.to_numpy(), values.offsets.to_numpy()
    return (data[first:last] for first, last in itertools.pairwise(ends))


@functools.lru_cache(maxsize=256)
def _image_formats(
    count: int, height: int, width: int, depth: int, dtype: np.dtype[Any], *, is_image: bool = True
) -> pa.Array:
    """Return the same format so many times; Rerun takes longer to make one than to make the rest of a chunk."""
    image_format = rr.components.ImageFormat(
        width=width,
        height=height,
        color_model=COLOR_MODELS[depth] if is_image else None,
        channel_datatype=rr.ChannelDatatype.from_np_dtype(np.dtype(np.uint8) if dtype.kind == "b" else dtype),
    )
    return rr.components.ImageFormatBatch([image_format] * count).as_arrow_array()
