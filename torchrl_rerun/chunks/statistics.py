"""Statistics over all environments of a batch, if there are too many to look at each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from rerun.chunk import Chunk

from torchrl_rerun.blocks.block import Block, StreamGroup
from torchrl_rerun.blocks.returns import RunningReturns
from torchrl_rerun.kinds.arrow import Entity, chunks_of, number_lists, times_of
from torchrl_rerun.kinds.palette import series_style
from torchrl_rerun.kinds.streams import batch_path
from torchrl_rerun.kinds.timelines import FRAME, LOG_TIME, STEP, TIMELINES

STATISTICS = ("mean", "minimum", "10 %", "median", "90 %", "maximum")
"""The numbers of a row of ``/batch/{key}``, in order."""

_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)

_TIMES = (FRAME, STEP, LOG_TIME)  # an environment's episodes are its own

COLORS = (0xF2A33AFF, 0x4E9BE666, 0x4E9BE6AA, 0x4E9BE6FF, 0x4E9BE6AA, 0x4E9BE666)


class BatchStatistics:
    """Makes chunks of statistics over the environments and agents, of each reward and running return at each frame.

    Statistics of a reward are over the environments that were stepped, those of a running return over all environments.

    Args:
        fps: frames per second of simulated time; None: there is no ``sim_time``.
        returns: the running returns so far.
    """

    def __init__(self, fps: float | None, returns: RunningReturns) -> None:
        self._fps = fps
        self._returns = returns

    def static(self, groups: Sequence[StreamGroup]) -> list[Chunk]:
        """Return the names and colours of the lines."""
        streams = [stream for group in groups for stream in group.streams]
        return [Chunk.from_columns(batch_path(stream.key), [], series_style(STATISTICS, COLORS)) for stream in streams]

    def chunks(self, block: Block) -> Iterator[Chunk]:
        """Return one chunk for each reward and each running return."""
        block.wait()
        returns = self._returns.advance(block)
        for number, group in enumerate(block.groups):
            events, present = block.events.of_group(number), block.presence(number)
            slots = np.arange(len(events)) if present is None else np.flatnonzero(present.any(axis=1))
            events = events[slots]
            if not len(events):
                continue
            stepped = {
                values.stream.key: values.stream.numbers(values.by_frame[slots]) for values in block.values[number]
            }
            entities = []
            for stream in group.streams:
                values = returns[stream.key][slots] if stream.reward_key else stepped[stream.key]
                among = None if stream.reward_key or present is None else present[slots]
                rows = statistics(values.reshape(*values.shape[:2], -1), among)
                entities.append(Entity(batch_path(stream.key), [number_lists(rows)]))
            positions = np.zeros((len(events), len(TIMELINES)), np.int64, order="F")
            positions[:, _TIMES] = block.events.numbers()[events]
            yield from chunks_of(times_of(positions, self._fps, _TIMES), entities)


def statistics(
    values: npt.NDArray[np.generic], present: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float64]:
    """Return the :data:`STATISTICS` of each row, ``[rows, 6]``. Quantiles are interpolated linearly.

    Args:
        values: ``[rows, envs, numbers]``.
        present: mask of the environments that count, ``[rows, envs]``, at least one in each row. Default: all.

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
