"""Train PPO on CartPole with TorchRL's own parts, and record an evaluation every few iterations."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pixels without a display

import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers import SamplerWithoutReplacement
from torchrl.envs import ExplorationType, GymEnv, SerialEnv, set_exploration_type
from torchrl.modules import MLP, OneHotCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from torchrl_rerun import RerunRecorder

make_env = functools.partial(GymEnv, "CartPole-v1")
make_evaluation_env = functools.partial(make_env, from_pixels=True, pixels_only=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--frames-per-batch", type=int, default=1024)
    parser.add_argument("--every", type=int, default=10, help="iterations between evaluations")
    parser.add_argument("--out", type=Path, default=Path("recordings/ppo_cartpole.rrd"))
    args = parser.parse_args(argv)
    torch.manual_seed(0)

    actor = ProbabilisticActor(
        TensorDictModule(
            MLP(in_features=4, out_features=2, num_cells=[64, 64], activation_class=nn.Tanh),
            in_keys=["observation"],
            out_keys=["logits"],
        ),
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )
    critic = ValueOperator(
        MLP(in_features=4, out_features=1, num_cells=[64, 64], activation_class=nn.Tanh), in_keys=["observation"]
    )
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    buffer = ReplayBuffer(
        storage=LazyTensorStorage(args.frames_per_batch), sampler=SamplerWithoutReplacement(), batch_size=128
    )
    collector = Collector(
        SerialEnv(8, make_env),
        actor,
        frames_per_batch=args.frames_per_batch,
        total_frames=args.frames_per_batch * args.iterations,
        auto_register_policy_transforms=True,
    )

    # The environments of the evaluation: `in_keys` also names outputs of the policy.
    recorder = RerunRecorder(
        args.out,
        in_keys=["pixels", "observation", "logits", "action", "reward", "terminated", "truncated"],
        names={
            "observation": ["cart position", "cart velocity", "pole angle", "pole velocity"],
            "logits": ["left", "right"],
            "action": ["left", "right"],
        },
        overwrite=True,
    )
    evaluation = SerialEnv(2, make_evaluation_env).append_transform(recorder)

    for iteration, batch in enumerate(collector, 1):
        for _ in range(4):
            with torch.no_grad():
                advantage(batch)
            buffer.extend(batch.reshape(-1))
            for minibatch in buffer:
                terms = loss(minibatch)
                (terms["loss_objective"] + terms["loss_critic"] + terms["loss_entropy"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
        if iteration % args.every == 0:
            with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
                rollout = evaluation.rollout(500, actor, break_when_all_done=True)
            recorder.dump()  # this evaluation is durable now
            lasted = (rollout["next", "done"].cumsum(1) == 0).sum().item() / len(rollout) + 1
            print(f"iteration {iteration:3d}: the pole stood for {lasted:.0f} steps")
    collector.shutdown()
    evaluation.close()

    print(f"to watch the evaluations:\n    {Path(sys.executable).parent / 'torchrl-rerun'} view {args.out}")


if __name__ == "__main__":
    main()
