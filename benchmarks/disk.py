"""Size of recordings: bytes for each step of an environment, with all keys of its specs."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torchrl.envs import GymEnv

from benchmarks.report import DISK_USE_OF, Detail, Effort, Report, Row
from benchmarks.timing import mega
from benchmarks.training import ENVS, FRAMES, Training
from torchrl_rerun import RerunRecorder
from torchrl_rerun.kinds.picture import ImageFormat
from torchrl_rerun.rrd.reader import parts_in

TRAINED_ITERATIONS, MOST_BYTES_A_STEP = 98, 150

FORMATS: tuple[ImageFormat, ...] = ("av1", "h264", "jpeg", "png", "raw")


def measure(effort: Effort) -> Report:
    """Record 5000 random steps of CartPole (quick: 1000) in each image format, and without pictures."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    steps = effort.of(5000, 1000)
    found = {"CartPole, numbers alone": _bytes_a_step(steps, "raw", is_seen=False)}
    for image_format in FORMATS:
        found[f'CartPole with pixels of 400 x 600, `"{image_format}"`'] = _bytes_a_step(
            steps, image_format, is_seen=True
        )
    details = (
        Detail(f"{DISK_USE_OF}{name}", what, measured, {"bytes_a_step": size})
        for name, size in found.items()
        for what, measured in (("bytes a step", f"{size:,.0f}"), ("a million steps", f"{size / 1e3:.1f} GB"))
    )
    return Report((), tuple(details))


def measure_training(effort: Effort) -> Report:
    """Measure the recording of a PPO training of 100,000 steps, quick or not."""
    del effort
    torch.set_num_threads(1)
    steps = TRAINED_ITERATIONS * FRAMES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.rrd")
        training = Training(RerunRecorder(path))
        for _ in range(TRAINED_ITERATIONS):
            training.iterate()
        training.close()
        size = path.stat().st_size
        [part] = parts_in(path)
    figure = "bytes on disk, small envs"
    row = Row(
        figure,
        f"CartPole, {ENVS} envs, {steps:,} steps in PPO, all keys",
        f"{mega(size)}; {size / steps:.0f} bytes a step of an environment",
        "",
        f"<= {MOST_BYTES_A_STEP} bytes a step",
        size <= MOST_BYTES_A_STEP * steps,
        {"bytes": size, "bytes_a_step": size / steps},
    )
    seconds = sum(training.seconds)
    detail = Detail(
        figure,
        "steps of an environment a second, and chunks: a block is written when it is 5 s old",
        f"{steps / ENVS / seconds:,.0f} and {len(part.index):,}",
        {"steps_a_second": steps / ENVS / seconds, "chunks": len(part.index)},
    )
    return Report((row,), (detail,))


def _bytes_a_step(steps: int, image_format: ImageFormat, *, is_seen: bool) -> float:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.rrd")
        env = GymEnv("CartPole-v1", from_pixels=is_seen, pixels_only=False) if is_seen else GymEnv("CartPole-v1")
        env.set_seed(0)
        env = env.append_transform(RerunRecorder(path, image_format=image_format))
        env.rollout(steps, break_when_any_done=False)
        env.close()
        return path.stat().st_size / steps
