"""Steps of recordings as a dataset of PyTorch and as a replay buffer of TorchRL."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch.utils.data import Dataset
from torchrl.data import LazyTensorStorage, RandomSampler, SliceSampler, Storage, TensorDictReplayBuffer

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import TimedStream
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.loaded_episode import LoadedEpisode
from torchrl_rerun.reading.padding import Form
from torchrl_rerun.reading.steps import steps as read_steps
from torchrl_rerun.reading.transitions import Transitions, episode_transitions

TRAJECTORY = ("collector", "traj_ids")
"""The key under which TorchRL's collectors number the episode of a step."""

PIECE_BYTES = 32 << 20
"""Bytes, about, that are read at once on the way into a replay buffer."""


class StepDataset(Dataset[TensorDictBase]):
    """Steps, or slices of episodes, read from the files when they are asked for; see :meth:`torchrl_rerun.LoadedEpisodes.dataset`.

    Args:
        episodes: the episodes.
        slice_len: steps in an item, which is ``[slice_len]``. Default: items are single steps, ``[]``.
        keys: the keys. Default: all but the returns that the recorder worked out.

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
    """Return a replay buffer that holds the steps of episodes; see :meth:`torchrl_rerun.LoadedEpisodes.replay_buffer`."""
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
        history: the environment.
        wanted: the keys.
        steps: the frames.
        form: the form in which they fit together with the steps of other episodes.
        number: number of their trajectory.
    """

    history: History
    wanted: Sequence[TimedStream]
    steps: Transitions
    form: Form
    number: int

    def read(self, first: int, end: int) -> TensorDict:
        """Return some of the steps."""
        part = self.steps[first:end].alone()
        return read_steps(self.history, self.wanted, part.span, part, self.form)


def _steps_of(episodes: Sequence[LoadedEpisode], keys: Sequence[Key] | None) -> list[_Steps]:
    """Return the steps of each episode. The episodes of an environment are read in one go.

    An episode with gaps between its recorded frames is several trajectories. The first has the episode's number in the
    sequence; the others are numbered behind all episodes.
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
        steps, needed = episode_transitions(history, wanted, of_each)
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
    """Yield steps with the numbers of their trajectories. Short episodes that follow one another are read together."""
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
    """Return whether two episodes are neighbours in one environment."""
    if before.history is not after.history:
        return False
    return int(after.steps.before[0] >> 32) == int(before.steps.before[0] >> 32) + 1


def _bytes(steps: _Steps) -> int:
    return len(steps.steps) * sum(stream.row_bytes for stream, _ in steps.wanted)


def _read(together: Sequence[_Steps]) -> TensorDict:
    first = together[0]
    at = Transitions(first.steps.frames, np.concatenate([each.steps.at for each in together])).alone()
    numbers = np.repeat([each.number for each in together], [len(each.steps) for each in together])
    steps = read_steps(first.history, first.wanted, at.span, at, first.form)
    return steps.set(TRAJECTORY, torch.from_numpy(numbers))
