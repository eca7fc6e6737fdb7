"""Axes, legends and titles of views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.layout.recorded import Recorded

MAX_LEGEND = 8
"""Lines that a legend names. A longer one would cover its plot; the viewer names lines on hovering."""


def legend(lines: int, room: int) -> rrb.PlotLegend:
    """Return the legend of a plot, at its left. A plot of one line has none: its title names the line."""
    return rrb.PlotLegend(rrb.Corner2D.LeftTop, visible=1 < lines <= room)


def legend_limit(recorded: Recorded) -> int:
    """Return how many lines a legend may name: half as many beside the views of other environments."""
    return MAX_LEGEND if len(recorded.envs) == 1 else MAX_LEGEND // 2


def whole() -> rrb.archetypes.TimeAxis:
    """Return a time axis of the whole recording, whatever the lines of a plot span."""
    return _axis(rr.TimeRangeBoundary.infinite(), rr.TimeRangeBoundary.infinite())


def around_the_cursor() -> rrb.archetypes.TimeAxis:
    """Return a time axis of 60 frames before the cursor and 30 after it. All of a long run would be a smear."""
    return _axis(rr.TimeRangeBoundary.cursor_relative(seq=-60), rr.TimeRangeBoundary.cursor_relative(seq=30))


def _axis(start: rr.TimeRangeBoundary, end: rr.TimeRangeBoundary) -> rrb.archetypes.TimeAxis:
    return rrb.archetypes.TimeAxis(view_range=rr.TimeRange(start=start, end=end))


def time_axis(recorded: Recorded, env: int | None) -> rrb.archetypes.TimeAxis:
    """Return the time axis of all details of an environment."""
    return whole() if env is None and not recorded.around else around_the_cursor()


def value_axis(
    recorded: Recorded, streams: Sequence[Stream], shown: Sequence[bool] | None = None
) -> rrb.archetypes.ScalarAxis | None:
    """Return the value axis of some streams, or of the shown numbers of one; None if their range is not known."""
    known = [
        limits
        for stream in streams
        if (limits := recorded.ranges.get(stream.key)) is not None and limits.shape[1] == math.prod(stream.row_shape)
    ]
    if not known:
        return None
    ranges = np.concatenate(known, axis=1)[:, slice(None) if shown is None else np.array(shown)]
    low, high = float(ranges[0].min()), float(ranges[1].max())
    if not math.isfinite(high - low):
        return None
    margin = 0.05 * (high - low) or 0.5
    return rrb.archetypes.ScalarAxis(range=(low - margin, high + margin))


def title_of(recorded: Recorded, env: int | None, stream: Stream, agent: int) -> str:
    """Return the title of the view of a key, or of one agent's part of it."""
    key = " / ".join(stream.key)
    return with_env(recorded, env, f"{stream.agents[agent]}: {stream.key[-1]}" if stream.agents else key)


def with_env(recorded: Recorded, env: int | None, what: str) -> str:
    """Return a title with the environment in front, unless there is only one."""
    whose = " ".join(
        part for part in (recorded.below, "" if env is None or len(recorded.envs) == 1 else f"env {env}") if part
    )
    return f"{whose}: {what}" if whose else what
