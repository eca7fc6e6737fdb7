"""Recordings as Minari data sets. Minari is an extra."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from tensordict import TensorDict
from tensordict.utils import NestedKey

from torchrl_rerun.export.renaming import distinct, dotted
from torchrl_rerun.export.steps import (
    BROKEN,
    LeftOut,
    Progress,
    Unheld,
    array_of,
    described,
    unbroken_transitions,
    unchanged,
)
from torchrl_rerun.kinds.endings import FLAGS
from torchrl_rerun.kinds.schema import Described, Moment
from torchrl_rerun.kinds.streams import Stream, name_of
from torchrl_rerun.reading.episodes import LoadedEpisode
from torchrl_rerun.reading.steps import steps as read_steps
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.frame_codes import episode_span

SIGN = "data/metadata.json"
"""The file by which the folder of a data set is known."""


def to_minari(
    episodes: Sequence[LoadedEpisode],
    dataset_id: str,
    *,
    keys: Sequence[NestedKey] | None = None,
    overwrite: bool = False,
    progress: Progress = unchanged,
) -> Path:
    """Write episodes as a Minari data set, which ``minari.load_dataset(dataset_id)`` gives back. Returns its folder.

    Observations are the arrays that were recorded, of several keys as a dictionary; so are actions, but that a one-hot
    action becomes its index, as gymnasium's environments take it. In the dictionary a key is its parts, joined by ``.``,
    in letters, digits, ``_`` and ``-``, since HDF5 can't have all characters; if two would have one name, the one that
    sorts later gets ``_2`` at its end. A warning says so. An episode that was interrupted is truncated at its last step.
    Pictures are kept as pixels, not as JPEG. Where gymnasium knows the environment's name, its spec goes with it.

    Args:
        episodes: the episodes, as :func:`~torchrl_rerun.load` gives them.
        dataset_id: what Minari calls it: ``"cartpole/expert-v0"``. It lies where Minari's data sets do, in
            ``~/.minari/datasets`` or in ``MINARI_DATASETS_PATH``, and is there when it is whole.
        keys: which ones of those that are observed and done; None: all but pictures and non-tensor data. Rewards and
            flags always are.
        overwrite: replace a data set that exists.
        progress: is given the episodes, and how many they are, and gives them back one by one.

    Raises:
        FileExistsError: the data set exists, and ``overwrite`` is false.
        ImportError: Minari is missing.
        KeyError: a key isn't recorded.
        ValueError: there are no episodes; nothing is observed or done in them; there are rewards of several agents; what
            Minari can't hold is wanted; or ``dataset_id`` is none.
    """
    import minari  # noqa: PLC0415 - an extra
    from minari.dataset.minari_dataset import parse_dataset_id  # noqa: PLC0415
    from minari.dataset.minari_storage import MinariStorage  # noqa: PLC0415
    from minari.namespace import create_namespace, list_local_namespaces  # noqa: PLC0415
    from minari.storage.datasets_root_dir import get_dataset_path  # noqa: PLC0415

    try:
        namespace, _, _ = parse_dataset_id(dataset_id)
    except TypeError:  # Minari's own, where there is no version (minari 0.5)
        raise ValueError(
            f"{dataset_id!r} is no id of a Minari data set: it ends in a version, as cartpole/expert-v0"
        ) from None
    folder = Path(get_dataset_path(dataset_id)).absolute()  # Minari looks for relative ones below themselves
    if not episodes:
        raise ValueError("there are no episodes to export")
    unheld, left_out = unheld_in(episodes), LeftOut(BROKEN)
    layout = _Layout(next(described(episodes[:1], keys, unheld))[1], episodes[0].schema.described)
    with written_aside(folder, overwrite=overwrite, sign=SIGN) as hidden:
        (hidden / "data").mkdir(parents=True)
        storage = MinariStorage.new(
            hidden / "data",
            observation_space=layout.observations.space,
            action_space=layout.actions.space,
            env_spec=gym.registry.get(episodes[0].schema.source.name or ""),
            jpeg_encoding=False,
        )
        storage.update_metadata({"dataset_id": dataset_id, "minari_version": minari.__version__})
        found = described(progress(episodes, len(episodes)), keys, unheld)
        storage.update_episodes(_buffers(layout, found, left_out))
        if not storage.total_episodes:
            raise left_out.nothing()
    left_out.say()
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)
    return folder


def unheld_in(episodes: Sequence[LoadedEpisode]) -> Unheld:
    """Return what says why Minari can't hold a key of some episodes, of which the first one says what is recorded."""
    reward = _reward_in(episodes[0].schema.described)

    def unheld(stream: Stream, moment: Moment) -> str:
        if not stream.is_plain:
            return "is no tensor of real numbers of one shape, which Minari can't hold"
        if stream.key[-1] in FLAGS:
            return "" if len(stream.key) == 1 else "is a flag of a group, and Minari has those of the episode alone"
        if moment is Moment.STEPPED and stream != reward:
            return "comes of a step, and Minari has one reward and the flags alone for that"
        return ""

    return unheld


def _reward_in(recorded: Sequence[Described]) -> Stream | None:
    """The reward of which the recorder worked out the return."""
    known = {stream.key: stream for stream, _ in recorded}
    return next((known[stream.sums] for stream, _ in recorded if stream.sums in known), None)


