"""A recording in progress: steps of all environments in, a Rerun recording out.

This is what every front end feeds, whatever its environments look like; it knows arrays, and nothing of TorchRL.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rerun.blueprint as rrb
from rerun.chunk import Chunk

from torchrl_rerun.blocks.block import Arrays, StreamGroup
from torchrl_rerun.blocks.buffer import Buffer
from torchrl_rerun.blocks.events import NO_ENVS, EnvIndices, Event
from torchrl_rerun.blocks.returns import Sums
from torchrl_rerun.blocks.segment import Segment
from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.kinds.episode import Value
from torchrl_rerun.kinds.places import Places
from torchrl_rerun.kinds.schema import PROPERTIES, Moment, Source, info_chunk, shown_envs
from torchrl_rerun.kinds.streams import Key, Stream
from torchrl_rerun.kinds.timelines import COLUMNS, Positions
from torchrl_rerun.layout.blueprint import Recorded, layout
from torchrl_rerun.recording.buffers import Buffers
from torchrl_rerun.recording.clock import CLOCK
from torchrl_rerun.recording.counters import Counters, Progress
from torchrl_rerun.recording.episode_log import EpisodeLog
from torchrl_rerun.recording.last_step import LastStep, Moments, Pending, Revise, Revision
from torchrl_rerun.recording.logged_envs import MAX_LOGGED_ENVS, LoggedEnvs, Render
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.stats import Stats
from torchrl_rerun.recording.status import State, Status
from torchrl_rerun.recording.triggers import Selection
from torchrl_rerun.writing.episode_files import EpisodeFiles
from torchrl_rerun.writing.folder import EpisodeFolder
from torchrl_rerun.writing.live import LiveSink
from torchrl_rerun.writing.output import Output
from torchrl_rerun.writing.statistics import BatchStatistics
from torchrl_rerun.writing.target import ChunkWriter
from torchrl_rerun.writing.whole_run import WholeRun
from torchrl_rerun.writing.writer import WriterThread

LIVE_SECONDS = 0.5
"""Age of a frame at the most when it is sent to a viewer, and some of this on top: see :data:`LOOKS`."""

LOOKS = 4
"""How often it is looked, within the time that a frame may wait, for one that has waited so long."""

SHORT_BLOCK = 100
"""Frames of a block below which the making of chunks costs several times what their data do."""

CHUNK_SECONDS = 250e-6
"""What a chunk takes the writer, whatever is in it; `make bench ARGS="--only parts scaling"` measures it."""

BATCH_SHARE = 16
"""The statistics over all environments wait in this part of the buffer, in addition to it."""

BLOCKS_SHARE = 4
"""Where episodes wait in memory until they are over, blocks have this part of the buffer."""


class Recording:
    """Counts episodes, buffers steps and has them written to a sink.

    Args:
        chunk_writer: takes the chunks, and is closed with the recording.
        source: the environments.
        options: how to record them.
        live_sinks: open viewers and recording streams; they are closed with the recording.
        run_id: id of the Rerun recording, or of the run that it is a part of.
        continues: the recording whose counters go on, if it was of the same batch size.

    Attributes:
        look_seconds: seconds from one look of the clock to the next, see :meth:`look`.
        status: its state, and what became of the frames.
        selection: which frames are recorded.
        must_know_ends: whether :meth:`step` must be told whose episodes end.
        process: the process that it is of.

    Raises:
        IndexError: ``logged_envs`` names an environment that isn't there.
    """

    def __init__(
        self,
        chunk_writer: ChunkWriter,
        source: Source,
        options: Options,
        *,
        live_sinks: Sequence[LiveSink] = (),
        run_id: str,
        continues: Recording | None = None,
    ) -> None:
        self.source = source
        self.chunk_writer = chunk_writer
        self._live_sinks = tuple(live_sinks)
        self._options = options
        before = continues if continues is not None and continues.source.batch_size == source.batch_size else None
        self._logged: LoggedEnvs = (
            LoggedEnvs(options.logged_envs, source.envs) if before is None else before._logged  # noqa: SLF001
        )
        self.envs = [source.first_env + index for index in self._logged.indices]
        if before is None:
            self.counters = Counters(len(self.envs))
            self.selection = Selection(len(self.envs), options)
            self._sums, self._batch_sums = Sums(len(self.envs)), Sums(source.envs)
        else:
            self.counters, self.selection = before.counters, before.selection
            self._sums, self._batch_sums = before._sums, before._batch_sums  # noqa: SLF001 - of the same class
        self.run_id = run_id
        is_dump = options.split == "dump"
        self.recording_id = f"{Path(chunk_writer.label).stem}_{run_id}" if is_dump else run_id
        self.application_id = application_id(options, source)
        self._max_age = min(options.flush_seconds, LIVE_SECONDS) if live_sinks else options.flush_seconds
        self.look_seconds = self._max_age / LOOKS
        self._episode_log = EpisodeLog(self.envs)
        folder = chunk_writer.episodes
        capacity = options.buffer_bytes // (1 if folder is None else BLOCKS_SHARE)
        small, bulky = (Buffer(len(self.envs), capacity, max_age=self._max_age) for _ in range(2))
        self._episode_files = None if folder is None else self._files_in(folder, (small, bulky))
        self.must_know_ends = options.skip > 1 or self._episode_files is not None
        self._output: Output = self._episode_files or WholeRun(
            source,
            self.envs,
            self._sums,
            split=options.split,
            max_age=self._max_age,
            first_frame=self.counters.frames if is_dump else 0,
        )
        self._writer = WriterThread(
            chunk_writer,
            self._live_sinks,
            self._output,
            application_id=self.application_id,
            recording_id=self.recording_id,
        )
        self._buffers = Buffers(small, bulky, capacity, self._writer, self._output)
        self.status: Status = Status(
            chunk_writer,
            self._live_sinks,
            counters=self.counters,
            buffers=self._buffers,
            output=self._output,
            writer=self._writer,
            continues=None if continues is None else continues.status,
        )
        self._told = 0  # of the writer's failures, those that the environment's thread has told of
        # Held while a frame is copied. The clock's thread hands on what is old when no frame comes, and never waits for it. One
        # that its owner can take again, for Ctrl-C may come before it is released.
        self._copying = threading.RLock()
        self._described: list[list[Stream]] = [[] for _ in Moment]
        # A recording of one episode has no `/env_{i}` before its keys.
        self._places = Places(reserved=() if self._episode_files is None else (PROPERTIES,))
        self._ends: tuple[Key, ...] = ()
        self._reward: int | None = None  # where the first reward is among what is described of steps
        self._batch_statistics = BatchStatistics(source.fps, self._batch_sums)
        self._annotated: dict[str, type] = {}
        self._last: LastStep | None = None
        self.process = os.getpid()
        _open.add(self)
        CLOCK.watch(self)

    def _files_in(self, folder: EpisodeFolder, buffers: Sequence[Buffer]) -> EpisodeFiles:
        options = self._options
        return EpisodeFiles(
            folder,
            self.source,
            self.envs,
            self._sums,
            over=self._episode_log.over,
            buffers=buffers,
            application_id=self.application_id,
            recording_id=self.run_id,
            capacity=options.buffer_bytes - options.buffer_bytes // BLOCKS_SHARE,
            max_age=options.flush_seconds,
        )

    # --- its life ---

    @property
    def alive(self) -> bool:
        """Whether it takes frames: it is open, and of this process."""
        return self.status.state is State.OPEN

    @property
    def is_over(self) -> bool:
        """Whether it was closed to the end; Ctrl-C may have come in between."""
        return self.status.state.is_over

    def stats(self) -> Stats:
        """Return what was recorded, written, lost and is waiting."""
        return self.status.stats()

    # --- what is recorded ---

    @property
    def streams(self) -> list[Stream]:
        """All streams, in the order in which they were described."""
        return [stream for streams in self._described for stream in streams]

    def describe(self, moment: Moment, streams: Sequence[Stream], ends: Sequence[Key] = ()) -> None:
        """Say what is seen at a moment, before the first values of it.

        Args:
            moment: when the streams have rows. Those that sum up a reward are observed.
            streams: what they are; sums come last.
            ends: the flags that end an environment's episode, recorded or not, once they are known.
        """
        self._ends = tuple(ends) or self._ends
        if streams:
            with self._copying:
                self._describe(moment, streams)

    def _describe(self, moment: Moment, streams: Sequence[Stream]) -> None:
        self._revise()
        streams = [*map(self._places.placed, streams)]
        self._described[moment] = streams
        if moment is Moment.STEPPED:
            summed = {stream.sums for stream in self._described[Moment.OBSERVED] if stream.sums}
            self._reward = next((i for i, stream in enumerate(streams) if stream.key in summed), None)
        self._buffers.store(moment, streams, {stream.sums for stream in self.streams if stream.sums})
        statistics: list[Chunk] = []
        if moment is Moment.STEPPED and self.has_statistics:
            statistics += self._describe_batch()
        self._begin_writing()
        described = [(stream, each) for each in Moment for stream in self._described[each]]
        chunks = self._output.describe(described, streams, self._statistics, self._ends)
        self._writer.put(itertools.chain(chunks, statistics))

    def vary(self, stream: Stream) -> Stream | None:
        """Record values of a key of any shape from now on: what its shape was so far stays the usual one.

        Args:
            stream: how the key is recorded.

        Returns:
            How it is recorded from now on; None: returns are worked out from it, which have one shape.
        """
        if stream.key in {each.sums for each in self.streams}:
            return None
        with self._copying:
            self._revise()
            for moment, streams in zip(Moment, self._described, strict=True):
                for at, each in enumerate(streams):
                    if each.key == stream.key:
                        streams[at] = replace(each, varies=True, device="")
                        self._buffers.vary(each, moment, streams[at], at)
            described = [(each, moment) for moment in Moment for each in self._described[moment]]
            self._writer.put(self._output.describe(described, [], self._statistics, self._ends))
        return replace(stream, varies=True, device="")

    @property
    def has_statistics(self) -> bool:
        """Whether they are asked for, or by default not all environments are recorded in detail."""
        if self._options.aggregate is None:
            return self._options.logged_envs is None and not self._logged.are_all and self._episode_files is None
        return self._options.aggregate

    def _describe_batch(self) -> Iterator[Chunk]:
        """Of many environments the rewards and returns of all are summed up."""
        sums = [stream for stream in self._described[Moment.OBSERVED] if stream.sums]
        at = [i for i, stream in enumerate(self._described[Moment.STEPPED]) if stream.key in {s.sums for s in sums}]
        if not at:
            return
        rewards = tuple(self._described[Moment.STEPPED][i] for i in at)
        # Returns at steps alone: a row at each reset would show the mean fall and rise again.
        groups = (
            StreamGroup(Moment.STEPPED, rewards, tuple(at), is_summed=True),
            StreamGroup(Moment.STEPPED, tuple(sums)),
        )
        capacity = self._options.buffer_bytes // BATCH_SHARE
        buffer = Buffer(self.source.envs, capacity, max_age=self._max_age)
        self._buffers.store_batch(buffer, self._batch_statistics, groups)
        yield from self._batch_statistics.static(groups)

    @property
    def _statistics(self) -> list[Key]:
        """The keys of which there are statistics over all environments."""
        batch = self._buffers.batch
        return [] if batch is None else [stream.key for group in batch.groups for stream in group.streams]

    def _begin_writing(self) -> None:
        if not self._writer.has_begun:
            self._writer.put([info_chunk(Path(self.chunk_writer.label).stem, time.time_ns())])
            self._writer.start()

    # --- steps ---

    def reset(
        self,
        observed: Arrays,
        mask: npt.NDArray[np.bool_] | None = None,
        seeds: Sequence[int | None] = (),
        *,
        begun: npt.NDArray[np.bool_] | None = None,
        render: Render | None = None,
    ) -> None:
        """Environments were reset.

        Args:
            observed: what was observed, for all environments: an array ``[envs, *stream.shape]`` for each stream that
                was described for this moment but the sums; None for what is missing.
            mask: bool ``[envs]``, which ones were reset; None: all. The values of the others are not looked at.
            seeds: the seed of each environment, if it is known; empty: none is.
            begun: bool ``[envs]``, whose episodes begin; None: those of all that were reset. Of the others some groups of
                agents were reset alone.
            render: where the last of what was observed comes from, which is None then: called for those environments
                alone that are recorded now, if any is.
        """
        with self._copying:
            self._add((observed, None, None), mask, is_step=False, seeds=seeds, begun=begun, render=render)

    def step(
        self,
        acted: Arrays,
        observed: Arrays,
        stepped: Arrays,
        mask: npt.NDArray[np.bool_] | None = None,
        ends: Ends | None = None,
        *,
        render: Render | None = None,
        revise: Revise | None = None,
    ) -> None:
        """Environments were stepped.

        Args:
            acted: what the policy wrote, for all environments; it belongs to their frames before this one.
            observed: what was observed then, for all environments.
            stepped: what else came of it, rewards for one, for all environments.
            mask: bool ``[envs]``, which ones were stepped; None: all. The values of the others are not looked at.
            ends: whose episodes ended with it; None: nobody's, or it needn't be known, see :attr:`must_know_ends`.
            render: where the last of what was observed comes from, as for :meth:`reset`.
            revise: returns what has changed of the step since; called before the next frame, a dump, or a flush by age. None:
                nothing changes any more.
        """
        with self._copying:
            self._add((observed, stepped, acted), mask, is_step=True, ends=ends, render=render, revise=revise)

    def revise_last_step(self) -> None:
        """Look once more at the last step: transforms behind the recorder may have ended episodes with it."""
        with self._copying:
            self._revise()

    def _revise(self, *, is_past: bool = False, at_once: bool = True) -> bool:
        """Amend the last step. Returns whether nothing of it can change any more.

        Args:
            is_past: environments were reset since, and can't be rendered as they were.
            at_once: the step is amended as it is now, even if it goes on.
        """
        last = self._last
        if last is None:
            return True
        found = last.revise(at_once) if self.counters.has_seen(last.event) else None
        if isinstance(found, Pending):
            return False
        if found is not None:
            amended, moments, ends = self._revised(last, found, is_past=is_past)
            try:
                self._amend(last.event, amended, moments, ends)
            except BaseException:  # Ctrl-C, for one: half of a frame would be in the blocks
                self._amend(last.event, amended, moments, ends)
                raise
        self._last = None
        return True

    def _revised(self, last: LastStep, found: Revision, *, is_past: bool) -> tuple[Event, Moments, Ends | None]:
        """What is recorded of the last step instead."""
        event = last.event
        ends = None if found.ends is None else self._logged.ends(found.ends)
        if ends is not None and event.rows is not None:
            stepped = np.zeros(len(self.envs), np.bool_)
            stepped[event.rows] = True
            ends = Ends(ends.terminated & stepped, ends.truncated & stepped)
        observed = list(self._logged.values(found.observed) or ())
        if last.render is not None and last.moments[0] is not None:
            observed.append(last.moments[0][-1])
        if ends is not None and not self.selection.takes_all and not (is_past and last.render is not None):
            after = self.selection.end(event.rows, event.after, ends.either)
            if after is not event.after:
                event = event._replace(after=after)
                if last.render is not None:
                    observed = list(self._logged.with_pictures(observed, after, last.render))
        return event, (observed, self._logged.values(found.stepped), last.moments[2]), ends

    def _amend(self, event: Event, amended: Event, moments: Moments, ends: Ends | None) -> None:
        for buffer in self._buffers.in_use:
            buffer.amend(event, amended, moments)
        if ends is not None:
            self._episode_log.correct_ends(event, ends)
        self.counters.amend(event, amended)

    def resume(self, progress: Progress) -> None:
        """Go on where another program was stopped."""
        self.counters.resume(progress)
        self.status.begin_here()

    def grow(self, envs: int) -> None:
        """Make room for more environments; what was recorded so far is written first. A recording that is closed counts on.

        Args:
            envs: how many there are now, more than before.
        """
        with self._copying:
            if self.alive:
                self._flush()
                self._writer.flush()  # its thread works with what changes here
            wanted = self._options.logged_envs
            if wanted is None or isinstance(wanted, str):
                wanted = "all"
            elif not isinstance(wanted, slice):
                wanted = self._logged.indices  # an index may count from the end, which was another one
            recorded = {*self._logged.indices, *LoggedEnvs(wanted, envs).indices}
            self.source = dataclasses.replace(self.source, batch_size=(envs,))
            self._logged = LoggedEnvs(sorted(recorded), envs)
            self.envs[:] = [self.source.first_env + index for index in self._logged.indices]
            count = len(self.envs)
            for follower in (self.counters, self.selection, self._sums):
                follower.grow(count)
            self._batch_sums.grow(envs)
            if not self.alive:
                return
            self._episode_log.grow(self.envs)
            self._output.grow(self.source, self.envs)
            self._buffers.grow(count, envs)
            described = [(stream, each) for each in Moment for stream in self._described[each]]
            self._writer.put(self._output.describe(described, self.streams, self._statistics, self._ends))

    @property
    def is_on_writers_thread(self) -> bool:
        """Whether the caller is on the thread that writes."""
        return self._writer.is_current

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
        self._episode_log.annotate([0 if env is None else self.envs.index(env)], values)
        for name, value in values.items():
            first = self._annotated.setdefault(name, type(value))
            if not isinstance(value, first):
                warn(
                    f"{name} was of type {first.__name__} before and is now {value!r}: catalogs leave such episodes out"
                )

    @property
    def all_begun(self) -> bool:
        """Whether all environments that are recorded have been reset."""
        return self.counters.all_begun

    def never_reset(self, mask: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_] | None:
        """Which of the environments of ``mask`` would be stepped without ever having been reset; None: none of them."""
        fresh = self.counters.never_begun(None if mask is None else self._logged.rows(mask))
        if fresh is not None and not len(fresh):
            return None
        return self._logged.mask(fresh)

    def _event(
        self, rows: EnvIndices, ends: Ends | None = None, begun: EnvIndices = None, *, is_step: bool
    ) -> Event | None:
        """What is about to happen to the environments ``rows``; None, a step at most, if that isn't recorded of any."""
        picked = None
        if rows is not None and not len(rows):
            if self._buffers.batch is None:
                self.counters.count(steps=is_step)
                return None
        elif not self.selection.takes_all:
            picked = self._picked(rows, ends, begun, is_step=is_step)
        return self.counters.event(rows, time.time_ns(), is_step=is_step, picked=picked, begun=begun)

    def _add(
        self,
        moments: Moments,
        mask: npt.NDArray[np.bool_] | None,
        *,
        is_step: bool,
        ends: Ends | None = None,
        seeds: Sequence[int | None] = (),
        begun: npt.NDArray[np.bool_] | None = None,
        render: Render | None = None,
        revise: Revise | None = None,
    ) -> None:
        self._revise(is_past=not is_step)
        if ends is not None:
            ends = self._logged.ends(ends)
        rows = None if mask is None else self._logged.rows(mask)
        event = self._event(rows, ends, None if begun is None else self._logged.rows(begun), is_step=is_step)
        if event is None:
            return
        is_kept, buffers = True, self._buffers
        try:
            if (batch := buffers.batch) is not None:
                of_batch = self._of_batch(event, mask)
                while (in_the_way := batch.add(of_batch, moments, _nowhere)) is not None:
                    if not (is_kept := self._make_way(batch, in_the_way)):
                        break
            if rows is None or len(rows):
                if not self._logged.are_all:
                    values = self._logged.values
                    moments = (values(moments[0]), values(moments[1]), values(moments[2]))
                if render is not None and event.is_recorded:
                    assert moments[0] is not None, "frames with pictures have observations"
                    moments = (self._logged.with_pictures(moments[0], event.after, render), *moments[1:])
                for arrays in moments:
                    for array in arrays or ():
                        if array is None:  # `in` would compare arrays
                            buffers.split_where_keys_are_missing(moments)
                positions, may_change = self.counters.positions, revise is not None
                for buffer in buffers.in_use:
                    while (in_the_way := buffer.add(event, moments, positions, may_change=may_change)) is not None:
                        if not self._make_way(buffer, in_the_way):
                            is_kept = False
                            break
            self._last = None if revise is None else LastStep(event, moments, revise, render)
            self.counters.apply(event)
            self._enter(event, moments[Moment.STEPPED], ends, seeds)
        except BaseException:  # Ctrl-C, for one: the rest of the frame would be what happens to be in memory
            if self.counters.has_seen(event):
                self._enter(event, moments[Moment.STEPPED], ends, seeds)
            else:
                buffers.drop(event)
            raise
        if not is_kept or self._told != self._writer.failures:
            self._tell()

    def _make_way(self, buffer: Buffer, segment: Segment) -> bool:
        """Hand on the segment that is in the way of a frame, or wait for it. Return whether the frame can be added then."""
        waited = self._buffers.seconds_waited
        try:
            return self._buffers.make_way(buffer, segment)
        finally:
            if self._buffers.seconds_waited > waited:
                self._told = -1  # it may have waited for so long by now that the user is told

    def _tell(self) -> None:
        self._told = self._writer.failures
        self.status.tell()

    def _picked(
        self, rows: EnvIndices, ends: Ends | None, begun: EnvIndices, *, is_step: bool
    ) -> tuple[EnvIndices, EnvIndices]:
        """Whose frames before and after what happens now are recorded, of the environments ``rows``."""
        if is_step:
            ended = None if ends is None else ends.either
            return self.selection.step(rows, self.counters.steps + 1, ended)
        return NO_ENVS, self.selection.reset(rows, self.counters.of(rows if begun is None else begun) + 1, begun)

    def _enter(self, event: Event, stepped: Arrays | None, ends: Ends | None, seeds: Sequence[int | None]) -> None:
        """Keep the episode log of the episodes, if they are what is recorded."""
        if self._episode_files is None or (event.rows is not None and not len(event.rows)):
            return
        if event.is_step:
            self._episode_log.step(event, self.counters.of(event.rows), self._rewards(stepped), ends)
        else:
            self._episode_log.reset(event, self.counters.of(event.begins), self._logged.seeds(seeds))

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
        recorded = everyone if event.is_recorded else NO_ENVS
        return event._replace(rows=everyone, before=recorded, after=recorded)

    # --- out ---

    def dump(self, suffix: str | None = None) -> None:
        """Return when everything so far is kept. A recording of one dump is closed with it.

        Args:
            suffix: added to the name of a recording of one dump.

        Raises:
            RecordingError: something could not be written, and why.
        """
        if self._options.split == "dump" and self.alive:
            self.close()
            if suffix is not None:
                self.chunk_writer.rename(suffix)
            return
        if self.is_over:
            self.status.raise_again()
            return
        self.revise_last_step()
        if self._episode_files is not None:
            self._episode_log.close_ended(self.counters.frames)
        self._flush()
        self._writer.flush()
        for live_sink in self._live_sinks:
            live_sink.sync()
        self.status.raise_failure()

    def close(self) -> None:
        """Dump, write the layout and end the recording. Closing again does nothing, unless Ctrl-C came in between.

        Raises:
            RecordingError: something could not be written, and why.
        """
        if self.is_over:
            self.status.raise_what_was_missed()
            return
        self.revise_last_step()
        self.status.begin_to_close()
        CLOCK.wake()
        if self._episode_files is not None:
            self._episode_log.close(self.counters.frames)
        self._flush()
        if not self._writer.has_begun:  # nothing was written: an empty file would be in the way of the next try
            try:
                self.status.raise_failure()
            finally:
                self.abandon()
            return
        self._writer.finish()
        if self.status.sole_sink is not None:
            self.status.sole_sink.sync()
        self._conclude()
        try:
            self.status.raise_end()
            self._embed_layout()
        finally:
            self.status.end()
            self.chunk_writer.close()
            for live_sink in self._live_sinks:
                live_sink.close()

    def finish_describing(self) -> None:
        """All keys are described: viewers can lay them out, and a file that this one replaces isn't needed any more.

        Raises:
            ValueError: the episodes' returns aren't known, and are asked for.
        """
        if self._reward is None and self._options.keep is not None and self._options.keep.needs_return:
            raise ValueError(
                f"keep={self._options.keep!r} goes by the reward, which is not recorded: add it to in_keys"
            )
        self.chunk_writer.replace_earlier()
        if self._episode_files is not None and (made := self.layout()) is not None:
            self._episode_files.lay_out(made)
        if self._writer.has_begun:
            self._buffers.prepare()
        self._warn_of_short_blocks()
        for live_sink in self._live_sinks:
            if (made := self.layout(live=True)) is not None:
                try:
                    live_sink.show(made)
                except Exception as error:  # it is a matter of those who watch, not of what is recorded
                    warn(f"{live_sink.label} gets no layout: {error}", RuntimeWarning)

    def _warn_of_short_blocks(self) -> None:
        """Thousands of environments in detail leave room for few rows of each: nearly all cost is in the chunks then."""
        small = self._buffers.small
        if len(self.envs) <= MAX_LOGGED_ENVS or not small.groups or small.slots >= SHORT_BLOCK:
            return
        entities = sum(stream.lanes for group in small.groups for stream in group.streams)
        cost = entities * CHUNK_SECONDS / small.slots
        needed = -(-SHORT_BLOCK * self._options.buffer_bytes // small.slots >> 20)
        warn(
            f"{len(self.envs)} environments are recorded in detail, and only {small.slots} frames of them fit into half "
            f"of buffer_bytes: each environment's step takes the writer about {cost * 1e6:.0f} us, "
            f"{cost * len(self.envs) * 1e3:.0f} ms for all. Record fewer with logged_envs=..., or more at once with "
            f"buffer_bytes={needed} << 20"
        )

    def miss(self, batch_size: tuple[int, ...], mask: npt.NDArray[np.bool_] | None, *, is_step: bool) -> None:
        """A frame came after :meth:`close`, and is lost: said once, and raised by :meth:`dump` and :meth:`close`.

        It is counted as if it had been recorded, so that what goes on later is where it would have been.

        Args:
            batch_size: of the environments, which may be others.
            mask: which of them were reset or stepped; None: all.
            is_step: whether it was a step.
        """
        frames, steps, begun = self.counters.frames, self.counters.steps, self.counters.begun()
        if batch_size != self.source.batch_size:
            self.counters.count(frames=1, steps=is_step)
        elif (event := self._event(None if mask is None else self._logged.rows(mask), is_step=is_step)) is not None:
            self.counters.apply(event)
        now = self.counters
        if self.status.miss(now.frames - frames, now.steps - steps, now.begun() - begun):
            self._forget_returns()

    def _forget_returns(self) -> None:
        """Rewards were lost. What goes on after this recording doesn't know the returns of the episodes in progress."""
        self._sums.forget()
        self._batch_sums.forget()
        self._episode_log.forget_returns()

    def layout(self, *, live: bool = False) -> rrb.Blueprint | None:
        """The layout of what is known by now; None: there is none.

        Args:
            live: whether it is for those who watch.
        """
        wanted = self._options.blueprint
        if wanted is False or isinstance(wanted, rrb.Blueprint):
            return wanted or None
        shown = (
            [None]
            if self._episode_files is not None
            else shown_envs(self.envs, self.source.envs, self.chunk_writer.target.family())
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
        self.status.begin_to_close()
        CLOCK.wake()
        self._writer.finish()
        self._conclude(all_lost=True)
        self.status.end()
        self.chunk_writer.discard()
        for live_sink in self._live_sinks:
            live_sink.close()

    def fail(self, error: Exception) -> None:
        """Stop recording because of an error of the package's own; the next :meth:`dump` or :meth:`close` raises it."""
        self.status.fail(error)
        self._buffers.stop()
        self._tell()

    def _embed_layout(self) -> None:
        try:
            made = self.layout()
            if made is not None:
                self.chunk_writer.embed(made, application_id=self.application_id)
        except Exception as error:
            warn(f"the recording is complete, but has no layout: {error}", RuntimeWarning)

    def _flush(self) -> None:
        with self._copying:  # the clock's thread hands on what is old: two at once would come in any order
            self._revise()
            self._buffers.hand_on()
        if self._writer.has_begun:
            frames = self.counters.frames
            self._writer.put(self._output.rest(frames), (frames, frames))

    def look(self) -> None:
        """Hand on what is old, though no frame comes. Called on the clock's thread."""
        if not self.alive or not self._writer.is_idle or not self._copying.acquire(blocking=False):
            return  # a frame is being copied, which hands on what is old
        try:
            old = self._buffers.old(time.time_ns())
            if old and not self._revise(at_once=False):
                return  # the environment is within a step, and hands on what is old itself
            self._buffers.hand_on_old(old)
        except Exception as error:
            self.status.fail(error)
            self._buffers.stop()
            self._told = -1
        finally:
            self._copying.release()
        if self._output.oldest_waiting is not None:
            self._writer.put_due(self.counters.frames)

    def _conclude(self, *, all_lost: bool = False) -> None:
        if self.status.conclude(all_lost=all_lost):
            self._forget_returns()


def application_id(options: Options, source: Source) -> str:
    """What groups recordings in the viewer: as asked for, or the environment's name."""
    return options.application_id or source.name or "torchrl_rerun"


def _nowhere() -> Positions:
    """What needs no positions has none."""
    return np.empty((0, COLUMNS), np.int64)


_open: weakref.WeakSet[Recording] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """A forked process has no writer's thread, and the files are its parent's."""
    for recording in _open:
        recording.status.leave()
    CLOCK.forget_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
