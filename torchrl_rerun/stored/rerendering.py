"""Rendering afterwards: trajectories that were stored without pictures, gone through again in their environment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torchrl._utils import seed_generator

from torchrl_rerun.kinds.streams import Key, name_of
from torchrl_rerun.stored.pieces import Piece
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.camera import PIXELS, NoPictureError, as_picture
from torchrl_rerun.transform.continuity import Continuity, stepped_in

MakeEnv = Callable[[], gymnasium.Env[Any, Any]]

TOLERANCE = 1e-4
"""How far a number may be from the stored one, as part of it (or of 1, if it is smaller): states are stored rounded."""


@dataclass(frozen=True)
class Parting:
    """Where an environment did otherwise than what is stored; from there on the episode has no pictures.

    Attributes:
        env: environment index.
        episode: number of the episode in its environment, from 0.
        step: the step of it that led there; 0: its beginning.
        key: what is different.
        by: how much, at the most; infinite: it is of another shape.
    """

    env: int
    episode: int
    step: int
    key: Key
    by: float

    def __str__(self) -> str:
        return f"environment {self.env}, episode {self.episode}, step {self.step}: {name_of(self.key)} is off by {self.by:g}"


class Rerendering:
    """Adds pictures to stored trajectories.

    An environment that can be set to a state (gymnasium's classic control; MuJoCo where observations begin with positions
    and velocities) is set to each stored observation, rendered, and stepped once from it, to compare. Any other is reset
    with the seed, and takes the stored actions. Pictures that aren't to be had are black.

    Args:
        make_env: makes an environment that renders arrays, one for each environment.
        seed: what the environment, or the batch, was seeded with. The first episode of each environment begins with the
            seed that TorchRL gives it then; episodes that follow go on without one. None: those that are stored, if the
            environment can't be set to a state.

    Attributes:
        partings: where environments did otherwise than what is stored.

    Raises:
        ValueError: it gives no pictures.
    """

    def __init__(self, make_env: MakeEnv, seed: int | None = None) -> None:
        self._make_env = make_env
        self._seed = seed
        self._actors: list[_Actor] = []
        self.partings: list[Parting] = []

    @property
    def needs_no_seed(self) -> bool:
        """Whether a seed was given though the environments can be set to what was observed."""
        return self._seed is not None and any(state_setter(actor.env) is not None for actor in self._actors)

    def close(self) -> None:
        """Close the environments."""
        for actor in self._actors:
            actor.env.close()

    def rendered(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The same moments with pictures, one by one.

        Raises:
            ValueError: what is stored doesn't fit the environment, or it can't be brought to the beginning of an episode.
        """
        continuity = Continuity()
        for piece in itertools.chain.from_iterable(piece.unpadded() for piece in pieces):
            stepped = stepped_in(piece.tensordict)
            begun = continuity.begun(piece.tensordict, stepped).episodes
            begun[:, 0] |= piece.begins
            for i, moment in enumerate(piece.tensordict.unbind(-1)):
                mask = np.ones(len(begun), bool) if stepped is None else stepped[:, i]
                pictured = self._with_pictures(moment, mask, begun[:, i] & mask, piece.seeds)
                yield Piece(pictured.unsqueeze(-1), begun[:, i])

    def _with_pictures(
        self,
        moment: TensorDictBase,
        mask: npt.NDArray[np.bool_],
        begun: npt.NDArray[np.bool_],
        seeds: Sequence[int | None],
    ) -> TensorDictBase:
        if not self._actors:
            self._actors = [_Actor(self._make_env(), seeds) for seeds in first_seeds(self._seed, len(begun))]
        if tensordicts.value_of(moment, PIXELS) is not None:
            raise ValueError(f"there are {name_of(PIXELS)} already: they needn't be rendered")
        root, following = _arrays(moment), _arrays(moment.get("next"))
        before, after = [], []
        for i, actor in enumerate(self._actors):
            now = {key: values[i] for key, values in root.items()}
            if begun[i]:
                self._note(i, actor, actor.begin(now, seeds[i] if seeds else None))
            before.append(actor.picture)
            if mask[i]:
                self._note(i, actor, actor.step(now, {key: values[i] for key, values in following.items()}))
            after.append(actor.picture)
        out = moment.clone(recurse=False)
        out.set("next", moment.get("next").clone(recurse=False).set(PIXELS, _stacked(after, moment.batch_size)))
        return out.set(PIXELS, _stacked(before, moment.batch_size))

    def _note(self, env: int, actor: _Actor, parted: tuple[Key, float] | None) -> None:
        if parted is not None:
            self.partings.append(Parting(env, actor.episode, actor.at, *parted))


