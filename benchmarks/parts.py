"""Parts of the cost of a step and of a chunk, and the minimum that Rerun alone needs."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from rerun.chunk import Chunk, LazyChunkStream
from tensordict import TensorDict
from torchrl.envs import Transform

from benchmarks.report import Detail, Effort, Report
from benchmarks.workloads import PIXELS, Hooked, Recorded, Sizes, Workload, grainy, looking, noise
from torchrl_rerun.blocks.block import Block, FrameValues
from torchrl_rerun.kinds.arrow import Entity, Times, chunks_of, number_lists, times_of
from torchrl_rerun.kinds.timelines import TIMELINES

GROUP = "where the cost lies"

WITH_PIXELS = "16 environments with 84x84x3 pixels"

PARTS_OF = ("16 environments", WITH_PIXELS)
"""The workloads of whose steps each part is measured by itself."""

CALLS = 90
"""Calls of functions in a step of small rows, about, as Python's profiler counts them."""


def measure(effort: Effort) -> Report:
    """Return medians of many repetitions, without targets."""
    repetitions = effort.of(400, 100)
    return Report(
        (),
        (
            *_steps(repetitions),
            *_chunks(repetitions),
            *_row_bytes(),
            *_floor_of_files(),
        ),
    )


def _median(step: Callable[[], object], repetitions: int) -> float:
    """Return the median of repetitions, in microseconds."""
    times = []
    for number in range(repetitions):
        start = time.perf_counter_ns()
        step()
        if number >= repetitions // 10:
            times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e3


def _detail(what: str, measured: str, **numbers: float) -> Detail:
    return Detail(GROUP, what, measured, numbers)


def _steps(repetitions: int) -> Iterator[Detail]:
    """Measure a step on the environment's thread, by number of keys, bytes and environments, without writing a block."""
    found = {}
    for name, sizes in (
        ("16 environments", Sizes(16, 17, 6)),
        ("1 environment", Sizes(1, 17, 6)),
        ("256 environments", Sizes(256, 17, 6)),
        ("4096 environments, the first 16 in detail", Sizes(4096, 17, 6)),
        (WITH_PIXELS, PIXELS),
    ):
        with tempfile.TemporaryDirectory() as folder:
            recorded = Recorded(Workload(sizes), Path(folder, "run.rrd"), image_format="raw", flush_seconds=1e6)
            if sizes.pixels:  # until all memory of both blocks has been written to once
                for _ in range(200):
                    recorded.step()
                recorded.recorder.dump()
            found[name] = _median(recorded.step, min(repetitions, 60 if sizes.pixels else repetitions))
            yield _detail(f"a step of {name}: the hooks", f"{found[name]:.1f} us", hooks_us=found[name])
            if name == "16 environments":
                reset = _median(_partial_reset(recorded), repetitions)
                yield _detail("a reset of 4 of 16 environments: the hook", f"{reset:.1f} us", reset_us=reset)
            if name in PARTS_OF:
                yield from _parts_of_a_step(name, recorded, min(repetitions, 60) if sizes.pixels else repetitions)
            recorded.close()
    floor = _median(looking(Workload(Sizes(16, 17, 6))), repetitions)
    yield _detail(
        "16 environments, of it: only to look at its 5 values as arrays, by `get` and `numpy`",
        f"{floor:.1f} us",
        look_us=floor,
    )
    idle = _median(Hooked(Workload(Sizes(16, 17, 6)), Transform()).step, repetitions)
    yield _detail("the two hooks of a transform that does nothing", f"{idle:.1f} us", idle_us=idle)
    calls = _median(_calls, repetitions)
    yield _detail(f"{CALLS} calls of a Python function that does nothing", f"{calls:.1f} us", calls_us=calls)


def _nothing(what: object) -> object:
    return what


def _calls() -> None:
    for _ in range(CALLS):
        _nothing(None)


def _parts_of_a_step(name: str, recorded: Recorded, repetitions: int) -> Iterator[Detail]:
    """Measure the parts of the hooks, each by itself. The rest is in the hooks: who steps, whether the last step was changed."""
    front_end = recorded.recorder._front_end
    assert front_end is not None, "it records"
    plan, recording = front_end.plan, front_end.recording
    assert plan is not None, "it has seen a step"
    assert recording is not None, "it has seen a step"
    root, following = recorded.env.workload.root, recorded.env.workload.following
    counters, count = recording._counters, len(plan.observed)
    after, before = plan.following.values(following), plan.acted.values(root)
    arrays = front_end.reader.arrays(plan.following, after)
    values = FrameValues(arrays[:count], arrays[count:], front_end.reader.arrays(plan.acted, before))
    groups = (*recording._buffers.small.groups, *recording._buffers.bulky.groups)
    block = Block(groups, len(recording.envs), 2 * repetitions)
    block.touch()
    event = counters.event(None, time.time_ns(), is_step=True, picked=None, begun=None)

    def look_up() -> None:
        plan.following.values(following)
        plan.acted.values(root)

    def view() -> None:
        front_end.reader.arrays(plan.following, after)
        front_end.reader.arrays(plan.acted, before)

    def count_on() -> None:
        counters.apply(counters.event(None, time.time_ns(), is_step=True, picked=None, begun=None))

    for what, part in {
        "to look up its values in tensordicts": look_up,
        "to view them as arrays of the dtype and shape that are expected": view,
        "to copy them into a block, and note the event": lambda: block.add(event, values),
        "to number the step": count_on,
    }.items():
        cost = _median(part, repetitions)
        yield _detail(f"{name}, of it: {what}", f"{cost:.1f} us", part_us=cost)


