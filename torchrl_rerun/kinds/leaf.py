"""Leaves: keys as a front end finds them, before they are recorded.

:mod:`torchrl_rerun.kinds.describe` decides how the key of a leaf is recorded, a
:class:`~torchrl_rerun.kinds.streams.Stream`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from torchrl_rerun.kinds.keys import Key


class UnsupportedLeafError(TypeError):
    """A key holds data that no kind can record."""


@dataclass(frozen=True)
class Leaf:
    """A key as a front end finds it, before it is recorded.

    Attributes:
        key: the key, without ``"next"``.
        dtype: torch's name of the dtype (``"float32"``), or ``"object"`` for non-tensor data.
        shape: shape of one environment's value, the agent dimension included.
        agents: names along the first dimension of ``shape`` if that is an agent dimension, else empty.
        discrete: values by the spec: ``"index"`` (categorical), ``"one_hot"``, or None.
        categories: numbers of categories, one for each number (``"index"``) or one-hot segment.
        sample: one environment's value of non-tensor data, else None.
        varies: whether each value has a shape of its own; ``shape`` is that of the first environment's first one.
        shared: whether one value of non-tensor data stands for the whole batch.
        device: the accelerator that the values are on, as PyTorch names it; empty: none.
        names: names that the environment is known to have for its numbers, or for the categories; empty: none known.
        stack: number of frames of which an image is known to be a stack; 0: not known.
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

    @property
    def is_array(self) -> bool:
        """Whether the values are arrays, which are tensors, or NumPy's arrays among non-tensor data."""
        return self.dtype != "object" or isinstance(self.sample, np.ndarray)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one agent's value, or of the sample of non-tensor data."""
        if isinstance(self.sample, np.ndarray):
            return tuple(self.sample.shape)
        return self.shape[1:] if self.agents else self.shape

    @property
    def row_dtype(self) -> str:
        """Name of the dtype of one value, of the sample of non-tensor data too."""
        return str(self.sample.dtype.name) if isinstance(self.sample, np.ndarray) else self.dtype

    @property
    def size(self) -> int:
        """Number of numbers in a row."""
        return math.prod(self.row_shape)


def check_name(key: Key) -> None:
    """Refuse a key that can't be an entity path: its parts are not empty, and UTF-8.

    Raises:
        UnsupportedLeafError: a part of the key is empty, or no valid Unicode.
    """
    for part in key:
        if not part:
            raise UnsupportedLeafError("an empty name can't be part of an entity path")
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise UnsupportedLeafError("its name is no valid Unicode") from error
