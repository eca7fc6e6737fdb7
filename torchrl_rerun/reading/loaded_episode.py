"""An episode in a recording: its steps as a tensordict, and the rows of each key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.endings import FLAGS
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.kinds.keys import REWARD, Key, as_key
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.reading.history import History
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.frame_codes import episode_span

if TYPE_CHECKING:
    from tensordict import TensorDict
    from tensordict.utils import NestedKey

    from torchrl_rerun.kinds.shapes3d import Poses


class LoadedEpisode:
    """An episode in a recording.

    Args:
        history: the environment.
        properties: what the episode came to.

    Attributes:
        history: the environment.
        properties: what the episode came to.
    """

    def __init__(self, history: History, properties: Episode) -> None:
        self.history = history
        self.properties = properties

    def __repr__(self) -> str:
        return f"LoadedEpisode({self.properties})"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of its recording, and the black box of its folder if the rest is there; empty for one in a catalog."""
        parts = self.history.recording.parts
        return tuple(dict.fromkeys(part.file for part in parts if isinstance(part, FilePart)))

    @property
    def schema(self) -> Schema:
        """The description in its recording."""
        return self.history.recording.schema

    def keys(self) -> list[Key]:
        """Return the recorded keys."""
        return [stream.key for stream, _ in self.schema.described]

    def tensordict(self, keys: Sequence[NestedKey] | None = None) -> TensorDict:
        """Return the steps, ``[time]``: observations and actions of t at the root, the results (t + 1) below ``"next"``.

        - Dtypes and shapes are those that were recorded.
        - A step leads from a recorded frame to the next frame of the environment. If that frame wasn't recorded (``skip``,
          triggers) there is no step; ``episode[key]`` has all rows.
        - A key that is missing at some frames is filled there (NaN, 0, None). Masks stand beside it,
          ``("recorded", key)`` and ``("next", "recorded", key)``, True if a value was recorded. If a key is called
          ``"recorded"``, the masks are below ``"recorded_"``.
        - Values that vary in shape are padded to the largest, and their masks have their shape.

        Args:
            keys: the keys, without ``"next"``. Default: all but the returns that the recorder worked out.

        Raises:
            KeyError: a key isn't recorded.
            TypeError: ``keys`` is a string instead of a list.

        Examples:
            >>> import tempfile
            >>> from torchrl.envs import GymEnv
            >>> from torchrl_rerun import RerunRecorder, load
            >>> path = tempfile.mkdtemp() + "/run.rrd"
            >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
            >>> rollout = env.rollout(5)
            >>> env.close()
            >>> steps = load(path)[0].tensordict(["observation", "action"])
            >>> sorted(steps.keys()), steps["next", "observation"].shape
            (['action', 'next', 'observation'], torch.Size([5, 4]))
        """
        from torchrl_rerun.reading.steps import steps  # noqa: PLC0415 - arrays() needs no torch

        wanted = self.history.described(wanted_keys(keys))
        return steps(self.history, wanted, episode_span(self.properties.episode))

    def arrays(self, keys: Sequence[NestedKey] | None = None) -> dict[str | Key, npt.NDArray[Any] | list[Any]]:
        """Return all values of each key as NumPy arrays, ``[rows, ...]``, without importing torch.

        - An observation has one row more than there are steps: the last one is what the last step led to.
        - Keys of one name are strings, nested ones tuples. bfloat16 becomes float32.
        - Non-tensor data, and arrays that vary in shape, are lists of the values as they were. Frames at which a key is missing
          have no row.
        - Rows of keys are aligned only if all frames were recorded: :meth:`episode_steps` has the step of each row.
        - Rewards of Gymnasium's and Stable-Baselines3's environments are ``[steps]``, and flags ``[steps + 1]``: they are down at
          the reset.

        Args:
            keys: the keys. Default: all but the returns that the recorder worked out.

        Raises:
            KeyError: a key isn't recorded.
            TypeError: ``keys`` is a string instead of a list.

        Examples:
            >>> import tempfile
            >>> import gymnasium as gym
            >>> from torchrl_rerun import load
            >>> from torchrl_rerun.wrappers import RecordRerun
            >>> path = tempfile.mkdtemp() + "/run.rrd"
            >>> env = RecordRerun(gym.make("CartPole-v1"), path)
            >>> observation, info = env.reset(seed=0)
            >>> for _ in range(5):
            ...     result = env.step(env.action_space.sample())
            >>> env.close()
            >>> arrays = load(path)[0].arrays()
            >>> arrays["observation"].shape, arrays["action"].shape, arrays["reward"]
            ((6, 4), (5,), array([1., 1., 1., 1., 1.]))
        """
        span = episode_span(self.properties.episode)
        # TorchRL's rewards and flags have a dimension of their own.
        has_numbers = "front_end" in self.schema.source.origin
        found: dict[str | Key, npt.NDArray[Any] | list[Any]] = {}
        for stream, _ in self.history.described(wanted_keys(keys)):
            values = self.history.rows(stream, span).values
            name = _plain(stream.key)
            if values.dtype == object:
                found[name] = list(values)
                continue
            values = np.ascontiguousarray(stream.numbers(values) if stream.dtype == "bfloat16" else values)
            is_outcome = name in (REWARD, *FLAGS) or bool(stream.reward_key)
            is_number = has_numbers and is_outcome and stream.shape == (1,)
            found[name] = values.reshape(-1) if is_number else values
        return found

    def episode_steps(self, keys: Sequence[NestedKey] | None = None) -> dict[str | Key, npt.NDArray[np.int64]]:
        """Return the step within the episode of each row in :meth:`arrays`, int64 ``[rows]``, by the key.

        An action of step t answers the observation of step t, and leads to the reward and the observation of step t + 1. With
        ``skip``, triggers or missing values rows of keys are not aligned: these steps tell which belong together.

        Args:
            keys: the keys. Default: all but the returns that the recorder worked out.

        Raises:
            KeyError: a key isn't recorded.
            TypeError: ``keys`` is a string instead of a list.

        Examples:
            >>> import tempfile
            >>> import gymnasium as gym
            >>> from torchrl_rerun import load
            >>> from torchrl_rerun.wrappers import RecordRerun
            >>> path = tempfile.mkdtemp() + "/run.rrd"
            >>> env = RecordRerun(gym.make("CartPole-v1"), path, skip=2)
            >>> observation, info = env.reset(seed=0)
            >>> for _ in range(4):
            ...     result = env.step(env.action_space.sample())
            >>> env.close()
            >>> steps = load(path)[0].episode_steps(["observation", "action", "reward"])
            >>> steps["observation"], steps["action"], steps["reward"]
            (array([0, 2, 4]), array([0, 2]), array([2, 4]))
        """
        span = episode_span(self.properties.episode)
        return {
            _plain(stream.key): self.history.rows(stream, span).places.codes - span[0]
            for stream, _ in self.history.described(wanted_keys(keys))
        }

    def poses(self, key: NestedKey | None = None) -> Poses:
        """Return where the bodies of a scene were, at each frame at which it was recorded.

        Of a simulation of MuJoCo's they are worked out of its state by ``mj_kinematics``, bit for bit as ``mj_forward`` has them.

        Args:
            key: the key of the scene. Default: the only one.

        Raises:
            KeyError: there is no such scene, or its model isn't there.
            ValueError: there are several scenes, or another version of MuJoCo stored the model.

        Examples:
            >>> import tempfile
            >>> import gymnasium as gym
            >>> from torchrl_rerun import load
            >>> from torchrl_rerun.wrappers import RecordRerun
            >>> path = tempfile.mkdtemp() + "/run.rrd"
            >>> env = RecordRerun(gym.make("HalfCheetah-v5"), path, scene=True)
            >>> observation, info = env.reset(seed=0)
            >>> observation, *_ = env.step(env.action_space.sample())
            >>> env.close()
            >>> poses = load(path)[0].poses()
            >>> poses.bodies[:3], poses.positions.shape
            (('world', 'torso', 'bthigh'), (2, 8, 3))
        """
        from torchrl_rerun.reading.scenes import poses_in  # noqa: PLC0415 - few look for them

        return poses_in(self.history, episode_span(self.properties.episode), None if key is None else as_key(key))

    def __getitem__(self, key: NestedKey) -> Any:
        """Return all values of a key, ``[rows, ...]``. An observation has one row more than there are steps.

        Non-tensor data, and tensors that vary in shape, are a list of the values as they were. Frames at which the key is
        missing have no row.

        Raises:
            KeyError: the key isn't recorded.

        Examples:
            >>> import tempfile
            >>> from torchrl.envs import GymEnv
            >>> from torchrl_rerun import RerunRecorder, load
            >>> path = tempfile.mkdtemp() + "/run.rrd"
            >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
            >>> rollout = env.rollout(5)
            >>> env.close()
            >>> [episode] = load(path)
            >>> episode["observation"].shape, episode["reward"].shape
            (torch.Size([6, 4]), torch.Size([5, 1]))
        """
        from torchrl_rerun.reading.tensordicts import as_tensor  # noqa: PLC0415 - arrays() needs no torch

        [(stream, _)] = self.history.described([as_key(key)])
        return as_tensor(stream, self.history.rows(stream, episode_span(self.properties.episode)).values)


def wanted_keys(keys: Sequence[NestedKey] | None) -> list[Key] | None:
    """Return keys as they are recorded: without ``"next"``, each once."""
    if isinstance(keys, str):
        raise TypeError(f"keys={keys!r}: pass a list of keys, even of one: [{keys!r}]")
    return None if keys is None else list(dict.fromkeys(as_key(key) for key in keys))


def _plain(key: Key) -> str | Key:
    """Return a key as users write it: one of one name is a string."""
    return key[0] if len(key) == 1 else key
