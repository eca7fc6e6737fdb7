"""Episodes of recordings: each as a tensordict, all of them as a rollout, a dataset or a replay buffer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from torchrl_rerun.kinds.episode import Episode, Predicate
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.loaded_episode import LoadedEpisode, wanted_keys
from torchrl_rerun.reading.outcomes import outcomes
from torchrl_rerun.rrd.listing import beginning

if TYPE_CHECKING:
    from tensordict import TensorDictBase
    from tensordict.utils import NestedKey
    from torchrl.data import Storage, TensorDictReplayBuffer

    from torchrl_rerun.reading.learning import StepDataset
    from torchrl_rerun.reading.rollout import Chosen


class LoadedEpisodes(Sequence[LoadedEpisode]):
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
            if episode.length  # the recorder may have been dumped before the first step
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
        from torchrl_rerun.reading.rollout import rollout  # noqa: PLC0415 - arrays need no torch

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
        from torchrl_rerun.reading.learning import StepDataset  # noqa: PLC0415 - TorchRL's data takes a second to import

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
