"""The layout that the viewer opens with, made from what is recorded, and its parts, of which others can be made.

:func:`layout` is what ``RerunRecorder(..., blueprint=True)`` uses. For a layout of your own, pass a function of
:class:`Recorded` that puts parts together::

    import rerun.blueprint as rrb
    from torchrl_rerun import RerunRecorder
    from torchrl_rerun.layout import blueprint

    def mine(recorded):
        return rrb.Blueprint(
            rrb.Horizontal(blueprint.wall(recorded), *blueprint.plots(recorded, env=0)),
            *blueprint.panels(recorded),
        )

    RerunRecorder("run.rrd", blueprint=mine)
"""

from __future__ import annotations

import copyreg
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.kinds.kind import Plot, View
from torchrl_rerun.kinds.palette import color
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.kinds.streams import Key, Stream, batch_path, entity_path

MAX_CELLS = 4
MAX_SEEN_CELLS = 2
"""Environments that are shown with all that there is of them, without pictures and with; more are shown as a wall, with
details of a few."""

MAX_WALL = 64
"""Environments on a wall; the others are in the recording, and in the viewer's list of streams."""

MAX_TITLES = 16
"""Pictures on a wall that have a title each, which takes as much room as a small picture; of more the viewer says on
hovering whose they are."""

MAX_DETAILS = 8
"""Environments beside a wall that are shown with all that there is of them."""

MAX_NAMED = 8
"""Lines of a plot, of which positions and velocities are not told apart."""

MAX_LEGEND = 8
"""Lines that a legend names, half as many where a plot is small: of more it would cover what it explains. The viewer says
on hovering which line it is."""

MAX_BESIDE = 4
"""Agents whose plots are side by side; those of more are tabs."""

MAX_LINES = 16
"""Environments whose returns are lines of one plot."""

_DONE_FLAGS = ("done", "terminated", "truncated")

# Layouts are pickled: to go to the process that sends to a viewer, and to workers. Those that say how lines look couldn't
# be (rerun-sdk 0.41).
copyreg.pickle(
    rr.ComponentDescriptor, lambda told: (rr.ComponentDescriptor, (told.component, told.archetype, told.component_type))
)


@dataclass(frozen=True)
class Recorded:
    """What there is in a recording to be laid out.

    Attributes:
        streams: what is recorded of each environment.
        envs: environment indices; None: the recording is of one environment, as of one episode.
        fps: frames per second at which the viewer plays the ``frame`` timeline; None: the viewer's default.
        statistics: the keys of which there are statistics over all environments.
        below: the name of the entity below which all of it lies; empty: at the root, as it is recorded.
        around: whether of one episode, too, what is around the cursor is shown, as of a run; else it is shown whole.
        ranges: the smallest and the largest values of keys, ``[2, numbers of a row]``, between which they are plotted;
            those of other keys fill their plots.
    """

    streams: Sequence[Stream]
    envs: Sequence[int | None]
    fps: float | None = None
    statistics: Sequence[Key] = ()
    below: str = ""
    around: bool = False
    ranges: Mapping[Key, npt.NDArray[np.floating]] = field(default_factory=dict)

    @classmethod
    def of_schema(cls, schema: Schema, envs: Sequence[int | None]) -> Recorded:
        """What a recording says of itself.

        Args:
            schema: the schema in it.
            envs: environment indices.
        """
        streams = [stream for stream, _ in schema.described]
        return cls(streams, [None] if schema.split == "episode" else envs, schema.source.fps, schema.statistics)

    def of(self, env: int | None) -> list[Stream]:
        """What is recorded of an environment: what all share is with the first one."""
        return [stream for stream in self.streams if env == self.envs[0] or not stream.shared]

    def path(self, stream: Stream, env: int | None, lane: int = 0) -> str:
        """The entity path of a stream of an environment."""
        return self.under(entity_path(stream, env, lane))

    def origin(self, env: int | None) -> str:
        """The entity path below which an environment is."""
        return self.under("" if env is None else f"/env_{env}") or "/"

    def under(self, path: str) -> str:
        """Where something lies that would be at ``path`` in a recording by itself."""
        return f"/{self.below}{path}" if self.below else path


