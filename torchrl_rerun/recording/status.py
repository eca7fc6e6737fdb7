"""The status of a recording: its state, counts of its frames, and errors and warnings about lost ones."""

from __future__ import annotations

import dataclasses
import enum
import shlex
import time
from collections.abc import Sequence
from typing import NamedTuple

from torchrl_rerun.errors import RecordingError, warn
from torchrl_rerun.recording.missed import Missed
from torchrl_rerun.recording.parts import Parts
from torchrl_rerun.recording.stats import Stats
from torchrl_rerun.writing.live import LiveSink
from torchrl_rerun.writing.target import ChunkWriter

PATIENCE = 1.0
"""Seconds that the environment waits for the writer before the user is warned."""


class State(enum.Enum):
    """The stage of a recording's life."""

    OPEN = "open"
    """Frames are recorded. After an error they are counted, and lost."""
    CLOSING = "closing"
    """No frame is taken any more, and the rest is being written. After Ctrl-C another call of ``close()`` goes on with it."""
    CLOSED = "closed"
    """All frames are written."""
    FAILED = "failed"
    """Nothing more is written, and the recording isn't whole."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is written."""
        return self in (State.CLOSED, State.FAILED)


class _Counts(NamedTuple):
    frames: int
    steps: int
    episodes: int


