"""Memory: how a long run's grows."""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.report import Detail, Effort, Report, Row
from benchmarks.timing import mega
from benchmarks.workloads import SCALARS, Recorded, Workload, noise

BUFFER_BYTES = 64 << 20  # the recorder's default
TIMES_BUFFER = 3.0

FLAT = 0.1
"""What may come on top between a tenth of the run and its end, as a share of the buffer: pages that come and go."""

EVERY = 100
"""Steps between two looks at the memory."""


def measure(effort: Effort) -> Report:
    """A million steps; quick: a hundred thousand. Resident memory of this process, in which nothing else runs.

    What it took when the recorder's blocks were full for the first time, after a tenth of the run (quick: a half), must
    do for the rest.
    """
    steps = effort.of(1_000_000, 100_000)
    with tempfile.TemporaryDirectory() as folder:
        _warm_up(Path(folder, "warm.rrd"))
        before, seen, seconds = _record(Path(folder, "run.rrd"), steps)
    full = len(seen) // effort.of(10, 2)
    peak, early, late = (max(part) - before for part in (seen, seen[:full], seen[-len(seen) // 10 :]))
    numbers: dict[str, float] = {
        "peak_growth_bytes": peak,
        "early_bytes": early,
        "in_the_last_tenth_bytes": late,
        "steps": steps,
    }
    row = Row(
        "memory",
        f"{SCALARS}, {steps:,} steps, buffer of {mega(BUFFER_BYTES)}",
        f"grows by {mega(peak)} at its peak; by step {full * EVERY:,} {mega(early)}, in the last tenth {mega(late)}",
        f"{peak / BUFFER_BYTES:.2f} x the buffer",
        f"<= {TIMES_BUFFER:.0f} x the buffer; flat from there on (+{FLAT:.0%} of the buffer)",
        peak <= TIMES_BUFFER * BUFFER_BYTES and late <= early + FLAT * BUFFER_BYTES,
        numbers,
    )
    parts = ", ".join(f"{(seen[len(seen) * part // 10 - 1] - before) / (1 << 20):.1f}" for part in range(1, 11))
    return Report(
        (row,),
        (
            Detail("memory", "resident before the first frame", mega(before)),
            Detail("memory", "growth after each tenth of the run", f"{parts} MiB"),
            Detail("memory", "the run took", f"{seconds:.0f} s, {seconds / steps * 1e6:.0f} us a step"),
        ),
    )


def _warm_up(path: Path) -> None:
    """Let the libraries load, and take what they take once."""
    recorded = Recorded(Workload(SCALARS, noise(SCALARS, 64)), path)
    for _ in range(100):
        recorded.step()
    recorded.close()


def _record(path: Path, steps: int) -> tuple[int, list[int], float]:
    """Resident bytes before the first frame, and every so many steps from then on; seconds."""
    process = psutil.Process()
    workload = Workload(SCALARS, noise(SCALARS, 4096))
    gc.collect()
    before = process.memory_info().rss
    seen = []
    recorded = Recorded(workload, path)
    start = time.perf_counter()
    for number in range(steps):
        workload.renew(number)
        recorded.step()
        if number % EVERY == 0:
            seen.append(process.memory_info().rss)
    recorded.recorder.dump()
    seen.append(process.memory_info().rss)
    seconds = time.perf_counter() - start
    recorded.close()
    return before, seen, seconds
