"""An episode in a recording: its steps as a tensordict, and the rows of each key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensordict import TensorDict
from tensordict.utils import NestedKey

from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.kinds.keys import Key, as_key
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.padding import as_tensor
from torchrl_rerun.reading.steps import steps
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.frame_codes import episode_span


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
        wanted = self.history.described(wanted_keys(keys))
        return steps(self.history, wanted, episode_span(self.properties.episode))

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
        [(stream, _)] = self.history.described([as_key(key)])
        return as_tensor(stream, self.history.rows(stream, episode_span(self.properties.episode)).values)


def wanted_keys(keys: Sequence[NestedKey] | None) -> list[Key] | None:
    """Return keys as they are recorded: without ``"next"``, each once."""
    if isinstance(keys, str):
        raise TypeError(f"keys={keys!r}: pass a list of keys, even of one: [{keys!r}]")
    return None if keys is None else list(dict.fromkeys(as_key(key) for key in keys))
