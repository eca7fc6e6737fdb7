"""The scene: ask the simulators of environments for their states at the frames that are recorded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording.looks import EnvT, Gone, Look, Taken
from torchrl_rerun.recording.options import Options
from torchrl_rerun.scenes.devices import without_rows
from torchrl_rerun.scenes.source import SCENE, Simulation, Source

Simulated = Callable[[EnvT], Sequence[Any]]
"""Returns the environments as their makers wrote them, without wrappers: one each, or a single one of all.

Raises:
    SceneError: they are in other processes.
"""


class Scene(Look[EnvT]):
    """The states of simulators.

    Args:
        sources: what may simulate the environments, in the order in which they are asked.
        simulated: returns the environments without wrappers.
    """

    key = SCENE
    option = "scene=True"

    def __init__(self, sources: Sequence[Source], simulated: Simulated[EnvT]) -> None:
        self._sources = sources
        self._simulated = simulated
        self._simulation: Simulation | None = None
        self._warned = False

    def described(self, env: EnvT, envs: Sequence[int], options: Options) -> Stream:
        """Return the stream of the states: see :meth:`Look.described`."""
        del options
        simulated = self._simulated(env)
        found = (source.find(simulated, envs) for source in self._sources)
        simulation = next((each for each in found if each is not None), None)
        if simulation is None:
            *most, last = (source.simulator for source in self._sources)
            known = f"{', '.join(most)} or {last}" if most else last
            names = ", ".join(sorted({type(each).__name__ for each in simulated}))
            raise ValueError(
                f"scene=True needs an environment that {known} simulates, and found {names}: if a key has the positions of "
                "joints or the states, pass scene=Urdf(...) or scene=MuJoCo(model=..., key=...); for pictures, render=True"
            )
        self._simulation = simulation
        return Stream(SCENE, simulation.kind, simulation.dtype, simulation.shape, device=simulation.device)

    def at(self, env: Callable[[], EnvT], gone: Gone | None = None) -> Taken:
        """Return the function that reads the present states; those of a later moment are NaN: see :meth:`Look.at`."""
        del env
        return functools.partial(self._states, gone)

    def _states(self, gone: Gone | None, envs: Sequence[int]) -> Sequence[Any] | None:
        assert self._simulation is not None, "it was described"
        try:
            states = self._simulation.read(envs)
            later = None if gone is None else gone()
        except Exception as error:  # training goes on, and so does the recording
            if not self._warned:
                self._warned = True
                warn(f"'scene' is not recorded where the simulator can't be read: {type(error).__name__}: {error}")
            return None
        if later is None:
            return states
        if self._simulation.device:  # there, to ask whether any is in a later moment would be to wait for the answer
            hidden: Sequence[Any] = without_rows(states, later, envs)
            return hidden
        return [np.full_like(state, np.nan) if later[env] else state for env, state in zip(envs, states, strict=True)]
