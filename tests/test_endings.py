"""The rule for the end of an episode: the same for live data, stored rollouts and recordings that are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import ParallelEnv, SerialEnv

from environments import Groups
from readback import hold_the_same, read, read_folder
from rebuilt import episodes_in, rollout_in
from torchrl_rerun import RerunRecorder, replay
from torchrl_rerun.kinds.endings import Endings, deciding


def ends(flags, count=1):
    found = Endings(flags).ended(lambda key: np.array(flags[key]), count)
    return None if found is None else [part.tolist() for part in found]


def test_the_outermost_flags_decide():
    assert deciding([("done",), ("a", "done"), ("a", "b", "truncated"), ("x",)]) == (("done",),)
    assert deciding([("a", "done"), ("a", "b", "done"), ("c", "d", "done")]) == (("a", "done"), ("c", "d", "done"))
    assert deciding([("observation",)]) == ()


def test_agents_end_no_episode_if_the_environment_has_a_flag():
    assert ends({("done",): [[False]], ("agents", "done"): [[True, False]]}) is None


def test_without_a_flag_of_the_environment_all_groups_and_agents_must_be_done():
    flags = {("red", "done"): [[True, True], [True, True]], ("blue", "done"): [[True, False], [True, True]]}
    assert ends(flags, 2) == [[False, True], [False, False]]


def test_done_alone_counts_as_terminated():
    assert ends({("done",): [[True]], ("truncated",): [[False]]}) == [[True], [False]]
    assert ends({("done",): [[True]], ("truncated",): [[True]]}) == [[False], [True]]


def test_terminated_and_truncated_end_an_episode_without_done():
    assert ends({("terminated",): [[False], [True]], ("truncated",): [[True], [False]]}, 2) == [
        [False, True],
        [True, False],
    ]


# --- agents that are done one by one ---

BESIDE = {"red": 2, "blue": 4}


def lengths(path):
    return sorted((each.env, each.episode, each.length) for each in episodes_in(path))


@pytest.mark.parametrize("split", ["run", "episode"])
def test_stored_and_live_data_have_equal_episodes(tmp_path, split):
    """Agents are done before their environment."""
    env = Groups(BESIDE, root=True).append_transform(RerunRecorder(tmp_path / "live", split=split))
    rollout = env.rollout(10, break_when_any_done=False)
    env.close()
    assert rollout["next", "red", "done"].sum() > rollout["next", "done"].sum()
    with RerunRecorder(tmp_path / "stored", split=split) as recorder:
        recorder.log_rollout(rollout[:, :3])
        recorder.log_rollout(rollout[:, 3:])
    passed = RerunRecorder(tmp_path / "passed", split=split)
    Groups(BESIDE, root=True).rollout(11, break_when_any_done=False, callback=passed.callback)
    passed.close()
    of_each = [(env, episode, length) for env in range(2) for episode, length in enumerate((4, 4, 2))]
    assert lengths(tmp_path / "live") == lengths(tmp_path / "stored") == lengths(tmp_path / "passed") == of_each
    assert hold_the_same(rollout_in(tmp_path / "live"), rollout)


def test_flags_end_episodes_without_being_recorded(path):
    env = Groups(BESIDE, root=True).append_transform(
        RerunRecorder(path, in_keys=[("red", "age"), ("red", "done"), ("red", "reward")])
    )
    env.rollout(10, break_when_any_done=False)
    env.close()
    assert [each.length for each in episodes_in(path) if each.env == 0] == [4, 4, 2]


# --- groups that are reset one by one ---


def rollout_of(env, steps=11):
    return env.rollout(steps, break_when_any_done=False)


@pytest.mark.parametrize("how", ["single", "serial", "parallel"])
@pytest.mark.parametrize("lengths", [{"red": 2, "blue": 3}, {"red": 5, "blue": 1}, {"red": 3, "blue": 3}])
def test_groups_that_are_not_reset_keep_their_last_observation(path, how, lengths):
    """A recording equals TorchRL's rollout, which ignores values of a reset for groups that are not reset."""
    env = Groups(lengths)
    if how != "single":
        make = {"serial": SerialEnv, "parallel": ParallelEnv}[how]
        env = make(2, lambda: Groups(lengths, batch=1))
    env = env.append_transform(RerunRecorder(path))
    rollout = rollout_of(env)
    env.close()
    back = rollout_in(path)
    for key in (
        ("red", "age"),
        ("blue", "age"),
        ("red", "done"),
        "clock",
        ("next", "red", "age"),
        ("next", "blue", "age"),
    ):
        assert (back[key] == rollout[key]).all(), key
    assert hold_the_same(back, rollout)


