"""Views of streams that have one of their own: pictures, scenes, bars, tensors and texts."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    shown = [shown for stream in recorded.of(env) for shown in views_of(stream)]
    return [
        shown.made(recorded, env, agent, name=title_of(recorded, env, shown.stream, agent))
        for shown in sorted(shown, key=lambda each: each.view.rank)
        for agent in range(shown.stream.agent_count)
    ]


def large_views(stream: Stream) -> list[Shown]:
    """Return the views of a stream that are shown on a wall: of pictures and scenes."""
    return [shown for shown in views_of(stream) if shown.view.is_large]


class Shown(NamedTuple):
    """A view of a stream.

    Attributes:
        stream: the stream.
        below: the part of the entity path behind that of the stream, at which it is drawn.
        view: the view.
    """

    stream: Stream
    below: str
    view: View

    def made(self, recorded: Recorded, env: int | None, agent: int, **rest: Any) -> rrb.View:
        """Return the view for an environment.

        Args:
            recorded: contents of the recording.
            env: environment index.
            agent: position of the agent.
            rest: further arguments, such as ``name``.
        """
        return self.view.made(self.path(recorded, env, agent), **rest)

    def path(self, recorded: Recorded, env: int | None, agent: int) -> str:
        """Return the path of the entity. The arguments are those of :meth:`made`."""
        return recorded.path(self.stream, env, agent) + self.below


def views_of(stream: Stream) -> list[Shown]:
    """Return the views of a stream. A kind whose view fails costs that view alone, with a warning."""
    found = []
    for below, kind in stream.drawing:
        try:
            view = kind.view(stream)
            if view is None:
                continue
            if isinstance(view, View):
                found.append(Shown(stream, below, view))
                continue
            why = f"it returned {view!r}, which is no torchrl_rerun.View"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        warn(f"{name_of(stream.key)} has no view in the layout: {type(kind).__name__}.view failed ({why})")
    return found
