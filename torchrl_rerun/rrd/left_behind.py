"""What is left behind in a black box: the chunks of all rows that aren't in the file yet.

The rows go through the same code that would have written them. A process may be killed when some chunks of a block are
in the file, and others aren't: of each entity the rows of those frames are left out that the file has.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rerun.chunk import Chunk

from torchrl_rerun.blocks.black_box import BATCH, RECORDED
from torchrl_rerun.blocks.env_rows import EnvRows, rows_by_env, rows_not_in
from torchrl_rerun.blocks.episode_notes import ENDED, NOTES, ended, noted
from torchrl_rerun.blocks.memory import MaxAge, NamedArrays
from torchrl_rerun.blocks.returns import RETURNS, RunningReturns
from torchrl_rerun.blocks.snapshot import Snapshot
from torchrl_rerun.chunks.encoding import ENCODED
from torchrl_rerun.chunks.episode_recordings import EpisodeRecordings, free_suffix
from torchrl_rerun.chunks.episode_rows import EPISODES, GONE, EpisodeRows, parts_by_episode
from torchrl_rerun.chunks.losses import Losses
from torchrl_rerun.chunks.statistics import BatchStatistics
from torchrl_rerun.chunks.whole_run import WholeRun
from torchrl_rerun.kinds.endings import Endings
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.lasting import frames_of
from torchrl_rerun.kinds.schema import Schema, info_chunk
from torchrl_rerun.kinds.streams import Stream, entity_path
from torchrl_rerun.kinds.timelines import EPISODE_STEP, FRAME, REGROUPED, TIMELINES
from torchrl_rerun.rrd.file_part import FilePart, frames_in

_FRAME = TIMELINES[FRAME]

Frames = npt.NDArray[np.int64]
"""Numbers of frames."""

NOTHING: Frames = np.empty(0, np.int64)


def rest_of_run(box: Snapshot, written: Callable[[str, int], Frames], schema: str | None) -> Iterator[pa.RecordBatch]:
    """Yield the chunks of a whole run that its file lacks.

    Args:
        box: what is in its black box.
        written: returns the frames, from some number on, of which the file has rows at an entity.
        schema: the description in the file; None: it has none.
    """
    said = box.said
    described = Schema.from_fields(said["schema"])
    source = replace(described.source, first_env=said["first_env"])
    rest = _Rest(written, said["first_frame"])
    run = WholeRun(
        source,
        described.envs,
        _returns_before(box, RECORDED),
        split=described.split,
        max_age=MaxAge.always(float("inf")),
        first_frame=said["first_frame"],
    )
    if schema is None:
        yield info_chunk(said["name"], said["start_time"]).to_record_batch()
    if schema is None or json.loads(schema) != said["schema"]:
        streams = [stream for stream, _ in described.described]
        for chunk in run.describe(described.described, streams, described.statistics, described.ends):
            yield chunk.to_record_batch()
    for name, records in box.journals.items():
        if name.startswith(ENCODED):
            for record in records:
                yield from rest.of_chunk(pa.ipc.open_stream(record.arrays["chunk"]).read_next_batch())
    statistics = BatchStatistics(source.fps, _returns_before(box, BATCH))
    chunks: list[Iterable[Chunk]] = []
    for role, block in box.blocks:
        if role == BATCH:
            chunks += [statistics.static(block.groups) if schema is None else (), statistics.chunks(block)]
        else:
            rows = rows_by_env(block, block.envs, run.returns)
            chunks.append(run.chunks_of(part for piece in rows for part in rest.of_rows(piece, described.envs)))
    for some in (*chunks, run.flush(0)):
        for chunk in some:
            yield from rest.of_chunk(chunk.to_record_batch())


class _Rest:
    """Leaves out the rows that are there already.

    Args:
        written: returns the frames of which the file has rows.
        first_frame: number of the frame that is 0 in the file.
    """

    def __init__(self, written: Callable[[str, int], Frames], first_frame: int) -> None:
        self._written = written
        self._first_frame = first_frame
        self._found: dict[str, Frames] = {}

    def _there(self, path: str, first: int) -> Frames:
        if path not in self._found:
            self._found[path] = self._written(path, first)
        return self._found[path]

    def of_rows(self, piece: EnvRows, envs: tuple[int, ...]) -> Iterator[EnvRows]:
        """Yield the rows that aren't there, together those of streams that lack the same ones.

        Args:
            piece: rows of an environment.
            envs: the indices of all environments.
        """
        frames = piece.positions[:, FRAME] - self._first_frame

        def there(stream: Stream) -> Frames:
            paths = (entity_path(stream, envs[piece.env], agent) for agent in range(stream.agent_count))
            return functools.reduce(np.intersect1d, (self._there(path, int(frames.min())) for path in paths))

        yield from rows_not_in(piece, frames, there)

    def of_chunk(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield a chunk without the rows that are there; nothing if all are. They are there from then on."""
        if _FRAME not in batch.schema.names or not len(batch):
            yield batch
            return
        path = batch.schema.metadata[b"rerun:entity_path"].decode()
        there = self._there(path, int(frames_of(batch).min()))
        lacking = ~np.isin(batch.column(_FRAME).cast(pa.int64()).to_numpy(), there)
        if lacking.any():
            self._found[path] = np.concatenate([there, frames_of(batch)])
            yield batch if lacking.all() else batch.filter(pa.array(lacking))


