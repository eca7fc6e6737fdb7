"""Workers with a recorder each begin in any order. Environments keep their indices."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import warnings
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import AsyncEnvPool, EnvBase, ParallelEnv, Transform

from readback import read
from soak.environments import Layout, Random
from soak.iteration import Iteration, Tally
from soak.plans import Plan
from torchrl_rerun import RerunRecorder

PATIENCE = 40.0
"""Seconds that a worker waits for its turn."""


class InTurn(Random):
    """An environment whose first reset waits for its turn."""

    def __init__(self, layout: Layout, number: int, turn: Event) -> None:
        super().__init__(layout, number)
        self.turn = turn

    def _reset(self, tensordict: Any = None, **kwargs: Any) -> Any:
        assert self.turn.wait(PATIENCE), "a worker's turn never came"
        return super()._reset(tensordict, **kwargs)


class Passes(Transform):
    """Passes the turn to another worker after the first reset, which the recorder in front has recorded."""

    def __init__(self, turn: Event) -> None:
        super().__init__()
        self.turn = turn

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        self.turn.set()
        return tensordict_reset


def record_in_workers(plan: Plan, folder: Path) -> Tally:
    """Carry out a plan whose workers have a recorder each, and compare each file with the values of its worker.

    Args:
        plan: a plan whose way is ``"workers"``, processes of a `ParallelEnv`; or ``"pool"``, threads.
        folder: empty folder for the files.
    """
    torch.manual_seed(plan.seed % (1 << 31))
    each = plan.envs // plan.workers
    # A worker is equal to a recorder appended to an environment of its own.
    own = dataclasses.replace(plan, way="appended", workers=0, turns=())
    notes = [Iteration(own, folder, None, rehearsal=True) for _ in range(plan.workers)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.closing(_batch(plan, folder / "run.rrd")) as env:
            for name, *how in plan.ops:
                _do(env, plan, notes, name, *how)
            for one in env.envs if plan.way == "pool" else ():
                one.close()  # the pool does not close its environments
    tally = Tally()
    names = [f"run.worker_{number}.rrd" for number in range(plan.workers)]
    assert sorted(file.name for file in folder.iterdir()) == names
    for number, (name, noted) in enumerate(zip(names, notes, strict=True)):
        witness = noted.witness
        witness.first_env = number * each
        tally["rows compared"] += witness.check(read(folder / name), 0)
        tally["frames"] += witness.frame + 1
        tally["steps"] += witness.step
        tally["episodes"] += witness.episodes
        tally["bytes"] += (folder / name).stat().st_size
    tally["files"] += len(names)
    tally["checks"] += 1 + len(names)
    return tally


def _batch(plan: Plan, path: Path) -> EnvBase:
    turns = [multiprocessing.get_context("fork").Event() for _ in range(plan.workers + 1)]
    turns[0].set()

    def make(number: int) -> EnvBase:
        turn = plan.turns[number]
        env = InTurn(plan.layout, number, turns[turn]).append_transform(RerunRecorder(path, **plan.options))
        return env.append_transform(Passes(turns[turn + 1]))

    makers = [functools.partial(make, number) for number in range(plan.workers)]
    if plan.way == "workers":
        return ParallelEnv(plan.workers, makers, mp_start_method="fork")
    return AsyncEnvPool(makers, backend="threading")


def _do(env: EnvBase, plan: Plan, notes: list[Iteration], name: str, *how: Any) -> None:
    """Carry out an operation with all workers, and note the values of each."""
    match name:
        case "rollout":
            steps, mode = how
            rollout = env.rollout(steps, break_when_any_done=mode == "any")
            for number, noted in enumerate(notes):
                noted._see(rollout[number], mode)
        case "reset":
            td = env.reset()
            for number, noted in enumerate(notes):
                noted._seen_reset(td[number], None)
        case "some reset":
            mask = torch.zeros(plan.envs, dtype=torch.bool)
            mask[how[0]] = True
            mask = mask.reshape(*plan.batch_size, 1)
            if mask.any():
                td = env.reset(TensorDict({"_reset": mask}, plan.batch_size))
                for number, noted in enumerate(notes):
                    if chosen := mask[number].flatten().nonzero().flatten().tolist():
                        noted._seen_reset(td[number], chosen)
