"""Stacks of frames: images that hold the last few frames, along a dimension of their own or along the channels."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.picture import FLOATS, Channels, channels_of

MAX_STACK, MIN_STACKED = 16, 32
"""Images with at most so many channels, and both sides at least so many pixels, are taken for stacks of frames. Planes of a
board are neither."""


def frames_in(leaf: Leaf) -> int:
    """Return how many frames an image is a stack of; 0: it is none.

    Frames lie along a dimension of their own (gymnasium's ``FrameStackObservation``) or along the channels (TorchRL's
    ``CatFrames``), which are then neither 1 nor 3: a multiple of three are colours. Four along the first dimension are the
    usual grey ones of Atari; VideoRecorder's rule would take them for RGBA, which is rare with the channels first.
    """
    if leaf.dtype not in ("uint8", *FLOATS):
        return 0
    shape = leaf.row_shape
    axes = axes_of(shape)
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


def axes_of(shape: tuple[int, ...]) -> Literal["HWC", "CHW", "HW"] | None:
    """Return where a stack of frames keeps its channels, however many they are; None: it can't be one."""
    if len(shape) == 4:
        return None if (found := channels_of(shape[1:])) == "HW" else found
    if len(shape) != 3 or not all(shape):
        return None
    return "CHW" if shape[0] < shape[-1] else "HWC"


def _size(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Return height and width."""
    return shape[1:] if axes == "CHW" else shape[:2]


def frames_of(rows: npt.NDArray[Any], stack: int, channels: Channels) -> npt.NDArray[Any]:
    """Return the frames of stacks, ``[n, frames, height, width, depth]``, oldest first.

    Args:
        rows: ``[n, frames, ...]``, or ``[n, ...]`` with the frames along the channels.
        stack: number of frames.
        channels: where the channels are.

    >>> frames_of(np.zeros((5, 12, 84, 96)), 4, "CHW").shape
    (5, 4, 84, 96, 3)
    """
    if rows.ndim == 4:  # they are along the channels
        if channels == "CHW":
            rows = rows.reshape(len(rows), stack, -1, *rows.shape[2:])
        else:
            rows = np.moveaxis(rows.reshape(*rows.shape[:3], stack, -1), 3, 1)
    return np.moveaxis(rows, 2, -1) if channels == "CHW" else rows


def side_by_side(frames: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the frames of stacks as pictures ``[n, height, frames * width, depth]``, the newest one at the right."""
    count, stack, height, width, depth = frames.shape
    return frames.swapaxes(1, 2).reshape(count, height, stack * width, depth)


def stack_in(picture: npt.NDArray[Any], beside: int, channels: Channels, dims: int) -> npt.NDArray[Any]:
    """Return the row that a picture was made of: the way back of :func:`frames_of` and :func:`side_by_side`.

    Args:
        picture: ``[height, beside * width, depth]``.
        beside: number of frames in the picture.
        channels: where the row keeps its channels.
        dims: number of dimensions of the row: 3 with the frames along the channels, else 4.
    """
    height, _, depth = picture.shape
    frames = picture.reshape(height, beside, -1, depth).swapaxes(0, 1)
    if channels == "CHW":
        frames = np.moveaxis(frames, -1, 1)
        return frames.reshape(-1, *frames.shape[2:]) if dims == 3 else frames
    return np.moveaxis(frames, 0, 2).reshape(height, -1, beside * depth) if dims == 3 else frames
