"""Behavioural cloning: record an expert, and train a policy on the recordings alone."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pixels without a display

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import EnvBase, GymEnv, SerialEnv
from torchrl.modules import MLP

from torchrl_rerun import RerunRecorder, list_episodes, load

make_env = functools.partial(GymEnv, "CartPole-v1", render_mode="rgb_array", categorical_action_encoding=True)


def expert(tensordict: TensorDictBase) -> TensorDictBase:
    """Push the cart under the falling pole and back to the middle."""
    position, velocity, angle, spin = tensordict["observation"].unbind(-1)
    return tensordict.set("action", (angle + 0.3 * spin + 0.02 * position + 0.1 * velocity > 0).long())


def clone(folder: Path, updates: int) -> TensorDictModule:
    """Return a policy trained on the observations and actions of recordings."""
    steps = load(folder).replay_buffer(batch_size=256, keys=["observation", "action"])
    network = MLP(in_features=4, out_features=2, num_cells=[64, 64], activation_class=nn.Tanh)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(updates):
        batch = steps.sample()
        loss = nn.functional.cross_entropy(network(batch["observation"]), batch["action"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"cloned from {len(steps)} steps; the loss is {loss.item():.3f}")
    return TensorDictModule(
        lambda observation: network(observation).argmax(-1), in_keys=["observation"], out_keys=["action"]
    )


def record(env: EnvBase, policy: object, episodes: int, folder: Path, *, render: bool) -> None:
    """Record at least ``episodes`` episodes, each to its end, with pictures if ``render``."""
    env = env.append_transform(RerunRecorder(folder, split="episode", render=render, overwrite=True))
    env.set_seed(0)
    for _ in range(-(-episodes // env.batch_size.numel())):
        env.rollout(500, policy, break_when_all_done=True, break_when_any_done=False, trust_policy=True)
    env.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--expert-episodes", type=int, default=4)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=100, help="number of episodes of the evaluation")
    parser.add_argument("--out", type=Path, default=Path("recordings/clone"))
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    teacher, learner = args.out / "expert", args.out / "clone"
    record(SerialEnv(min(4, args.expert_episodes), make_env), expert, args.expert_episodes, teacher, render=True)
    policy = clone(teacher, args.updates)
    with torch.no_grad():
        record(SerialEnv(min(20, args.episodes), make_env), policy, args.episodes, learner, render=False)

    for folder in (teacher, learner):
        returns = [found.episode.episode_return for found in list_episodes(folder).episodes]
        print(f"{folder.name}: return {np.mean(returns):.1f} +- {np.std(returns):.1f} over {len(returns)} episodes")
    print("side by side:")
    print(f"    {Path(sys.executable).parent / 'torchrl-rerun'} compare {teacher} {learner}")


if __name__ == "__main__":
    main()
