"""The clock: a thread that looks at the open recordings of the process from time to time, though no frame comes."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol


class Watched(Protocol):
    """A recording, as the clock knows it.

    Attributes:
        look_seconds: seconds from one look to the next.
        alive: whether it is to be looked at again.
    """

    @property
    def look_seconds(self) -> float: ...  # noqa: D102
    @property
    def alive(self) -> bool: ...  # noqa: D102

    def look(self) -> None:
        """Do what is due."""


class Clock:
    """Looks at recordings as often as they ask for. Its thread lives as long as there are any; it keeps none of them alive."""

    def __init__(self) -> None:
        self.forget_all()

    def forget_all(self) -> None:
        """Look at nothing: a forked process has none of its parent's threads."""
        self._watched: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, recording: Watched) -> None:
        """Look at a recording until it isn't alive any more."""
        with self._lock:
            self._watched.add(recording)
            if self._thread is None or not self._thread.is_alive():  # Ctrl-C may have come before it was started
                self._thread = threading.Thread(target=self._run, name="torchrl_rerun-clock", daemon=True)
                self._thread.start()
        self._changed.set()

    def wake(self) -> None:
        """Notice at once that a recording isn't alive any more."""
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
