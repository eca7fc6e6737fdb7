"""Random environments, ways in and options: what a rollout holds is what a recording holds."""

from __future__ import annotations

import functools
import tempfile
import threading
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from torchrl.collectors.utils import split_trajectories
from torchrl.envs import AsyncEnvPool, StepCounter, Transform

from effort import examples
from environments import Drawn, Missing, OneOf
from readback import hold_the_same, same
from rebuilt import episodes_in, rollout_in
from torchrl_rerun import RerunRecorder, load

ODD = ["a", "", "\ud83d", {"tool": 1}, ["a", 1], 5, 0.5, True, None, b"x", "\x00"]


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
    way = draw(st.sampled_from(["appended", "logged", "padded"]))
    # `split_trajectories` goes by a done flag at the root, and puts its own mask in the place of the environment's.
    root = way == "padded" or draw(st.booleans())
    mask = 0 if way == "padded" else draw(st.integers(0, 3))
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
        way=way,
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


def trajectories(rollout, lengths):
    """Steps of each trajectory, by themselves: environments one after the other."""
    for env, episodes in lengths.items():
        at = 0
        for length, _ in episodes:
            yield rollout[env, at : at + length]
            at += length


def hold_the_same_in_any_order(found, wanted):
    """Whether each tensordict of one list has its equal, bit for bit, in the other."""
    left = list(wanted)
    for each in found:
        at = next((at for at, other in enumerate(left) if is_the_same(each, other)), None)
        assert at is not None, (each["clock"].flatten().tolist(), [other["clock"].flatten().tolist() for other in left])
        del left[at]
    assert not left, [other["clock"].flatten().tolist() for other in left]
    return True


def is_the_same(found, wanted):
    try:
        return hold_the_same(found, wanted)
    except AssertionError:
        return False


@examples(20)
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
            found = [each.tensordict() for each in found]
            assert all(each["mask"].all() for each in found)
            found = [each.exclude("mask", "traj_ids") for each in found]  # which `split_trajectories` has added
            assert hold_the_same_in_any_order(found, trajectories(rollout, wanted))
            return
        assert seen == wanted
        seen = {}
        for each in episodes_in(Path(folder, "run")):
            seen.setdefault(each.env, []).append((each.length, each.terminated or each.truncated))
        assert seen == wanted
        assert hold_the_same(rollout_in(Path(folder, "run")), rollout)


@examples(15)
@given(
    st.integers(1, 6),
    st.sets(st.integers(1, 20)),
    st.integers(1, 20),
    st.sampled_from(["appended", "logged"]),
    st.sampled_from(["run", "episode"]),
)
def test_all_transitions_are_there_whatever_is_missing(n, missing, steps, way, split):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "run")
        recorder = RerunRecorder(path, split=split, buffer_bytes=3000, blueprint=False)
        env = Missing(n, missing)
        if way == "appended":
            env = env.append_transform(recorder)
        rollout = env.rollout(steps, break_when_any_done=False, return_contiguous=False)
        if way == "logged":
            recorder.log_rollout(rollout)
        recorder.close()
        found = [each.tensordict()[t] for each in load(path) for t in range(len(each.tensordict()))]
        assert len(found) == steps
        is_led_to = ["extra" in rollout[t]["next"].keys() for t in range(steps)]
        is_policys = way == "logged" and not any(is_led_to)  # for all that can be known of what is stored
        for t, moment in enumerate(found):
            wanted = rollout[t]
            for key in ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "done")):
                assert same(moment[key], wanted[key]), (t, key)
            led_to = wanted["next"].get("extra", None)
            # Where the step before led to none, TorchRL's rollout still has what was there before that.
            is_there = t == 0 or bool(rollout[t - 1]["next", "done"]) or is_led_to[t - 1] or is_policys
            for value, found_value in (
                (wanted["extra"] if is_there else None, extra_of(moment)),
                (led_to, extra_of(moment["next"])),
            ):
                assert found_value is None if value is None else same(found_value, value), t


def extra_of(moment):
    """The value without what fills it up; None: it is missing."""
    if "extra" not in moment.keys():
        return None
    mask = moment.get(("recorded", "extra"), None)
    value = moment["extra"]
    return value if mask is None else value if mask.ndim == 0 and mask else value[mask] if mask.any() else None


class Passes(Transform):
    """Says that it is the next one's turn."""

    def __init__(self, turn):
        super().__init__()
        self.turn = turn

    def _reset(self, tensordict, tensordict_reset):
        self.turn.set()
        return tensordict_reset


@examples(4)
@given(st.permutations(range(3)), st.sampled_from(["run", "episode"]))
def test_workers_may_begin_in_any_order(order, split):
    """Environments are numbered by where they stand in the batch."""
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
