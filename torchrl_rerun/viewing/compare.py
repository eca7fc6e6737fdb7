"""Comparing: what several runs came to, and a recording in which they are beside one another."""

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
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.kinds.palette import color
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.kinds.streams import Key, Stream, entity_path
from torchrl_rerun.layout import blueprint
from torchrl_rerun.layout.blueprint import Recorded
from torchrl_rerun.paths import absolute, shown
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.blueprints import add_layout, encode
from torchrl_rerun.rrd.copies import copies_among
from torchrl_rerun.rrd.files import not_ours, whole_files_of
from torchrl_rerun.rrd.listing import RecordedEpisode, list_episodes
from torchrl_rerun.rrd.reader import parts_in

APPLICATION = "comparison"
MOST = len(string.ascii_uppercase)
"""As many runs can be compared, and are called by a letter each."""

_PROPERTIES = "/__properties"
_RETURNS = "/returns"

Choice = Callable[[Sequence[RecordedEpisode]], RecordedEpisode]
Progress = Callable[[Iterable[Chunk], int], Iterable[Chunk]]
Ranges = dict[Key, npt.NDArray[np.floating]]
"""The smallest and the largest values ``[2, numbers of a row]`` of keys, in all that is compared."""


# --- the table ---


def summary(episodes: Iterable[Episode]) -> dict[str, float | None]:
    """What episodes came to, by the names of what is measured.

    The return of an interrupted episode is that of a part. So returns, lengths and annotations are those of the episodes
    that ended, and how many are left out is said beside them, with the mean return of all; if none ended they are those of
    all. Of annotations those have a mean that are numbers or truth values: of ``success`` it is the rate.

    Args:
        episodes: the episodes.

    >>> came_to = summary([Episode(0, 0, 2.0, 10, terminated=True), Episode(0, 1, 4.0, 20, interrupted=True)])
    >>> came_to["episodes"], came_to["left out (interrupted)"], came_to["return"], came_to["return of all"]
    (2, 1, 2.0, 3.0)
    """
    found = list(episodes)
    ended = [each for each in found if not each.interrupted] or found
    returns, lengths = ([each[name] for each in ended] for name in ("episode_return", "length"))
    measured: dict[str, float | None] = {
        "episodes": len(found),
        "left out (interrupted)": len(found) - len(ended),
        "steps in all": sum(each.length for each in found),
        "return": _of(np.mean, returns),
        "return std": _of(np.std, returns),
        "return min": _of(np.min, returns),
        "return max": _of(np.max, returns),
        "return of all": _of(np.mean, [each.episode_return for each in found]),
        "length": _of(np.mean, lengths),
    }
    for name in ("terminated", "truncated", "interrupted"):
        measured[name] = _of(np.mean, [each[name] for each in found])
    for name in dict.fromkeys(name for each in ended for name in each.annotations):
        values = [value for each in ended if isinstance(value := each.annotations.get(name), bool | int | float)]
        if values:
            measured[name] = _of(np.mean, values)
    return measured


def differences(summaries: Sequence[dict[str, float | None]]) -> list[dict[str, float | None]]:
    """How much more each but the first came to than the first one."""
    first = summaries[0]
    names = list(dict.fromkeys(name for each in summaries for name in each))
    return [{name: _difference(first.get(name), each.get(name)) for name in names} for each in summaries[1:]]


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _of(measure: Callable[[Any], Any], values: Sequence[float]) -> float | None:
    """None: of no values, and where one isn't known."""
    return float(measure(values)) if values and not np.isnan(values).any() else None


# --- the recording ---


@dataclass(frozen=True)
class Side:
    """One of the recordings that are compared.

    Attributes:
        name: a letter, below which its entities are.
        label: what it is of.
        files: its files.
        schema: what it says of itself.
        envs: indices of the environments; None: it is of one episode.
    """

    name: str
    label: str
    files: tuple[Path, ...]
    schema: Schema
    envs: tuple[int | None, ...]

    @property
    def recorded(self) -> Recorded:
        """What there is to be laid out."""
        return dataclasses.replace(Recorded.of_schema(self.schema, self.envs), below=self.name)

    @property
    def is_episode(self) -> bool:
        """Whether it is of one episode, else of a run."""
        return self.envs == (None,)

    @property
    def sums(self) -> Stream | None:
        """The return that the recorder worked out."""
        return next((stream for stream, _ in self.schema.described if stream.sums), None)


