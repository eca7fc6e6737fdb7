"""Still images: where pictures keep their channels, and compressed files of one picture each."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import rerun as rr
from PIL import Image

from torchrl_rerun.streams import ImageFormat

JPEG_QUALITY = 90

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


def channels_as(picture: npt.NDArray[Any], channels: str) -> npt.NDArray[Any]:
    """A picture ``[height, width, depth]`` with its channels where ``channels`` says: the way back.

    >>> channels_as(np.zeros((84, 96, 3), np.uint8), "CHW").shape
    (3, 84, 96)
    """
    if channels == "CHW":
        return np.moveaxis(picture, -1, 0)
    return picture[..., 0] if channels == "HW" else picture


def channels_of(picture: npt.NDArray[Any]) -> str:
    """Where a picture by itself keeps its channels."""
    if picture.ndim == 2:
        return "HW"
    return "HWC" if picture.shape[-1] in COLOR_MODELS else "CHW"


def encode(picture: npt.NDArray[np.uint8], image_format: ImageFormat) -> bytes:
    """One picture ``[height, width, depth]`` (1, 3 or 4 channels) as a PNG (exact) or JPEG (lossy) file."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    file = io.BytesIO()
    if image_format == "jpeg":
        image.save(file, "jpeg", quality=JPEG_QUALITY)
    else:
        image.save(file, "png", compress_level=1)  # exact at any level; the higher ones cost 10 times as much
    return file.getvalue()
