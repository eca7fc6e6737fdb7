"""RecordRerun records single environments of Gymnasium: each row that there was, and none that there wasn't."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import warnings

import gymnasium as gym
import numpy as np
import pytest
import rerun as rr
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv

from effort import examples
from gym_environments import SPACES, Drawn, Reference, assert_same_rows
from readback import read, read_folder
from torchrl_rerun import KeepLast, RecordingError, load
from torchrl_rerun.rrd.reader import parts_in
from torchrl_rerun.wrappers import RecordRerun
from torchrl_rerun.wrappers.sb3 import VecRerunRecorder


def record(env, steps, *, seed=0, reset_after_end=True):
    """Reset and step an environment, and return a reference of what it did."""
    reference = Reference(env)
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    reference.reset(observation)
    for _ in range(steps):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(action)
        reference.stepped(action, observation, reward, terminated, truncated)
        if (terminated or truncated) and reset_after_end:
            reference.reset(env.reset()[0])
    return reference


@pytest.mark.parametrize("observed", SPACES)
def test_observations_of_any_space_are_recorded_as_they_are(path, observed):
    env = RecordRerun(Drawn(SPACES[observed]), path)
    reference = record(env, 30)
    env.close()
    assert_same_rows(read(path), [reference])


@pytest.mark.parametrize("acted", SPACES)
def test_actions_of_any_space_are_recorded_as_they_are(path, acted):
    env = RecordRerun(Drawn(action_space=SPACES[acted]), path)
    reference = record(env, 30)
    env.close()
    assert_same_rows(read(path), [reference])


@examples(10)
@given(st.data())
def test_random_episodes_are_recorded_row_by_row(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("random") / "run.rrd"
    observed, acted = (SPACES[data.draw(st.sampled_from(sorted(SPACES)))] for _ in range(2))
    env = RecordRerun(Drawn(observed, acted, ends=data.draw(st.sampled_from([0, 0.1, 0.9]))), path, buffer_bytes=5000)
    reference = Reference(env)
    reference.reset(env.reset(seed=data.draw(st.integers(0, 9)))[0])
    for what in data.draw(st.lists(st.sampled_from(["step", "step", "step", "reset", "dump"]), max_size=40)):
        if what == "dump":
            env.dump()
        elif what == "reset":
            reference.reset(env.reset()[0])
        else:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            reference.stepped(action, observation, reward, terminated, truncated)
    env.close()
    if any(reference.step for _ in [0]) or reference.episode:
        assert_same_rows(read(path), [reference])


def test_the_last_observation_and_the_first_one_are_two_rows(path):
    env = RecordRerun(Drawn(ends=1), path)
    last, first = [], []
    first.append(env.reset(seed=0)[0])
    last.append(env.step(0)[0])
    first.append(env.reset()[0])
    last.append(env.step(1)[0])
    env.close()
    rows = read(path)["/env_0/observation"]
    assert rows.along("frame") == [0, 1, 2, 3]
    assert rows.along("episode_step") == [0, 1, 0, 1]
    assert np.array_equal(np.stack([value.numpy() for value in rows.values]), np.stack([*first, *last])[[0, 2, 1, 3]])


def test_what_the_environment_returns_stays_as_it_is(path):
    env, plain = RecordRerun(gym.make("CartPole-v1"), path), gym.make("CartPole-v1")
    returned = [env.reset(seed=1), plain.reset(seed=1)]
    assert np.array_equal(returned[0][0], returned[1][0])
    for action in (0, 1, 1, 0):
        found, wanted = env.step(action), plain.step(action)
        assert np.array_equal(found[0], wanted[0])
        assert [type(each) for each in found] == [type(each) for each in wanted]
        assert found[1:] == wanted[1:]
    env.close()


def test_the_wrapper_passes_gymnasiums_check(path):
    check_env(RecordRerun(Drawn(ends=0), path), skip_render_check=True)


def test_infos_are_recorded_if_they_are_asked_for(path):
    keys = ["observation", ("info", "frame"), ("info", "start"), ("info", "position"), ("info", "said")]
    env = RecordRerun(Drawn(ends=0), path, in_keys=keys)
    record(env, 3)
    env.close()
    recorded = read(path)
    assert recorded.keys() == {("observation",), *keys[1:]}
    assert [int(value) for value in recorded["/env_0/info/frame"].values] == [1, 2, 3, 4]
    assert [value.item() for value in recorded["/env_0/info/start"].values] == [0.5]
    assert recorded["/env_0/info/said"].values == ["step 2", "step 3", "step 4"]
    assert recorded["/env_0/info/position"].along("frame") == [1, 2, 3]


def test_a_key_that_is_not_there_is_named_with_those_that_are(path):
    env = RecordRerun(Drawn(), path, in_keys=["observation", "speed"])
    env.reset()
    with pytest.raises(KeyError, match=r"'speed'.*\('info', 'position'\)"):
        env.step(0)
    assert not path.exists()


def test_infos_that_come_later_are_told_and_recorded_when_they_come(path):
    keys = ["observation", "reward", ("info", "episode", "r"), ("info", "episode", "l"), ("info", "speed")]
    inner = gym.wrappers.TimeLimit(Drawn(ends=0), 3)
    env = RecordRerun(
        gym.wrappers.RecordEpisodeStatistics(inner), path, in_keys=keys, kinds={("info", "episode", "r"): "scalars"}
    )
    with pytest.warns(UserWarning, match=r"\('info', 'speed'\).*there are .*\('info', 'position'\)"):
        record(env, 7)
    env.close()
    recorded = read(path)
    for name in "rl":
        assert recorded[f"/env_0/info/episode/{name}"].along("frame") == [3, 7]
    assert [int(value) for value in recorded["/env_0/info/episode/l"].values] == [3, 3]
    episode = load(path)[0]
    assert episode.arrays()["info", "episode", "r"] == pytest.approx([episode.properties.episode_return])


def test_a_group_of_keys_is_refused_with_the_keys_in_it(path):
    env = RecordRerun(Drawn(SPACES["nested"]), path, in_keys=["a"])
    with pytest.raises(KeyError, match=r"\('a', 'b'\), \('a', 'c'\)"):
        env.reset()


def test_pictures_are_recorded_if_render_asks_for_them(path):
    env = RecordRerun(Drawn(ends=0, render_mode="rgb_array"), path, render=True, image_format="raw")
    record(env, 3)
    env.close()
    assert [int(value[0, 0, 0]) for value in read(path)["/env_0/pixels"].values] == [1, 2, 3, 4]


def test_pictures_alone_are_recorded_if_in_keys_names_them(path):
    env = RecordRerun(Drawn(ends=0, render_mode="rgb_array"), path, render=True, in_keys=["pixels"])
    record(env, 3)
    env.close()
    assert read(path).keys() == {("pixels",)}


def test_frames_of_a_list_are_recorded_and_left_to_the_user(path):
    env = RecordRerun(gym.make("CartPole-v1", render_mode="rgb_array_list"), path, render=True, image_format="raw")
    env.reset(seed=0)
    frames = [env.step(0) for _ in range(3)]
    assert len(env.render()) == 1 + len(frames)
    assert not env.render()
    env.close()
    assert len(read(path)["/env_0/pixels"].values) == 4


def test_an_environment_that_gives_no_picture_is_refused_at_the_first_reset(path):
    env = RecordRerun(gym.make("CartPole-v1"), path, render=True)
    with pytest.raises(ValueError, match="render=True needs an environment whose"):
        env.reset()


def test_an_environment_that_was_reset_before_begins_with_the_observation_after_its_first_step(path):
    inner = Drawn(ends=0)
    inner.reset(seed=0)
    env = RecordRerun(inner, path)
    seen = [env.step(0)[0] for _ in range(3)]
    env.close()
    recorded = read(path)
    assert recorded["/env_0/observation"].along("episode_step") == [0, 1, 2]
    assert recorded["/env_0/observation"].along("step") == [1, 2, 3]
    assert np.array_equal(np.stack([value.numpy() for value in recorded["/env_0/observation"].values]), np.stack(seen))
    assert len(recorded["/env_0/action"].values) == 2
    assert len(load(path)[0].tensordict()) == 2


def test_gymnasiums_autoreset_resets_without_an_action_or_a_reward(path):
    inner = Drawn(ends=1)
    env = RecordRerun(gym.wrappers.Autoreset(inner), path)
    env.reset(seed=0)
    for _ in range(5):
        env.step(0)
    env.close()
    recorded = read(path)
    assert recorded["/env_0/observation"].along("episode_step") == [0, 1, 0, 1, 0, 1]
    assert recorded["/env_0/observation"].along("step") == [0, 1, 2, 3, 4, 5]
    assert recorded["/env_0/reward"].along("step") == [1, 3, 5]
    assert recorded["/env_0/action"].along("frame") == [0, 2, 4]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"episode_trigger": lambda episode: episode % 2 == 1}, [1, 3]),
        ({"keep": KeepLast(2)}, [3, 4]),
        ({"split": "episode"}, [0, 1, 2, 3, 4]),
    ],
)
def test_triggers_and_policies_choose_episodes(tmp_path, options, kept):
    env = RecordRerun(
        Drawn(ends=0), tmp_path / "run", split="episode", **{k: v for k, v in options.items() if k != "split"}
    )
    for episode in range(5):
        env.reset(seed=episode)
        env.step(0)
        env.annotate(number=episode)
    env.close()
    assert sorted(episode for _, episode in read_folder(tmp_path / "run")) == kept
    assert [episode.properties["number"] for episode in load(tmp_path / "run")] == kept
    assert [episode.properties.seed for episode in load(tmp_path / "run")] == kept


def test_step_triggers_and_lengths_are_those_of_record_video(path):
    env = RecordRerun(Drawn(ends=0), path, step_trigger=lambda step: step == 3, recording_length=2)
    record(env, 10)
    env.close()
    assert read(path)["/env_0/observation"].along("step") == [4, 5, 6]


def test_the_same_seeds_give_the_rows_of_the_transform(tmp_path):
    import torch
    from torchrl.envs import GymEnv

    from torchrl_rerun import RerunRecorder

    transformed = GymEnv("CartPole-v1", categorical_action_encoding=True).append_transform(
        RerunRecorder(tmp_path / "transform.rrd")
    )
    transformed.set_seed(7)
    actions = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    tensordict = transformed.reset()
    for action in actions:
        tensordict = transformed.step_mdp(transformed.step(tensordict.set("action", action)))
    transformed.close()
    env = RecordRerun(gym.make("CartPole-v1"), tmp_path / "wrapper.rrd")
    env.env.reset(seed=7)  # TorchRL resets when it is seeded, and the recorder doesn't see it
    env.reset()
    for action in actions.tolist():
        env.step(action)
    env.close()
    [found, wanted] = [read(tmp_path / f"{name}.rrd") for name in ("wrapper", "transform")]
    assert found.keys() == wanted.keys()
    assert found.schema["fps"] == wanted.schema["fps"] == 50
    assert found.schema["env_name"] == wanted.schema["env_name"] == "CartPole-v1"
    for entity, rows in wanted.entities.items():
        for timeline in ("frame", "step", "episode", "episode_step"):
            assert found[entity].along(timeline) == rows.along(timeline), entity
        for value, expected in zip(found[entity].values, rows.values, strict=True):
            assert torch.equal(value.to(expected.dtype), expected), entity
    for entry in wanted.schema["keys"]:
        assert found.entry(*entry["key"]).get("names") == entry.get("names")
    assert found.entry("reward")["dtype"] == "float64"
    assert found.entry("action")["dtype"] == "int64"


def test_actions_of_other_types_are_recorded_if_no_number_changes(path):
    env = RecordRerun(Drawn(action_space=spaces.Box(-1, 1, (2,)), ends=0), path)
    env.reset()
    for action in (np.array([0.5, 1], np.float32), np.array([0.25, 1]), [0.5, -1.0]):
        env.step(action)
    env.close()
    values = read(path)["/env_0/action"].values
    assert [value.tolist() for value in values] == [[0.5, 1], [0.25, 1], [0.5, -1]]


class Rounded(Drawn):
    """Rounds what it returns from a reset, and nothing after that."""

    def reset(self, **options):
        observation, info = super().reset(**options)
        return observation.astype(self.rounded), info


@pytest.mark.parametrize(
    ("rounded", "space"),
    [
        (np.float32, spaces.Box(-1, 1, (2,), np.float64)),
        (np.float16, spaces.Box(-1, 1, (300,), np.float32)),  # a tensor, no plot
        (np.int32, spaces.Box(1 << 40, 1 << 41, (2,), np.int64)),
    ],
)
@pytest.mark.parametrize("keep", [None, KeepLast(5)])
def test_numbers_that_the_first_dtype_can_not_hold_are_recorded_exactly(tmp_path, rounded, space, keep):
    env = Rounded(space, ends=0.3)
    env.rounded = rounded
    env = RecordRerun(env, tmp_path / ("run.rrd" if keep is None else "run"), keep=keep)
    given = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for seed in range(3):
            given.append([env.reset(seed=seed)[0]])
            done = False
            while not done:
                observation, _, terminated, truncated, _ = env.step(0)
                given[-1].append(observation)
                done = terminated or truncated
        env.close()
    [said] = [str(each.message) for each in warned if "'observation'" in str(each.message)]
    assert "'observation' is recorded as tensors of" in said
    found = sorted(load(env.path), key=lambda episode: episode.properties.episode)
    assert len(found) == 3
    for episode, wanted in zip(found, given, strict=True):
        values = episode.arrays()["observation"]
        assert len(values) == len(wanted)
        for value, expected in zip(values, wanted, strict=True):
            assert np.array_equal(value, expected)
            assert value.dtype == space.dtype


def test_numbers_of_another_sort_are_gaps(path):
    env = RecordRerun(Drawn(action_space=spaces.Box(-1, 1, (2,)), ends=0), path)
    env.reset()
    env.step(np.array([0.5, 1], np.float32))
    with pytest.warns(UserWarning, match="'action' is not recorded while it is int64"):
        env.step(np.array([1 << 40, (1 << 40) + 1]))
    env.step(np.array([1, 0.5], np.float32))
    env.close()
    assert [value.tolist() for value in read(path)["/env_0/action"].values] == [[0.5, 1], [1, 0.5]]


def test_an_observation_of_another_shape_is_recorded_in_its_own(path):
    class Growing(Drawn):
        def step(self, action):
            observation, *rest = super().step(action)
            return (np.tile(observation, self.frame), *rest)

    env = RecordRerun(Growing(ends=0), path)
    reference = record(env, 4)
    env.close()
    assert_same_rows(read(path), [reference])


@pytest.mark.parametrize("space", ["dict", "tuple", "graph", "sequence"])
def test_an_environment_may_change_the_actions_that_it_takes(path, space):
    def clear(action):
        for part in action.values() if isinstance(action, dict) else action if isinstance(action, tuple) else ():
            clear(part)
        if isinstance(action, np.ndarray):
            action[...] = 0

    class Clears(Drawn):
        def step(self, action):
            clear(action)
            return super().step(action)

    env = RecordRerun(Clears(action_space=SPACES[space], ends=0), path)
    reference = Reference(env)
    reference.reset(env.reset(seed=0)[0])
    for _ in range(5):
        action = env.action_space.sample()
        taken = copy.deepcopy(action)
        reference.stepped(taken, *env.step(action)[:4])
    env.close()
    assert_same_rows(read(path), [reference])


def test_a_full_disk_never_reaches_training(small_disk):
    env = RecordRerun(
        Drawn(spaces.Box(0, 255, (100_000,), np.uint8), ends=0), small_disk / "run.rrd", flush_seconds=0.1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record(env, 100)
        with pytest.raises(RecordingError):
            env.close()
        env.close()


def test_results_of_no_known_form_pass_and_end_the_recording(path):
    class Old(Drawn):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward, terminated or truncated, info

    env = RecordRerun(Old(), path)
    env.reset()
    with pytest.warns(RuntimeWarning):
        assert len(env.step(0)) == 4
    with pytest.raises(RecordingError):
        env.close()


def test_errors_of_the_environment_pass(path):
    class Broken(Drawn):
        def step(self, action):
            raise ZeroDivisionError

    env = RecordRerun(Broken(), path)
    env.reset()
    with pytest.raises(ZeroDivisionError):
        env.step(0)
    env.close()


def test_the_spec_has_the_recorders_arguments_and_makes_the_environment_again(path):
    env = RecordRerun(gym.make("CartPole-v1"), path, skip=3, kinds={"observation": "scalars"})
    spec = pickle.loads(pickle.dumps(copy.deepcopy(env.spec)))
    assert spec.additional_wrappers[-1].kwargs == {"sink": str(path), "skip": 3, "kinds": {"observation": "scalars"}}
    assert env.spec.to_json()
    again = gym.make(spec)
    assert isinstance(again, RecordRerun)
    record(again, 5)
    again.close()
    assert load(path)


def test_an_environment_of_the_spec_of_one_that_is_recorded_records_a_file_of_its_own(path):
    env = RecordRerun(gym.make("CartPole-v1"), path)
    check_env(env, skip_render_check=True)
    env.reset()
    other = gym.make(env.spec)
    record(other, 3)
    other.close()
    env.close()
    assert path.with_name("run.worker_0.rrd").exists()
    with pytest.raises(FileExistsError):
        gym.make(env.spec)


def test_a_copy_of_the_environment_records_a_file_of_its_own(path):
    env = RecordRerun(gym.make("CartPole-v1"), path)
    env.reset(seed=0)
    other = copy.deepcopy(env)
    record(other, 4)
    env.step(0)
    other.close()
    env.close()
    assert path.exists()
    assert path.with_name("run.worker_0.rrd").exists()


def test_no_environment_but_gymnasiums_is_taken(path):
    with pytest.raises(TypeError, match="Expected env"):
        RecordRerun("CartPole-v1", path)
    with pytest.raises(TypeError, match="no_such_option"):
        RecordRerun(Drawn(), path, no_such_option=1)


def test_environments_of_another_form_are_refused_with_the_recorder_that_they_need(path):
    with pytest.raises(
        TypeError, match=r"SyncVectorEnv is a .*wrap it in torchrl_rerun\.wrappers\.vector\.RecordRerun"
    ):
        RecordRerun(gym.vector.SyncVectorEnv([Drawn]), path)
    with pytest.raises(
        TypeError, match=r"DummyVecEnv is a .*wrap it in torchrl_rerun\.wrappers\.sb3\.VecRerunRecorder"
    ):
        RecordRerun(DummyVecEnv([Drawn]), path)
    with pytest.raises(TypeError, match=r"Drawn is a .*wrap it in torchrl_rerun\.wrappers\.RecordRerun"):
        VecRerunRecorder(Drawn(), path)
    with pytest.raises(
        TypeError, match=r"SyncVectorEnv is a .*wrap it in torchrl_rerun\.wrappers\.vector\.RecordRerun"
    ):
        VecRerunRecorder(gym.vector.SyncVectorEnv([Drawn]), path)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"video_length": 3}, r"RecordRerun has no 'video_length' \(it is recording_length here\)"),
        ({"name_prefix": "a", "skips": 2}, r"second argument.*; no 'skips' \(did you mean 'skip'\?\)"),
    ],
)
def test_arguments_of_other_recorders_are_refused_with_what_they_are_here(path, options, advice):
    with pytest.raises(TypeError, match=advice):
        RecordRerun(Drawn(), path, **options)


def test_an_existing_file_is_refused(path):
    path.write_bytes(b"")
    with pytest.raises(FileExistsError):
        RecordRerun(Drawn(), path)


def test_the_schema_names_the_front_end_and_holds_the_spaces(path):
    env = RecordRerun(Drawn(SPACES["nested"], SPACES["from three"]), path)
    record(env, 2)
    env.close()
    origin = read(path).schema["origin"]
    assert origin["front_end"] == "gymnasium"
    assert origin["spaces"]["action"] == {"type": "Discrete", "n": 4, "start": 3, "dtype": "int64"}
    assert load(path)[0].schema.source.origin == origin


def test_recording_can_be_switched_off_and_goes_on_after_a_close(path):
    env = RecordRerun(Drawn(ends=0), path)
    record(env, 2)
    env.switch("off")
    env.step(0)
    env.switch("on")
    env.step(0)
    assert env.stats()["steps"] == 4
    env.dump()
    env.close()
    with pytest.warns(UserWarning, match=r"run\.part_1"):
        env.step(0)
    env.close()
    assert read(path.with_name("run.part_1.rrd"))["/env_0/observation"].along("step") == [5]


def test_indices_of_numpys_choose_the_environment_to_annotate(tmp_path):
    env = RecordRerun(Drawn(ends=0), tmp_path / "run", split="episode")
    env.reset()
    env.step(0)
    env.annotate(env=np.int64(0), success=True)
    for odd in (True, 0.0, "0"):
        with pytest.raises(TypeError, match="is no environment index"):
            env.annotate(odd, success=True)
    env.close()
    assert load(tmp_path / "run")[0].properties["success"] is True


def test_a_number_makes_recordings_of_so_many_frames(tmp_path):
    env = RecordRerun(Drawn(ends=0.2), tmp_path / "run", split=7)
    reference = record(env, 30)
    env.close()
    files = sorted((tmp_path / "run").glob("*.rrd"))
    counts = [len(read(file)["/env_0/observation"].values) for file in files]
    assert counts[:-1] == [7] * (len(files) - 1)
    rows = [(episode, step) for episode, step, _ in reference.rows["observation",]]
    assert [
        at
        for file in files
        for at in zip(*map(read(file)["/env_0/observation"].along, ("episode", "episode_step")), strict=True)
    ] == rows
    assert sum(len(episode.tensordict()) for episode in load(tmp_path / "run")) == 30


def test_it_records_without_torch(path):
    program = """
        import sys

        class Refused:
            def find_spec(self, name, *_):
                if name.partition(".")[0] in ("torch", "tensordict", "torchrl"):
                    raise ImportError(f"{name} is forbidden here")

        sys.meta_path.insert(0, Refused())
        import gymnasium as gym
        from torchrl_rerun import KeepLast
        from torchrl_rerun.wrappers import RecordRerun

        env = RecordRerun(gym.make("CartPole-v1"), sys.argv[1], image_format="png")
        env.reset(seed=0)
        for _ in range(5):
            env.step(env.action_space.sample())
        env.close()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), path], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert len(read(path)["/env_0/reward"].values) == 5


