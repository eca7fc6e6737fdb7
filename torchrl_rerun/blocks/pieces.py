"""Pieces: a block taken apart by environment."""

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


class Piece(NamedTuple):
    """Rows of one environment that share their times.

    Attributes:
        row: which of the recorded environments it is.
        positions: where it was, ``[n, 5]``.
        values: per stream its rows, ``[n, *stream.shape]``: views of the block's memory, where they can be.
    """

    row: int
    positions: Positions
    values: list[tuple[Stream, npt.NDArray[Any]]]


def pieces(block: Block, envs: int, sums: Sums) -> Iterator[Piece]:
    """The rows of a block, environment by environment.

    Args:
        block: the block.
        envs: how many environments are recorded.
        sums: running sums of rewards so far.
    """
    block.wait()
    timelines = Timelines(block.start, block.events)
    summed = sums.of(block)
    frames = [np.array(each, np.intp) for each in block.frames]
    present = [block.presence(track) for track in range(len(block.tracks))]
    together = _tracks_with_the_same_times(block)
    for row in range(envs):
        for tracks in together:
            first = tracks[0]
            mask = present[first]
            slots = slice(0, len(frames[first])) if mask is None else np.flatnonzero(mask[:, row])
            at = frames[first][slots]
            if not len(at):
                continue
            is_before = block.tracks[first].moment is Moment.ACTED
            positions = timelines.before(row, at) if is_before else timelines.at(row, at)
            values = [
                (stored.stream, stored.of(row, slots))
                for track in tracks
                for stored in block.values[track]
                if not (stored.stream.shared and row)
            ]
            sums_here = (stream for track in tracks for stream in block.tracks[track].streams if stream.sums)
            values += [(stream, summed[stream.key][slots, row]) for stream in sums_here]
            if values:
                yield Piece(row, positions, values)


def _tracks_with_the_same_times(block: Block) -> list[list[int]]:
    """The tracks of a block that have any rows, those together whose rows come at the same moments."""
    groups: list[list[int]] = []
    for track, frames in enumerate(block.frames):
        is_before = block.tracks[track].moment is Moment.ACTED
        for group in groups:
            first = group[0]
            if block.frames[first] == frames and (block.tracks[first].moment is Moment.ACTED) is is_before:
                group.append(track)
                break
        else:
            if frames:
                groups.append([track])
    return groups
