"""Fork processes with transforms behind their recorder, and kill each at a given step. Run by `test_killed.py`."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from torchrl.envs import EnvBase, SerialEnv, StepCounter, Transform

from environments import Count
from killed import fork, kill_after
from torchrl_rerun import RerunRecorder
from torchrl_rerun.transform import front_end

STEPS = 120
LAST = (2, 3)
"""Steps at which processes are killed. Behind the recorder an episode is truncated at 3; at 6 others also terminate."""

MOMENTS = ("any", "written", "in front of the counter", "behind the counter")
"""Moments at which a process is killed.

- any: after ten times as many steps, at any moment
- written: after the step, when all of its frames are written
- the others: within the step, before or after the counter, and after a dump by another thread
"""


class Halts(Transform):
    """Call a function within each step."""

    def __init__(self, halt):
        super().__init__()
        self.halt = halt

    def _step(self, tensordict, next_tensordict):
        self.halt()
        return next_tensordict


def environment(recorder=None, *, in_front=None, behind=None) -> EnvBase:
    """Return two environments. One terminates episodes after 2 steps, the other truncates them after 3."""
    env: EnvBase = SerialEnv(2, [functools.partial(Count, n, truncates=True) for n in (2, 99)])
    transforms = [recorder, in_front and Halts(in_front), StepCounter(3), behind and Halts(behind)]
    for transform in transforms:
        env = env if transform is None else env.append_transform(transform)
    return env


def record(path: Path, said: int, last: int, moment: str) -> None:
    """Record steps and write a byte for each. At the last step wait for the kill, unless the moment is "any"."""
    recorder = RerunRecorder(path, buffer_bytes=3000, flush_seconds=0.01, blueprint=False)
    step = 0

    def halt() -> None:
        if step == last:
            front_end._REVISING_SECONDS = 0.05  # the dump waits so long for this step to end
            dumping = threading.Thread(target=recorder.dump)
            dumping.start()
            dumping.join()
            wait_to_be_killed()

    def wait_to_be_killed() -> None:
        os.write(said, b".")
        while True:
            signal.pause()

    halts = {"in front of the counter": {"in_front": halt}, "behind the counter": {"behind": halt}}
    env = environment(recorder, **halts.get(moment, {}))
    tensordict = env.reset()
    for step in range(1, STEPS + 1):
        if step > 1:  # a rollout doesn't reset after its last step, which is reached if the kill is late
            tensordict = env.maybe_reset(env.step_mdp(tensordict))
        tensordict = env.step(env.rand_action(tensordict))
        if step == last and moment == "written":
            while recorder.stats()["frames_waiting"]:
                time.sleep(0.001)
            wait_to_be_killed()
        os.write(said, b".")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for last in LAST:
        steps = {}
        for moment in MOMENTS:
            child = fork(folder / f"{moment}, {last}.rrd", functools.partial(record, last=last, moment=moment))
            steps[child] = last * 10 if moment == "any" else last
        kill_after(steps, lambda: 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
