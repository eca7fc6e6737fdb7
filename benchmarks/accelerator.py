"""Cost of a recorded step on the environment's thread if the data is on an accelerator. Skipped without a GPU."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.report import Detail, Effort, Report
from benchmarks.timing import Contender, take_turns
from benchmarks.workloads import PIXELS, Recorded, Sizes, Workload, robots

DEVICE = "cuda"


def measure(effort: Effort) -> Report:
    """Measure 15 rounds of 20 steps (quick: 7): 4096 robots by default and all in detail, and 16 environments with images."""
    if not torch.cuda.is_available():
        return Report((), (Detail("on an accelerator", "cost on the env's thread", "there is no GPU here"),))
    rounds = effort.of(15, 7)
    return Report(
        (),
        (
            *_details(robots(4096), "defaults", rounds),
            *_details(robots(4096), "all in detail", rounds, logged_envs="all"),
            *_details(PIXELS, "raw", rounds, image_format="raw"),
        ),
    )


def _details(sizes: Sizes, what: str, rounds: int, **options: str) -> tuple[Detail, ...]:
    workload = Workload(sizes, device=DEVICE)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of environments that are left out, or of their cost
        recorded = Recorded(workload, Path(folder, "run.rrd"), **options)
        contenders = {
            "RerunRecorder's two hooks": Contender(recorded.step, after_round=torch.cuda.synchronize),
            "copies to pinned memory, not waited for": Contender(_copies(workload), after_round=torch.cuda.synchronize),
            "copies by cpu(), which wait": Contender(_waits(workload)),
        }
        timings = take_turns(contenders, lambda _: None, rounds=rounds, steps=20)
        recorded.close()
    figure = f"on an accelerator, {sizes}, {what}"
    return tuple(Detail(figure, name, str(timing), timing.numbers(name)) for name, timing in timings.items())


def _copies(workload: Workload) -> Callable[[], None]:
    tensors = list(workload.tensors.values())
    targets = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]

    def step() -> None:
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor, non_blocking=True)

    return step


def _waits(workload: Workload) -> Callable[[], None]:
    tensors = list(workload.tensors.values())

    def step() -> None:
        for tensor in tensors:
            tensor.cpu()

    return step
