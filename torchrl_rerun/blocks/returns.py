"""Returns: running sums of rewards, which begin anew with each episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.events import NO_ENVS, EnvIndices, Events
from torchrl_rerun.blocks.memory import Heap, Memory, NamedArrays, Region, Shape
from torchrl_rerun.kinds.keys import Key

RETURNS = "returns"
"""The role of the arrays in a black box."""


class RunningReturns:
    """Running returns in float64, carried on from block to block on the writer's thread.

    Args:
        envs: number of environments.
    """

    def __init__(self, envs: int) -> None:
        self._envs = envs
        self._totals: dict[Key, npt.NDArray[np.float64]] = {}
        self._before = 0.0  # of keys that have no total yet
        self._memory: Memory = Heap()
        self._role = ""
        self._kept: Region | None = None
        self._turn = 0
        self._lease = 0  # of the last block

    def keep_in(self, memory: Memory, role: str) -> None:
        """Copy the totals before and after each block to where they outlive the process, from now on.

        Args:
            memory: where that is.
            role: the role of the blocks that they are of.
        """
        self._memory, self._role, self._kept, self._lease = memory, role, None, 0
        if self._totals or np.isnan(self._before):
            self._keep()

    def _keep(self) -> None:
        """Copy the totals after the last block. Those after the block before it stay, too: it may not be written yet."""
        if not self._memory.is_kept:
            return
        wanted = [(2, *total.shape) for total in self._totals.values()]
        if self._kept is None or [array.shape for array in list(self._kept.arrays.values())[1:]] != wanted:
            before = self._kept
            shapes = {str(number): Shape(np.dtype(np.float64), shape) for number, shape in enumerate(wanted)}
            about = {"role": RETURNS, "of": self._role, "keys": list(self._totals), "before": self._before}
            self._kept = self._memory.allocate(
                {"leases": Shape(np.dtype(np.int64), (2,)), **shapes}, about, _note_nothing
            )
            if before is not None:
                before.free()
        leases = self._kept.arrays["leases"]
        self._turn = 1 - self._turn
        leases[self._turn] = _NOTHING
        for number, total in enumerate(self._totals.values()):
            self._kept.arrays[str(number)][self._turn] = total
        leases[self._turn] = self._lease

    @classmethod
    def kept(cls, envs: int, about: Mapping[str, Any], arrays: NamedArrays, lease: int) -> RunningReturns:
        """Return the returns before a block, from a black box.

        Args:
            envs: number of environments.
            about: what the box says of them.
            arrays: its arrays.
            lease: the lease of the block.
        """
        returns = cls(envs)
        returns._before = about["before"]
        leases = np.where(arrays["leases"] < lease, arrays["leases"], _NOTHING)
        at = int(leases.argmax())
        if leases[at] != _NOTHING:
            returns._totals = {tuple(key): arrays[str(number)][at] for number, key in enumerate(about["keys"])}
        return returns

    def grow(self, envs: int) -> None:
        """Add up the rewards of more environments, whose episodes begin. No block may be waiting.

        Args:
            envs: number of environments, the ones so far included.
        """
        for key, total in self._totals.items():
            self._totals[key] = np.concatenate([total, np.zeros((envs - self._envs, *total.shape[1:]))])
        self._envs = envs
        if self._kept is not None:
            self._kept.free()
            self._kept = None

    def forget(self) -> None:
        """Make the returns of the episodes in progress NaN until these end: rewards were lost."""
        self._totals.clear()
        self._before = np.nan

    def advance(self, block: Block) -> dict[Key, npt.NDArray[np.float64]]:
        """Add the rewards of a block. Return its running returns, at the slots of their group: per key ``[slots, envs, *shape]``."""
        if not block.returns:
            return {}
        if self._kept is None or any(stream.key not in self._totals for stream in block.returns):
            for stream in block.returns:
                self._totals.setdefault(stream.key, np.full((self._envs, *stream.shape), self._before))
            self._keep()
        event_of_slots = block.event_of_slot
        rewards = {
            values.stream.key: (values.stream.numbers(values.by_frame[: len(event_of_slot)]), event_of_slot)
            for group, event_of_slot in zip(block.values, event_of_slots, strict=True)
            for values in group
        }
        found = {}
        for group, event_of_slot in zip(block.groups, event_of_slots, strict=True):
            for stream in group.streams:
                if stream.reward_key:
                    total = self._totals[stream.key]
                    array, slots = rewards.get(stream.reward_key, (None, NO_ENVS))
                    after = running_sums(total, block.events, array, slots)
                    self._totals[stream.key] = after[-1]
                    found[stream.key] = after[event_of_slot + 1]
        self._lease = block.lease
        self._keep()
        return found


_NOTHING = -1
"""In place of the number of a lease."""


def _note_nothing(arrays: NamedArrays) -> None:
    arrays["leases"][:] = _NOTHING


def running_sums(
    before: npt.NDArray[np.float64],
    events: Events,
    rewards: npt.NDArray[Any] | None,
    event_of_slot: Sequence[int] | npt.NDArray[np.intp],
) -> npt.NDArray[np.float64]:
    """Return running sums before the first event and after each, ``[events + 1, *before.shape]``.

    Numbers are added one after the other, so that the sums equal those of a loop over the steps to the bit.

    Args:
        before: the sums so far, ``[envs, ...]``.
        events: the events.
        rewards: ``[slots, envs, ...]``; None: there are none.
        event_of_slot: the number of the event of each slot.

    >>> from torchrl_rerun.blocks.events import Event
    >>> events = Events()
    >>> first = np.array([0])
    >>> events.append(Event(0, 1, 0, True, None, None, None))
    >>> events.append(Event(1, 1, 0, False, first, first, first))
    >>> events.append(Event(2, 2, 0, True, None, None, None))
    >>> running_sums(np.zeros(2), events, np.array([[1.0, 1.0], [2.0, 3.0]]), [0, 2]).tolist()
    [[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [2.0, 4.0]]
    """
    sums = np.zeros((len(events) + 1, *before.shape))
    if rewards is not None:
        with np.errstate(invalid="ignore"):  # rows of environments that weren't stepped hold arbitrary bits
            sums[np.array(event_of_slot, np.intp) + 1] = rewards[: len(event_of_slot)]
    sums[0] = before
    for first, last, event in events.runs():
        if event is None:
            np.add.accumulate(sums[first : last + 1], axis=0, out=sums[first : last + 1])
            continue
        if event.is_step:
            sums[last] = with_rewards(sums[first], event.envs, sums[last])
        else:
            sums[last] = sums[first]
            sums[last, slice(None) if event.envs_begun is None else event.envs_begun] = 0.0
    return sums


def with_rewards(sums: npt.NDArray[np.float64], envs: EnvIndices, rewards: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return running sums after a step.

    Args:
        sums: the sums before the step, ``[envs, ...]``.
        envs: the environments that were stepped; None: all.
        rewards: ``[envs, ...]``; those of the others are not looked at.

    >>> with_rewards(np.array([1.0, 2.0]), np.array([1]), np.array([np.nan, 0.5])).tolist()
    [1.0, 2.5]
    """
    after = sums.copy()
    after[... if envs is None else envs] += rewards[... if envs is None else envs]
    return after
