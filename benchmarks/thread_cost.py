"""Cost of a recorded step on the environment's thread, compared with a copy of its bytes and with other recorders.

Contenders record 16 equal environments with images, in rounds of a few steps, one contender after another. Only the hooks are
timed. Pauses between rounds let background threads of a contender finish, so that they don't compete with the next one.

Torch has one thread, since its threads wait for one another for milliseconds on a busy machine. ``VideoRecorder`` is also timed
with all threads, and the better result counts.
"""

from __future__ import annotations

import sys
import tempfile
import types
import unittest.mock
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import rerun as rr
import torch
from gymnasium.wrappers.vector import RecordVideo
from torchrl.record import VideoRecorder
from torchrl.record.loggers import CSVLogger

from benchmarks.report import Detail, Effort, Report, Row
from benchmarks.timing import Contender, Timings, micro, take_turns
from benchmarks.workloads import PIXELS, SCALARS, Hooked, Recorded, Workload, copy_into_ring
from torchrl_rerun.blocks.memory import Heap
from torchrl_rerun.writing import file

BUFFER_BYTES = 64 << 20  # the recorder's default

COPIES, ADDED_US, TIMES_VIDEO = 1.25, 20.0, 15.0
SMALL_US, WITH_BOX = 15.0, 1.05


def measure(effort: Effort) -> Report:
    """Measure 15 rounds of 20 steps (quick: 7)."""
    workload = Workload(PIXELS)
    with tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(workload, Path(folder))
        _fill_buffer(contenders["recorder"], workload)
        _fill_buffer(contenders["recorder without a black box"], workload)
        timings = take_turns(contenders, workload.renew, rounds=effort.of(15, 7), steps=20)
        contenders["rr.log"].after_round()
        del contenders
        small = _time_small_rows(Path(folder), rounds=effort.of(20, 7))
    return Report((*_rows(timings), _small_row(small)), _details(timings))


def _time_small_rows(folder: Path, *, rounds: int) -> Timings:
    """Time the hooks of environments with small rows, warm: steps follow one another."""
    workload = Workload(SCALARS)
    recorded = Recorded(workload, folder / "small.rrd")
    contenders = {"recorder": Contender(recorded.step)}
    return take_turns(contenders, workload.renew, rounds=rounds, steps=500, pause=0.05)["recorder"]


def _without_black_box(workload: Workload, path: Path) -> Recorded:
    """Return a recorder whose blocks lie in memory."""
    with unittest.mock.patch.object(file, "BlackBox", return_value=Heap()):
        return Recorded(workload, path, image_format="raw")


def _small_row(timing: Timings) -> Row:
    return Row(
        "small rows, on the env's thread",
        f"{SCALARS}, flags, warm",
        f"{timing}",
        micro(timing.median),
        f"<= {SMALL_US:.0f} us",
        timing.median <= SMALL_US,
        timing.numbers("small_rows"),
    )


def _contenders(workload: Workload, folder: Path) -> dict[str, Contender]:
    recorded = Recorded(workload, folder / "recorder.rrd", image_format="raw")
    video = VideoRecorder(CSVLogger("video", str(folder)), tag="video", skip=1)
    record_video = Hooked(workload, video).step
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gym = _record_video(workload, folder / "gym")
    stream = rr.RecordingStream("benchmarks")
    stream.save(folder / "log.rrd")
    return {
        "copy": Contender(copy_into_ring(workload, BUFFER_BYTES)),
        "copy in cache": Contender(copy_into_ring(workload, 1)),
        "recorder": Contender(recorded.step),
        "recorder without a black box": Contender(_without_black_box(workload, folder / "no_box.rrd").step),
        # These three keep their frames, as until the dump of an episode, and never encode them. If frames were dropped after
        # each round, these contenders would reuse warm memory.
        "VideoRecorder": Contender(record_video),
        "VideoRecorder, all threads": Contender(
            record_video,
            before_round=lambda: torch.set_num_threads(threads),
            after_round=lambda: torch.set_num_threads(1),
        ),
        "RecordVideo": Contender(lambda: gym.step(None)),
        "rr.log": Contender(log_each(workload, stream), after_round=stream.flush),
    }


