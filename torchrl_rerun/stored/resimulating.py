"""Simulating afterwards: the 3D scene of trajectories that were stored without poses. Nothing is rendered."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase

from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.kinds.kind import Kind
from torchrl_rerun.scenes.known import unwrapped
from torchrl_rerun.scenes.mujoco import MuJoCo, model_at, simulation_in, states_at
from torchrl_rerun.scenes.source import SCENE
from torchrl_rerun.stored.following import Follower, MakeEnv, Seen, Sight, find_maker
from torchrl_rerun.stored.segments import Segment
from torchrl_rerun.stored.states import Divergence, name_of_env
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.continuity import Continuity, stepped_in

POSITIONS = "qpos"
"""Last name of the keys under which positions of joints are stored."""

_MODELS = (".xml", ".mjb")


class Resimulation:
    """Adds states of MuJoCo, from which poses follow, to stored trajectories.

    Args:
        model: An ``mjModel``.
        follower: Environments that follow trajectories without stored positions. Default: None, there are none.

    Attributes:
        key: Key of the states.
        kind: Kind of the states.
    """

    key: Key = SCENE

    def __init__(self, model: Any, follower: Follower | None = None) -> None:
        self.kind: Kind = MuJoCo().kind(model)
        self._model = model
        self._follower = follower

    @property
    def divergences(self) -> Sequence[Divergence]:
        """Steps at which environments and the stored data differ."""
        return () if self._follower is None else self._follower.divergences

    @property
    def needs_no_seed(self) -> bool:
        """Whether a seed was given although the environment's state follows from the observation."""
        return self._follower is not None and self._follower.needs_no_seed

    def close(self) -> None:
        """Close the environments."""
        if self._follower is not None:
            self._follower.close()

    def add_to(self, segments: Iterator[Segment]) -> Iterator[Segment]:
        """Yield the segments with states at each moment.

        Raises:
            ValueError: The stored data holds neither positions nor anything else that they follow from, or doesn't fit.
        """
        segments = itertools.chain.from_iterable(segment.split_padded() for segment in segments)
        first = next(segments)
        segments = itertools.chain([first], segments)
        positions = self._find_positions(first.tensordict)
        if positions is not None:
            yield from self._add_stored(positions, segments)
        elif self._follower is not None:
            yield from self._follower.add_to(segments)
        else:
            raise ValueError(
                f"the source holds no {POSITIONS!r}, the positions of joints: name the array (--key {POSITIONS}=NAME, or "
                f"--key infos/{POSITIONS}=NAME if it has a row more than there are steps), or pass the id of an environment that "
                "gives them (--scene ENV_ID)"
            )

    def _find_positions(self, steps: TensorDictBase) -> Key | None:
        """Return the key of stored positions; None if there is none."""
        keys = tensordicts.data_keys(steps)
        if SCENE in keys:
            raise ValueError(f"the source holds {name_of(SCENE)} already: leave scene out")
        found = next((key for key in keys if key[-1] == POSITIONS), None)
        if found is not None:
            size = tuple(tensordicts.value_of(steps, found).shape[steps.batch_dims :])
            if size != (self._model.nq,):
                raise ValueError(f"{name_of(found)} has shape {size}, and the model has {self._model.nq} positions")
        return found

    def _add_stored(self, key: Key, segments: Iterator[Segment]) -> Iterator[Segment]:
        """Yield segments with the states that stored positions give. A segment waits for the first positions of the next."""
        continuity = Continuity()
        waiting: _Waiting | None = None
        for segment in segments:
            steps = segment.tensordict
            begun = continuity.begun(steps, stepped_in(steps)).episodes
            begun[:, 0] |= segment.begins
            before = self._states(tensordicts.value_of(steps, key))
            if waiting is not None:
                yield self._with_states(key, waiting, before[..., 0, :], begun[:, 0])
            waiting = _Waiting(segment, before, begun)
        if waiting is not None:
            nothing = np.ones(len(waiting.begun), bool)
            yield self._with_states(key, waiting, waiting.before[..., 0, :], nothing)

    def _with_states(
        self, key: Key, waiting: _Waiting, then: torch.Tensor, begins_then: npt.NDArray[np.bool_]
    ) -> Segment:
        """Return a segment with states.

        Args:
            key: Key of the positions.
            waiting: Segment.
            then: States at the moment after the segment, ``[*batch, n]``.
            begins_then: Mask of the environments whose episode begins at that moment, ``[envs]``.
        """
        segment, before, begun = waiting
        steps = segment.tensordict
        stored = tensordicts.value_of(steps.get("next"), key)
        if stored is not None:
            after = self._states(stored)
        else:  # stored with each step's observation, but not with the last one
            after = torch.cat([before[..., 1:, :], then.unsqueeze(-2)], -2)
            unknown = np.concatenate([begun[:, 1:], begins_then[:, None]], 1)
            after[torch.from_numpy(unknown).reshape(steps.batch_size)] = float("nan")
        out = steps.clone(recurse=False)
        out.set("next", steps.get("next").clone(recurse=False).set(SCENE, after))
        return dataclasses.replace(segment, tensordict=out.set(SCENE, before))

    def _states(self, positions: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(states_at(self._model, positions.detach().cpu().numpy()))


class _Waiting(NamedTuple):
    """A segment that waits for the moment after it.

    Attributes:
        segment: Segment.
        before: States before the steps, ``[*batch, time, n]``.
        begun: Mask of the steps that begin an episode, ``[envs, time]``.
    """

    segment: Segment
    before: torch.Tensor
    begun: npt.NDArray[np.bool_]


class States(Seen):
    """States of MuJoCo, from which poses follow. Unknown ones are NaN.

    Args:
        kind: Kind of the states.
    """

    key = SCENE
    option = "scene"

    def __init__(self, kind: Kind) -> None:
        self._kind = kind

    def sight_of(self, env: gymnasium.Env[Any, Any]) -> Sight:
        """Return the states of an environment: see :meth:`Seen.sight_of`."""
        simulation = MuJoCo().find(unwrapped(env), [0])
        if simulation is None or simulation.kind != self._kind:
            raise ValueError(f"environments of {name_of_env(env)} have different models, and a recording has one")
        return Sight(np.full(simulation.shape, np.nan), lambda: simulation.read([0])[0])


def is_id(env: object) -> TypeGuard[str]:
    """Return whether ``render`` or ``scene`` is the id of an environment."""
    return isinstance(env, str) and not _is_model(env)


def _is_model(scene: str) -> bool:
    return Path(scene).suffix in _MODELS


def open_scene(scene: str | MakeEnv, seed: int | None = None) -> Resimulation:
    """Return what adds the scene of stored trajectories.

    Args:
        scene: Id of an environment, a function that makes one, or the path of a model.
        seed: Seed that the environment was given. Default: None, not known.

    Raises:
        FileNotFoundError: There is no such model.
        ValueError: There is no such environment, MuJoCo doesn't simulate it, or the path is that of a URDF.
    """
    if isinstance(scene, str) and Path(scene).suffix == ".urdf":
        raise ValueError(
            f"scene={scene!r} is a URDF, and which numbers are its joints isn't known: pass "
            f"scene=Urdf({scene!r}, joints={{KEY: [NAME, ...]}}), or --joints KEY=NAME,..."
        )
    if isinstance(scene, str) and _is_model(scene):
        return Resimulation(model_at(scene))
    make = find_maker(scene, "scene")
    env = make()
    try:
        [simulated] = unwrapped(env)
        running = simulation_in(simulated)
        if running is None:
            raise ValueError(f"scene={name_of_env(env)!r} needs an environment that MuJoCo simulates")
        model = running.model()
    finally:
        env.close()
    return Resimulation(model, Follower(make, States(MuJoCo().kind(model)), seed))
