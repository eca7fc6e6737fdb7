"""Stored steps: the time until a rollout is in a file, beside the time that pyarrow takes to write its arrays to Parquet."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rerun.chunk import Chunk, LazyChunkStream, RrdReader
from tensordict import TensorDict, TensorDictBase

from benchmarks.report import Detail, Effort, Report, Row
from torchrl_rerun import RerunRecorder

TIMES_PARQUET = 2.0

SIZES = ((64, 1000), (8, 1000), (1, 4000))
"""Environments and steps of the rollouts."""

ENDS = 0.01
"""Share of the steps that end an episode."""


def measure(effort: Effort) -> Report:
    """Measure 9 rounds (quick: 3) of one rollout of each size, recorded with a dump and written to zstd Parquet in turns."""
    rounds = effort.of(9, 3)
    found = {size: _measure(size, rounds) for size in SIZES}
    (envs, steps), (recorded, parquet, thread) = SIZES[0], found[SIZES[0]]
    row = Row(
        "stored steps, log_rollout and dump",
        f"[{envs}, {steps}] x (17 + 6 + 1) and flags, an episode in {1 / ENDS:.0f} steps",
        f"{recorded * 1e3:.0f} ms; Parquet with zstd {parquet * 1e3:.0f} ms",
        f"{recorded / parquet:.2f} x",
        f"<= {TIMES_PARQUET} x Parquet",
        recorded <= TIMES_PARQUET * parquet,
        {"recorded_s": recorded, "parquet_s": parquet, "thread_s": thread},
    )
    details = tuple(
        Detail(
            f"stored steps, [{size[0]}, {size[1]}]",
            "recorded with a dump; CPU time on the caller's thread; Parquet; ratio",
            f"{recorded * 1e3:.0f} ms; {thread * 1e3:.0f} ms; {parquet * 1e3:.1f} ms; {recorded / parquet:.2f} x",
            {"recorded_s": recorded, "parquet_s": parquet, "thread_s": thread},
        )
        for size, (recorded, parquet, thread) in found.items()
    )
    return Report((row,), (*details, _floor(SIZES[0], rounds)))


def _floor(size: tuple[int, int], rounds: int) -> Detail:
    """Measure Rerun's part of it: it writes the chunks of a recording once more."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.rrd")
        with RerunRecorder(path, blueprint=False) as recorder:
            recorder.log_rollout(_rollout(size))
        chunks = list(RrdReader(path).stream())
        again = functools.partial(_write_again, chunks, Path(folder, "again.rrd"))
        seconds = statistics.median(_seconds(again) for _ in range(rounds))
    return Detail(
        f"stored steps, [{size[0]}, {size[1]}]",
        f"of it: Rerun's writing of its {len(chunks)} chunks, which are ready",
        f"{seconds * 1e3:.0f} ms",
        {"ready_s": seconds},
    )


def _write_again(chunks: list[Chunk], path: Path) -> None:
    LazyChunkStream.from_iter(iter(chunks)).write_rrd(path, application_id="bulk", recording_id="bulk")


def _measure(size: tuple[int, int], rounds: int) -> tuple[float, float, float]:
    """Return the median seconds of a recording and of a Parquet file, and those of the caller's thread alone."""
    rollout = _rollout(size)
    recorded, parquet, threads = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):  # the first one warms up
            recorder = RerunRecorder(Path(folder, f"run_{number}.rrd"), blueprint=False)
            began = time.thread_time()
            recorded.append(_seconds(functools.partial(_record, recorder, rollout)))
            threads.append(time.thread_time() - began)
            recorder.close()
            parquet.append(_seconds(functools.partial(_write_parquet, rollout, Path(folder, "run.parquet"))))
    return statistics.median(recorded[1:]), statistics.median(parquet[1:]), statistics.median(threads[1:])


def _record(recorder: RerunRecorder, rollout: TensorDict) -> None:
    recorder.log_rollout(rollout)
    recorder.dump()


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _rollout(size: tuple[int, int]) -> TensorDict:
    """Return a rollout of noise ``[envs, time]``, whose episodes end at random."""
    rng = torch.Generator().manual_seed(0)
    envs, steps = size
    seen = torch.randn(envs, steps + 1, 17, generator=rng)
    done = torch.rand(envs, steps, 1, generator=rng) < ENDS
    nothing = torch.zeros_like(done)
    following = {
        "observation": seen[:, 1:].clone(),
        "reward": torch.randn(envs, steps, 1, generator=rng),
        "done": done,
        "terminated": done.clone(),
    }
    root = {
        "observation": seen[:, :-1].clone(),
        "action": torch.randn(envs, steps, 6, generator=rng),
        "done": nothing,
        "terminated": nothing.clone(),
    }
    return TensorDict({**root, "next": TensorDict(following, size)}, size)


def _write_parquet(rollout: TensorDictBase, path: Path) -> None:
    """Write the arrays of a rollout, a row for each step of an environment."""
    columns = {}
    for key in (
        "observation",
        "action",
        ("next", "observation"),
        ("next", "reward"),
        ("next", "done"),
        ("next", "terminated"),
    ):
        values = rollout[key].numpy()
        flat = pa.array(values.reshape(-1))
        name = key if isinstance(key, str) else "_".join(key)
        columns[name] = flat if values.shape[-1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[-1])
    pq.write_table(pa.table(columns), path, compression="zstd")
