"""Cost of recording in a long run, with the writer at work beside the environment.

The environment takes a given time for each step: asleep, computing, or busy in Python. The step's data is renewed before the hooks
are timed. A copy of the step's bytes is timed as well, alternately before and after the hooks: the first of the two finds cold
caches.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Detail, Effort, Report, Row
from benchmarks.timing import ThreadTimes, Timings, micro
from benchmarks.workloads import Recorded, Sizes, Workload, copy_into_ring, looking, robots

BLOCKS = 50
BUFFER_BYTES = 64 << 20  # the recorder's default
DUMP_SECONDS = 5.0
HALF = 2  # a block is at most one half of the recorder's buffer

COPIES, ADDED_US = 3.0, 50.0
BATCH_US, BATCH_SHARE = 150.0, 0.01

LOOK_EVERY = 5

WORKING = 1e-4
"""Seconds of the writer's processor time in a step above which it counts as working."""

Idle = Callable[[float], None]
"""Function that spends the environment's time until a moment of ``time.perf_counter()``."""


def asleep(until: float) -> None:
    """Wait without the processor and without the GIL, as for a simulator on another machine."""
    time.sleep(max(0.0, until - time.perf_counter()))


class Computing:
    """Use the processor and its caches without the GIL, as a simulator in this process does."""

    def __init__(self) -> None:
        self._state = np.random.default_rng(0).standard_normal(1 << 15)

    def __call__(self, until: float) -> None:
        """Compute until a moment, in portions of about 0.1 ms."""
        while time.perf_counter() < until:
            np.sin(self._state, out=self._state)


class BusyInPython:
    """Hold the GIL, as an environment written in Python does, and measure the speed with and without the writer at work."""

    def __init__(self) -> None:
        self._done = {True: 0, False: 0}
        self._seconds = {True: 0.0, False: 0.0}
        self._writer = 0.0

    def __call__(self, until: float) -> None:
        """Work until a moment."""
        start = time.perf_counter()
        done = 0
        while time.perf_counter() < until:
            for _ in range(50):
                done += 1
        took = time.perf_counter() - start
        writer = ThreadTimes.now().writer
        beside = writer - self._writer > WORKING
        self._writer = writer
        self._done[beside] += done
        self._seconds[beside] += took

    @property
    def beside(self) -> float:
        """Share of the time in which the writer worked."""
        return self._seconds[True] / sum(self._seconds.values())

    @property
    def slowed(self) -> float:
        """Share of speed lost while the writer works; 0 if it never did."""
        if not all(self._seconds.values()):
            return 0.0
        return 1 - self._done[True] / self._seconds[True] / (self._done[False] / self._seconds[False])


@dataclass
class Sustained:
    """Results of a long run.

    Attributes:
        sizes: Environments and data.
        period: Seconds of the environment's own for each step.
        hooks, copy: Times of the steps that count.
        looks: Times of every fifth step, whose hooks aren't counted: viewing the values as arrays, one after another. No
            recorder in Python can be faster.
        wall: Seconds of these steps.
        dump: Seconds of ``dump()`` at the end.
        whole: Seconds from the first step, warm-up included, to the end of ``dump()``.
        threads: Processor time in these seconds.
        steps: Number of steps from the first to the end of ``dump()``.
        file_bytes: Size of the file after ``dump()``.
    """

    sizes: Sizes
    period: float
    hooks: Timings = field(default_factory=lambda: Timings([[]]))
    copy: Timings = field(default_factory=lambda: Timings([[]]))
    looks: Timings = field(default_factory=lambda: Timings([[]]))
    wall: float = 0.0
    dump: float = 0.0
    whole: float = 0.0
    threads: ThreadTimes = field(default_factory=lambda: ThreadTimes(0, 0, 0))
    steps: int = 0
    file_bytes: int = 0

    @property
    def counted(self) -> int:
        """Number of steps that count."""
        return len(self.hooks.rounds[0]) + len(self.looks.rounds[0])

    @property
    def delay(self) -> float:
        """Delay of the run relative to the environment alone.

        Hooks that fit into the environment's period delay nothing; waiting for the writer does.
        """
        return self.wall / (self.counted * self.period) - 1

    @property
    def writer_share(self) -> float:
        """Processor time of the writer's thread, relative to the time of the run."""
        return self.threads.writer / self.whole

    @property
    def keeps_up(self) -> bool:
        """Whether the environment waited for less than 2 % of the time, and less than a block's time is left at the end."""
        block = BUFFER_BYTES / HALF / self.sizes.step_bytes * self.period
        return self.delay < 0.02 and self.dump < min(block, DUMP_SECONDS)

    def numbers(self) -> dict[str, float]:
        """Return the numbers for the JSON file."""
        return {
            **self.hooks.numbers("hooks"),
            **self.copy.numbers("copy"),
            **self.looks.numbers("looks"),
            "worst_us": self.hooks.worst,
            "steps": self.counted,
            "period_s": self.period,
            "delay": self.delay,
            "dump_s": self.dump,
            "writer_share": self.writer_share,
            "other_threads_s": self.threads.others,
            "file_bytes": self.file_bytes,
        }


