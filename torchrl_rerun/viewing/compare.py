"""Comparison of runs: measures of their episodes, and one recording that shows the runs side by side."""

from __future__ import annotations

import dataclasses
import math
import os
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rerun as rr
import rerun.blueprint as rrb
from rerun.chunk import Chunk, LazyChunkStream

from torchrl_rerun.kinds.arrow import Entity, chunks_of, flat, number_lists
from torchrl_rerun.kinds.episode import END_PROPERTIES, Episode, returns_of
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.kind import Plot
from torchrl_rerun.kinds.palette import color
from torchrl_rerun.kinds.schema import PROPERTIES_ENTITY, Schema
from torchrl_rerun.kinds.streams import Stream, entity_path
from torchrl_rerun.layout.axes import whole
from torchrl_rerun.layout.blueprint import MAX_DETAILS
from torchrl_rerun.layout.parts import details
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.paths import format_path, make_absolute
from torchrl_rerun.rrd.asset_files import shape_chunks
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.blueprints import add_layout, encode
from torchrl_rerun.rrd.copies import copies_among
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.files import not_ours
from torchrl_rerun.rrd.listing import RecordedEpisode, list_episodes
from torchrl_rerun.rrd.openable import openable, shapes_of, whole_files_of
from torchrl_rerun.rrd.reader import parts_in

APPLICATION = "comparison"
MAX_RUNS = len(string.ascii_uppercase)
"""Largest number of runs, each of which is named by a letter."""

_PROPERTIES = f"/{PROPERTIES_ENTITY}"
_RETURNS = "/returns"

SelectEpisode = Callable[[Sequence[RecordedEpisode]], RecordedEpisode]
Progress = Callable[[Iterable[Chunk], int], Iterable[Chunk]]
Ranges = dict[Key, npt.NDArray[np.floating]]
"""Minimum and maximum of each component of a key over all runs, ``[2, components]``."""


# --- the table ---


def summarize_episodes(episodes: Iterable[Episode]) -> dict[str, float | None]:
    """Return measures of episodes, by their names.

    Returns, lengths and annotations are those of the episodes that ended, since the return of an interrupted episode is
    that of its recorded part. If no episode ended, the measures are of all. ``"left out (interrupted)"`` counts the
    interrupted episodes, and ``"return of all"`` is the mean return with them. Annotations that are numbers or booleans
    have a mean; that of ``success`` is the success rate.

    Args:
        episodes: Episodes.

    Returns:
        Measures; None for a mean of unknown values.

    >>> measures = summarize_episodes([Episode(0, 0, 2.0, 10, terminated=True), Episode(0, 1, 4.0, 20, interrupted=True)])
    >>> measures["episodes"], measures["left out (interrupted)"], measures["return"], measures["return of all"]
    (2, 1, 2.0, 3.0)
    """
    found = list(episodes)
    ended = [each for each in found if not each.interrupted] or found
    returns, lengths = ([each[name] for each in ended] for name in ("episode_return", "length"))
    measured: dict[str, float | None] = {
        "episodes": len(found),
        "left out (interrupted)": len(found) - len(ended),
        "steps in all": sum(each.length for each in found),
        "return": _measure(np.mean, returns),
        "return std": _measure(np.std, returns),
        "return min": _measure(np.min, returns),
        "return max": _measure(np.max, returns),
        "return of all": _measure(np.mean, [each.episode_return for each in found]),
        "length": _measure(np.mean, lengths),
    }
    for name in END_PROPERTIES:
        measured[name] = _measure(np.mean, [each[name] for each in found])
    for name in dict.fromkeys(name for each in ended for name in each.annotations):
        values = [value for each in ended if isinstance(value := each.annotations.get(name), bool | int | float)]
        if values:
            measured[name] = _measure(np.mean, values)
    return measured


