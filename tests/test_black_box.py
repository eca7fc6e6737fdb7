"""The black box: whatever ends a process, its recording ends with the last step that returned."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import torch

import killed_anywhere
from killed_anywhere import Run
from torchrl_rerun import load

KILLS = 200


def test_200_kills_at_random_moments_lose_no_step(tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    command = [sys.executable, killed_anywhere.__file__, str(tmp_path), str(seed), str(KILLS)]
    forked = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    assert forked.stderr == ""
    for number in range(KILLS):
        path = tmp_path / f"{number:03}"
        run = Run(**json.loads((path / "how.json").read_text()))
        check(path, run, int((path / "told").read_text()))


def check(path: Path, run: Run, told: int) -> None:
    """Compare what is loaded with the steps that were made: those that were told, and at most those that were under way."""
    where = f"{path.name}: {run}, {told} told"
    files = sorted(path.glob("run.worker_*.rrd")) or [path / ("run" if run.split == "episode" else "run.rrd")]
    episodes = list(load(files))
    made: dict[int, list[int]] = {}
    for episode in episodes:
        env, rollout = episode.properties.env, episode.tensordict()
        number = made.setdefault(env, [])
        steps = rollout["next", "clock"][:, 0].long()
        length = 3 + (env if run.where == "batch" else 0)
        assert (rollout["next", "clock"] == steps[:, None]).all(), where
        assert (rollout["clock"][:, 0] == steps - 1).all(), where
        assert (rollout["next", "reward"][:, 0] == steps).all(), where
        assert (rollout["next", "age"][:, 0] == torch.arange(1, len(steps) + 1)).all(), where
        assert (rollout["age"][:, 0] == torch.arange(len(steps))).all(), where
        assert (rollout["next", "done"][:, 0] == (rollout["next", "age"][:, 0] == length)).all(), where
        if run.texts:
            assert list(rollout["next", "note"]) == [f"step {step}" for step in steps.tolist()], where
        if run.pictures:
            colors = (steps % 200)[:, None, None, None].expand(-1, 32, 32, 3)
            assert ((rollout["next", "pixels"].int() - colors).abs() <= (0 if run.pictures == "png" else 12)).all(), where
        if episode.properties is not None:
            assert episode.properties.length == len(steps), where
        number += steps.tolist()
    assert sorted(made) == list(range(run.envs)) or not told, where
    under_way = max(1, run.rollouts)
    for env, steps in made.items():
        length = 3 + (env if run.where == "batch" else 0)
        first = 1
        if run.keep:  # files of episodes that aren't kept any longer go when there are others in their place
            first = max((b for a, b in itertools.pairwise(steps) if b != a + 1), default=steps[0])
            steps = steps[steps.index(first) :]
            assert first <= max(1, steps[-1] - killed_anywhere.KEPT * length + 1), where
        assert steps == list(range(first, first + len(steps))), (where, env)
        assert told <= steps[-1] <= told + under_way, (where, env)
