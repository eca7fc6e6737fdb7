"""Steps and arrays of `load` with gaps in keys: exactly the steps that happened, with masks of missing values."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from rerun.chunk import Chunk
from torchrl.data import Unbounded
from torchrl.envs import GymWrapper

from driving import record, walk
from environments import ABSENT, UNITS, Lengths, OfOwnSizes, Scripted, Uneven, rollout_that_lacks_keys, with_gaps
from episode_folders import write_chunks
from readback import same
from torchrl_rerun import RerunRecorder, load
from torchrl_rerun.kinds.arrow import Entity, chunks_of, number_lists, times_of
from torchrl_rerun.kinds.scalars import Scalars
from torchrl_rerun.kinds.schema import Moment, Source, property_chunk
from torchrl_rerun.kinds.streams import Stream, entity_path


def filling(dtype):
    return torch.nan if dtype.is_floating_point or dtype.is_complex else 0


@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("name", UNITS)
def test_a_key_with_gaps_has_a_mask(path, name, absent):
    """Other keys are unchanged."""
    observe, unit = with_gaps(name, absent), UNITS[name]
    record(Scripted(observe), path, 8, image_format="png")
    [episode] = load(path)
    there = [t for t in range(9) if t not in ABSENT[absent]]
    assert same(episode["y"], torch.stack([observe(t)["y"] for t in there]))
    for steps in (
        episode.tensordict(),
        load(path).rollout(),
        episode.tensordict(["y"]),
        episode.tensordict(["y", "x"]),
    ):
        assert len(steps) == 8
        for part, first in ((steps, 0), (steps["next"], 1)):
            for t in range(8):
                value, is_there = part[t]["y"], bool(part[t]["recorded", "y"])
                assert is_there == (t + first in there)
                wanted = observe(t + first)["y"] if is_there else torch.full_like(unit, filling(unit.dtype))
                assert same(value, wanted) or (not is_there and value.isnan().all())
    steps = episode.tensordict()
    assert steps["x"][:, 0].tolist() == list(range(8))
    assert steps["next", "x"][:, 0].tolist() == list(range(1, 9))
    assert steps["next", "reward"].flatten().tolist() == list(range(1, 9))
    assert "recorded" not in episode.tensordict(["x", "reward"]).keys()


def test_masks_do_not_take_the_name_of_a_key(path):
    def observe(t):
        values = {"recorded": torch.full((1,), float(t)), "y": torch.zeros(1)}
        return values if t != 2 else {"recorded": values["recorded"]}

    record(Scripted(observe), path, 4)
    steps = load(path).rollout()
    assert steps["recorded"].flatten().tolist() == [0, 1, 2, 3]
    assert steps["recorded_", "y"].tolist() == [True, True, False, True]


def test_a_key_with_gaps_in_one_environment_has_a_mask_in_all(path):
    """Otherwise the environments could not be stacked."""
    late = Scripted(lambda t: {"x": torch.full((1,), float(t))} | ({} if t == 2 else {"y": torch.full((1,), 1.0)}))
    whole = Scripted(lambda t: {"x": torch.full((1,), float(t)), "y": torch.full((1,), 1.0)})
    with RerunRecorder(path) as recorder:
        for env in (whole, late):
            recorder.log_rollout(env.rollout(4, return_contiguous=False))
    steps = load(path).rollout()
    assert steps["recorded", "y"].tolist() == [True] * 6 + [False] + [True]
    assert steps["x"].flatten().tolist() == [0, 1, 2, 3] * 2


def test_texts_that_are_missing_are_none(path):
    with RerunRecorder(path) as recorder:
        recorder.log_rollout(rollout_that_lacks_keys())
    lacking = load(path)[1]
    assert lacking["note"] == ["1 at 0", "1 at 1", "1 at 4", "1 at 5"]
    assert lacking.tensordict().get(("next", "note")).tolist() == ["1 at 1", None, None, "1 at 4", "1 at 5"]


def test_a_key_has_all_steps_if_no_key_has_a_row_at_each_frame(path):
    """Neither rewards nor flags are recorded, and each key is missing at another frame."""

    def observe(t):
        return {key: torch.full((1,), float(t)) for key, gap in (("x", 2), ("y", 4), ("z", 5)) if t != gap}

    record(Scripted(observe), path, 6, in_keys=["x", "y", "z"])
    [episode] = load(path)
    for keys in (None, ["x"], ["y"], ["x", "z"]):
        assert len(episode.tensordict(keys)) == 6
    assert episode.tensordict(["x"])["recorded", "x"].tolist() == [True, True, False, True, True, True]


# --- frames that were not recorded ---


@pytest.mark.parametrize("split", ["run", "episode"])
def test_steps_do_not_cross_skipped_frames(tmp_path, split):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(tmp_path / "run", split=split, skip=2))
    rollout = env.rollout(10, break_when_any_done=False)
    env.close()
    episode = load(tmp_path / "run")[2]  # of 6 steps
    with pytest.warns(UserWarning, match=r"3 of the recorded frames don't follow.*episode\[key\] gives all rows"):
        assert len(episode.tensordict()) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        episode.tensordict()  # a warning was given
    first = episode.properties.first_step
    assert same(episode["observation"][:3], rollout["observation"][first : first + 6 : 2])
    assert episode.properties.length == episode.properties.episode_return == 6


def test_the_last_step_of_an_episode_is_a_step_if_both_its_frames_are_there(path):
    """The last frame of an episode is recorded with any `skip`."""
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(path, skip=2))
    rollout = env.rollout(10, break_when_any_done=False)
    env.close()
    odd = load(path)[0]  # of 3 steps: frames 0, 2 and 3
    with pytest.warns(UserWarning, match="1 of the recorded frames don't follow"):
        steps = odd.tensordict()
    first = odd.properties.first_step
    assert len(steps) == 1
    assert same(steps["observation"], rollout["observation"][first + 2 : first + 3])
    assert same(steps["next", "observation"], rollout["next", "observation"][first + 2 : first + 3])


def test_steps_do_not_cross_frames_at_which_the_recorder_was_off(path):
    recorder = RerunRecorder(path)
    env = Scripted(lambda t: {"x": torch.full((1,), float(t))}).append_transform(recorder)
    tensordict = env.reset()
    for t in range(12):
        recorder.switch(t not in (4, 5, 8))
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    env.close()
    [episode] = load(path)
    assert episode["x"].flatten().tolist() == [0, 1, 2, 3, 4, 7, 8, 10, 11, 12]
    steps = episode.tensordict()
    assert steps["x"].flatten().tolist() == [0, 1, 2, 3, 7, 10, 11]
    assert steps["next", "x"].flatten().tolist() == [1, 2, 3, 4, 8, 11, 12]
    assert steps["next", "reward"].flatten().tolist() == [1, 2, 3, 4, 8, 11, 12]


def test_slices_do_not_cross_skipped_frames(path):
    recorder = RerunRecorder(path)
    env = Scripted(lambda t: {"x": torch.full((1,), float(t))}).append_transform(recorder)
    tensordict = env.reset()
    for t in range(20):
        recorder.switch(t not in (6, 7))
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    env.close()
    episodes = load(path)
    slices = episodes.dataset(4)
    assert len(slices) == 3 + 8  # of 6 steps and of 11
    for each in slices:
        assert each["next", "x"][:-1].tolist() == each["x"][1:].tolist()
        assert (each["next", "x"] - each["x"]).flatten().tolist() == [1.0] * 4
    buffer = episodes.replay_buffer(batch_size=64, slice_len=4)
    assert len(buffer) == 17
    for each in buffer.sample().reshape(-1, 4):
        assert each["next", "x"][:-1].tolist() == each["x"][1:].tolist()
    assert len(episodes.dataset()) == 17


def test_slices_cross_gaps_of_a_key(path):
    def observe(t):
        return {"x": torch.full((1,), float(t))} | ({} if t == 5 else {"y": torch.full((1,), float(t))})

    record(Scripted(observe), path, 10)
    episodes = load(path)
    slices = episodes.dataset(4)
    assert len(slices) == 7
    found = torch.stack(list(slices))  # each has the mask
    assert found["next", "recorded", "y"].sum() == 28 - 4
    sample = episodes.replay_buffer(batch_size=40, slice_len=4).sample()
    assert ((sample["y"] == sample["x"]).flatten() == sample["recorded", "y"]).all()


# --- two rows at one step of an episode ---


def test_a_reset_of_one_group_of_agents_keeps_the_steps_of_the_episode(path):
    """The last observation and the one of the reset have one step of the episode and two frames."""
    obs = Stream(("obs",), Scalars(), "float32", (1,))
    reward, action = Stream(("reward",), Scalars(), "float32", (1,)), Stream(("action",), Scalars(), "float32", (1,))
    sums = Stream(("episode_return",), Scalars(), "float64", (1,), reward_key=("reward",))
    described = [(obs, Moment.OBSERVED), (sums, Moment.OBSERVED), (reward, Moment.STEPPED), (action, Moment.ACTED)]
    #        reset, step, step, group reset twice, step, group reset, step, reset, step
    steps = [0, 1, 2, 2, 2, 3, 3, 4, 0, 1]
    episodes = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    is_step = [0, 1, 1, 0, 0, 1, 0, 1, 0, 1]
    frames = np.arange(10)
    positions = np.stack([frames, np.cumsum(is_step), episodes, steps, 1000 + frames], axis=1)

    def rows(stream, at, values, env=0):
        times = times_of(np.asfortranarray(positions[at]), None)
        return list(chunks_of(times, [Entity(entity_path(stream, env), [number_lists(np.float32(values)[:, None])])]))

    after = np.flatnonzero(is_step)
    before = after - 1
    lacking = [0, 1, 3, 4, 5, 6, 7, 8, 9]  # the observation at step 2 is missing, and none of the resets
    chunks: list[Chunk] = [property_chunk(Source((2,), "Groups"), [0, 1], described)]
    for env, seen in ((0, frames), (1, lacking)):
        chunks += rows(obs, seen, np.array(seen) * 1.0, env)
        chunks += rows(sums, frames, frames * 0.0, env)
        chunks += rows(reward, after, after * 10.0, env)
        chunks += rows(action, before, before * 100.0, env)
    write_chunks(path, chunks, "groups")
    found = load(path).rollout()
    assert found["obs"].flatten(1).tolist() == [[0, 1, 4, 6, 8]] * 2
    assert found["action"].flatten(1).tolist() == [[0, 100, 400, 600, 800]] * 2
    assert found["next", "obs"][0].flatten().tolist() == [1, 2, 5, 7, 9]
    assert found["next", "reward"].flatten(1).tolist() == [[10, 20, 50, 70, 90]] * 2
    assert found["next", "recorded", "obs"].tolist() == [[True] * 5, [True, False, True, True, True]]
    assert load(path)[0]["obs"].flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [each.properties.length for each in load(path)] == [4, 4, 1, 1]
    assert len(load(path).dataset(4)) == 2
    assert same(load(path).dataset(4)[0]["obs"].flatten(), torch.tensor([0.0, 1, 4, 6]))


# --- keys that vary in shape ---


def test_shapes_that_differ_by_time_are_padded_and_have_a_mask(path):
    size_at = lambda env, t: 1 + t % 3
    env = Uneven(size_at).append_transform(RerunRecorder(path))
    rollout = env.rollout(6, return_contiguous=False)
    env.close()
    episodes = load(path)
    for each in episodes:
        env = each.properties.env
        assert all(same(each["x"][t], torch.full((size_at(env, t),), float(t))) for t in range(7))
        steps = each.tensordict()
        assert steps["x"].shape == steps["recorded", "x"].shape == (6, 3)
        for t in range(6):
            for found, wanted in ((steps[t], rollout[env, t]), (steps[t]["next"], rollout[env, t]["next"])):
                mask = found["recorded", "x"]
                assert same(found["x"][mask], wanted["x"])
                assert found["x"][~mask].isnan().all()
                assert same(found["y"], wanted["y"])
    assert episodes.rollout()["next", "x"].shape == (2, 6, 3)
    sample = episodes.replay_buffer(batch_size=8, slice_len=2).sample()
    assert sample["x"].shape == sample["recorded", "x"].shape == (8, 3)
    assert torch.stack([episodes.dataset()[i] for i in range(12)])["x"].shape == (12, 3)


def test_shapes_that_differ_by_environment_have_a_mask_in_the_rollout(path):
    """The episodes of a single environment need no mask."""
    env = Uneven(lambda env, t: 2 + env).append_transform(RerunRecorder(path))
    env.rollout(4, return_contiguous=False)
    env.close()
    first, second = load(path)
    assert first.tensordict()["x"].shape == (4, 2)
    assert second.tensordict()["next", "x"].shape == (4, 3)
    assert "recorded" not in first.tensordict().keys()
    both = load(path).rollout()
    assert both["x"].shape == (2, 4, 3)
    assert both["recorded", "x"].sum(-1).tolist() == [[2] * 4, [3] * 4]
    assert both["y"].shape == (2, 4, 2)


def test_shapes_of_several_varying_dimensions_and_of_none_have_a_mask(path):
    shapes = [(2, 3), (4, 1), (0, 5), (2,), (), (3, 3)]
    env = Scripted(
        lambda t: {"x": torch.full(shapes[t], t, dtype=torch.int32)},
        specs={"x": Unbounded((-1, -1), dtype=torch.int32)},
    ).append_transform(RerunRecorder(path))
    walk(env, 5)
    [episode] = load(path)
    assert [tuple(value.shape) for value in episode["x"]] == shapes
    assert all(same(value, torch.full(shapes[t], t, dtype=torch.int32)) for t, value in enumerate(episode["x"]))
    steps = episode.tensordict()
    assert steps["x"].shape == (5, 4, 5)
    assert steps["recorded", "x"].flatten(1).sum(1).tolist() == [6, 4, 0, 2, 1]


def test_agents_whose_observations_differ_in_shape_have_a_mask(path):
    env = OfOwnSizes().append_transform(RerunRecorder(path))
    env.rollout(3, return_contiguous=False)
    env.close()
    [episode] = load(path)
    for t, (small, large) in enumerate(episode["agents", "obs"]):
        assert same(small, torch.full((2,), float(t)))
        assert same(large, torch.full((5,), float(t)))
    steps = episode.tensordict()
    assert steps["next", "agents", "obs"].shape == (3, 2, 5)
    assert steps["recorded", "agents", "obs"].sum(-1).tolist() == [[2, 5]] * 3


@pytest.mark.parametrize("split", ["run", "episode"])
def test_a_shape_that_changes_within_an_episode_has_a_mask(tmp_path, split):
    sizes = [3, 3, 3, 4, 3, 3]
    with RerunRecorder(tmp_path / "run", split=split) as recorder:
        rollouts = [
            Scripted(lambda t: {"x": torch.full((sizes[t],), float(t))}).rollout(5, return_contiguous=False)
            for _ in range(2)
        ]
        for rollout in rollouts:
            recorder.log_rollout(rollout)
    for each in load(tmp_path / "run"):
        assert [tuple(value.shape) for value in each["x"]] == [(size,) for size in sizes]
        steps = each.tensordict()
        assert steps["x"].shape == (5, 4)
        assert steps["next", "recorded", "x"].sum(-1).tolist() == sizes[1:]


def test_pictures_that_vary_in_size_are_padded(path):
    sizes = [(8, 9, 3), (8, 9, 3), (10, 7, 3), (8, 9, 3)]
    pictures = [torch.randint(0, 256, size, dtype=torch.uint8) for size in sizes]
    env = Scripted(lambda t: {"pixels": pictures[t]}, specs={"pixels": Unbounded((8, 9, 3), dtype=torch.uint8)})
    env = env.append_transform(RerunRecorder(path, image_format="png"))
    env.rollout(3, return_contiguous=False)
    env.close()
    [episode] = load(path)
    assert all(map(same, episode["pixels"], pictures))
    assert episode.tensordict()["pixels"].shape == (3, 10, 9, 3)
