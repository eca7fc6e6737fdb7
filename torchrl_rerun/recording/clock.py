"""The clock: a thread that looks at the open recordings of the process from time to time, for the case that no frame comes."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol


class Watched(Protocol):
    """A recording that the clock looks at.

    Attributes:
        look_seconds: seconds from one look to the next.
        alive: whether the clock looks at it again.
    """

    @property
    def look_seconds(self) -> float: ...  # noqa: D102
    @property
    def alive(self) -> bool: ...  # noqa: D102

    def look(self) -> None:
        """Hand on blocks that are old."""


class Clock:
    """Looks at recordings as often as they ask for.

    Its thread ends when there are no open recordings, and keeps none of them in memory.
    """

    def __init__(self) -> None:
        self.forget_all()

    def forget_all(self) -> None:
        """Look at no recording any more: a forked process has none of its parent's threads."""
        self._watched: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, recording: Watched) -> None:
        """Look at a recording until it is closed."""
        with self._lock:
            self._watched.add(recording)
            if self._thread is None or not self._thread.is_alive():  # Ctrl-C may have come before it was started
                self._thread = threading.Thread(target=self._run, name="torchrl_rerun-clock", daemon=True)
                self._thread.start()
        self._changed.set()

    def wake(self) -> None:
        """Notice at once that a recording was closed."""
        self._changed.set()

    def _run(self) -> None:
        while (seconds := self._until_next_look()) is not None:
            if self._changed.wait(seconds):
                self._changed.clear()
                continue
            due = list(self._watched)
            while due:
                due.pop().look()

    def _until_next_look(self) -> float | None:
        """Seconds to the next look; None: the thread ends."""
        with self._lock:
            seconds = [recording.look_seconds for recording in tuple(self._watched) if recording.alive]
            if not seconds:
                self._thread = None
                return None
            return min(seconds)


CLOCK = Clock()
"""The clock of this process."""
