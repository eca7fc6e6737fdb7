"""Timing of single steps, in nanoseconds, of contenders that take turns."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

NANOSECONDS = 1_000_000_000

WRITERS = ("torchrl_rerun-writer", "torchrl_rerun-encoder")
"""Prefixes of the names of the recorder's threads."""


@dataclass
class Timings:
    """Times of single steps in nanoseconds, by round."""

    rounds: list[list[int]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median of the rounds' medians, in microseconds. A disturbed round doesn't change it."""
        return statistics.median(statistics.median(times) for times in self.rounds) / 1e3

    @property
    def mean(self) -> float:
        """Mean of all steps in microseconds, including disturbances and steps that hand a block over."""
        return float(np.mean(self._all)) / 1e3

    @property
    def p99(self) -> float:
        """99th percentile of all steps, in microseconds."""
        return float(np.percentile(self._all, 99)) / 1e3

    @property
    def worst(self) -> float:
        """Slowest step, in microseconds."""
        return float(np.max(self._all)) / 1e3

    @property
    def _all(self) -> list[int]:
        return [time for times in self.rounds for time in times]

    def numbers(self, name: str) -> dict[str, float]:
        """Return the numbers for the JSON file."""
        return {f"{name}_{kind}_us": getattr(self, kind) for kind in ("median", "mean", "p99")}

    def __str__(self) -> str:
        return f"{micro(self.median)} (mean {micro(self.mean)}, p99 {micro(self.p99)})"


@dataclass(frozen=True)
class Contender:
    """Way of doing a step.

    Attributes:
        step: Function that is timed.
        before_round: Function that runs before each round, untimed.
        after_round: Function that runs after each round, untimed, such as one that frees memory.
    """

    step: Callable[[], object]
    before_round: Callable[[], object] = lambda: None
    after_round: Callable[[], object] = lambda: None


def take_turns(
    contenders: Mapping[str, Contender],
    renew: Callable[[int], None],
    *,
    rounds: int,
    steps: int,
    warm_up: int = 2,
    pause: float = 0.3,
) -> dict[str, Timings]:
    """Time each contender's steps in rounds, one contender after another. Each round begins with the next contender.

    Args:
        contenders: Ways to time.
        renew: Function that gives the data of a step new values, as an environment would; untimed, before each step.
        rounds: Number of rounds that count.
        steps: Number of steps of each contender in a round.
        warm_up: Number of rounds before those that count.
        pause: Seconds between contenders, in which background threads finish.
    """
    timings = {name: Timings() for name in contenders}
    names = list(contenders)
    number = 0
    for turn in range(warm_up + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            contender = contenders[name]
            contender.before_round()
            times = []
            for _ in range(steps):
                renew(number)
                number += 1
                start = time.perf_counter_ns()
                contender.step()
                times.append(time.perf_counter_ns() - start)
            contender.after_round()
            if turn >= warm_up:
                timings[name].rounds.append(times)
            time.sleep(pause)
    return timings


@dataclass(frozen=True)
class ThreadTimes:
    """Processor time used so far, in seconds.

    Attributes:
        env: Time of the calling thread, which is the environment's.
        writer: Time of the recorder's Python threads.
        process: Time of all threads, including those of libraries.
    """

    env: float
    writer: float
    process: float

    @classmethod
    def now(cls) -> ThreadTimes:
        """Return the times of the threads that are alive."""
        writers = [thread for thread in threading.enumerate() if thread.name.startswith(WRITERS)]
        return cls(time.thread_time(), sum(map(_processor_time, writers)), time.process_time())

    def __sub__(self, earlier: ThreadTimes) -> ThreadTimes:
        return ThreadTimes(self.env - earlier.env, self.writer - earlier.writer, self.process - earlier.process)

    @property
    def others(self) -> float:
        """Time of other threads: those of Rerun, Arrow and torch."""
        return max(0.0, self.process - self.env - self.writer)


def _processor_time(thread: threading.Thread) -> float:
    assert thread.ident is not None, "a thread that is enumerated was started"
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def micro(value: float) -> str:
    """Return microseconds as text.

    >>> micro(3.14159), micro(1234.5)
    ('3.1 us', '1,234 us')
    """
    return f"{value:,.2f} us" if value < 1 else f"{value:,.1f} us" if value < 100 else f"{value:,.0f} us"


def mega(value: float) -> str:
    """Return bytes as text, in MiB.

    >>> mega(3 << 20)
    '3.0 MiB'
    """
    return f"{value / (1 << 20):,.1f} MiB"
