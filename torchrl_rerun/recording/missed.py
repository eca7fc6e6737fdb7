"""Missed frames: they came after a recording was closed, and it could not go on in another file."""

from __future__ import annotations

import math
import time

from torchrl_rerun.errors import RecordingError, warn
from torchrl_rerun.writing.target import ChunkWriter

RETRY_SECONDS = 5.0
"""Seconds between two tries to go on after a recording was closed, each of which makes the environment wait."""


class Missed:
    """Counts the frames that came after a recording was closed, and raises an error for them.

    Args:
        chunk_writer: has the name of the recording in messages.
    """

    def __init__(self, chunk_writer: ChunkWriter) -> None:
        self._chunk_writer = chunk_writer
        self._frames = 0  # that `close()` has not raised an error for
        self._hindrance: OSError | None = None
        self._hindered_at = -math.inf

    @property
    def may_go_on(self) -> bool:
        """Whether to try to go on in another file now: at once, and every few seconds if that fails."""
        return time.monotonic() - self._hindered_at >= RETRY_SECONDS

    def fail_to_go_on(self, error: OSError) -> None:
        """Note why frames can't be recorded before the next try."""
        self._hindrance, self._hindered_at = error, time.monotonic()

    def count(self, frames: int) -> bool:
        """Count frames, and warn of the first. Return whether it is the first."""
        self._frames += frames
        is_first = self._frames == frames == 1
        if is_first:
            warn(f"{self._error()} (training goes on; dump() and close() will raise this)", RuntimeWarning)
        return is_first

    def raise_error(self) -> None:
        """Raise an error if frames were missed."""
        if self._frames:
            raise self._error()

    def raise_error_once(self) -> None:
        """Raise an error if frames were missed since it was raised last."""
        if self._frames:
            error, self._frames = self._error(), 0
            raise error

    def _error(self) -> RecordingError:
        error = RecordingError(
            f"{self._frames} frames were lost: they came after close() of {self._chunk_writer.label}, and {self._hindrance}"
        )
        error.__cause__ = self._hindrance
        return error