def sides_of(runs: Sequence[str | os.PathLike[str]], choose: Choice = lambda episodes: episodes[-1]) -> list[Side]:
    """What of some runs is shown beside one another: whole runs, and of folders of episodes one episode.

    Args:
        runs: files or folders.
        choose: which episode; that which began last if nothing is said.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: a file can't be read, or there are several recordings where one is meant.
    """
    if len(runs) > MOST:
        raise ValueError(f"{len(runs)} runs are too many to be compared, {MOST} are not")
    return [_side(name, absolute(run), choose) for name, run in zip(string.ascii_uppercase, runs, strict=False)]


def _side(name: str, run: Path, choose: Choice) -> Side:
    episodes = list_episodes(run).episodes if run.exists() else []
    if episodes:
        episode = choose(episodes)
        schema = parts_in(episode.path)[0].schema
        assert schema is not None, "it is listed"
        of = episode.episode
        label = f"{shown(run)}, episode {of.episode} of env {of.env}, return {of.episode_return:g}"
        return Side(name, label, episode.paths, schema, (None,))
    files = whole_files_of(run)
    said = [each for file in files for each in parts_in(file)]
    copies = copies_among(said)
    found = [each for each in said if each.schema is not None and (each.file, each.recording_id) not in copies]
    ids = {each.recording_id for each in found}
    if len(ids) != 1:
        raise ValueError(
            f"{shown(run)} holds {len(ids)} recordings of torchrl_rerun, where one is compared: pass one of its files"
            if ids
            else not_ours(run)
        )
    schemas = [each.schema for each in found if each.schema is not None]
    envs = sorted({env for schema in schemas for env in schema.envs})
    return Side(name, shown(run), tuple(dict.fromkeys(each.file for each in found)), schemas[-1], tuple(envs))


def write_comparison(
    sides: Sequence[Side],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress = lambda chunks, _: chunks,
) -> None:
    """Write one recording of several, chunk by chunk: the entities of the first are below ``/A``, of the second ``/B``.

    Args:
        sides: what is compared.
        path: the file. It gets its name when it is whole.
        overwrite: replace a file that exists.
        progress: is given the chunks, and how many they are, and gives them back one by one.

    Raises:
        FileExistsError: the file exists, and ``overwrite`` is false.
        OSError: it can't be written.
    """
    total = sum(len(part.index) for side in sides for file in side.files for part in parts_in(file))
    with written_aside(path, overwrite=overwrite) as hidden:
        label = " | ".join(f"{side.name}: {side.label}" for side in sides)
        ranges: Ranges = {}
        stream = LazyChunkStream.from_iter(iter(progress(_chunks(sides, label, ranges), total)))
        stream.write_rrd(hidden, application_id=APPLICATION, recording_id=label)
        add_layout(hidden, encode(layout(sides, ranges), APPLICATION))


def _chunks(sides: Sequence[Side], label: str, ranges: Ranges) -> Iterator[Chunk]:
    """All that there is of them, and on the way the ranges of what is plotted."""
    yield Chunk.from_property("RecordingInfo", rr.archetypes.RecordingInfo(name=label))
    for side in sides:
        recorded, ends = side.recorded, _Ends(side)
        plotted = {
            entity_path(stream, env, lane): stream
            for stream, _ in side.schema.described
            for env in side.envs
            for lane in range(stream.lanes if stream.kind == "scalars" else 0)
        }
        for file in side.files:
            for part in parts_in(file):
                for chunk in part.all_chunks():
                    if not chunk.entity_path.startswith(_PROPERTIES):
                        ends.look_at(chunk)
                        if chunk.entity_path in plotted:
                            _widen(ranges, plotted[chunk.entity_path], chunk)
                        yield chunk.with_entity_path(recorded.under(chunk.entity_path))
        yield from ends.chunks(recorded.under(_RETURNS))


