"""Calls: look into the calls of an environment's step, for facts that no hook of a transform is given.

torchrl 0.14.1: if a transform in front has a step skipped for all environments, ``_step`` of the transforms isn't called.
``ConditionalSkip`` does that, and ``MultiAction`` if all episodes end in the middle of a chunk of actions. The data that
``TransformedEnv._step`` returns is in a local variable, which its frame still holds afterwards.
"""

from __future__ import annotations

import dis
import inspect
import sys
from types import CodeType, FrameType
from typing import Any

from tensordict import TensorDictBase
from torchrl.envs import Transform, TransformedEnv

_STEP = inspect.unwrap(TransformedEnv._step).__code__  # noqa: SLF001 - there is no public way
_RETURN = dis.opmap["RETURN_VALUE"]
_DEPTH = 12
"""Calls between ``TransformedEnv._step`` and the place in a hook where a :class:`Call` is made, at most."""


class Call:
    """The call of an environment's step. It is made in a hook of a transform, within the step."""

    def __init__(self) -> None:
        self._frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
        for _ in range(_DEPTH):
            if self._frame is None or self._frame.f_code is _STEP:
                return
            self._frame = self._frame.f_back
        self._frame = None  # the step is compiled, or this isn't the step of an environment

    def following(self) -> TensorDictBase | None:
        """Return the data after the step; None if the step goes on, has failed, or can't be looked into."""
        following: TensorDictBase | None = self._local("next_tensordict")
        return following

    @property
    def goes_on(self) -> bool:
        """Whether the step hasn't returned yet, as far as it can be looked into."""
        return self._frame is not None and not self._has_returned

    def is_on_stack_of(self, thread: int) -> bool:
        """Return whether a thread is within the step. A step that has failed is on no stack.

        Args:
            thread: the identifier of the thread.
        """
        frame = sys._current_frames().get(thread)  # noqa: SLF001
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None

    def partial_steps(self) -> Any:
        """Return the mask of the environments that were stepped, if the batch size isn't locked; None: all."""
        return self._local("partial_steps")

    def outer_transforms(self) -> list[Transform]:
        """Return the transforms of the environments around the one that is stepped, while it is."""
        found, frame = [], None if self._frame is None else self._frame.f_back
        while frame is not None:
            if frame.f_code is _STEP:
                found.append(frame.f_locals["self"].transform)
            frame = frame.f_back
        return found

    def _local(self, name: str) -> Any:
        return self._frame.f_locals.get(name) if self._frame is not None and self._has_returned else None

    @property
    def _has_returned(self) -> bool:
        return self._frame is not None and self._frame.f_code.co_code[self._frame.f_lasti] == _RETURN


def is_within(*codes: CodeType, depth: int = 50) -> bool:
    """Return whether one of some functions is being executed, among the innermost calls.

    Args:
        codes: the code of the functions.
        depth: number of calls that are looked at.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None and depth:
        if frame.f_code in codes:
            return True
        frame, depth = frame.f_back, depth - 1
    return False
