"""The chain: the transforms that see a step after the recorder has seen it, and may change what it recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchrl.envs import Transform

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.transform import environments
from torchrl_rerun.transform.calls import Call


class Chain:
    """The transforms behind the recorder, and those of environments around its own.

    Args:
        behind: returns the transforms behind the recorder.

    Attributes:
        behind: as given.
        is_outermost: whether it is known that no environment with transforms is around the recorder's own.
        has_warned: whether a changed value has been warned of.
    """

    def __init__(self, behind: Callable[[], Sequence[Transform]]) -> None:
        self.behind = behind
        self.is_outermost = False
        self._around: tuple[str, ...] | None = None
        self.has_warned = False

    def look_around(self, call: Call) -> None:
        """Find the environments around the recorder's own, once.

        Args:
            call: the step that is under way.
        """
        if self._around is None:
            self._around = tuple(type(each).__name__ for each in environments.flat(call.outer_transforms()))
            self.is_outermost = not self._around

    def names_behind(self) -> list[str]:
        """Return the class names of the transforms behind the recorder, each once."""
        return list(dict.fromkeys(type(each).__name__ for each in self.behind()))

    def warn_of_change(self, key: Key) -> None:
        """Warn once that the recorded values of a key aren't those of the rollout."""
        if self.has_warned:
            return
        self.has_warned = True
        names = list(dict.fromkeys([*self.names_behind(), *(self._around or ())]))
        warn(
            f"{name_of(key)} is recorded as it passes the recorder, and is not what the rollout holds: "
            f"{' or '.join(names) or 'a transform'} changes it afterwards. Append the recorder last, to the outermost "
            "environment"
        )
