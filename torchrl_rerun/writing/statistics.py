"""Statistics over all environments of a batch, for batches too large to look at one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from rerun.chunk import Chunk

from torchrl_rerun.blocks.block import Block, StreamGroup
from torchrl_rerun.blocks.returns import Sums
from torchrl_rerun.kinds.arrow import Entity, chunks_of, number_lists, times_of
from torchrl_rerun.kinds.palette import series_style
from torchrl_rerun.kinds.streams import batch_path
from torchrl_rerun.kinds.timelines import FRAME, LOG_TIME, STEP, TIMELINES

STATISTICS = ("mean", "minimum", "10 %", "median", "90 %", "maximum")
"""What the numbers of a row of ``/batch/{key}`` are, in this order."""

_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)

_TIMES = (FRAME, STEP, LOG_TIME)  # an environment's episodes are its own

COLORS = (0xF2A33AFF, 0x4E9BE666, 0x4E9BE6AA, 0x4E9BE6FF, 0x4E9BE6AA, 0x4E9BE666)


class BatchStatistics:
    """Turns blocks of rewards, and of their sums, into statistics over the environments and agents at each frame.

    A reward's are over the environments that were stepped; a return's over all, each with what it has so far.

    Args:
        fps: frames per second of simulated time; None: no ``sim_time``.
        sums: running sums of rewards so far.
    """

    def __init__(self, fps: float | None, sums: Sums) -> None:
        self._fps = fps
        self._sums = sums

    def static(self, groups: Sequence[StreamGroup]) -> Iterator[Chunk]:
        """What does not change over time: names and colours."""
        for group in groups:
            for stream in group.streams:
                yield Chunk.from_columns(batch_path(stream.key), [], series_style(STATISTICS, COLORS))

    def chunks(self, block: Block) -> Iterator[Chunk]:
        """One chunk for each reward and each sum."""
        block.wait()
        sums = self._sums.of(block)
        for number, group in enumerate(block.groups):
            frames, present = np.array(block.frames[number], np.intp), block.presence(number)
            slots = np.arange(len(frames)) if present is None else np.flatnonzero(present.any(axis=1))
            frames = frames[slots]
            if not len(frames):
                continue
            stepped = {
                values.stream.key: values.stream.numbers(values.by_frame[slots]) for values in block.values[number]
            }
            entities = []
            for stream in group.streams:
                values = sums[stream.key][slots] if stream.sums else stepped[stream.key]
                among = None if stream.sums or present is None else present[slots]
                rows = statistics(values.reshape(*values.shape[:2], -1), among)
                entities.append(Entity(batch_path(stream.key), [number_lists(rows)]))
            positions = np.zeros((len(frames), len(TIMELINES)), np.int64, order="F")
            positions[:, _TIMES] = block.events.numbers()[frames]
            yield from chunks_of(times_of(positions, self._fps, _TIMES), entities)


def statistics(
    values: npt.NDArray[np.generic], present: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float64]:
    """The :data:`STATISTICS` of each row, ``[rows, 6]``.

    Quantiles are interpolated linearly, as NumPy does.

    Args:
        values: ``[rows, envs, numbers]``.
        present: whose values count, ``[rows, envs]``, at least one in each row; None: all.

    >>> statistics(np.arange(11.0).reshape(1, 11, 1)).tolist()
    [[5.0, 0.0, 1.0, 5.0, 9.0, 10.0]]
    """
    out = np.empty((len(values), len(STATISTICS)))
    if present is None:
        flat = values.reshape(len(values), -1).astype(np.float64)
        out[:, 0] = flat.mean(axis=1)
        out[:, 1:] = np.quantile(flat, _QUANTILES, axis=1).T
        return out
    for row, mask in enumerate(present):
        out[row] = statistics(values[row : row + 1, mask])[0]
    return out