def layout(recorded: Recorded, *, live: bool = False) -> rrb.Blueprint:
    """The whole of it.

    Up to four environments have a cell each, or two if there are pictures. Of more there is a wall of their pictures, or
    of their returns, with the returns of all on one plot, or the statistics over all, and the details of a few. Details are
    of what is around the cursor, on one axis of time; what is of the whole run says so.

    Args:
        recorded: what there is.
        live: whether it is watched while it is recorded.
    """
    envs = recorded.envs
    are_seen = any(_large_view(stream) for stream in recorded.streams)
    if len(envs) > (MAX_SEEN_CELLS if are_seen else MAX_CELLS) or recorded.statistics:
        root: rrb.Container | rrb.View = _overview(recorded)
    else:
        # Two pictures side by side would be slivers: below one another each has its plots beside it.
        root = _cells(recorded, columns=1 if are_seen else 2)
    return rrb.Blueprint(root, *panels(recorded, live=live), auto_views=False)


def panels(recorded: Recorded, *, live: bool = False) -> list[rrb.BlueprintPart]:
    """Around the views: the time, by frames, and nothing else, or of one episode the list of all episodes, too.

    Args:
        recorded: what there is.
        live: whether it is watched while it is recorded: the newest frame is shown. Else it is played from the first one
            on, an episode again and again.
    """
    is_episode = recorded.envs[0] is None
    return [
        rrb.TimePanel(
            timeline="frame",
            fps=recorded.fps,
            state="collapsed",
            play_state="following" if live else "playing",
            loop_mode="all" if is_episode else "off",
        ),
        rrb.SelectionPanel(state="collapsed"),
        rrb.BlueprintPanel(state="expanded" if is_episode else "collapsed"),
    ]


def cell(recorded: Recorded, env: int | None) -> rrb.Container | rrb.View:
    """All that there is of one environment: pictures, with plots beside them.

    Args:
        recorded: what there is.
        env: the environment's index.
    """
    name = None if env is None else f"env {env}"
    alone = len(recorded.envs) == 1
    seen, plotted = pictures(recorded, env), plots(recorded, env)
    height = 1.0 if alone else 0.5  # two are below one another
    if not seen or not plotted:
        return _stack(seen or plotted, 6 if alone else 3, name, height=height)
    columns = 1 if len(seen) < 3 else 2
    return rrb.Horizontal(
        seen[0] if len(seen) == 1 else rrb.Grid(*seen, grid_columns=columns),
        _stack(plotted, 4 if alone else 3, height=height),
        name=name,
        column_shares=[3, 2] if alone else [1, 1],
    )


def pictures(recorded: Recorded, env: int | None) -> list[rrb.View]:
    """Return a view of each stream of an environment that has one: pictures and scenes, then bars, tensors and texts.

    Args:
        recorded: what there is.
        env: the environment's index.
    """
    shown = [(stream, view) for stream in recorded.of(env) if (view := stream.kind.view(stream)) is not None]
    return [
        view.make(origin=recorded.path(stream, env, lane), name=_named(recorded, env, stream, lane), **view.options)
        for stream, view in sorted(shown, key=lambda each: each[1].rank)
        for lane in range(stream.lanes)
    ]


def plots(recorded: Recorded, env: int | None) -> list[rrb.View | rrb.Container]:
    """Views of the numbers of an environment: rewards, its states as lanes, and every other key.

    Returns are left out where :func:`layout` shows them for the whole run; :func:`returns` is the part that does.

    Where there are several agents, what each has one number of is a plot with a line for each of them, and what each has
    several of is a plot for each of them, side by side.

    Args:
        recorded: what there is.
        env: the environment's index.
    """
    return list(_plots(recorded, env))


def wall(recorded: Recorded, envs: Sequence[int | None] | None = None) -> rrb.Container:
    """Return the pictures or scenes of many environments, or their returns if there are none, in a grid.

    Args:
        recorded: what there is.
        envs: which ones; None: the first 64.
    """
    shown = (recorded.envs if envs is None else envs)[:MAX_WALL]
    columns = math.ceil(math.sqrt(len(shown)))
    large = [(stream, view) for stream in recorded.streams if (view := _large_view(stream)) and not stream.shared]
    walls = [
        rrb.Grid(
            *(
                view.make(
                    origin=recorded.path(stream, env, lane),
                    name=f"env {env}",
                    titlebar=len(shown) <= MAX_TITLES,
                    **view.options,
                )
                for env in shown
            ),
            grid_columns=columns,
            name=_named(recorded, None, stream, lane),
        )
        for stream, view in large
        for lane in range(stream.lanes)
    ]
    if not walls:
        gains = [stream for stream in recorded.streams if stream.sums][:1]
        walls = [
            rrb.Grid(
                *(
                    _series(recorded, gains, env, f"env {env}", whole()) if gains else cell(recorded, env)
                    for env in shown
                ),
                grid_columns=columns,
                name="environments",
            )
        ]
    return walls[0] if len(walls) == 1 else rrb.Tabs(*walls, name="environments")


