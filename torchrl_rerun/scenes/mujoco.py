"""MuJoCo: the state of a simulation is recorded, and where the bodies are is worked out when it is written."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import AnyKey, Key, as_key, name_of
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.mujoco_state import MuJoCoState, model_of, remember_model
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.transforms3d import remember_geometry
from torchrl_rerun.scenes.bounds import SPACING
from torchrl_rerun.scenes.mujoco_changes import Change, RecordedModel
from torchrl_rerun.scenes.mujoco_geometry import geometry_of_model, sphere_around
from torchrl_rerun.scenes.source import Restorer, SceneError, Simulation, Source, attribute

Kept = Literal["pose", "full"]
"""What is kept of a state: what poses follow from, or all from which a simulation goes on exactly."""


@dataclass(frozen=True, init=False)
class MuJoCo(Source):
    """MuJoCo's scene: ``RerunRecorder(scene=MuJoCo(...))``.

    The state is read where the simulator runs, after each step. Environments in worker processes can't be read from outside:
    append the recorder inside the workers, or have them give a key with ``qpos``.

    Args:
        state: ``"pose"`` keeps positions of joints and mocap bodies; ``"full"`` keeps MuJoCo's integration state, from which a
            simulation goes on exactly (:func:`torchrl_rerun.rewind`). Default: ``"pose"``.
        model: the model, of which ``key`` has states: an ``mjModel``, or a path of an ``.xml`` or ``.mjb`` file. Default: the
            environment's.
        key: key of the states ``[nq]``, or of the other sizes that ``state`` has. Default: the simulator is read.
        groups: the groups of geoms that are drawn. Default: 0, 1 and 2, as in MuJoCo's viewer.
        contacts: whether contacts are drawn. Default: False.
        sites: whether sites are drawn. Default: False.
        tendons: whether tendons are drawn. Default: False.
        trail: number of frames of which the way of the root is shown. Default: 0, none.
        together: whether many environments are shown in one scene, side by side. Default: False, each has a view.

    Raises:
        ValueError: ``state`` is neither, or one of ``model`` and ``key`` is given without the other.

    Examples:
        >>> import tempfile
        >>> import gymnasium as gym
        >>> from torchrl_rerun import MuJoCo, load
        >>> from torchrl_rerun.wrappers import RecordRerun
        >>> path = tempfile.mkdtemp() + "/run.rrd"
        >>> env = RecordRerun(gym.make("HalfCheetah-v5"), path, scene=MuJoCo(contacts=True))
        >>> observation, info = env.reset(seed=0)
        >>> observation, *_ = env.step(env.action_space.sample())
        >>> env.close()
        >>> load(path)[0]["scene"].shape
        torch.Size([2, 9])
    """

    simulator = "MuJoCo"

    state: Kept
    model: Any
    key: Key | None
    groups: tuple[int, ...]
    contacts: bool
    sites: bool
    tendons: bool
    trail: int
    together: bool

    def __init__(
        self,
        state: Kept = "pose",
        *,
        model: Any = None,
        key: AnyKey | None = None,
        groups: Sequence[int] = (0, 1, 2),
        contacts: bool = False,
        sites: bool = False,
        tendons: bool = False,
        trail: int = 0,
        together: bool = False,
    ) -> None:
        if state not in get_args(Kept):
            raise ValueError(f"state={state!r}: choose 'pose' or 'full'")
        if (model is None) != (key is None):
            raise ValueError(
                "model and key go together: the model whose states a key has. Leave both out to read the simulator"
            )
        for name, value in {
            "state": state,
            "model": os.fspath(model) if isinstance(model, os.PathLike) else model,
            "key": None if key is None else as_key(key),
            "groups": tuple(groups),
            "contacts": contacts,
            "sites": sites,
            "tendons": tendons,
            "trail": trail,
            "together": together,
        }.items():
            object.__setattr__(self, name, value)

    def find(self, simulated: Sequence[Any], envs: Sequence[int]) -> Simulation | None:
        """Return the simulation of some environments: see :meth:`Source.find`."""
        if len(simulated) <= max(envs):
            return None
        found = {env: told for env in envs if (told := simulation_in(simulated[env])) is not None}
        return _Separate(self, found, envs) if found else None

    def kind_of(self, leaf: Leaf) -> MuJoCoState:
        """Return the kind of states that a key has: see :meth:`Source.kind_of`."""
        model = model_at(self.model)
        for signature in _signatures():
            if leaf.row_shape == (_size(model, signature),):
                return self.kind(model, signature)
        sizes = ", ".join(str(_size(model, signature)) for signature in _signatures())
        raise ValueError(f"{name_of(leaf.key)} has shape {leaf.row_shape}; states of the model have {sizes} numbers")

    def restorer(self, simulated: Any, stream: Stream) -> Restorer | None:
        """Return what sets a simulation to recorded states: see :meth:`Source.restorer`."""
        kind = next((each for _, each in stream.drawing if isinstance(each, MuJoCoState)), None)
        running = simulation_in(simulated)
        if kind is None or running is None:
            return None
        if remember_model(running.model()) != kind.model:
            raise SceneError(
                f"{name_of(stream.key)} has states of another model than the environment's, or of another version of MuJoCo"
            )
        import mujoco  # noqa: PLC0415 - of those who simulate with it

        def put(state: npt.NDArray[Any]) -> None:
            mujoco.mj_setState(running.model(), running.data(), np.asarray(state, np.float64), kind.signature)
            mujoco.mj_forward(running.model(), running.data())  # MuJoCo 4.0: it leaves the state as it is

        def read() -> npt.NDArray[np.float64]:
            state = np.empty(stream.shape)
            mujoco.mj_getState(running.model(), running.data(), state, kind.signature)
            return state

        return Restorer(put, read, kind.signature == _signatures()[1])

    def kind(self, model: Any, signature: int | None = None) -> MuJoCoState:
        """Return how states of a model are stored and drawn.

        Args:
            model: an ``mjModel``.
            signature: the parts of a state that are kept. Default: as ``state`` says.
        """
        geometry = geometry_of_model(model, self.groups, sites=self.sites)
        center, radius = sphere_around(model)
        return MuJoCoState(
            bodies=geometry.bodies,
            geometry=remember_geometry(geometry),
            model=remember_model(model),
            signature=self.signature if signature is None else signature,
            contacts=self.contacts,
            tendons=self.tendons,
            trail=self.trail,
            root=_root_of(model),
            grid=False,
            center=center,
            radius=radius,
            spacing=SPACING * radius if self.together else 0.0,
        )

    @property
    def signature(self) -> int:
        """The parts of a state that are kept, as ``mj_getState`` takes them."""
        return _signatures()[self.state == "full"]


class Running(NamedTuple):
    """A simulation of MuJoCo's.

    Attributes:
        model: returns its ``mjModel``: environments may make new ones.
        data: returns its ``mjData``.
    """

    model: Callable[[], Any]
    data: Callable[[], Any]


def simulation_in(env: Any) -> Running | None:
    """Return the simulation in an environment; None if there is none.

    Args:
        env: an environment without wrappers: one of Gymnasium's with ``model`` and ``data``, of ``dm_control``'s with
            ``physics``, or any with ``mj_model`` and ``mj_data``.
    """
    if hasattr(attribute(attribute(env, "physics"), "model"), "ptr"):
        return Running(lambda: env.physics.model.ptr, lambda: env.physics.data.ptr)
    for names in (("model", "data"), ("mj_model", "mj_data"), ("_mj_model", "_mj_data")):
        model, data = map(operator.attrgetter, names)
        if type(attribute(env, names[0])).__name__ == "MjModel" and hasattr(env, names[1]):
            return Running(functools.partial(model, env), functools.partial(data, env))
    return None


class _Separate(Simulation):
    """Simulations in this process, one for each environment, of one model.

    A model is looked at where a simulation begins anew, which its time tells: to do so at each step would take longer than to
    read the state.

    Args:
        source: the options.
        found: the simulations, by environment.
        envs: the environments that are recorded.
    """

    def __init__(self, source: MuJoCo, found: dict[int, Running], envs: Sequence[int]) -> None:
        import mujoco  # noqa: PLC0415 - of those who simulate with it

        first = next(iter(found.values())).model()
        self.kind = source.kind(first)
        self._recorded = RecordedModel(model_of(self.kind.model), sites=source.sites)
        self._signature = self.kind.signature  # not the source's, which asks MuJoCo for it
        self._size = _size(first, self._signature)
        self.shape = (self._size,)
        self._get = mujoco.mj_getState
        self._running = found
        self._times = dict.fromkeys(found, 0.0)
        self._models = {env: running.model() for env, running in found.items()}
        self._told: set[Change] = set()
        self._has_failed = False
        changes = {env: self._change_of(model) for env, model in self._models.items()}
        changes |= dict.fromkeys(set(envs) - found.keys(), Change.POSES)
        self._is_drawn = {env: change is not Change.POSES for env, change in changes.items()}
        self._tell(changes)

    def read(self, envs: Sequence[int]) -> Sequence[npt.NDArray[np.float64]]:
        states, failed = [], []
        for env in envs:
            state = np.empty(self._size)
            try:
                self._read(env, state)
            except Exception as error:  # the others are recorded
                failed.append(error)
                state.fill(np.nan)
            states.append(state)
        if len(failed) == len(envs) and failed:
            raise failed[0]
        if failed and not self._has_failed:
            self._has_failed = True
            warn(f"'scene' is NaN where a simulator can't be read: {type(failed[0]).__name__}: {failed[0]}")
        return states

    def _read(self, env: int, state: npt.NDArray[np.float64]) -> None:
        """Put the present state of an environment into an array: NaN if it can't be drawn by the recorded model."""
        running = self._running.get(env)
        if running is not None:
            model, data = running.model(), running.data()
            now = data.time
            if model is not self._models[env] or now < self._times[env]:
                change = self._change_of(model)
                self._models[env], self._is_drawn[env] = model, change is not Change.POSES
                self._tell({env: change})
            self._times[env] = now
            if self._is_drawn[env]:
                self._get(model, data, state, self._signature)
                return
        state.fill(np.nan)

    def _change_of(self, model: Any) -> Change:
        if _size(model, self._signature) != self._size:
            return Change.POSES
        return self._recorded.change_to(model)

    def _tell(self, changes: Mapping[int, Change]) -> None:
        """Tell of changes by environment, of each kind once."""
        for change, what in _TOLD.items():
            names = ", ".join(str(env) for env in sorted(changes) if changes[env] is change)
            if names and change not in self._told:
                self._told.add(change)
                warn(f"the scene of environments {names} is {what}")


