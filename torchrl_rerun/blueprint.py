"""The layout that the viewer opens with: a cell per environment, made from its streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.streams import PICTURES, Key, Stream, batch_path, entity_path

MAX_CELLS = 16
"""Environments that are shown at once; the others are in the recording, and in the viewer's list of streams."""

_DONE_FLAGS = ("done", "terminated", "truncated")


def layout(
    streams: Sequence[Stream], envs: Sequence[int | None], fps: float | None = None, statistics: Sequence[Key] = ()
) -> rrb.Blueprint:
    """A grid of environments, each with its images, its reward and return, its states and its other numbers.

    Above it are the statistics over all environments, where there are any.

    Args:
        streams: what is recorded of each environment.
        envs: environment indices, of which the first 16 get a cell; None: the recording is of one environment.
        fps: frames per second at which the viewer plays the ``frame`` timeline; None: the viewer's default.
        statistics: the keys of which there are statistics over all environments.
    """
    shown = envs[:MAX_CELLS]
    crowded = len(shown) > 4
    cells = [_cell(streams, env, alone=len(shown) == 1, first=env == envs[0], crowded=crowded) for env in shown]
    # Two or three pictures side by side would be slivers: below one another each has its plots beside it.
    columns = 1 if len(cells) < 4 and any(stream.is_picture for stream in streams) else None
    grid = rrb.Grid(*cells, grid_columns=columns, name="environments") if len(cells) > 1 else cells[0]
    return rrb.Blueprint(
        rrb.Vertical(_overview(statistics), grid, row_shares=[1, 3]) if statistics else grid,
        rrb.TimePanel(timeline="frame", fps=fps, state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        # Of one episode: the list of episodes is above it.
        rrb.BlueprintPanel(state="expanded" if shown[0] is None else "collapsed"),
        auto_views=False,
    )


def _overview(statistics: Sequence[Key]) -> rrb.Container:
    return rrb.Horizontal(
        *(
            rrb.TimeSeriesView(origin=batch_path(key), name=f"all environments: {' / '.join(key)}")
            for key in statistics
        ),
        name="all environments",
    )


def _cell(
    streams: Sequence[Stream], env: int | None, *, alone: bool, first: bool, crowded: bool
) -> rrb.Container | rrb.View:
    shown = [stream for stream in streams if first or not stream.shared]
    pictures = list(_pictures(shown, env))
    plots = list(_plots(shown, env, legends=not crowded))
    name = None if env is None else f"env {env}"
    if not plots or not pictures:
        return _stack(pictures or plots, 6 if alone else 3 if crowded else 4, name=name)
    return rrb.Horizontal(
        _stack(pictures, 3 if alone else 2),
        _stack(plots, 4 if alone else 3),
        name=name,
        column_shares=[3, 2] if alone else [1, 1],
    )


def _stack(views: Sequence[rrb.View], most: int, name: str | None = None) -> rrb.Container:
    """Views below one another; those for which there is no room share the last place, as tabs."""
    if len(views) <= most:
        return rrb.Vertical(*views, name=name)
    return rrb.Vertical(*views[: most - 1], rrb.Tabs(*views[most - 1 :]), name=name)


def _pictures(streams: Sequence[Stream], env: int | None) -> Iterator[rrb.View]:
    """Images, depth, segmentations, tensors and texts, in this order."""
    views = {
        **dict.fromkeys(PICTURES, rrb.Spatial2DView),
        "tensor": rrb.TensorView,
        "text": rrb.TextDocumentView,
    }
    for kind, view in views.items():
        for stream in streams:
            if stream.kind == kind:
                for lane in range(stream.lanes):
                    yield view(origin=entity_path(stream, env, lane), name=_title(stream, env, lane))


def _plots(streams: Sequence[Stream], env: int | None, *, legends: bool) -> Iterator[rrb.View]:
    """Reward and return on one plot, all states as lanes of one view, and every other key of numbers on its own.

    The lanes come second, but last if they hold nothing but the flags of the episodes' ends.
    """
    numbers = [stream for stream in streams if stream.kind == "scalars"]
    gains = [stream for stream in numbers if stream.sums or "reward" in stream.key[-1]]
    states = _lanes(streams)
    second = any(stream.key[-1] not in _DONE_FLAGS for stream in states)
    if gains:
        yield _series(gains, env, _named(env, "reward and return"), legend=legends)
    if states and second:
        yield _state_lanes(states, env)
    for stream in numbers:
        if stream not in gains:
            yield _series([stream], env, _title(stream, env), legend=legends, axis=_around_the_cursor(env))
    if states and not second:
        yield _state_lanes(states, env)


def _state_lanes(states: Sequence[Stream], env: int | None) -> rrb.View:
    paths = [entity_path(stream, env, lane) for stream in states for lane in range(stream.lanes)]
    title = ", ".join(dict.fromkeys(stream.key[-1] for stream in states))
    return rrb.StateTimelineView(
        origin=_origin(env), contents=paths, name=_named(env, title), time_view=_around_the_cursor(env)
    )


def _series(
    streams: Sequence[Stream], env: int | None, name: str, *, legend: bool, axis: rrb.archetypes.TimeAxis | None = None
) -> rrb.TimeSeriesView:
    paths = [entity_path(stream, env, lane) for stream in streams for lane in range(stream.lanes)]
    return rrb.TimeSeriesView(
        origin=_origin(env), contents=paths, name=name, axis_x=axis, plot_legend=rrb.PlotLegend(visible=legend)
    )


def _around_the_cursor(env: int | None) -> rrb.archetypes.TimeAxis | None:
    """What was just before and will be just after the moment shown: a long run on one axis would be a smear.

    None: a recording of one episode is shown whole.
    """
    if env is None:
        return None
    before, after = rr.TimeRangeBoundary.cursor_relative(seq=-60), rr.TimeRangeBoundary.cursor_relative(seq=30)
    return rrb.archetypes.TimeAxis(view_range=rr.TimeRange(start=before, end=after))


def _title(stream: Stream, env: int | None, lane: int = 0) -> str:
    parts = [
        *stream.key,
        *(stream.agents[lane : lane + 1] if stream.is_picture or stream.kind in ("tensor", "text") else ()),
    ]
    return _named(env, " / ".join(parts))


def _named(env: int | None, what: str) -> str:
    return what if env is None else f"env {env}: {what}"


def _origin(env: int | None) -> str:
    return "/" if env is None else f"/env_{env}"


def _lanes(streams: Sequence[Stream]) -> list[Stream]:
    """All states, actions first; ``done`` only where neither ``terminated`` nor ``truncated`` says why."""
    states = [stream for stream in streams if stream.kind == "state"]
    names = {stream.key[-1] for stream in states}
    shown = [stream for stream in states if stream.key[-1] != "done" or not names & {"terminated", "truncated"}]
    return sorted(shown, key=lambda stream: stream.key[-1] in _DONE_FLAGS)