class _Part:
    """What is observed, or done: one array, or a dictionary of several.

    Args:
        streams: the keys.
        what: what it is called in errors.
    """

    def __init__(self, streams: Sequence[Stream], what: str) -> None:
        if not streams:
            raise ValueError(f"nothing that is {what} is exported: choose a key that is")
        self.streams = streams
        wishes = [dotted(stream.key, name_of(stream.key), stream.key) for stream in streams]
        self._names = distinct(wishes, f"Minari, of what is {what}") if len(streams) > 1 else {}
        self.space = self._together(_space, gym.spaces.Dict)

    def of(self, arrays: Callable[[Stream], npt.NDArray[Any]]) -> Any:
        """Its values."""
        return self._together(arrays, dict)

    def _together(self, of_each: Callable[[Stream], Any], of_several: Callable[[dict[str, Any]], Any]) -> Any:
        """What comes of the only key, or of several by their names."""
        if not self._names:
            return of_each(self.streams[0])
        return of_several({self._names[stream.key]: of_each(stream) for stream in self.streams})


class _Layout:
    """Which key becomes what.

    Args:
        wanted: what of observations and actions is wanted.
        recorded: all that is recorded.
    """

    def __init__(self, wanted: Sequence[Described], recorded: Sequence[Described]) -> None:
        observed = [stream for stream, moment in wanted if moment is Moment.OBSERVED and stream.key[-1] not in FLAGS]
        self.observations = _Part([stream for stream in observed if not stream.sums], "observed")
        self.actions = _Part([stream for stream, moment in wanted if moment is Moment.ACTED], "done")
        known = {stream.key: stream for stream, _ in recorded}
        reward = _reward_in(recorded)
        if reward is None or math.prod(reward.shape) != 1:
            raise ValueError("Minari has one reward for each step, and so have to have recordings for it")
        self.reward = reward
        self.flags = {name: known.get((name,)) for name in FLAGS}

    @property
    def streams(self) -> list[Stream]:
        """All that is read."""
        flags = [stream for stream in self.flags.values() if stream is not None]
        return [*self.observations.streams, *self.actions.streams, self.reward, *flags]


def _buffers(layout: _Layout, episodes: Iterable[tuple[LoadedEpisode, Any]], left_out: LeftOut) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer  # noqa: PLC0415 - an extra

    for episode, _ in episodes:
        wanted = episode.history.described([stream.key for stream in layout.streams])
        at = unbroken_transitions(episode, wanted, left_out)
        steps = read_steps(episode.history, wanted, episode_span(episode.properties.episode), at)
        if len(steps):
            terminated, truncated = _ends(layout, episode, steps)
            yield EpisodeBuffer(
                seed=episode.properties.seed,
                observations=layout.observations.of(functools.partial(_observed, steps)),
                actions=layout.actions.of(functools.partial(_done, steps)),
                rewards=array_of(steps["next"], layout.reward).reshape(-1),
                terminations=terminated,
                truncations=truncated,
                infos={},  # None is what its own `repr` can't show
            )


def _done(steps: TensorDict, stream: Stream) -> npt.NDArray[Any]:
    return _indices(stream, array_of(steps, stream))


def _observed(steps: TensorDict, stream: Stream) -> npt.NDArray[Any]:
    """What was observed, after the last step, too."""
    return _indices(stream, np.concatenate([array_of(steps, stream), array_of(steps["next"], stream)[-1:]]))


def _ends(
    layout: _Layout, episode: LoadedEpisode, steps: TensorDict
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """At which steps it was terminated, and at which truncated."""
    terminated, truncated = (_raised(layout, episode, steps, name) for name in ("terminated", "truncated"))
    truncated[-1] |= not terminated[-1]
    return terminated, truncated


def _raised(layout: _Layout, episode: LoadedEpisode, steps: TensorDict, name: str) -> npt.NDArray[np.bool_]:
    """At which steps a flag is up; where it isn't recorded, by what the episode came to."""
    stream = layout.flags[name]
    if stream is not None:
        return np.asarray(array_of(steps["next"], stream).reshape(len(steps), -1).any(axis=1))
    up = np.zeros(len(steps), np.bool_)
    up[-1] = episode.properties[name]
    return up


def _indices(stream: Stream, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """One-hot values as the indices of what is hot, all others as they are."""
    if stream.kind.discrete != "one_hot":
        return values
    segments = np.split(values, np.cumsum(_sizes(stream))[:-1], axis=-1)
    indices = np.stack([segment.argmax(axis=-1) for segment in segments], axis=-1)
    return indices[..., 0] if len(segments) == 1 else indices


def _sizes(stream: Stream) -> tuple[int, ...]:
    return stream.kind.categories or (stream.shape[-1],)


def _space(stream: Stream) -> gym.Space[Any]:
    """The space of a key's values."""
    shape: tuple[int, ...] = stream.shape
    dtype: np.dtype[Any] = np.dtype(np.float32) if stream.dtype == "bfloat16" else stream.storage
    if stream.kind.discrete == "one_hot" and len(shape) == 1:
        sizes = _sizes(stream)
        return gym.spaces.Discrete(sizes[0]) if len(sizes) == 1 else gym.spaces.MultiDiscrete(list(sizes))
    if stream.kind.discrete == "index" and shape == () and stream.kind.categories:
        return gym.spaces.Discrete(stream.kind.categories[0])
    if stream.kind.discrete == "one_hot":
        sizes = _sizes(stream)
        return gym.spaces.Box(0, max(sizes), (*shape[:-1], *([] if len(sizes) == 1 else [len(sizes)])), np.int64)
    if dtype == np.bool_:
        return gym.spaces.MultiBinary(shape)
    if np.issubdtype(dtype, np.floating):
        return gym.spaces.Box(-np.inf, np.inf, shape, dtype)
    limits = np.iinfo(dtype)
    return gym.spaces.Box(limits.min, limits.max, shape, dtype)
