"""Views of streams that have one of their own: pictures, scenes, bars, tensors and texts."""

from __future__ import annotations

import rerun.blueprint as rrb

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.kind import View
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.layout.axes import title_of
from torchrl_rerun.layout.recorded import Recorded


def pictures(recorded: Recorded, env: int | None) -> list[rrb.View]:
    """Return a view of each stream of an environment that has one: pictures and scenes, then bars, tensors and texts.

    Args:
        recorded: contents of the recording.
        env: environment index.
    """
    shown = [(stream, view) for stream in recorded.of(env) if (view := view_of(stream)) is not None]
    return [
        view.made(recorded.path(stream, env, agent), name=title_of(recorded, env, stream, agent))
        for stream, view in sorted(shown, key=lambda each: each[1].rank)
        for agent in range(stream.agent_count)
    ]


def large_view(stream: Stream) -> View | None:
    """Return the view of a stream that is shown on a wall: of pictures and scenes."""
    view = view_of(stream)
    return view if view is not None and view.is_large else None


def view_of(stream: Stream) -> View | None:
    """Return the view of a stream, or None. A kind whose view fails costs that view alone, with a warning."""
    try:
        view = stream.kind.view(stream)
        if view is None or isinstance(view, View):
            return view
        why = f"it returned {view!r}, which is no torchrl_rerun.View"
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    warn(f"{name_of(stream.key)} has no view in the layout: {type(stream.kind).__name__}.view failed ({why})")
    return None
