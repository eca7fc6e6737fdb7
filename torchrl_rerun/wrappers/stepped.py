"""Steps of environments as wrappers see them, and resets within these steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.wrappers.readers import Reader

Mask = npt.NDArray[np.bool_] | None
"""Which environments are meant, bool ``[envs]``; None: all."""

Seeds = Sequence[int | None]
"""The seed of each environment; None: unknown. Empty: none is known."""

NO_EXTRAS: Mapping[Any, Any] = {}


class Stepped(NamedTuple):
    """What a call of ``step`` took and returned.

    Attributes:
        observed: observation, info, terminated, truncated and done.
        outcome: reward and info.
        acted: the action, and what else the policy wrote, by its key.
    """

    observed: tuple[Any, Any, Any, Any, Any]
    outcome: tuple[Any, Any]
    acted: tuple[Any, Any]


class Within(NamedTuple):
    """Resets within a step: episodes ended, and the observation that was returned is the first of the next ones.

    Attributes:
        mask: the environments whose episodes ended, bool ``[envs]``.
        last: returns an environment's last observation or info for a reader, at the end of its steps. KeyError: it isn't known.
            It is called for readers of observations and infos alone.
        properties: properties of the episodes that ended.
    """

    mask: npt.NDArray[np.bool_]
    last: Callable[[Reader, int], Any]
    properties: Mapping[str, Any] = NO_EXTRAS