def _fill_buffer(contender: Contender, workload: Workload) -> None:
    """Fill the recorder's memory three times, so that all pages are allocated before the measurement."""
    for number in range(3 * BUFFER_BYTES // PIXELS.step_bytes):
        workload.renew(number)
        contender.step()


def log_each(workload: Workload, stream: rr.RecordingStream) -> Any:
    """Log a step with the SDK: the time once, then each key of each environment."""
    frame = 0
    numbers = [key for key in workload.arrays if key != "pixels"]

    def step() -> None:
        nonlocal frame
        stream.set_time("frame", sequence=frame)
        frame += 1
        for env in range(workload.sizes.envs):
            if "pixels" in workload.arrays:
                stream.log(f"env_{env}/pixels", rr.Image(workload.arrays["pixels"][env]))
            for key in numbers:
                stream.log(f"env_{env}/{key}", rr.Scalars(workload.arrays[key][env]))

    return step


class _InstantVector(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Vector environment of gymnasium whose steps take no time, with finished frames."""

    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP, "render_fps": 30}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, workload: Workload) -> None:
        self.num_envs = workload.sizes.envs
        self._frames = list(workload.arrays["pixels"])
        self._arrays = workload.arrays
        self._none = np.zeros(self.num_envs, bool)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return self._arrays["observation"], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return self._arrays["observation"], self._arrays["reward"], self._none, self._none, {}

    def render(self) -> Any:
        return self._frames


def _record_video(workload: Workload, folder: Path) -> RecordVideo[Any, Any]:
    # `RecordVideo` needs moviepy for encoding alone, which never happens here; moviepy needs another version of pillow.
    sys.modules.setdefault("moviepy", types.ModuleType("moviepy"))
    env = RecordVideo(_InstantVector(workload), str(folder), episode_trigger=lambda _: True)
    env.reset()
    return env


def _rows(timings: dict[str, Timings]) -> tuple[Row, ...]:
    recorder, copy, without = timings["recorder"], timings["copy"], timings["recorder without a black box"]
    video = min((timings["VideoRecorder"], timings["VideoRecorder, all threads"]), key=lambda timing: timing.median)
    allowed = COPIES * copy.median + ADDED_US
    times_video = video.median / recorder.median
    workload = f"{PIXELS}, raw"
    numbers = {key: value for name, timing in timings.items() for key, value in timing.numbers(name).items()}
    return (
        Row(
            "cost on the env's thread, beside memcpy",
            workload,
            f"{micro(recorder.median)} a step; memcpy {micro(copy.median)}",
            f"{recorder.median / copy.median:.2f} x",
            f"<= {COPIES} x memcpy + {ADDED_US:.0f} us = {micro(allowed)}",
            recorder.median <= allowed,
            numbers,
        ),
        Row(
            "black box, on the env's thread",
            workload,
            f"{micro(recorder.median)} a step; without {micro(without.median)}",
            f"{recorder.median / without.median:.2f} x",
            f"<= {WITH_BOX} x",
            recorder.median <= WITH_BOX * without.median,
        ),
        Row(
            "cost on the env's thread, beside VideoRecorder(skip=1)",
            workload,
            f"{micro(recorder.median)} a step; VideoRecorder {micro(video.median)}",
            f"{times_video:.1f} x less",
            f">= {TIMES_VIDEO:.0f} x less",
            times_video >= TIMES_VIDEO,
        ),
    )


_REMARKS = {
    "copy": f"np.copyto into a ring of {BUFFER_BYTES >> 20} MiB, touched before",
    "copy in cache": "np.copyto into the same place each time, which stays in the cache",
    "recorder": "RerunRecorder's two hooks",
    "recorder without a black box": "the same, with blocks in memory that is gone with the process",
    "VideoRecorder": "TorchRL's; pixels only, into one grid; encoding not included",
    "VideoRecorder, all threads": "the same, with as many threads as torch takes by itself",
    "RecordVideo": "gymnasium.wrappers.vector's; pixels only, into one grid; encoding not included",
    "rr.log": "set_time, then rr.Image or rr.Scalars per key and environment, to a file",
}


def _details(timings: dict[str, Timings]) -> tuple[Detail, ...]:
    recorder = timings["recorder"].median
    return tuple(
        Detail("cost on the env's thread", f"{name}: {_REMARKS[name]}", f"{timing}; {timing.median / recorder:.2f} x")
        for name, timing in timings.items()
    )
