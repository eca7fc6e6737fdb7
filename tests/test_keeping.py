"""Policies of which episodes to keep, compared with plain lists of all episodes."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from keeping import is_odd, of_lists, policies
from torchrl_rerun import Episode, KeepBest, KeepIf, KeepLast, KeepWorst

returns = st.integers(-3, 3).map(float) | st.just(math.nan)


@st.composite
def histories(draw):
    counts = {}
    episodes = []
    for env, value, interrupted in draw(st.lists(st.tuples(st.integers(0, 2), returns, st.booleans()), max_size=40)):
        counts[env] = counts.get(env, -1) + 1
        episodes.append(Episode(env, counts[env], value, 10, interrupted=interrupted))
    return episodes


@examples(150)
@given(policies, histories())
def test_kept_episodes_equal_a_reference_on_plain_lists(policy, episodes):
    kept, there = policy.new_kept(), {}
    for number, episode in enumerate(episodes):
        there[episode.id] = episode
        for candidate in kept.offer(episode):
            if candidate.id in there and not kept.holds(candidate):
                kept.forget(there.pop(candidate.id))
        assert set(there) == of_lists(policy, episodes[: number + 1])


@pytest.mark.parametrize("kind", [KeepBest, KeepWorst])
def test_interrupted_episodes_stay_until_enough_have_ended(kind):
    """Interrupted episodes are kept, too. Each episode that ends replaces an interrupted one."""
    kept = kind(2).new_kept()
    cut = [Episode(0, number, float(number), 10, interrupted=True) for number in range(3)]
    ended = [Episode(0, number, 1.0, 10, terminated=True) for number in (3, 4)]
    gone = [kept.offer(episode) for episode in (*cut, *ended)]
    first, last = (cut[1:], cut[:1]) if kind is KeepBest else (cut[:2], cut[2:])
    assert [each for offered in gone[:3] for each in offered] == last
    assert {each.id for offered in gone[3:] for each in offered} == {each.id for each in first}
    assert all(kept.holds(each) for each in ended)


def test_a_policy_can_be_used_twice():
    policy = KeepLast(1)
    first, second = policy.new_kept(), policy.new_kept()
    first.offer(Episode(0, 0, 1.0, 1))
    second.offer(Episode(0, 1, 1.0, 1))
    assert first.holds(Episode(0, 0, 1.0, 1))


def test_policies_are_pickled():
    policy = KeepLast(3, where=is_odd) | KeepBest(2) & KeepWorst(1, per_env=True)
    assert pickle.loads(pickle.dumps(policy)) == policy


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_a_policy_needs_a_positive_number(n):
    with pytest.raises(ValueError, match="pass how many episodes to keep"):
        KeepBest(n)


def test_policies_combine_with_policies_and_functions_alone():
    with pytest.raises(TypeError):
        KeepLast(1) | 5
    with pytest.raises(TypeError, match="pass a function"):
        KeepIf(0.5)


def test_an_episode_is_kept_if_a_function_of_the_policy_fails():
    kept = (KeepIf(lambda episode: episode["success"]) & KeepLast(5, where=lambda episode: 1 / 0)).new_kept()
    episode = Episode(2, 7, 1.0, 3)
    with pytest.warns(RuntimeWarning, match="failed on episode 7 of environment 2") as warned:
        gone = [each for offered in (episode, Episode(2, 8, 1.0, 3)) for each in kept.offer(offered)]
    assert gone == []
    assert kept.holds(episode)
    assert len(warned) == 2  # a warning for each function, at the line of the policy
    assert {warning.filename for warning in warned} == {__file__}


def test_python_or_of_policies_and_a_where_that_is_no_function_are_refused():
    with pytest.raises(TypeError, match=r"combine policies with \| and &"):
        KeepLast(1) or KeepBest(1)
    with pytest.raises(TypeError, match="where='terminated': pass a function"):
        KeepLast(1, where="terminated")
