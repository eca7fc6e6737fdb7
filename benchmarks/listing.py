"""Listing many episodes: ``torchrl-rerun ls`` beside the import of Rerun, in processor time of whole processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tensordict import TensorDict

from benchmarks.report import Effort, Report, Row
from torchrl_rerun import RerunRecorder

IMPORTS, EPISODE_US = 3.0, 50.0


def measure(effort: Effort) -> Report:
    """List 10,000 episodes of two steps, three times (quick: 1,000)."""
    count = effort.of(10_000, 1_000)
    with tempfile.TemporaryDirectory() as folder:
        _record(Path(folder, "run"), count)
        imports, lists = [], []
        for _ in range(3):
            imports.append(_processor_seconds([sys.executable, "-c", "import rerun"]))
            lists.append(_processor_seconds([sys.executable, "-m", "torchrl_rerun.cli", "ls", f"{folder}/run"]))
    imported, listed = statistics.median(imports), statistics.median(lists)
    allowed = IMPORTS * imported + count * EPISODE_US / 1e6
    return Report(
        (
            Row(
                "starting: torchrl-rerun ls",
                f"{count:,} episodes",
                f"{listed:.2f} s of processor time; import rerun {imported:.2f} s",
                f"{listed / imported:.1f} x, or {(listed - IMPORTS * imported) / count * 1e6:.0f} us an episode more than {IMPORTS:.0f} x",
                f"<= {IMPORTS:.0f} x import rerun + {EPISODE_US:.0f} us an episode = {allowed:.2f} s",
                listed <= allowed,
                {"ls_s": listed, "import_s": imported},
            ),
        ),
    )


def _record(folder: Path, count: int) -> None:
    """Record episodes of two steps."""
    recorder = RerunRecorder(folder, split="episode", blueprint=False)
    steps = 2 * count
    ends = torch.arange(steps) % 2 == 1
    observed = torch.randn(steps + 1, 4)
    data = {"observation": observed[:-1], "done": torch.zeros(steps, 1, dtype=torch.bool)}
    after = {
        "observation": observed[1:],
        "reward": torch.ones(steps, 1),
        "done": ends[:, None],
        "terminated": ends[:, None],
    }
    recorder.log_rollout(TensorDict({**data, "action": torch.randn(steps, 2), "next": after}, [steps]))
    recorder.close()


def _processor_seconds(command: list[str]) -> float:
    """Return the processor time of a process, of all of its threads."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system
