"""A recording in progress: what every front end feeds. It knows arrays, and no framework."""

from __future__ import annotations

import dataclasses
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rerun.blueprint as rrb

from torchrl_rerun.blocks.black_box import BATCH
from torchrl_rerun.blocks.block import StreamGroup
from torchrl_rerun.blocks.buffer import Buffer
from torchrl_rerun.blocks.memory import Heap, MaxAge
from torchrl_rerun.chunks.statistics import BatchStatistics
from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.episode import Value
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Moment, Source, info_chunk, schema_fields, shown_envs
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.recording.clock import CLOCK
from torchrl_rerun.recording.counters import Progress
from torchrl_rerun.recording.description import varying
from torchrl_rerun.recording.env_state import EnvState
from torchrl_rerun.recording.layouts import layout_of
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.parts import Ids, make_parts
from torchrl_rerun.recording.stats import Stats
from torchrl_rerun.recording.status import State, Status
from torchrl_rerun.recording.steps import Steps
from torchrl_rerun.writing.live import LiveSink
from torchrl_rerun.writing.target import ChunkWriter

_OPEN = State.OPEN  # in Python 3.11, to look it up is a call

LIVE_SECONDS = 0.5
"""Seconds after which a frame is sent to a viewer. Up to a quarter may come on top, see :data:`STALE_CHECKS`."""

STALE_CHECKS = 4
"""Number of checks for stale blocks within the time that a frame may wait."""

BATCH_SHARE = 16
"""The rewards of all environments have one in so many of ``buffer_bytes``, in addition to these."""


