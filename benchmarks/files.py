"""Files: sizes, and the time until a whole run is in a file."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import rerun as rr
import torch
from av.video.frame import PictureType
from tensordict import TensorDictBase
from torchrl.envs import GymEnv

from benchmarks.report import Detail, Effort, Report, Row
from benchmarks.thread_cost import log_each
from benchmarks.timing import NANOSECONDS, mega
from benchmarks.workloads import PIXELS, SCALARS, Recorded, Workload, grainy, noise, smooth
from torchrl_rerun import RerunRecorder
from torchrl_rerun.kinds.picture import ImageFormat
from torchrl_rerun.kinds.video import CODECS

TIMES_PARQUET, TIMES_LOG, TIMES_LZ4, TIMES_MP4 = 1.7, 20.0, 0.65, 1.1

VIDEO_FRAMES, VIDEO_FPS = 1000, 30

CHUNK_BYTES = 2 << 20
"""Bytes that LZ4 compresses at once: about the size of an image chunk."""

Pool = dict[str, npt.NDArray[Any]]


# --- size: scalars ---


def measure_scalars(effort: Effort) -> Report:
    """Measure 10,000 steps, quick or not: noise, which counts, and random walks."""
    del effort
    steps = 10_000
    sizes = {name: _scalar_sizes(make(SCALARS, steps)) for name, make in (("noise", noise), ("random walks", smooth))}
    recorded, parquet, _, raw = sizes["noise"]
    row = Row(
        "bytes on disk, numbers",
        f"{SCALARS}, {steps:,} steps of noise",
        f"{mega(recorded)}; Parquet with zstd {mega(parquet)}; raw {mega(raw)}",
        f"{recorded / parquet:.2f} x",
        f"<= {TIMES_PARQUET} x Parquet",
        recorded <= TIMES_PARQUET * parquet,
        {"rrd_bytes": recorded, "parquet_bytes": parquet, "raw_bytes": raw},
    )
    return Report(
        (row,), tuple(detail for name, found in sizes.items() for detail in _scalar_details(name, steps, found))
    )


def _scalar_sizes(pool: Pool) -> tuple[int, int, int, int]:
    """Return the bytes of the recording, of two Parquet files and of the arrays, for the steps of a pool."""
    workload = Workload(SCALARS, pool)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.rrd")
        recorded = Recorded(workload, path)
        for number in range(len(pool["reward"])):
            workload.renew(number)
            recorded.step()
        recorded.close()
        plain = _parquet(pool, Path(folder, "plain.parquet"))
        split = _parquet(pool, Path(folder, "split.parquet"), use_dictionary=False, use_byte_stream_split=True)
        return path.stat().st_size, plain, split, sum(values.nbytes for values in pool.values())


def _parquet(pool: Pool, path: Path, **options: Any) -> int:
    """Return the bytes of a Parquet file of a pool: a column for each key, a row for each step of an environment, by environment."""
    columns = {}
    for key, values in pool.items():
        flat = np.ascontiguousarray(values.swapaxes(0, 1)).reshape(-1)
        columns[key] = pa.FixedSizeListArray.from_arrays(pa.array(flat), values.shape[-1])
    pq.write_table(pa.table(columns), path, compression="zstd", **options)
    return path.stat().st_size


def _scalar_details(name: str, steps: int, found: tuple[int, int, int, int]) -> tuple[Detail, ...]:
    recorded, parquet, split, raw = found
    rows, keys = steps * SCALARS.envs, len(SCALARS.shapes())
    figure = f"bytes on disk, numbers, {name}"
    return (
        Detail(
            figure,
            "beside the raw arrays, Parquet (zstd), and Parquet (zstd, bytes split)",
            f"{recorded / raw:.2f} x, {recorded / parquet:.2f} x, {recorded / split:.2f} x",
            {"rrd_bytes": recorded, "parquet_bytes": parquet, "parquet_split_bytes": split, "raw_bytes": raw},
        ),
        Detail(
            figure,
            f"per environment step, and per row of its {keys} keys (flags, return and five timelines come on top)",
            f"{recorded / rows:.1f} and {recorded / rows / keys:.1f} bytes; raw {raw / rows:.1f}; "
            f"Parquet {parquet / rows:.1f}",
        ),
    )


# --- time: images ---


def measure_end_to_end(effort: Effort) -> Report:
    """Measure 5 rounds of 500 steps (quick: 2). The row beside rr.log has noise; the row beside LZ4 has compressible images.

    LZ4 doesn't compress noise, and copies it in memory faster than any file can be written.
    """
    steps = 500
    pools = {"noise": noise(PIXELS, 64), "grainy images": grainy(PIXELS, 64), "flat images": smooth(PIXELS, 64)}
    found = {name: _end_to_end(pool, steps, rounds=effort.of(5, 2)) for name, pool in pools.items()}
    return Report(
        (_beside_log(found["noise"], "noise", steps), _beside_lz4(found["grainy images"], "grainy images", steps)),
        _end_to_end_details(found),
    )


class _Ways:
    """Ways to record, timed end to end. Each returns the bytes on disk, or in memory for LZ4 alone."""

    def __init__(self, workload: Workload, steps: int, path: Path) -> None:
        self._workload = workload
        self._steps = steps
        self._path = path

    def recorder(self) -> tuple[float, int]:
        """Record from the first step until ``dump()`` returns."""
        recorded = Recorded(self._workload, self._path, image_format="raw")
        seconds = self._seconds(recorded.step, recorded.recorder.dump)
        size = self._path.stat().st_size
        recorded.close()
        return seconds, size

    def recorder_to_the_end(self) -> tuple[float, int]:
        """Record from the first step until ``close()`` returns, with footer and layout."""
        recorded = Recorded(self._workload, self._path, image_format="raw")
        seconds = self._seconds(recorded.step, recorded.close)
        return seconds, self._path.stat().st_size

    def log(self) -> tuple[float, int]:
        """Call ``rr.log`` for each key and environment, until ``flush()`` returns."""
        stream = rr.RecordingStream("benchmarks")
        stream.save(self._path)
        seconds = self._seconds(log_each(self._workload, stream), lambda: stream.flush(timeout_sec=60.0))
        size = self._path.stat().st_size
        stream.disconnect()
        return seconds, size

    def lz4(self) -> tuple[float, int]:
        """Compress the bytes in memory with LZ4 of pyarrow, one environment after another."""
        pool = self._workload.pool
        repeats = self._steps // len(pool["reward"]) + 1
        columns = [np.concatenate([values] * repeats)[: self._steps] for values in pool.values()]
        per_env = [np.ascontiguousarray(column.swapaxes(0, 1)).reshape(-1).view(np.uint8) for column in columns]
        codec = pa.Codec("lz4")
        size = 0
        start = time.perf_counter()
        for column in per_env:
            for at in range(0, len(column), CHUNK_BYTES):
                size += len(codec.compress(pa.py_buffer(column[at : at + CHUNK_BYTES])))
        return time.perf_counter() - start, size

    def _seconds(self, step: Callable[[], object], finish: Callable[[], object]) -> float:
        renewing = 0
        start = time.perf_counter_ns()
        for number in range(self._steps):
            before = time.perf_counter_ns()
            self._workload.renew(number)
            renewing += time.perf_counter_ns() - before
            step()
        finish()
        return (time.perf_counter_ns() - start - renewing) / NANOSECONDS


def _end_to_end(pool: Pool, steps: int, *, rounds: int) -> dict[str, tuple[float, int]]:
    """Return the median seconds and the bytes of each way. The first round warms up."""
    workload = Workload(PIXELS, pool)
    seconds: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.rrd")
        ways = _Ways(workload, steps, path)
        for number in range(1 + rounds):
            for name in ("recorder", "recorder_to_the_end", "log", "lz4"):
                took, sizes[name] = getattr(ways, name)()
                path.unlink(missing_ok=True)
                if number:
                    seconds.setdefault(name, []).append(took)
    return {name: (statistics.median(took), sizes[name]) for name, took in seconds.items()}


def _beside_log(found: dict[str, tuple[float, int]], pool: str, steps: int) -> Row:
    recorder, log = found["recorder"][0], found["log"][0]
    return Row(
        "record and dump, end to end, beside rr.log",
        f"{PIXELS}, raw, {steps} steps of {pool} ({mega(steps * PIXELS.step_bytes)})",
        f"{recorder:.2f} s; rr.log {log:.2f} s",
        f"{log / recorder:.1f} x faster",
        f">= {TIMES_LOG:.0f} x faster",
        log / recorder >= TIMES_LOG,
        {f"{name}_s": seconds for name, (seconds, _) in found.items()},
    )


def _beside_lz4(found: dict[str, tuple[float, int]], pool: str, steps: int) -> Row:
    recorder, lz4 = found["recorder"][0], found["lz4"][0]
    return Row(
        "record and dump, end to end, beside LZ4",
        f"{PIXELS}, raw, {steps} steps of {pool} ({mega(steps * PIXELS.step_bytes)})",
        f"{recorder:.2f} s; LZ4 in memory {lz4:.2f} s",
        f"{lz4 / recorder:.2f} of its speed",
        f">= {TIMES_LZ4} of its speed",
        lz4 / recorder >= TIMES_LZ4,
        {f"{name}_s": seconds for name, (seconds, _) in found.items()},
    )


_END_TO_END = {
    "recorder": "RerunRecorder, until dump() returns",
    "recorder_to_the_end": "RerunRecorder, until close() returns: with footer and layout",
    "log": "rr.log, until flush() returns",
    "lz4": f"pyarrow's LZ4 in pieces of {mega(CHUNK_BYTES)}, in memory",
}


def _end_to_end_details(found: dict[str, dict[str, tuple[float, int]]]) -> tuple[Detail, ...]:
    return tuple(
        Detail(
            f"record and dump, end to end, {pixels}",
            what,
            f"{ways[name][0]:.2f} s, {mega(ways[name][1])}; {ways[name][0] / ways['recorder'][0]:.2f} x",
            {"seconds": ways[name][0], "bytes": ways[name][1]},
        )
        for pixels, ways in found.items()
        for name, what in _END_TO_END.items()
    )


# --- size: video ---


def measure_video(effort: Effort) -> Report:
    """Record 1000 frames of CartPole, quick or not, as H.264 and as JPEG, and as an mp4 with equal settings."""
    del effort
    rollouts = _cartpole(VIDEO_FRAMES)
    pictures = [picture for rollout in rollouts for picture in _pictures(rollout)]
    raw = sum(picture.nbytes for picture in pictures)
    with tempfile.TemporaryDirectory() as folder:
        h264 = _recorded_as("h264", rollouts, Path(folder, "h264.rrd"))
        jpeg = _recorded_as("jpeg", rollouts, Path(folder, "jpeg.rrd"))
        mp4 = _mp4(rollouts, Path(folder, "run.mp4"))
    size = f"{VIDEO_FRAMES} frames of {pictures[0].shape[0]}x{pictures[0].shape[1]}"
    row = Row(
        "file size, video",
        f"{size}, CartPole in {len(rollouts)} episodes, h264",
        f"{mega(h264.whole)} with footer and layout; mp4 {mega(mp4.whole)}",
        f"{h264.whole / mp4.whole:.2f} x",
        f"<= {TIMES_MP4} x the mp4",
        h264.whole <= TIMES_MP4 * mp4.whole,
        {"rrd_bytes": h264.whole, "mp4_bytes": mp4.whole},
    )
    figure = f"file size, video, {size}"
    return Report(
        (row,),
        tuple(
            Detail(
                figure,
                what,
                f"{mega(video.whole)}, {raw / video.whole:.0f} x less than raw; "
                f"{video.seconds / VIDEO_FRAMES * 1e3:.2f} ms a frame",
            )
            for what, video in (
                ("h264: from the first frame until dump() returns", h264),
                ("jpeg: likewise", jpeg),
                ("mp4: encoded and muxed with PyAV", mp4),
            )
        ),
    )


class _Video(NamedTuple):
    seconds: float
    whole: int


def _cartpole(frames: int) -> list[TensorDictBase]:
    """Return episodes of random actions with a number of frames in all."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    torch.manual_seed(0)
    env = GymEnv("CartPole-v1", from_pixels=True, pixels_only=False)
    env.set_seed(0)
    rollouts: list[TensorDictBase] = []
    while frames > 0:
        rollout = env.rollout(max(1, frames - 1))
        rollouts.append(rollout)
        frames -= len(rollout) + 1
    env.close()
    return rollouts


