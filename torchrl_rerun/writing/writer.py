"""The writer: a thread that feeds the sink with chunks; errors come back to whoever asks."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from rerun.chunk import Chunk

from torchrl_rerun.writing.live import Outlet
from torchrl_rerun.writing.sink import Sink


class Writer:
    """Writes what it is given, in order, in a thread of its own.

    Args:
        sink: an open sink. It is waited for.
        outlets: get copies, and are waited for only where nothing else keeps what is recorded.
        noticed: called on the writer's thread when something has gone wrong.
        idle: called on the writer's thread when there has been nothing to do for a while.
        patience: how many seconds that is.
        application_id, recording_id: what the recording is called.

    Attributes:
        error: what went wrong; nothing is written any more then.
        busy_seconds: how long it has been at work.
    """

    def __init__(
        self,
        sink: Sink,
        outlets: Sequence[Outlet],
        noticed: Callable[[], None],
        idle: Callable[[], None],
        *,
        patience: float,
        application_id: str,
        recording_id: str,
    ) -> None:
        self._sink = sink
        self._outlets = outlets
        self._noticed = noticed
        self._idle = idle
        self._patience = patience
        self._application_id = application_id
        self._recording_id = recording_id
        self._jobs: queue.SimpleQueue[_Job | threading.Event | None] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self.busy_seconds = 0.0
        # A daemon: at interpreter exit Python would wait for any other thread before the recorder gets to close it.
        self._thread = threading.Thread(target=self._run, name="torchrl_rerun-writer", daemon=True)
        self._thread.start()

    def put(
        self,
        chunks: Iterable[Chunk],
        written: Callable[[], None] = lambda: None,
        frames: tuple[int, int] | None = None,
    ) -> None:
        """Write chunks after all that was put before.

        Args:
            chunks: may be a generator: it is asked for them on the writer's thread.
            written: called on the writer's thread when they are with the sink.
            frames: the frames ``[first, last)`` that they are of; None: what all the others need.
        """
        self._jobs.put(_Job(chunks, written, frames))

    def alive(self) -> bool:
        """Whether what is put will be written."""
        return self.error is None and self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the writer's thread."""
        return threading.current_thread() is self._thread

    def flush(self) -> None:
        """Return when all that was put before is with the sink, or the writer has failed."""
        reached = threading.Event()
        self._jobs.put(reached)
        while not reached.wait(0.2):
            if not self._thread.is_alive():
                return

    def finish(self) -> None:
        """Write what is left, end the recording, and return when that is done or has failed."""
        self._jobs.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)  # in slices: an untimed join can't be interrupted by Ctrl-C everywhere

    def _run(self) -> None:
        try:
            self._sink.write(self._stream(), application_id=self._application_id, recording_id=self._recording_id)
        except BaseException as error:  # a panic of Rerun's, for one, isn't an Exception
            self.error = self.error or error
            with contextlib.suppress(OSError):
                self._sink.truncate()
            self._noticed()

    def _stream(self) -> Iterator[Chunk]:
        """All chunks, one after the other. Being asked for the next one means that those before are with the sink."""
        while (job := self._next()) is not None:
            if isinstance(job, threading.Event):
                job.set()
                continue
            began = time.monotonic()
            try:
                for outlet in self._outlets:
                    outlet.begin(job.frames)
                for chunk in job.chunks:
                    for outlet in self._outlets:
                        outlet.offer(chunk)
                    yield chunk
                self._sink.check()
            except Exception as error:
                self.error = self._sink.trouble() or error  # the sink would wrap it beyond recognition
                raise
            self._sink.settle()
            job.written()
            if any(outlet.trouble() is not None for outlet in self._outlets):
                self._noticed()
            self.busy_seconds += time.monotonic() - began

    def _next(self) -> _Job | threading.Event | None:
        while True:
            try:
                return self._jobs.get(timeout=self._patience)
            except queue.Empty:
                self._idle()


class _Job(NamedTuple):
    chunks: Iterable[Chunk]
    written: Callable[[], None]
    frames: tuple[int, int] | None