def _returns_before(box: Snapshot, role: str) -> RunningReturns:
    """Return the running returns before the first block of a role."""
    blocks = [block for each, block in box.blocks if each == role]
    envs = max((block.envs for block in blocks), default=0)
    summing = [block for block in blocks if block.returns]
    kept = [each for each in box.others if each.about["role"] == RETURNS and each.about["of"] == role]
    if not (summing and kept):
        return RunningReturns(envs)
    return RunningReturns.kept(envs, kept[-1].about, kept[-1].arrays, summing[0].lease)


KEEP = "keep"
"""The annotation of an episode that tells which policy was to decide whether it is kept."""


class LeftEpisode(NamedTuple):
    """An episode that waited in a black box, or was in progress.

    Attributes:
        recording_id: id of its recording.
        chunks: the chunks of its recording; those of its parts that are on the disk are not among them.
    """

    recording_id: str
    chunks: list[pa.RecordBatch]


class Part(NamedTuple):
    """A recording of an episode in the folder.

    Attributes:
        episode: what it says of the episode.
        held: what its file holds.
    """

    episode: Episode
    held: FilePart

    @property
    def is_whole(self) -> bool:
        """Whether it was written when the episode was over."""
        return ".part_" not in self.held.file.name


def rest_of_episodes(box: Snapshot, folder: Mapping[str, Sequence[Part]]) -> Iterator[LeftEpisode]:
    """Yield the episodes in a black box that have no file of their own yet.

    Args:
        box: what is in the box.
        folder: the recordings of episodes in the folder, by their names without suffixes and ``.rrd``.
    """
    said = box.said
    described = Schema.from_fields(said["schema"])
    source = replace(described.source, first_env=said["first_env"])
    recordings = EpisodeRecordings(source, said["recording_id"], described.described, described.ends)
    losses = Losses()
    found: dict[tuple[int, int], EpisodeRows] = {}
    over: dict[tuple[int, int], Episode] = {}
    gone: set[tuple[int, int]] = set()

    def rows_of(env: int, episode: int) -> EpisodeRows:
        return found.setdefault((env, episode), EpisodeRows(env, episode, source.fps, losses))

    for name, records in box.journals.items():
        if name.startswith(EPISODES):
            for record in records:
                at = record.about["env"], record.about["episode"]
                if record.about.get(GONE):
                    gone.add(at)
                    continue
                episode = rows_of(*at).restore(record)
                if episode is not None:
                    over[at] = episode
        elif name.startswith(ENDED):
            over |= {episode.id: episode for episode in ended(records, box.moment)}
    returns = _returns_before(box, RECORDED)
    for _, block in box.blocks:
        taken = {at: rows.frames() for at, rows in found.items()}
        for piece in rows_by_env(block, block.envs, returns):
            env = described.envs[piece.env]
            for number, part in parts_by_episode(piece):
                of_episode = EnvRows(
                    piece.env, piece.positions[part], [(key, rows[part]) for key, rows in piece.values]
                )
                frames = of_episode.positions[:, EPISODE_STEP] + of_episode.positions[:, REGROUPED]
                before = functools.partial(_of_key, taken.get((env, number), {}))
                for rest in rows_not_in(of_episode, frames, before):
                    rows_of(env, number).add(rest, slice(None))
    run = _Run(box, described, recordings)
    # Of an episode whose rows are all in its parts the box may have nothing but notes.
    for at in sorted({*found, *over, *_noted_episodes(box, described.envs)} - gone):
        rows = rows_of(*at)
        left = run.left(rows, over.get(at), folder.get(recordings.name(rows), ()))
        if left is not None:
            yield left


def _of_key(frames: Mapping[Key, Frames], stream: Stream) -> Frames:
    return frames.get(stream.key, NOTHING)