def sustain(
    sizes: Sizes, *, steps: int, warm_up: int, period: float, idle: Idle = asleep, seconds: float = 1e9, **options: Any
) -> Sustained:
    """Record a long run. Only ``whole`` includes the cost of renewing the data.

    Args:
        sizes: Environments and data.
        steps: Number of timed steps.
        warm_up: Number of steps before, in which the recorder's memory is allocated.
        period: Seconds of the environment's own for each step.
        idle: Function that spends these seconds.
        seconds: Limit of the run in seconds.
        options: Arguments of the recorder.
    """
    found = Sustained(sizes, period)
    workload = Workload(sizes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.rrd")
        recorded = Recorded(workload, path, **options)
        before, begin = ThreadTimes.now(), time.perf_counter()
        _run(workload, recorded, found, steps=warm_up + steps, warm_up=warm_up, idle=idle, seconds=seconds)
        start = time.perf_counter()
        recorded.recorder.dump()
        found.dump, found.whole = time.perf_counter() - start, time.perf_counter() - begin
        found.threads = ThreadTimes.now() - before
        found.file_bytes = path.stat().st_size
        recorded.close()
    return found


def _run(
    workload: Workload,
    recorded: Recorded,
    found: Sustained,
    *,
    steps: int,
    warm_up: int,
    idle: Idle,
    seconds: float,
) -> None:
    both = (recorded.step, found.hooks.rounds[0]), (copy_into_ring(workload, BUFFER_BYTES), found.copy.rounds[0])
    orders = both, both[::-1]
    look, looks = looking(workload), found.looks.rounds[0]
    begin = following = time.perf_counter()
    started = begin
    for number in range(steps):
        if number == warm_up:
            for times in (*(times for _, times in both), looks):
                times.clear()
            started = time.perf_counter()
        following = max(following + found.period, time.perf_counter())
        idle(following)
        workload.renew(number)
        is_look = number % LOOK_EVERY == 0
        for step, times in [(look, looks), (recorded.step, [])] if is_look else orders[number % 2]:
            start = time.perf_counter_ns()
            step()
            times.append(time.perf_counter_ns() - start)
        if following - begin > seconds and number > warm_up:
            break
    found.wall = time.perf_counter() - started
    found.steps = number + 1


def measure_all(effort: Effort) -> Report:
    """Record 256 environments in detail: 50 blocks (quick: 10), as many as the data's bytes fill.

    Shorter runs follow with an environment that computes without the GIL, and with one that is busy in Python.
    """
    sizes, period, blocks = robots(256), 0.005, effort.of(BLOCKS, 10)
    block = BUFFER_BYTES // HALF // sizes.step_bytes
    found = sustain(sizes, steps=blocks * block, warm_up=3 * block, period=period, logged_envs="all")
    allowed = COPIES * found.copy.mean + ADDED_US
    row = Row(
        f"the same, sustained over {blocks} blocks",
        f"{sizes}, all in detail, {found.counted:,} steps of 5 ms",
        f"mean {micro(found.hooks.mean)} a step, memcpy {micro(found.copy.mean)}; "
        f"writer {'keeps up' if found.keeps_up else 'falls behind'}",
        f"{found.hooks.mean / found.copy.mean:.1f} x",
        f"mean <= {COPIES:.0f} x memcpy's + {ADDED_US:.0f} us = {micro(allowed)}, the writer keeping up",
        found.hooks.mean <= allowed and found.keeps_up,
        found.numbers(),
    )
    some = effort.of(8, 2) * block
    awake = sustain(sizes, steps=some, warm_up=block, period=period, idle=Computing(), logged_envs="all")
    return Report(
        (row,),
        (*_details(found, f"{sizes}, asleep"), *_details(awake, f"{sizes}, computing"), *_busy(sizes, some, block)),
    )


def _busy(sizes: Sizes, steps: int, warm_up: int) -> tuple[Detail, ...]:
    """Measure how much of the speed of an environment in Python the writer takes."""
    busy = BusyInPython()
    found = sustain(sizes, steps=steps, warm_up=warm_up, period=0.005, idle=busy, logged_envs="all")
    name = f"{sizes}, busy in Python"
    lost = Detail(
        name,
        "speed of the environment's own Python that is lost while the writer works, beside the rest of the time",
        f"{busy.slowed:.1%}, in {busy.beside:.0%} of the time",
        {"slowed": busy.slowed, "beside": busy.beside},
    )
    return (*_details(found, name), lost)


def measure_batch(effort: Effort) -> Report:
    """Record 4096 environments by default: 1,000 steps in 50 blocks of 0.4 s (quick: 500 in blocks of 0.2 s).

    Blocks of 5 seconds are the default of the recorder; short ones are more work for the writer. A shorter run of all environments in
    detail follows.
    """
    sizes, period = robots(4096), 0.02
    flush_seconds = effort.of(4, 2) / 10
    block = round(flush_seconds / period)
    found = sustain(sizes, steps=BLOCKS * block, warm_up=3 * block, period=period, flush_seconds=flush_seconds)
    row = Row(
        f"the same, sustained over {BLOCKS} blocks",
        f"{sizes}, defaults, {found.counted:,} steps of 20 ms, blocks of {flush_seconds} s",
        f"mean {micro(found.hooks.mean)} a step; writer {'keeps up' if found.keeps_up else 'falls behind'}",
        f"{found.hooks.mean / 1e6 / period:.2%} of the env",
        f"mean <= {BATCH_US:.0f} us, < {BATCH_SHARE:.0%} of an env's 20 ms",
        found.hooks.mean <= BATCH_US and found.hooks.mean / 1e6 < BATCH_SHARE * period,
        found.numbers(),
    )
    steps = effort.of(400, 100)
    every = sustain(sizes, steps=steps, warm_up=steps // 4, period=period, seconds=effort.of(40, 10), logged_envs="all")
    awake = sustain(
        sizes, steps=5 * block, warm_up=2 * block, period=period, idle=Computing(), flush_seconds=flush_seconds
    )
    return Report(
        (row,),
        (
            *_details(found, f"{sizes}, defaults, asleep"),
            *_details(awake, f"{sizes}, defaults, computing"),
            *_details(every, f"{sizes}, all in detail, asleep"),
        ),
    )


def _details(found: Sustained, name: str) -> tuple[Detail, ...]:
    per_env = found.hooks.mean / found.sizes.envs
    return (
        Detail(name, "hooks, per step of all environments", f"{found.hooks}; worst {micro(found.hooks.worst)}"),
        Detail(name, "memcpy in the same steps", str(found.copy)),
        Detail(name, "only to look at the values as arrays, in steps of its own", str(found.looks)),
        Detail(name, "hooks, mean per environment step", f"{per_env * 1e3:,.1f} ns"),
        Detail(
            name,
            "the writer",
            f"{'keeps up' if found.keeps_up else 'falls behind'}; {found.writer_share:.1%} of a core in its Python thread; "
            f"the env lost {found.delay:.1%}; dump() at the end {found.dump:.2f} s",
            found.numbers(),
        ),
    )
