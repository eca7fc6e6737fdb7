"""Changes: values of a key that are of another dtype or shape than its first one, and so are not recorded."""

from __future__ import annotations

from collections.abc import Sequence

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.leaf import UnsupportedLeafError
from torchrl_rerun.kinds.streams import Stream


class ChangedError(Exception):
    """A value has another dtype or shape than the key's first value.

    Args:
        found: the dtype and shape of the value.
        is_shape_alone: whether the dtype is that of the first value.
        advice: advice to the user.
    """

    def __init__(self, found: str, *, is_shape_alone: bool = False, advice: str = "") -> None:
        super().__init__(found)
        self.is_shape_alone = is_shape_alone
        self.advice = advice


def warn_of_change(stream: Stream, value: object, error: Exception) -> None:
    """Warn that a key is not recorded while its values are as one of them is.

    Args:
        stream: how the key is recorded.
        value: the value.
        error: the reason.
    """
    change = str(error)
    if not isinstance(error, ChangedError | UnsupportedLeafError):
        change = f"{type(value).__name__} ({error})"
    advice = f". {error.advice}" if isinstance(error, ChangedError) and error.advice else ""
    warn(
        f"{name_of(stream.key)} is not recorded while it is {change}: the recording began with "
        f"{stream.dtype} {stream.shape}{advice}"
    )


def without_ones(shape: Sequence[int]) -> list[int]:
    """Return the sizes of a shape but for those of 1: some environments return () at a reset and (1,) at a step.

    >>> without_ones((1, 3, 1))
    [3]
    """
    return [size for size in shape if size != 1]
