"""Thousands of environments: a few are recorded in detail, and statistics over all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrl.envs import step_mdp

from environments import WALKERS, Walkers
from readback import read
from torchrl_rerun import RerunRecorder


@pytest.fixture
def recorded(path):
    env = Walkers().append_transform(RerunRecorder(path))
    with pytest.warns(UserWarning, match="of 100 environments the first 16 are recorded"):
        rollout = env.rollout(40, break_when_any_done=False)
    env.close()
    return rollout, read(path)


def test_statistics_are_over_all_environments(recorded):
    rollout, recording = recorded
    rewards = rollout["next", "reward"][..., 0].double().numpy()  # [envs, time]
    rows = recording["/batch/reward"]
    assert rows.along("step") == list(range(1, 41))
    quantiles = np.quantile(rewards, [0, 0.1, 0.5, 0.9, 1], axis=0).T
    expected = np.concatenate([rewards.mean(axis=0)[:, None], quantiles], axis=1)
    assert np.array_equal(np.stack([value.numpy() for value in rows.values]), expected)


def test_returns_of_all_environments_start_at_0_in_each_episode(recorded):
    rollout, recording = recorded
    rewards = rollout["next", "reward"][..., 0].double().numpy()
    done = rollout["next", "done"][..., 0].numpy()
    rows = recording["/batch/episode_return"]
    assert rows.along("step") == list(range(1, 41))
    total = np.zeros(WALKERS)
    for step, row in enumerate(rows.values):
        total = total + rewards[:, step]
        assert row.numpy()[1:] == pytest.approx(np.quantile(total, [0, 0.1, 0.5, 0.9, 1]))
        total = np.where(done[:, step], 0.0, total)
    assert done.any()


def test_returns_go_on_in_the_next_part(path):
    env = Walkers().append_transform(RerunRecorder(path))
    first = env.rollout(1)
    env.transform.close()
    with pytest.warns(UserWarning, match=r"run\.part_1\.rrd"):
        second = env.rollout(1, auto_reset=False, tensordict=step_mdp(first[:, -1]))
    env.close()
    assert not first["next", "done"].any()
    total = torch.cat([first, second], 1)["next", "reward"][..., 0].double().sum(1).numpy()
    last = read(path.with_name("run.part_1.rrd"))["/batch/episode_return"].values[-1]
    assert last.tolist() == pytest.approx([total.mean(), *np.quantile(total, [0, 0.1, 0.5, 0.9, 1])])


def test_the_first_environments_of_many_are_recorded_in_detail(recorded):
    rollout, recording = recorded
    assert recording.schema["envs"] == list(range(16))
    steps = recording["/env_15/reward"]
    assert torch.equal(torch.stack(steps.values), rollout["next", "reward"][15])
    assert "/env_16/reward" not in recording.entities


def test_details_and_statistics_share_frame_numbers(recorded):
    _, recording = recorded
    batch = dict(zip(recording["/batch/reward"].along("step"), recording["/batch/reward"].along("frame"), strict=True))
    env = recording["/env_3/reward"]
    assert all(batch[step] == frame for step, frame in zip(env.along("step"), env.along("frame"), strict=True))


def test_logged_envs_turns_statistics_off(path):
    env = Walkers().append_transform(RerunRecorder(path, logged_envs=[3, 50]))
    env.rollout(3)
    env.close()
    assert not [entity for entity in read(path).entities if entity.startswith("/batch")]


def test_thousands_of_environments_in_detail_give_a_warning_with_the_cost(path):
    env = Walkers(600).append_transform(RerunRecorder(path, logged_envs="all", buffer_bytes=600 << 10))
    with pytest.warns(UserWarning, match=r"600 environments .* in detail.* us, .* ms for all.*buffer_bytes=\d+"):
        rollout = env.rollout(3)
    env.close()
    rows = read(path)["/env_599/reward"]
    assert torch.equal(torch.stack(rows.values), rollout["next", "reward"][599])
