"""`load` gives back rollouts of random keys, dtypes, shapes and gaps, with random ends, resets and dumps."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from drawn import GAPS, cases, hold_the_same_in_any_order, lengths_by_hand, record_drawn, record_with_gaps, trajectories
from effort import examples
from environments import Anything
from readback import hold_the_same, same
from reference import assert_same, of_episodes
from torchrl_rerun import RerunRecorder, load

DTYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
]  # fmt: skip
NAMES = st.text("ab /.0é", min_size=1, max_size=3)


@st.composite
def runs(draw):
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    keys = draw(st.lists(st.lists(NAMES, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3, unique=True))
    keys = [key for key in keys if not any(key != other and key[: len(other)] == other for other in keys)]
    shapes = st.lists(st.integers(1, 9), max_size=3).map(tuple)
    agents = draw(st.sampled_from([0, 0, 1, 2]))
    of_each = [("group", *key) if agents else key for key in keys]
    leaves = [(key, draw(st.sampled_from(DTYPES)), (agents,) * bool(agents) + draw(shapes)) for key in of_each]
    steps = draw(st.integers(1, 30))
    envs = int(torch.Size(batch).numel())
    ends = draw(st.lists(st.lists(st.booleans(), min_size=envs, max_size=envs), min_size=steps, max_size=steps))
    return (
        batch,
        agents,
        leaves,
        ends,
        draw(st.sampled_from([2_000, 1 << 20])),
        draw(st.sampled_from(["run", "dump", "episode"])),
    )


@examples(10)
@given(runs())
def test_rollouts_episodes_and_slices_come_back(run):
    batch, agents, leaves, ends, buffer_bytes, split = run
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # so small a buffer holds few frames
        recorder = RerunRecorder(
            Path(folder, "run"), image_format="png", buffer_bytes=buffer_bytes, blueprint=False, split=split
        )
        env = Anything(batch, agents, leaves, list(ends)).append_transform(recorder)
        rollout = env.rollout(len(ends), break_when_any_done=False)
        env.close()
        found = load(Path(folder, "run"))
        assert_same(found.rollout(), rollout)
        wanted = of_episodes(rollout.reshape(-1, len(ends)) if batch else rollout[None])
        assert {each.properties.id for each in found} == set(wanted)
        for each in found:
            assert_same(each.tensordict(), wanted[each.properties.id])
        slices = found.dataset(2)
        assert len(slices) == sum(len(steps) - 1 for steps in wanted.values())


@examples(10)
@given(cases())
def test_groups_that_finish_at_different_times_come_back(case):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rollout = record_drawn(case, Path(folder, "run"))
        episodes = load(Path(folder, "run"))
        wanted = lengths_by_hand(case, rollout)
        found = {}
        for each in episodes:
            known = each.properties
            found.setdefault(known.env, []).append((known.length, known.terminated or known.truncated))
        if case.way == "padded":  # trajectories have their own environment indices
            assert Counter(each for of in found.values() for each in of) == Counter(
                each for of in wanted.values() for each in of
            )
            steps = [each.tensordict().exclude("mask", "traj_ids") for each in episodes]
            assert hold_the_same_in_any_order(steps, trajectories(rollout, wanted))
        else:
            assert found == wanted
            assert hold_the_same(episodes.rollout(), rollout)


@examples(10)
@given(*GAPS)
def test_all_transitions_come_back_with_missing_keys(n, missing, steps, way, split):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "run")
        wanted = record_with_gaps(n, missing, steps, way, split, path)
        found = [step for each in load(path) for step in each.tensordict()]
        for t, (step, (rollout, before, after)) in enumerate(zip(found, wanted, strict=True)):
            for key in ("observation", "action", ("next", "observation"), ("next", "reward"), ("next", "done")):
                assert same(step[key], rollout[key]), (t, key)
            assert same(extra_of(step), before), t
            assert same(extra_of(step["next"]), after), t


def extra_of(moment):
    """Return the value without padding, or None if it is missing."""
    if "extra" not in moment.keys():
        return None
    mask = moment.get(("recorded", "extra"), None)
    value = moment["extra"]
    return value if mask is None else value if mask.ndim == 0 and mask else value[mask] if mask.any() else None
