"""Fork processes that record the same episodes into folders, and kill each after a random step.

Run by `test_episode_faults.py`.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
from torchrl.envs import EnvBase, GymWrapper, SerialEnv

from environments import Lengths
from killed import kill_after
from servers import wait_until
from torchrl_rerun import Keep, KeepBest, KeepIf, KeepLast, RerunRecorder

RUNS = 6
AT_ONCE = 4
ENVS = 2
STEPS = 120
FLUSH_SECONDS = 0.03

KEEPS: list[Keep | None] = [None, KeepLast(3) | KeepBest(2), KeepLast(2, per_env=True), KeepIf(lambda e: e.length > 2)]


def environment(folder: Path, keep: Keep | None, **arguments) -> EnvBase:
    env = SerialEnv(ENVS, [lambda shift=shift: GymWrapper(Lengths(shift)) for shift in range(ENVS)])
    return env.append_transform(
        RerunRecorder(folder, split="episode", keep=keep, flush_seconds=FLUSH_SECONDS, blueprint=False, **arguments)
    )


def dumps(number: int) -> set[int]:
    """Return the steps before which a run dumps."""
    rng = random.Random(number)
    return {rng.randrange(STEPS) for _ in range(rng.choice([0, 3, 12]))}


def record(folder: Path, number: int, started: int, steps: int = STEPS, pause: float = 0.002) -> None:
    """Record steps, and note the times of steps and dumps in a file beside the folder."""
    env = environment(folder, KEEPS[number % len(KEEPS)], buffer_bytes=[1500, 20_000][number % 2])
    note = os.open(folder.with_suffix(".notes"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    at = dumps(number)
    tensordict = env.reset()
    for step in range(steps):
        if step in at:
            env.transform.dump()
            os.write(note, b"dump %d %d\n" % (step, time.time_ns()))
        tensordict = env.step_and_maybe_reset(env.rand_action(tensordict))[1]
        os.write(note, b"step %d %d\n" % (step + 1, time.time_ns()))
        os.write(started, b".")
        time.sleep(pause)
    env.close()
    os.write(note, b"closed %d %d\n" % (steps, time.time_ns()))


def fork(folder: Path, number: int, **how) -> tuple[int, int]:
    starting, started = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(starting)
            record(folder, number, started, **how)
        except BaseException as error:
            print(f"{folder.name}: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(0)
    os.close(started)
    return child, starting


def main(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.waitpid(fork(folder / "whole", 1)[0], 0)
    slow, _ = fork(folder / "slow", 4, steps=100_000, pause=0.02)
    for first in range(0, RUNS, AT_ONCE):
        children = [fork(folder / f"run_{i}", i) for i in range(first, first + AT_ONCE)]
        kill_after({each: rng.randint(1, STEPS * 5 // 4) for each in children}, lambda: rng.uniform(0, 0.01))
    wait_until(lambda: any((folder / "slow").glob("env_*.rrd")))
    os.kill(slow, signal.SIGKILL)
    os.waitpid(slow, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
