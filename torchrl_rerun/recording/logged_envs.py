"""Logged environments: resolve ``logged_envs``, and select their rows from arrays of the whole batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.block import Arrays
from torchrl_rerun.blocks.events import EnvIndices
from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.recording.looks import Taken

EnvChoice = int | slice | Sequence[int] | str | None
"""Which environments to record: see :func:`resolve_envs`."""

MAX_LOGGED_ENVS = 64
FEW_LOGGED_ENVS = 16


class LoggedEnvs:
    """The environments of a flattened batch that are recorded in detail.

    Args:
        logged_envs: the user's choice; see :func:`resolve_envs`.
        envs: number of environments in the batch.

    Attributes:
        indices: their environment indices, sorted.
        are_all: whether all environments of the batch are recorded.

    Raises:
        IndexError: an index is out of range.

    >>> some = LoggedEnvs([0, 3], 4)
    >>> some.in_mask(np.array([True, False, True, False])), some.values([np.arange(4), None])
    (array([0]), [array([0, 3]), None])
    >>> LoggedEnvs("all", 4).in_mask(np.array([True, True, True, True])) is None
    True
    """

    def __init__(self, logged_envs: EnvChoice, envs: int) -> None:
        self.indices = resolve_envs(logged_envs, envs)
        self._envs = envs
        self._select = _selection(self.indices, envs)
        self.are_all = self._select is None

    def __len__(self) -> int:
        return len(self.indices)

    def grown(self, logged_envs: EnvChoice, envs: int) -> LoggedEnvs:
        """Return the environments that are recorded if there are more: these, and the new ones that the user chose.

        Args:
            logged_envs: the user's choice.
            envs: how many there are.
        """
        if logged_envs is None or isinstance(logged_envs, str):
            chosen = list(range(envs))
        elif isinstance(logged_envs, slice):
            chosen = resolve_envs(logged_envs, envs)
        else:  # an index may count from the end, which was another one
            chosen = self.indices
        return LoggedEnvs(sorted({*self.indices, *chosen}), envs)

    def in_mask(self, mask: npt.NDArray[np.bool_]) -> EnvIndices:
        """Return the recorded environments in a mask, as indices among the recorded ones; None if all are.

        Args:
            mask: mask of all environments of the batch, ``[envs]``.
        """
        if self._select is not None:
            mask = mask[self._select]
        return None if mask.all() else mask.nonzero()[0]

    def mask(self, envs: EnvIndices) -> npt.NDArray[np.bool_]:
        """Return a mask of all environments of the batch, ``[envs]``.

        Args:
            envs: indices among the recorded environments; None: all of them.
        """
        out = np.zeros(self._envs, np.bool_)
        out[self.indices if envs is None else [self.indices[env] for env in envs]] = True
        return out

    def ends(self, ends: Ends) -> Ends:
        """Return the ends of the recorded environments."""
        if self._select is None:
            return ends
        return Ends(ends.terminated[self._select], ends.truncated[self._select])

    def seeds(self, seeds: Sequence[int | None]) -> Sequence[int | None]:
        """Return the seeds of the recorded environments, empty if none is known."""
        return seeds if self._select is None or not seeds else [seeds[index] for index in self.indices]

    def values(self, arrays: Arrays | None) -> Arrays | None:
        """Return the values of the recorded environments."""
        if not arrays or self._select is None:
            return arrays
        select, envs = self._select, self._envs
        return [array if array is None or len(array) != envs else array[select] for array in arrays]

    def with_looks(self, observed: Arrays, envs: EnvIndices, looks: Sequence[Taken]) -> Arrays:
        """Return observations of which the last are looked at now.

        Args:
            observed: the observations of the recorded environments; the last ones are replaced.
            envs: indices of the environments to look at, among the recorded ones; None: all of them.
            looks: look at environments.
        """
        indices = self.indices if envs is None else [self.indices[env] for env in envs]
        taken = list(observed)
        for at, look in enumerate(looks, len(taken) - len(looks)):
            found = look(indices)
            if found is None:
                continue
            is_array = hasattr(found, "shape")
            if is_array and len(found) == len(self):
                taken[at] = found
                continue
            if len(self) == 1:
                taken[at] = found[0][np.newaxis]
                continue
            first = found[0]
            # The other rows are never read.
            shape = (len(self), *first.shape)
            values = np.empty(shape, first.dtype) if isinstance(first, np.ndarray) else first.new_empty(shape)
            if is_array:
                values[envs] = found
            else:
                for env, value in zip(range(len(self)) if envs is None else envs, found, strict=True):
                    values[env] = value
            taken[at] = values
        return taken


def check_envs(logged_envs: object) -> None:
    """Raise unless ``logged_envs`` can name environments, however many there are.

    Raises:
        TypeError: ``logged_envs`` is neither an index, indices, a slice, ``"all"`` nor None.
        ValueError: ``logged_envs`` is empty, or another string than ``"all"``.
    """
    if logged_envs is None or (isinstance(logged_envs, int | slice) and not isinstance(logged_envs, bool)):
        return
    if isinstance(logged_envs, str):
        if logged_envs != "all":
            raise ValueError(f"logged_envs={logged_envs!r}: pass indices, a slice, 'all' or None")
    elif not isinstance(logged_envs, Sized) or not isinstance(logged_envs, Iterable):
        raise TypeError(f"logged_envs={logged_envs!r}: pass indices, a slice, 'all' or None")
    elif not len(logged_envs):
        raise ValueError("logged_envs is empty: name the environments to record, or leave it out")
    elif np.asarray(logged_envs).dtype == bool:
        raise TypeError(f"logged_envs={logged_envs!r} is a mask: pass the indices of the environments to record")


def resolve_envs(logged_envs: EnvChoice, envs: int) -> list[int]:
    """Return the indices of the environments to record, sorted.

    Args:
        logged_envs: an index, several, a slice, ``"all"``, or None: all if there are at most 64, else the first 16.
        envs: number of environments in the batch.

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
    """Return the index that picks environments out of an array of all; None if they are all."""
    if len(chosen) == envs:
        return None
    if list(chosen) == list(range(chosen[0], chosen[-1] + 1)):
        return slice(chosen[0], chosen[-1] + 1)  # a view, where an array of indices would copy
    return np.array(chosen, np.intp)
