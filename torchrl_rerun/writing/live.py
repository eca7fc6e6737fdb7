"""Live sinks: viewers and recording streams, which take chunks at their own pace from a bounded queue.

Rerun's client sends the memory that a chunk wraps, and blocks its caller without a limit. So a live sink copies the chunks that
it is offered, and a thread of its own waits for Rerun.
"""

from __future__ import annotations

import collections
import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import pyarrow as pa
import rerun.blueprint as rrb
from rerun.chunk import Chunk

STALL_SECONDS = 10.0
"""Seconds that a live sink may take no chunk before it is given up."""

CLOSE_SECONDS = 5.0
"""Seconds that the end of the recording waits for a live sink to take the rest."""

QUEUE_BYTES = 32 << 20
"""Bytes that may wait in the queue of a live sink. Chunks that come when it is full are dropped."""

TICK = 0.25
"""Seconds of a tick. Ticks are counted, since a clock would go on while the whole program is suspended."""

Frames = tuple[int, int]
"""The frames ``[first, last)``."""


class LiveSink(ABC):
    """Takes chunks at its own pace.

    Args:
        label: its name in messages.
        is_sole: whether no other sink keeps the recording. If so the writer waits for room in the queue, else chunks are dropped
            when it is full. Default: False.

    Attributes:
        label: its name in messages.
        is_sole: whether no other sink keeps the recording.
        dropped_frames: number of frames that it didn't get, in whole or in part.
    """

    FATE: ClassVar[str]
    """Verb for messages about a sink that takes no more chunks."""

    def __init__(self, label: str, *, is_sole: bool = False) -> None:
        self.label = label
        self.is_sole = is_sole
        self.dropped_frames = 0
        self._changed = threading.Condition()
        self._queue: collections.deque[tuple[Any, int]] = collections.deque()  # messages and their sizes
        self._queued_bytes = 0
        self._sent = 0  # messages that were put into the queue, and that have arrived
        self._acknowledged = 0
        # Frames that may not have arrived, and how many messages were sent before those of these frames.
        self._under_way: collections.deque[tuple[int, Frames]] = collections.deque()
        self._frames: Frames | None = None  # the frames of the chunks that come
        self._counted = 0  # frames before this one have been counted as dropped, or arrived
        self._dropping = False
        self._is_over = False
        self._is_closing = False
        self._why = ""

    @abstractmethod
    def open(self, *, application_id: str, recording_id: str) -> None:
        """Begin to take chunks."""

    @abstractmethod
    def show(self, layout: rrb.Blueprint) -> None:
        """Arrange the views by a layout."""

    @abstractmethod
    def close(self) -> None:
        """Pass on the rest, for 5 s at the most, and end. Chunks that are in the queue then are lost."""

    def begin(self, frames: Frames | None) -> None:
        """Expect chunks that belong together, and drop all of them if there is no room.

        Args:
            frames: the frames of the chunks; None: they are of no frames, and never dropped for lack of room.
        """
        with self._changed:
            self._forget_what_arrived()
            self._frames = frames
            is_full = frames is not None and not self.is_sole and self._queued_bytes > QUEUE_BYTES
            self._dropping = self._is_over or is_full
            if frames is not None:
                if self._dropping:
                    self._drop(frames)
                else:
                    self._under_way.append((self._sent, frames))

    def offer(self, chunk: Chunk) -> None:
        """Take a copy of a chunk, unless the chunks that it belongs to are dropped. Wait for room only if this is the sole sink."""
        if self._dropping:
            return
        if self.is_sole:
            self._wait(lambda: self._queued_bytes <= QUEUE_BYTES)
        copy = _encoded(chunk.to_record_batch())
        self._put(self._message(copy), copy.size)

    @abstractmethod
    def _message(self, chunk: pa.Buffer) -> Any:
        """Return the message for an encoded chunk."""

    def sync(self) -> None:
        """Wait until all chunks have arrived, or the sink is given up, after 10 s without progress at the latest."""
        self._wait(lambda: self._acknowledged >= self._sent)

    def error(self) -> ConnectionError | None:
        """Return an error if it takes nothing any more, else None."""
        if not self._is_over or self._is_closing:
            return None
        return ConnectionError(f"{self.label} {self.FATE} ({self._why})")

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame that hasn't arrived; None if all have, or none arrives any more."""
        with self._changed:
            self._forget_what_arrived()
            if self._is_over or self._acknowledged >= self._sent or not self._under_way:
                return None
            return self._under_way[0][1][0]

    def _wait(self, reached: Callable[[], bool]) -> None:
        with self._changed:
            idle = 0.0
            while not self._is_over and not reached() and idle < STALL_SECONDS:
                seen = self._acknowledged
                has_news = self._changed.wait_for(functools.partial(self._has_news, seen, reached), TICK)
                idle = 0.0 if has_news else idle + TICK
            if not self._is_over and not reached():
                self._stalled()

    def _has_news(self, seen: int, reached: Callable[[], bool]) -> bool:
        return self._is_over or self._acknowledged != seen or reached()

    @abstractmethod
    def _stalled(self) -> None:
        """Give up: a caller of :meth:`_wait` has waited in vain."""

    def _put(self, message: Any, size: int) -> None:
        with self._changed:
            if not self._is_over:
                self._queue.append((message, size))
                self._queued_bytes += size
                self._sent += 1
                self._changed.notify_all()
            elif self._frames is not None:
                self._drop(self._frames)

    def _next(self) -> tuple[Any, int] | None:
        """Wait for the next message. Return it and its size; None if the sink takes no more."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._is_over)
            return None if self._is_over else self._queue.popleft()

    def _taken(self, size: int) -> None:
        """Make room for the bytes of a message that has left the queue for good."""
        with self._changed:
            self._queued_bytes -= size
            self._changed.notify_all()

    def _acknowledge(self, count: int) -> None:
        with self._changed:
            self._acknowledged = count
            self._changed.notify_all()

    def _end(self, why: str = "") -> None:
        """Take no more chunks. Frames that haven't arrived are counted as dropped."""
        with self._changed:
            if self._is_over:
                return
            self._forget_what_arrived()
            if self._acknowledged < self._sent:
                for _, frames in self._under_way:
                    self._drop(frames)
            self._is_over, self._why = True, why
            self._queue.clear()
            self._under_way.clear()
            self._changed.notify_all()

    def _forget_what_arrived(self) -> None:
        while len(self._under_way) > 1 and self._under_way[1][0] <= self._acknowledged:
            self._under_way.popleft()

    def _drop(self, frames: Frames) -> None:
        first, last = frames
        if first == last:  # chunks of frames that were counted already
            return
        self.dropped_frames += max(0, last - max(first, self._counted))
        self._counted = max(self._counted, last)


def _encoded(batch: pa.RecordBatch) -> pa.Buffer:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return stream.getvalue()
