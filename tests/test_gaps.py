"""Keys that are missing at some frames, or vary in shape: exactly the existing values are recorded."""

from __future__ import annotations

import warnings

import pytest
import torch
from tensordict import NonTensorData
from torchrl.data import Unbounded

from driving import record, walk
from environments import ABSENT, UNITS, OfOwnSizes, Scripted, Uneven, rollout_that_lacks_keys, with_gaps
from readback import assert_rows, read, read_folder, same
from torchrl_rerun import RerunRecorder, replay


@pytest.mark.parametrize("absent", ABSENT)
@pytest.mark.parametrize("name", UNITS)
def test_a_key_that_is_missing_at_some_frames_has_rows_at_the_others(path, name, absent):
    observe = with_gaps(name, absent)
    record(Scripted(observe), path, 8, image_format="png")
    recorded = read(path)
    assert_rows(recorded["/env_0/y"], {t: observe(t)["y"] for t in range(9) if t not in ABSENT[absent]})
    assert_rows(recorded["/env_0/x"], {t: observe(t)["x"] for t in range(9)})
    assert_rows(recorded["/env_0/reward"], {t: torch.tensor([float(t)]) for t in range(1, 9)})


def test_a_stored_key_that_is_missing_after_the_first_steps_is_observed(path):
    """Later steps have the key in "next". Otherwise the key would count as the policy's."""
    env = Scripted(
        lambda t: {"x": torch.full((1,), float(t))} | ({"y": torch.full((1,), 1.0 + t)} if t not in (1, 2) else {})
    )
    rollout = env.rollout(100, return_contiguous=False)
    with RerunRecorder(path) as recorder:
        recorder.log_rollout(rollout)
    recorded = read(path)
    assert recorded.entry("y")["moment"] == "observed"
    assert_rows(recorded["/env_0/y"], {t: torch.tensor([1.0 + t]) for t in (0, *range(3, 101))})


def test_a_stored_key_that_is_missing_after_all_steps_of_the_first_rollout_is_recorded_before_steps(path):
    first, second = (Scripted(lambda t: {"x": torch.full((1,), float(t))}).rollout(3) for _ in range(2))
    for rollout in first, second:
        rollout["y"] = torch.ones(3, 1)
    second["next", "y"] = torch.ones(3, 1)
    with RerunRecorder(path) as recorder:
        recorder.log_rollout(first)
        with pytest.warns(UserWarning, match=r"^'y' is recorded as it goes into a step, and what steps lead to is not"):
            recorder.log_rollout(second)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            recorder.log_rollout(second)
    recorded = read(path)
    assert recorded.entry("y")["moment"] == "acted"
    assert recorded["/env_0/x"].along("frame") == list(range(12))
    assert_rows(recorded["/env_0/y"], {t: torch.ones(1) for t in range(12) if t % 4 < 3})


def test_frames_are_recorded_while_the_recorder_is_switched_on(path):
    recorder = RerunRecorder(path)
    env = Scripted(lambda t: {"x": torch.full((1,), float(t))}).append_transform(recorder)
    tensordict = env.reset()
    for t in range(12):
        recorder.switch(t not in (4, 5, 8))
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    env.close()
    frames = [0, 1, 2, 3, 4, 7, 8, 10, 11, 12]
    recorded = read(path)
    assert recorded["/env_0/x"].along("step") == frames
    for key, first in (("x", 0), ("reward", 1)):
        assert [value.item() for value in recorded[f"/env_0/{key}"].values] == frames[first:]


# --- keys that vary in shape ---


@pytest.mark.parametrize(
    "size_at", [lambda env, t: 1 + t % 3, lambda env, t: 2 + env], ids=["by time", "by environment"]
)
def test_shapes_that_differ_are_recorded(path, size_at):
    env = Uneven(size_at).append_transform(RerunRecorder(path))
    env.rollout(6, return_contiguous=False)
    env.close()
    recorded = read(path)
    for env in range(2):
        assert_rows(recorded[f"/env_{env}/x"], {t: torch.full((size_at(env, t),), float(t)) for t in range(7)})
        assert_rows(recorded[f"/env_{env}/y"], {t: torch.full((2,), float(t)) for t in range(7)})


def test_shapes_of_several_varying_dimensions_and_of_none_are_recorded(path):
    shapes = [(2, 3), (4, 1), (0, 5), (2,), (), (3, 3)]
    env = Scripted(
        lambda t: {"x": torch.full(shapes[t], t, dtype=torch.int32)},
        specs={"x": Unbounded((-1, -1), dtype=torch.int32)},
    ).append_transform(RerunRecorder(path))
    walk(env, 5)
    assert_rows(read(path)["/env_0/x"], {t: torch.full(shape, t, dtype=torch.int32) for t, shape in enumerate(shapes)})