_TOLD = {
    Change.POSES: "not recorded: it has another model than the first one's, with other bodies or joints",
    Change.LOOKS: "drawn with the shapes of the first model: it has others, or has them elsewhere",
}
"""What happens where a model differs from the recorded one."""


def _signatures() -> tuple[int, int, int]:
    """Return what poses follow from, all from which a simulation goes on, and the positions of joints alone."""
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    state = mujoco.mjtState
    pose = state.mjSTATE_QPOS | state.mjSTATE_MOCAP_POS | state.mjSTATE_MOCAP_QUAT
    return int(pose), int(state.mjSTATE_INTEGRATION), int(state.mjSTATE_QPOS)


def _size(model: Any, signature: int) -> int:
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    return int(mujoco.mj_stateSize(model, signature))


def model_at(model: Any) -> Any:
    """Return a model.

    Args:
        model: an ``mjModel``, or the path of an ``.xml`` or ``.mjb`` file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    if not isinstance(model, str):
        return model
    if not Path(model).exists():
        raise FileNotFoundError(f"there is no model at {model!r}: pass the path of an .xml or .mjb file")
    if model.endswith(".mjb"):
        return mujoco.MjModel.from_binary_path(model)
    return mujoco.MjModel.from_xml_path(model)


def states_at(model: Any, positions: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the states of which poses follow, ``[..., n]``. Mocap bodies are where the model has them.

    Args:
        model: an ``mjModel``.
        positions: positions of joints, ``[..., nq]``.
    """
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    pose = _signatures()[0]
    state = np.empty(_size(model, pose))
    mujoco.mj_getState(model, mujoco.MjData(model), state, pose)
    states = np.tile(state, (*positions.shape[:-1], 1))
    states[..., : model.nq] = positions  # MuJoCo 4.0: they come first
    return states


def _root_of(model: Any) -> int:
    """Return the body that the view follows: the first one that moves freely or slides; -1: none does."""
    free, slide = 0, 2
    moving = (int(model.jnt_bodyid[at]) for at, kind in enumerate(model.jnt_type.tolist()) if kind in (free, slide))
    return next(moving, -1)
