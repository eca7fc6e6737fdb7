"""The writer: a thread that makes chunks of blocks and passes them to a chunk writer and to live sinks."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rerun.chunk import Chunk

from torchrl_rerun.blocks.lease import BlockLease
from torchrl_rerun.chunks.output import BlockOutput, Output
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import TimedStream
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.writing.live import Frames, LiveSink
from torchrl_rerun.writing.target import ChunkWriter


class WriterThread:
    """Writes blocks and chunks in the order in which they come, in a thread of its own.

    Nothing is called back: an error stays in :attr:`error`, and other threads look at :attr:`failures`.

    Args:
        chunk_writer: takes the chunks. It is waited for.
        live_sinks: get copies of the chunks. A sink is waited for only if it is the sole one.
        output: makes chunks of blocks, and after each block those that are due.
        application_id, recording_id: ids of the recording.

    Attributes:
        error: the error after which nothing more is written; None if there was none.
        failures: number of failures so far: of the writer itself, and of live sinks.
        busy_seconds: seconds that it has been at work.
    """

    def __init__(
        self,
        chunk_writer: ChunkWriter,
        live_sinks: Sequence[LiveSink],
        output: Output,
        *,
        application_id: str,
        recording_id: str,
    ) -> None:
        self._chunk_writer = chunk_writer
        self._live_sinks = live_sinks
        self._output = output
        self._application_id = application_id
        self._recording_id = recording_id
        self._jobs: queue.SimpleQueue[_Job | threading.Event | None] = queue.SimpleQueue()
        self._is_at_work = False
        self.error: BaseException | None = None
        self.failures = 0
        self.busy_seconds = 0.0
        # A daemon: at interpreter exit Python would wait for any other thread before the recorder gets to close it.
        self._thread = threading.Thread(target=self._run, name="torchrl_rerun-writer", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    @property
    def has_begun(self) -> bool:
        """Whether :meth:`start` was called."""
        return self._thread.ident is not None

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Write chunks that all frames need, after all that was put before."""
        self._jobs.put(_Job(lambda: chunks, None))

    def put_description(
        self, described: Sequence[TimedStream], new: Sequence[Stream], statistics: Sequence[Key], ends: Sequence[Key]
    ) -> None:
        """Describe the recording, after all that was put before. The arguments are those of :meth:`Output.describe`."""
        self._jobs.put(_Job(functools.partial(self._output.describe, described, new, statistics, ends), None))

    def put_lease(self, lease: BlockLease, output: BlockOutput) -> None:
        """Write a lease after all that was put before, and release its block. One that is released already is skipped.

        Args:
            lease: a sealed lease, or one without frames, of which the memory is touched.
            output: makes chunks of it.
        """
        self._jobs.put(_Job(functools.partial(_chunks_of, lease, output), lease.frames, lease))
        if lease.frames is not None:
            self.put_due(lease.frames[1])

    def put_due(self, frame: int) -> None:
        """Write the chunks that are due when all that was put before is written.

        Args:
            frame: the number of the next frame.
        """
        self._jobs.put(_Job(self._output.due, (frame, frame)))  # of frames that were counted already

    def put_flush(self, frame: int) -> None:
        """Have the output flush: write the chunks of all rows that wait in it.

        Args:
            frame: the number of the next frame, before which all rows were put.
        """
        self._jobs.put(_Job(functools.partial(self._output.flush, frame), (frame, frame)))

    def is_taking(self) -> bool:
        """Return whether chunks that are put will be written."""
        return self.error is None and self._thread.is_alive()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._jobs.empty() and not self._is_at_work

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the writer's thread."""
        return threading.current_thread() is self._thread

    def flush(self) -> None:
        """Wait until the chunk writer keeps all that was put before, or the writer has failed."""
        if not self.has_begun:
            return
        reached = threading.Event()
        self._jobs.put(reached)
        while not reached.wait(0.2):
            if not self._thread.is_alive():
                return

    def finish(self) -> None:
        """Write the rest, end the recording, and return when that is done or has failed."""
        if not self.has_begun:
            return
        self._jobs.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)  # in slices: an untimed join can't be interrupted by Ctrl-C everywhere

    def free(self) -> None:
        """Let go of the blocks that weren't written because of an error. The thread has ended."""
        self._jobs = queue.SimpleQueue()
        errors = [self.error]
        for error in errors:  # those that caused another one are added meanwhile
            if error is not None:
                traceback.clear_frames(error.__traceback__)  # which hold the block that was being written
                errors += [each for each in (error.__cause__, error.__context__) if each not in errors]

    def _run(self) -> None:
        try:
            self._chunk_writer.write(
                self._stream(), application_id=self._application_id, recording_id=self._recording_id
            )
        except BaseException as error:  # a panic of Rerun's, for one, isn't an Exception
            self.error = self.error or error
            with contextlib.suppress(OSError):
                self._chunk_writer.truncate()
            self._count_failures()

    def _stream(self) -> Iterator[Chunk]:
        """Yield all chunks, one after the other.

        Rerun pulls them from this generator in ``write_rrd``. When it asks for the next chunk, the operating system has the one
        before. For that reason leases are released here, after the last chunk of their block.
        """
        while (job := self._jobs.get()) is not None:
            if isinstance(job, threading.Event):
                job.set()
                continue
            self._is_at_work, began = True, time.monotonic()
            try:
                for live_sink in self._live_sinks:
                    live_sink.begin(job.of_frames)
                for chunk in job.make():
                    for live_sink in self._live_sinks:
                        live_sink.offer(chunk)
                    yield chunk
                gone = self._chunk_writer.error()
                if gone is not None:
                    raise gone  # noqa: TRY301 - it ends the stream, as any other error does
            except Exception as error:
                self.error = self._chunk_writer.error() or error  # Rerun would wrap it beyond recognition
                raise
            self._chunk_writer.mark_whole()
            if job.lease is not None:
                job.lease.release()
            self._count_failures()
            self._is_at_work, self.busy_seconds = False, self.busy_seconds + time.monotonic() - began

    def _count_failures(self) -> None:
        self.failures = (self.error is not None) + sum(live_sink.error() is not None for live_sink in self._live_sinks)


class _Job(NamedTuple):
    """Chunks to write.

    Attributes:
        make: returns the chunks; called on the writer's thread.
        of_frames: the frames ``[first, last)`` of the chunks; None: they are of no frame, and all frames need them.
        lease: the lease that is released when the chunks are kept.
    """

    make: Callable[[], Iterable[Chunk]]
    of_frames: Frames | None
    lease: BlockLease | None = None


def _chunks_of(lease: BlockLease, output: BlockOutput) -> Iterable[Chunk]:
    """Return the chunks of a lease; none if it is released already, or has no frames and only gets its memory."""
    if lease.is_released:
        return ()
    if lease.frames is None:
        lease.block.touch()
        return ()
    return output.chunks(lease.block)
