"""Reading: recordings, given back as tensordicts in TorchRL's own form."""

from __future__ import annotations

import functools
import glob
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict, TensorDictBase
from tensordict.utils import NestedKey

from torchrl_rerun.contents import Contents, contents_of
from torchrl_rerun.decoding import Stored, Track, pictures, stored
from torchrl_rerun.episodes import EPISODE, EPISODE_STEP, LOG_TIME, STEP, TIMELINES, Positions
from torchrl_rerun.finding import files_of
from torchrl_rerun.images import row_of
from torchrl_rerun.keeping import Episode, Predicate
from torchrl_rerun.listing import list_episodes
from torchrl_rerun.rows import Rows, read_rows
from torchrl_rerun.schema import Moment, Schema
from torchrl_rerun.streams import Key, Stream, entity_path, name_of

_FLAGS = ("done", "terminated", "truncated")
_EPOCH = datetime.fromtimestamp(0, UTC)


def load(path: str | os.PathLike[str], where: Predicate | None = None) -> Recordings:
    """The episodes in a recording, to read them back as they were recorded.

    Nothing but what describes them is read until it is asked for.

    Args:
        path: an ``.rrd`` file (its parts and the files of its workers come with it), a folder, or a pattern such as
            ``"runs/*.rrd"``. The file of a run that was killed is as good.
        where: which episodes: a function of an :class:`Episode`, as ``lambda episode: episode.episode_return < 50``.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is no recording of ``torchrl_rerun`` in it.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_rerun import RerunRecorder, load
        >>> path = tempfile.mkdtemp() + "/run.rrd"
        >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
        >>> rollout = env.rollout(10)
        >>> env.close()
        >>> [episode] = load(path)
        >>> episode.properties.length == len(rollout)
        True
        >>> (episode.tensordict()["next", "observation"] == rollout["next", "observation"]).all()
        tensor(True)
    """
    given = os.fspath(path)
    is_pattern = glob.has_magic(given) and not Path(given).exists()
    found = sorted(glob.glob(given, recursive=True)) if is_pattern else [given]  # noqa: PTH207 - it may be absolute
    if not found:
        raise FileNotFoundError(f"nothing matches {given!r}")
    episodes: list[LoadedEpisode] = []
    for each in found:
        episodes += _episodes_at(Path(each))
    if not episodes:
        raise ValueError(f"there is no episode of torchrl_rerun in {given!r}")
    return Recordings(episodes if where is None else [each for each in episodes if where(each.properties)])


class Recordings(Sequence["LoadedEpisode"]):
    """Episodes of recordings, in the order in which they began in each environment.

    Args:
        episodes: the episodes.
    """

    def __init__(self, episodes: Sequence[LoadedEpisode]) -> None:
        self._episodes = list(episodes)

    def __len__(self) -> int:
        return len(self._episodes)

    @overload
    def __getitem__(self, index: int) -> LoadedEpisode: ...
    @overload
    def __getitem__(self, index: slice) -> Recordings: ...
    def __getitem__(self, index: int | slice) -> LoadedEpisode | Recordings:
        return Recordings(self._episodes[index]) if isinstance(index, slice) else self._episodes[index]

    def __repr__(self) -> str:
        keys = ", ".join(name_of(key) for key in self.keys())
        return f"{len(self)} episodes, {sum(each.properties.length for each in self)} steps, of {keys}"

    def where(self, predicate: Predicate) -> Recordings:
        """Those of which something is true: ``load(path).where(lambda episode: episode.truncated)``."""
        return Recordings([each for each in self if predicate(each.properties)])

    def keys(self) -> list[Key]:
        """The keys that are recorded of any."""
        return list(dict.fromkeys(key for each in self for key in each.keys()))

    def rollout(self, keys: Sequence[NestedKey] | None = None) -> TensorDictBase:
        """All steps of all environments, ``[*batch, time]``, as the rollout that was recorded held them.

        Args:
            keys: which ones; None: all but the returns that the recorder worked out.

        Raises:
            ValueError: the environments haven't taken the same number of steps, or there are several recordings.
            KeyError: a key isn't recorded.
        """
        return _rollout(self._episodes, _wanted(keys))


