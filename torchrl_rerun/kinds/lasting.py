"""Values that last: a flag or a category is stored where it changes, with the number of rows that have it.

A row that is stored stands for itself and for the steps that follow it in its episode, one after the other. The number of
all of them is in a column beside the value. So a chunk is read by itself, and a missing row is never taken for a value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.kinds.arrow import Column, flat, lists
from torchrl_rerun.kinds.timelines import EPISODE, EPISODE_STEP, REGROUPED, STEP, Positions

ROWS = "torchrl_rerun:rows"
"""The component that holds the number of rows that a stored row stands for."""


LEAST_LEFT_OUT = 12
"""The number of rows to leave out from which it pays: the column of their numbers takes 150 bytes of a chunk."""


class DamagedRowsError(ValueError):
    """The numbers of rows in a chunk can't be right."""


MOST_ROWS = 1 << 27
"""The largest number of rows that the rows of a chunk may stand for: a damaged number must not fill the memory."""


def stored_rows(rows: npt.NDArray[Any], positions: Positions) -> npt.NDArray[np.bool_]:
    """Return which rows of an environment must be stored, bool ``[n]``; the others follow from the one stored before them.

    - The first row of an episode, and each row that differs from the one before it.
    - A row that is not one step after the one before it: the rows between them are missing.
    - Both rows where a group of agents was reset by itself: they have one step, and only their frames tell them apart.
    - The first row and the last one, between which the times of a chunk lie.

    Args:
        rows: the values, ``[n, ...]``.
        positions: positions of the rows, ``[n, 6]``.

    >>> positions = np.zeros((6, 6), np.int64)
    >>> positions[:, EPISODE_STEP] = [0, 1, 2, 3, 5, 6]
    >>> stored_rows(np.array([False, False, False, True, True, True]), positions)
    array([ True, False, False,  True,  True,  True])
    """
    bits = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8).reshape(len(rows), -1)
    before, after = positions[:-1], positions[1:]
    is_same_episode = after[:, EPISODE] == before[:, EPISODE]
    is_regrouped = is_same_episode & (after[:, REGROUPED] != before[:, REGROUPED])
    follows = is_same_episode & ~is_regrouped & (after[:, EPISODE_STEP] == before[:, EPISODE_STEP] + 1)
    stored = np.ones(len(rows), np.bool_)
    stored[1:] = ~follows | (bits[1:] != bits[:-1]).any(axis=1)
    stored[:-1] |= is_regrouped
    stored[-1] = True
    return stored


def pays(stored: npt.NDArray[np.bool_], positions: Positions) -> bool:
    """Return whether it takes fewer bytes to store these rows alone. Else all rows are stored.

    A chunk of which rows are left out has fewer rows than steps, which the index of a file tells.

    Args:
        stored: the rows that must be stored, bool ``[n]``.
        positions: positions of the rows, ``[n, 6]``.
    """
    count = int(stored.sum())
    most = min(len(stored) // 2, len(stored) - LEAST_LEFT_OUT, positions[-1, STEP] - positions[0, STEP])
    return bool(count <= most)


def rows_column(stored: npt.NDArray[np.bool_]) -> Column:
    """Return the column that holds the number of rows that each stored row stands for.

    Args:
        stored: the rows that are stored, bool ``[n]``.
    """
    counts = np.diff(np.append(np.flatnonzero(stored), len(stored)))
    return Column(ROWS, None, None, lists(flat(counts), len(counts)))


def counts_in(batch: pa.RecordBatch) -> npt.NDArray[np.int64] | None:
    """Return the number of rows that each row of a chunk stands for, int64 ``[n]``; None: each stands for itself.

    Raises:
        DamagedRowsError: the numbers can't be right.
    """
    if ROWS not in batch.schema.names:
        return None
    column = batch.column(ROWS)  # other programs may have joined chunks with and without it
    counts = np.ones(len(batch), np.int64)
    said = column.flatten().to_numpy(zero_copy_only=False)
    there = column.is_valid().to_numpy(zero_copy_only=False)
    if len(said) != there.sum() or said.dtype != np.int64:
        raise DamagedRowsError(f"{ROWS} doesn't hold a number for each row")
    counts[there] = said
    if (counts < 1).any() or (counts > MOST_ROWS).any() or counts.sum() > MOST_ROWS:
        raise DamagedRowsError(f"{ROWS} says that a value holds for {int(counts[np.abs(counts).argmax()]):,} rows")
    return counts


def frames_of(chunk: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Return the frames that a chunk tells of: those of its rows, and if these stand for others all between them."""
    frames: npt.NDArray[np.int64] = chunk.column("frame").cast(pa.int64()).to_numpy()
    return np.arange(frames.min(), frames.max() + 1) if ROWS in chunk.schema.names and len(frames) else frames
