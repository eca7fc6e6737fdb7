"""Reading: time until a recording is tensors again."""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torchrl.envs import GymEnv

from benchmarks.report import Detail, Effort, Report, Row
from benchmarks.timing import mega
from benchmarks.workloads import SCALARS, Recorded, Workload, noise
from torchrl_rerun import RerunRecorder, load
from torchrl_rerun.kinds.picture import ImageFormat
from torchrl_rerun.reading.pictures import camera_tracks, stored

TIMES_PARQUET, TIMES_CODEC = 5.0, 1.25

STEPS, POOL_STEPS, PICTURES = 100_000, 2_000, 500


def measure(effort: Effort) -> Report:
    """Measure 5 rounds (quick: 3) of 100,000 steps, quick or not, and of 500 pictures in each format."""
    rounds = effort.of(5, 3)
    with tempfile.TemporaryDirectory() as folder:
        scalars = _scalars(Path(folder), rounds)
    pictures = {}
    for image_format in ("h264", "jpeg"):
        with tempfile.TemporaryDirectory() as folder:
            pictures[image_format] = _pictures(image_format, Path(folder, "run.rrd"), rounds)
    return Report(
        (_beside_parquet(scalars), *(_beside_codec(name, *found) for name, found in pictures.items())),
        (
            _detail("all keys, with the flags", scalars["everything"], scalars["parquet"]),
            _detail("to know the episodes: lengths, returns, how they ended", scalars["listing"], scalars["parquet"]),
            *(_once(name, found) for name, found in pictures.items()),
        ),
    )


def _take_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each way. The first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(took) for name, took in seconds.items()}


def _scalars(folder: Path, rounds: int) -> dict[str, float]:
    workload = Workload(SCALARS, noise(SCALARS, POOL_STEPS))
    recorded = Recorded(workload, folder / "run.rrd", blueprint=False)
    for number in range(STEPS):
        workload.renew(number)
        recorded.step()
    recorded.close()
    keys = list(SCALARS.shapes())
    # In the order of the recording: the steps of one environment after those of another.
    columns = {}
    for key in keys:
        values = np.concatenate([workload.pool[key]] * (STEPS // POOL_STEPS)).swapaxes(0, 1)
        columns[key] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[-1])
    pq.write_table(pa.table(columns), folder / "run.parquet", compression="zstd")

    def parquet() -> dict[str, torch.Tensor]:
        table = pq.read_table(folder / "run.parquet")
        flat = {key: table.column(key).combine_chunks().flatten().to_numpy() for key in keys}
        return {key: torch.tensor(values.reshape(SCALARS.envs, STEPS, -1)) for key, values in flat.items()}

    def everything() -> object:
        return load(folder / "run.rrd").rollout()

    return _take_turns(
        {
            "parquet": parquet,
            "load": lambda: load(folder / "run.rrd").rollout(keys),
            "everything": everything,
            "listing": lambda: len(load(folder / "run.rrd")),
        },
        rounds,
    )


def _beside_parquet(found: dict[str, float]) -> Row:
    ratio = found["load"] / found["parquet"]
    return Row(
        "reading scalars, beside Parquet",
        f"{SCALARS}, {STEPS:,} steps of noise ({mega(STEPS * SCALARS.step_bytes)})",
        f"{found['load']:.2f} s as tensordicts, observations twice (now and next); Parquet {found['parquet']:.2f} s",
        f"{ratio:.1f} x",
        f"<= {TIMES_PARQUET:.0f} x Parquet",
        ratio <= TIMES_PARQUET,
        {f"{name}_s": seconds for name, seconds in found.items()},
    )


def _detail(what: str, seconds: float, parquet: float) -> Detail:
    measured = f"{seconds:.2f} s, {seconds / parquet:.1f} x Parquet"
    return Detail("reading scalars, beside Parquet", what, measured, {"seconds": seconds})


def _pictures(image_format: ImageFormat, path: Path, rounds: int) -> tuple[dict[str, float], tuple[int, ...]]:
    """Return the seconds of ``load``, those of a loop with the codec over the same bytes, and the number of pictures."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    torch.manual_seed(0)
    env = GymEnv("CartPole-v1", from_pixels=True, pixels_only=False)
    rollout = env.rollout(PICTURES, break_when_any_done=False)
    env.close()
    with RerunRecorder(path, in_keys=["pixels"], image_format=image_format) as recorder:
        recorder.log_rollout(rollout)
    [track] = camera_tracks([path])
    files = [each.sample for each in stored(track)]
    shape = tuple(rollout["pixels"].shape[1:])

    def jpeg() -> object:
        return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])

    def h264() -> object:
        decoder = av.CodecContext.create("h264", "r")
        pictures: list[Any] = []
        for sample in files:
            pictures += [frame.to_ndarray(format="rgb24") for frame in decoder.decode(av.Packet(sample))]
        pictures += [frame.to_ndarray(format="rgb24") for frame in decoder.decode(None)]
        return np.stack(pictures)

    loop = {"jpeg": jpeg, "h264": h264}[image_format]
    ways: dict[str, Callable[[], object]] = {
        "codec": loop,
        "load": lambda: load(path).rollout(["pixels"]),
        "once": lambda: [episode["pixels"] for episode in load(path)],
    }
    return _take_turns(ways, rounds), (len(files), *shape)


def _once(name: str, found: tuple[dict[str, float], tuple[int, ...]]) -> Detail:
    seconds, (count, *_) = found
    measured = f"{seconds['once'] / count * 1e3:.2f} ms, {seconds['once'] / seconds['codec']:.2f} x the codec"
    return Detail(f"reading pictures, {name}, beside the codec", "each once: episode['pixels']", measured, seconds)


def _beside_codec(name: str, seconds: dict[str, float], shape: tuple[int, ...]) -> Row:
    through, codec = seconds["load"], seconds["codec"]
    library = {"jpeg": "Pillow", "h264": "PyAV"}[name]
    count = shape[0]
    return Row(
        f"reading pictures, {name}, beside the codec",
        f"{count} of {'x'.join(map(str, shape[1:]))}, CartPole",
        f"{through / count * 1e3:.2f} ms each as tensordicts; {library} in a loop {codec / count * 1e3:.2f} ms",
        f"{through / codec:.2f} x",
        f"<= {TIMES_CODEC} x the codec (ours)",
        through <= TIMES_CODEC * codec,
        {f"{name}_s": taken for name, taken in seconds.items()},
    )
