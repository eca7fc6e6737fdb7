"""Random environments, ways of recording and options: a recording equals its rollout."""

from __future__ import annotations

import functools
import tempfile
import threading
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from torchrl.envs import AsyncEnvPool, Transform

from drawn import (
    GAPS,
    Case,
    cases,
    hold_the_same_in_any_order,
    lengths_by_hand,
    record_drawn,
    record_with_gaps,
    trajectories,
)
from effort import examples
from environments import Drawn, OneOf
from readback import hold_the_same, same
from rebuilt import episodes_in, rollout_in, steps_in
from torchrl_rerun import RerunRecorder


@examples(20)
@given(cases())
def test_a_recording_equals_its_rollout(case):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "run")
        rollout = record_drawn(case, path)
        wanted = lengths_by_hand(case, rollout)
        found = {}
        for each in episodes_in(path):
            found.setdefault(each.env, []).append((each.length, each.terminated or each.truncated))
        if case.way == "padded":  # trajectories have their own environment indices
            assert Counter(each for of in found.values() for each in of) == Counter(
                each for of in wanted.values() for each in of
            )
            recorded = list(steps_in(path).values())
            assert all(each["mask"].all() for each in recorded)
            recorded = [each.exclude("mask", "traj_ids") for each in recorded]  # added by `split_trajectories`
            assert hold_the_same_in_any_order(recorded, trajectories(rollout, wanted))
            return
        assert found == wanted
        assert hold_the_same(rollout_in(path), rollout)


@examples(15)
@given(*GAPS)
def test_all_transitions_are_recorded_with_missing_keys(n, missing, steps, way, split):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "run")
        wanted = record_with_gaps(n, missing, steps, way, split, path)
        found = [step for of_episode in steps_in(path).values() for step in of_episode]
        for t, (step, (rollout, before, after)) in enumerate(zip(found, wanted, strict=True)):
            for key in ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "done")):
                assert same(step[key], rollout[key]), (t, key)
            assert same(step.get("extra", None), before), t
            assert same(step["next"].get("extra", None), after), t


class Passes(Transform):
    """Passes the turn to the next environment after a reset."""

    def __init__(self, turn):
        super().__init__()
        self.turn = turn

    def _reset(self, tensordict, tensordict_reset):
        self.turn.set()
        return tensordict_reset


@examples(4)
@given(st.permutations(range(3)), st.sampled_from(["run", "episode"]))
def test_workers_may_begin_in_any_order(order, split):
    """Environments have their index in the batch."""
    turns = [threading.Event() for _ in range(4)]
    turns[0].set()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "run")

        def make(number):
            turn = order[number]
            env = OneOf(number, turns[turn]).append_transform(RerunRecorder(path, split=split, blueprint=False))
            return env.append_transform(Passes(turns[turn + 1]))

        pool = AsyncEnvPool([functools.partial(make, number) for number in range(3)], backend="threading")
        rollout = pool.rollout(6)
        for env in pool.envs:
            env.close()
        pool.close(raise_if_closed=False)
        assert same(rollout_in(path)["next", "observation"], rollout["next", "observation"].contiguous())


@examples(5)
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
        clock = rollout_in(Path(folder, "run.rrd"))["clock"][0].flatten().tolist()
        assert len(clock) == sum(lengths)
        whole, at = Counter(), 0
        while at < len(clock):
            end = at + 1
            while end < len(clock) and clock[end] == clock[end - 1] + 1:
                end += 1
            whole[end - at] += 1
            at = end
        assert whole == Counter(lengths)
