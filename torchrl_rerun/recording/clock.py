"""The clock: a thread that flushes stale blocks of the open recordings of the process, for the case that no frame comes."""

from __future__ import annotations

import queue
import threading
import weakref
from typing import Protocol


class Watched(Protocol):
    """A recording of which the clock flushes stale blocks.

    Attributes:
        stale_check_seconds: seconds from one check for stale blocks to the next.
        alive: whether there will be another check.
    """

    @property
    def stale_check_seconds(self) -> float: ...  # noqa: D102
    @property
    def alive(self) -> bool: ...  # noqa: D102

    def flush_if_stale(self) -> None:
        """Enqueue blocks whose first frame has waited for long enough."""


class Clock:
    """Has recordings flush stale blocks, as often as they ask for.

    Its thread ends when there are no open recordings, and keeps none of them in memory.
    """

    def __init__(self) -> None:
        self.forget_all()

    def forget_all(self) -> None:
        """Watch no recording any more: a forked process has none of its parent's threads."""
        self._watched: weakref.WeakSet[Watched] = weakref.WeakSet()
        # A queue that can be put to while it is waited for on the same thread: garbage that is collected there may close
        # a recording.
        self._changes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, recording: Watched) -> None:
        """Have a recording flush stale blocks until it is closed."""
        with self._lock:
            self._watched.add(recording)
            if self._thread is None or not self._thread.is_alive():  # Ctrl-C may have come before it was started
                self._thread = threading.Thread(target=self._run, name="torchrl_rerun-clock", daemon=True)
                self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Notice at once that a recording was opened or closed."""
        self._changes.put(None)

    def _run(self) -> None:
        while (seconds := self._until_next_check()) is not None:
            try:
                self._changes.get(timeout=seconds)
            except queue.Empty:
                due = self._open()
                while due:
                    due.pop().flush_if_stale()

    def _open(self) -> list[Watched]:
        with self._lock:
            return [recording for recording in tuple(self._watched) if recording.alive]

    def _until_next_check(self) -> float | None:
        """Return the seconds to the next check; None if the thread ends."""
        seconds = min((recording.stale_check_seconds for recording in self._open()), default=None)
        if seconds is None:
            with self._lock:
                if any(recording.alive for recording in tuple(self._watched)):
                    return 0.0  # opened in between
                self._thread = None
        return seconds


CLOCK = Clock()
"""The clock of this process."""
