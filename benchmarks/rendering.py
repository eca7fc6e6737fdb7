"""Loop that records one episode in a hundred with pictures, compared with a loop that renders every step.

Four CartPoles take turns of some steps: with a recorder that renders; with TorchRL's ``PixelRenderTransform`` and a recorder
with an equal trigger; with a recorder with this trigger and no pictures; and without a recorder, for the cost of the loop.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase, GymEnv
from torchrl.record import PixelRenderTransform

from benchmarks.report import Detail, Effort, Report, Row
from torchrl_rerun import RerunRecorder

EVERY, TURN = 100, 100
TIMES_LESS = 3.0


class Loop:
    """Random steps of a CartPole.

    Args:
        env: Environment.
    """

    def __init__(self, env: EnvBase) -> None:
        self._env = env
        self._env.set_seed(0)
        self._now: TensorDictBase = self._env.reset()
        self.seconds = 0.0
        self.episodes = 1

    def go_on(self, steps: int) -> None:
        """Take a number of steps, and add their time."""
        start = time.perf_counter()
        for _ in range(steps):
            done, self._now = self._env.step_and_maybe_reset(self._env.rand_action(self._now))
            self.episodes += bool(done["next", "done"])
        self.seconds += time.perf_counter() - start

    def close(self) -> None:
        """Write waiting frames, which is part of the cost, and close the environment."""
        start = time.perf_counter()
        self._env.close()
        self.seconds += time.perf_counter() - start


def measure(effort: Effort) -> Report:
    """Take 10,000 steps of each (quick: 2,500)."""
    torch.set_num_threads(1)
    steps = effort.of(10_000, 2_500)
    with tempfile.TemporaryDirectory() as folder:
        loops = {
            "ours": Loop(_cartpole().append_transform(_recorder(Path(folder, "ours.rrd"), render=True))),
            "theirs": Loop(
                _cartpole()
                .append_transform(PixelRenderTransform())
                .append_transform(_recorder(Path(folder, "theirs.rrd")))
            ),
            "no pictures": Loop(_cartpole().append_transform(_recorder(Path(folder, "numbers.rrd")))),
            "neither": Loop(_cartpole()),
        }
        names = list(loops)
        for turn in range(steps // TURN):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                loops[name].go_on(TURN)
        for loop in loops.values():
            loop.close()
    return _report(loops, steps)


def _cartpole() -> EnvBase:
    return GymEnv("CartPole-v1", render_mode="rgb_array")


def _recorder(path: Path, *, render: bool = False) -> RerunRecorder:
    return RerunRecorder(path, render=render, episode_trigger=lambda episode: episode % EVERY == 0)


def _report(loops: dict[str, Loop], steps: int) -> Report:
    ms = {name: loop.seconds / steps * 1e3 for name, loop in loops.items()}
    ratio = ms["theirs"] / ms["ours"]
    figure = "one episode in 100 with pictures"
    row = Row(
        figure,
        f"CartPole, 400x600, {steps:,} random steps, {loops['ours'].episodes} episodes",
        f"{ms['ours']:.2f} ms a step; with PixelRenderTransform {ms['theirs']:.2f} ms",
        f"{ratio:.1f} x less",
        f">= {TIMES_LESS:.0f} x less",
        ratio >= TIMES_LESS,
        {"ratio": ratio, **{f"{name}_ms": value for name, value in ms.items()}},
    )
    return Report(
        (row,),
        (
            Detail(figure, "neither rendered nor recorded", f"{ms['neither']:.2f} ms a step"),
            Detail(figure, "recorded without pictures", f"{ms['no pictures']:.2f} ms a step"),
            Detail(figure, "beside that, with render=True", f"{ms['ours'] / ms['no pictures']:.2f} x"),
            Detail(figure, "beside that, with PixelRenderTransform", f"{ms['theirs'] / ms['no pictures']:.2f} x"),
        ),
    )
