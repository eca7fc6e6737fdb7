"""Timelines: the columns of the position that each row of a recording has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FRAME, STEP, EPISODE, EPISODE_STEP, LOG_TIME, REGROUPED = range(6)
"""Columns of a position: the timelines in the order in which they are written, then the count of resets in the episode."""


TIMELINES = ("frame", "step", "episode", "episode_step", "log_time")


COLUMNS = len(TIMELINES) + 1


Positions = npt.NDArray[np.int64]
"""int64 ``[..., 6]``: the columns of :data:`TIMELINES`, with ``log_time`` in nanoseconds since the epoch, and
``REGROUPED``: how often groups of agents were reset within the episode so far."""
