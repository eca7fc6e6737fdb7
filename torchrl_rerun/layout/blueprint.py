"""The layout that the viewer opens with, made from the contents of a recording."""

from __future__ import annotations

import copyreg

import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.layout.parts import cell, details, returns, statistics, wall
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.layout.views import large_views

MAX_CELLS = 4
MAX_CELLS_WITH_PICTURES = 2
"""Environments that have a cell each, without pictures and with. More have a wall, and details of a few."""

MAX_DETAILS = 8
"""Environments beside a wall whose details are shown."""

# rerun-sdk 0.41 can't pickle the descriptors in layouts that say how lines look. Layouts are pickled on their way to the
# process that sends to a viewer, and to workers.
copyreg.pickle(
    rr.ComponentDescriptor, lambda told: (rr.ComponentDescriptor, (told.component, told.archetype, told.component_type))
)


def layout(recorded: Recorded, *, live: bool = False) -> rrb.Blueprint:
    """Return the layout of a recording.

    - Up to four environments have a cell each; up to two if there are pictures.
    - More environments have a wall of their pictures, or of their returns. Beside it are the returns of all in one plot, or
      the statistics over all, and the details of a few.
    - Details show the time around the cursor, on one axis. Plots of the whole run have titles that say so.

    Args:
        recorded: contents of the recording.
        live: whether the recording is watched while it grows.
    """
    envs = recorded.envs
    has_pictures = any(large_views(stream) for stream in recorded.streams)
    if len(envs) > (MAX_CELLS_WITH_PICTURES if has_pictures else MAX_CELLS) or recorded.statistics:
        root: rrb.Container | rrb.View = _overview(recorded)
    else:
        # Two pictures side by side would be slivers: below one another each has its plots beside it.
        root = _cells(recorded, columns=1 if has_pictures else 2)
    return rrb.Blueprint(root, *panels(recorded, live=live), auto_views=False)


def panels(recorded: Recorded, *, live: bool = False) -> list[rrb.BlueprintPart]:
    """Return the panels around the views: the time by frames; for recordings of one episode also the list of episodes.

    Args:
        recorded: contents of the recording.
        live: whether the viewer shows the newest frame. Default: False, it plays from the first frame, an episode again
            and again.
    """
    is_episode = recorded.is_episode
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


def _cells(recorded: Recorded, columns: int) -> rrb.Container | rrb.View:
    """Return a cell for each environment, and below them the returns of the whole run."""
    cells = [cell(recorded, env) for env in recorded.envs]
    each = cells[0] if len(cells) == 1 else rrb.Grid(*cells, grid_columns=columns, name="environments")
    if recorded.is_episode or not any(stream.reward_key for stream in recorded.streams):
        return each
    return rrb.Vertical(each, returns(recorded), row_shares=[5, 1])


def _overview(recorded: Recorded) -> rrb.Container:
    """Return a wall, the returns or statistics of all environments, and the details of a few."""
    of_each = rrb.Tabs(*(details(recorded, env) for env in recorded.envs[:MAX_DETAILS]), name="details")
    if recorded.statistics:
        shares = [1, 2] if any(large_views(stream) for stream in recorded.streams) else [1, 1]
        left: rrb.Container | rrb.View = rrb.Vertical(
            rrb.Horizontal(*statistics(recorded)), wall(recorded), row_shares=shares
        )
    elif any(stream.reward_key for stream in recorded.streams):
        left = rrb.Vertical(wall(recorded), returns(recorded), row_shares=[3, 1])
    else:
        left = wall(recorded)
    return rrb.Horizontal(left, of_each, column_shares=[2, 1])
