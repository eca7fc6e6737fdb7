"""Reading: recordings, given back as tensordicts in TorchRL's own form."""

from __future__ import annotations

import functools
import glob
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.episode import Episode, Predicate
from torchrl_rerun.kinds.schema import Schema, told_lacking
from torchrl_rerun.kinds.streams import Key, Stream, name_of
from torchrl_rerun.paths import absolute, shown
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.padding import Form, as_tensor, fit, form_of, give_agents, mask_name
from torchrl_rerun.rrd.copies import copies_in, say_copies
from torchrl_rerun.rrd.files import files_of, not_ours
from torchrl_rerun.rrd.frame_codes import ALL, Span, episode_span
from torchrl_rerun.rrd.listing import beginning, episode_in, listing_of
from torchrl_rerun.rrd.parts import RecordingPart
from torchrl_rerun.rrd.reader import FilePart, parts_in, why_unreadable
from torchrl_rerun.rrd.runs import FOLDER_OF_WORKER
from torchrl_rerun.rrd.segments import SegmentPart

if TYPE_CHECKING:
    from rerun.catalog import DatasetEntry
    from torchrl.data import Storage, TensorDictReplayBuffer

    from torchrl_rerun.reading.learning import StepDataset

Place = str | os.PathLike[str]
"""The folder of a worker, in that of its run."""
AnyPart = TypeVar("AnyPart", bound=RecordingPart)


