"""Fork processes that record in many ways, and kill each at a random moment. Run by `test_black_box.py`.

A process says how many steps have returned, by a byte each, before it makes the next.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import NonTensorData, TensorDict
from torchrl.data import Binary, Composite, NonTensor, Unbounded
from torchrl.envs import EnvBase, ParallelEnv

from torchrl_rerun import KeepLast, RerunRecorder
from torchrl_rerun.kinds import video as video  # FFmpeg is loaded once, and not in each process

AT_ONCE = 4
KEPT = 3


@dataclass(frozen=True)
class Run:
    """How a process records.

    Attributes:
        envs: number of environments.
        where: "batch", "parallel" (a recorder around worker processes), or "workers" (recorders inside of them).
        split: the unit of a recording.
        keep: whether a keep policy decides about episodes.
        pictures: the format of pictures; empty: there are none.
        texts: whether there are texts, and arrays of shapes of their own.
        buffer_bytes, flush_seconds: as the recorder takes them.
        rollouts: the number of steps that are recorded at once; 0: each step when it is made.
    """

    envs: int
    where: str
    split: str
    keep: bool
    pictures: str
    texts: bool
    buffer_bytes: int
    flush_seconds: float
    rollouts: int

    @classmethod
    def drawn(cls, rng: random.Random) -> Run:
        """Return a random one."""
        split = rng.choice(["run", "run", "episode"])
        where = rng.choices(["batch", "parallel", "workers"], [8, 1, 1])[0]
        pictures = rng.choice(["", "", "jpeg", "h264", "png"])
        return cls(
            envs=rng.choice([1, 2, 3]) if where == "batch" else 2,
            where=where,
            split=split,
            keep=split == "episode" and rng.random() < 0.5,
            pictures=pictures,
            texts=rng.random() < 0.3,
            buffer_bytes=rng.choice([20_000, 200_000, 64 << 20]),
            flush_seconds=rng.choice([0.01, 0.05, 10.0]),
            rollouts=rng.choice([0, 0, 0, 7, 40]) if where == "batch" and not pictures else 0,
        )


class Told(EnvBase):
    """Every value is known from how many steps were made. Environment ``i`` is done each ``3 + i`` steps.

    Args:
        run: what is observed.
        envs: the batch size; 0: none.
    """

    def __init__(self, run: Run, envs: int) -> None:
        super().__init__(batch_size=torch.Size([envs] if envs else []))
        self.run, self.steps = run, 0
        shape = self.batch_size
        self.age = torch.zeros(shape, dtype=torch.int64)
        said: dict[str, Any] = {"age": Unbounded((*shape, 1), dtype=torch.int64), "clock": Unbounded((*shape, 3))}
        if run.pictures:
            said["pixels"] = Unbounded((*shape, 32, 32, 3), dtype=torch.uint8)
        if run.texts:
            said["note"] = NonTensor(shape)
        self.observation_spec = Composite(said, shape=shape)
        self.action_spec = Unbounded((*shape, 2))
        self.reward_spec = Unbounded((*shape, 1))
        self.full_done_spec = Composite(
            {flag: Binary(shape=(*shape, 1), dtype=torch.bool) for flag in ("done", "terminated", "truncated")},
            shape=shape,
        )

    def _observed(self) -> TensorDict:
        shape = self.batch_size
        out = TensorDict(
            age=self.age[..., None].clone(), clock=torch.full((*shape, 3), float(self.steps)), batch_size=shape
        )
        if self.run.pictures:
            out["pixels"] = torch.full((*shape, 32, 32, 3), self.steps % 200, dtype=torch.uint8)
        if self.run.texts:
            notes = [NonTensorData(f"step {self.steps}") for _ in range(max(1, shape.numel()))]
            out["note"] = torch.stack(notes) if shape else notes[0]
        return out

    def _reset(self, tensordict: TensorDict | None = None, **_: Any) -> TensorDict:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        self.age = torch.zeros_like(self.age) if mask is None else torch.where(mask[..., 0], 0, self.age)
        return self._observed()

    def _step(self, tensordict: TensorDict) -> TensorDict:
        self.steps += 1
        self.age = self.age + 1
        limits = 3 + torch.arange(max(1, self.age.numel())).reshape(self.age.shape)
        done = (self.age >= limits)[..., None]
        out = self._observed()
        out["reward"] = torch.full((*self.batch_size, 1), float(self.steps))
        out["done"], out["terminated"] = done, done.clone()
        out["truncated"] = torch.zeros_like(done)
        return out

    def _set_seed(self, seed: int | None) -> None:
        pass


def recorder(run: Run, path: Path) -> RerunRecorder:
    kinds = {"pixels": run.pictures} if run.pictures else {}
    if run.pictures:
        from torchrl_rerun import Image

        kinds = {"pixels": Image(run.pictures)}
    return RerunRecorder(
        path,
        split=run.split,
        keep=KeepLast(KEPT, per_env=True) if run.keep else None,
        kinds=kinds,
        buffer_bytes=run.buffer_bytes,
        flush_seconds=run.flush_seconds,
    )


def record(run: Run, path: Path, told: int) -> None:
    """Record until the process is killed."""
    warnings.simplefilter("ignore")
    where = path / "run" if run.split == "episode" else path / "run.rrd"
    if run.where == "batch":
        env: EnvBase = Told(run, run.envs)
        recording = recorder(run, where)
        if not run.rollouts:
            env = env.append_transform(recording)
    elif run.where == "parallel":
        env = ParallelEnv(run.envs, lambda: Told(run, 0), mp_start_method="fork").append_transform(recorder(run, where))
    else:
        env = ParallelEnv(run.envs, lambda: Told(run, 0).append_transform(recorder(run, where)), mp_start_method="fork")
    data = env.reset()
    steps: list[TensorDict] = []
    while True:
        stepped, data = env.step_and_maybe_reset(env.rand_action(data))
        if run.rollouts:
            steps.append(stepped)
            if len(steps) < run.rollouts:
                continue
            recording.log_rollout(torch.stack(steps, -1))
            os.write(told, b"." * len(steps))
            steps.clear()
        else:
            os.write(told, b".")


def fork(run: Run, path: Path) -> tuple[int, int]:
    """Fork a process that records, in a group of its own. Return its id, and the pipe that gets a byte for each step."""
    hearing, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.close(hearing)
            record(run, path, told)
        except BaseException as error:
            print(f"{path.name}: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    os.close(told)
    return child, hearing


def kill_all(children: dict[int, tuple[Path, int]], rng: random.Random) -> Iterator[tuple[Path, int]]:
    """Kill each process some time after its first step. Yield its folder, and the number of steps that it told."""
    deadlines: dict[int, float] = {}
    counts = dict.fromkeys(children, 0)
    while children:
        wait = min((deadlines[each] - time.monotonic() for each in deadlines), default=30.0)
        ready = select.select(list(children), [], [], max(0.0, wait))[0]
        for hearing in ready:
            counts[hearing] += len(os.read(hearing, 1 << 16))
            deadlines.setdefault(hearing, time.monotonic() + rng.uniform(0, 0.06))
        for hearing, deadline in list(deadlines.items()):
            if deadline <= time.monotonic():
                path, child = children.pop(hearing)
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                while said := os.read(hearing, 1 << 16):
                    counts[hearing] += len(said)
                os.close(hearing)
                del deadlines[hearing]
                yield path, counts[hearing]


def main(folder: Path, seed: int, kills: int) -> None:
    rng = random.Random(seed)
    torch.set_num_threads(1)
    for first in range(0, kills, AT_ONCE):
        children = {}
        for number in range(first, min(first + AT_ONCE, kills)):
            path = folder / f"{number:03}"
            path.mkdir()
            run = Run.drawn(rng)
            (path / "how.json").write_text(json.dumps(asdict(run)))
            child, hearing = fork(run, path)
            children[hearing] = path, child
        for path, steps in kill_all(children, rng):
            (path / "told").write_text(str(steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
