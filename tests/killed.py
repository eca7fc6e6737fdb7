"""Forks processes that record the same rollouts, and kills each at a random moment. Run by `test_killed.py`."""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torchrl.envs import GymEnv, SerialEnv

from torchrl_rerun import RerunRecorder

PROCESSES = 50
AT_ONCE = 5
ROLLOUTS = 6


def environment() -> SerialEnv:
    torch.manual_seed(0)
    env = SerialEnv(2, functools.partial(GymEnv, "CartPole-v1"))
    env.set_seed(0)
    return env


def lengths() -> Iterator[tuple[int, bool]]:
    """How long each rollout is, and whether it is dumped then."""
    rng = random.Random(0)
    for _ in range(ROLLOUTS):
        yield rng.randint(1, 50), rng.random() < 0.5


def record(path: Path, started: int) -> None:
    """Records rollouts in small blocks, and notes beside the file after how many steps it was dumped."""
    env = environment().append_transform(RerunRecorder(path, buffer_bytes=40_000, flush_seconds=0.02))
    note = os.open(path.with_suffix(".dumped"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(started, b"!")
    steps = 0
    for length, dumped in lengths():
        env.rollout(length, break_when_any_done=False)
        steps += length
        if dumped:
            env.transform.dump()
            os.write(note, b"%d\n" % steps)
    env.close()
    os.write(note, b"closed\n")


def fork(path: Path) -> tuple[int, int]:
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


def main(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    torch.set_num_threads(1)
    began = time.monotonic()
    os.waitpid(fork(folder / "whole.rrd")[0], 0)
    longest = 3.0 * (time.monotonic() - began)  # they slow each other down
    for first in range(0, PROCESSES, AT_ONCE):
        children = [fork(folder / f"run_{i}.rrd") for i in range(first, min(first + AT_ONCE, PROCESSES))]
        for child, starting in children:
            os.read(starting, 1)
            os.close(starting)
        began = time.monotonic()
        for moment, child in sorted((rng.uniform(0, longest), child) for child, _ in children):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            os.kill(child, signal.SIGKILL)  # where it has ended by itself, it waits to be waited for
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