def subtract_measures(summaries: Sequence[dict[str, float | None]]) -> list[dict[str, float | None]]:
    """Return the measures of all summaries but the first, minus those of the first.

    Args:
        summaries: Results of :func:`summarize_episodes`.

    >>> subtract_measures([{"return": 2.0}, {"return": 5.0}])
    [{'return': 3.0}]
    """
    first = summaries[0]
    names = list(dict.fromkeys(name for each in summaries for name in each))
    return [{name: _subtract(first.get(name), each.get(name)) for name in names} for each in summaries[1:]]


def _subtract(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _measure(measure: Callable[[Any], Any], values: Sequence[float]) -> float | None:
    """Return a measure of values; None if there are none or one is unknown (NaN)."""
    return float(measure(values)) if values and not np.isnan(values).any() else None


# --- the recording ---


@dataclass(frozen=True)
class ComparedRun:
    """Recording of a run, or of an episode of a run, that is compared with others.

    Attributes:
        name: Letter below which its entities are, ``"A"`` for the first.
        label: Path, and the episode if it is of one.
        files: Files of the recording.
        schema: Schema of the recording.
        envs: Indices of the environments; ``(None,)`` if the recording is of one episode.
    """

    name: str
    label: str
    files: tuple[Path, ...]
    schema: Schema
    envs: tuple[int | None, ...]

    @property
    def recorded(self) -> Recorded:
        """Streams of the recording, for the layout."""
        return dataclasses.replace(Recorded.of_schema(self.schema, self.envs), below=self.name)

    @property
    def is_episode(self) -> bool:
        """Whether the recording is of one episode, and not of a run."""
        return self.envs == (None,)

    @property
    def sums(self) -> Stream | None:
        """Stream of the return that the recorder computed, or None if there is none."""
        return next((stream for stream, _ in self.schema.described if stream.reward_key), None)


def open_runs(
    runs: Sequence[str | os.PathLike[str]], choose: SelectEpisode = lambda episodes: episodes[-1]
) -> list[ComparedRun]:
    """Return the recordings of runs to compare: a whole run as it is, and one episode of a folder of episodes.

    Args:
        runs: Files or folders.
        choose: Function that returns one of a folder's episodes. Default: the episode that began last.

    Raises:
        FileNotFoundError: A path doesn't exist.
        ValueError: A file can't be read, a path holds several recordings of whole runs, or there are more than 26 runs.
    """
    if len(runs) > MAX_RUNS:
        raise ValueError(f"{len(runs)} runs can't be compared: pass {MAX_RUNS} at most")
    return [
        _open_run(name, make_absolute(run), choose) for name, run in zip(string.ascii_uppercase, runs, strict=False)
    ]


def _open_run(name: str, run: Path, choose: SelectEpisode) -> ComparedRun:
    episodes = list_episodes(run).episodes if run.exists() else []
    if episodes:
        episode = choose(episodes)
        chosen = tuple(openable(episode.paths, episode.recording_id))
        schema = _schema_of(part for file in chosen for part in parts_in(file))
        properties = episode.episode
        label = f"{format_path(run)}, episode {properties.episode} of env {properties.env}, return {properties.episode_return:g}"
        return ComparedRun(name, label, chosen, schema, (None,))
    files = whole_files_of(run)
    parts = [each for file in files for each in parts_in(file)]
    copies = copies_among(parts)
    found = [each for each in parts if each.schema is not None and (each.file, each.recording_id) not in copies]
    ids = {each.recording_id for each in found}
    if len(ids) != 1:
        raise ValueError(
            f"{format_path(run)} holds {len(ids)} recordings of torchrl_rerun, of which one can be compared: pass one of the files"
            if ids
            else not_ours(run)
        )
    envs = sorted({env for each in found if each.schema is not None for env in each.schema.envs})
    files_of_it = tuple(dict.fromkeys(each.file for each in found))
    return ComparedRun(name, format_path(run), files_of_it, _schema_of(found), tuple(envs))


def _schema_of(parts: Iterable[FilePart]) -> Schema:
    """Return the schema of a recording in several parts."""
    return Schema.of_parts(schema for part in parts if (schema := part.schema) is not None)


def write_comparison(
    runs: Sequence[ComparedRun],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress = lambda chunks, _: chunks,
) -> None:
    """Write one recording of several runs: the entities of the first are below ``/A``, of the second below ``/B``.

    Args:
        runs: Result of :func:`open_runs`.
        path: File, which gets its name when it is complete.
        overwrite: Replace a file that exists. Default: False.
        progress: Function that is given the chunks and their number, and returns an iterable of them.

    Raises:
        FileExistsError: The file exists, and ``overwrite`` is false.
        OSError: The file can't be written.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_rerun import RerunRecorder, open_runs, write_comparison
        >>> folder = tempfile.mkdtemp()
        >>> for name in ("before", "after"):
        ...     env = GymEnv("CartPole-v1").append_transform(RerunRecorder(f"{folder}/{name}.rrd"))
        ...     _ = env.rollout(10)
        ...     env.close()
        >>> runs = open_runs([f"{folder}/before.rrd", f"{folder}/after.rrd"])
        >>> [(run.name, run.envs) for run in runs]
        [('A', (0,)), ('B', (0,))]
        >>> write_comparison(runs, f"{folder}/both.rrd")
    """
    total = sum(len(part.index) for run in runs for file in run.files for part in parts_in(file))
    with written_aside(path, overwrite=overwrite) as hidden:
        label = " | ".join(f"{run.name}: {run.label}" for run in runs)
        ranges: Ranges = {}
        stream = LazyChunkStream.from_iter(iter(progress(_iterate_chunks(runs, label, ranges), total)))
        stream.write_rrd(hidden, application_id=APPLICATION, recording_id=label)
        add_layout(hidden, encode(make_layout(runs, ranges), APPLICATION))


def _iterate_chunks(runs: Sequence[ComparedRun], label: str, ranges: Ranges) -> Iterator[Chunk]:
    """Yield the chunks of all runs, and collect the ranges of plotted values on the way."""
    yield Chunk.from_property("RecordingInfo", rr.archetypes.RecordingInfo(name=label))
    for run in runs:
        recorded, returns = run.recorded, _Returns(run)
        plotted = {
            entity_path(stream, env, agent): stream
            for stream, _ in run.schema.described
            for env in run.envs
            for agent in range(stream.agent_count if stream.kind.plot is Plot.LINES else 0)
        }
        for parts in shapes_of(run.files).values():
            for chunk in shape_chunks(parts):
                yield chunk.with_entity_path(recorded.under(chunk.entity_path))
        for file in run.files:
            for part in parts_in(file):
                for chunk in part.all_chunks():
                    if not chunk.entity_path.startswith(_PROPERTIES):
                        returns.collect(chunk)
                        if chunk.entity_path in plotted:
                            _extend_range(ranges, plotted[chunk.entity_path], chunk)
                        yield chunk.with_entity_path(recorded.under(chunk.entity_path))
        yield from returns.make_chunks(recorded.under(_RETURNS))


def _extend_range(ranges: Ranges, stream: Stream, chunk: Chunk) -> None:
    """Extend the range of a stream by the values of a chunk. Infinities and NaN aren't plotted, and don't count."""
    batch = chunk.to_record_batch()
    if "Scalars:scalars" not in batch.schema.names:
        return
    values = batch.column("Scalars:scalars").flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    if not values.size:
        return
    rows = values.reshape(-1, math.prod(stream.row_shape))
    low, high = (np.where(np.isfinite(rows), rows, limit) for limit in (np.inf, -np.inf))
    found = np.stack([low.min(axis=0), high.max(axis=0)])
    known = ranges.setdefault(stream.key, found)
    if known.shape == found.shape:  # the key may have another shape in another run
        ranges[stream.key] = np.stack([np.minimum(known[0], found[0]), np.maximum(known[1], found[1])])


class _Returns:
    """Return and end of each episode of a whole run, collected from its chunks."""

    def __init__(self, run: ComparedRun) -> None:
        self._agents: dict[str, tuple[int, int]] = {}
        self._ends: dict[tuple[int, int], dict[int, tuple[int, int, npt.NDArray[np.float64]]]] = {}
        if run.sums is not None:
            for env in run.envs:
                for agent in range(run.sums.agent_count if env is not None else 0):
                    self._agents[entity_path(run.sums, env, agent)] = env or 0, agent

    def collect(self, chunk: Chunk) -> None:
        """Take the last sum of rewards of each episode in a chunk."""
        if chunk.is_static or chunk.entity_path not in self._agents:
            return
        env, agent = self._agents[chunk.entity_path]
        batch = chunk.to_record_batch()
        frames, steps, episodes = (batch.column(name).cast("int64").to_numpy() for name in ("frame", "step", "episode"))
        values = batch.column("Scalars:scalars").flatten().to_numpy().reshape(len(batch), -1)
        last = np.append(np.flatnonzero(episodes[1:] != episodes[:-1]), len(episodes) - 1)
        for row in last:
            self._ends.setdefault((env, int(episodes[row])), {})[agent] = int(frames[row]), int(steps[row]), values[row]

    def make_chunks(self, path: str) -> Iterator[Chunk]:
        """Yield the returns at an entity path, in the order in which the episodes ended."""
        rows = sorted(
            (
                *max(end[:2] for end in of_agents.values()),
                float(returns_of(np.array([[sums for *_, sums in of_agents.values()]]))[0]),
            )
            for of_agents in self._ends.values()
        )
        if rows:
            frames, steps, values = (np.array(column) for column in zip(*rows, strict=True))
            yield from chunks_of({"frame": flat(frames), "step": flat(steps)}, [Entity(path, [number_lists(values)])])


def make_layout(runs: Sequence[ComparedRun], ranges: Mapping[Key, npt.NDArray[np.floating]]) -> rrb.Blueprint:
    """Return the blueprint of a comparison: a column for each run, on the same axes, and one plot of the returns.

    Args:
        runs: Runs.
        ranges: Minimum and maximum of each component of a key over all runs, ``[2, components]``.
    """
    episodes = all(run.is_episode for run in runs)
    shown = [dataclasses.replace(run.recorded, around=not episodes, ranges=ranges) for run in runs]
    columns = rrb.Horizontal(*map(_make_column, shown))
    lines: dict[rr.EntityPath | str, Any] = {
        path: rr.SeriesLines(names=f"{run.name}: {run.label}", colors=color(at)).visualizer()
        for at, run in enumerate(runs)
        for path in _find_return_paths(run)
    }
    root: rrb.Container = columns
    if lines:
        plot = rrb.TimeSeriesView(
            origin="/",
            contents=list(lines),
            overrides=lines,
            name="return" if episodes else "return, whole run",
            axis_x=whole(),
            plot_legend=rrb.Corner2D.LeftTop,
        )
        root = rrb.Vertical(columns, plot, row_shares=[5, 1])
    fps = next((run.schema.source.fps for run in runs if run.schema.source.fps), None)
    return rrb.Blueprint(
        root,
        rrb.TimePanel(timeline="frame", fps=fps, state="collapsed", play_state="playing"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.BlueprintPanel(state="collapsed"),
        auto_views=False,
    )


def _make_column(recorded: Recorded) -> rrb.Container:
    columns = [details(recorded, env) for env in recorded.envs[:MAX_DETAILS]]
    return columns[0] if len(columns) == 1 else rrb.Tabs(*columns, name=recorded.below)


def _find_return_paths(run: ComparedRun) -> list[str]:
    """Return the entity paths of a run's line in the plot of returns."""
    if run.sums is None:
        return []
    if run.is_episode:
        return [run.recorded.path(run.sums, None, agent) for agent in range(run.sums.agent_count)]
    return [run.recorded.under(_RETURNS)]