def load(source: Place | Iterable[Place] | DatasetEntry) -> Recordings:
    """The episodes in a recording, to read them back as they were recorded.

    Nothing but what describes the recording is read until it is asked for.

    Args:
        source: an ``.rrd`` file (its parts and the files of its workers come with it), a folder, a pattern such as
            ``"runs/*.rrd"``, or several of these; or a dataset of Rerun's catalog. A leading ``~`` is the user's home. The
            file of a run that was killed, or that goes on, is read as far as it is written; if there are fewer pictures
            in it than steps, a warning says so. A recording of which there are copies counts once, and a warning names
            these.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is no recording of ``torchrl_rerun`` in it, or a file is damaged. Also when it is read: another
            file was put in its place meanwhile.

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
    if hasattr(source, "segment_store"):  # `rerun.catalog` is imported by who has a dataset
        found = list(_segments(cast("DatasetEntry", source)))
    else:
        given = [source] if isinstance(source, str | os.PathLike) else list(source)
        files = list({file.resolve(): file for each in given for file in _files(os.fspath(each))}.values())
        found = list(_histories(files))
        if files and not found:
            raise ValueError(why_unreadable(files[0]) or not_ours(files[0]))
    if not found:
        raise ValueError(f"there is no recording of torchrl_rerun in {source}")
    return Recordings(found)


class Recordings(Sequence["LoadedEpisode"]):
    """Episodes of recordings, in the order in which they began.

    Args:
        histories: the environments that are recorded, each with its episodes if they are known.
        chosen: which of their episodes; None: all.
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
            for episode in (history.episodes() if known is None else [known])
        ]
        return sorted(found, key=lambda each: beginning(each.properties))

    def __len__(self) -> int:
        return len(self._episodes)

    @overload
    def __getitem__(self, index: int) -> LoadedEpisode: ...
    @overload
    def __getitem__(self, index: slice) -> Recordings: ...
    def __getitem__(self, index: int | slice) -> LoadedEpisode | Recordings:
        return Recordings(self._histories, self._episodes[index]) if isinstance(index, slice) else self._episodes[index]

    def __repr__(self) -> str:
        keys = ", ".join(name_of(key) for key in self.keys())
        episodes = "1 episode" if len(self) == 1 else f"{len(self)} episodes"
        return f"{episodes}, {sum(each.properties.length for each in self)} steps in all, of {keys}"

    def where(self, predicate: Predicate) -> Recordings:
        """Those of which something is true: ``load(path).where(lambda episode: episode.episode_return < 50)``.

        Args:
            predicate: a function of an :class:`Episode`.

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
        return Recordings(self._histories, [each for each in self if predicate(each.properties)])

    def keys(self) -> list[Key]:
        """The keys that are recorded of any."""
        histories = [history for history, _ in self._histories]
        if self._chosen is not None:
            histories = [each.history for each in self._chosen]
        return list(dict.fromkeys(stream.key for each in histories for stream, _ in each.run.schema.described))

    def rollout(self, keys: Sequence[NestedKey] | None = None) -> TensorDictBase:
        """The steps of all episodes, ``[*batch, time]``, as the rollout that was recorded held them.

        Environments are in the order of their indices: those of workers in the order of the workers' numbers.

        Args:
            keys: which ones; None: all but the returns that the recorder worked out.

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
        return _rollout(self._by_environment(), wanted_keys(keys))

    def dataset(self, slice_len: int | None = None, keys: Sequence[NestedKey] | None = None) -> StepDataset:
        """The steps as a ``torch.utils.data.Dataset``, read from the files when they are asked for.

        Its items are tensordicts: pass ``collate_fn=torch.stack`` to a ``DataLoader``. It can be sent to workers.

        Args:
            slice_len: items are so many steps of an episode, ``[slice_len]``, from each at which as many follow; None:
                single steps, ``[]``.
            keys: which ones; None: all but the returns that the recorder worked out.

        Raises:
            KeyError: a key isn't recorded.
            TypeError: ``keys`` is a string instead of a list.
            ValueError: ``slice_len`` is less than 1.
        """
        from torchrl_rerun.reading.learning import StepDataset  # noqa: PLC0415 - it needs this module

        return StepDataset(list(self), slice_len, wanted_keys(keys))

    def replay_buffer(
        self,
        *,
        batch_size: int,
        slice_len: int | None = None,
        storage: Storage | None = None,
        keys: Sequence[NestedKey] | None = None,
    ) -> TensorDictReplayBuffer:
        """A replay buffer of TorchRL that holds all the steps.

        Which episode a step is of it says under ``("collector", "traj_ids")``, as TorchRL's collectors do: slices don't
        go beyond the end of an episode, also of one that was interrupted.

        Args:
            batch_size: steps in a sample, a multiple of ``slice_len``.
            slice_len: samples are made of so many steps in a row each; None: of single steps.
            storage: where they are held; None: in memory.
            keys: which ones; None: all but the returns that the recorder worked out.

        Raises:
            KeyError: a key isn't recorded.
            TypeError: ``keys`` is a string instead of a list.
            ValueError: there are no steps, no episode has as many as a slice, or ``batch_size`` isn't a multiple of
                ``slice_len``.
        """
        from torchrl_rerun.reading.learning import replay_buffer  # noqa: PLC0415 - TorchRL's data takes a second to import

        return replay_buffer(
            list(self), batch_size=batch_size, slice_len=slice_len, storage=storage, keys=wanted_keys(keys)
        )

    def _by_environment(self) -> list[list[tuple[History, Sequence[int] | None]]]:
        """The environments by their indices, each with the numbers of the episodes that are wanted of it; None: all.

        Of several runs that comes first which began first. Which of its workers began first says nothing.
        """
        found: dict[tuple[Any, ...], list[tuple[History, Sequence[int] | None]]] = {}
        if self._chosen is None and all(known is None for _, known in self._histories):
            for history, _ in self._histories:
                found[_environment_of(history)] = [(history, None)]
        else:
            numbers: dict[int, list[int]] = {}
            for each in self:
                history = each.history
                if id(history) not in numbers:
                    numbers[id(history)] = []
                    found.setdefault(_environment_of(history), []).append((history, numbers[id(history)]))
                numbers[id(history)].append(each.properties.episode)
        runs: dict[Any, int] = {}
        times: Counter[tuple[Any, int]] = Counter()  # a run that was begun anew, under the same name, is another one
        order = {}
        for key in found:
            run, env, _ = key
            order[key] = runs.setdefault((run, times[run, env]), len(runs)), env
            times[run, env] += 1
        return [found[key] for key in sorted(found, key=order.__getitem__)]