class _Actor:
    """An environment that goes through episodes again."""

    def __init__(self, env: gymnasium.Env[Any, Any], seeds: Sequence[int]) -> None:
        self.env = env
        self._seeds = seeds
        self._set_state = None if seeds else state_setter(env)
        env.reset(seed=0)
        try:
            self._black = np.zeros_like(as_picture(env.render()))
        except NoPictureError as error:
            raise ValueError(f"{env} can't be rendered: {error}; make it with render_mode='rgb_array'") from None
        except Exception as error:  # whatever its graphics library raises
            raise ValueError(
                f"{env.spec.id if env.spec else env} can't be rendered here: {type(error).__name__}: {error}. Without a display "
                "set the environment variables MUJOCO_GL=egl (MuJoCo) and SDL_VIDEODRIVER=dummy before Python starts"
            ) from error
        self.picture = self._black
        self.episode = -1
        self.at = 0
        self._has_parted = False
        self._is_set = True  # whether its state is the one that led to what is stored

    def begin(self, stored: Mapping[Key, Any], seed: int | None) -> tuple[Key, float] | None:
        """Begin an episode; where it isn't what is stored."""
        self.episode, self.at, self._has_parted = self.episode + 1, 0, False
        if self._set_state is not None:
            self.env.reset()
            return self._at(stored)
        is_first = self.episode == 0
        seeds = self._seeds if is_first and self._seeds else [] if seed is None else [seed]
        if is_first and not seeds:
            raise ValueError(
                f"{self.env.spec.id if self.env.spec else self.env} can't be set to what was observed, and must be "
                "replayed from its beginning: say the seed (--seed)"
            )
        # TorchRL resets once when it is given a seed, and then again.
        resets = [reset for each in seeds for reset in (each, None)] or [None]
        partings = (_difference(_observation(self.env.reset(seed=each)[0]), stored) for each in resets)
        first = next(partings)
        return self._seen(None if first is None or None in partings else first)

    def step(self, before: Mapping[Key, Any], after: Mapping[Key, Any]) -> tuple[Key, float] | None:
        """Take the step that is stored; where it doesn't lead to what is stored."""
        self.at += 1
        if self._has_parted:
            return None
        if not self._is_set:
            return self._at(after)
        if ("action",) not in before:
            raise ValueError("no 'action' is stored: there is nothing that could be replayed")
        observed, reward, *_ = self.env.step(as_action(before["action",], self.env.action_space))
        came = _observation(observed) | {("reward",): np.asarray(reward)}
        parted = _difference(came, after)
        if parted is None and self._set_state is not None:
            return self._at(after)
        return self._seen(parted)

    def _at(self, stored: Mapping[Key, Any]) -> tuple[Key, float] | None:
        """Set the environment to what is stored. What isn't known (NaN) has no picture, and nothing is compared with it."""
        assert self._set_state is not None, "it can be"
        observation = stored.get(("observation",))
        size = self.env.observation_space.shape
        if observation is None or observation.shape != size:
            there = "nothing" if observation is None else f"of shape {observation.shape}"
            raise ValueError(f"{self.env.spec.id if self.env.spec else self.env} observes {size}; stored is {there}")
        self._is_set = bool(np.isfinite(observation.astype(np.float64)).all())
        if not self._is_set:
            self.picture = self._black
            return None
        self._set_state(observation.astype(np.float64))
        simulator = self.env.unwrapped
        seen = simulator._get_obs() if hasattr(simulator, "_get_obs") else observation  # noqa: SLF001 - gymnasium's own name
        return self._seen(_difference(_observation(seen), stored))

    def _seen(self, parted: tuple[Key, float] | None) -> tuple[Key, float] | None:
        self._has_parted = parted is not None
        self.picture = self._black if self._has_parted else np.array(as_picture(self.env.render()))
        return parted


def first_seeds(seed: int | None, envs: int) -> list[list[int]]:
    """The seeds with which the environments of a batch may have begun, the likely one first; none of them without one.

    ``SerialEnv`` and ``ParallelEnv`` draw a worker's seed from that of the one before, vectorized environments of
    gymnasium (``GymEnv(..., num_envs=n)``) add 1.

    >>> first_seeds(3, 2), first_seeds(None, 2)
    ([[3], [2346560485, 4]], [[], []])
    """
    if seed is None:
        return [[] for _ in range(envs)]
    drawn = [seed]
    for _ in range(envs - 1):
        drawn.append(seed_generator(drawn[-1]))
    return [list(dict.fromkeys((each, seed + i))) for i, each in enumerate(drawn)]


def state_setter(env: gymnasium.Env[Any, Any]) -> Callable[[npt.NDArray[np.float64]], None] | None:
    """Sets an environment to what was observed of it; None: an observation doesn't tell its state.

    >>> env = gymnasium.make("Pendulum-v1")
    >>> state_setter(env)(np.array([0.0, 1.0, 0.5]))
    >>> env.unwrapped.state.round(3)
    array([1.571, 0.5  ])
    >>> state_setter(gymnasium.make("FrozenLake-v1")) is None
    True
    """
    simulator: Any = env.unwrapped
    module, name = type(simulator).__module__, type(simulator).__name__
    if module.startswith("gymnasium.envs.classic_control."):
        state_of = _STATES.get(name)
        return None if state_of is None else lambda observation: setattr(simulator, "state", state_of(observation))
    if module.startswith("gymnasium.envs.mujoco.") and env.observation_space.shape == simulator.observation_space.shape:
        untold = _untold_positions(simulator)
        return None if untold is None else lambda observation: _set_mujoco(simulator, untold, observation)
    return None