def _pictures(rollout: TensorDictBase) -> list[npt.NDArray[np.uint8]]:
    return [*rollout["pixels"][:1].numpy(), *rollout["next", "pixels"].numpy()]


def _recorded_as(image_format: ImageFormat, rollouts: list[TensorDictBase], path: Path) -> _Video:
    with RerunRecorder(path, in_keys=["pixels"], image_format=image_format, fps=VIDEO_FPS) as recorder:
        start = time.perf_counter()
        for rollout in rollouts:
            recorder.log_rollout(rollout)
        recorder.dump()
        seconds = time.perf_counter() - start
    return _Video(seconds, path.stat().st_size)


def _mp4(rollouts: list[TensorDictBase], path: Path) -> _Video:
    """Write frames into an mp4 with PyAV and the recorder's settings."""
    start = time.perf_counter()
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS["h264"].encoder, rate=VIDEO_FPS, options=dict(CODECS["h264"].options))
        assert isinstance(stream, av.VideoStream)
        stream.gop_size, stream.max_b_frames, stream.thread_count = VIDEO_FPS, 0, 1
        stream.height, stream.width, _ = rollouts[0]["pixels"].shape[1:]
        stream.pix_fmt = "yuv420p"
        for rollout in rollouts:
            for number, picture in enumerate(_pictures(rollout)):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pict_type = PictureType.NONE if number else PictureType.I
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return _Video(time.perf_counter() - start, path.stat().st_size)
