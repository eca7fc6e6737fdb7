"""Train PPO of Stable-Baselines3 on sixteen Ants for a moment, keep the best and the worst episode, and walk around them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from torchrl_rerun import KeepBest, KeepWorst, load
from torchrl_rerun.wrappers.sb3 import VecRerunRecorder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16_000, help="of all robots together")
    parser.add_argument("--rollout", type=int, default=250, help="steps of each robot between updates")
    parser.add_argument("--out", type=Path, default=Path("recordings/robots"))
    args = parser.parse_args(argv)

    venv = make_vec_env("Ant-v5", n_envs=16, seed=0, env_kwargs={"max_episode_steps": 250})
    venv = VecRerunRecorder(venv, args.out, scene=True, keep=KeepBest(1) | KeepWorst(1), overwrite=True)
    PPO("MlpPolicy", venv, n_steps=args.rollout, batch_size=250, seed=0).learn(args.steps)
    venv.close()

    for episode in load(args.out):
        poses = episode.poses()
        # The last state is NaN: Stable-Baselines3's environments have been reset by then.
        start, *_, end, _ = poses.positions[:, poses.bodies.index("torso"), :2].round(2)
        said = episode.properties
        print(f"return {said.episode_return:.1f} in {said.length} steps: the torso went from {start} to {end}")
    print("to walk around them:")
    print(f"    {Path(sys.executable).parent / 'torchrl-rerun'} view {args.out}")


if __name__ == "__main__":
    main()