def _widen(ranges: Ranges, stream: Stream, chunk: Chunk) -> None:
    """Let the range of a stream take in what is in a chunk; infinities and what isn't a number aren't plotted."""
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
    if known.shape == found.shape:  # of another run it may be another key
        ranges[stream.key] = np.stack([np.minimum(known[0], found[0]), np.maximum(known[1], found[1])])


class _Ends:
    """The return of each episode of a whole run, and when it ended, taken from the chunks that come by."""

    def __init__(self, side: Side) -> None:
        self._lanes: dict[str, tuple[int, int]] = {}
        self._ends: dict[tuple[int, int], dict[int, tuple[int, int, float]]] = {}
        if side.sums is not None:
            for env in side.envs:
                for lane in range(side.sums.lanes if env is not None else 0):
                    self._lanes[entity_path(side.sums, env, lane)] = env or 0, lane

    def look_at(self, chunk: Chunk) -> None:
        """Remember what an episode has come to."""
        if chunk.is_static or chunk.entity_path not in self._lanes:
            return
        env, lane = self._lanes[chunk.entity_path]
        batch = chunk.to_record_batch()
        frames, steps, episodes = (batch.column(name).cast("int64").to_numpy() for name in ("frame", "step", "episode"))
        values = batch.column("Scalars:scalars").flatten().to_numpy().reshape(len(batch), -1).mean(axis=1)
        last = np.append(np.flatnonzero(episodes[1:] != episodes[:-1]), len(episodes) - 1)
        for row in last:
            self._ends.setdefault((env, int(episodes[row])), {})[lane] = int(frames[row]), int(steps[row]), values[row]

    def chunks(self, path: str) -> Iterator[Chunk]:
        """All of them, in the order in which they ended."""
        rows = sorted(
            (*max(lanes.values())[:2], float(np.mean([value for _, _, value in lanes.values()])))
            for lanes in self._ends.values()
        )
        if rows:
            frames, steps, values = (np.array(column) for column in zip(*rows, strict=True))
            yield from chunks_of({"frame": flat(frames), "step": flat(steps)}, [Entity(path, [number_lists(values)])])


def layout(sides: Sequence[Side], ranges: Mapping[Key, npt.NDArray[np.floating]]) -> rrb.Blueprint:
    """A column of each, on the same axes, and below them their returns on one plot.

    Args:
        sides: what is compared.
        ranges: the smallest and the largest values of keys, ``[2, numbers of a row]``, in all of them.
    """
    episodes = all(side.is_episode for side in sides)
    shown = [dataclasses.replace(side.recorded, around=not episodes, ranges=ranges) for side in sides]
    columns = rrb.Horizontal(*map(_column, shown))
    lines: dict[rr.EntityPath | str, Any] = {
        path: rr.SeriesLines(names=f"{side.name}: {side.label}", colors=color(at)).visualizer()
        for at, side in enumerate(sides)
        for path in _return_paths(side)
    }
    root: rrb.Container = columns
    if lines:
        plot = rrb.TimeSeriesView(
            origin="/",
            contents=list(lines),
            overrides=lines,
            name="return" if episodes else "return, whole run",
            axis_x=blueprint.whole(),
            plot_legend=rrb.Corner2D.LeftTop,
        )
        root = rrb.Vertical(columns, plot, row_shares=[5, 1])
    fps = next((side.schema.source.fps for side in sides if side.schema.source.fps), None)
    return rrb.Blueprint(
        root,
        rrb.TimePanel(timeline="frame", fps=fps, state="collapsed", play_state="playing"),
        rrb.SelectionPanel(state="collapsed"),
        rrb.BlueprintPanel(state="collapsed"),
        auto_views=False,
    )


def _column(recorded: Recorded) -> rrb.Container:
    of_each = [blueprint.details(recorded, env) for env in recorded.envs[: blueprint.MAX_DETAILS]]
    return of_each[0] if len(of_each) == 1 else rrb.Tabs(*of_each, name=recorded.below)


def _return_paths(side: Side) -> list[str]:
    """The running return of an episode, or the line that the returns of all make."""
    if side.sums is None:
        return []
    if side.is_episode:
        return [side.recorded.path(side.sums, None, lane) for lane in range(side.sums.lanes)]
    return [side.recorded.under(_RETURNS)]
