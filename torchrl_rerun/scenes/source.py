"""Sources of scenes: each reads one simulator. A source is a value of ``RerunRecorder(scene=...)``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.transforms3d import Transforms3D

SCENE: Key = ("scene",)
"""The key of scenes that no key of the environment has."""


class SceneError(ValueError):
    """A scene was found that can't be recorded; the message says why, and what to do."""


class Simulation(ABC):
    """The simulation of some environments.

    Attributes:
        kind: how its values are stored and drawn.
        shape: the shape of one environment's value.
        dtype: torch's name of the values' dtype.
        device: the accelerator that the values are on, as PyTorch names it; empty: none.
    """

    kind: Transforms3D
    shape: tuple[int, ...]
    dtype: str = "float64"
    device: str = ""

    @abstractmethod
    def read(self, envs: Sequence[int]) -> Sequence[Any]:
        """Return the values of some environments as they are now.

        Args:
            envs: indices of the environments.

        Returns:
            An array of :attr:`shape` for each; or one of all, ``[len(envs), *shape]``, which is a tensor on :attr:`device` if
            there is one.
        """


def attribute(holder: Any, name: str) -> Any:
    """Return an attribute of an environment; None if it has none, or one that fails: it may be of something else.

    Args:
        holder: the environment, or a part of it.
        name: name of the attribute.
    """
    try:
        return getattr(holder, name, None)
    except Exception:  # of a property of the user's
        return None


class Restorer(NamedTuple):
    """Sets one simulation to recorded values.

    Attributes:
        put: sets it to a value.
        read: returns its present value.
        is_whole: whether a value has all from which the simulation goes on exactly.
    """

    put: Callable[[npt.NDArray[Any]], None]
    read: Callable[[], npt.NDArray[np.float64]]
    is_whole: bool


class Source(ABC):
    """Finds the simulation of environments, and says how a scene is recorded.

    Attributes:
        simulator: the simulator's name, for messages.
        key: the key that has the scene's values; None: the simulator is read in its own process.
    """

    simulator: ClassVar[str]
    key: Key | None = None

    @abstractmethod
    def find(self, simulated: Sequence[Any], envs: Sequence[int]) -> Simulation | None:
        """Return the simulation of some environments; None if they aren't of this simulator.

        Args:
            simulated: the environments as their makers wrote them, without wrappers: one each, or a single one of all.
            envs: the indices of those that are recorded.

        Raises:
            SceneError: they are, and can't be recorded.
        """

    def kind_of(self, leaf: Leaf) -> Transforms3D:
        """Return the kind by which :attr:`key` is drawn. It is stored, plotted and read back by its own kind.

        Args:
            leaf: the facts about its values.

        Raises:
            ValueError: they don't fit the scene.
        """
        raise NotImplementedError

    def restorer(self, simulated: Any, stream: Stream) -> Restorer | None:
        """Return what sets a simulation to the values of a stream; None if they aren't of this simulator.

        Args:
            simulated: the environment as its maker wrote it, without wrappers.
            stream: the stream.

        Raises:
            SceneError: the values are of another simulation.
        """
        del simulated, stream
        return None
