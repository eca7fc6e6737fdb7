"""Stats: what a recorder tells of its life so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """What was recorded, written, lost and is waiting, in all parts of a recording: see :meth:`RerunRecorder.stats`."""

    frames: int = 0
    steps: int = 0
    episodes: int = 0
    frames_written: int = 0
    frames_waiting: int = 0
    frames_lost: int = 0
    frames_dropped: int = 0
    bytes_waiting: int = 0
    bytes_written: int = 0
    seconds_waited: float = 0.0
    frames_per_second: float = 0.0
    bytes_per_second: float = 0.0
