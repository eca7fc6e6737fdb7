"""The last step, which may still change: transforms behind the recorder set flags after the recorder has seen the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torchrl_rerun.blocks.block import Arrays, FrameValues
from torchrl_rerun.blocks.events import Event
from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.recording.looks import Taken


class Revision(NamedTuple):
    """The outcome of a step when all transforms have seen it.

    Attributes:
        observed: the observations of all environments, as for :meth:`Recording.step`.
        stepped: the other values that came of the step, as for :meth:`Recording.step`.
        ends: which episodes ended, of all environments; None: none did.
    """

    observed: Arrays
    stepped: Arrays
    ends: Ends | None


class Pending:
    """The outcome of a step isn't known yet."""


PENDING = Pending()

Revise = Callable[[bool], Revision | Pending | None]
"""Takes whether it can't be called again later; returns the outcome of a step if that has changed since, else None."""


class LastStep(NamedTuple):
    """The last step, while it may still change.

    Attributes:
        event: the step.
        values: the values that were recorded, of the recorded environments.
        revise: returns what has changed.
        looks: look at the environments as they are since.
    """

    event: Event
    values: FrameValues
    revise: Revise
    looks: Sequence[Taken]
