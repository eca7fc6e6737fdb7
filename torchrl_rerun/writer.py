"""The writer: a thread that takes blocks, turns them into chunks and feeds the sink; errors come back to whoever asks."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator

from rerun.chunk import Chunk

from torchrl_rerun.buffer import Block
from torchrl_rerun.sinks import FileSink


class Writer:
    """Writes what it is given, in order, in a thread of its own.

    Args:
        sink: an open sink.
        chunks: turns a block into chunks; called on the writer's thread.
        done: called on the writer's thread with each block that is with the sink.
        application_id, recording_id: what the recording is called.
    """

    def __init__(
        self,
        sink: FileSink,
        *,
        chunks: Callable[[Block], Iterable[Chunk]],
        done: Callable[[Block], None],
        application_id: str,
        recording_id: str,
    ) -> None:
        self._sink = sink
        self._chunks = chunks
        self._done = done
        self._application_id = application_id
        self._recording_id = recording_id
        self._items: queue.SimpleQueue[Block | list[Chunk] | threading.Event | None] = queue.SimpleQueue()
        self.written_frames = 0
        self.lost_frames = 0
        self.error: Exception | None = None
        self._writing: Block | None = None
        self._whole_bytes = 0
        # A daemon: at interpreter exit Python would wait for any other thread before the recorder gets to close it.
        self._thread = threading.Thread(target=self._run, name="torchrl_rerun-writer", daemon=True)
        self._thread.start()

    def put(self, item: Block | list[Chunk]) -> None:
        """Write a block, or chunks as they are, after all that was put before."""
        self._items.put(item)

    def alive(self) -> bool:
        """Whether what is put will be written."""
        return self.error is None and self._thread.is_alive()

    def flush(self) -> None:
        """Return when all that was put before is with the sink, or the writer has failed."""
        reached = threading.Event()
        self._items.put(reached)
        while not reached.wait(0.2):
            if not self._thread.is_alive():
                self._drain()

    def finish(self) -> None:
        """Write what is left, end the recording, and return when that is done or has failed."""
        self._items.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)  # in slices: an untimed join can't be interrupted by Ctrl-C everywhere
        self._drain()

    def _run(self) -> None:
        try:
            self._sink.write(self._stream(), application_id=self._application_id, recording_id=self._recording_id)
        except Exception as error:
            self.error = self.error or error
            with contextlib.suppress(OSError):
                self._sink.truncate(self._whole_bytes)
            self._drain()

    def _stream(self) -> Iterator[Chunk]:
        """All chunks, one after the other. Being asked for the next one means that those before are with the sink."""
        while (item := self._items.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            elif isinstance(item, list):
                yield from item
                self._whole_bytes = self._sink.size()
            else:
                self._writing = item
                try:
                    yield from self._chunks(item)
                except Exception as error:
                    self.error = error  # the sink would wrap it beyond recognition
                    raise
                self._writing = None
                self._whole_bytes = self._sink.size()
                self.written_frames += item.frames
                self._done(item)

    def _drain(self) -> None:
        """Nothing is written any more: free those who wait, count what is lost."""
        if self._writing is not None:
            self.lost_frames += self._writing.frames
            self._writing = None
        while True:
            try:
                item = self._items.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, threading.Event):
                item.set()
            elif isinstance(item, Block):
                self.lost_frames += item.frames
