"""Stills: compressed files of one picture each."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

MEDIA_TYPES: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg"}

MAX_QUALITY = 95
"""The best JPEG that Pillow recommends: files of 100 are twice as large, and no more exact."""


def encode(picture: npt.NDArray[np.uint8], quality: int | None) -> bytes:
    """Return one picture as a file.

    Args:
        picture: ``[height, width, depth]`` (1, 3 or 4 channels).
        quality: 1 to 95 for JPEG; None for PNG, which is exact.
    """
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    file = io.BytesIO()
    if quality is not None:
        # Colours at the full resolution: at half of it those of games are not the same (23 dB, and 35 dB without).
        image.save(file, "jpeg", quality=quality, subsampling=0)
    else:
        image.save(file, "png", compress_level=1)  # exact at any level; the higher ones cost 10 times as much
    return file.getvalue()


def decode(file: bytes) -> npt.NDArray[np.uint8]:
    """Return the picture in a file, ``[height, width, depth]``.

    >>> picture = np.zeros((2, 3, 1), np.uint8)
    >>> decode(encode(picture, None)).shape
    (2, 3, 1)
    """
    pixels = np.asarray(Image.open(io.BytesIO(file)))
    return pixels[..., None] if pixels.ndim == 2 else pixels
