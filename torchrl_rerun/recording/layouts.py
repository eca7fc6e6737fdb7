"""Layouts: the user's, or one that is made from the streams of a recording."""

from __future__ import annotations

from collections.abc import Callable

import rerun.blueprint as rrb

from torchrl_rerun.errors import warn
from torchrl_rerun.layout.blueprint import layout
from torchrl_rerun.layout.recorded import Recorded

Wanted = bool | rrb.Blueprint | Callable[[Recorded], rrb.Blueprint]
"""The user's layout, a function that makes one, or whether there is one."""


def layout_of(wanted: Wanted, recorded: Recorded, *, live: bool) -> rrb.Blueprint | None:
    """Return the layout of a recording; None if there is to be none.

    If the user's function fails, the layout is made from the streams, with a warning: training goes on.

    Args:
        wanted: the user's layout, a function that makes one, or whether there is one.
        recorded: the streams and environments of the recording.
        live: whether the layout is for live viewers.
    """
    if wanted is False or isinstance(wanted, rrb.Blueprint):
        return wanted or None
    if callable(wanted):
        try:
            made: object = wanted(recorded)
        except Exception as error:
            made = error
        if isinstance(made, rrb.Blueprint):
            return made
        warn(f"blueprint={wanted!r} gave {made!r} instead of a layout: there is one made from the streams instead")
    return layout(recorded, live=live)