class LoadedEpisode:
    """An episode in a recording.

    Args:
        environment: the environment of which it is.
        properties: what it came to.

    Attributes:
        properties: what it came to.
        files: the files that it is in.
    """

    def __init__(self, environment: _Environment, properties: Episode) -> None:
        self._environment = environment
        self.properties = properties
        self.files = environment.run.files

    def __repr__(self) -> str:
        return f"LoadedEpisode({self.properties})"

    def keys(self) -> list[Key]:
        """The keys that are recorded."""
        return [stream.key for stream, _ in self._environment.run.schema.described]

    def tensordict(self, keys: Sequence[NestedKey] | None = None) -> TensorDict:
        """Its steps, ``[time]``: what was observed and done at t at the root, what came of it (t + 1) below ``"next"``.

        Dtypes and shapes are those that were recorded. Of frames that weren't recorded (``skip``, triggers) there is
        nothing: what is next is then the next one that is recorded. A step of which a key is missing is left out.

        Args:
            keys: which ones, without ``"next"``; None: all but the returns that the recorder worked out.

        Raises:
            KeyError: a key isn't recorded.
        """
        return self._environment.steps(_wanted(keys), self.properties.episode)

    def __getitem__(self, key: NestedKey) -> Any:
        """All values of a key, ``[rows, ...]``: of an observation one more than there are steps."""
        stream, _ = self._environment.described(_as_key(key))
        return _as_tensor(stream, self._environment.rows(stream, self.properties.episode).values)


# --- where recordings are ---


@dataclass(frozen=True)
class _Run:
    """A recording, in one or several files that follow one another.

    Attributes:
        files: its files.
        schema: what it says of itself.
    """

    files: tuple[Path, ...]
    schema: Schema


def _episodes_at(path: Path) -> Iterator[LoadedEpisode]:
    if path.is_dir():
        listing = list_episodes(path)
        files = listing.runs
        of_their_own = listing.episodes
    else:
        files = files_of(path)
        of_their_own = [found for file in files for found in list_episodes(file).episodes]
    for found in of_their_own:
        schema = contents_of(found.path)[0].schema
        assert schema is not None, "it is listed"
        yield LoadedEpisode(_Environment(_Run(found.paths, schema), found.episode.env), found.episode)
    for run in _runs(files):
        for env in run.schema.envs:
            environment = _Environment(run, env)
            for properties in environment.episodes():
                yield LoadedEpisode(environment, properties)


def _runs(files: Sequence[Path]) -> list[_Run]:
    """Recordings of whole runs, or of dumps, with the files that belong together."""
    found: dict[tuple[Any, ...], list[Contents]] = {}
    for contents in (each for file in files for each in contents_of(file)):
        schema = contents.schema
        if schema is not None and schema.split != "episode":
            # A dump goes on where the one before ended.
            same = contents.application_id if schema.split == "dump" else contents.recording_id
            found.setdefault((contents.file.parent, same, schema.envs), []).append(contents)
    return [_Run(tuple(dict.fromkeys(each.file for each in parts)), _last_schema(parts)) for parts in found.values()]


def _last_schema(parts: Sequence[Contents]) -> Schema:
    schema = parts[-1].schema
    assert schema is not None, "it was looked at"
    return schema


# --- one environment ---