def test_agents_whose_observations_differ_in_shape_are_recorded(path):
    env = OfOwnSizes().append_transform(RerunRecorder(path))
    env.rollout(3, return_contiguous=False)
    env.close()
    recorded = read(path)
    for agent, size in (("small", 2), ("large", 5)):
        assert_rows(recorded[f"/env_0/agents/obs/{agent}"], {t: torch.full((size,), float(t)) for t in range(4)})


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_have_a_component_for_each_environment(path, layout):
    def parts(t):
        return [torch.full((1 + env + t, 2), float(t)) for env in range(3)]

    def observe(t):
        return {"x": torch.nested.nested_tensor(parts(t), layout=layout), "y": torch.full((3, 1), float(t))}

    env = Scripted(observe, (3,), {"y": Unbounded((3, 1))}).append_transform(RerunRecorder(path, in_keys=["x", "y"]))
    walk(env, 3)
    recorded = read(path)
    for env in range(3):
        assert_rows(recorded[f"/env_{env}/x"], {t: parts(t)[env] for t in range(4)})


@pytest.mark.parametrize("split", ["run", "episode"])
def test_a_shape_that_changes_within_an_episode_is_recorded_before_and_after(tmp_path, split):
    sizes = [3, 3, 3, 4, 3, 3]
    values = [torch.full((size,), float(t)) for t, size in enumerate(sizes)]
    with RerunRecorder(tmp_path / "run", split=split) as recorder:
        for _ in range(2):
            recorder.log_rollout(Scripted(lambda t: {"x": values[t]}).rollout(5, return_contiguous=False))
    if split == "run":
        [file] = (tmp_path / "run").iterdir()
        found = read(file)["/env_0/x"].values
    else:
        found = [value for each in read_folder(tmp_path / "run").values() for value in each["/x"].values]
    assert same(found, values * 2)


def test_pictures_that_vary_in_size_are_recorded(path):
    sizes = [(8, 9, 3), (8, 9, 3), (10, 7, 3), (8, 9, 3)]
    pictures = [torch.randint(0, 256, size, dtype=torch.uint8) for size in sizes]
    env = Scripted(lambda t: {"pixels": pictures[t]}, specs={"pixels": Unbounded((8, 9, 3), dtype=torch.uint8)})
    env = env.append_transform(RerunRecorder(path, image_format="png"))
    env.rollout(3, return_contiguous=False)
    env.close()
    assert_rows(read(path)["/env_0/pixels"], dict(enumerate(pictures)))


# --- replays ---


@pytest.mark.parametrize("missing", [[3], [2, 3, 5]], ids=str)
def test_keys_that_are_missing_or_vary_are_replayed_unchanged(tmp_path, missing):
    def observe(t):
        values = {"x": torch.full((2,), float(t)), "many": torch.full((1 + t % 3,), float(t))}
        return values if t in missing else values | {"y": torch.full((2,), -float(t)), "note": NonTensorData(f"at {t}")}

    specs = {"x": Unbounded((2,)), "y": Unbounded((2,)), "many": Unbounded((-1,))}
    env = Scripted(observe, specs=specs).append_transform(RerunRecorder(tmp_path / "run.rrd", in_keys=list(observe(9))))
    walk(env, 6)
    replay(tmp_path / "run.rrd", tmp_path / "again.rrd")
    for name in ("run.rrd", "again.rrd"):
        recorded = read(tmp_path / name)
        for key in ("x", "many", "y", "note"):
            wanted = {t: observe(t)[key] for t in range(7) if key in observe(t)}
            wanted = {t: value.data if key == "note" else value for t, value in wanted.items()}
            assert_rows(recorded[f"/env_0/{key}"], wanted)


def test_keys_that_some_environments_lack_at_some_steps_have_rows_in_the_others(path):
    with RerunRecorder(path) as recorder, warnings.catch_warnings():
        warnings.simplefilter("error")
        recorder.log_rollout(rollout_that_lacks_keys())
    recorded = read(path)
    for env, frames in enumerate(([0, 1, 2, 3, 4, 5], [0, 1, 4, 5])):
        assert_rows(recorded[f"/env_{env}/y"], {t: torch.full((2,), -float(t)) for t in frames})
        assert_rows(recorded[f"/env_{env}/note"], {t: f"{env} at {t}" for t in frames})
        assert_rows(recorded[f"/env_{env}/x"], {t: torch.full((1,), float(t)) for t in range(6)})