class Status:
    """The state of a recording; counts of the frames that were written, wait or are lost; errors and warnings.

    Args:
        chunk_writer: takes the chunks of the recording.
        live_sinks: get copies of the chunks.
        parts: the parts of the recording. Its counters may have counted frames of earlier recordings. Frames wait in its
            buffers first, encoded images and episodes in its output then.
        continues: the status of the recording that this one continues; None if there is none.

    Attributes:
        state: the state of the recording.
        error: the error of the package's own that ended the recording, or None.
        missed: the frames that came after the end.
    """

    def __init__(
        self,
        chunk_writer: ChunkWriter,
        live_sinks: Sequence[LiveSink],
        parts: Parts,
        continues: Status | None = None,
    ) -> None:
        self.state = State.OPEN
        self.error: Exception | None = None
        self._chunk_writer = chunk_writer
        self._live_sinks = tuple(live_sinks)
        self._counters = parts.state.counters
        self._buffers = parts.buffers
        self._output = parts.output
        self._writer = parts.writer
        self._failed_at: int | None = None
        self._end: tuple[str, BaseException | None] | None = None  # message and cause of the error that it ended with
        self.missed = Missed(chunk_writer)
        self._warned = False
        self._warned_of_waiting = self._warned_of_memory = False
        self._warned_of: set[str] = set()
        self._before, self._began, self._busy_before = Stats(), time.monotonic(), 0.0
        if continues is not None:
            self._before, self._began = continues.stats(), continues._began  # noqa: SLF001 - of the same class
            self._busy_before = continues._busy_seconds  # noqa: SLF001
        self._at_first = self._counts
        self._at_last: Stats | None = None

    # --- the life of the recording ---

    def begin_to_close(self) -> None:
        """Take no more frames."""
        if not self.state.is_over:
            self.state = State.CLOSING

    def end(self) -> None:
        """Write nothing more."""
        self.state = State.CLOSED if self._end is None else State.FAILED

    def leave(self) -> None:
        """Leave the recording to the parent of this forked process."""
        self.state = State.CLOSED

    # --- counts ---

    def begin_here(self) -> None:
        """Count from here: earlier frames are another program's."""
        self._at_first = self._counts

    @property
    def _counts(self) -> _Counts:
        return _Counts(self._counters.frames, self._counters.steps, self._counters.begun())

    @property
    def _frames(self) -> int:
        """Number of frames since the recording began, or went on in this file."""
        return self._counters.frames - self._at_first.frames

    @property
    def _unwritten_frames(self) -> int:
        """Number of these frames that the chunk writer doesn't keep in full."""
        waiting = [self._failed_at, self._output.oldest_waiting, self._buffers.oldest_waiting]
        if self.sole_sink is not None:
            waiting.append(self.sole_sink.oldest_waiting)
        oldest = min((frame for frame in waiting if frame is not None), default=self._counters.frames)
        return self._counters.frames - oldest

    @property
    def sole_sink(self) -> LiveSink | None:
        """The recording stream that alone keeps the recording; None if there is a file, or only viewers."""
        return next((live_sink for live_sink in self._live_sinks if live_sink.is_sole), None)

    @property
    def _lost_frames(self) -> int:
        """Number of these frames that could not be written, or are gone with their file."""
        if self._chunk_writer.error() is not None:
            return self._frames
        if self.sole_sink is not None and self.sole_sink.error() is not None:
            return self.sole_sink.dropped_frames
        has_failed = self.error is not None or self._writer.error is not None
        return self._unwritten_frames if has_failed else 0

    def stats(self) -> Stats:
        """Return counts of the frames that were recorded, written and lost, and of those that wait."""
        if self._at_last is not None:
            return self._at_last
        lost = self._lost_frames
        return self._counted(lost, waiting=0 if lost else self._unwritten_frames)

    def _counted(self, lost: int, waiting: int) -> Stats:
        before, now, then = self._before, self._counts, self._at_first
        frames, size = before.frames + self._frames, before.bytes_written + self._chunk_writer.size()
        seconds, busy = time.monotonic() - self._began, self._busy_seconds
        return Stats(
            frames=frames,
            steps=before.steps + now.steps - then.steps,
            episodes=before.episodes + now.episodes - then.episodes,
            frames_written=before.frames_written + self._frames - lost - waiting,
            frames_waiting=waiting,
            frames_lost=before.frames_lost + lost,
            frames_dropped=before.frames_dropped
            + max((live_sink.dropped_frames for live_sink in self._live_sinks), default=0),
            bytes_waiting=self._waiting_bytes if waiting else 0,
            bytes_written=size,
            seconds_waited=before.seconds_waited + self._buffers.seconds_waited,
            frames_per_second=frames / seconds,
            bytes_per_second=size / busy if busy else 0.0,
            has_black_box=self._chunk_writer.memory.is_kept,
        )

    @property
    def _busy_seconds(self) -> float:
        return self._busy_before + self._writer.busy_seconds

    @property
    def _waiting_bytes(self) -> int:
        return self._output.waiting_bytes + self._buffers.waiting_bytes

    # --- failures ---

    def fail(self, error: Exception) -> None:
        """Note an error of the package's own, by which frames from now on are lost."""
        if self.error is None:
            self.error, self._failed_at = error, self._counters.frames

    def _failure(self) -> RecordingError | None:
        error: BaseException | None = self.error or self._writer.error
        if error is None:
            error = self._chunk_writer.error() or (None if self.sole_sink is None else self.sole_sink.error())
        if error is None:
            return None
        if self._lacks_its_end():
            message = (
                f"all frames are in {self._chunk_writer.label}, but it has no footer and no layout: {error}. Once there is room "
                f"for a second copy of it, `torchrl-rerun repair {shlex.quote(self._chunk_writer.location)}` adds them"
            )
        else:
            message = f"recording to {self._chunk_writer.label} failed, {self._lost_frames} frames were lost: {error}"
        failure = RecordingError(message)
        failure.__cause__ = error
        return failure

    def _lacks_its_end(self) -> bool:
        """Whether all frames were written, and only the footer wasn't."""
        return (
            self.state is not State.OPEN
            and self.error is None
            and self._chunk_writer.error() is None
            and not self._lost_frames
        )

    def raise_failure(self) -> None:
        """Raise the error of the recording, if there was one."""
        failure = self._failure()
        if failure is not None:
            raise failure

    def conclude(self, *, all_lost: bool = False) -> bool:
        """Make the counts final: nothing more is written. Return whether frames are lost.

        Args:
            all_lost: whether the file is removed. Default: False.
        """
        lost = self._frames if all_lost else self._lost_frames
        self._at_last = self._counted(lost, waiting=0)
        return bool(lost) or self.error is not None

    def raise_end(self) -> None:
        """Raise the error of the recording, if there was one, and note it."""
        failure = self._failure()
        if failure is not None:
            # Not the error itself: its traceback would keep the whole recording in memory.
            self._end = str(failure), failure.__cause__
            raise failure

    # --- frames after the end ---

    def miss(self, frames: int, steps: int, episodes: int) -> bool:
        """Count frames after the end as lost, and warn of the first. Return whether it is the first."""
        assert self._at_last is not None, "the recording is over"
        last = self._at_last
        self._at_last = dataclasses.replace(
            last,
            frames=last.frames + frames,
            steps=last.steps + steps,
            episodes=last.episodes + episodes,
            frames_lost=last.frames_lost + frames,
        )
        return self.missed.count(frames)

    def raise_again(self) -> None:
        """Raise an error for the frames after the end, or else the error of the recording."""
        self.missed.raise_error()
        if self._end is not None:
            what, cause = self._end
            raise RecordingError(what) from cause

    # --- warnings, once each ---

    def warn_user(self) -> None:
        """Warn of failures and of long waits. Called on the environment's thread."""
        self._warn_of_failure()
        self._warn_of_waiting()
        self._warn_of_live_sinks()
        self._warn_of_memory()

    def _warn_of_memory(self) -> None:
        """Warn that there is no black box; the recording lacks nothing without it, unless the process is killed."""
        error = self._chunk_writer.memory.error
        if error is not None and not self._warned_of_memory and self._chunk_writer.error() is None:
            self._warned_of_memory = True
            warn(
                f"there is no black box for {self._chunk_writer.label} ({error}): what waits to be written is in memory alone, and "
                "lost if the process is killed. All is recorded as it is otherwise",
                RuntimeWarning,
            )

    def _warn_of_failure(self) -> None:
        failure = None if self._warned else self._failure()
        if failure is not None:
            self._warned = True
            where = ", in another file," if self.sole_sink is None else ""
            warn(
                f"{failure} (training goes on, and is recorded again{where} after close(); dump() and close() will raise this)",
                RuntimeWarning,
            )

    def _warn_of_waiting(self) -> None:
        """Warn that the environment waits for the writer, and say what to do about it."""
        if self._warned_of_waiting or self._buffers.seconds_waited < PATIENCE:
            return
        self._warned_of_waiting = True
        stats = self.stats()
        warn(
            f"the environment waits for {self._chunk_writer.label} to be written, {self._buffers.seconds_waited:.1f} s so far: "
            f"{stats.frames_per_second:.0f} frames/s are recorded, and {stats.bytes_per_second / 1e6:.3g} MB/s can "
            "be encoded and written. Nothing is lost; to wait less record less: fewer logged_envs, fewer in_keys, a cheaper "
            "image_format (a larger buffer_bytes bridges short peaks)",
            RuntimeWarning,
        )

    def _warn_of_live_sinks(self) -> None:
        """Warn of viewers that are gone; the recording lacks nothing without them."""
        for live_sink in self._live_sinks:
            error = live_sink.error()
            if error is not None and not live_sink.is_sole and live_sink.label not in self._warned_of:
                self._warned_of.add(live_sink.label)
                warn(f"{error}; later frames are not shown there (training goes on)", RuntimeWarning)
