"""Endings: the flags that end an environment's episode, by one rule for live data, stored data and recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.keys import Key

DONE, TERMINATED, TRUNCATED = FLAGS = ("done", "terminated", "truncated")
"""Names of the flags, in any group."""

Raised = npt.NDArray[np.bool_]


class Ends(NamedTuple):
    """The environments whose episodes end, ``[n]`` each.

    Attributes:
        terminated: episodes that the environment ended.
        truncated: episodes that a limit ended, of time for example.
    """

    terminated: Raised
    truncated: Raised

    @property
    def either(self) -> Raised:
        """The environments whose episodes end in either way."""
        return self.terminated | self.truncated


def deciding(keys: Iterable[Key]) -> tuple[Key, ...]:
    """Return the flags that decide when an environment's episode ends: the outermost ones.

    A flag decides unless a group that it lies in has flags of its own. TorchRL resets environments by the same flags.

    >>> deciding([("done",), ("agents", "done"), ("reward",)])
    (('done',),)
    >>> deciding([("red", "done"), ("blue", "done"), ("blue", "fox", "done")])
    (('red', 'done'), ('blue', 'done'))
    """
    flags = [key for key in dict.fromkeys(keys) if key[-1] in FLAGS]
    groups = {key[:-1] for key in flags}
    return tuple(key for key in flags if not any(key[:depth] in groups for depth in range(len(key) - 1)))


class Endings:
    """Decides which environments' episodes end, by the flags of one frame.

    - Flags at the root end an episode if any of their numbers is up.
    - Without flags at the root an episode ends when all groups, and all agents in them, are done.
    - ``done`` without ``terminated`` or ``truncated`` counts as terminated.

    Args:
        keys: keys of the data, flags or not.

    Attributes:
        keys: the flags that decide, see :func:`deciding`.

    >>> flags = {("red", "done"): np.array([[True], [True]]), ("blue", "done"): np.array([[True], [False]])}
    >>> Endings(flags).ended(flags.get, 2)
    Ends(terminated=array([ True, False]), truncated=array([False, False]))
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = deciding(keys)
        self._groups: dict[Key, list[Key]] = {}
        for key in self.keys:
            self._groups.setdefault(key[:-1], []).append(key)

    def ended(self, flags: Callable[[Key], npt.NDArray[Any] | None], count: int) -> Ends | None:
        """Return the environments whose episodes end; None if no episode ends.

        Args:
            flags: returns the values of a flag, bool ``[count, ...]``. None: the flag is missing, and counts as down.
            count: the number of rows, environments for example.
        """
        found = {key: values.reshape(count, -1) for key in self.keys if (values := flags(key)) is not None}
        if not any(values.any() for values in found.values()):
            return None
        ended = self._ended_in(found, count)
        if not ended.any():
            return None
        terminated, truncated = np.zeros(count, bool), np.zeros(count, bool)
        for key, values in found.items():
            if key[-1] == TERMINATED:
                terminated |= values.any(axis=1)
            elif key[-1] == TRUNCATED:
                truncated |= values.any(axis=1)
        terminated |= ~truncated
        return Ends(terminated & ended, truncated & ended)

    def _ended_in(self, found: dict[Key, npt.NDArray[Any]], count: int) -> Raised:
        ended = np.ones(count, bool)
        for group, keys in self._groups.items():
            done = None
            for key in keys:
                if key in found:
                    done = found[key] if done is None else done | found[key]
            if done is None:
                return np.zeros(count, bool)
            ended &= done.all(axis=1) if group else done.any(axis=1)
        return ended
