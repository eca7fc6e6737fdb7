"""Random environments, ways in and options: what a rollout holds is what a recording holds."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import NonTensorData
from torchrl.collectors.utils import split_trajectories
from torchrl.data import Binary, NonTensor
from torchrl.envs import StepCounter

from counting import Groups
from readback import hold_the_same
from torchrl_rerun import RerunRecorder, load

ODD = ["a", "", "\ud83d", {"tool": 1}, ["a", 1], 5, 0.5, True, None, b"x", "\x00"]


class Drawn(Groups):
    """Groups that finish apart, maybe with a mask of the environment's own and with notes of any kind."""

    def __init__(self, case):
        super().__init__(case.lengths, root=case.root, agents=case.agents, batch=case.batch)
        self.case, self.calls = case, 0
        if case.mask:
            self.observation_spec["mask"] = Binary(case.mask, (case.batch, case.mask), dtype=torch.bool)
        if case.notes:
            self.observation_spec["note"] = NonTensor((case.batch,))

    def _with_more(self, data):
        self.calls += 1
        if self.case.mask:
            data["mask"] = (torch.arange(self.case.batch * self.case.mask) + self.calls).reshape(
                self.case.batch, -1
            ) % 3 > 0
        if self.case.notes:
            notes = [self.case.notes[(self.calls + env) % len(self.case.notes)] for env in range(self.case.batch)]
            data["note"] = torch.stack([NonTensorData(note) for note in notes])
        return data

    def _reset(self, tensordict=None, **kwargs):
        return self._with_more(super()._reset(tensordict, **kwargs))

    def _step(self, tensordict):
        return self._with_more(super()._step(tensordict))


@dataclass(frozen=True)
class Case:
    lengths: dict
    root: bool
    agents: int
    batch: int
    mask: int
    notes: tuple
    limit: int
    steps: int
    cuts: tuple
    way: str
    split: str
    buffer_bytes: int


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([("red",), ("red", "blue")]))
    root = draw(st.booleans())
    mask = draw(st.integers(0, 3))
    ways = ["appended", "logged"]
    if root and not mask:  # what splits trajectories would put its own mask in the place of the environment's
        ways.append("padded")
    steps = draw(st.integers(1, 14))
    return Case(
        lengths={group: draw(st.integers(1, 5)) for group in groups},
        root=root,
        agents=draw(st.integers(1, 2)),
        batch=draw(st.integers(1, 3)),
        mask=mask,
        notes=tuple(draw(st.lists(st.sampled_from(ODD), max_size=3))),
        limit=draw(st.sampled_from([0, 0, 2, 3])) if root else 0,
        steps=steps,
        cuts=tuple(sorted(draw(st.sets(st.integers(1, 13), max_size=3)))),
        way=draw(st.sampled_from(ways)),
        split=draw(st.sampled_from(["run", "dump", "episode"])),
        buffer_bytes=draw(st.sampled_from([300, 3000, 1 << 20])),
    )


def rollout_and_recording(case, folder):
    recorder = RerunRecorder(folder, split=case.split, buffer_bytes=case.buffer_bytes, blueprint=False)
    env = Drawn(case)
    if case.limit:
        env.add_truncated_keys()
    if case.way == "appended":
        env = env.append_transform(recorder)
    if case.limit:
        env = env.append_transform(StepCounter(case.limit, step_count_key="age"))
    rollout = env.rollout(case.steps, break_when_any_done=False)
    if case.limit:
        rollout = rollout.exclude("age", ("next", "age"))
    pieces = [
        rollout[:, a:b]
        for a, b in zip((0, *case.cuts), (*case.cuts, case.steps), strict=True)
        if a < min(b, case.steps)
    ]
    if case.way == "logged":
        for piece in pieces:
            recorder.log_rollout(piece)
    elif case.way == "padded":
        recorder.log_rollout(split_trajectories(rollout))
    if case.way == "appended":
        env.close()
    recorder.close()
    return rollout, load(folder)


def lengths_by_hand(case, rollout):
    """Of each environment, the lengths of its episodes and whether they ended: a loop over the flags, and nothing else."""
    found = {}
    for env in range(case.batch):
        length = 0
        episodes = found.setdefault(env, [])
        for t in range(case.steps):
            length += 1
            if case.root:
                up = any(
                    bool(rollout["next", flag][env, t].any())
                    for flag in ("done", "truncated")
                    if flag in rollout["next"]
                )
            else:
                up = all(bool(rollout["next", group, "done"][env, t].all()) for group in case.lengths)
            if up or t == case.steps - 1:
                episodes.append((length, up))
                length = 0
    return found


@settings(max_examples=40, deadline=None)
@given(cases())
def test_a_recording_holds_what_the_rollout_holds(case):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rollout, found = rollout_and_recording(case, Path(folder, "run"))
        wanted = lengths_by_hand(case, rollout)
        seen = {}
        for each in found:
            known = each.properties
            seen.setdefault(known.env, []).append((known.length, known.terminated or known.truncated))
        if case.way == "padded":  # trajectories have environment indices of their own
            assert Counter(each for of in seen.values() for each in of) == Counter(
                each for of in wanted.values() for each in of
            )
            ages = Counter(tuple(each["red", "age"].flatten().tolist()) for each in found)
            assert sum(len(each.tensordict()) for each in found) == case.batch * case.steps
            assert len(ages) >= 1
            return
        assert seen == wanted
        assert hold_the_same(found.rollout(), rollout)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=5))
def test_rollouts_of_several_threads_stay_whole(lengths):
    case = Case({"red": 3}, True, 1, 2, 0, (), 0, 4, (), "logged", "run", 3000)
    with tempfile.TemporaryDirectory() as folder:
        recorder = RerunRecorder(Path(folder, "run.rrd"), buffer_bytes=case.buffer_bytes, blueprint=False)
        rollouts = [Drawn(case).rollout(length, break_when_any_done=False) for length in lengths]
        threads = [threading.Thread(target=recorder.log_rollout, args=(rollout,)) for rollout in rollouts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        recorder.close()
        clock = load(Path(folder, "run.rrd")).rollout()["clock"][0].flatten().tolist()
        assert len(clock) == sum(lengths)
        whole, at = Counter(), 0
        while at < len(clock):
            end = at + 1
            while end < len(clock) and clock[end] == clock[end - 1] + 1:
                end += 1
            whole[end - at] += 1
            at = end
        assert whole == Counter(lengths)
