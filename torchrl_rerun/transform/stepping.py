"""Stepping: a step that is under way, from before the transforms in front of the recorder until it is recorded."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_rerun.kinds.endings import Endings
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.calls import Call
from torchrl_rerun.transform.plan import Acted

Mask = npt.NDArray[np.bool_] | None
"""Which environments of the flattened batch are meant, bool ``[envs]``; None: all."""

EnvOf = Callable[[], EnvBase | None]
"""Return the environment, or None. Finding it takes microseconds, so that it is found only if its specs are needed."""


class Stepping:
    """A step that is under way.

    Args:
        env: returns the environment.
        root: the data that goes into the step.
        asked: which environments are to be stepped, bool ``[*batch]``; None: all.
        acted: the policy's part of the data.
        call: the call of the environment's step; None: nothing but the hooks can tell of this step.

    Attributes:
        env, root, asked, acted, call: as given.
        is_recorded: whether the step has been recorded.
        thread: the identifier of the thread that steps.
    """

    __slots__ = ("__weakref__", "acted", "asked", "call", "env", "is_recorded", "root", "thread")

    def __init__(
        self, env: EnvOf, root: TensorDictBase, asked: torch.Tensor | None, acted: Acted, call: Call | None
    ) -> None:
        self.env = env
        self.root = root
        self.asked = asked
        self.acted = acted
        self.call = call
        self.is_recorded = False
        self.thread = threading.get_ident()

    def mark_recorded(self) -> None:
        """Note that the step has been recorded."""
        self.is_recorded = True

    @property
    def goes_on(self) -> bool:
        """Whether transforms are still at work on the step, as far as is known."""
        return self.call is not None and self.call.goes_on

    @property
    def goes_on_elsewhere(self) -> bool:
        """Whether transforms are still at work on the step, on another thread than this one."""
        return (
            self.call is not None
            and self.thread != threading.get_ident()
            and self.call.goes_on
            and self.call.is_on_stack_of(self.thread)
        )

    def mask(self, following: TensorDictBase, given: torch.Tensor) -> Mask:
        """Return which environments were stepped.

        A transform in front of the recorder may step the environment several times in one call. It leaves out
        environments whose episodes end before the last time. These were stepped, too, if they were to be.

        Args:
            following: the data after the step.
            given: the mask that the base environment saw, bool ``[*batch]``.
        """
        mask: npt.NDArray[np.bool_] = given.cpu().numpy().reshape(-1)
        wanted = np.ones_like(mask) if self.asked is None else self.asked.cpu().numpy().reshape(-1)
        endings = Endings(tensordicts.data_keys(following))
        before, after = (
            endings.ended(functools.partial(tensordicts.flags_of, data), len(mask)) for data in (self.root, following)
        )
        if after is not None:
            mask = mask | (wanted & after.either if before is None else wanted & after.either & ~before.either)
        return None if mask.all() else mask
