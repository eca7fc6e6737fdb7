"""Streams have different entity paths."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import RewardSum, TransformedEnv

from environments import Count, Groups, Says
from readback import hold_the_same, read
from rebuilt import episodes_in, returns_in, rollout_in
from torchrl_rerun import RerunRecorder
from torchrl_rerun.kinds.entity_paths import EntityPaths, free_key
from torchrl_rerun.kinds.scalars import Scalars
from torchrl_rerun.kinds.streams import Stream, entity_path


@pytest.mark.parametrize("split", ["run", "episode"])
@pytest.mark.parametrize(
    "keys",
    [
        ["episode_return"],
        ["episode_return", "recorded_episode_return"],
        [("batch", "reward"), "batch_"],
        [("__properties", "torchrl_rerun"), ("__properties_2", "torchrl_rerun"), ("__properties", "episode")],
        ["a/b", ("a", "b"), r"a\/b", "a b", "a.b"],
    ],
)
def test_keys_may_have_the_names_of_the_recorders_keys(tmp_path, split, keys):
    env = Says(*keys).append_transform(RerunRecorder(tmp_path, split=split))
    rollout = env.rollout(7, break_when_any_done=False)
    env.close()
    assert hold_the_same(rollout_in(tmp_path), rollout)
    assert [each.length for each in episodes_in(tmp_path)] == [3, 3, 1]
    assert returns_in(tmp_path) == {(0, 0): 36.0, (0, 1): 36.0, (0, 2): 11.0}


def test_a_key_of_the_environment_keeps_its_name_and_the_recorders_is_renamed(path):
    env = TransformedEnv(Count(3), RewardSum(in_keys=["reward"], out_keys=["episode_return"]))
    env = env.append_transform(RerunRecorder(path))
    env.rollout(3)
    env.close()
    recorded = read(path)
    assert recorded.entry("recorded_episode_return")["sums"] == ["reward"]
    assert [value.item() for value in recorded["/env_0/episode_return"].values] == [0, 11, 23, 36]
    assert recorded["/env_0/recorded_episode_return"].values[-1].item() == 36
    assert free_key(("episode_return",), {("episode_return",), ("recorded_episode_return",)}) == (
        "recorded_recorded_episode_return",
    )


def test_agents_with_equal_names_have_different_paths(path):
    env = Groups({"red": 3}, agents=3)
    env.group_map = {"red": ["fox", "fox", "fox_2"]}
    env = env.append_transform(RerunRecorder(path))
    rollout = env.rollout(4, break_when_any_done=False)
    env.close()
    assert hold_the_same(rollout_in(path), rollout)
    assert {"/env_0/red/age/fox", "/env_0/red/age/fox_2", "/env_0/red/age/fox_3"} <= read(path).entities.keys()


def test_a_stored_rollout_may_have_a_key_named_like_the_return(path):
    rollout = Says("episode_return").rollout(3)
    with RerunRecorder(path) as recorder:
        recorder.log_rollout(rollout.set("note", torch.arange(3)))
    assert returns_in(path) == {(0, 0): 36.0}
    assert hold_the_same(rollout_in(path), rollout)


def test_paths_differ_in_any_order_of_keys():
    places = EntityPaths(reserved=("x",))
    streams = [Stream(key, Scalars(), "float32", (1,)) for key in [("a",), ("a",), ("a_2",), ("x", "y"), ("x_2", "y")]]
    paths = [entity_path(places.assign(stream), None) for stream in streams]
    assert len(set(paths)) == 5
    assert not any(path.startswith("/x/") for path in paths)
