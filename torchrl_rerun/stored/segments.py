"""Segments of stored trajectories: consecutive steps, read one segment at a time, so that memory is bounded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.kind import Kind
from torchrl_rerun.transform.padded_batches import MASK

SEGMENT_BYTES = 16 << 20
"""Largest size of a segment in bytes, unless a single time step is larger."""
_MOST_TIME_STEPS = 1024


@dataclass(frozen=True)
class Segment:
    """Consecutive time steps of all environments.

    Attributes:
        tensordict: Transitions in TorchRL's form, ``[*batch, time]``. If some environments didn't step, its ``"_step"``
            entry is the mask of those that did.
        begins: Mask of the environments whose episode begins at the first time step, bool ``[envs]``.
        seeds: Seed of the episode that begins, for each environment. Empty if no seed is known.
        padding: For a padded batch of trajectories: mask of the real steps, bool ``[trajectories, time]``. Default: None,
            for any other data.
    """

    tensordict: TensorDictBase
    begins: npt.NDArray[np.bool_]
    seeds: Sequence[int | None] = ()
    padding: npt.NDArray[np.bool_] | None = None

    @property
    def num_steps(self) -> int:
        """Number of steps, summed over the environments."""
        mask = self.padding if self.padding is not None else self.tensordict.get("_step", None)
        return self.tensordict.numel() if mask is None else int(mask.sum())

    @property
    def num_time_steps(self) -> int:
        """Number of time steps. The trajectories of a padded batch count one after another."""
        size = self.tensordict.batch_size
        return int(size[-1] if self.padding is None else size.numel())

    def split_padded(self) -> Iterator[Segment]:
        """Yield each trajectory of a padded batch as a segment of one environment. Yield any other segment as it is."""
        if self.padding is None:
            yield self
            return
        for trajectory, mask in zip(self.tensordict, torch.from_numpy(self.padding), strict=True):
            yield Segment(trajectory[mask].exclude(MASK, "mask"), np.array([True]))


@dataclass(frozen=True)
class StoredTrajectories:
    """Trajectories in a file or a folder, which are read when asked for.

    Attributes:
        description: Path and format, for messages.
        num_time_steps: Number of time steps in all segments.
        read: Function that reads the segments in their order.
        env_name: Id of the environment. Default: None, not known.
        fps: Frames per second of simulated time. Default: None, not known.
        array_keys: Key of each named array, by the array's name.
        files_without_ends: Files in which no array and no flag marks the end of an episode.
        kinds: Kinds of keys that are known.
    """

    description: str
    num_time_steps: int
    read: Callable[[], Iterator[Segment]]
    env_name: str | None = None
    fps: float | None = None
    array_keys: Mapping[str, Key] = field(default_factory=dict)
    files_without_ends: tuple[Path, ...] = ()
    kinds: Mapping[Key, Kind] = field(default_factory=dict)


def join_names(paths: Sequence[Path]) -> str:
    """Return one name for several files, for messages.

    >>> join_names([Path("a.npz")]), join_names([Path("a.npz"), Path("b.npz"), Path("c.npz")])
    ('a.npz', 'a.npz and 2 others')
    """
    others = len(paths) - 1
    return f"{paths[0]}" + (f" and {others:,} other{'s' * (others > 1)}" if others else "")


def split_numbers(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that orders the numbers in a name by their values.

    >>> sorted(["demo_10", "demo_9", "b"], key=split_numbers)
    ['b', 'demo_9', 'demo_10']
    """
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name) if part]


def concatenate(description: str, parts: Sequence[StoredTrajectories]) -> StoredTrajectories:
    """Return several stored trajectories as one. Every part begins new episodes.

    Args:
        description: Description of the result, for messages.
        parts: At least one.

    Raises:
        ValueError: Two parts have different numbers of environments. Raised while segments are read.
    """

    def read() -> Iterator[Segment]:
        envs = first = None
        for part in parts:
            for number, segment in enumerate(part.read()):
                if segment.padding is None:
                    envs, first = envs or len(segment.begins), first or part
                    if len(segment.begins) != envs:
                        raise ValueError(
                            f"{part.description} has {len(segment.begins)} environments, and {first.description} has "
                            f"{envs}: replay them one at a time"
                        )
                begins = np.ones_like(segment.begins) if number == 0 else segment.begins
                yield dataclasses.replace(segment, begins=begins)

    def merge(name: str) -> dict[Any, Any]:
        return {key: value for part in reversed(parts) for key, value in getattr(part, name).items()}

    names, rates = {part.env_name for part in parts}, {part.fps for part in parts}
    return StoredTrajectories(
        description,
        sum(part.num_time_steps for part in parts),
        read,
        env_name=parts[0].env_name if len(names) == 1 else None,
        fps=parts[0].fps if len(rates) == 1 else None,
        array_keys=merge("array_keys"),
        files_without_ends=tuple(path for part in parts for path in part.files_without_ends),
        kinds=merge("kinds"),
    )


def split_time(begin: int, end: int, bytes_per_time_step: float) -> Iterator[tuple[int, int]]:
    """Yield the ranges of time steps, first and end, of segments of bounded size.

    >>> list(split_time(0, 5, SEGMENT_BYTES // 2)), list(split_time(3, 4, 10 * SEGMENT_BYTES))
    ([(0, 2), (2, 4), (4, 5)], [(3, 4)])
    """
    step = int(max(1, min(_MOST_TIME_STEPS, SEGMENT_BYTES // max(1.0, bytes_per_time_step))))
    for at in range(begin, end, step):
        yield at, min(at + step, end)


def fill_unknown(value: Any) -> Any:
    """Return a tensor that stands for values that were never stored: NaN, or 0 if the dtype has no NaN.

    >>> import torch
    >>> fill_unknown(torch.ones(2)), fill_unknown(torch.ones(2, dtype=torch.uint8))
    (tensor([nan, nan]), tensor([0, 0], dtype=torch.uint8))
    """
    return value.new_full(value.shape, float("nan")) if value.is_floating_point() else value.new_zeros(value.shape)
