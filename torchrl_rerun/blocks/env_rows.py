"""Rows by environment: a block, taken apart on the writer's thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.positions import Timelines
from torchrl_rerun.blocks.returns import Sums
from torchrl_rerun.kinds.schema import Moment
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.timelines import Positions


class EnvRows(NamedTuple):
    """Rows of one environment that share their times.

    Attributes:
        row: index of the environment among the recorded ones.
        positions: where it was, ``[n, 6]``.
        values: per stream its rows, ``[n, *stream.shape]``: views of the block's memory if possible.
    """

    row: int
    positions: Positions
    values: list[tuple[Stream, npt.NDArray[Any]]]


def rows_by_env(block: Block, envs: int, sums: Sums) -> Iterator[EnvRows]:
    """Return the rows of a block, environment by environment.

    Args:
        block: the block.
        envs: number of recorded environments.
        sums: the running returns so far.
    """
    block.wait()
    timelines = Timelines(block.start, block.events)
    summed = sums.of(block)
    frames = [np.array(each, np.intp) for each in block.frames]
    present = [block.presence(group) for group in range(len(block.groups))]
    together = _groups_with_the_same_times(block)
    for row in range(envs):
        for groups in together:
            first = groups[0]
            mask = present[first]
            slots = slice(0, len(frames[first])) if mask is None else np.flatnonzero(mask[:, row])
            at = frames[first][slots]
            if not len(at):
                continue
            is_before = block.groups[first].moment is Moment.ACTED
            positions = timelines.before(row, at) if is_before else timelines.at(row, at)
            values = [
                (stored.stream, stored.of(row, slots))
                for group in groups
                for stored in block.values[group]
                if not (stored.stream.shared and row)
            ]
            sums_here = (stream for group in groups for stream in block.groups[group].streams if stream.sums)
            values += [(stream, summed[stream.key][slots, row]) for stream in sums_here]
            if values:
                yield EnvRows(row, positions, values)


def _groups_with_the_same_times(block: Block) -> list[list[int]]:
    """Return the numbers of the groups that have any rows, together those whose rows have the same times."""
    sets: list[list[int]] = []
    for group, frames in enumerate(block.frames):
        is_before = block.groups[group].moment is Moment.ACTED
        for together in sets:
            first = together[0]
            if block.frames[first] == frames and (block.groups[first].moment is Moment.ACTED) is is_before:
                together.append(group)
                break
        else:
            if frames:
                sets.append([group])
    return sets