class _Environment:
    """One environment of a recording."""

    def __init__(self, run: _Run, env: int) -> None:
        self.run = run
        self.env = env
        self._columns: dict[Key, _Column] = {}

    def described(self, key: Key) -> tuple[Stream, Moment]:
        for stream, moment in self.run.schema.described:
            if stream.key == key:
                return stream, moment
        there = ", ".join(name_of(stream.key) for stream, _ in self.run.schema.described)
        raise KeyError(f"{name_of(key)} is not recorded, but {there}")

    def rows(self, stream: Stream, episode: int | None) -> Rows:
        """The rows of a key; None: of all episodes."""
        column = self._columns.get(stream.key)
        if column is None:
            column = self._columns[stream.key] = _Column(self.run, self.env, stream)
        return column.of(episode)

    def steps(self, keys: Sequence[Key] | None, episode: int | None) -> TensorDict:
        """Steps, in TorchRL's form; None: of all episodes, one after the other."""
        described = self.run.schema.described
        if keys is None:
            wanted = [(stream, moment) for stream, moment in described if not stream.sums]
        else:
            wanted = [self.described(key) for key in keys]
        wanted = [each for each in wanted if not (each[0].shared and self.env != self.run.schema.envs[0])]
        read = {stream.key: self.rows(stream, episode) for stream, _ in wanted}
        frames = _common([read[stream.key].positions for stream, moment in wanted if moment is Moment.OBSERVED])
        if frames is None:
            frames = self._observed(episode)
        before, after = _transitions(
            frames,
            acted=[read[stream.key].positions for stream, moment in wanted if moment is Moment.ACTED],
            stepped=[read[stream.key].positions for stream, moment in wanted if moment is Moment.STEPPED],
        )
        out = TensorDict(batch_size=[len(before)])
        following = TensorDict(batch_size=[len(before)])
        for stream, moment in wanted:
            rows = read[stream.key]
            codes = _codes(rows.positions)
            if moment is not Moment.STEPPED:
                _set(out, stream, rows.values[np.searchsorted(codes, before)])
            if moment is not Moment.ACTED:
                _set(following, stream, rows.values[np.searchsorted(codes, after)])
        return out.set("next", following)

    def _observed(self, episode: int | None) -> npt.NDArray[np.int64]:
        """Where something was observed, where nothing of it is wanted."""
        described = [(stream, moment) for stream, moment in self.run.schema.described if not stream.shared]
        observed = [stream for stream, moment in described if moment is Moment.OBSERVED]
        if observed:
            return _codes(self.rows(min(observed, key=_cost), episode).positions)
        stepped = [stream for stream, moment in described if moment is Moment.STEPPED]
        if stepped:
            codes = _codes(self.rows(min(stepped, key=_cost), episode).positions)
            return np.unique(np.concatenate([codes - 1, codes]))
        raise KeyError("neither observations nor rewards nor flags are recorded: there are no steps to give back")

    def episodes(self) -> list[Episode]:
        """What the episodes came to."""
        streams = [stream for stream, _ in self.run.schema.described if not stream.shared]
        sums = [stream for stream in streams if stream.sums][:1]
        flags = [stream for stream in streams if stream.key[-1] in _FLAGS]
        outermost = min((len(stream.key) for stream in flags), default=0)
        flags = [stream for stream in flags if len(stream.key) == outermost]
        spine = self.rows((sums or flags or [min(streams, key=_cost)])[0], None)
        if not len(spine.positions):
            return []
        numbers = spine.positions[:, EPISODE]
        last = np.append(np.flatnonzero(numbers[1:] != numbers[:-1]), len(numbers) - 1)
        first = np.append(0, last[:-1] + 1)
        returns = spine.values.reshape(len(numbers), -1).mean(axis=1)[last] if sums else np.full(len(last), np.nan)
        raised = {name: np.zeros(len(last), bool) for name in _FLAGS}
        for stream in flags:
            rows = self.rows(stream, None)
            at = np.searchsorted(_codes(rows.positions), _codes(spine.positions[last]))
            at = np.minimum(at, len(rows.values) - 1)
            raised[stream.key[-1]] |= rows.values[at].reshape(len(last), -1).any(axis=1)
        raised["terminated"] |= raised["done"] & ~raised["truncated"]
        return [
            Episode(
                env=self.env,
                episode=int(numbers[end]),
                episode_return=float(returns[i]),
                length=int(spine.positions[end, EPISODE_STEP]),
                terminated=bool(raised["terminated"][i]),
                truncated=bool(raised["truncated"][i]),
                interrupted=not (raised["terminated"][i] or raised["truncated"][i]),
                first_step=int(spine.positions[begin, STEP] - spine.positions[begin, EPISODE_STEP]),
                start_time=_EPOCH + timedelta(microseconds=int(spine.positions[begin, LOG_TIME]) // 1000),
            )
            for i, (begin, end) in enumerate(zip(first, last, strict=True))
        ]


class _Column:
    """A key of one environment: read episode by episode, it is read once."""

    def __init__(self, run: _Run, env: int, stream: Stream) -> None:
        self._run = run
        self._env = env
        self._stream = stream
        self._coming: Iterator[Rows] | None = None
        self._ahead: Rows | None = None
        self._done = -1

    def of(self, episode: int | None) -> Rows:
        """The rows of an episode; None: of all."""
        if episode is None:
            return _joined(self._stream, self._chunks(None))
        if self._stream.kind == "image":
            return _joined(self._stream, self._chunks(episode))
        if self._coming is None or episode <= self._done:
            self._coming, self._ahead = self._chunks(None), None
        found = []
        while True:
            rows = self._ahead if self._ahead is not None else next(self._coming, None)
            self._ahead = None
            if rows is None:
                self._coming = None
                break
            numbers = rows.positions[:, EPISODE]
            begin, end = np.searchsorted(numbers, [episode, episode + 1])
            if end > begin:
                found.append(Rows(rows.positions[begin:end], rows.values[begin:end]))
            if end < len(numbers):
                self._ahead = Rows(rows.positions[end:], rows.values[end:])
                break
        self._done = episode
        return _joined(self._stream, iter(found))

    def _chunks(self, episode: int | None) -> Iterator[Rows]:
        """All rows, or those of an episode, of all agents together."""
        stream = self._stream
        env = None if self._run.schema.split == "episode" else self._env
        read = [self._of_lane(entity_path(stream, env, lane), lane, episode) for lane in range(stream.lanes)]
        if not stream.agents:
            yield from read[0]
            return
        for lanes in zip(*read, strict=True):
            yield Rows(lanes[0].positions, np.stack([rows.values for rows in lanes], axis=1))

    def _of_lane(self, path: str, lane: int, episode: int | None) -> Iterator[Rows]:
        if self._stream.kind != "image":
            yield from read_rows(self._run.files, path, self._stream)
            return
        track = Track(self._run.files, path, self._stream, self._env, lane, self._run.schema.source.fps)
        wanted: Iterator[Stored] = (each for each in stored(track) if episode in (None, each.episode))
        for picture in pictures(track, wanted):
            positions = np.zeros((1, len(TIMELINES)), np.int64)
            positions[0, EPISODE], positions[0, EPISODE_STEP] = picture.episode, picture.episode_step
            values = np.empty(1, object) if self._stream.dtype == "object" else None
            if values is None:
                yield Rows(positions, row_of(self._stream, picture.pixels)[None])
            else:
                values[0] = picture.pixels
                yield Rows(positions, values)


# --- steps ---


def _codes(positions: Positions) -> npt.NDArray[np.int64]:
    """A number for each row, which says its episode and its step in it: they grow, and come once in an environment."""
    return (positions[:, EPISODE] << 32) | positions[:, EPISODE_STEP]


def _common(several: Sequence[Positions]) -> npt.NDArray[np.int64] | None:
    """Where all keys have rows; None: there are no keys."""
    if not several:
        return None
    return functools.reduce(np.intersect1d, (_codes(positions) for positions in several))


def _transitions(
    frames: npt.NDArray[np.int64], *, acted: Sequence[Positions], stepped: Sequence[Positions]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """From where to where there are steps of which everything is known."""
    before, after = frames[:-1], frames[1:]
    is_whole = before >> 32 == after >> 32
    for positions in acted:
        is_whole &= np.isin(before, _codes(positions))
    for positions in stepped:
        is_whole &= np.isin(after, _codes(positions))
    return before[is_whole], after[is_whole]


def _rollout(episodes: Sequence[LoadedEpisode], keys: Sequence[Key] | None) -> TensorDictBase:
    environments = {id(each._environment): each._environment for each in episodes}  # noqa: SLF001 - its own
    if len({each.run.schema.source.batch_size for each in environments.values()}) > 1:
        raise ValueError("there are recordings of several batch sizes: load one of them")
    of_each = [environment.steps(keys, None) for environment in environments.values()]
    lengths = [len(steps) for steps in of_each]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"the environments took different numbers of steps ({min(lengths)} to {max(lengths)}), which no rollout "
            "holds: take their episodes one by one"
        )
    run = next(iter(environments.values())).run
    size = run.schema.source.batch_size
    if math.prod(size) != len(of_each):  # some of them, or those of several workers
        size = (len(of_each),)
    if not size:
        return of_each[0]
    return torch.stack(of_each, 0).reshape(*size, lengths[0])


# --- values ---


def _joined(stream: Stream, chunks: Iterator[Rows]) -> Rows:
    found = list(chunks)
    if not found:
        return Rows(np.zeros((0, len(TIMELINES)), np.int64), np.zeros((0, *stream.shape), stream.storage))
    if len(found) == 1:
        return found[0]
    positions, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Rows(positions, values)


def _as_tensor(stream: Stream, values: npt.NDArray[Any]) -> Any:
    if stream.dtype == "object":
        return list(values)
    values = np.ascontiguousarray(values)
    return (
        torch.from_numpy(values).view(getattr(torch, stream.dtype))
        if stream.dtype == "bfloat16"
        else torch.from_numpy(values)
    )


def _set(tensordict: TensorDict, stream: Stream, values: npt.NDArray[Any]) -> None:
    if stream.dtype == "object":
        tensordict.set(stream.key, NonTensorStack(*(NonTensorData(value) for value in values)))
    else:
        tensordict.set(stream.key, _as_tensor(stream, values))


def _cost(stream: Stream) -> tuple[bool, int]:
    """What it takes to read it."""
    return stream.kind == "image", stream.row_bytes


def _as_key(key: NestedKey) -> Key:
    parts = (key,) if isinstance(key, str) else tuple(key)
    return parts[1:] if len(parts) > 1 and parts[0] == "next" else parts


def _wanted(keys: Sequence[NestedKey] | None) -> list[Key] | None:
    if isinstance(keys, str):
        raise TypeError(f"keys={keys!r}: pass a list of keys, even of one: [{keys!r}]")
    return None if keys is None else list(dict.fromkeys(_as_key(key) for key in keys))