def _notes(box: Snapshot) -> list[NamedArrays]:
    """Return what was noted of the last episodes of each environment, the latest first: a kill may come while notes are moved."""
    return [each.arrays for each in reversed(box.others) if each.about["role"] == NOTES]


def _noted_episodes(box: Snapshot, envs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the environment and the number of each episode that notes are of. Some of these may be over."""
    for notes in _notes(box):
        for env, episodes in zip(envs, notes["episodes"].tolist(), strict=False):  # there may be more by now
            yield from ((env, episode) for episode in episodes if episode >= 0)


class _Run:
    """Finds what is left of episodes in a black box.

    Args:
        box: what is in the box.
        described: the schema in it.
        recordings: the recordings of the run.
    """

    def __init__(self, box: Snapshot, described: Schema, recordings: EpisodeRecordings) -> None:
        self._box = box
        self._described = described
        self._recordings = recordings
        self._endings = Endings(described.ends)

    def left(self, rows: EpisodeRows, over: Episode | None, there: Sequence[Part]) -> LeftEpisode | None:
        """Return what is left of an episode; None: it is whole in the folder, or was over before its first step.

        Args:
            rows: its rows that are in the box.
            over: its properties if it is over.
            there: the recordings in the folder that have its name.
        """
        name, began = self._recordings.name(rows), self._began(rows, over, there)
        parts = [part for part in there if part.episode.start_time == began]
        if any(part.is_whole for part in parts) or not (parts or rows.bytes):
            return None
        of_it = over or self._so_far(rows, parts)
        if not of_it.length:
            return None
        if self._box.said["keep"] is not None:
            of_it = replace(of_it, annotations={**of_it.annotations, KEEP: self._box.said["keep"]})
        if parts:
            suffix = _suffix(name, parts[0])
            rows.leave_out(lambda stream: _written(stream, parts))
        else:
            taken = {part.held.file.name.partition(".")[0] for part in there}
            suffix = rows.suffix(name, lambda stem: free_suffix(stem, taken.__contains__))
        chunks = [chunk.to_record_batch() for chunk in self._recordings.chunks(rows, of_it, f"{name}{suffix}")]
        return LeftEpisode(self._recordings.recording_id(rows, suffix), chunks)

    def _began(self, rows: EpisodeRows, over: Episode | None, there: Iterable[Part]) -> datetime | None:
        """Return when an episode began; None: neither the box nor a recording of this run tells."""
        if over is not None:
            return over.start_time
        if rows.has_begun:
            return rows.so_far().start_time
        name = self._recordings.name(rows)
        times = [
            part.episode.start_time
            for part in there
            if part.held.recording_id == self._recordings.recording_id(rows, _suffix(name, part))
        ]
        return max((time for time in times if time is not None), default=None)

    def _so_far(self, rows: EpisodeRows, parts: Sequence[Part]) -> Episode:
        """Return the properties of an episode of which no record says that it is over."""
        episode = rows.ended(self._described.ends)
        last = max(parts, key=lambda part: part.episode.length, default=None)
        if last is not None and last.episode.length > episode.length:
            how = self._endings.ended(functools.partial(self._last_flag, last), 1)
            episode = last.episode
            if how is not None:
                terminated, truncated = bool(how.terminated[0]), bool(how.truncated[0])
                episode = replace(episode, interrupted=False, terminated=terminated, truncated=truncated)
        at = self._described.envs.index(rows.env)
        said = (noted(notes, at, rows.episode) for notes in _notes(self._box))
        return replace(episode, **next(filter(None, said), {}))

    def _last_flag(self, part: Part, key: Key) -> npt.NDArray[Any] | None:
        """Return a flag of the last step in a part; None: there is none."""
        stream = next((stream for stream, _ in self._described.described if stream.key == key), None)
        if stream is None:
            return None
        found = []
        for agent in range(stream.agent_count):
            path = entity_path(stream, None, agent)
            chunks = list(part.held.chunks(path))
            # The last row of a chunk is stored, even if its values last.
            if not chunks or chunks[-1].column("episode_step")[-1].as_py() < part.episode.length:
                return None
            found.append(stream.kind.values(stream, chunks[-1].slice(len(chunks[-1]) - 1)))
        return np.stack(found)


def _suffix(name: str, part: Part) -> str:
    """Return the suffix that a recording's name has behind that of its episode."""
    return part.held.file.name[len(name) :].partition(".")[0]


def _written(stream: Stream, parts: Sequence[Part]) -> Frames:
    """Return the frames of which some recordings have rows of a stream."""
    return np.concatenate([frames_in(part.held, entity_path(stream, None), 0) for part in parts])