def test_a_killed_process_leaves_every_step(path):
    program = """
        import os, signal, sys
        import gymnasium as gym
        from torchrl_rerun.wrappers import RecordRerun

        env = RecordRerun(gym.make("CartPole-v1"), sys.argv[1])
        env.reset(seed=0)
        for _ in range(5):
            env.step(0)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), path], check=False)
    assert done.returncode == -9
    [episode] = load(path)
    assert episode.arrays()["observation"].shape == (6, 4)
    assert episode.schema.source.origin["front_end"] == "gymnasium"


def test_a_recording_stream_of_the_user_is_recorded_to(path):
    stream = rr.RecordingStream("mine")
    stream.save(path)
    env = RecordRerun(Drawn(ends=0), stream)
    record(env, 4)
    env.close()
    stream.flush()
    stream.disconnect()
    assert len(read(path)["/env_0/observation"].values) == 5


def test_recordings_go_on_after_a_restart(path):
    for _ in range(2):
        env = RecordRerun(Drawn(ends=0), path, resume=True)
        record(env, 3)
        env.close()
    assert read(path.with_name("run.resumed_1.rrd"))["/env_0/observation"].along("step") == [3, 4, 5, 6]
    assert [episode.properties.episode for episode in load(path)] == [0, 1]


def test_a_forgotten_close_loses_nothing(path):
    program = """
        import sys
        import gymnasium as gym
        from torchrl_rerun.wrappers import RecordRerun

        env = RecordRerun(gym.make("CartPole-v1"), sys.argv[1])
        env.reset(seed=0)
        env.step(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), path], check=True)
    assert len(read(path)["/env_0/observation"].values) == 2


