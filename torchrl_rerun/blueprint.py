"""The layout that the viewer opens with: a cell per environment, made from its streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.columns import entity_path
from torchrl_rerun.streams import Stream

MAX_CELLS = 16
"""Environments that are shown at once; the others are in the recording, and in the viewer's list of streams."""

_DONE_FLAGS = ("done", "terminated", "truncated")


def layout(streams: Sequence[Stream], envs: Sequence[int], fps: float | None = None) -> rrb.Blueprint:
    """A grid of environments, each with its images, its reward and return, its states and its other numbers.

    Args:
        streams: what is recorded of each environment.
        envs: environment indices; the first 16 get a cell.
        fps: frames per second at which the viewer plays the ``frame`` timeline; None: the viewer's default.
    """
    cells = [_cell(streams, env, alone=len(envs) == 1, first=env == envs[0]) for env in envs[:MAX_CELLS]]
    # Two or three pictures side by side would be slivers: below one another each has its plots beside it.
    columns = 1 if len(cells) < 4 and any(stream.kind == "image" for stream in streams) else None
    return rrb.Blueprint(
        rrb.Grid(*cells, grid_columns=columns, name="environments") if len(cells) > 1 else cells[0],
        rrb.TimePanel(timeline="frame", fps=fps, state="collapsed"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.BlueprintPanel(state="collapsed"),
        auto_views=False,
    )


def _cell(streams: Sequence[Stream], env: int, *, alone: bool, first: bool) -> rrb.Container | rrb.View:
    shown = [stream for stream in streams if first or not stream.shared]
    pictures = list(_pictures(shown, env))
    plots = list(_plots(shown, env))
    name = f"env {env}"
    if not plots or not pictures:
        return rrb.Vertical(*(pictures or plots), name=name)
    beside = rrb.Vertical(*plots)
    return rrb.Horizontal(rrb.Vertical(*pictures), beside, name=name, column_shares=[3, 2] if alone else [1, 1])


def _pictures(streams: Sequence[Stream], env: int) -> Iterator[rrb.View]:
    for stream in streams:
        for lane in range(stream.lanes):
            path, title = entity_path(stream, env, lane), _title(stream, env, lane)
            if stream.kind == "image":
                yield rrb.Spatial2DView(origin=path, name=title)
            elif stream.kind == "tensor":
                yield rrb.TensorView(origin=path, name=title)
            elif stream.kind == "text":
                yield rrb.TextDocumentView(origin=path, name=title)


def _plots(streams: Sequence[Stream], env: int) -> Iterator[rrb.View]:
    """Reward and return on one plot, all states as lanes of one view, then the observations, a plot each."""
    numbers = [stream for stream in streams if stream.kind == "scalars"]
    gains = [stream for stream in numbers if "reward" in stream.key[-1] or "episode_return" in stream.key[-1]]
    lanes = _lanes(streams)
    if gains:
        yield _series(gains, env, f"env {env}: reward and return")
    if lanes:
        paths = [entity_path(stream, env, lane) for stream in lanes for lane in range(stream.lanes)]
        yield rrb.StateTimelineView(
            origin=f"/env_{env}", contents=paths, name=f"env {env}: {_list(lanes)}", time_view=_around_the_cursor()
        )
    for stream in numbers:
        if stream not in gains:
            yield _series([stream], env, _title(stream, env), axis=_around_the_cursor())


def _series(
    streams: Sequence[Stream], env: int, name: str, axis: rrb.archetypes.TimeAxis | None = None
) -> rrb.TimeSeriesView:
    paths = [entity_path(stream, env, lane) for stream in streams for lane in range(stream.lanes)]
    return rrb.TimeSeriesView(origin=f"/env_{env}", contents=paths, name=name, axis_x=axis)


def _around_the_cursor() -> rrb.archetypes.TimeAxis:
    """What was just before and will be just after the moment shown: a long run on one axis would be a smear."""
    before, after = rr.TimeRangeBoundary.cursor_relative(seq=-60), rr.TimeRangeBoundary.cursor_relative(seq=30)
    return rrb.archetypes.TimeAxis(view_range=rr.TimeRange(start=before, end=after))


def _title(stream: Stream, env: int, lane: int = 0) -> str:
    parts = [*stream.key, *(stream.agents[lane : lane + 1] if stream.kind in ("image", "tensor", "text") else ())]
    return f"env {env}: {' / '.join(parts)}"


def _lanes(streams: Sequence[Stream]) -> list[Stream]:
    """All states, actions first; ``done`` only where neither ``terminated`` nor ``truncated`` says why."""
    states = [stream for stream in streams if stream.kind == "state"]
    names = {stream.key[-1] for stream in states}
    shown = [stream for stream in states if stream.key[-1] != "done" or not names & {"terminated", "truncated"}]
    return sorted(shown, key=lambda stream: stream.key[-1] in _DONE_FLAGS)


def _list(streams: Sequence[Stream]) -> str:
    return ", ".join(dict.fromkeys(stream.key[-1] for stream in streams))
