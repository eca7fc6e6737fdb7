"""The writer's share of the interpreter: how long Python on the environment's thread stands still while a block is written.

The environment's thread computes in Python while the writer writes a block. It is neither on a processor nor waiting for one
(Linux tells both) only if it waits for the GIL: for that time the writer holds it.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import Detail, Effort, Report, Row
from benchmarks.timing import micro
from benchmarks.workloads import PIXELS, SCALARS, Recorded, Sizes, Workload

WRITER = "torchrl_rerun-writer"
SHARE = 0.5


class Share(NamedTuple):
    """What writing a block costs, in seconds.

    Attributes:
        held: for which the environment's thread waited for the GIL.
        busy: processor time of the writer.
        took: from the begin to the end.
    """

    held: float
    busy: float
    took: float


def measure(effort: Effort) -> Report:
    """Write 15 blocks (quick: 5) of numbers, and as many of raw images, each of half of what a block may hold."""
    rounds = effort.of(15, 5)
    if not Path("/proc/self/schedstat").exists():
        return Report((), (Detail("the writer's share of the GIL", "", "only Linux tells for what a thread waits"),))
    return Report((_row(SCALARS, 1000, rounds), _row(PIXELS, 40, rounds, image_format="raw")))


def _row(sizes: Sizes, steps: int, rounds: int, **options: str) -> Row:
    shares = _shares(sizes, steps, rounds, **options)
    held, busy, took = (statistics.median(each) / steps * 1e6 for each in zip(*shares, strict=True))
    return Row(
        "the writer's share of the GIL",
        f"{sizes}, blocks of {steps:,} steps",
        f"{micro(held)} a step; its processor time {micro(busy)}, from begin to end {micro(took)}",
        f"{held / busy:.2f} of the writer's time",
        f"<= {SHARE} (ours)",
        held <= SHARE * busy,
        {"held_us": held, "busy_us": busy, "took_us": took},
    )


def _shares(sizes: Sizes, steps: int, rounds: int, **options: str) -> list[Share]:
    workload = Workload(sizes)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        recorded = Recorded(workload, Path(folder, "run.rrd"), flush_seconds=1e6, **options)
        recorded.recorder.dump()
        [writer] = [thread for thread in threading.enumerate() if thread.name == WRITER]
        clock = time.pthread_getcpuclockid(writer.ident or 0)
        for _ in range(rounds + 1):
            for number in range(steps):
                workload.renew(number)
                recorded.step()
            shares.append(_share(recorded.recorder.dump, clock))
        recorded.close()
    return shares[1:]  # the first one waits for memory


def _share(write: Callable[[], None], clock: int) -> Share:
    done = threading.Event()

    def wait() -> None:
        write()
        done.set()

    waiting = threading.Thread(target=wait)
    began, busy, ready = time.perf_counter(), time.clock_gettime(clock), _ready()
    waiting.start()
    while not done.is_set():
        for _ in range(100):
            pass
    took, busy = time.perf_counter() - began, time.clock_gettime(clock) - busy
    waiting.join()
    return Share(took - (_ready() - ready), busy, took)


def _ready() -> float:
    """Return for how many seconds this thread has been on a processor, or has waited for one."""
    _, waiting, _ = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text().split()
    return time.thread_time() + int(waiting) / 1e9
