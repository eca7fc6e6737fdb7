"""Train PPO of Stable-Baselines3 on eight CartPoles, keep the best and the last episodes, and record a test run to watch."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pixels without a display

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from torchrl_rerun import KeepBest, KeepLast, list_episodes
from torchrl_rerun.wrappers.sb3 import RerunCallback, VecRerunRecorder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50_000, help="of all environments together")
    parser.add_argument("--rollout", type=int, default=128, help="steps of each environment between updates")
    parser.add_argument("--test-episodes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("recordings/sb3"))
    args = parser.parse_args(argv)

    training, test = args.out / "training", args.out / "test.rrd"
    venv = make_vec_env("CartPole-v1", n_envs=8, seed=0)
    venv = VecRerunRecorder(venv, training, keep=KeepBest(3) | KeepLast(3), overwrite=True)
    model = PPO("MlpPolicy", venv, n_steps=args.rollout, seed=0)
    model.learn(args.steps, callback=RerunCallback(venv, values=True))
    venv.close()
    for found in list_episodes(training).episodes:
        episode = found.episode
        when = "at the end" if episode.interrupted else f"after {episode['num_timesteps']:,.0f} steps"
        print(f"kept {found.path}: return {episode.episode_return:g} {when}")

    watched = make_vec_env("CartPole-v1", n_envs=1, seed=1, env_kwargs={"render_mode": "rgb_array"})
    watched = VecRerunRecorder(watched, test, render=True, overwrite=True)
    mean, deviation = evaluate_policy(model, watched, n_eval_episodes=args.test_episodes, warn=False)
    watched.close()
    print(f"test: return {mean:.1f} +- {deviation:.1f}; to watch it:")
    print(f"    {Path(sys.executable).parent / 'torchrl-rerun'} view {test}")


if __name__ == "__main__":
    main()