def _untold_positions(simulator: Any) -> int | None:
    """How many positions an observation of MuJoCo leaves out before it tells the others, and all velocities; None: others."""
    structure = getattr(simulator, "observation_structure", None)
    if structure is not None:
        return int(structure.get("skipped_qpos", 0))
    untold = simulator.model.nq + simulator.model.nv - simulator.observation_space.shape[0]
    return untold if untold >= 0 else None


def _set_mujoco(simulator: Any, untold: int, observation: npt.NDArray[np.float64]) -> None:
    """Sets MuJoCo to what is observed of it; the first positions stay as they are, and speeds that observations clip."""
    data, split = simulator.data, simulator.model.nq - untold
    speeds = slice(split, split + simulator.model.nv)
    seen = simulator._get_obs()[speeds]  # noqa: SLF001 - gymnasium's own name
    positions = np.concatenate([data.qpos[:untold], observation[:split]])
    velocities = np.where(seen == data.qvel, observation[speeds], data.qvel)
    if data.time == 0.0:
        simulator.set_state(positions, velocities)
    else:  # what a step left of forces and bodies is observed, and rewarded: nothing is computed anew
        data.qpos[:], data.qvel[:] = positions, velocities


_STATES: dict[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "CartPoleEnv": lambda seen: seen,
    "MountainCarEnv": lambda seen: seen,
    "Continuous_MountainCarEnv": lambda seen: seen,
    "PendulumEnv": lambda seen: np.array([np.arctan2(seen[1], seen[0]), seen[2]]),
    "AcrobotEnv": lambda seen: np.array([np.arctan2(seen[1], seen[0]), np.arctan2(seen[3], seen[2]), seen[4], seen[5]]),
}
"""The states of gymnasium's classic control, by what is observed of them."""


def as_action(stored: npt.NDArray[Any], space: spaces.Space[Any]) -> Any:
    """A stored action as gymnasium takes it: one-hot ones become numbers.

    Raises:
        ValueError: it is none of this space.

    >>> as_action(np.array([0, 0, 1]), spaces.Discrete(3)), as_action(np.array([1]), spaces.Discrete(3))
    (2, 1)
    """
    flat = stored.reshape(-1)
    match space:
        case spaces.Discrete() if flat.size == 1:
            action: Any = int(flat[0])
        case spaces.Discrete() if flat.size == space.n:
            action = int(flat.argmax() + space.start)
        case spaces.MultiDiscrete() if flat.size == space.nvec.size:
            action = flat.reshape(space.shape).astype(space.dtype)
        case spaces.MultiDiscrete() if flat.size == space.nvec.sum():
            parts = np.split(flat, np.cumsum(space.nvec.reshape(-1))[:-1])
            action = np.array([part.argmax() for part in parts], space.dtype).reshape(space.shape)
        case spaces.Box() | spaces.MultiBinary() if flat.size == np.prod(space.shape):
            action = flat.reshape(space.shape).astype(space.dtype)
        case _:
            raise ValueError(f"a stored action of {stored.dtype} {stored.shape} is none of {space}")
    return action


def _observation(observed: Any, key: Key = ("observation",)) -> dict[Key, npt.NDArray[Any]]:
    """What an environment observes, by the keys under which TorchRL and Minari store it."""
    if not isinstance(observed, dict):
        return {key: np.asarray(observed)}
    return {
        found: value for name, each in observed.items() for found, value in _observation(each, (*key, name)).items()
    }


def _difference(came: Mapping[Key, npt.NDArray[Any]], stored: Mapping[Key, Any]) -> tuple[Key, float] | None:
    """The key that is the furthest from what is stored, and by how much; None: none is too far."""
    worst: tuple[Key, float] | None = None
    for key, value in came.items():
        known = stored.get(key, stored.get(key[1:]))
        if known is None:
            if key == ("reward",):
                continue
            raise ValueError(f"no {name_of(key)} is stored, by which pictures could be checked")
        if value.size == 1 and known.size > 1 and known.sum() == known.max() == 1:  # one-hot
            known = known.argmax()
        if known.size != value.size:
            return key, float("inf")
        a, b = value.reshape(-1).astype(np.float64), known.reshape(-1).astype(np.float64)
        off = np.abs(a - b)
        off[np.isnan(b)] = 0.0  # it wasn't stored, as what the last step of an episode led to
        if (off > TOLERANCE * np.maximum(1.0, np.abs(b))).any() and (worst is None or off.max() > worst[1]):
            worst = key, float(off.max())
    return worst


def _arrays(tensordict: TensorDictBase) -> dict[Key, npt.NDArray[Any]]:
    """The numbers of a tensordict, ``[envs, ...]``."""
    found = {key: tensordicts.value_of(tensordict, key) for key in tensordicts.data_keys(tensordict)}
    return {
        key: tensordicts.as_array(value, tensordict.batch_size)
        for key, value in found.items()
        if isinstance(value, torch.Tensor)
    }


def _stacked(pictures: Sequence[npt.NDArray[Any]], batch_size: torch.Size) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).reshape(*batch_size, *pictures[0].shape)
