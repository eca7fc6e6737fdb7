"""Still images: where pictures keep their channels, and compressed files of one picture each."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import rerun as rr
from PIL import Image

from torchrl_rerun.kinds.streams import Stream

MEDIA_TYPES: dict[str | None, str] = {"png": "image/png", "jpeg": "image/jpeg"}

COLOR_MODELS = {1: rr.ColorModel.L, 3: rr.ColorModel.RGB, 4: rr.ColorModel.RGBA}
"""By the number of channels."""


def channels_last(pictures: npt.NDArray[Any], channels: str) -> npt.NDArray[Any]:
    """Pictures ``[n, *shape]`` with their channels where ``channels`` says, as ``[n, height, width, depth]``.

    >>> channels_last(np.zeros((5, 3, 84, 96), np.uint8), "CHW").shape
    (5, 84, 96, 3)
    """
    if channels == "CHW":
        return np.ascontiguousarray(np.moveaxis(pictures, 1, -1))
    return pictures[..., None] if channels == "HW" else pictures


def is_like(stream: Stream, picture: npt.NDArray[Any]) -> bool:
    """Whether a picture of any size can be stored as those of a stream are.

    >>> pictures = Stream(("pixels",), "image", "object", (), image_format="jpeg", channels="CHW")
    >>> is_like(pictures, np.zeros((3, 9, 8), np.uint8)), is_like(pictures, np.zeros((9, 8, 3), np.uint8))
    (True, False)
    """
    if picture.ndim != (2 if stream.channels == "HW" else 3) or not picture.size:
        return False
    depth = 1 if stream.channels == "HW" else picture.shape[0 if stream.channels == "CHW" else -1]
    if not stream.is_encoded:
        return depth in COLOR_MODELS and picture.dtype.name in ("uint8", "float16", "float32", "float64")
    return picture.dtype == np.uint8 and depth in ((1, 3) if stream.image_format == "jpeg" else COLOR_MODELS)


def pictures_of(stream: Stream, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows of a stream as pictures that can be shown, ``[n, height, width, depth]``, all of one size.

    The frames of a stack are side by side, the newest one at the right, or only that one is there.

    Args:
        stream: the stream, of pictures.
        rows: ``[n, *stream.row_shape]``; of pictures that vary in size one alone, or all of the usual size.

    >>> stack = Stream(("pixels",), "image", "uint8", (4, 84, 96), channels="CHW", stack=4)
    >>> pictures_of(stack, np.zeros((5, 4, 84, 96), np.uint8)).shape
    (5, 84, 384, 1)
    """
    if rows.dtype == object:
        rows = np.stack(list(rows))
    if not stream.stack:
        return channels_last(rows, stream.channels)
    frames = _frames_of(stream, rows)
    if stream.newest:
        return np.ascontiguousarray(frames[:, -1])
    count, stack, height, width, depth = frames.shape
    return frames.swapaxes(1, 2).reshape(count, height, stack * width, depth)


def _frames_of(stream: Stream, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The frames of stacks, ``[n, frames, height, width, depth]``."""
    if rows.ndim == 4:  # they are along the channels
        if stream.channels == "CHW":
            rows = rows.reshape(len(rows), stream.stack, -1, *rows.shape[2:])
        else:
            rows = np.moveaxis(rows.reshape(*rows.shape[:3], stream.stack, -1), 3, 1)
    return np.moveaxis(rows, 2, -1) if stream.channels == "CHW" else rows


def row_of(stream: Stream, picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A picture ``[height, width, depth]`` as the row that it was made of: the way back of :func:`pictures_of`.

    Of a stack of which the newest frame alone was recorded it is that frame.

    Args:
        stream: the stream, of pictures.
        picture: one picture, which may be larger than what was recorded, at the right, below and in depth.

    >>> stack = Stream(("pixels",), "image", "uint8", (4, 84, 96), channels="CHW", stack=4)
    >>> row_of(stack, np.zeros((84, 384, 3), np.uint8)).shape
    (4, 84, 96)
    """
    if not stream.is_of_any_size:
        height, width, depth = stream.picture_shape
        picture = picture[:height, :width, :depth]
    if not stream.stack:
        if stream.channels == "CHW":
            return np.moveaxis(picture, -1, 0)
        return picture[..., 0] if stream.channels == "HW" else picture
    beside = 1 if stream.newest else stream.stack
    frames = picture.reshape(height, beside, -1, depth).swapaxes(0, 1)
    if stream.channels == "CHW":
        frames = np.moveaxis(frames, -1, 1)
        return frames.reshape(-1, *frames.shape[2:]) if len(stream.row_shape) == 3 else frames
    return np.moveaxis(frames, 0, 2).reshape(height, -1, beside * depth) if len(stream.row_shape) == 3 else frames


def shown(pictures: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Pictures of floats, some of them below 0, as 8-bit ones in which 0 is grey, and -1 and 1 are black and white.

    The viewer takes floats for what they are from 0 to 1 and from 0 to 255. Anything else it stretches from the least to
    the greatest of each picture, and of colours shows pale ones; it can't be told better (rerun-sdk 0.41).

    Args:
        pictures: ``[n, height, width, depth]``. One with numbers beyond -1 and 1 is scaled by the largest of them.
    """
    with np.errstate(over="ignore"):  # what float32 can't hold is as infinite
        numbers = np.nan_to_num(pictures.astype(np.float32), posinf=0, neginf=0)
    largest = np.maximum(np.abs(numbers).max(axis=(1, 2, 3), keepdims=True), 1)
    eighth_bits: npt.NDArray[np.uint8] = np.rint((numbers / largest + 1) * 127.5).astype(np.uint8)
    return eighth_bits


def encode(picture: npt.NDArray[np.uint8], quality: int) -> bytes:
    """One picture ``[height, width, depth]`` (1, 3 or 4 channels) as a JPEG file of some quality; 0: as PNG, exact."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    file = io.BytesIO()
    if quality:
        # Colours at the full resolution: at half of it those of games are not the same (23 dB, and 35 dB without).
        image.save(file, "jpeg", quality=quality, subsampling=0)
    else:
        image.save(file, "png", compress_level=1)  # exact at any level; the higher ones cost 10 times as much
    return file.getvalue()


ARCHETYPES: Mapping[str, str] = {"image": "Image", "depth": "DepthImage", "segmentation": "SegmentationImage"}
"""Of raw pictures, by kind."""
