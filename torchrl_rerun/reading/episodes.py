"""Episodes of recordings: each as a tensordict, all of them as a rollout, a dataset or a replay buffer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey

from torchrl_rerun.kinds.episode import Episode, Predicate
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.kinds.streams import Key, as_key, name_of
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.outcomes import outcomes
from torchrl_rerun.reading.padding import as_tensor
from torchrl_rerun.reading.rollout import Chosen, rollout
from torchrl_rerun.reading.steps import steps
from torchrl_rerun.rrd.frame_codes import episode_span
from torchrl_rerun.rrd.listing import beginning
from torchrl_rerun.rrd.reader import FilePart

if TYPE_CHECKING:
    from torchrl.data import Storage, TensorDictReplayBuffer

    from torchrl_rerun.reading.learning import StepDataset


class LoadedEpisodes(Sequence["LoadedEpisode"]):
    """A sequence of recorded episodes, in the order in which they began, as :func:`load` returns it.

    Args:
        histories: the recorded environments, each with its episode if the recording is of one.
        chosen: the episodes. Default: all of them.
    """

    def __init__(
        self,
        histories: Sequence[tuple[History, Episode | None]],
        chosen: Sequence[LoadedEpisode] | None = None,
    ) -> None:
        self._histories = histories
        self._chosen = chosen

    @functools.cached_property
    def _episodes(self) -> Sequence[LoadedEpisode]:
        if self._chosen is not None:
            return self._chosen
        found = [
            LoadedEpisode(history, episode)
            for history, known in self._histories
            for episode in (outcomes(history) if known is None else [known])
        ]
        return sorted(found, key=lambda each: beginning(each.properties))

    def __len__(self) -> int:
        return len(self._episodes)

    @overload
    def __getitem__(self, index: int) -> LoadedEpisode: ...
    @overload
    def __getitem__(self, index: slice) -> LoadedEpisodes: ...
    def __getitem__(self, index: int | slice) -> LoadedEpisode | LoadedEpisodes:
        return (
            LoadedEpisodes(self._histories, self._episodes[index])
            if isinstance(index, slice)
            else self._episodes[index]
        )

    def __repr__(self) -> str:
        keys = ", ".join(name_of(key) for key in self.keys())
        episodes = "1 episode" if len(self) == 1 else f"{len(self)} episodes"
        return f"{episodes}, {sum(each.properties.length for each in self)} steps in all, of {keys}"

    def where(self, predicate: Predicate) -> LoadedEpisodes:
        """Return the episodes that a condition holds for: ``load(path).where(lambda episode: episode.length > 50)``.

        Args:
            predicate: a function of an :class:`Episode` that returns whether to include it.

        Examples:
            >>> import numpy as np, tempfile
            >>> from torchrl_rerun import load, replay
            >>> folder = tempfile.mkdtemp()
            >>> ends = np.arange(20) % 10 == 9
            >>> np.savez(f"{folder}/old.npz", obs=np.random.rand(20, 3), actions=np.arange(20), terminals=ends)
            >>> replayed = replay(f"{folder}/old.npz", f"{folder}/old.rrd")
            >>> load(f"{folder}/old.rrd").where(lambda episode: episode.episode > 0)
            1 episode, 10 steps in all, of 'observation', 'terminated', 'done', 'action'
        """
        return LoadedEpisodes(self._histories, [each for each in self if predicate(each.properties)])

    def keys(self) -> list[Key]:
        """Return the keys that are recorded of any episode."""
        histories = [history for history, _ in self._histories]
        if self._chosen is not None:
            histories = [each.history for each in self._chosen]
        return list(dict.fromkeys(stream.key for each in histories for stream, _ in each.recording.schema.described))

    def rollout(self, keys: Sequence[NestedKey] | None = None) -> TensorDictBase:
        """Return the steps of all episodes, ``[*batch, time]``, as the recorded rollout held them.

        Environments are in the order of their indices, and those of workers in the order of the workers' numbers.

        Args:
            keys: the keys. Default: all but the returns that the recorder worked out.

        Raises:
            ValueError: the environments haven't taken the same number of steps, or there are several recordings.
            KeyError: a key isn't recorded.
            TypeError: ``keys`` is a string instead of a list.

        Examples:
            >>> import tempfile
            >>> from torchrl.envs import GymEnv, SerialEnv
            >>> from torchrl_rerun import RerunRecorder, load
            >>> path = tempfile.mkdtemp() + "/run.rrd"
            >>> env = SerialEnv(2, lambda: GymEnv("CartPole-v1")).append_transform(RerunRecorder(path))
            >>> rollout = env.rollout(100, break_when_any_done=False)
            >>> env.close()
            >>> load(path).rollout(["reward"])["next", "reward"].shape
            torch.Size([2, 100, 1])
        """
        return rollout(self._by_history(), wanted_keys(keys))

    def dataset(self, slice_len: int | None = None, keys: Sequence[NestedKey] | None = None) -> StepDataset:
        """Return the steps as a ``torch.utils.data.Dataset``, read from the files when they are asked for.

        The items are tensordicts: pass ``collate_fn=torch.stack`` to a ``DataLoader``. Worker processes can have copies.

        Args:
            slice_len: steps in an item, which is ``[slice_len]``. An item begins at each step of an episode that enough
                others follow. Default: items are single steps, ``[]``.
            keys: the keys. Default: all but the returns that the recorder worked out.

        Raises:
            KeyError: a key isn't recorded.
            TypeError: ``keys`` is a string instead of a list.
            ValueError: ``slice_len`` is less than 1.

        Examples:
            >>> import tempfile
            >>> from torchrl.envs import GymEnv
            >>> from torchrl_rerun import RerunRecorder, load
            >>> path = tempfile.mkdtemp() + "/run.rrd"
            >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
            >>> rollout = env.rollout(200, break_when_any_done=False)
            >>> env.close()
            >>> slices = load(path).dataset(slice_len=4, keys=["observation", "reward"])
            >>> slices[0].shape, slices[0]["next", "reward"].shape
            (torch.Size([4]), torch.Size([4, 1]))
        """
        from torchrl_rerun.reading.learning import StepDataset  # noqa: PLC0415 - that module imports this one

        return StepDataset(list(self), slice_len, wanted_keys(keys))

    def replay_buffer(
        self,
        *,
        batch_size: int,
        slice_len: int | None = None,
        storage: Storage | None = None,
        keys: Sequence[NestedKey] | None = None,
    ) -> TensorDictReplayBuffer:
        """Return a replay buffer of TorchRL that holds all the steps.

        ``("collector", "traj_ids")`` numbers the episodes, as in TorchRL's collectors. So no slice goes beyond the end of an
        episode, also of an interrupted one.

        Args:
            batch_size: steps in a sample, a multiple of ``slice_len``.
            slice_len: steps in a row that a sample is made of. Default: single steps.
            storage: storage of the steps. Default: memory.
            keys: the keys. Default: all but the returns that the recorder worked out.

        Raises:
            KeyError: a key isn't recorded.
            TypeError: ``keys`` is a string instead of a list.
            ValueError: there are no steps, no episode has as many as a slice, or ``batch_size`` isn't a multiple of
                ``slice_len``.

        Examples:
            >>> import tempfile
            >>> from torchrl.envs import GymEnv
            >>> from torchrl_rerun import RerunRecorder, load
            >>> path = tempfile.mkdtemp() + "/run.rrd"
            >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
            >>> rollout = env.rollout(200, break_when_any_done=False)
            >>> env.close()
            >>> buffer = load(path).replay_buffer(batch_size=32, slice_len=8)
            >>> len(buffer), buffer.sample().shape
            (200, torch.Size([32]))
        """
        from torchrl_rerun.reading.learning import replay_buffer  # noqa: PLC0415 - TorchRL's data takes a second to import

        return replay_buffer(
            list(self), batch_size=batch_size, slice_len=slice_len, storage=storage, keys=wanted_keys(keys)
        )

    def _by_history(self) -> list[Chosen]:
        """Return the environments, each with the numbers of the episodes that are wanted of it; None: all."""
        if self._chosen is None and all(known is None for _, known in self._histories):
            return [(history, None) for history, _ in self._histories]
        numbers: dict[int, tuple[History, list[int]]] = {}
        for each in self:
            numbers.setdefault(id(each.history), (each.history, []))[1].append(each.properties.episode)
        return list(numbers.values())


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
        """The files of its recording; empty for a recording in a catalog."""
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
