"""Parts of a layout: a cell for an environment, a wall of many, the returns and the statistics of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.kinds.palette import color
from torchrl_rerun.kinds.streams import batch_path
from torchrl_rerun.layout.axes import MAX_LEGEND, legend, title_of, whole
from torchrl_rerun.layout.plots import plots, series
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.layout.views import large_views, pictures

MAX_WALL = 64
"""Environments on a wall. The viewer's list of streams has the others."""

MAX_TITLES = 16
"""Pictures on a wall that have titles, which take as much room as a small picture. The viewer names more on hovering."""

MAX_LINES = 16
"""Environments whose returns are lines of one plot."""

PLOT_SHARE = 3.0
"""Height of a plot, in shares of its column."""

AXIS_SHARE, LANE_SHARE = 0.12, 0.28
"""Height of the axis below lanes, and of one lane, in shares of a column of the viewer's height with one plot beside it."""

MAX_TALL_LANES = 4
"""Lanes that a view is made higher for. It scrolls to the others."""


def cell(recorded: Recorded, env: int | None) -> rrb.Container | rrb.View:
    """Return all views of one environment: pictures, with plots beside them.

    Args:
        recorded: contents of the recording.
        env: environment index.
    """
    name = None if env is None else f"env {env}"
    alone = len(recorded.envs) == 1
    seen, plotted = pictures(recorded, env), plots(recorded, env)
    height = 1.0 if alone else 0.5  # two are below one another
    if not seen or not plotted:
        return stack(seen or plotted, 6 if alone else 3, name, height=height)
    columns = 1 if len(seen) < 3 else 2
    return rrb.Horizontal(
        seen[0] if len(seen) == 1 else _seen(recorded, env, seen, columns),
        stack(plotted, 4 if alone else 3, height=height),
        name=name,
        column_shares=[3, 2] if alone else [1, 1],
    )


def _seen(recorded: Recorded, env: int | None, seen: Sequence[rrb.View], columns: int) -> rrb.Container:
    """Return pictures and scenes in a grid, which get most of the room, above views that need less."""
    large = sum(stream.agent_count for stream in recorded.of(env) for _ in large_views(stream))
    rest = seen[large:]
    if not large or not rest:
        return rrb.Grid(*seen, grid_columns=columns)
    above = seen[0] if large == 1 else rrb.Grid(*seen[:large], grid_columns=2)
    below = rest[0] if len(rest) == 1 else rrb.Grid(*rest, grid_columns=2)
    return rrb.Vertical(above, below, row_shares=[3, 1 if len(rest) < 3 else 2])


def details(recorded: Recorded, env: int | None) -> rrb.Container:
    """Return the first picture of one environment and its plots, below one another.

    Args:
        recorded: contents of the recording.
        env: environment index.
    """
    views = [*pictures(recorded, env)[:1], *plots(recorded, env)]
    return stack(views, 5, f"env {env}")


def stack(
    views: Sequence[rrb.View | rrb.Container], most: int, name: str | None = None, *, height: float = 1.0
) -> rrb.Container:
    """Return views below one another. Views beyond the last place share it, as tabs. Lanes are lower than plots.

    Args:
        views: the views.
        most: number of places.
        name: title of the container.
        height: height of the container as a share of the viewer's.
    """
    parts: list[rrb.View | rrb.Container] = list(views)
    if len(views) > most:
        parts = [*views[: most - 1], rrb.Tabs(*views[most - 1 :])]
    return rrb.Vertical(*parts, row_shares=[_share(part, len(parts) - 1, height) for part in parts], name=name)


def _share(part: rrb.View | rrb.Container, others: int, height: float) -> float:
    """Return the share of the height that a view gets. Lanes keep their height, so that three fit in a column."""
    lanes = part.contents if isinstance(part, rrb.StateTimelineView) else None
    if not isinstance(lanes, list):
        return PLOT_SHARE
    return (AXIS_SHARE + LANE_SHARE * min(len(lanes), MAX_TALL_LANES)) / height * max(others, 1)


def wall(recorded: Recorded, envs: Sequence[int | None] | None = None) -> rrb.Container | rrb.View:
    """Return the pictures or scenes of many environments, or their returns if there are none, in a grid.

    Args:
        recorded: contents of the recording.
        envs: environment indices. Default: the first 64.
    """
    shown = (recorded.envs if envs is None else envs)[:MAX_WALL]
    columns = math.ceil(math.sqrt(len(shown)))
    large = [shown for stream in recorded.streams for shown in large_views(stream) if not stream.shared]
    walls: list[rrb.Container | rrb.View] = []
    for each in large:
        for agent in range(each.stream.agent_count):
            name = title_of(recorded, None, each.stream, agent)
            if each.view.together is not None:
                walls.append(each.view.together([each.path(recorded, env, agent) for env in shown], name))
                continue
            views = (
                each.made(recorded, env, agent, name=f"env {env}", titlebar=len(shown) <= MAX_TITLES) for env in shown
            )
            walls.append(rrb.Grid(*views, grid_columns=columns, name=name))
    if not walls:
        of_returns = [stream for stream in recorded.streams if stream.reward_key][:1]
        walls = [
            rrb.Grid(
                *(
                    series(recorded, of_returns, env, f"env {env}", whole()) if of_returns else cell(recorded, env)
                    for env in shown
                ),
                grid_columns=columns,
                name="environments",
            )
        ]
    return walls[0] if len(walls) == 1 else rrb.Tabs(*walls, name="environments")


def returns(recorded: Recorded, envs: Sequence[int | None] | None = None) -> rrb.View:
    """Return a plot of the returns of several environments, of the whole run.

    Args:
        recorded: contents of the recording.
        envs: environment indices. Default: the first 16.
    """
    shown = (recorded.envs if envs is None else envs)[:MAX_LINES]
    of_returns = [stream for stream in recorded.streams if stream.reward_key]
    several = len(shown) > 1
    lines: dict[rr.EntityPath | str, Any] = {
        recorded.path(stream, env, agent): _line(
            " / ".join([*[f"env {env}"] * (several or not stream.agents), *stream.agents[agent : agent + 1]]),
            color(row if several else agent),
        )
        for stream in of_returns[:1]
        for row, env in enumerate(shown)
        for agent in range(stream.agent_count)
    }
    some = "" if len(shown) == len(recorded.envs) else f" of the first {len(shown)} environments"
    return rrb.TimeSeriesView(
        origin="/",
        contents=list(lines),
        overrides=lines,
        name=f"episode_return{some}, whole run",
        axis_x=whole(),
        plot_legend=legend(len(lines), MAX_LEGEND),
    )


def statistics(recorded: Recorded) -> list[rrb.View]:
    """Return plots of the statistics over all environments, of the whole run: mean, range and quantiles.

    Args:
        recorded: contents of the recording.
    """
    return [
        rrb.TimeSeriesView(
            origin=recorded.under(batch_path(key)),
            name=f"{' / '.join(key)} of all environments, whole run",
            axis_x=whole(),
            plot_legend=rrb.PlotLegend(rrb.Corner2D.LeftTop, visible=number == 0),  # the colours are the same
        )
        for number, key in enumerate(recorded.statistics)
    ]


def _line(name: str, shade: int) -> rrb.Visualizer:
    """Return the name and the colour of a line in one view."""
    return rr.SeriesLines(names=name, colors=shade).visualizer()
