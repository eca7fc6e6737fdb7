"""Rollouts and ways of recording them, both drawn by Hypothesis."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from tensordict import TensorDictBase
from torchrl.collectors.utils import split_trajectories
from torchrl.envs import StepCounter

from environments import Drawn, Missing
from readback import hold_the_same
from torchrl_rerun import RerunRecorder

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
    # `split_trajectories` needs a done flag at the root, and overwrites a mask of the environment.
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


def record_drawn(case: Case, folder: Path) -> TensorDictBase:
    """Record a drawn rollout ``[envs, time]`` in the drawn way, and return it."""
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
    return rollout


def lengths_by_hand(case, rollout):
    """Return the lengths of each environment's episodes, and whether they ended, by a plain loop over the flags."""
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
    """Return the steps of each trajectory, one environment after the other."""
    for env, episodes in lengths.items():
        at = 0
        for length, _ in episodes:
            yield rollout[env, at : at + length]
            at += length


def hold_the_same_in_any_order(found, wanted):
    """Return whether each tensordict of one list has an equal, bit for bit, in the other."""
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


class Moment(NamedTuple):
    """A step of a rollout that lacks a key at some times: the step, and the key's value before and after it."""

    step: TensorDictBase
    before: torch.Tensor | None
    after: torch.Tensor | None


def record_with_gaps(n: int, missing: set[int], steps: int, way: str, split: str, path: Path) -> list[Moment]:
    """Record a rollout that lacks "extra" at some times. Return its steps with the values of that key."""
    recorder = RerunRecorder(path, split=split, buffer_bytes=3000, blueprint=False)
    env = Missing(n, missing)
    if way == "appended":
        env = env.append_transform(recorder)
    rollout = env.rollout(steps, break_when_any_done=False, return_contiguous=False)
    if way == "logged":
        recorder.log_rollout(rollout)
    recorder.close()
    is_led_to = ["extra" in rollout[t]["next"].keys() for t in range(steps)]
    is_policys = way == "logged" and not any(is_led_to)  # for all that can be known of what is stored
    found = []
    for t, step in enumerate(rollout):
        # TorchRL's rollout keeps an older value if the step before gave none.
        is_there = t == 0 or bool(rollout[t - 1]["next", "done"]) or is_led_to[t - 1] or is_policys
        found.append(Moment(step, step["extra"] if is_there else None, step["next"].get("extra", None)))
    return found


GAPS = (
    st.integers(1, 6),
    st.sets(st.integers(1, 20)),
    st.integers(1, 20),
    st.sampled_from(["appended", "logged"]),
    st.sampled_from(["run", "episode"]),
)
"""Arguments of :func:`record_with_gaps` except the path."""
