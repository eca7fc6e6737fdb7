"""Pieces of time: what stored trajectories are read in, so that memory is bounded however long they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tensordict import TensorDictBase

from torchrl_rerun.streams import ImageFormat, Key, Kind

PIECE_BYTES = 16 << 20
"""What a piece takes at the most, if a single moment doesn't take more."""
_MOST_MOMENTS = 1024


@dataclass(frozen=True)
class Piece:
    """Some consecutive moments of all environments.

    Attributes:
        tensordict: ``[*batch, time]``, in TorchRL's form. A ``"_step"`` entry says of whom they are, if not of all.
        begins: which environments begin an episode with the first of them, bool ``[envs]``.
        seeds: the seed of the episode that begins, of each environment; empty: not known of any.
    """

    tensordict: TensorDictBase
    begins: npt.NDArray[np.bool_]
    seeds: Sequence[int | None] = ()


@dataclass(frozen=True)
class Stored:
    """Stored trajectories.

    Attributes:
        what: what they are stored as.
        moments: how many there are, one after the other.
        pieces: reads them.
        env_name: of which environment they are, if it is known.
        fps: frames per second of simulated time, if it is known.
        arrays: of named arrays: the keys that they become, by their names.
        kinds, names, image_format: how keys are recorded, as far as that is known.
    """

    what: str
    moments: int
    pieces: Callable[[], Iterator[Piece]]
    env_name: str | None = None
    fps: float | None = None
    arrays: Mapping[str, Key] = field(default_factory=dict)
    kinds: Mapping[Key, Kind] = field(default_factory=dict)
    names: Mapping[Key, Sequence[str]] = field(default_factory=dict)
    image_format: Mapping[Key, ImageFormat] = field(default_factory=dict)


def spans(begin: int, end: int, bytes_per_moment: float) -> Iterator[tuple[int, int]]:
    """Moments, cut into pieces.

    >>> list(spans(0, 5, PIECE_BYTES // 2)), list(spans(3, 4, 10 * PIECE_BYTES))
    ([(0, 2), (2, 4), (4, 5)], [(3, 4)])
    """
    step = int(max(1, min(_MOST_MOMENTS, PIECE_BYTES // max(1.0, bytes_per_moment))))
    for at in range(begin, end, step):
        yield at, min(at + step, end)


def filled_like(value: Any) -> Any:
    """What stands for a value that was never stored: NaN, and where there is no such thing zeros.

    >>> import torch
    >>> filled_like(torch.ones(2)), filled_like(torch.ones(2, dtype=torch.uint8))
    (tensor([nan, nan]), tensor([0, 0], dtype=torch.uint8))
    """
    return value.new_full(value.shape, float("nan")) if value.is_floating_point() else value.new_zeros(value.shape)
