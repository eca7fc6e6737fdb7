"""Frames that are recorded: by triggers, lengths and skipping, as in Gymnasium's RecordVideo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.triggers import Selection


def selection(envs=1, **choice):
    return Selection(envs, Options(**choice))


def recorded(lengths, **choice):
    """Return the recorded frames of an environment with episodes of these lengths: ``(episode, step in it)``."""
    picks, step, found = selection(**choice), 0, []
    for episode, length in enumerate(lengths):
        if len(picks_of(picks.reset(None, np.array([episode])), 1)):
            found.append((episode, 0))
        for t in range(1, length + 1):
            step += 1
            _, after = picks.step(None, step, np.array([t == length]))
            if len(picks_of(after, 1)):
                found.append((episode, t))
    return found


def picks_of(rows, envs):
    """Return the environments of rows. None stands for all."""
    return list(range(envs)) if rows is None else rows.tolist()


def everything(lengths):
    return [(episode, t) for episode, length in enumerate(lengths) for t in range(length + 1)]


def test_without_a_trigger_everything_is_recorded():
    assert recorded([2, 1, 3]) == everything([2, 1, 3])
    assert selection().takes_all


def test_an_episode_trigger_records_whole_episodes():
    found = recorded([2, 3, 1, 2], episode_trigger=lambda episode: episode % 2 == 1)
    assert found == [(episode, t) for episode, t in everything([2, 3, 1, 2]) if episode % 2 == 1]


def test_a_trigger_that_is_never_true_records_nothing():
    assert recorded([3, 3], episode_trigger=lambda episode: False) == []


def test_a_step_trigger_records_from_the_result_of_its_step_to_the_end_of_the_episode():
    assert recorded([3, 4], step_trigger=lambda step: step == 4) == [(1, 2), (1, 3), (1, 4)]


def test_recording_length_counts_steps_and_goes_on_in_the_next_episode():
    found = recorded([2, 2, 2], episode_trigger=lambda episode: episode == 0, recording_length=4)
    assert found == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


@pytest.mark.parametrize("skip", [1, 2, 3, 10])
def test_skip_keeps_the_first_and_the_last_frame_of_each_episode(skip):
    lengths = [7, 1, 4]
    wanted = [(episode, t) for episode, t in everything(lengths) if t % skip == 0 or t == lengths[episode]]
    assert recorded(lengths, skip=skip) == wanted


def test_each_environment_is_triggered_by_its_own_episodes():
    picks = selection(3, episode_trigger=lambda episode: episode == 5)
    assert picks_of(picks.reset(None, np.array([5, 4, 5])), 3) == [0, 2]
    before, after = picks.step(np.array([1, 2]), 1, None)
    assert (before.tolist(), after.tolist()) == ([2], [2])


def test_the_action_that_led_to_the_last_recorded_frame_belongs_to_the_frame_before_it():
    picks = selection(episode_trigger=lambda episode: True, recording_length=1)
    picks.reset(None, np.array([0]))
    assert [picks_of(rows, 1) for rows in picks.step(None, 1, None)] == [[0], [0]]
    assert [picks_of(rows, 1) for rows in picks.step(None, 2, None)] == [[0], []]
    assert [picks_of(rows, 1) for rows in picks.step(None, 3, None)] == [[], []]


def test_a_recorder_that_is_off_records_nothing_and_calls_no_trigger():
    asked = []
    picks = selection(episode_trigger=lambda episode: asked.append(episode) or True)
    picks.switch(enabled=False)
    assert picks_of(picks.reset(None, np.array([0])), 1) == []
    picks.switch(enabled=True)
    assert picks_of(picks.reset(None, np.array([1])), 1) == [0]
    assert asked == [1]


def test_a_trigger_that_fails_records_and_warns_once():
    def fails(episode):
        raise ZeroDivisionError

    with pytest.warns(RuntimeWarning, match="failed at 0: ZeroDivisionError") as warned:
        assert recorded([1, 1], episode_trigger=fails) == everything([1, 1])
    assert len(warned) == 1


def test_environments_that_are_added_later_are_recorded_too():
    picks = selection(1, skip=2)
    picks.reset(None, np.array([0]))
    picks.grow(3)
    assert picks_of(picks.reset(np.array([1, 2]), np.array([0, 0])), 3) == [1, 2]
    assert picks_of(picks.step(None, 1, None)[1], 3) == []


@examples(100)
@given(
    st.lists(st.integers(1, 6), max_size=6),
    st.none() | st.sets(st.integers(0, 5)),
    st.none() | st.sets(st.integers(0, 30), max_size=4),
    st.integers(1, 4),
)
def test_triggered_frames_equal_a_reference_on_plain_lists(lengths, episodes, steps, skip):
    wanted, step = [], 0
    for episode, length in enumerate(lengths):
        running = episode in episodes if episodes is not None else steps is None
        since = 0
        if running:
            wanted.append((episode, 0))
        for t in range(1, length + 1):
            since += 1
            if steps is not None and step in steps:
                running, since = True, 0
            step += 1
            if running and (since % skip == 0 or t == length):
                wanted.append((episode, t))
    choice = {
        "episode_trigger": None if episodes is None else episodes.__contains__,
        "step_trigger": None if steps is None else steps.__contains__,
    }
    assert recorded(lengths, skip=skip, **choice) == wanted
