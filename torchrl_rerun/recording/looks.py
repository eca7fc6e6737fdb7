"""Looks: values that no key has, and that an environment is asked for at the frames that are recorded: pictures, scenes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.streams import Stream

if TYPE_CHECKING:
    from torchrl_rerun.recording.options import Options

Taken = Callable[[Sequence[int]], Sequence[Any] | None]
"""Takes environment indices; returns a value of each environment as it is now, all of one dtype and shape, or None if none can
be had. The values are arrays, or together one array or tensor ``[environments, ...]``."""

Gone = Callable[[], Any]
"""Returns the environments that were reset since the moment that is recorded, bool ``[envs]``, an array or a tensor; None: none
was."""

EnvT = TypeVar("EnvT")


class Look(ABC, Generic[EnvT]):
    """What an environment is asked for at each frame that is recorded, after the keys of its observations are read.

    Attributes:
        key: the key of the values.
        option: how a user asks for them, for messages.
    """

    key: Key
    option: str

    @abstractmethod
    def described(self, env: EnvT, envs: Sequence[int], options: Options) -> Stream:
        """Return the stream of the values, when a recording begins.

        Args:
            env: the environment.
            envs: the indices, in the flattened batch, of the environments that are recorded.
            options: the options of the recorder.

        Raises:
            ValueError: the environment hasn't what the user asked for.
        """

    @abstractmethod
    def at(self, env: Callable[[], EnvT], gone: Gone | None = None) -> Taken:
        """Return the function that looks at the present moment. Call it before the next one.

        Args:
            env: returns the environment.
            gone: returns the environments that are in a later moment already. Default: none is.
        """


def refuse_taken(look: Look[Any]) -> ValueError:
    """Return the error of a look whose key the environment gives itself."""
    name = look.key[-1]
    return ValueError(f"{look.option} records {name!r}, which the environment gives already: leave out one of them")
