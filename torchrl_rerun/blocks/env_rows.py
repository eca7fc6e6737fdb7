"""Rows by environment: a block, taken apart on the writer's thread."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.positions import Timelines
from torchrl_rerun.blocks.returns import RunningReturns
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Moment
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.timelines import Positions

BYTES_AT_ONCE = 4 << 20
"""Bytes of the environments, about, whose rows are copied out of a block at once."""


class EnvRows(NamedTuple):
    """Rows of one environment that share their times.

    Attributes:
        env: index of the environment among the recorded ones.
        positions: where it was, ``[n, 6]``. Not to be changed: other rows may share their memory.
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
    at_once = max(1, BYTES_AT_ONCE * block.envs // max(1, block.bytes))
    for first_env in range(0, envs, at_once):
        some = range(first_env, min(first_env + at_once, envs))
        found = [
            [each for group in groups for each in _rows_of_streams(block, group, present[group], running, some)]
            for groups in together
        ]
        for env in some:
            for groups, of_streams in zip(together, found, strict=True):
                mask, events = present[groups[0]], event_of_slot[groups[0]]
                if mask is not None:
                    events = events[mask[:, env]]
                values = [(stream, rows[env]) for stream, rows in of_streams if env in rows]
                if len(events) and values:
                    is_before = block.groups[groups[0]].moment is Moment.ACTED
                    positions = timelines.before(env, events) if is_before else timelines.at(env, events)
                    yield EnvRows(env, positions, values)


def _rows_of_streams(
    block: Block,
    group: int,
    present: npt.NDArray[np.bool_] | None,
    running: Mapping[Key, npt.NDArray[np.float64]],
    envs: range,
) -> Iterator[tuple[Stream, dict[int, npt.NDArray[Any]]]]:
    """Yield the rows of each stream of a group, by environment.

    Args:
        block: the block.
        group: the number of the group.
        present: in which of its slots each environment has a row, ``[slots, envs]``; None: in all of them.
        running: the running returns at its slots, ``[slots, envs, *shape]``.
        envs: the environments.
    """
    count, some = len(block.events.of_group(group)), slice(envs.start, envs.stop)
    picked = None if present is None else np.nonzero(present[:, some].T)
    for stored in block.values[group]:
        stream = stored.stream
        if stored.lies_by_env or stream.shared:
            slots = {env: slice(count) if present is None else np.flatnonzero(present[:, env]) for env in envs}
            yield stream, {env: stored.rows(env, slots[env]) for env in envs if not (stream.shared and env)}
        else:
            yield stream, dict(zip(envs, _by_env(stored.array[:count, some], picked), strict=True))
    for stream in block.groups[group].streams:
        if stream.reward_key:
            yield stream, dict(zip(envs, _by_env(running[stream.key][:, some], picked), strict=True))


def _by_env(values: npt.NDArray[Any], picked: tuple[npt.NDArray[np.intp], ...] | None) -> list[npt.NDArray[Any]]:
    """Return the rows of each environment, copied all at once.

    Args:
        values: ``[slots, envs, ...]``.
        picked: the environment and the slot of each row, sorted by environments; None: each has a row in each slot.

    >>> values = np.array([[1, 2], [3, 4]])
    >>> [rows.tolist() for rows in _by_env(values, (np.array([0, 1, 1]), np.array([0, 0, 1])))]
    [[1], [2, 4]]
    """
    if picked is None:
        return list(np.ascontiguousarray(values.swapaxes(0, 1)))
    envs, slots = picked
    rows = values[slots, envs]
    bounds = np.searchsorted(envs, np.arange(values.shape[1] + 1)).tolist()
    return [rows[first:last] for first, last in itertools.pairwise(bounds)]


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