class Recording(Steps):
    """A recording in progress: steps of all environments in, chunks out.

    Args:
        chunk_writer: takes the chunks, and is closed with the recording.
        source: the environments.
        options: how to record them.
        live_sinks: open viewers and recording streams; they are closed with the recording.
        run_id: id of the Rerun recording, or of the run that it is a part of.
        continues: the recording that this one continues. Its counters go on if it was of the same batch size.

    Attributes:
        source: the environments.
        chunk_writer: takes the chunks.
        envs: the indices of the environments that are recorded in detail.
        status: the state of the recording, and what became of its frames.
        must_know_ends: whether :meth:`step` must be told which episodes end.
        stale_check_seconds: seconds between two calls of :meth:`flush_if_stale` by the clock.
        process: the process that records.

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
        live_sinks = tuple(live_sinks)
        is_by_episode = chunk_writer.episodes is not None
        max_age = options.max_age
        if live_sinks:
            max_age = MaxAge.always(min(LIVE_SECONDS, max_age.otherwise))
        recording_id = f"{Path(chunk_writer.label).stem}_{run_id}" if options.split == "dump" else run_id
        ids = Ids(application_id(options, source), recording_id, run_id)
        state = _state_for(source, options, continues)
        self._first_frame = state.counters.frames if options.split == "dump" else 0
        parts = make_parts(
            chunk_writer,
            source,
            options,
            state,
            ids=ids,
            live_sinks=live_sinks,
            max_age=max_age,
            first_frame=self._first_frame,
            memory=chunk_writer.memory,
        )
        status = Status(chunk_writer, live_sinks, parts, None if continues is None else continues.status)
        super().__init__(parts, status, chunk_writer.memory)
        self.source = source
        self.chunk_writer = chunk_writer
        self.run_id = run_id
        self.envs = state.envs
        self.must_know_ends = options.skip > 1 or is_by_episode
        self.stale_check_seconds = max_age.otherwise / STALE_CHECKS
        self.process = os.getpid()
        self._options = options
        self._most_frames = options.most_frames
        self._application_id, self._recording_id = ids.application_id, recording_id
        self._began = 0
        self._live_sinks = live_sinks
        self._max_age = max_age
        self._is_by_episode = is_by_episode
        self._output = parts.output
        self._batch_statistics = BatchStatistics(source.fps, state.batch_returns)
        _open.add(self)
        CLOCK.watch(self)

    # --- the state ---

    @property
    def alive(self) -> bool:
        """Whether the recording takes frames: its state is open."""
        return self.status.state is _OPEN

    @property
    def takes_frames(self) -> bool:
        """Whether the next frame belongs to this recording: it is alive, and hasn't as many frames as it may have."""
        most = self._most_frames
        return self.status.state is _OPEN and (most is None or self._counters.frames - self._first_frame < most)

    @property
    def is_over(self) -> bool:
        """Whether nothing more is written. False after Ctrl-C within ``close()``."""
        return self.status.state.is_over

    def stats(self) -> Stats:
        """Return counts of the frames that were recorded, written and lost, and of those that wait."""
        return self.status.stats()

    @property
    def takes_many(self) -> bool:
        """Whether :meth:`steps` can be called: all of its frames belong to this recording, and none needs the others before it."""
        return self._most_frames is None and super().takes_many

    # --- the description ---

    @property
    def streams(self) -> list[Stream]:
        """All streams, in the order of the moments in which they have rows."""
        return self._description.streams

    def describe(self, moment: Moment, streams: Sequence[Stream], ends: Sequence[Key] = ()) -> None:
        """Describe the streams of a moment, before its first values.

        Args:
            moment: when the streams have rows. Running returns are observed.
            streams: the streams; running returns come last.
            ends: the flags that end an environment's episode, recorded or not; empty if they aren't known yet.
        """
        with self._copying:
            self._revise()
            placed = self._description.add(moment, streams, ends)
            if not placed:
                return
            self._buffers.store(moment, placed, self._description.reward_keys)
            is_of_batch = moment is Moment.STEPPED and self.has_statistics
            statistics = self._store_batch() if is_of_batch else ()
            if not self._writer.has_begun:
                self._began = time.time_ns()
                self._writer.put([info_chunk(Path(self.chunk_writer.label).stem, self._began)])
                self._writer.start()
            self._put_description(placed)
            self._writer.put(self._batch_statistics.static(statistics))

    def vary(self, stream: Stream) -> Stream | None:
        """Record rows of a key that vary in shape from now on. The shape so far stays the usual one.

        Args:
            stream: how the key is recorded, with the dtype that its rows have from now on.

        Returns:
            How it is recorded from now on; None if returns are derived from it: those have one shape.
        """
        if stream.key in self._description.reward_keys:
            return None
        with self._copying:
            self._revise()
            for before, moment, after, at in self._description.vary(stream.key, stream.dtype):
                self._buffers.vary(before, moment, after, at)
            self._put_description([])
        return varying(stream, stream.dtype)

    def describe_origin(self, **facts: object) -> None:
        """Add to what the schema says of the environments. The frames so far are written first.

        Args:
            facts: what there is to say, as JSON has it.
        """
        with self._copying:
            if self.alive:
                self._flush()
                self._writer.flush()  # its thread works with what changes here
            self.source = dataclasses.replace(self.source, origin={**self.source.origin, **facts})
            if self.alive:
                self._output.grow(self.source, self.envs)
                self._put_description([])

    def _put_description(self, new: Sequence[Stream]) -> None:
        description = self._description
        self._writer.put_description(description.described, new, self._statistics, description.ends)
        fields = schema_fields(
            self.source,
            self.envs,
            description.described,
            self._statistics,
            description.ends,
            split=self._options.split,
        )
        keep = self._options.keep
        self._memory.describe(
            {
                "application_id": self._application_id,
                "recording_id": self._recording_id,
                "name": Path(self.chunk_writer.label).stem,
                "start_time": self._began,
                "first_env": self.source.first_env,
                "first_frame": self._first_frame,
                "keep": None if keep is None else repr(keep),
                "schema": fields,
            }
        )

    @property
    def has_statistics(self) -> bool:
        """Whether there are statistics over all environments. Default: if not all are recorded in detail."""
        if self._options.aggregate is None:
            return self._options.logged_envs is None and not self._state.logged.are_all and not self._is_by_episode
        return self._options.aggregate

    def _store_batch(self) -> Sequence[StreamGroup]:
        """Store the rewards of all environments, too. Return them and their returns, of which there are statistics."""
        stepped, reward_keys = self._description.at(Moment.STEPPED), self._description.reward_keys
        at = [i for i, stream in enumerate(stepped) if stream.key in reward_keys]
        if not at:
            return ()
        groups = (
            StreamGroup(Moment.STEPPED, tuple(stepped[i] for i in at), tuple(at), has_rewards=True),
            # Returns at steps alone: a row at each reset would show the mean fall and rise again.
            StreamGroup(Moment.STEPPED, tuple(self._description.returns)),
        )
        capacity = self._options.buffer_bytes // BATCH_SHARE
        buffer = Buffer(
            self.source.envs,
            capacity,
            max_age=self._max_age,
            devices=self._buffers.devices,
            memory=self._memory,
            role=BATCH,
        )
        self._buffers.store_batch(buffer, self._batch_statistics, groups)
        return groups

    @property
    def _statistics(self) -> list[Key]:
        """The keys of which there are statistics over all environments."""
        batch = self._buffers.batch
        return [] if batch is None else [stream.key for group in batch.groups for stream in group.streams]

    def switch(self, *, enabled: bool) -> None:
        """Turn recording on or off. Steps and episodes are counted meanwhile."""
        self._selection.switch(enabled=enabled)

    def resume(self, progress: Progress) -> None:
        """Go on at the position of another program."""
        self._counters.resume(progress)
        self.status.begin_here()

    def grow(self, envs: int) -> None:
        """Make room for more environments. The frames so far are written first; a closed recording only counts on.

        Args:
            envs: number of environments in the batch, more than before.
        """
        with self._copying:
            if self.alive:
                self._flush()
                self._writer.flush()  # its thread works with what changes here
            self.source = dataclasses.replace(self.source, batch_size=(envs,))
            self._state.grow(self.source)
            if not self.alive:
                return
            if self._episode_log is not None:
                self._episode_log.grow(self.envs)
            self._output.grow(self.source, self.envs)
            self._buffers.grow(len(self.envs), envs)
            self._put_description(self.streams)

    @property
    def is_on_writers_thread(self) -> bool:
        """Whether the caller is on the thread that writes."""
        return self._writer.is_current

    def annotate(self, env: int | None, values: Mapping[str, Value | list[Value]]) -> None:
        """Add properties to the episode that an environment is in.

        Args:
            env: environment index; None: the only one.
            values: the properties by their names.

        Raises:
            TypeError: ``env`` is no index.
            IndexError: the environment isn't recorded.
            ValueError: there are several and none is named, it is in no episode, or episodes have no recordings of their own.
        """
        if self._episode_log is None:
            raise ValueError("annotations are properties of episodes: they need split='episode'")
        self._episode_log.annotate(env, values)

    # --- out ---

    def dump(self, suffix: str | None = None) -> None:
        """Wait until all frames so far are kept. A recording of one dump is closed with it.

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
        if self._episode_log is not None:
            self._episode_log.close_ended(self._counters.frames)
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
            self.status.missed.raise_error_once()
            return
        self.revise_last_step()
        self.status.begin_to_close()
        CLOCK.wake()
        if self._episode_log is not None:
            self._episode_log.close(self._counters.frames)
        self._flush()
        if not self._writer.has_begun:  # no frame was written: an empty file would be in the way of the next try
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
            self._free()

    def finish_describing(self) -> None:
        """Finish the description: lay out viewers, prepare memory, and remove the file that this one replaces.

        Raises:
            ValueError: the keep policy depends on returns, and no reward is recorded.
        """
        if self._description.reward is None and self._options.keep is not None and self._options.keep.needs_return:
            raise ValueError(
                f"keep={self._options.keep!r} goes by the reward, which is not recorded: add it to in_keys"
            )
        self.chunk_writer.replace_earlier()
        if self._is_by_episode and (made := self.layout()) is not None:
            self._output.lay_out(made)
        if self._writer.has_begun:
            self._buffers.prepare()
        if self._memory.error is not None:
            self._warn_user()
        self._buffers.warn_of_short_blocks(len(self.envs), self._options.buffer_bytes)
        for live_sink in self._live_sinks:
            if (made := self.layout(live=True)) is not None:
                try:
                    live_sink.show(made)
                except Exception as error:  # the recording lacks nothing
                    warn(f"{live_sink.label} gets no layout: {error}", RuntimeWarning)

    def takes_nothing_of(self, batch_size: tuple[int, ...], mask: npt.NDArray[np.bool_] | None) -> bool:
        """Return whether a recording that continues this one would have no row of a frame.

        Args:
            batch_size: batch size of the environments, which may be others.
            mask: mask of the environments that were reset or stepped, ``[envs]``; None: all.
        """
        if mask is None or batch_size != self.source.batch_size or self.has_statistics:
            return False
        envs = self._state.logged.in_mask(mask)
        return envs is not None and not len(envs)

    def miss(self, batch_size: tuple[int, ...], mask: npt.NDArray[np.bool_] | None, *, is_step: bool) -> None:
        """Count a frame after :meth:`close` as lost, with one warning. :meth:`dump` and :meth:`close` raise an error for it.

        The frame is counted as if it had been recorded, so that a recording that goes on later has the right numbers.

        Args:
            batch_size: batch size of the environments, which may be others.
            mask: mask of the environments that were reset or stepped, ``[envs]``; None: all.
            is_step: whether they were stepped.
        """
        frames, steps, begun = self._counters.frames, self._counters.steps, self._counters.begun()
        if batch_size != self.source.batch_size:
            self._counters.count(frames=1, steps=is_step)
        elif (
            event := self._event(None if mask is None else self._state.logged.in_mask(mask), is_step=is_step)
        ) is not None:
            self._counters.apply(event)
        now = self._counters
        if self.status.miss(now.frames - frames, now.steps - steps, now.begun() - begun):
            self._forget_returns()

    def _forget_returns(self) -> None:
        """Make the returns of the episodes in progress unknown to the recording that continues this one: rewards were lost."""
        self._state.forget_returns()
        if self._episode_log is not None:
            self._episode_log.forget_returns()

    def layout(self, *, live: bool = False) -> rrb.Blueprint | None:
        """Return the layout of the streams so far; None if there is to be none.

        Args:
            live: whether the layout is for live viewers. Default: False.
        """
        if self._is_by_episode:
            shown: list[int | None] = [None]
        else:
            shown = [*shown_envs(self.envs, self.source.envs, self.chunk_writer.target.family())]
        recorded = Recorded(self.streams, shown, self.source.fps, self._statistics)
        return layout_of(self._options.blueprint, recorded, live=live)

    def abandon(self) -> None:
        """Stop, and remove the file: the environment can't be recorded as the user asked."""
        self.status.begin_to_close()
        CLOCK.wake()
        self._writer.finish()
        self._conclude(all_lost=True)
        self.status.end()
        self.chunk_writer.discard()
        for live_sink in self._live_sinks:
            live_sink.close()
        self._free()

    def _free(self) -> None:
        """Let go of the memory."""
        self._buffers.free()
        self._writer.free()
        self._state.keep_in(Heap())

    def fail(self, error: Exception) -> None:
        """Stop recording because of an error of the package's own; the next :meth:`dump` or :meth:`close` raises it."""
        self.status.fail(error)
        self._buffers.stop()
        self._warn_user()

    def _embed_layout(self) -> None:
        try:
            made = self.layout()
            if made is not None:
                self.chunk_writer.embed(made, application_id=self._application_id)
        except Exception as error:
            warn(f"the recording is complete, but has no layout: {error}", RuntimeWarning)

    def _flush(self) -> None:
        with self._copying:  # the clock's thread enqueues stale blocks: those of two threads would come in any order
            self._revise()
            self._buffers.flush()
        if self._writer.has_begun:
            self._writer.put_flush(self._counters.frames)

    def flush_if_stale(self) -> None:
        """Enqueue stale blocks, though no frame comes. Called on the clock's thread."""
        if not self.alive or not self._writer.is_idle or not self._copying.acquire(blocking=False):
            return  # a frame is being copied, which enqueues stale blocks
        try:
            stale = self._buffers.stale(time.time_ns())
            if stale and not self._revise(at_once=False):
                return  # the environment is within a step, and enqueues stale blocks itself
            self._buffers.flush(stale)
        except Exception as error:
            self.status.fail(error)
            self._buffers.stop()
            self._must_check_warnings = True
        finally:
            self._copying.release()
        if self._output.oldest_waiting is not None:
            self._writer.put_due(self._counters.frames)

    def _conclude(self, *, all_lost: bool = False) -> None:
        if self.status.conclude(all_lost=all_lost):
            self._forget_returns()


def _state_for(source: Source, options: Options, continues: Recording | None) -> EnvState:
    """Return the state of the environments: that of the recording that is continued if it was of the same batch size."""
    if continues is not None and continues.source.batch_size == source.batch_size:
        return continues._state  # noqa: SLF001 - of the same class
    return EnvState(source, options)


def application_id(options: Options, source: Source) -> str:
    """Return the id by which the viewer groups recordings: the user's, or the environment's name."""
    return options.application_id or source.name or "torchrl_rerun"


_open: weakref.WeakSet[Recording] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    """Leave recordings to the parent of this forked process, which has the writer's threads and the files."""
    for recording in _open:
        recording.status.leave()
        recording.chunk_writer.leave()
    CLOCK.forget_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
