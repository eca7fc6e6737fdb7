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
    """

    kind: Transforms3D
    shape: tuple[int, ...]

    @abstractmethod
    def read(self, envs: Sequence[int]) -> Sequence[npt.NDArray[np.float64]]:
        """Return the value of each environment as it is now: arrays of :attr:`shape`.

        Args:
            envs: indices of the environments.
        """

    def leaf(self) -> Leaf:
        """Return the facts about the values."""
        return Leaf(SCENE, "float64", self.shape)


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
        """Return the kind of :attr:`key`.

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
