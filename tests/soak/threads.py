"""Several threads log their own rollouts at once. The recording holds all episodes, in any order."""

from __future__ import annotations

import collections
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tensordict import TensorDictBase

from readback import hold_the_same
from soak.environments import Random
from soak.plans import Plan
from torchrl_rerun import RerunRecorder, load

THREADS = 4
MAX_STEPS = 20
"""Most steps of a rollout: comparing thousands of episodes takes long."""


def log_at_once(plan: Plan, folder: Path) -> collections.Counter[str]:
    """Log the rollouts of a plan from several threads, each with its own environment, and compare.

    Args:
        plan: each thread carries out its rollouts and dumps.
        folder: empty folder for the file.
    """
    torch.manual_seed(plan.seed % (1 << 31))
    path, tally = folder / "run.rrd", collections.Counter[str]()
    rollouts = [list(_rollouts(plan, number)) for number in range(THREADS)]
    failures: list[BaseException] = []
    together = threading.Barrier(THREADS)

    def log(mine: list[TensorDictBase | None]) -> None:
        try:
            together.wait()
            for each in mine:
                if each is None:
                    recorder.dump()
                    recorder.stats()
                else:
                    recorder.log_rollout(each)
        except BaseException as error:
            failures.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorder = RerunRecorder(path, **plan.options)
        threads = [threading.Thread(target=log, args=(mine,)) for mine in rollouts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        recorder.close()
    assert not failures, failures
    logged = [rollout for mine in rollouts for rollout in mine if rollout is not None]
    wanted = {_when(episode): episode for rollout in logged for episode in _episodes(plan, rollout)}
    episodes = [] if not wanted else [episode.tensordict() for episode in load(path)]
    found = {_when(each): each for each in episodes}
    assert len(found) == len(episodes), "an episode is there twice"
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for when, episode in found.items():
        assert hold_the_same(episode, wanted[when])
        tally["rows compared"] += len(episode) * len(list(episode.keys(True, True)))
    tally["episodes"] += len(found)
    tally["steps"] += sum(map(len, found.values()))
    tally["checks"] += 3
    return tally


def _rollouts(plan: Plan, number: int) -> Iterator[TensorDictBase | None]:
    """Yield rollouts, and None for each dump."""
    env = Random(plan.layout, number)
    for name, *how in plan.ops:
        if name == "rollout":
            steps, mode = how
            yield env.rollout(min(steps, MAX_STEPS), break_when_any_done=mode == "any")
        elif name == "dump":
            yield None


def _episodes(plan: Plan, rollout: TensorDictBase) -> Iterator[TensorDictBase]:
    """Yield the steps of each episode, one environment after the other."""
    keys = [(name, "done") for name, _ in plan.layout.groups] if plan.layout.rootless else ["done"]
    time = rollout.batch_size[-1]
    done = torch.cat([rollout["next"][key].reshape(plan.envs, time, -1) for key in keys], -1)
    for of_one, flags in zip(rollout.reshape(-1, time), done, strict=True):
        begin = 0
        for t in range(time):
            if flags[t].all() or t == time - 1:
                yield of_one[begin : t + 1]
                begin = t + 1


def _when(episode: TensorDictBase) -> float:
    """Return the clock at the first step. The clock never shows a time twice."""
    return episode["clock"][0].item()
