"""Memory: growth in a long run."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from rerun.chunk import Chunk, LazyChunkStream

from benchmarks.report import Detail, Effort, Report, Row
from benchmarks.timing import mega
from benchmarks.workloads import SCALARS, Recorded, Workload, noise
from torchrl_rerun import KeepLast
from torchrl_rerun.blocks.buffer import MAX_SLOTS
from torchrl_rerun.kinds.arrow import Column, Entity, chunks_of, number_lists, times_of

BUFFER_BYTES = 64 << 20  # the recorder's default
TIMES_BUFFER = 3.0

FLAT = 0.1
"""Largest growth between a tenth of the run and its end, as a share of the buffer: the system frees pages with delay."""

EVERY = 100
"""Steps between two measurements of the memory."""

VECTOR_ENVS, VECTOR_EVERY, VECTOR_KEPT = 8, 25, 10
"""Environments of the vector, steps between the ends of two episodes, and episodes that are kept."""


def measure(effort: Effort) -> Report:
    """Record a million steps (quick: a hundred thousand), and measure the resident memory of this process.

    The memory after a tenth of the run (quick: half), when the recorder's blocks have been full once, must suffice for the rest.
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
            _index_detail(steps),
            Detail("memory", "the run took", f"{seconds:.0f} s, {seconds / steps * 1e6:.0f} us a step"),
        ),
    )


def measure_vector(effort: Effort) -> Report:
    """Record a million steps of a vector of 8 (quick: a hundred thousand) by episode, of which the last ten are kept."""
    from benchmarks.wrappers import InstantVector  # noqa: PLC0415 - it imports torch
    from torchrl_rerun.wrappers.vector import RecordRerun  # noqa: PLC0415

    steps = effort.of(1_000_000, 100_000)
    at = [steps // 10, steps // 2, steps]
    process, seen, done = psutil.Process(), dict[int, int](), 0
    with tempfile.TemporaryDirectory() as folder:
        envs = RecordRerun(
            InstantVector(VECTOR_ENVS, VECTOR_EVERY), folder, split="episode", keep=KeepLast(VECTOR_KEPT)
        )
        envs.reset()
        actions = np.zeros(VECTOR_ENVS, np.int64)
        start = time.perf_counter()
        for end in at:
            for _ in range(end - done):
                envs.step(actions)
            done = end
            envs.dump()
            gc.collect()
            seen[end] = process.memory_info().rss
        seconds = time.perf_counter() - start
        files = len(list(Path(folder).glob("*.rrd")))
        envs.close()
    first, *_, last = seen.values()
    grown = last - first
    figure = "memory, a vector by episode"
    said = ", ".join(f"{mega(bytes_)} at step {step:,}" for step, bytes_ in seen.items())
    return Report(
        (
            Row(
                figure,
                f"a vector of {VECTOR_ENVS} with CartPole's spaces, {steps // VECTOR_EVERY:,} episodes, "
                f"keep=KeepLast({VECTOR_KEPT}), buffer of {mega(BUFFER_BYTES)}",
                said,
                f"{grown / BUFFER_BYTES:+.3f} x the buffer",
                f"flat from step {at[0]:,} on (+{FLAT:.0%} of the buffer)",
                grown <= FLAT * BUFFER_BYTES,
                {f"resident_at_{step}_bytes": float(bytes_) for step, bytes_ in seen.items()},
            ),
        ),
        (
            Detail(figure, "files after the last dump", str(files)),
            Detail(figure, "the run took", f"{seconds:.0f} s, {seconds / steps * 1e6:.0f} us a step"),
        ),
    )


def grown_by_index(chunks: int) -> list[float]:
    """Return the growth of this process in bytes after each tenth of a number of small chunks that Rerun alone writes."""
    process = psutil.Process()
    flag = Column("StateChange:state", "StateChange", "Text", pa.array([["done"]] * 2))
    number = number_lists(np.zeros((2, 1), np.float32))
    columns = [[number]] * 4 + [[flag, number]] * 3  # observation, action, reward and return, and three flags
    entities = [Entity(f"/env_{env}/{i}", made) for env in range(SCALARS.envs) for i, made in enumerate(columns)]
    seen: list[int] = []

    def made(count: int) -> Iterator[Chunk]:
        for i in range(count // len(entities)):
            yield from chunks_of(times_of(np.full((2, 5), i), None), entities)
            seen.append(process.memory_info().rss)

    with tempfile.TemporaryDirectory() as folder:
        names = {"application_id": "benchmarks", "recording_id": "index"}
        for count in (10 * len(entities), chunks):  # the first one warms up
            before = len(seen)
            LazyChunkStream.from_iter(made(count)).write_rrd(Path(folder, "index.rrd"), **names)
    first, *rest = seen[before:]
    return [max(rest[: len(rest) * part // 10]) - first for part in range(1, 11)]


def _index_detail(steps: int) -> Detail:
    """Measure the growth by the index in a process of its own, without memory that was used before."""
    chunks = steps // MAX_SLOTS * SCALARS.envs * 7
    code = f"from benchmarks.memory import grown_by_index; print(grown_by_index({chunks}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tenths = [float(number) / (1 << 20) for number in run.stdout.strip(" []\n").split(",")]
    return Detail(
        "memory",
        f"growth where Rerun alone writes as many chunks ({chunks:,}), after each tenth",
        f"{', '.join(f'{number:.1f}' for number in tenths)} MiB",
        {"index_bytes": tenths[-1] * (1 << 20)},
    )


def _warm_up(path: Path) -> None:
    """Load the libraries, so that their memory is not counted."""
    recorded = Recorded(Workload(SCALARS, noise(SCALARS, 64)), path)
    for _ in range(100):
        recorded.step()
    recorded.close()


def _record(path: Path, steps: int) -> tuple[int, list[int], float]:
    """Return the resident bytes before the first frame and at regular steps, and the seconds of the run."""
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
