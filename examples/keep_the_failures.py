"""Keep the failures of a policy that mostly succeeds, and drop its other episodes."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pixels without a display

import torch
from tensordict import TensorDictBase
from torchrl.envs import GymEnv, ParallelEnv

from torchrl_rerun import Episode, KeepIf, RerunRecorder

# The episode is a success if the pole stays up for four seconds.
make_env = functools.partial(
    GymEnv,
    "CartPole-v1",
    max_episode_steps=200,
    from_pixels=True,
    pixels_only=False,
    categorical_action_encoding=True,
)


def push(tensordict: TensorDictBase, distraction: float) -> TensorDictBase:
    """Push the cart under the falling pole and back to the middle; push at random in a share of the steps."""
    position, velocity, angle, spin = tensordict["observation"].unbind(-1)
    good = (angle + 0.3 * spin + 0.02 * position + 0.05 * velocity > 0).long()
    distracted = torch.rand(good.shape) < distraction
    return tensordict.set("action", torch.where(distracted, torch.randint_like(good, 2), good))


def has_failed(episode: Episode) -> bool:
    """Return whether the pole fell. Interrupted episodes have neither failed nor succeeded."""
    return episode.terminated


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--distraction", type=float, default=0.35, help="share of random steps, 0 to 1")
    parser.add_argument("--out", type=Path, default=Path("recordings/failures"))
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    recorder = RerunRecorder(
        args.out,
        keep=KeepIf(has_failed),
        skip=2,
        buffer_bytes=512 << 20,  # four episodes of raw pixels in memory: successes are never encoded
        overwrite=True,
    )
    env = ParallelEnv(4, make_env).append_transform(recorder)
    env.set_seed(0)
    policy = functools.partial(push, distraction=args.distraction)
    env.rollout(args.steps, policy, break_when_any_done=False, trust_policy=True)
    episodes = recorder.stats()["episodes"]
    env.close()

    kept = len(list(args.out.glob("*.rrd")))
    commands = Path(sys.executable).parent
    print(f"{kept} of {episodes:.0f} episodes failed, and are kept in {args.out}; to list and watch the worst:")
    print(f"    {commands / 'torchrl-rerun'} ls {args.out} --worst 5")
    print(f"    {commands / 'torchrl-rerun'} view {args.out} --worst 5")


if __name__ == "__main__":
    main()
