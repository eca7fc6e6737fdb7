"""Frame codes: one number for episode and step, by which rows of an environment are ordered and found."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FrameCodes = npt.NDArray[np.int64]
"""int64 ``[n]``: ``episode << 32 | episode_step`` of each row. The codes of an environment grow with time."""

Span = tuple[int, int]
"""The first and the last code of some rows."""

ALL: Span = 0, 2**63 - 1

TIMES = ("frame", "episode", "episode_step", "log_time")
"""The timelines by which rows are read back."""


def episode_span(episode: int) -> Span:
    """Return the span of all rows of an episode."""
    return episode << 32, (episode + 1 << 32) - 1


def codes_of(batch: pa.RecordBatch) -> FrameCodes:
    """Return the codes of the rows of a chunk, int64 ``[n]``."""
    episode, step = (batch.column(name).to_numpy() for name in ("episode", "episode_step"))
    codes: FrameCodes = episode << 32 | step
    return codes


def frames_of(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Return the numbers of the frames of a chunk's rows, int64 ``[n]``."""
    frames: npt.NDArray[np.int64] = batch.column("frame").to_numpy()
    return frames