class LoadedEpisode:
    """An episode in a recording.

    Args:
        history: the environment of which it is.
        properties: what it came to.

    Attributes:
        history: the environment of which it is.
        properties: what it came to.
    """

    def __init__(self, history: History, properties: Episode) -> None:
        self.history = history
        self.properties = properties

    def __repr__(self) -> str:
        return f"LoadedEpisode({self.properties})"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of its recording; of one in a catalog there are none."""
        parts = self.history.run.parts
        return tuple(dict.fromkeys(part.file for part in parts if isinstance(part, FilePart)))

    @property
    def schema(self) -> Schema:
        """What its recording says of itself."""
        return self.history.run.schema

    def keys(self) -> list[Key]:
        """The keys that are recorded."""
        return [stream.key for stream, _ in self.schema.described]

    def tensordict(self, keys: Sequence[NestedKey] | None = None) -> TensorDict:
        """Its steps, ``[time]``: what was observed and done at t at the root, what came of it (t + 1) below ``"next"``.

        Dtypes and shapes are those that were recorded. A step leads from a recorded frame to the one that followed it in the
        environment: where frames weren't recorded (``skip``, triggers) there are no steps, and ``episode[key]`` has the rows.

        A key that is missing at some of the frames is filled there (NaN, 0, None), and has a mask beside it,
        ``("recorded", key)`` and ``("next", "recorded", key)``, True where a value was recorded. The values of a key that
        vary in shape are padded to the largest; their mask has their shape. If a key is called ``"recorded"``, the masks
        are below ``"recorded_"``.

        Args:
            keys: which ones, without ``"next"``; None: all but the returns that the recorder worked out.

        Raises:
            KeyError: a key isn't recorded.
            TypeError: ``keys`` is a string instead of a list.
        """
        return self.history.steps(self.history.described(wanted_keys(keys)), episode_span(self.properties.episode))

    def __getitem__(self, key: NestedKey) -> Any:
        """All values of a key, ``[rows, ...]``: of an observation one more than there are steps.

        Of non-tensor data, and of tensors that vary in shape, it is a list: each value as it was. Frames at which the key is
        missing have no row.

        Raises:
            KeyError: the key isn't recorded.
        """
        [(stream, _)] = self.history.described([_as_key(key)])
        return as_tensor(stream, self.history.rows(stream, episode_span(self.properties.episode)).values)


# --- where recordings are ---


@dataclass
class _Run(Generic[AnyPart]):
    """A recording, in parts that follow one another.

    Attributes:
        parts: these.
        schema: what it says of itself.
    """

    parts: Sequence[AnyPart]
    schema: Schema


class _EpisodeRun:
    """The recording of one episode, which is opened when it is asked for.

    Args:
        files: its files.
        recording_id: its id; other recordings may be in them, too.
    """

    def __init__(self, files: Sequence[Path], recording_id: str) -> None:
        self._files = files
        self._recording_id = recording_id

    @functools.cached_property
    def parts(self) -> Sequence[RecordingPart]:
        """What follows one another."""
        found = [part for file in self._files for part in parts_in(file)]
        parts = [part for part in found if part.recording_id == self._recording_id]
        if not parts:
            raise ValueError(f"{shown(self._files[-1])} was replaced since it was loaded: load it again")
        return parts

    @property
    def schema(self) -> Schema:
        """What it says of itself."""
        return _schema(self.parts[-1])


def _schema(part: RecordingPart) -> Schema:
    schema = part.schema
    assert schema is not None, "it was looked at"
    return schema


def _files(given: str) -> Iterator[Path]:
    if glob.has_magic(given) and not absolute(given).exists():
        home, separator, below = given.partition("/") if given.startswith("~") else ("", "", given)
        pattern = glob.escape(os.path.expanduser(home)) + separator + below  # noqa: PTH111 - it is no path yet
        found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - it may be absolute
        matches = [match for match in found if Path(match).is_file() or Path(match).is_dir()]
        if not matches:
            raise FileNotFoundError(f"nothing matches {given!r}")
        for match in matches:
            yield from files_of(Path(match))
    else:
        yield from files_of(given)


def _histories(files: Sequence[Path]) -> Iterator[tuple[History, Episode | None]]:
    listing = listing_of(files)
    for found in listing.episodes:
        yield History(_EpisodeRun(found.paths, found.recording_id), found.episode.env), found.episode
    whole = {found.recording_id: found.path for found in listing.episodes}
    parts, copies, is_all = [], dict(listing.copies), len(files) == 1
    for part in _parts((*dict.fromkeys(listing.runs), *listing.unreadable), is_all=is_all):
        file, recording_id = part.file, part.recording_id
        if _schema(part).split != "episode":
            parts.append(part)
        elif file in listing.unreadable:  # the others are listed
            if recording_id in whole:
                copies[file, recording_id] = whole[recording_id]
            elif not is_all:
                warn(f"left out: {why_unreadable(file) or f'{shown(file)} is damaged'}", RuntimeWarning)
    copies |= copies_in(parts)
    say_copies(copies)
    for run in _runs(part for part in parts if (part.file, part.recording_id) not in copies):
        _say_lacking(run)
        for env in run.schema.envs:
            yield History(run, env), None


def _say_lacking(run: _Run[FilePart]) -> None:
    """Warn where a process that was killed, or that goes on, has written less of some keys than of others."""
    unfinished = [part.file for part in run.parts if not part.is_finished]
    if not unfinished:
        return
    rows: Counter[str] = Counter()
    for part in run.parts:
        rows.update({path: part.count(path) for path in part.index.recorded_paths})
    lacking = run.schema.lacking(rows)
    if lacking:
        warn(
            f"{shown(unfinished[-1])} isn't finished: it holds {told_lacking(lacking)}. Where they are missing, masks say so: "
            "('recorded', key)"
        )


def _segments(dataset: DatasetEntry) -> Iterator[tuple[History, Episode | None]]:
    for segment in dataset.segment_ids():
        part = SegmentPart.of(dataset, segment)
        if part.schema is not None:
            run = _Run([part], _schema(part))
            episode = episode_in(part.properties) if run.schema.split == "episode" else None
            for env in run.schema.envs if episode is None else [episode.env]:
                yield History(run, env), episode


def _parts(files: Sequence[Path], *, is_all: bool) -> Iterator[FilePart]:
    """What files hold of recordings of ours. One that is damaged is left out, and named, unless it is all that there is.

    Raises:
        ValueError: all that there is can't be read.
    """
    for file in files:
        try:
            found = parts_in(file)
        except ValueError as error:
            said = f"{why_unreadable(file) or error}"
            if is_all:
                raise ValueError(said) from error
            warn(f"left out: {said}", RuntimeWarning)
            continue
        yield from (part for part in found if part.schema is not None)


def _runs(parts: Iterable[FilePart]) -> Iterator[_Run[FilePart]]:
    """Parts that follow one another, put together."""
    found: dict[tuple[Any, ...], list[FilePart]] = {}
    ends: dict[tuple[Any, ...], dict[str, int]] = {}
    for part in sorted(parts, key=lambda part: part.began):
        schema = _schema(part)
        # A dump goes on where the one before ended.
        same = part.application_id if schema.split == "dump" else part.recording_id
        size, envs = schema.source.batch_size, schema.envs
        # A list of trajectories may have grown; recordings of several workers differ in their first environment.
        key = part.file.parent, same, schema.split, *((len(size), envs[:1]) if len(size) == 1 else (size, envs))
        reached = ends.setdefault(key, {})
        if any(first < reached.get(path, 0) for path, (first, _) in part.steps.items()):
            of_one = found.pop(key)  # it was begun anew, under the same name
            reached.clear()
            yield _Run(of_one, _schema(of_one[-1]))
        found.setdefault(key, []).append(part)
        reached.update({path: last for path, (_, last) in part.steps.items()})
    for of_one in found.values():
        yield _Run(of_one, _schema(of_one[-1]))


# --- rollouts ---


def _rollout(
    environments: Sequence[Sequence[tuple[History, Sequence[int] | None]]], keys: Sequence[Key] | None
) -> TensorDictBase:
    if not environments:
        raise ValueError("there are no episodes")
    schemas = [histories[0][0].run.schema for histories in environments]
    if len({schema.source.batch_size for schema in schemas}) > 1:
        raise ValueError("there are recordings of several batch sizes: load one of them")
    size = schemas[0].source.batch_size
    if math.prod(size) != len(environments):  # some of them, or those of several workers
        size = (len(environments),)
    first = _steps(environments[0], keys)
    if not size:
        return first
    streams, name = [stream for stream, _ in schemas[0].described], mask_name(schemas[0])
    out = _Batch(first, streams, name, len(environments))
    for number, histories in enumerate(environments):
        out.add(number, _steps(histories, keys) if number else first)
    rollout = out.tensordict.reshape(*size, len(first))
    for part in rollout, rollout.get("next"):
        give_agents(part, streams)
    return rollout


class _Batch:
    """The steps of environments, put into one tensordict one after the other.

    ``torch.stack`` would need twice the memory, and the time to get it.

    Args:
        first: the steps of the first environment.
        streams: what is recorded.
        name: below which masks stand.
        count: how many environments there are.
    """

    def __init__(self, first: TensorDict, streams: Sequence[Stream], name: str, count: int) -> None:
        self._first, self._streams, self._name, self._count = first, streams, name, count
        objects = [key for stream in streams if stream.dtype == "object" for key in _twice(stream.key)]
        self._objects = [key for key in objects if first.get(key, None) is not None]
        self._non_tensors: list[TensorDictBase] = []
        self._form = form_of(first, streams, name)
        self._tensors = TensorDict(batch_size=[count, len(first)])
        self._grow(first)

    def add(self, number: int, steps: TensorDict) -> None:
        """Add the steps of an environment.

        Raises:
            ValueError: they are more or fewer than those of the first one.
        """
        if len(steps) != len(self._first):
            raise ValueError(
                f"the environments took different numbers of steps ({len(self._first)} and {len(steps)}), which no rollout "
                "holds: take their episodes one by one"
            )
        form = self._form | form_of(steps, self._streams, self._name)
        if form != self._form:  # a key is missing here alone, or its values are larger than those before
            self._form = form
            self._tensors = fit(self._tensors, self._streams, self._name, form)
            self._first = fit(self._first, self._streams, self._name, form)
            self._grow(self._first)
        steps = fit(steps, self._streams, self._name, form)
        for key in self._tensors.keys(include_nested=True, leaves_only=True):  # the first holds what is shared by all
            self._tensors.get(key)[number] = steps.get(key, self._first.get(key))
        non_tensors = self._first.select(*self._objects)
        self._non_tensors.append(non_tensors.update(steps.select(*self._objects, strict=False)))

    def _grow(self, steps: TensorDict) -> None:
        """Make room for the keys of some steps."""
        for key in steps.keys(include_nested=True, leaves_only=True):
            if self._tensors.get(key, None) is None:
                size = self._count, *steps.get(key).shape
                is_mask = (
                    self._name in key[:2]
                )  # of keys of non-tensor data, which the environments before this one have
                self._tensors.set(
                    key, torch.ones(size, dtype=torch.bool) if is_mask else steps.get(key).new_empty(size)
                )

    @property
    def tensordict(self) -> TensorDictBase:
        """All of them, ``[envs, time]``."""
        return self._tensors.update(torch.stack(self._non_tensors, 0))


def _environment_of(history: History) -> tuple[Any, int, int | None]:
    """What tells an environment from others: its run, which several workers may have recorded, its index, its recording."""
    run = history.run
    part = run.parts[0]
    if run.schema.split == "run":
        return part.recording_id, history.env, id(run)
    folder = part.file.parent
    folder = folder.parent if FOLDER_OF_WORKER.fullmatch(folder.name) else folder
    return folder, history.env, None if run.schema.split == "episode" else id(run)


def _twice(key: Key) -> tuple[Key, Key]:
    return key, ("next", *key)


def _steps(histories: Sequence[tuple[History, Sequence[int] | None]], keys: Sequence[Key] | None) -> TensorDict:
    """The steps of one environment, whose episodes may be recordings of their own."""
    found: list[TensorDict] = []
    for history, episodes in histories:
        wanted = history.described(keys)
        spans: Iterable[Span] = [ALL] if episodes is None else map(episode_span, episodes)
        found += [history.steps(wanted, span) for span in spans]
    if len(found) == 1:
        return found[0]
    schema = histories[0][0].run.schema
    streams, name, form = [stream for stream, _ in schema.described], mask_name(schema), Form()
    for steps in found:
        form |= form_of(steps, streams, name)
    return torch.cat([fit(steps, streams, name, form) for steps in found], 0)


def wanted_keys(keys: Sequence[NestedKey] | None) -> list[Key] | None:
    """Keys as they are recorded: without ``"next"``, each once."""
    if isinstance(keys, str):
        raise TypeError(f"keys={keys!r}: pass a list of keys, even of one: [{keys!r}]")
    return None if keys is None else list(dict.fromkeys(_as_key(key) for key in keys))


def _as_key(key: NestedKey) -> Key:
    parts = (key,) if isinstance(key, str) else tuple(key)
    return parts[1:] if len(parts) > 1 and parts[0] == "next" else parts