def test_a_recorder_that_is_gone_has_closed_its_recording(path):
    env = RecordRerun(Drawn(ends=0), path)
    record(env, 3)
    del env
    gc.collect()
    assert len(read(path)["/env_0/observation"].values) == 4
    assert parts_in(path)[0].is_finished


class Given(gym.Env):
    """Gives a list of observations, one after the other, whatever its space says."""

    def __init__(self, observation_space, observations, *, action_space=None, flags=(False, False)):
        self.observation_space, self.action_space = observation_space, action_space or spaces.Discrete(3)
        self.observations, self.flags = observations, flags

    def reset(self, *, seed=None, options=None):
        self.rest = iter(self.observations)
        return next(self.rest), {}

    def step(self, action):
        return next(self.rest), 1.0, *self.flags, {}


@pytest.mark.parametrize("flags", [([False], [False]), (np.array([False]), np.array(False))])
def test_flags_in_lists_and_arrays_are_what_they_hold(path, flags):
    env = RecordRerun(Given(spaces.Box(-9, 9, (1,)), np.zeros((4, 1), np.float32), flags=flags), path)
    env.reset()
    for _ in range(3):
        env.step(0)
    env.close()
    recorded = read(path)
    assert recorded["/env_0/observation"].along("episode_step") == [0, 1, 2, 3]
    assert [value.item() for value in recorded["/env_0/done"].values] == [False] * 4