def _partial_reset(recorded: Recorded) -> Callable[[], None]:
    mask = torch.zeros(16, 1, dtype=torch.bool)
    mask[::4] = True
    asked = TensorDict({"_reset": mask, "done": mask, "terminated": mask}, [16])
    observed = recorded.env.reset()

    def reset() -> None:
        recorded.recorder._reset(asked, observed)

    return reset


def _times(rows: int, first: int = 0) -> Times:
    positions = np.zeros((rows, len(TIMELINES)), np.int64, order="F")
    frames = np.arange(first, first + rows)
    now = 1_700_000_000_000_000_000 + np.cumsum(np.random.default_rng(first).integers(4_000_000, 6_000_000, rows))
    for column, values in enumerate((frames, frames - first // 200, frames // 200, frames % 200, now)):
        positions[:, column] = values
    return times_of(positions, None)


def _entities(count: int, rows: int, width: int = 1) -> list[Entity]:
    rng = np.random.default_rng(0)
    return [
        Entity(f"/env_0/key_{i}", [number_lists(rng.standard_normal((rows, width), np.float32))]) for i in range(count)
    ]


def _chunks(repetitions: int) -> Iterator[Detail]:
    """Measure the making of chunks, which holds the GIL."""
    times = _times(400)
    for count in (1, 6):
        entities = _entities(count, 400, 8)
        cost = _median(lambda entities=entities: list(chunks_of(times, entities)), repetitions) / count  # type: ignore[misc]
        together = "made by itself" if count == 1 else f"of {count} made together"
        yield _detail(f"a chunk of 400 rows, {together}", f"{cost:.1f} us", chunk_us=cost)


def _written(chunks: Iterator[Chunk], path: Path) -> float:
    """Return the seconds to write chunks."""
    start = time.perf_counter()
    LazyChunkStream.from_iter(chunks).write_rrd(path, application_id="parts", recording_id="parts")
    return time.perf_counter() - start


def _row_bytes() -> Iterator[Detail]:
    """Return the bytes that the timelines of a row take in a file, with zeros as values."""
    rows = 20_000
    for length in (250, 1000, 4000, 10_000):
        for without in ((), ("log_time",), ("frame", "step"), ("log_time", "frame", "step", "episode", "episode_step")):
            if without and length != 4000:
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "rows.rrd")
                _written(_zeros(rows, length, without), path)
                size = path.stat().st_size / rows
            left_out = f", without {', '.join(without)}" if without else ""
            yield _detail(
                f"a row of one number, the number left out, in chunks of {length:,} rows{left_out}",
                f"{size:.1f} bytes",
                row_bytes=size,
            )


def _zeros(rows: int, length: int, without: tuple[str, ...]) -> Iterator[Chunk]:
    for first in range(0, rows, length):
        times = {name: values for name, values in _times(length, first).items() if name not in without}
        times = times or {"frame": pa.array(np.zeros(length, np.int64))}
        yield from chunks_of(times, [Entity("/env_0/key", [number_lists(np.zeros((length, 1), np.float32))])])


def _floor_of_files() -> Iterator[Detail]:
    """Measure rerun-sdk's writing of finished chunks, the lower bound of the end-to-end figures."""
    for name, make in (("noise", noise), ("grainy images", grainy)):
        pool: dict[str, npt.NDArray[Any]] = make(PIXELS, 100)
        pixels = np.ascontiguousarray(pool["pixels"].swapaxes(0, 1)).reshape(16, 100, -1)
        chunks = [
            chunk
            for i in range(96)
            for chunk in chunks_of(
                _times(100, i * 100), [Entity(f"/env_{i % 16}/pixels", [number_lists(pixels[i % 16])])]
            )
        ]
        with tempfile.TemporaryDirectory() as folder:
            seconds = _written(iter(chunks), Path(folder, "ready.rrd"))
        total = 96 * pixels[0].nbytes
        start = time.perf_counter()
        for i in range(96):
            pa.compress(pa.py_buffer(pixels[i % 16]), codec="lz4_raw", asbytes=False)
        alone = time.perf_counter() - start
        yield _detail(
            f"write_rrd of chunks that are ready, {name}",
            f"{total / seconds / 1e9:.2f} GB/s, {alone / seconds:.2f} of LZ4's own speed",
            bytes_per_second=total / seconds,
            of_lz4=alone / seconds,
        )
