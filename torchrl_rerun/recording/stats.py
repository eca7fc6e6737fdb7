"""Stats: counts of what a recorder has recorded, written and lost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """Counts of all parts of a recording.

    Attributes:
        frames, steps, episodes: how many there were.
        frames_written: frames that are kept.
        frames_waiting: frames that aren't written yet.
        frames_lost: frames that could not be written.
        frames_dropped: frames that a live viewer didn't get.
        bytes_waiting: bytes in memory.
        bytes_written: bytes of the files.
        seconds_waited: seconds that the environment has waited for the writer.
        frames_per_second: frames divided by the time since the first.
        bytes_per_second: bytes divided by the time that the writer was at work.
        has_black_box: whether frames that wait outlive the process. If not, a kill costs them.
    """

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
    has_black_box: bool = False
