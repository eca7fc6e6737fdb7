"""Export to Minari data sets. Minari is an extra."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from tensordict import TensorDict
from tensordict.utils import NestedKey

from torchrl_rerun.errors import warn
from torchrl_rerun.export.renaming import distinct, dotted
from torchrl_rerun.export.spaces import spaces_in
from torchrl_rerun.export.steps import (
    BROKEN,
    LeftOut,
    Progress,
    Unheld,
    array_of,
    described,
    unbroken_transitions,
    without_progress,
)
from torchrl_rerun.kinds.endings import FLAGS, TERMINATED, TRUNCATED
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.kinds.schema import Moment, Schema, TimedStream
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.loaded_episode import LoadedEpisode
from torchrl_rerun.reading.steps import steps as read_steps
from torchrl_rerun.recording.env_specs import ENV_SPEC
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
    progress: Progress = without_progress,
) -> Path:
    """Write episodes as a Minari data set, which ``minari.load_dataset(dataset_id)`` loads, and return its folder.

    - Observations and actions are the recorded arrays, or a dictionary of arrays if there are several keys.
    - A one-hot action becomes its index, as gymnasium's environments take it.
    - In a dictionary the name of a key is its parts joined by ``.``, in letters, digits, ``_`` and ``-``, since HDF5 can't
      have all characters. If two keys would have one name, the key that sorts later gets ``_2`` at its end, with a warning.
    - An interrupted episode is truncated at its last step.
    - Pictures are kept as pixels, not as JPEG.
    - Spaces are the environment's own if a wrapper of Gymnasium's or Stable-Baselines3's environments recorded them, else as wide as
      the dtypes.
    - The environment's spec is included, with its keyword arguments, time limit and wrappers, so that ``recover_environment()``
      gives an equal environment. A wrapper that gymnasium can't make from a spec is left out, with a warning. Of an environment
      whose spec can't be recorded (:class:`~torchrl_rerun.wrappers.sb3.VecRerunRecorder` around a ``SubprocVecEnv``, for one), the
      spec is the one that gymnasium knows for the environment's name, if it does.

    Args:
        episodes: the episodes, as :func:`~torchrl_rerun.load` returns them.
        dataset_id: Minari's id: ``"cartpole/expert-v0"``. The folder lies among Minari's data sets, in
            ``~/.minari/datasets`` or in ``MINARI_DATASETS_PATH``, and gets its name when it is whole.
        keys: the keys of observations and actions. Default: all but pictures and non-tensor data. Rewards and flags are
            always included.
        overwrite: replace a data set that exists.
        progress: called with the episodes and their number; yields the episodes one by one.

    Raises:
        FileExistsError: the data set exists, and ``overwrite`` is false.
        ImportError: Minari is missing.
        KeyError: a key isn't recorded.
        ValueError: there are no episodes, no observations or no actions; there are rewards of several agents; Minari can't
            hold a key; or ``dataset_id`` isn't an id.
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
    folder = Path(get_dataset_path(dataset_id)).absolute()  # Minari looks for relative paths below themselves
    if not episodes:
        raise ValueError("there are no episodes to export")
    unheld, left_out = unheld_in(episodes), LeftOut(BROKEN)
    layout = _Layout(next(described(episodes[:1], keys, unheld))[1], episodes[0].schema)
    with written_aside(folder, overwrite=overwrite, sign=SIGN) as hidden:
        (hidden / "data").mkdir(parents=True)
        storage = MinariStorage.new(
            hidden / "data",
            observation_space=layout.observations.space,
            action_space=layout.actions.space,
            env_spec=_spec_in(episodes[0].schema),
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


def _spec_in(schema: Schema) -> gym.envs.registration.EnvSpec | None:
    """Return the spec of the environment; None if it is unknown, or JSON can't have it."""
    source = schema.source
    text, registered = source.origin.get(ENV_SPEC), gym.registry.get(source.name or "")
    try:
        spec = registered if text is None else gym.envs.registration.EnvSpec.from_json(text)
        if spec is None:
            return None
        spec.to_json()
    except (TypeError, ValueError, LookupError, gym.error.Error):  # functions; or it is of another version of gymnasium
        return None
    wrappers = [each for each in spec.additional_wrappers if not each.entry_point.startswith(_WITHOUT_TRACE)]
    missing = [each.name for each in wrappers if each.kwargs is None]
    if missing:
        warn(
            f"recover_environment() will make the environment without {', '.join(missing)}: a wrapper that gymnasium can make "
            "again derives from gymnasium.utils.RecordConstructorArgs"
        )
    return dataclasses.replace(spec, additional_wrappers=tuple(each for each in wrappers if each.kwargs is not None))


_WITHOUT_TRACE = ("torchrl_rerun.", "stable_baselines3.common.monitor:")
"""Modules of wrappers that change nothing of what an environment gives: recorders, and statistics."""


def unheld_in(episodes: Sequence[LoadedEpisode]) -> Unheld:
    """Return the function that says why Minari can't hold a key, for episodes that are recorded like the first one."""
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


def _reward_in(recorded: Sequence[TimedStream]) -> Stream | None:
    """Return the reward of which the recorder worked out the return; None: there is none."""
    known = {stream.key: stream for stream, _ in recorded}
    return next((known[stream.reward_key] for stream, _ in recorded if stream.reward_key in known), None)


class _Part:
    """Observations, or actions: one array, or a dictionary of several.

    Args:
        streams: the keys.
        what: their name in errors.
        known: the spaces of keys, as far as they are known.
    """

    def __init__(self, streams: Sequence[Stream], what: str, known: Mapping[Key, gym.Space[Any]]) -> None:
        if not streams:
            raise ValueError(f"nothing that is {what} is exported: choose a key that is")
        self.streams = streams
        wishes = [dotted(stream.key, name_of(stream.key), stream.key) for stream in streams]
        self._names = distinct(wishes, f"Minari, of what is {what}") if len(streams) > 1 else {}
        self.space = self._together(functools.partial(_space, known), gym.spaces.Dict)

    def of(self, arrays: Callable[[Stream], npt.NDArray[Any]]) -> Any:
        """Return the values in Minari's form."""
        return self._together(arrays, dict)

    def _together(self, of_each: Callable[[Stream], Any], of_several: Callable[[dict[str, Any]], Any]) -> Any:
        """Return the result for the only key, or the results for several by their names."""
        if not self._names:
            return of_each(self.streams[0])
        return of_several({self._names[stream.key]: of_each(stream) for stream in self.streams})


class _Layout:
    """The roles of keys in a Minari data set.

    Args:
        wanted: the exported keys.
        schema: the description of the recording.
    """

    def __init__(self, wanted: Sequence[TimedStream], schema: Schema) -> None:
        recorded, spaces = schema.described, spaces_in(schema)
        observed = [stream for stream, moment in wanted if moment is Moment.OBSERVED and stream.key[-1] not in FLAGS]
        self.observations = _Part([stream for stream in observed if not stream.reward_key], "observed", spaces)
        self.actions = _Part([stream for stream, moment in wanted if moment is Moment.ACTED], "done", spaces)
        known = {stream.key: stream for stream, _ in recorded}
        reward = _reward_in(recorded)
        if reward is None or math.prod(reward.shape) != 1:
            raise ValueError("Minari has one reward for each step, and so have to have recordings for it")
        self.reward = reward
        self.flags = {name: known.get((name,)) for name in FLAGS}

    @property
    def streams(self) -> list[Stream]:
        """All keys that are read."""
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
    """Return the observations, ``[steps + 1, ...]``: before each step, and after the last one."""
    return _indices(stream, np.concatenate([array_of(steps, stream), array_of(steps["next"], stream)[-1:]]))


def _ends(
    layout: _Layout, episode: LoadedEpisode, steps: TensorDict
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return at which steps an episode is terminated, and at which truncated, bool ``[steps]`` each."""
    terminated, truncated = (_raised(layout, episode, steps, name) for name in (TERMINATED, TRUNCATED))
    truncated[-1] |= not terminated[-1]
    return terminated, truncated


def _raised(layout: _Layout, episode: LoadedEpisode, steps: TensorDict, name: str) -> npt.NDArray[np.bool_]:
    """Return at which steps a flag is up, bool ``[steps]``; by the episode's properties if the flag isn't recorded."""
    stream = layout.flags[name]
    if stream is not None:
        return np.asarray(array_of(steps["next"], stream).reshape(len(steps), -1).any(axis=1))
    up = np.zeros(len(steps), np.bool_)
    up[-1] = episode.properties[name]
    return up


def _indices(stream: Stream, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return one-hot values as indices, and all other values as they are."""
    if stream.kind.discrete != "one_hot":
        return values
    segments = np.split(values, np.cumsum(_sizes(stream))[:-1], axis=-1)
    indices = np.stack([segment.argmax(axis=-1) for segment in segments], axis=-1)
    return indices[..., 0] if len(segments) == 1 else indices


def _sizes(stream: Stream) -> tuple[int, ...]:
    return stream.kind.categories or (stream.shape[-1],)


def _space(known: Mapping[Key, gym.Space[Any]], stream: Stream) -> gym.Space[Any]:
    """Return gymnasium's space of a key's values: the environment's own, if it is known."""
    found = known.get(stream.key)
    if found is not None and (found.shape, found.dtype) == (stream.shape, stream.storage):
        return found
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
