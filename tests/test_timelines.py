"""Positions and sums that are computed by block equal those counted frame by frame."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from torchrl_rerun.blocks.events import Events
from torchrl_rerun.blocks.positions import Timelines
from torchrl_rerun.blocks.returns import running_sums
from torchrl_rerun.recording.counters import Counters


@st.composite
def histories(draw):
    """Draw a number of environments, and their events: (step or reset, environments, those of them that begin an episode)."""
    envs = draw(st.integers(1, 4))
    some = st.one_of(st.none(), st.lists(st.integers(0, envs - 1), min_size=1, unique=True).map(sorted))
    happened = []
    for is_step, chosen in draw(st.lists(st.tuples(st.booleans(), some), max_size=12)):
        among = range(envs) if chosen is None else chosen
        begun = None if is_step else draw(st.one_of(st.none(), st.sets(st.sampled_from(among)).map(sorted)))
        happened.append((is_step, as_indices(chosen), as_indices(begun)))
    return envs, happened, draw(st.integers(0, 12))


def as_indices(envs):
    return None if envs is None else np.array(envs, np.intp)


@given(histories())
@examples(120)
def test_positions_equal_counted_ones(history):
    envs, happened, before_block = history
    episodes = Counters(envs)
    start, events, counted = episodes.positions(), Events(), []
    for number, (is_step, chosen, begun) in enumerate(happened):
        if number == before_block:  # a block begins
            start, events, counted = episodes.positions(), Events(), []
        event = episodes.event(chosen, 1000 + number, is_step=is_step, begun=begun)
        before = episodes.positions()
        episodes.apply(event)
        events.append(event)
        counted.append((chosen, before, episodes.positions()))
    timelines = Timelines(start, events)
    for env in range(envs):
        events_of_env = np.array(
            [i for i, (chosen, _, _) in enumerate(counted) if chosen is None or env in chosen], np.intp
        )
        assert timelines.at(env, events_of_env).tolist() == [counted[i][2][env].tolist() for i in events_of_env]
        assert timelines.before(env, events_of_env).tolist() == [counted[i][1][env].tolist() for i in events_of_env]


@given(histories(), st.integers(0, 2**32 - 1))
@examples(80)
def test_sums_equal_added_ones(history, seed):
    envs, happened, _ = history
    episodes, rng = Counters(envs), np.random.default_rng(seed)
    start = total = rng.normal(size=(envs, 2))
    events, rewards, slots, expected = Events(), [], [], [start]
    for number, (is_step, chosen, begun) in enumerate(happened):
        events.append(episodes.event(chosen, 0, is_step=is_step, begun=begun))
        at = slice(None) if chosen is None else chosen
        total = total.copy()
        if is_step:
            reward = rng.normal(size=(envs, 2)).astype(np.float32)
            rewards.append(reward)
            slots.append(number)
            total[at] += reward[at]
        else:
            total[at if begun is None else begun] = 0
        expected.append(total)
    sums = running_sums(start, events, np.array(rewards).reshape(-1, envs, 2), slots)
    assert np.array_equal(sums, np.array(expected))
