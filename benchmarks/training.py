"""Live training loop, with and without recording.

Several PPO trainings take turns of one iteration, with equal random numbers: one that records all keys of its eight CartPoles
step by step, one that records its batches (``postproc``), two without recording, whose difference is the noise of the machine,
one with a transform that does nothing, and one with a transform that only views the values as arrays. All do equal work, and the benchmark checks that recording doesn't change the
learned parameters. The processor time of the environment's thread is compared: the clock differs by more from run to run.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers import SamplerWithoutReplacement
from torchrl.envs import EnvBase, GymEnv, RewardSum, SerialEnv, Transform
from torchrl.modules import MLP, OneHotCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from benchmarks.report import Detail, Effort, Report, Row
from torchrl_rerun import RerunRecorder

ENVS, FRAMES = 8, 1024
SLOWER = 1.01
WARM_UP = 3


class Looking(Transform):  # type: ignore[misc]
    """Transform that views the values of each step as arrays, and does nothing with them."""

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        return _looked_at(tensordict)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        del tensordict
        return _looked_at(next_tensordict)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        del tensordict
        return _looked_at(tensordict_reset)


def _looked_at(tensordict: TensorDictBase) -> TensorDictBase:
    for value in tensordict.values():
        value.numpy()
    return tensordict


class Training:
    """PPO on eight CartPoles.

    Args:
        last: Last transform of the environment, such as the recorder. Default: None, no further transform.
        postproc: Recorder that gets the batches. Default: None.
    """

    def __init__(self, last: Transform | None, postproc: RerunRecorder | None = None) -> None:
        torch.manual_seed(0)
        actor, critic = _actor(), _critic()
        self._advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
        self._loss = ClipPPOLoss(actor, critic, entropy_coeff=0.01)
        self._optimizer = torch.optim.Adam(self._loss.parameters(), lr=1e-3)
        self._buffer = ReplayBuffer(
            storage=LazyTensorStorage(FRAMES), sampler=SamplerWithoutReplacement(), batch_size=128
        )
        # A training has transforms in any case. The first one costs a clone of each tensordict, made by TorchRL.
        env: EnvBase = SerialEnv(ENVS, functools.partial(GymEnv, "CartPole-v1")).append_transform(RewardSum())
        env.set_seed(0)
        if last is not None:
            env = env.append_transform(last)
        self._collector = Collector(
            env,
            actor,
            frames_per_batch=FRAMES,
            total_frames=-1,
            auto_register_policy_transforms=True,
            postproc=postproc,
        )
        self._batches = iter(self._collector)
        self._random = torch.get_rng_state()
        self.seconds: list[float] = []
        self.episodes = 0

    def iterate(self) -> None:
        """Collect and learn once, and note the time."""
        torch.set_rng_state(self._random)
        start = time.thread_time()
        batch = next(self._batches)
        self._learn(batch)
        self.seconds.append(time.thread_time() - start)
        self._random = torch.get_rng_state()
        self.episodes += int(batch["next", "done"].sum())

    def _learn(self, batch: Any) -> None:
        for _ in range(4):
            with torch.no_grad():
                self._advantage(batch)
            self._buffer.extend(batch.reshape(-1))
            for minibatch in self._buffer:
                terms = self._loss(minibatch)
                (terms["loss_objective"] + terms["loss_critic"] + terms["loss_entropy"]).backward()
                nn.utils.clip_grad_norm_(self._loss.parameters(), 0.5)
                self._optimizer.step()
                self._optimizer.zero_grad()

    def learned(self) -> torch.Tensor:
        """Return all parameters."""
        return nn.utils.parameters_to_vector(self._loss.parameters()).detach()

    def close(self) -> None:
        """Close the environments and the recording."""
        self._collector.shutdown()


def measure(effort: Effort) -> Report:
    """Measure 20 iterations of 1024 frames after 3 of warm-up (quick: 10)."""
    torch.set_num_threads(1)  # small networks: otherwise, waiting threads would dominate the measurement
    iterations = WARM_UP + effort.of(20, 10)
    with tempfile.TemporaryDirectory() as folder:
        trainings = {
            "recording": Training(RerunRecorder(Path(folder, "run.rrd"))),
            "batches": Training(None, RerunRecorder(Path(folder, "batches.rrd"))),
            "not": Training(None),
            "not either": Training(None),
            "idle": Training(Transform()),
            "looking": Training(Looking()),
        }
        names = list(trainings)
        for number in range(iterations):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                trainings[name].iterate()
        learned = trainings["not"].learned()
        same = all(torch.equal(trainings[name].learned(), learned) for name in ("recording", "batches"))
        for training in trainings.values():
            training.close()
        size = Path(folder, "run.rrd").stat().st_size
    return _report(trainings, same=same, size=size)


def _report(trainings: dict[str, Training], *, same: bool, size: int) -> Report:
    seconds = {name: training.seconds[WARM_UP:] for name, training in trainings.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    without = [statistics.mean(pair) for pair in zip(seconds["not"], seconds["not either"], strict=True)]
    ratio, floor = _ratio(seconds["recording"], seconds["idle"]), _ratio(seconds["not either"], seconds["not"])
    idle, batches = _ratio(seconds["idle"], without), _ratio(seconds["batches"], without)
    looking = _ratio(seconds["looking"], seconds["idle"])
    steps = FRAMES // ENVS
    figure = "a live training loop"
    workload = f"PPO on {ENVS} CartPoles, all keys, {len(seconds['not'])} iterations of {FRAMES} frames"
    row = Row(
        figure,
        workload,
        f"{medians['recording'] * 1e3:.0f} ms an iteration; with a transform that does nothing {medians['idle'] * 1e3:.0f} ms",
        f"{ratio:.3f} x",
        f"<= {SLOWER} x",
        ratio <= SLOWER,
        {
            "ratio": ratio,
            "noise_ratio": floor,
            "idle_ratio": idle,
            **{f"{name}_s": value for name, value in medians.items()},
        },
    )
    of_batches = Row(
        "a training loop that records its batches",
        f"{workload}, as postproc",
        f"{medians['batches'] * 1e3:.0f} ms an iteration; without {medians['not'] * 1e3:.0f} ms",
        f"{batches:.3f} x",
        f"<= {SLOWER} x",
        batches <= SLOWER,
        {"ratio": batches},
    )
    recording = trainings["recording"]
    return Report(
        (row, of_batches),
        (
            Detail(figure, "the same training beside itself, neither recording", f"{floor:.3f} x"),
            Detail(figure, "with a transform that does nothing, beside without", f"{idle:.3f} x"),
            Detail(
                figure,
                "with one that only views the values of each step as arrays, beside one that does nothing",
                f"{looking:.3f} x",
                {"looking_ratio": looking},
            ),
            Detail(
                figure,
                f"difference of the medians, for each of the {steps} steps of an iteration",
                f"{(medians['recording'] - medians['not']) / steps * 1e6:.0f} us of {medians['not'] / steps * 1e6:.0f} us",
            ),
            Detail(figure, "all learned the very same parameters", "yes" if same else "NO"),
            Detail(
                figure,
                "recorded",
                f"{recording.episodes} episodes, {size / len(recording.seconds) / FRAMES:.0f} bytes a frame",
            ),
        ),
    )


def _ratio(some: list[float], others: list[float]) -> float:
    """Return the median ratio over iterations. Iterations of one number do equal work, shortly after one another."""
    return statistics.median(one / other for one, other in zip(some, others, strict=True))


def _actor() -> ProbabilisticActor:
    return ProbabilisticActor(
        TensorDictModule(
            MLP(in_features=4, out_features=2, num_cells=[64, 64], activation_class=nn.Tanh),
            in_keys=["observation"],
            out_keys=["logits"],
        ),
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )


def _critic() -> ValueOperator:
    return ValueOperator(
        MLP(in_features=4, out_features=1, num_cells=[64, 64], activation_class=nn.Tanh), in_keys=["observation"]
    )
