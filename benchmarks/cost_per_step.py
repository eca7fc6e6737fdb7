"""What one recorded step costs on the environment's thread.

    python benchmarks/cost_per_step.py

For a batch of 16 environments with 84 x 84 x 3 pixels, 17 observations, 6 actions and a reward, it times in turn, round
by round:

- a copy of the step's bytes with NumPy, the floor of any recorder;
- `RerunRecorder`, by calling the hooks that TorchRL calls in a step, so that nothing of the environment is timed;
- `rr.log` of each key of each environment, as one would write it by hand, to a file.

Rounds are short and pauses lie between them, so that writers in the background don't share the processor with what is
timed. The median of all steps is printed, in microseconds and as a multiple of the copy.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rerun as rr
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchrl_rerun import RerunRecorder

ENVS = 16


class Instant(EnvBase):
    """An environment whose steps take no time: it returns the same tensors again and again."""

    def __init__(self) -> None:
        super().__init__(batch_size=torch.Size([ENVS]))
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, (ENVS, 84, 84, 3), dtype=torch.uint8),
            observation=Unbounded((ENVS, 17)),
            shape=(ENVS,),
        )
        self.action_spec = Unbounded((ENVS, 6))
        self.reward_spec = Unbounded((ENVS, 1))
        self.observed = {
            "pixels": torch.randint(0, 256, (ENVS, 84, 84, 3), dtype=torch.uint8),
            "observation": torch.randn(ENVS, 17),
        }

    def _reset(self, tensordict: TensorDict | None = None, **_: object) -> TensorDict:
        return TensorDict(dict(self.observed), [ENVS])

    def _step(self, tensordict: TensorDict) -> TensorDict:
        outcome = {"reward": torch.randn(ENVS, 1), "done": torch.zeros(ENVS, 1, dtype=torch.bool)}
        return TensorDict({**self.observed, **outcome}, [ENVS])

    def _set_seed(self, seed: int | None) -> None:
        torch.manual_seed(seed or 0)


def copying(arrays: list[np.ndarray]) -> Callable[[], None]:
    targets = [np.empty_like(array) for array in arrays]

    def step() -> None:
        for target, array in zip(targets, arrays, strict=True):
            np.copyto(target, array)

    return step


def recording(path: Path) -> Callable[[], None]:
    recorder = RerunRecorder(path, image_format="raw")
    env = Instant().append_transform(recorder)
    root = env.rand_action(env.reset())
    following = env.step(root.clone())["next"]

    def step() -> None:
        recorder._inv_call(root)  # noqa: SLF001 - what TorchRL calls
        recorder._step(root, following)  # noqa: SLF001

    step.env = env  # type: ignore[attr-defined]
    return step


def logging_each(path: Path, arrays: dict[str, np.ndarray]) -> Callable[[], None]:
    stream = rr.RecordingStream("cost_per_step")
    stream.save(path)
    frame = 0

    def step() -> None:
        nonlocal frame
        stream.set_time("frame", sequence=frame)
        frame += 1
        for env in range(ENVS):
            stream.log(f"env_{env}/pixels", rr.Image(arrays["pixels"][env]))
            for key in ("observation", "action", "reward"):
                stream.log(f"env_{env}/{key}", rr.Scalars(arrays[key][env]))

    step.stream = stream  # type: ignore[attr-defined]
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="steps in a round")
    args = parser.parse_args()
    logging.disable(logging.INFO)

    env = Instant()
    arrays = {key: value.numpy() for key, value in env.observed.items()}
    arrays |= {"action": torch.randn(ENVS, 6).numpy(), "reward": torch.randn(ENVS, 1).numpy()}
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "copy of the bytes": copying(list(arrays.values())),
            "RerunRecorder": recording(Path(folder, "recorder.rrd")),
            "rr.log per key": logging_each(Path(folder, "log.rrd"), arrays),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, step in ways.items():
                step()
                for _ in range(args.steps):
                    start = time.perf_counter()
                    step()
                    times[way].append(time.perf_counter() - start)
                time.sleep(0.3)
        ways["RerunRecorder"].env.close()  # type: ignore[attr-defined]
        ways["rr.log per key"].stream.disconnect()  # type: ignore[attr-defined]
    medians = {way: statistics.median(values) * 1e6 for way, values in times.items()}
    floor = medians["copy of the bytes"]
    print(f"{'one step of 16 environments':30s} {'us':>10s} {'copies':>8s}")
    for way, median in medians.items():
        print(f"{way:30s} {median:10.1f} {median / floor:8.1f}")


if __name__ == "__main__":
    main()
