"""Keep the failures of a policy that mostly succeeds, in a plain loop over a Gymnasium environment. No torch is needed."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pixels without a display

import gymnasium as gym
import numpy as np

from torchrl_rerun import Episode, KeepIf
from torchrl_rerun.wrappers import RecordRerun


def has_failed(episode: Episode) -> bool:
    """Return whether the pole fell. Interrupted episodes have neither failed nor succeeded."""
    return episode.terminated


def push(observation: np.ndarray, distraction: float, rng: np.random.Generator) -> int:
    """Push the cart under the falling pole and back to the middle; push at random in a share of the steps."""
    if rng.random() < distraction:
        return int(rng.integers(2))
    position, velocity, angle, spin = observation
    return int(angle + 0.3 * spin + 0.02 * position + 0.05 * velocity > 0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--distraction", type=float, default=0.35, help="share of random steps, 0 to 1")
    parser.add_argument("--out", type=Path, default=Path("recordings/gymnasium_failures"))
    args = parser.parse_args(argv)

    # The episode is a success if the pole stays up for four seconds.
    env = gym.make("CartPole-v1", max_episode_steps=200, render_mode="rgb_array")
    env = RecordRerun(env, args.out, render=True, keep=KeepIf(has_failed), skip=2, overwrite=True)
    rng = np.random.default_rng(0)
    for episode in range(args.episodes):
        observation, _ = env.reset(seed=episode)
        terminated = truncated = False
        while not (terminated or truncated):
            observation, _, terminated, truncated, _ = env.step(push(observation, args.distraction, rng))
        env.annotate(cart_position=float(observation[0]))
    env.close()

    kept = len(list(args.out.glob("*.rrd")))
    command = Path(sys.executable).parent / "torchrl-rerun"
    print(f"{kept} of {args.episodes} episodes failed, and are kept in {args.out}; to list and watch the worst:")
    print(f"    {command} ls {args.out} --worst 5")
    print(f"    {command} view {args.out} --worst 5")


if __name__ == "__main__":
    main()