def returns(recorded: Recorded, envs: Sequence[int | None] | None = None) -> rrb.View:
    """The returns of several environments as lines of one plot, of the whole run.

    Args:
        recorded: what there is.
        envs: which ones; None: the first 16.
    """
    shown = (recorded.envs if envs is None else envs)[:MAX_LINES]
    sums = [stream for stream in recorded.streams if stream.sums]
    several = len(shown) > 1
    lines: dict[rr.EntityPath | str, Any] = {
        recorded.path(stream, env, lane): _line(
            " / ".join([*[f"env {env}"] * (several or not stream.agents), *stream.agents[lane : lane + 1]]),
            color(row if several else lane),
        )
        for stream in sums[:1]
        for row, env in enumerate(shown)
        for lane in range(stream.lanes)
    }
    some = "" if len(shown) == len(recorded.envs) else f" of the first {len(shown)} environments"
    return rrb.TimeSeriesView(
        origin="/",
        contents=list(lines),
        overrides=lines,
        name=f"episode_return{some}, whole run",
        axis_x=whole(),
        plot_legend=_legend(len(lines), MAX_LEGEND),
    )


def statistics(recorded: Recorded) -> list[rrb.View]:
    """Plots of the statistics over all environments, of the whole run: the mean, the range, and quantiles in between.

    Args:
        recorded: what there is.
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


def _cells(recorded: Recorded, columns: int) -> rrb.Container | rrb.View:
    """All that there is of each environment, and below it the returns of the whole run."""
    cells = [cell(recorded, env) for env in recorded.envs]
    each = cells[0] if len(cells) == 1 else rrb.Grid(*cells, grid_columns=columns, name="environments")
    if recorded.envs[0] is None or not any(stream.sums for stream in recorded.streams):
        return each
    return rrb.Vertical(each, returns(recorded), row_shares=[5, 1])


def _overview(recorded: Recorded) -> rrb.Container:
    """A wall, what all come to, and the details of a few."""
    of_each = rrb.Tabs(*(details(recorded, env) for env in recorded.envs[:MAX_DETAILS]), name="details")
    if recorded.statistics:
        shares = [1, 2] if any(_large_view(stream) for stream in recorded.streams) else [1, 1]
        left: rrb.Container = rrb.Vertical(rrb.Horizontal(*statistics(recorded)), wall(recorded), row_shares=shares)
    elif any(stream.sums for stream in recorded.streams):
        left = rrb.Vertical(wall(recorded), returns(recorded), row_shares=[3, 1])
    else:
        left = wall(recorded)
    return rrb.Horizontal(left, of_each, column_shares=[2, 1])


def details(recorded: Recorded, env: int | None) -> rrb.Container:
    """What there is of one environment, below one another: its first picture, and plots.

    Args:
        recorded: what there is.
        env: the environment's index.
    """
    views = [*pictures(recorded, env)[:1], *plots(recorded, env)]
    return _stack(views, 5, f"env {env}")


def _stack(
    views: Sequence[rrb.View | rrb.Container], most: int, name: str | None = None, *, height: float = 1.0
) -> rrb.Container:
    """Views below one another; those for which there is no room share the last place, as tabs. Lanes need less room.

    Args:
        views: the views.
        most: how many places there are.
        name: what it is called.
        height: which part of the viewer's it has.
    """
    parts: list[rrb.View | rrb.Container] = list(views)
    if len(views) > most:
        parts = [*views[: most - 1], rrb.Tabs(*views[most - 1 :])]
    return rrb.Vertical(*parts, row_shares=[_share(part, len(parts) - 1, height) for part in parts], name=name)


def _share(part: rrb.View | rrb.Container, others: int, height: float) -> float:
    """Of the height: lanes are as high as they are whatever there is beside them, so that three fit in a column."""
    lanes = part.contents if isinstance(part, rrb.StateTimelineView) else None
    return (0.12 + 0.28 * min(len(lanes), 4)) / height * max(others, 1) if isinstance(lanes, list) else 3.0


def _plots(recorded: Recorded, env: int | None) -> Iterator[rrb.View | rrb.Container]:
    """Rewards first, and returns by themselves, beside which rewards would be flat lines. Then come the lanes, but last if
    they hold nothing but the flags of the ends.

    What the environment says beside what the policy sees comes after all that.
    """
    streams = recorded.of(env)
    gains = [
        stream for stream in streams if stream.kind.plot is Plot.LINES and (stream.sums or "reward" in stream.key[-1])
    ]
    others = [stream for stream in _numbers(streams) if stream not in gains]
    states = _lanes(streams)
    second = any(stream.key[-1] not in _DONE_FLAGS for stream in states)
    of_each = " of each agent" if any(stream.agents for stream in gains) else ""
    rewards, sums = ([stream for stream in gains if bool(stream.sums) is summed] for summed in (False, True))
    if rewards:
        yield _series(recorded, rewards, env, _titled(recorded, env, f"reward{of_each}"))
    if sums and not _is_in_returns(recorded, env):
        yield _series(recorded, sums, env, _titled(recorded, env, f"return{of_each}"))
    if states and second:
        yield _state_lanes(recorded, states, env)
    for stream in sorted(others, key=_rank):
        yield _numbers_of(recorded, stream, env)
    if states and not second:
        yield _state_lanes(recorded, states, env)


def _is_in_returns(recorded: Recorded, env: int | None) -> bool:
    """Whether its return is on the plot of the whole run, or on the wall that takes its place beside statistics."""
    if env is None or recorded.below:  # of what is compared there is a plot of what episodes came to
        return False
    return not (recorded.statistics and any(_large_view(stream) for stream in recorded.streams))


def _rank(stream: Stream) -> int:
    """Actions, then what the policy sees, then what is only told beside it."""
    if stream.key[-1].startswith("action"):
        return 0
    return 2 if "info" in stream.key or stream.key[-1] == "step_count" else 1


def _numbers_of(recorded: Recorded, stream: Stream, env: int | None) -> rrb.View | rrb.Container:
    """A plot of a key, or one of each agent's side by side."""
    title, axis, numbers = " / ".join(stream.key), _time_axis(recorded, env), math.prod(stream.row_shape)
    if len(stream.agents) < 2 or numbers == 1:
        speeds = [name.endswith(" vel") for name in stream.kind.names]
        if len(speeds) > MAX_NAMED and any(speeds) and not all(speeds):
            path = recorded.path(stream, env)
            return rrb.Horizontal(
                *(
                    rrb.TimeSeriesView(
                        origin=path,
                        name=_titled(recorded, env, f"{what} of {title}"),
                        axis_x=axis,
                        overrides={path: rr.SeriesLines(visible_series=shown).visualizer()},
                        axis_y=_value_axis(recorded, [stream], shown),
                        # The colours are the same.
                        plot_legend=_legend(sum(shown) if what == "positions" else 0, _room(recorded)),
                    )
                    for what, shown in (("positions", [not each for each in speeds]), ("velocities", speeds))
                ),
                name=_titled(recorded, env, title),
            )
        return _series(recorded, [stream], env, _titled(recorded, env, title))
    beside = stream.lanes <= MAX_BESIDE
    views = [
        rrb.TimeSeriesView(
            origin=recorded.path(stream, env, lane),
            name=_named(recorded, env, stream, lane),
            axis_x=axis,
            axis_y=_value_axis(recorded, [stream]),
            plot_legend=_legend(numbers if lane == 0 else 0, _room(recorded) // 2 if beside else _room(recorded)),
        )
        for lane in range(stream.lanes)
    ]
    side = rrb.Horizontal if beside else rrb.Tabs
    return side(*views, name=_titled(recorded, env, title))


def _state_lanes(recorded: Recorded, states: Sequence[Stream], env: int | None) -> rrb.View:
    paths = [recorded.path(stream, env, lane) for stream in states for lane in range(stream.lanes)]
    title = ", ".join(dict.fromkeys(stream.key[-1] for stream in states))
    return rrb.StateTimelineView(
        origin=recorded.origin(env),
        contents=paths,
        name=_titled(recorded, env, title),
        time_view=_time_axis(recorded, env),
    )


def _series(
    recorded: Recorded,
    streams: Sequence[Stream],
    env: int | None,
    name: str,
    axis: rrb.archetypes.TimeAxis | None = None,
) -> rrb.TimeSeriesView:
    paths = [recorded.path(stream, env, lane) for stream in streams for lane in range(stream.lanes)]
    lines = sum(stream.lanes * math.prod(stream.row_shape) for stream in streams)
    return rrb.TimeSeriesView(
        origin=recorded.origin(env),
        contents=paths,
        name=name,
        axis_x=axis or _time_axis(recorded, env),
        axis_y=_value_axis(recorded, streams),
        plot_legend=_legend(lines, _room(recorded)),
    )


def _line(name: str, shade: int) -> rrb.Visualizer:
    """How a line is called and coloured in one view, whatever it is in others."""
    return rr.SeriesLines(names=name, colors=shade).visualizer()


def _legend(lines: int, room: int) -> rrb.PlotLegend:
    """What the lines are called, above what is long ago; of a single one the title says it."""
    return rrb.PlotLegend(rrb.Corner2D.LeftTop, visible=1 < lines <= room)


def _room(recorded: Recorded) -> int:
    """How many lines a legend may name beside what there is of other environments."""
    return MAX_LEGEND if len(recorded.envs) == 1 else MAX_LEGEND // 2


def whole() -> rrb.archetypes.TimeAxis:
    """An axis of all of the time that there is, whenever a plot's own lines begin and end."""
    return _axis(rr.TimeRangeBoundary.infinite(), rr.TimeRangeBoundary.infinite())


def around_the_cursor() -> rrb.archetypes.TimeAxis:
    """An axis of what was just before and will be just after the moment shown: a long run on one would be a smear."""
    return _axis(rr.TimeRangeBoundary.cursor_relative(seq=-60), rr.TimeRangeBoundary.cursor_relative(seq=30))


def _axis(start: rr.TimeRangeBoundary, end: rr.TimeRangeBoundary) -> rrb.archetypes.TimeAxis:
    return rrb.archetypes.TimeAxis(view_range=rr.TimeRange(start=start, end=end))


def _time_axis(recorded: Recorded, env: int | None) -> rrb.archetypes.TimeAxis:
    """That of the details, in all of their views."""
    return whole() if env is None and not recorded.around else around_the_cursor()


def _value_axis(
    recorded: Recorded, streams: Sequence[Stream], shown: Sequence[bool] | None = None
) -> rrb.archetypes.ScalarAxis | None:
    """The range of some streams, or of the numbers of one that are shown, and some more; None: whatever fills the plot."""
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


def _named(recorded: Recorded, env: int | None, stream: Stream, lane: int) -> str:
    """The title of a view of one agent's part of a key."""
    key = " / ".join(stream.key)
    return _titled(recorded, env, f"{stream.agents[lane]}: {stream.key[-1]}" if stream.agents else key)


def _titled(recorded: Recorded, env: int | None, what: str) -> str:
    """Which environment it is of needn't be said of the only one."""
    whose = " ".join(
        part for part in (recorded.below, "" if env is None or len(recorded.envs) == 1 else f"env {env}") if part
    )
    return f"{whose}: {what}" if whose else what


def _large_view(stream: Stream) -> View | None:
    """Return the view of a stream that is shown on a wall: of pictures and scenes."""
    view = stream.kind.view(stream)
    return view if view is not None and view.is_large else None


def _numbers(streams: Sequence[Stream]) -> list[Stream]:
    return [stream for stream in streams if stream.kind.plot is Plot.LINES]


def _lanes(streams: Sequence[Stream]) -> list[Stream]:
    """All states, actions first; ``done`` only where neither ``terminated`` nor ``truncated`` says why."""
    states = [stream for stream in streams if stream.kind.plot is Plot.LANES]
    names = {stream.key[-1] for stream in states}
    shown = [stream for stream in states if stream.key[-1] != "done" or not names & {"terminated", "truncated"}]
    return sorted(shown, key=lambda stream: stream.key[-1] in _DONE_FLAGS)
