"""Outlets: what takes chunks in its own time, beside a file or without one. A queue that is bounded, and emptied by a thread.

Rerun's client sends the memory that a chunk wraps, and blocks its caller for as long as it likes. So an live_sink copies what
it is offered, and only a thread of its own waits for Rerun.
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
"""How long an live_sink may take nothing before it is given up."""

CLOSE_SECONDS = 5.0
"""How long the end of the recording waits for an live_sink to take the rest."""

QUEUE_BYTES = 32 << 20
"""What may wait for an live_sink, in bytes; for what comes then there is no room."""

TICK = 0.25
"""Seconds that are counted, where a clock would go on while the whole program is suspended."""

Frames = tuple[int, int]
"""The frames ``[first, last)``."""


class LiveSink(ABC):
    """Something that takes chunks in its own time.

    Args:
        label: what messages call it.
        is_sole: nothing else keeps what is recorded. The writer waits until there is room then; else what there is no room for
            is dropped.

    Attributes:
        dropped_frames: frames that it didn't get, in whole or in part.
    """

    FATE: ClassVar[str]
    """What became of it, once it takes nothing any more."""

    def __init__(self, label: str, *, is_sole: bool = False) -> None:
        self.label = label
        self.is_sole = is_sole
        self.dropped_frames = 0
        self._changed = threading.Condition()
        self._queue: collections.deque[tuple[Any, int]] = collections.deque()  # messages and their sizes
        self._queued_bytes = 0
        self._sent = 0  # messages that were put into the queue, and that it has
        self._acknowledged = 0
        # Frames that it may not have yet, and how many messages were sent before those of these frames.
        self._under_way: collections.deque[tuple[int, Frames]] = collections.deque()
        self._frames: Frames | None = None  # those whose chunks come
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
        """Pass on the rest, for 5 s at the most, and end. What is in the queue then is lost."""

    def begin(self, frames: Frames | None) -> None:
        """Chunks come that belong together: of some frames, or of none. Whether there is room for them."""
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
        """Take a copy of a chunk, if there is room for what it belongs to. Waits if nothing else keeps it, and never else."""
        if self._dropping:
            return
        if self.is_sole:
            self._wait(lambda: self._queued_bytes <= QUEUE_BYTES)
        copy = _encoded(chunk.to_record_batch())
        self._put(self._message(copy), copy.size)

    @abstractmethod
    def _message(self, chunk: pa.Buffer) -> Any:
        """What is queued of a chunk that is encoded."""

    def sync(self) -> None:
        """Return when it has what it was offered, or is given up: after 10 s without progress at the latest."""
        self._wait(lambda: self._acknowledged >= self._sent)

    def error(self) -> ConnectionError | None:
        """Return an error if it takes nothing any more, else None."""
        if not self._is_over or self._is_closing:
            return None
        return ConnectionError(f"{self.label} {self.FATE} ({self._why})")

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame that is under way; None: it has got all, or gets no more."""
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
        """Somebody has waited in vain, see :meth:`_wait`."""

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
        """The next message and its size, waited for; None: it is over."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._is_over)
            return None if self._is_over else self._queue.popleft()

    def _taken(self, size: int) -> None:
        """A message has left the queue for good."""
        with self._changed:
            self._queued_bytes -= size
            self._changed.notify_all()

    def _acknowledge(self, count: int) -> None:
        with self._changed:
            self._acknowledged = count
            self._changed.notify_all()

    def _end(self, why: str = "") -> None:
        """It takes nothing any more; what hasn't arrived never will."""
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
        if first == last:  # what belongs to frames that were counted already
            return
        self.dropped_frames += max(0, last - max(first, self._counted))
        self._counted = max(self._counted, last)


def _encoded(batch: pa.RecordBatch) -> pa.Buffer:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return stream.getvalue()
