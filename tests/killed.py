"""Fork processes that record the same rollouts, and kill each after a random step. Run by `test_killed.py`."""

from __future__ import annotations

import functools
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torchrl.envs import GymEnv, SerialEnv

from torchrl_rerun import RerunRecorder

PROCESSES = 12
AT_ONCE = 4
ROLLOUTS = 6


def environment() -> SerialEnv:
    torch.manual_seed(0)
    env = SerialEnv(2, functools.partial(GymEnv, "CartPole-v1"))
    env.set_seed(0)
    return env


def lengths() -> Iterator[tuple[int, bool]]:
    """Yield the length of each rollout, and whether a dump follows it."""
    rng = random.Random(0)
    for _ in range(ROLLOUTS):
        yield rng.randint(1, 50), rng.random() < 0.5


def record(path: Path, started: int) -> None:
    """Record rollouts in small blocks. Note the steps at each dump beside the file, and write a byte for each step."""
    env = environment().append_transform(RerunRecorder(path, buffer_bytes=40_000, flush_seconds=0.02))
    note = os.open(path.with_suffix(".dumped"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    steps = 0
    for length, dumped in lengths():
        env.rollout(length, break_when_any_done=False, callback=lambda *_: os.write(started, b"."))
        steps += length
        if dumped:
            env.transform.dump()
            os.write(note, b"%d\n" % steps)
    env.close()
    os.write(note, b"closed\n")


def fork(path: Path, record: Callable[[Path, int], None] = record) -> tuple[int, int]:
    """Fork a process that records to a path. Return its id, and the pipe that gets a byte for each step."""
    starting, started = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(starting)
            record(path, started)
        except BaseException as error:
            print(f"{path.name}: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(0)
    os.close(started)
    return child, starting


def kill_after(steps: dict[tuple[int, int], int], moment: Callable[[], float]) -> None:
    """Kill each process a moment after a number of steps. A process that ends before is left alone.

    Args:
        steps: number of steps, by process id and the pipe that gets a byte for each step.
        moment: returns seconds to wait before the kill.
    """
    left = {said: [child, count] for (child, said), count in steps.items()}
    while left:
        for said in select.select(list(left), [], [])[0]:
            child, count = left[said]
            heard = len(os.read(said, 1 << 16))
            left[said][1] -= heard
            if heard and count - heard > 0:
                continue
            if heard:
                time.sleep(moment())
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(said)
            del left[said]


def main(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    torch.set_num_threads(1)
    os.waitpid(fork(folder / "whole.rrd")[0], 0)
    steps = sum(length for length, _ in lengths())
    for first in range(0, PROCESSES, AT_ONCE):
        children = [fork(folder / f"run_{i}.rrd") for i in range(first, min(first + AT_ONCE, PROCESSES))]
        kill_after({each: rng.randint(1, steps * 5 // 4) for each in children}, lambda: rng.uniform(0, 0.01))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
