"""Timing: nanoseconds around each step, of contenders that take turns."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

NANOSECONDS = 1_000_000_000

WRITERS = ("torchrl_rerun-writer", "torchrl_rerun-encoder")
"""How the names of the recorder's threads begin."""


@dataclass
class Timings:
    """Times of single steps, round by round, in nanoseconds."""

    rounds: list[list[int]] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Microseconds: the median round's median step. A round that was disturbed doesn't move it."""
        return statistics.median(statistics.median(times) for times in self.rounds) / 1e3

    @property
    def mean(self) -> float:
        """Microseconds: of all steps, hand-overs of blocks and disturbances included."""
        return float(np.mean(self._all)) / 1e3

    @property
    def p99(self) -> float:
        """Microseconds: 99 of 100 steps were faster."""
        return float(np.percentile(self._all, 99)) / 1e3

    @property
    def worst(self) -> float:
        """Microseconds: the slowest step."""
        return float(np.max(self._all)) / 1e3

    @property
    def _all(self) -> list[int]:
        return [time for times in self.rounds for time in times]

    def numbers(self, name: str) -> dict[str, float]:
        """For the JSON file."""
        return {f"{name}_{kind}_us": getattr(self, kind) for kind in ("median", "mean", "p99")}

    def __str__(self) -> str:
        return f"{micro(self.median)} (mean {micro(self.mean)}, p99 {micro(self.p99)})"


@dataclass(frozen=True)
class Contender:
    """One way of doing a step.

    Attributes:
        step: what is timed.
        before_round: what is done before each round, untimed.
        after_round: what is done after each round, untimed, such as dropping what piled up in memory.
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
    """Time each contender's steps in rounds, one after the other, beginning with another one each round.

    Args:
        contenders: what is timed.
        renew: gives the step's data new values, as an environment would have just done; untimed, before each step.
        rounds: how many rounds count.
        steps: steps of each contender in a round.
        warm_up: rounds before those that count.
        pause: seconds between contenders, in which threads in the background finish what they were given.
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
    """Seconds of processor time that were used so far, by whom.

    Attributes:
        env: by the thread that asks, the environment's.
        writer: by the recorder's Python threads.
        process: by all threads, those of libraries included.
    """

    env: float
    writer: float
    process: float

    @classmethod
    def now(cls) -> ThreadTimes:
        """Of the threads that are alive now."""
        writers = [thread for thread in threading.enumerate() if thread.name.startswith(WRITERS)]
        return cls(time.thread_time(), sum(map(_processor_time, writers)), time.process_time())

    def __sub__(self, earlier: ThreadTimes) -> ThreadTimes:
        return ThreadTimes(self.env - earlier.env, self.writer - earlier.writer, self.process - earlier.process)

    @property
    def others(self) -> float:
        """By threads that are neither: those of Rerun, Arrow and torch."""
        return max(0.0, self.process - self.env - self.writer)


def _processor_time(thread: threading.Thread) -> float:
    assert thread.ident is not None, "a thread that is enumerated was started"
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def micro(value: float) -> str:
    """Microseconds to read.

    >>> micro(3.14159), micro(1234.5)
    ('3.1 us', '1,234 us')
    """
    return f"{value:,.2f} us" if value < 1 else f"{value:,.1f} us" if value < 100 else f"{value:,.0f} us"


def mega(value: float) -> str:
    """Bytes to read.

    >>> mega(3 << 20)
    '3.0 MiB'
    """
    return f"{value / (1 << 20):,.1f} MiB"
