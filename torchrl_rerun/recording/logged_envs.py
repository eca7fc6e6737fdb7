"""Which environments of a batch are recorded, and what concerns them of what comes for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.block import Arrays
from torchrl_rerun.blocks.events import EnvIndices
from torchrl_rerun.kinds.endings import Ends

MAX_LOGGED_ENVS = 64
FEW_LOGGED_ENVS = 16

Render = Callable[[Sequence[int]], Sequence[npt.NDArray[Any]] | None]
"""Gives pictures of environments of the flattened batch as they are now, one each, all of one dtype and shape; None: no
picture can be had."""


class LoggedEnvs:
    """The environments that are recorded, of a flattened batch.

    Args:
        logged_envs: which ones; see :func:`resolve_envs`.
        envs: how many there are.

    Attributes:
        indices: their places in the batch, sorted.

    Raises:
        IndexError: an index is out of range.

    >>> some = LoggedEnvs([0, 3], 4)
    >>> some.rows(np.array([True, False, True, False])), some.values([np.arange(4), None])
    (array([0]), [array([0, 3]), None])
    >>> LoggedEnvs("all", 4).rows(np.array([True, True, True, True])) is None
    True
    """

    def __init__(self, logged_envs: int | slice | Sequence[int] | str | None, envs: int) -> None:
        self.indices = resolve_envs(logged_envs, envs)
        self._envs = envs
        self._select = _selection(self.indices, envs)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def are_all(self) -> bool:
        """Whether they are all that there are."""
        return self._select is None

    def rows(self, mask: npt.NDArray[np.bool_]) -> EnvIndices:
        """Which of them a mask of all holds for; None: all of them."""
        if self._select is not None:
            mask = mask[self._select]
        return None if mask.all() else np.flatnonzero(mask)

    def mask(self, rows: EnvIndices) -> npt.NDArray[np.bool_]:
        """The mask of all that holds for ``rows`` of them; None: for all of them."""
        out = np.zeros(self._envs, np.bool_)
        out[self.indices if rows is None else [self.indices[row] for row in rows]] = True
        return out

    def ends(self, ends: Ends) -> Ends:
        """Whose episodes end."""
        if self._select is None:
            return ends
        return Ends(ends.terminated[self._select], ends.truncated[self._select])

    def seeds(self, seeds: Sequence[int | None]) -> Sequence[int | None]:
        """Their seeds, if any is known."""
        return seeds if self._select is None or not seeds else [seeds[index] for index in self.indices]

    def values(self, arrays: Arrays | None) -> Arrays | None:
        """Their values."""
        if not arrays or self._select is None:
            return arrays
        select, envs = self._select, self._envs
        return [array if array is None or len(array) != envs else array[select] for array in arrays]

    def with_pictures(self, observed: Arrays, rows: EnvIndices, render: Render) -> Arrays:
        """What was observed of them, with pictures of ``rows`` as the last of it."""
        pictures = render(self.indices if rows is None else [self.indices[row] for row in rows])
        if pictures is None:
            return observed
        if len(self) == 1:
            return [*observed[:-1], pictures[0][np.newaxis]]
        values = np.empty((len(self), *pictures[0].shape), pictures[0].dtype)  # only rows that count are looked at
        for row, picture in zip(range(len(self)) if rows is None else rows, pictures, strict=True):
            values[row] = picture
        return [*observed[:-1], values]


def check_envs(logged_envs: object) -> None:
    """Refuse what can't name environments, however many there are.

    Raises:
        TypeError: it is neither an index, indices, a slice, ``"all"`` nor None.
        ValueError: it is empty, or another string than ``"all"``.
    """
    if logged_envs is None or isinstance(logged_envs, int | slice):
        return
    if isinstance(logged_envs, str):
        if logged_envs != "all":
            raise ValueError(f"logged_envs={logged_envs!r}: pass indices, a slice, 'all' or None")
    elif not isinstance(logged_envs, Iterable):
        raise TypeError(f"logged_envs={logged_envs!r}: pass indices, a slice, 'all' or None")
    elif not list(logged_envs):
        raise ValueError("logged_envs is empty: name the environments to record, or leave it out")


def resolve_envs(logged_envs: int | slice | Sequence[int] | str | None, envs: int) -> list[int]:
    """Which environments to record, as sorted indices.

    Args:
        logged_envs: an index, several, a slice, ``"all"``, or None: all of up to 64, else the first 16.
        envs: how many there are.

    Raises:
        IndexError: an index is out of range.

    >>> resolve_envs(slice(0, None, 2), 5), resolve_envs(-1, 5), len(resolve_envs(None, 4096))
    ([0, 2, 4], [4], 16)
    """
    if logged_envs is None:
        return list(range(envs if envs <= MAX_LOGGED_ENVS else FEW_LOGGED_ENVS))
    if isinstance(logged_envs, str):
        return list(range(envs))
    if isinstance(logged_envs, slice):
        chosen = list(range(envs))[logged_envs]
    else:
        chosen = [logged_envs] if isinstance(logged_envs, int) else [int(env) for env in logged_envs]
    wrong = [env for env in chosen if not -envs <= env < envs]
    if wrong or not chosen:
        there = "is 1 environment, 0" if envs == 1 else f"are {envs} environments, 0 to {envs - 1}"
        raise IndexError(f"logged_envs={logged_envs!r} doesn't fit: there {there}")
    return sorted({env % envs for env in chosen})


def _selection(chosen: Sequence[int], envs: int) -> slice | npt.NDArray[np.intp] | None:
    """What picks the environments ``chosen`` out of an array of all of them; None: they are all."""
    if len(chosen) == envs:
        return None
    if list(chosen) == list(range(chosen[0], chosen[-1] + 1)):
        return slice(chosen[0], chosen[-1] + 1)  # a view, where an array of indices would copy
    return np.array(chosen, np.intp)
