"""Learning: steps of recordings as what TorchRL and PyTorch train on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch.utils.data import Dataset
from torchrl.data import LazyTensorStorage, RandomSampler, SliceSampler, Storage, TensorDictReplayBuffer

from torchrl_rerun.kinds.schema import Described
from torchrl_rerun.kinds.streams import Key
from torchrl_rerun.reading.history import History, Transitions
from torchrl_rerun.reading.load import LoadedEpisode
from torchrl_rerun.reading.padding import Form

TRAJECTORY = ("collector", "traj_ids")
"""Where TorchRL's collectors say which episode a step is of."""

PIECE_BYTES = 32 << 20
"""About what is read at once on the way into a replay buffer."""


class StepDataset(Dataset[TensorDictBase]):
    """Steps, or slices of episodes, read from the files when they are asked for; see :meth:`torchrl_rerun.Recordings.dataset`.

    Args:
        episodes: of which.
        slice_len: how many steps an item has; None: it is one.
        keys: which ones; None: all but the returns that the recorder worked out.

    Raises:
        ValueError: ``slice_len`` is less than 1.
    """

    def __init__(
        self, episodes: Sequence[LoadedEpisode], slice_len: int | None = None, keys: Sequence[Key] | None = None
    ) -> None:
        if slice_len is not None and slice_len < 1:
            raise ValueError(f"slice_len={slice_len}: pass how many steps a slice has, 1 or more")
        self._slice_len = slice_len
        found = _steps_of(episodes, keys)
        self._episodes = [each for each in found if len(each.steps) >= (slice_len or 1)]
        counts = [len(each.steps) - (slice_len or 1) + 1 for each in self._episodes]
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> TensorDictBase:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} items, and none is {index}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        each = self._episodes[number]
        first = index - (int(self._ends[number - 1]) if number else 0)
        end = first + (self._slice_len or 1)
        steps = each.read(first, end)
        return steps[0] if self._slice_len is None else steps


def replay_buffer(
    episodes: Sequence[LoadedEpisode],
    *,
    batch_size: int,
    slice_len: int | None,
    storage: Storage | None,
    keys: Sequence[Key] | None,
) -> TensorDictReplayBuffer:
    """A replay buffer that holds the steps of episodes; see :meth:`Recordings.replay_buffer`."""
    found = _steps_of(episodes, keys)
    longest = max((len(each.steps) for each in found), default=0)
    if longest < (slice_len or 1):
        raise ValueError(
            f"no episode has {slice_len} steps: the longest has {longest}" if longest else "there are no steps"
        )
    if slice_len is not None and (slice_len < 1 or batch_size % slice_len):
        raise ValueError(
            f"batch_size={batch_size} is no multiple of slice_len={slice_len}: samples are made of whole slices"
        )
    sampler = RandomSampler() if slice_len is None else SliceSampler(slice_len=slice_len, traj_key=TRAJECTORY)
    storage = LazyTensorStorage(sum(len(each.steps) for each in found)) if storage is None else storage
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=batch_size)
    for steps in _pieces(found):
        buffer.extend(steps)
    return buffer


@dataclass(frozen=True)
class _Steps:
    """Steps of an episode that follow one another.

    Attributes:
        history: of which environment.
        wanted: the keys.
        steps: where they are.
        form: in which they fit together with those of the other episodes.
        number: of the trajectory that they are.
    """

    history: History
    wanted: Sequence[Described]
    steps: Transitions
    form: Form
    number: int

    def read(self, first: int, end: int) -> TensorDict:
        """Some of them."""
        part = self.steps[first:end].alone()
        return self.history.steps(self.wanted, part.span, part, self.form)


def _steps_of(episodes: Sequence[LoadedEpisode], keys: Sequence[Key] | None) -> list[_Steps]:
    """The steps of each episode, those of an environment found in one go.

    An episode of which frames between others were not recorded is several trajectories. The first has the episode's number
    in the sequence; the others are counted behind all episodes.
    """
    of_one: dict[int, list[int]] = {}
    for number, each in enumerate(episodes):
        of_one.setdefault(id(each.history), []).append(number)
    found = []
    form = Form()
    for numbers in of_one.values():
        history = episodes[numbers[0]].history
        wanted = history.described(keys)
        of_each = [episodes[number].properties.episode for number in numbers]
        steps, needed = history.episode_transitions(wanted, of_each)
        form |= needed
        found += [(number, history, wanted, each) for number, each in zip(numbers, steps, strict=True)]
    parts = [
        (number, at, history, wanted, part)
        for number, history, wanted, each in found
        for at, part in enumerate(each.unbroken())
    ]
    later = itertools.count(len(episodes))
    return [
        _Steps(history, wanted, part, form, next(later) if at else number)
        for number, at, history, wanted, part in sorted(parts, key=lambda part: part[:2])
    ]


def _pieces(found: Sequence[_Steps]) -> Iterator[TensorDict]:
    """Steps with their episodes' numbers. Of short episodes that follow one another several are read at once."""
    together: list[_Steps] = []
    size = 0
    for each in (each for each in found if len(each.steps)):
        size += _bytes(each)
        if together and (size > PIECE_BYTES or not _follows(together[-1], each)):
            yield _read(together)
            together, size = [], _bytes(each)
        together.append(each)
    if together:
        yield _read(together)


def _follows(before: _Steps, after: _Steps) -> bool:
    """Whether there is nothing of the environment between two episodes."""
    if before.history is not after.history:
        return False
    return int(after.steps.before[0] >> 32) == int(before.steps.before[0] >> 32) + 1


def _bytes(steps: _Steps) -> int:
    return len(steps.steps) * sum(stream.row_bytes for stream, _ in steps.wanted)


def _read(together: Sequence[_Steps]) -> TensorDict:
    first = together[0]
    at = Transitions(first.steps.frames, np.concatenate([each.steps.at for each in together])).alone()
    numbers = np.repeat([each.number for each in together], [len(each.steps) for each in together])
    steps = first.history.steps(first.wanted, at.span, at, first.form)
    return steps.set(TRAJECTORY, torch.from_numpy(numbers))
