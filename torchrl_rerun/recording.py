"""A recording in progress: steps of all environments in, a Rerun recording out.

This is what every front end feeds, whatever its environments look like; it knows arrays, and nothing of TorchRL.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import shlex
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rerun.blueprint as rrb
from rerun.chunk import Chunk

from torchrl_rerun.batch import BatchStatistics
from torchrl_rerun.blueprint import Recorded, layout
from torchrl_rerun.buffer import Arrays, Block, Buffer, Track, Turn
from torchrl_rerun.episode_files import EpisodeFiles
from torchrl_rerun.episodes import MAX_LOGGED_ENVS, TIMELINES, Episodes, Positions, Progress, resolve_envs
from torchrl_rerun.events import NONE, Ends, Event, Rows
from torchrl_rerun.folder import RunFolder
from torchrl_rerun.keeping import Keep, Value
from torchrl_rerun.ledger import Ledger
from torchrl_rerun.outlets import Outlet
from torchrl_rerun.output import WholeRun
from torchrl_rerun.schema import Moment, Source, Split, info_chunk, shown_envs
from torchrl_rerun.selection import Choice, Selection
from torchrl_rerun.sinks import RecordingError, Sink
from torchrl_rerun.stats import Stats
from torchrl_rerun.streams import Key, Stream
from torchrl_rerun.sums import Sums
from torchrl_rerun.warning import warn
from torchrl_rerun.writer import Writer

LIVE_SECONDS = 0.5
"""Age of a frame at the most when it is sent to a viewer, and some of this on top: see :data:`LOOKS`."""

LOOKS = 4
"""How often it is looked, within the time that a frame may wait, for one that has waited so long."""

PATIENCE = 1.0
"""Seconds that the environment waits for the writer before it is told so."""

RETRY_SECONDS = 5.0
"""Seconds between two tries to go on after :meth:`Recording.close`, each of which makes the environment wait."""

SHORT_BLOCK = 100
"""Frames of a block below which the making of chunks costs several times what their data do."""

CHUNK_SECONDS = 250e-6
"""What a chunk takes the writer, whatever is in it; `make bench ARGS="--only parts scaling"` measures it."""

BATCH_SHARE = 16
"""The statistics over all environments wait in this part of the buffer, in addition to it."""

BLOCKS_SHARE = 4
"""Where episodes wait in memory until they are over, blocks have this part of the buffer."""

Render = Callable[[Sequence[int]], Sequence[npt.NDArray[Any]] | None]
"""Gives pictures of environments of the flattened batch as they are now, one each, all of one dtype and shape; None: no
picture can be had."""

Moments = tuple[Arrays | None, Arrays | None, Arrays | None]
"""The values of a frame, in the order of :class:`Moment`; None where it had none."""


@dataclass(frozen=True)
class Options:
    """How it is recorded: the part of the recorder's arguments that isn't about TorchRL."""

    logged_envs: int | slice | Sequence[int] | str | None = None
    aggregate: bool | None = None
    choice: Choice = field(default_factory=Choice)
    split: Split = "run"
    keep: Keep | None = None
    blueprint: bool | rrb.Blueprint | Callable[[Recorded], rrb.Blueprint] = True
    application_id: str | None = None
    recording_id: str | None = None
    buffer_bytes: int = 64 << 20
    flush_seconds: float = 5.0


@dataclass(frozen=True)
class _Before:
    """What the recordings that this one continues came to.

    Attributes:
        stats: the counts.
        began: when the first of them began.
        busy_seconds: how long their writers were at work.
    """

    stats: Stats = field(default_factory=Stats)
    began: float = field(default_factory=time.monotonic)
    busy_seconds: float = 0.0


class Recording:
    """Counts episodes, buffers steps and has them written to a sink.

    Args:
        sink: an open sink; it is closed with the recording.
        source: the environments.
        options: how to record them.
        outlets: open viewers and recording streams; they are closed with the recording.
        run_id: id of the Rerun recording, or of the run that it is a part of.
        continues: the recording whose counters go on, if it was of the same batch size.

    Attributes:
        alive: whether it is open, and of this process.
        selection: which frames are recorded.
        must_know_ends: whether :meth:`step` must be told whose episodes end.
        is_over: whether it was closed to the end; Ctrl-C may have come in between.
        process: the process that it is of.

    Raises:
        IndexError: ``logged_envs`` names an environment that isn't there.
    """

    def __init__(
        self,
        sink: Sink,
        source: Source,
        options: Options,
        *,
        outlets: Sequence[Outlet] = (),
        run_id: str,
        continues: Recording | None = None,
    ) -> None:
        self.source = source
        self.sink = sink
        self._outlets = tuple(outlets)
        self._options = options
        chosen = resolve_envs(options.logged_envs, source.envs)
        self._select = _selection(chosen, source.envs)
        self.envs = [source.first_env + env for env in chosen]
        self.episodes = Episodes(len(chosen))
        self.selection = Selection(len(chosen), options.choice)
        self._sums, self._batch_sums = Sums(len(chosen)), Sums(source.envs)
        if continues is not None and continues.source.batch_size == source.batch_size:
            self.episodes, self.selection = continues.episodes, continues.selection
            self._sums, self._batch_sums = continues._sums, continues._batch_sums  # noqa: SLF001 - of the same class
        self.run_id = run_id
        is_dump = options.split == "dump"
        self.recording_id = f"{Path(sink.label).stem}_{run_id}" if is_dump else run_id
        self.application_id = application_id(options, source)
        self._max_age = min(options.flush_seconds, LIVE_SECONDS) if outlets else options.flush_seconds
        self._ledger = Ledger(self.envs)
        self._episode_files = self._files_in(sink) if isinstance(sink, RunFolder) else None
        self._block_bytes = options.buffer_bytes // (1 if self._episode_files is None else BLOCKS_SHARE)
        self.must_know_ends = options.choice.skip > 1 or self._episode_files is not None
        self._output: WholeRun | EpisodeFiles = self._episode_files or WholeRun(
            source,
            self.envs,
            self._sums,
            split=options.split,
            max_age=self._max_age,
            first_frame=self.episodes.frames if is_dump else 0,
        )
        self._writer: Writer | None = None
        # Held while a frame is copied: the writer hands over what is old when no frame comes, and never waits for it. One
        # that its owner can take again, for Ctrl-C may come before it is released.
        self._copying = threading.RLock()
        self._described: list[list[Stream]] = [[] for _ in Moment]
        self._small = self._buffer(len(chosen), self._block_bytes, self._output.chunks)
        self._bulky = self._buffer(len(chosen), self._block_bytes, self._output.chunks)
        self._reward: int | None = None  # where the first reward is among what is described of steps
        self._in_detail: tuple[Buffer, ...] = ()
        self._batch: Buffer | None = None
        self._news = False
        self._batch_statistics = BatchStatistics(source.fps, self._batch_sums)
        self._error: Exception | None = None
        self._failed_at: int | None = None
        self._end: tuple[str, BaseException | None] | None = None  # what this recording failed by, and its cause
        self._missed = 0  # frames that came after it, and that `close()` has not told of
        self._hindrance: OSError | None = None  # why they could not be recorded
        self._hindered_at = -math.inf
        self._warned = False
        self._warned_of_waiting = False
        self._warned_of: set[str] = set()
        self._annotated: dict[str, type] = {}
        self._before = _Before() if continues is None else continues._as_before()  # noqa: SLF001 - of the same class
        self._at_first = self._counts
        self._at_last: Stats | None = None
        self.alive = True
        self.is_over = False
        self.process = os.getpid()
        _open.add(self)

    def _files_in(self, folder: RunFolder) -> EpisodeFiles:
        options = self._options
        return EpisodeFiles(
            folder,
            self.source,
            self.envs,
            self._sums,
            self._ledger.over,
            application_id=self.application_id,
            recording_id=self.run_id,
            capacity=options.buffer_bytes - options.buffer_bytes // BLOCKS_SHARE,
            max_age=options.flush_seconds,
        )

    def _buffer(self, envs: int, capacity: int, chunks: Callable[[Block], Iterator[Chunk]]) -> Buffer:
        return Buffer(
            envs, capacity, chunks, self._hand_over, alive=self._alive, max_age=self._max_age, waited=self._noticed
        )

    # --- what is recorded ---

    @property
    def streams(self) -> list[Stream]:
        """All streams, in the order in which they were described."""
        return [stream for streams in self._described for stream in streams]

    def describe(self, moment: Moment, streams: Sequence[Stream]) -> None:
        """Say what is seen at a moment, before the first values of it.

        Args:
            moment: when the streams have rows. Those that sum up a reward are observed.
            streams: what they are; sums come last.
        """
        if streams:
            with self._copying:
                self._describe(moment, streams)

    def _describe(self, moment: Moment, streams: Sequence[Stream]) -> None:
        self._described[moment] = list(streams)
        if moment is Moment.STEPPED:
            summed = {stream.sums for stream in self._described[Moment.OBSERVED] if stream.sums}
            self._reward = next((i for i, stream in enumerate(streams) if stream.key in summed), None)
        tracks = [*_tracks(moment, streams, {stream.sums for stream in self.streams})]
        for buffer, bulk in ((self._small, False), (self._bulky, True)):
            added = [track for track, is_bulky in tracks if is_bulky is bulk]
            if added:
                buffer.tracks = (*buffer.tracks, *added)
        self._in_detail = tuple(buffer for buffer in (self._small, self._bulky) if buffer.tracks)
        self._share_out()
        statistics: list[Chunk] = []
        if moment is Moment.STEPPED and self.has_statistics:
            statistics += self._describe_batch()
        self._begin_writing()
        described = [(stream, each) for each in Moment for stream in self._described[each]]
        assert self._writer is not None, "it was just begun"
        self._writer.put(itertools.chain(self._output.describe(described, streams, self._statistics), statistics))

    @property
    def has_statistics(self) -> bool:
        """Whether they are asked for, or by default not all environments are recorded in detail."""
        if self._options.aggregate is None:
            return self._options.logged_envs is None and self._select is not None and self._episode_files is None
        return self._options.aggregate

    def _describe_batch(self) -> Iterator[Chunk]:
        """Of many environments the rewards and returns of all are summed up."""
        sums = [stream for stream in self._described[Moment.OBSERVED] if stream.sums]
        at = [i for i, stream in enumerate(self._described[Moment.STEPPED]) if stream.key in {s.sums for s in sums}]
        if not at:
            return
        rewards = tuple(self._described[Moment.STEPPED][i] for i in at)
        # Returns at steps alone: a row at each reset would show the mean fall and rise again.
        tracks = (Track(Moment.STEPPED, rewards, tuple(at), is_summed=True), Track(Moment.STEPPED, tuple(sums)))
        capacity = self._options.buffer_bytes // BATCH_SHARE
        self._batch = self._buffer(self.source.envs, capacity, self._batch_statistics.chunks)
        self._batch.tracks = tracks
        yield from self._batch_statistics.static(tracks)

    @property
    def _statistics(self) -> list[Key]:
        """The keys of which there are statistics over all environments."""
        return [] if self._batch is None else [stream.key for track in self._batch.tracks for stream in track.streams]

    def _noticed(self) -> None:
        """Something went wrong or slowly, on whatever thread: the next frame tells."""
        self._news = True

    def _share_out(self) -> None:
        """Divide the bound on what waits: small rows get what full blocks of them need, and up to half of it."""
        both = self._block_bytes
        if self._small.tracks and self._bulky.tracks:
            small = min(both // 2, self._small.bytes_at_most)
            self._small.capacity, self._bulky.capacity = small, both - small

    def _begin_writing(self) -> None:
        if self._writer is None:
            names = {"application_id": self.application_id, "recording_id": self.recording_id}
            patience = self._max_age / LOOKS
            self._writer = Writer(
                self.sink, self._outlets, self._noticed, self._hand_over_what_is_old, patience=patience, **names
            )
            self._writer.put([info_chunk(Path(self.sink.label).stem, time.time_ns())])

    # --- steps ---

    def reset(
        self,
        observed: Arrays,
        mask: npt.NDArray[np.bool_] | None = None,
        seeds: Sequence[int | None] = (),
        *,
        render: Render | None = None,
    ) -> None:
        """Environments were reset.

        Args:
            observed: what was observed, for all environments: an array ``[envs, *stream.shape]`` for each stream that
                was described for this moment but the sums; None for what is missing.
            mask: bool ``[envs]``, which ones were reset; None: all. The values of the others are not looked at.
            seeds: the seed of each environment, if it is known; empty: none is.
            render: where the last of what was observed comes from, which is None then: called for those environments
                alone that are recorded now, if any is.
        """
        with self._copying:
            self._add((observed, None, None), mask, is_step=False, seeds=seeds, render=render)

    def step(
        self,
        acted: Arrays,
        observed: Arrays,
        stepped: Arrays,
        mask: npt.NDArray[np.bool_] | None = None,
        ends: Ends | None = None,
        *,
        render: Render | None = None,
    ) -> None:
        """Environments were stepped.

        Args:
            acted: what the policy wrote, for all environments; it belongs to their frames before this one.
            observed: what was observed then, for all environments.
            stepped: what else came of it, rewards for one, for all environments.
            mask: bool ``[envs]``, which ones were stepped; None: all. The values of the others are not looked at.
            ends: whose episodes ended with it; None: nobody's, or it needn't be known, see :attr:`must_know_ends`.
            render: where the last of what was observed comes from, as for :meth:`reset`.
        """
        with self._copying:
            self._add((observed, stepped, acted), mask, is_step=True, ends=ends, render=render)

    def resume(self, progress: Progress) -> None:
        """Go on where another program was stopped."""
        self.episodes.resume(progress)
        self._at_first = self._counts

    def end(self, ends: Ends) -> None:
        """Say whose episodes ended with the last step, if only now it is known."""
        self._ledger.end(self._selected_ends(ends))

    def _selected_ends(self, ends: Ends) -> Ends:
        if self._select is None:
            return ends
        return Ends(ends.terminated[self._select], ends.truncated[self._select])

    def annotate(self, env: int | None, values: Mapping[str, Value | list[Value]]) -> None:
        """Add to what is known of the episode that an environment is in.

        Args:
            env: environment index; None: the only one.
            values: what to add.

        Raises:
            IndexError: the environment isn't recorded.
            ValueError: there are several and none is named, or it is in no episode.
        """
        if not isinstance(env, int | None) or isinstance(env, bool):
            raise TypeError(
                f"env={env!r} is no environment index; annotations are passed by name: annotate(success=True)"
            )
        if env is None and len(self.envs) > 1:
            raise ValueError(f"env is missing: {len(self.envs)} environments are recorded")
        if env is not None and env not in self.envs:
            raise IndexError(f"env={env} is not recorded; recorded are {', '.join(map(str, self.envs))}")
        self._ledger.annotate([0 if env is None else self.envs.index(env)], values)
        for name, value in values.items():
            first = self._annotated.setdefault(name, type(value))
            if not isinstance(value, first):
                warn(
                    f"{name} was of type {first.__name__} before and is now {value!r}: catalogs leave such episodes out"
                )

    @property
    def all_begun(self) -> bool:
        """Whether all environments that are recorded have been reset."""
        return self.episodes.all_begun

    def never_reset(self, mask: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_] | None:
        """Which of the environments of ``mask`` would be stepped without ever having been reset; None: none of them."""
        fresh = self.episodes.never_begun(None if mask is None else self._rows(mask))
        if fresh is not None and not len(fresh):
            return None
        out = np.zeros(self.source.envs, np.bool_)
        at = np.arange(len(self.envs)) if fresh is None else fresh
        out[at if self._select is None else np.arange(len(out))[self._select][at]] = True
        return out

    def _rows(self, mask: npt.NDArray[np.bool_]) -> Rows:
        if self._select is not None:
            mask = mask[self._select]
        return None if mask.all() else np.flatnonzero(mask)

    def _event(self, rows: Rows, ends: Ends | None = None, *, is_step: bool) -> Event | None:
        """What is about to happen to the environments ``rows``; None, a step at most, if that isn't recorded of any."""
        picked = None
        if rows is not None and not len(rows):
            if self._batch is None:
                self.episodes.steps += is_step
                return None
        elif not self.selection.takes_all:
            picked = self._picked(rows, ends, is_step=is_step)
        return self.episodes.event(rows, time.time_ns(), is_step=is_step, picked=picked)

    def _add(
        self,
        moments: Moments,
        mask: npt.NDArray[np.bool_] | None,
        *,
        is_step: bool,
        ends: Ends | None = None,
        seeds: Sequence[int | None] = (),
        render: Render | None = None,
    ) -> None:
        if ends is not None:
            ends = self._selected_ends(ends)
        rows = None if mask is None else self._rows(mask)
        event = self._event(rows, ends, is_step=is_step)
        if event is None:
            return
        kept = True
        try:
            if self._batch is not None:
                kept = self._batch.add(self._of_batch(event, mask), moments, _nowhere)
            if rows is None or len(rows):
                if self._select is not None:
                    moments = (self._selected(moments[0]), self._selected(moments[1]), self._selected(moments[2]))
                if render is not None and event.is_recorded:
                    moments = (self._rendered(moments[0], event.after, render), *moments[1:])
                for arrays in moments:
                    for array in arrays or ():
                        if array is None:  # `in` would compare arrays
                            self._split_where_keys_are_missing(moments)
                for buffer in self._in_detail:
                    kept = buffer.add(event, moments, self.episodes.positions) and kept
            self.episodes.apply(event)
            self._enter(event, moments[Moment.STEPPED], ends, seeds)
        except BaseException:  # Ctrl-C, for one: the rest of the frame would be what happens to be in memory
            if self.episodes.has_seen(event):
                self._enter(event, moments[Moment.STEPPED], ends, seeds)
            else:
                for buffer in self._buffers():
                    buffer.drop(event)
            raise
        if not kept or self._news:
            self._tell()

    def _picked(self, rows: Rows, ends: Ends | None, *, is_step: bool) -> tuple[Rows, Rows]:
        """Whose frames before and after what happens now are recorded, of the environments ``rows``."""
        if is_step:
            ended = None if ends is None else ends.either
            return self.selection.step(rows, self.episodes.steps + 1, ended)
        return NONE, self.selection.reset(rows, self.episodes.of(rows) + 1)

    def _enter(self, event: Event, stepped: Arrays | None, ends: Ends | None, seeds: Sequence[int | None]) -> None:
        """Keep the ledger of the episodes, if they are what is recorded."""
        if self._episode_files is None or (event.rows is not None and not len(event.rows)):
            return
        episodes = self.episodes.of(event.rows)
        if event.is_step:
            self._ledger.step(event, episodes, self._rewards(stepped), ends)
        else:
            chosen = seeds if self._select is None or not seeds else list(np.array(seeds, object)[self._select])
            self._ledger.reset(event, episodes, chosen)

    def _rewards(self, stepped: Arrays | None) -> npt.NDArray[Any] | None:
        """The first of the rewards, as numbers."""
        if stepped is None or self._reward is None or (values := stepped[self._reward]) is None:
            return None
        stream = self._described[Moment.STEPPED][self._reward]
        return stream.numbers(values.cpu().numpy() if stream.device else values)

    def _of_batch(self, event: Event, mask: npt.NDArray[np.bool_] | None) -> Event:
        """What an event is for the statistics over all environments: they have rows where frames are recorded."""
        everyone = None if mask is None or mask.all() else np.flatnonzero(mask)
        if everyone is event.rows and event.after is event.rows:
            return event  # nearly always
        recorded = everyone if event.is_recorded else NONE
        return event._replace(rows=everyone, before=recorded, after=recorded)

    def _tell(self) -> None:
        """Warn, once each, of what the environment's thread should know."""
        self._news = False
        self._warn_of_failure()
        self._warn_of_waiting()
        self._warn_of_outlets()

    def _selected(self, arrays: Arrays | None) -> Arrays | None:
        """The values of those environments that are recorded."""
        if not arrays:
            return arrays
        select, envs = self._select, self.source.envs
        return [array if array is None or len(array) != envs else array[select] for array in arrays]

    def _rendered(self, observed: Arrays | None, rows: Rows, render: Render) -> Arrays:
        """What was observed, with pictures of the environments ``rows`` as the last of it."""
        assert observed is not None, "frames with pictures have observations"
        shown = range(len(self.envs)) if rows is None else rows.tolist()
        pictures = render([self.envs[row] - self.source.first_env for row in shown])
        if pictures is None:
            return observed
        if len(self.envs) == 1:
            return [*observed[:-1], pictures[0][np.newaxis]]
        values = np.empty((len(self.envs), *pictures[0].shape), pictures[0].dtype)  # only rows that count are looked at
        for row, picture in zip(shown, pictures, strict=True):
            values[row] = picture
        return [*observed[:-1], values]

    def _split_where_keys_are_missing(self, moments: Sequence[Arrays | None]) -> None:
        """Keys that now come without the others of their track get a track of their own: each has its own rows then."""
        for buffer in (self._small, self._bulky):
            tracks: list[Track] = []
            for track in buffer.tracks:
                values = moments[track.moment]
                there = [i for i in track.at if values is not None and values[i] is not None]
                if there and len(there) < len(track.at):
                    tracks += [track.part(there), track.part([i for i in track.at if i not in there])]
                else:
                    tracks.append(track)
            if len(tracks) > len(buffer.tracks):
                buffer.tracks = tuple(tracks)

    # --- out ---

    def dump(self) -> None:
        """Return when everything so far is with the sink.

        Raises:
            RecordingError: it isn't, and why.
        """
        if self._is_done():
            if self._missed:
                raise self._aftermath()
            if self._end is not None:
                what, cause = self._end
                raise RecordingError(what) from cause
            return
        if self._episode_files is not None:
            self._ledger.close_ended(self.episodes.frames)
        self._flush()
        if self._writer is not None:
            self._writer.flush()
        for outlet in self._outlets:
            outlet.sync()
        self._raise_failure()

    def close(self) -> None:
        """Dump, write the layout and end the recording. Closing again does nothing, unless Ctrl-C came in between.

        Raises:
            RecordingError: something could not be written, and why.
        """
        if self._is_done():
            if self._missed:
                aftermath, self._missed = self._aftermath(), 0  # closing again does nothing
                raise aftermath
            return
        self.alive = False
        if self._episode_files is not None:
            self._ledger.close(self.episodes.frames)
        self._flush()
        if self._writer is None:  # nothing was written: an empty file would be in the way of the next try
            try:
                self._raise_failure()
            finally:
                self.abandon()
            return
        self._writer.finish()
        if self._keeper is not None:
            self._keeper.sync()
        self._conclude(self.lost_frames)
        try:
            failure = self._failure()
            if failure is not None:
                # Not the error itself: with its traceback it would keep all of this alive.
                self._end = str(failure), failure.__cause__
                raise failure
            self._embed_layout()
        finally:
            self.is_over = True
            self.sink.close()
            for outlet in self._outlets:
                outlet.close()

    def _is_done(self) -> bool:
        return self.is_over or self.process != os.getpid()

    def keep(self) -> None:
        """All keys are described: viewers can lay them out, and a file that this one replaces isn't needed any more.

        Raises:
            ValueError: the episodes' returns aren't known, and are asked for.
        """
        if self._reward is None and self._options.keep is not None and self._options.keep.needs_return:
            raise ValueError(
                f"keep={self._options.keep!r} goes by the reward, which is not recorded: add it to in_keys"
            )
        self.sink.keep()
        if self._episode_files is not None and (made := self.layout()) is not None:
            self._episode_files.lay_out(made)
        if self._writer is not None:
            for buffer in self._buffers():
                self._writer.put(buffer.prepare())
        self._warn_of_short_blocks()
        for outlet in self._outlets:
            if (made := self.layout(live=True)) is not None:
                outlet.show(made)

    def _warn_of_short_blocks(self) -> None:
        """Thousands of environments in detail leave room for few rows of each: nearly all cost is in the chunks then."""
        if len(self.envs) <= MAX_LOGGED_ENVS or not self._small.tracks or self._small.slots >= SHORT_BLOCK:
            return
        entities = sum(stream.lanes for track in self._small.tracks for stream in track.streams)
        cost = entities * CHUNK_SECONDS / self._small.slots
        needed = -(-SHORT_BLOCK * self._options.buffer_bytes // self._small.slots >> 20)
        warn(
            f"{len(self.envs)} environments are recorded in detail, and only {self._small.slots} frames of them fit into half "
            f"of buffer_bytes: each environment's step takes the writer about {cost * 1e6:.0f} us, "
            f"{cost * len(self.envs) * 1e3:.0f} ms for all. Record fewer with logged_envs=..., or more at once with "
            f"buffer_bytes={needed} << 20"
        )

    @property
    def may_go_on(self) -> bool:
        """Whether it is time to try to go on after :meth:`close`: at once, and every few seconds where that fails."""
        return time.monotonic() - self._hindered_at >= RETRY_SECONDS

    def fail_to_go_on(self, error: OSError) -> None:
        """What comes after :meth:`close` can't be recorded before the next try."""
        self._hindrance, self._hindered_at = error, time.monotonic()

    def miss(self, batch_size: tuple[int, ...], mask: npt.NDArray[np.bool_] | None, *, is_step: bool) -> None:
        """A frame came after :meth:`close`, and is lost: said once, and raised by :meth:`dump` and :meth:`close`.

        It is counted as if it had been recorded, so that what goes on later is where it would have been.

        Args:
            batch_size: of the environments, which may be others.
            mask: which of them were reset or stepped; None: all.
            is_step: whether it was a step.
        """
        assert self._at_last is not None, "it is over"
        before = self._counts
        if batch_size != self.source.batch_size:
            self.episodes.frames += 1
            self.episodes.steps += is_step
        elif (event := self._event(None if mask is None else self._rows(mask), is_step=is_step)) is not None:
            self.episodes.apply(event)
        frames, steps, episodes = (now - then for now, then in zip(self._counts, before, strict=True))
        self._at_last = dataclasses.replace(
            self._at_last,
            frames=self._at_last.frames + frames,
            steps=self._at_last.steps + steps,
            episodes=self._at_last.episodes + episodes,
            frames_lost=self._at_last.frames_lost + frames,
        )
        self._missed += frames
        if self._missed == frames == 1:
            self._forget_returns()
            warn(f"{self._aftermath()} (training goes on; dump() and close() will raise this)", RuntimeWarning)

    def _aftermath(self) -> RecordingError:
        failure = RecordingError(
            f"what came after {self.sink.label} was closed is not recorded, {self._missed} frames were lost: {self._hindrance}"
        )
        failure.__cause__ = self._hindrance
        return failure

    def _forget_returns(self) -> None:
        """Rewards were lost. What goes on after this recording doesn't know the returns of the episodes in progress."""
        self._sums.forget()
        self._batch_sums.forget()
        self._ledger.forget_returns()

    def layout(self, *, live: bool = False) -> rrb.Blueprint | None:
        """The layout of what is known by now; None: there is none.

        Args:
            live: whether it is for those who watch.
        """
        wanted = self._options.blueprint
        if wanted is False or isinstance(wanted, rrb.Blueprint):
            return wanted or None
        shown = (
            [None] if self._episode_files is not None else shown_envs(self.envs, self.source.envs, self.sink.family())
        )
        recorded = Recorded(self.streams, shown, self.source.fps, self._statistics)
        if callable(wanted):
            try:
                made: object = wanted(recorded)
            except Exception as error:  # training goes on
                made = error
            if isinstance(made, rrb.Blueprint):
                return made
            warn(f"blueprint={wanted!r} gave {made!r} instead of a layout: there is one made from the streams instead")
        return layout(recorded, live=live)

    def abandon(self) -> None:
        """Stop, and remove the file: what was begun can't be recorded as the user asked."""
        self.alive = False
        if self._writer is not None:
            self._writer.finish()
        self._conclude(self._frames)
        self.is_over = True
        self.sink.discard()
        for outlet in self._outlets:
            outlet.close()

    def fail(self, error: Exception) -> None:
        """Stop recording because of an error of our own; it is raised by the next :meth:`dump` or :meth:`close`."""
        if self._error is None:
            self._error, self._failed_at = error, self.episodes.frames
        self._warn_of_failure()

    def _embed_layout(self) -> None:
        try:
            made = self.layout()
            if made is not None:
                self.sink.embed(made, application_id=self.application_id)
        except Exception as error:
            warn(f"the recording is complete, but has no layout: {error}", RuntimeWarning)

    def _buffers(self) -> list[Buffer]:
        return [self._small, self._bulky, *([] if self._batch is None else [self._batch])]

    def _flush(self) -> None:
        with self._copying:  # the writer, when it is idle, hands over what is old: two at once would come in any order
            for buffer in self._buffers():
                buffer.flush()
        if self._writer is not None:
            self._writer.put(self._output.rest(self.episodes.frames), frames=self._no_frames)

    def _hand_over(self, buffer: Buffer, turn: Turn) -> None:
        assert self._writer is not None, "blocks exist only once something was described"
        self._writer.put(buffer.chunks(turn), functools.partial(buffer.give_back, turn), turn.frames)
        self._writer.put(self._output.settle(self._complete), frames=self._no_frames)

    def _hand_over_what_is_old(self) -> None:
        """No frame has come for a while: what waits is written all the same. Called on the writer's thread."""
        if not self.alive or not self._copying.acquire(blocking=False):
            return  # a frame is being copied, which hands over what is old
        try:
            now = time.time_ns()
            for buffer in self._buffers():
                buffer.flush_if_old(now)
        finally:
            self._copying.release()
        if self._writer is not None and self._output.oldest_waiting is not None:
            self._writer.put(self._output.settle(self._complete), frames=self._no_frames)

    def _complete(self) -> int:
        """Before which frame everything has been through the output."""
        waiting = [buffer.oldest_waiting for buffer in self._buffers()]
        return min((frame for frame in waiting if frame is not None), default=sys.maxsize)

    @property
    def _no_frames(self) -> tuple[int, int]:
        """What comes is of frames that were counted already."""
        return self.episodes.frames, self.episodes.frames

    def _alive(self) -> bool:
        return self._error is None and self._writer is not None and self._writer.alive()

    @property
    def _counts(self) -> tuple[int, int, int]:
        """Frames, steps and episodes so far, of all recordings whose counters went on."""
        return self.episodes.frames, self.episodes.steps, self.episodes.begun()

    @property
    def _frames(self) -> int:
        """How many frames there have been since the recording began, or went on in this file."""
        return self.episodes.frames - self._at_first[0]

    @property
    def _unwritten_frames(self) -> int:
        """How many of them aren't with the sink in full."""
        waiting = [self._output.oldest_waiting, *(buffer.oldest_waiting for buffer in self._buffers())]
        if self._keeper is not None:
            waiting.append(self._keeper.oldest_waiting)
        oldest = min(
            [frame for frame in (self._failed_at, *waiting) if frame is not None], default=self.episodes.frames
        )
        return self.episodes.frames - oldest

    @property
    def _keeper(self) -> Outlet | None:
        """The recording stream that keeps what is recorded, where there is no file."""
        return next((outlet for outlet in self._outlets if outlet.keeps), None)

    @property
    def lost_frames(self) -> int:
        """How many of them could not be written, or were and are gone with their file."""
        if self.sink.trouble() is not None:
            return self._frames
        if self._keeper is not None and self._keeper.trouble() is not None:
            return self._keeper.dropped_frames
        has_failed = self._error is not None or (self._writer is not None and self._writer.error is not None)
        return self._unwritten_frames if has_failed else 0

    def stats(self) -> Stats:
        """What was recorded, written, lost and is waiting; see :meth:`RerunRecorder.stats`."""
        if self._at_last is not None:
            return self._at_last
        lost = self.lost_frames
        return self._counted(lost, waiting=0 if lost else self._unwritten_frames)

    def _counted(self, lost: int, waiting: int) -> Stats:
        before, (_, steps, episodes) = self._before.stats, self._at_first
        frames, size = before.frames + self._frames, before.bytes_written + self.sink.size()
        seconds, busy = time.monotonic() - self._before.began, self._busy_seconds
        return Stats(
            frames=frames,
            steps=before.steps + self.episodes.steps - steps,
            episodes=before.episodes + self.episodes.begun() - episodes,
            frames_written=before.frames_written + self._frames - lost - waiting,
            frames_waiting=waiting,
            frames_lost=before.frames_lost + lost,
            frames_dropped=before.frames_dropped + max((outlet.dropped_frames for outlet in self._outlets), default=0),
            bytes_waiting=self._waiting_bytes() if waiting else 0,
            bytes_written=size,
            seconds_waited=before.seconds_waited + self._seconds_waited(),
            frames_per_second=frames / seconds,
            bytes_per_second=size / busy if busy else 0.0,
        )

    @property
    def _busy_seconds(self) -> float:
        return self._before.busy_seconds + (0.0 if self._writer is None else self._writer.busy_seconds)

    def _waiting_bytes(self) -> int:
        return self._output.waiting_bytes + sum(buffer.waiting_bytes for buffer in self._buffers())

    def _conclude(self, lost: int) -> None:
        """Nothing more is written: what is lost is so for good."""
        self._at_last = self._counted(lost, waiting=0)
        if lost or self._error is not None:
            self._forget_returns()

    def _as_before(self) -> _Before:
        return _Before(self.stats(), self._before.began, self._busy_seconds)

    def _seconds_waited(self) -> float:
        return sum(buffer.seconds_waited for buffer in self._buffers())

    def _warn_of_waiting(self) -> None:
        """The environment is held up: say so once, with what to do about it."""
        if self._warned_of_waiting or self._seconds_waited() < PATIENCE:
            return
        self._warned_of_waiting = True
        stats = self.stats()
        warn(
            f"the environment waits for {self.sink.label} to be written, {self._seconds_waited():.1f} s so far: "
            f"{stats.frames_per_second:.0f} frames/s are recorded, and {stats.bytes_per_second / 1e6:.3g} MB/s can "
            "be encoded and written. Nothing is lost; to wait less record less: fewer logged_envs, fewer in_keys, a cheaper "
            "image_format (a larger buffer_bytes bridges short peaks)",
            RuntimeWarning,
        )

    def _warn_of_outlets(self) -> None:
        """A viewer that is gone costs frames that nobody would have seen: say so once, and go on."""
        for outlet in self._outlets:
            trouble = outlet.trouble()
            if trouble is not None and not outlet.keeps and outlet.label not in self._warned_of:
                self._warned_of.add(outlet.label)
                warn(f"{trouble}; what comes now is not shown there (training goes on)", RuntimeWarning)

    def _failure(self) -> RecordingError | None:
        error: BaseException | None = self._error or (self._writer.error if self._writer is not None else None)
        if error is None:
            error = self.sink.trouble() or (None if self._keeper is None else self._keeper.trouble())
        if error is None:
            return None
        if self._lacks_its_end():
            message = (
                f"all frames are in {self.sink.label}, but it has no footer and no layout: {error}. Once there is room "
                f"for a second copy of it, `torchrl-rerun repair {shlex.quote(self.sink.location)}` adds them"
            )
        else:
            message = f"recording to {self.sink.label} failed, {self.lost_frames} frames were lost: {error}"
        failure = RecordingError(message)
        failure.__cause__ = error
        return failure

    def _lacks_its_end(self) -> bool:
        """Whether all was written but what comes last."""
        return not self.alive and self._error is None and self.sink.trouble() is None and not self.lost_frames

    def _raise_failure(self) -> None:
        failure = self._failure()
        if failure is not None:
            raise failure

    def _warn_of_failure(self) -> None:
        failure = None if self._warned else self._failure()
        if failure is not None:
            self._warned = True
            where = ", in another file," if self._keeper is None else ""
            warn(
                f"{failure} (training goes on, and is recorded again{where} after close(); dump() and close() will raise this)",
                RuntimeWarning,
            )


def application_id(options: Options, source: Source) -> str:
    """What groups recordings in the viewer: as asked for, or the environment's name."""
    return options.application_id or source.name or "torchrl_rerun"


def _nowhere() -> Positions:
    """What needs no positions has none."""
    return np.empty((0, len(TIMELINES)), np.int64)


def _selection(chosen: Sequence[int], envs: int) -> slice | npt.NDArray[np.intp] | None:
    """What picks the environments ``chosen`` out of an array of all of them; None: they are all."""
    if len(chosen) == envs:
        return None
    if list(chosen) == list(range(chosen[0], chosen[-1] + 1)):
        return slice(chosen[0], chosen[-1] + 1)  # a view, where an array of indices would copy
    return np.array(chosen, np.intp)


def _tracks(moment: Moment, streams: Sequence[Stream], summed: Collection[Key]) -> Iterator[tuple[Track, bool]]:
    """Streams as tracks: small ones, bulky ones and sums by themselves; and whether they are bulky.

    Rewards are never among the bulky ones: a block must hold them and their sums.
    """
    places: dict[bool, list[int]] = {False: [], True: []}
    for i, stream in enumerate(streams):
        if not stream.sums:
            places[stream.is_bulky and stream.key not in summed].append(i)
    for is_bulky, at in places.items():
        if at:
            is_summed = any(streams[i].key in summed for i in at)
            yield Track(moment, tuple(streams[i] for i in at), tuple(at), is_summed), is_bulky
    sums = tuple(stream for stream in streams if stream.sums)
    if sums:
        yield Track(moment, sums), False


_open: weakref.WeakSet[Recording] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A forked process has no writer's thread, and the files are its parent's."""
    for recording in _open:
        recording.alive = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
