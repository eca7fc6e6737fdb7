"""Losses: values that could not be stored, named once for each key."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.kinds.streams import Stream


class LossError(Exception):
    """Values of a stream can't be stored. The message is the reason, as a clause."""


def reason_of(stream: Stream, error: Exception, method: str = "") -> str:
    """Return why values are lost if their kind failed, as a clause.

    Args:
        stream: the stream.
        error: the error.
        method: the name of the method that raised it. Default: not named.
    """
    name = type(stream.kind).__name__
    return f"{f'{method} of {name}' if method else name} failed ({type(error).__name__}: {error})"


class Losses:
    """Warns of values that could not be stored, once for each key, on the writer's thread."""

    def __init__(self) -> None:
        self._named: set[Key] = set()

    def add(self, key: Key, frames: Sequence[int] | npt.NDArray[np.int64], why: str) -> None:
        """Note that the values of a key at some frames are not recorded.

        Args:
            key: the key.
            frames: the frames, at least one.
            why: the reason, as a clause.
        """
        if key in self._named:
            return
        self._named.add(key)
        first, last = int(min(frames)), int(max(frames))
        at = f"frame {first}" if first == last else f"frames {first} to {last}"
        # A program that turns warnings into errors would lose the whole recording: this is the writer's thread.
        with contextlib.suppress(Warning):
            warnings.warn(
                f"{name_of(key)} is not recorded at {at}: {why}. All other values of the key are recorded; further ones that "
                "can't be are not reported",
                UserWarning,
                stacklevel=2,
            )
