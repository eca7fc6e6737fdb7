"""What one recorded step costs on the environment's thread, beside a copy of its bytes and beside other recorders.

Each contender is given the same 16 environments with images, in rounds of a few steps, one contender after the other. The
hooks alone are timed, so nothing of the environment is. Between rounds there are pauses: what a contender leaves to a
thread in the background is done there, and doesn't share the processor with what is timed next.

Torch has one thread: on a busy machine its threads wait for one another for milliseconds. ``VideoRecorder`` is timed with
all of them too, and the better of the two counts.
"""

from __future__ import annotations

import sys
import tempfile
import types
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
from benchmarks.workloads import PIXELS, Hooked, Recorded, Workload, copy_into_ring

BUFFER_BYTES = 64 << 20  # the recorder's default

COPIES, ADDED_US, TIMES_VIDEO = 1.5, 20.0, 15.0


def measure(effort: Effort) -> Report:
    """15 rounds of 20 steps; quick: 7 of them."""
    workload = Workload(PIXELS)
    with tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(workload, Path(folder))
        _fill_buffer(contenders["recorder"], workload)
        timings = take_turns(contenders, workload.renew, rounds=effort.of(15, 7), steps=20)
        contenders["rr.log"].after_round()
        del contenders
    return Report(_rows(timings), _details(timings))


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
        # The frames of these three are kept, as they are until an episode is dumped, and never encoded. To drop them after
        # each round would let them have the same warm memory again and again.
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
    """Three times round the recorder's memory, so that all of it was touched before anything is timed."""
    for number in range(3 * BUFFER_BYTES // PIXELS.step_bytes):
        workload.renew(number)
        contender.step()


def log_each(workload: Workload, stream: rr.RecordingStream) -> Any:
    """A step as one would log it by hand: the time once, then each key of each environment."""
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
    """Gymnasium's counterpart of :class:`benchmarks.workloads.Instant`; its frames are there already."""

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
    # It wants moviepy for the encoding alone, which is never reached here; moviepy wants a pillow of its own.
    sys.modules.setdefault("moviepy", types.ModuleType("moviepy"))
    env = RecordVideo(_InstantVector(workload), str(folder), episode_trigger=lambda _: True)
    env.reset()
    return env


def _rows(timings: dict[str, Timings]) -> tuple[Row, ...]:
    recorder, copy = timings["recorder"], timings["copy"]
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
