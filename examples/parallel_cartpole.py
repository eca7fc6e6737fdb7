"""Record four CartPoles in worker processes, with pixels. `make demo` runs this script."""

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

from torchrl_rerun import RerunRecorder

make_env = functools.partial(
    GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False, categorical_action_encoding=True
)


class Push:
    """Policy that pushes the cart under the falling pole, with more random steps in each further environment."""

    distraction = torch.tensor([0.1, 0.35, 0.6, 1.0])

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        _, _, angle, speed = tensordict["observation"].unbind(-1)
        good = (angle + 0.3 * speed > 0).long()
        distracted = torch.rand(good.shape) < self.distraction[: len(good)]
        return tensordict.set("action", torch.where(distracted, torch.randint_like(good, 2), good))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("recordings/parallel_cartpole.rrd"))
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    env = ParallelEnv(4, make_env).append_transform(RerunRecorder(args.out, overwrite=True))
    env.set_seed(0)
    env.rollout(args.steps, Push(), break_when_any_done=False, trust_policy=True)
    env.close()

    print(f"recorded {args.steps} steps of 4 environments to {args.out}; to watch them:")
    print(f"    {Path(sys.executable).parent / 'torchrl-rerun'} view {args.out}")


if __name__ == "__main__":
    main()