@pytest.mark.parametrize("split", ["run", "episode"])
def test_an_episode_ends_when_all_groups_are_done(tmp_path, split):
    env = Groups({"red": 2, "blue": 3}).append_transform(RerunRecorder(tmp_path / "run", split=split))
    rollout = rollout_of(env, 14)
    env.close()
    episodes = [each for each in episodes_in(tmp_path / "run") if each.env == 1]
    assert [(each.length, each.terminated) for each in episodes] == [(6, True), (6, True), (2, False)]
    assert hold_the_same(rollout_in(tmp_path / "run"), rollout)
    with RerunRecorder(tmp_path / "stored", split=split) as recorder:
        recorder.log_rollout(rollout)
    assert lengths(tmp_path / "stored") == lengths(tmp_path / "run")
    assert hold_the_same(rollout_in(tmp_path / "stored"), rollout)


def test_a_reset_of_groups_is_a_frame_of_its_own(path):
    env = Groups({"red": 2, "blue": 3}).append_transform(RerunRecorder(path))
    rollout_of(env, 6)
    env.close()
    red = read(path)["/env_0/red/age/agent_0"]
    assert [value.item() for value in red.values] == [0, 1, 2, 0, 1, 1, 2, 0, 1, 2]
    assert red.along("episode_step") == [0, 1, 2, 2, 3, 3, 4, 4, 5, 6]
    assert red.along("frame") == list(range(10))
    assert set(red.along("episode")) == {0}


def test_an_episode_file_counts_a_frame_for_each_row(tmp_path):
    env = Groups({"red": 2, "blue": 3}).append_transform(RerunRecorder(tmp_path, split="episode"))
    rollout_of(env, 6)
    env.close()
    red = read(tmp_path / "env_0_episode_000000.rrd")["/red/age/agent_0"]
    assert red.along("frame") == list(range(10))


def test_agents_of_a_group_are_reset_apart(path):
    class Apart(Groups):
        def _step(self, tensordict):
            out = super()._step(tensordict)
            done = out["red", "age"] - self.offset >= torch.tensor([[2.0], [3.0]])
            return out.set(("red", "done"), done)

    env = Apart({"red": 9}).append_transform(RerunRecorder(path))
    rollout = rollout_of(env, 7)
    env.close()
    assert rollout["next", "red", "done"].any(2).sum() > rollout["next", "red", "done"].all(2).sum()
    assert hold_the_same(rollout_in(path), rollout)


def test_returns_go_on_over_resets_within_an_episode(tmp_path):
    env = Groups({"red": 2, "blue": 3}).append_transform(RerunRecorder(tmp_path, split="episode"))
    rollout = rollout_of(env, 6)
    env.close()
    [episode] = [recorded.episode for (env, _), recorded in read_folder(tmp_path).items() if env == 0]
    assert episode["episode_return"] == pytest.approx(rollout["next", "blue", "reward"][0].sum(0).mean().item())


def test_skip_keeps_group_resets_at_kept_frames(path):
    env = Groups({"red": 2, "blue": 3}).append_transform(RerunRecorder(path, skip=2))
    rollout_of(env, 6)
    env.close()
    red = read(path)["/env_0/red/age/agent_0"]
    assert red.along("episode_step") == [0, 2, 2, 4, 4, 6]


@pytest.mark.parametrize("root", [True, False])
@pytest.mark.parametrize("source", ["recording", "episodes", "saved", "mapped", "buffer"])
def test_agents_are_replayed_unchanged(tmp_path, root, source):
    """Agents keep the batch size of their group, and their episodes."""
    env = Groups({"red": 2, "blue": 3}, root=root)
    first = tmp_path / ("first" if source == "episodes" else "first.rrd")
    env = env.append_transform(RerunRecorder(first, split="episode" if source == "episodes" else "run"))
    rollout = env.rollout(14, break_when_any_done=False)
    env.close()
    stored = tmp_path / "stored"
    if source == "saved":
        torch.save(rollout, stored)
    elif source == "mapped":
        rollout.memmap(stored)
    elif source == "buffer":
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(50, ndim=2), batch_size=4)
        buffer.extend(rollout)
        buffer.dumps(stored)
    again = tmp_path / "again.rrd"
    replay(stored if stored.exists() else first, again)
    assert lengths(again) == lengths(first)
    for path in first, again:
        assert hold_the_same(rollout_in(path).exclude("index"), rollout)  # a key of replay buffers


def test_a_rollout_without_flags_is_one_episode(path):
    data = TensorDict(
        observation=torch.arange(5.0)[:, None],
        next=TensorDict(observation=torch.arange(1, 6.0)[:, None]),
        batch_size=[5],
    )
    data["next"].batch_size = [5]
    with RerunRecorder(path) as recorder:
        recorder.log_rollout(data)
    assert lengths(path) == [(0, 0, 5)]
