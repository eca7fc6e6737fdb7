"""Layouts: the blueprint that the viewer opens with, and the parts that others can be made of.

:func:`layout` is the one of ``RerunRecorder(..., blueprint=True)``. For a layout of your own, pass a function of
:class:`Recorded` that puts parts together::

    import rerun.blueprint as rrb
    from torchrl_rerun import RerunRecorder, layout

    def mine(recorded):
        return rrb.Blueprint(
            rrb.Horizontal(layout.wall(recorded), *layout.plots(recorded, env=0)),
            *layout.panels(recorded),
        )

    RerunRecorder("run.rrd", blueprint=mine)
"""

from torchrl_rerun.layout.axes import around_the_cursor, whole
from torchrl_rerun.layout.blueprint import layout, panels
from torchrl_rerun.layout.parts import cell, details, returns, statistics, wall
from torchrl_rerun.layout.plots import plots
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.layout.views import pictures

__all__ = [
    "Recorded",
    "around_the_cursor",
    "cell",
    "details",
    "layout",
    "panels",
    "pictures",
    "plots",
    "returns",
    "statistics",
    "wall",
    "whole",
]
