"""Record a simulator that takes the whole process down, and look at the last steps before it did."""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pixels without a display

import gymnasium as gym
import torch
from torchrl.envs import GymWrapper

from torchrl_rerun import RerunRecorder, load


class Crashes(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole whose simulator reads memory that isn't there, at some step."""

    def __init__(self, crash_after: int) -> None:
        super().__init__(gym.make("CartPole-v1", render_mode="rgb_array"))
        self.left = crash_after

    def step(self, action: Any) -> Any:
        if not self.left:
            ctypes.string_at(0)  # no exception: a segmentation fault
        self.left -= 1
        return super().step(action)


def train(out: Path, crash_after: int) -> None:
    """Record until the simulator crashes. Nothing is dumped, and nobody closes the recording."""
    torch.manual_seed(0)
    env = GymWrapper(Crashes(crash_after), from_pixels=True, pixels_only=False)
    env = env.append_transform(RerunRecorder(out, overwrite=True))
    env.set_seed(0)
    env.rollout(10 * crash_after, break_when_any_done=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crash-after", type=int, default=300, help="steps that the simulator makes before it crashes")
    parser.add_argument("--out", type=Path, default=Path("recordings/crash.rrd"))
    args = parser.parse_args(argv)

    process = multiprocessing.get_context("spawn").Process(target=train, args=(args.out, args.crash_after))
    process.start()
    process.join()

    episodes = load(args.out)
    last = episodes[-1].tensordict(["observation", "action", "pixels"])
    steps = sum(episode.properties.length for episode in episodes)
    position, _, angle, _ = last["next", "observation"][-1].tolist()
    print(f"the process ended with status {process.exitcode}; {steps} steps are in {args.out}")
    print(f"before the crash the cart was at {position:.3f}, and the pole at {angle:.3f} rad. To watch it:")
    print(f"    {Path(sys.executable).parent / 'torchrl-rerun'} view {args.out}")


if __name__ == "__main__":
    main()