@pytest.mark.parametrize(("first", "dtype"), [([1, 0, 1], "int8"), ([0.5, 0, 1], "float32")])
def test_categories_that_come_as_floats_are_recorded_in_the_spaces_dtype_if_no_number_changes(path, first, dtype):
    env = RecordRerun(Given(spaces.MultiBinary(3), [np.array(first, np.float32)] * 2), path)
    env.reset()
    env.step(0)
    env.close()
    assert read(path).entry("observation")["dtype"] == dtype
    assert [value.tolist() for value in read(path)["/env_0/observation"].values] == [first, first]


def test_a_part_that_the_first_observation_lacks_is_a_gap(path):
    space = spaces.Dict(a=spaces.Box(-9, 9, (2,)), b=spaces.Box(-9, 9, (2,)), text=spaces.Text(3))
    part = np.ones(2, np.float32)
    env = RecordRerun(Given(space, [{"a": part}, {"a": part, "b": 2 * part, "text": "x"}]), path)
    with pytest.warns(UserWarning, match="'b' is in the space, and not given yet"):
        env.reset()
    env.step(0)
    env.close()
    recorded = read(path)
    assert recorded["/env_0/a"].along("frame") == [0, 1]
    assert recorded["/env_0/b"].along("frame") == recorded["/env_0/text"].along("frame") == [1]
    assert recorded["/env_0/b"].values[0].tolist() == [2, 2]


def test_numbers_of_pythons_have_64_bits(path):
    env = RecordRerun(Given(spaces.Box(-9, 9, (2,)), [[0, 1], [0.1, 1.2]], action_space=spaces.Box(-1, 1, (1,))), path)
    env.reset()
    env.step([0.1])
    env.close()
    arrays = load(path)[0].arrays()
    assert arrays["observation"].tolist() == [[0, 1], [0.1, 1.2]]
    assert arrays["action"].tolist() == [[0.1]]
