"""Newton: where the bodies of each world are, read for all environments at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.shapes3d import Poses
from torchrl_rerun.kinds.transforms3d import Transforms3D, remember_geometry
from torchrl_rerun.scenes.bounds import SPACING, sphere_around
from torchrl_rerun.scenes.devices import device_of, indices_on, numbers_in
from torchrl_rerun.scenes.newton_geometry import geometry_of_world, look_of_world
from torchrl_rerun.scenes.source import SceneError, Simulation, Source, attribute

HOLDERS = ("", "sim", "simulation", "simulator", "example")
"""Attributes of an environment that may hold a simulation, besides the environment itself."""

STATES = ("state_0", "state")
"""Attributes with the present state, in the order in which they are looked for."""


@dataclass(frozen=True, init=False)
class Newton(Source):
    """Newton's scene: ``RerunRecorder(scene=Newton(...))``.

    A world is an environment. Of each one the poses of its bodies are recorded, and then those of bodies that all worlds
    share: ``[bodies, 7]`` float32, as ``State.body_q`` has them, quaternions in the order x, y, z, w. They are read once for
    all environments. On a GPU they are copied as keys are, which nothing waits for.

    Without arguments, the model is ``env.model``, and the state ``env.state_0`` or ``env.state``, of the environment
    without wrappers or of its ``sim``, ``simulation``, ``simulator`` or ``example``. The state is looked up again at each
    frame, for simulations exchange two states.

    Args:
        model: Newton's model. Default: the environment's.
        state: returns the present state. Default: the environment's.
        collisions: whether invisible shapes are drawn, such as those for collisions alone. Default: False.
        together: whether many environments are shown in one scene, side by side. Default: False, each has a view.

    Raises:
        ValueError: one of ``model`` and ``state`` is given without the other.
        TypeError: ``state`` can't be called.
    """

    simulator = "Newton"

    model: Any
    state: Callable[[], Any] | None
    collisions: bool
    together: bool

    def __init__(
        self,
        model: Any = None,
        state: Callable[[], Any] | None = None,
        *,
        collisions: bool = False,
        together: bool = False,
    ) -> None:
        if (model is None) != (state is None):
            raise ValueError(
                "model and state go together: Newton(model, lambda: env.state_0). Leave both out to find them in the environment"
            )
        if state is not None and not callable(state):
            raise TypeError(f"state={state!r} can't be called: pass a function that returns the present state")
        told = {"model": model, "state": state, "collisions": collisions, "together": together}
        for name, value in told.items():
            object.__setattr__(self, name, value)

    def find(self, simulated: Sequence[Any], envs: Sequence[int]) -> Simulation | None:
        """Return the simulation of some environments: see :meth:`Source.find`."""
        if self.state is not None:
            running = [Running(self.model, self.state)]
        else:
            found = [simulation_in(env) for env in simulated]
            running = [each for each in found if each is not None]
            if not running or len(running) < len(found):
                return None
        worlds = [World(each, number) for each in running for number in range(max(1, each.model.world_count))]
        if len(worlds) <= max(envs):
            raise SceneError(
                f"Newton simulates {len(worlds)} worlds, and environment {max(envs)} is recorded: a world is an environment"
            )
        return _Worlds(self, [worlds[env] for env in envs], envs)


class Running(NamedTuple):
    """A simulation of Newton's.

    Attributes:
        model: its model.
        state: returns its present state.
    """

    model: Any
    state: Callable[[], Any]


class World(NamedTuple):
    """A world of a simulation.

    Attributes:
        running: the simulation.
        number: the number of the world.
    """

    running: Running
    number: int

    def bodies(self) -> npt.NDArray[np.int64]:
        """Return the numbers of its bodies: its own, and then those that all worlds share."""
        of_world = self.running.model.body_world.numpy()
        return np.concatenate([np.flatnonzero(of_world == self.number), np.flatnonzero(of_world < 0)])


def simulation_in(env: Any) -> Running | None:
    """Return the simulation in an environment; None if there is none.

    Args:
        env: an environment without wrappers.
    """
    newton = sys.modules.get("newton")
    if newton is None:  # nobody simulates with it
        return None
    for holder in _holders(env):
        model = attribute(holder, "model")
        name = next((each for each in STATES if isinstance(attribute(holder, each), newton.State)), None)
        if isinstance(model, newton.Model) and name is not None:
            return Running(model, _attribute(holder, name))
    return None


def _holders(env: Any) -> Iterator[Any]:
    for name in HOLDERS:
        holder = attribute(env, name) if name else env
        if holder is not None:
            yield holder


def _attribute(holder: Any, name: str) -> Callable[[], Any]:
    return lambda: getattr(holder, name)


class _Worlds(Simulation):
    """The worlds of the environments that are recorded.

    Args:
        source: the options.
        worlds: the worlds.
        envs: the indices of the environments.
    """

    dtype = "float32"

    def __init__(self, source: Newton, worlds: Sequence[World], envs: Sequence[int]) -> None:
        first = worlds[0]
        bodies = [world.bodies() for world in worlds]
        self.shape = (len(bodies[0]), 7)
        if not len(bodies[0]):
            raise SceneError(f"world {first.number} of Newton has no bodies: there is nothing to record")
        poses = first.running.state().body_q
        self.device = device_of(poses)
        model = first.running.model
        geometry = geometry_of_world(model, first.number, bodies[0], draws_all=source.collisions)
        present = poses.numpy()[np.newaxis, bodies[0]]
        center, radius = sphere_around(geometry, Poses(present[..., :3], present[..., 3:]))
        self.kind = Transforms3D(
            bodies=geometry.bodies,
            geometry=remember_geometry(geometry),
            center=center,
            radius=radius,
            root=0,
            grid=geometry.is_floating,
            spacing=SPACING * radius if source.together else 0.0,
            up="y" if int(model.up_axis) == 1 else "z",
        )
        self._worlds = dict(zip(envs, worlds, strict=True))
        self._bodies = dict(zip(envs, bodies, strict=True))
        self._picks: dict[tuple[int, ...], list[_Pick]] = {}
        self._tell_others(envs, draws_all=source.collisions)

    def _tell_others(self, envs: Sequence[int], *, draws_all: bool) -> None:
        """Warn of worlds that can't be recorded with the first one, or drawn as it is."""
        others = [env for env in envs if len(self._bodies[env]) != self.shape[0]]
        if others:
            warn(
                f"the scene of environments {', '.join(map(str, others))} is not recorded: environment {envs[0]} has "
                f"{self.shape[0]} bodies, and they have another number"
            )
        looks = {
            env: look_of_world(self._worlds[env].running.model, self._worlds[env].number, bodies, draws_all=draws_all)
            for env, bodies in self._bodies.items()
            if env not in others
        }
        unlike = [env for env, look in looks.items() if look != looks[envs[0]]]
        if unlike:
            warn(
                f"environments {', '.join(map(str, unlike))} are drawn with the shapes of environment {envs[0]}, and have "
                "others. Their poses are recorded as they are"
            )
        for env in others:
            del self._worlds[env]

    def read(self, envs: Sequence[int]) -> Any:
        picks = self._picks.get(key := tuple(envs))
        if picks is None:
            picks = self._picks[key] = self._picked(key)
        if len(picks) == 1 and picks[0].rows is None:
            return picks[0].read(self.device, self.shape)
        values = self._nothing(len(envs))
        for pick in picks:
            values[pick.rows] = pick.read(self.device, self.shape)
        return values

    def _picked(self, envs: tuple[int, ...]) -> list[_Pick]:
        """Return which bodies of which simulations are read."""
        of_each: dict[int, list[int]] = {}
        for row, env in enumerate(envs):
            if env in self._worlds:
                of_each.setdefault(id(self._worlds[env].running.model), []).append(row)
        return [
            _Pick(
                self._worlds[envs[rows[0]]].running.state,
                np.concatenate([self._bodies[envs[row]] for row in rows]),
                None if len(rows) == len(envs) else rows,
            )
            for rows in of_each.values()
        ]

    def _nothing(self, count: int) -> Any:
        """Return values of environments that have none."""
        if not self.device:
            return np.full((count, *self.shape), np.nan, np.float32)
        import torch  # noqa: PLC0415 - only if values are on an accelerator

        return torch.full((count, *self.shape), np.nan, device=self.device)


class _Pick(NamedTuple):
    """Bodies of a simulation that are read.

    Attributes:
        state: returns the present state.
        bodies: the numbers of the bodies.
        rows: the rows of the environments that they are of; None: all.
    """

    state: Callable[[], Any]
    bodies: npt.NDArray[np.int64]
    rows: list[int] | None

    def read(self, device: str, shape: tuple[int, ...]) -> Any:
        """Return the poses of the bodies, ``[environments, *shape]``."""
        poses = numbers_in(self.state().body_q, device)
        if device:
            return poses.index_select(0, indices_on(device, tuple(self.bodies.tolist()))).reshape(-1, *shape)
        return poses[self.bodies].reshape(-1, *shape)
