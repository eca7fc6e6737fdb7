"""Rows by environment: a block, taken apart on the writer's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.positions import Timelines
from torchrl_rerun.blocks.returns import RunningReturns
from torchrl_rerun.kinds.schema import Moment
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.timelines import Positions


class EnvRows(NamedTuple):
    """Rows of one environment that share their times.

    Attributes:
        env: index of the environment among the recorded ones.
        positions: where it was, ``[n, 6]``.
        values: per stream its rows, ``[n, *stream.shape]``: views of the block's memory if possible.
    """

    env: int
    positions: Positions
    values: list[tuple[Stream, npt.NDArray[Any]]]


def rows_by_env(block: Block, envs: int, returns: RunningReturns) -> Iterator[EnvRows]:
    """Return the rows of a block, environment by environment.

    Args:
        block: the block.
        envs: number of recorded environments.
        returns: the running returns so far.
    """
    block.wait()
    timelines = Timelines(block.start, block.events)
    running = returns.advance(block)
    event_of_slot = block.event_of_slot
    present = [block.presence(group) for group in range(len(block.groups))]
    together = _groups_with_the_same_times(block, event_of_slot)
    for env in range(envs):
        for groups in together:
            first = groups[0]
            mask = present[first]
            slots = slice(0, len(event_of_slot[first])) if mask is None else np.flatnonzero(mask[:, env])
            at = event_of_slot[first][slots]
            if not len(at):
                continue
            is_before = block.groups[first].moment is Moment.ACTED
            positions = timelines.before(env, at) if is_before else timelines.at(env, at)
            values = [
                (stored.stream, stored.rows(env, slots))
                for group in groups
                for stored in block.values[group]
                if not (stored.stream.shared and env)
            ]
            returns_here = (stream for group in groups for stream in block.groups[group].streams if stream.reward_key)
            values += [(stream, running[stream.key][slots, env]) for stream in returns_here]
            if values:
                yield EnvRows(env, positions, values)


def rows_not_in(
    piece: EnvRows, frames: npt.NDArray[np.int64], there: Callable[[Stream], npt.NDArray[np.int64]]
) -> Iterator[EnvRows]:
    """Yield the rows of an environment that aren't there yet, together those of streams that lack the same ones.

    Args:
        piece: the rows.
        frames: their frames, ``[n]``.
        there: returns the frames of the rows of a stream that are there.
    """
    parts: dict[bytes, EnvRows] = {}
    for stream, rows in piece.values:
        lacking = ~np.isin(frames, there(stream))
        if lacking.any():
            key = lacking.tobytes()
            if key not in parts:
                parts[key] = EnvRows(piece.env, np.asfortranarray(piece.positions[lacking]), [])
            parts[key].values.append((stream, rows[lacking]))
    yield from parts.values()


def _groups_with_the_same_times(block: Block, event_of_slot: Sequence[npt.NDArray[np.intp]]) -> list[list[int]]:
    """Return the numbers of the groups that have any rows, together those whose rows have the same times."""
    together: dict[tuple[bool, bytes], list[int]] = {}
    for number, (group, events) in enumerate(zip(block.groups, event_of_slot, strict=True)):
        if len(events):
            together.setdefault((group.moment is Moment.ACTED, events.tobytes()), []).append(number)
    return list(together.values())
