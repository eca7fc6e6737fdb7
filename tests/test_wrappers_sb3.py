"""VecRerunRecorder and RerunCallback record the vector environments and the training of Stable-Baselines3."""

from __future__ import annotations

import copy
import functools
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from effort import examples
from gym_environments import SPACES, Drawn, Reference, assert_same_rows
from readback import read, read_folder
from torchrl_rerun import load
from torchrl_rerun.wrappers import RecordRerun
from torchrl_rerun.wrappers.sb3 import RerunCallback, VecRerunRecorder

OBSERVED = ["box", "bytes", "discrete", "many", "bits", "dict"]
"""Spaces that Stable-Baselines3's vector environments take."""


class Seen(gym.Wrapper):
    """Notes what one environment of a batch did. DummyVecEnv passes rewards on in float32."""

    def __init__(self, env, references, reward=np.float32):
        super().__init__(env)
        self.of_reward = reward
        self.reference = Reference(env)
        references.append(self.reference)

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self.reference.reset(observation)
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.reference.stepped(action, observation, self.of_reward(reward), terminated, truncated)
        return observation, reward, terminated, truncated, info


def seen(references, count, *args, reward=np.float32, **options):
    return DummyVecEnv([lambda: Seen(Drawn(*args, **options), references, reward) for _ in range(count)])


def drive(venv, steps, *, seed=0):
    venv.seed(seed)
    venv.reset()
    venv.action_space.seed(seed)
    for _ in range(steps):
        venv.step(np.array([venv.action_space.sample() for _ in range(venv.num_envs)]))


@pytest.mark.parametrize("observed", OBSERVED)
def test_each_environment_has_the_rows_of_what_it_did(path, observed):
    references = []
    venv = VecRerunRecorder(seen(references, 3, SPACES[observed], SPACES["many"], ends=0.3), path)
    drive(venv, 15)
    venv.close()
    assert_same_rows(read(path), references)


@examples(10)
@given(st.data())
def test_random_episodes_are_recorded_row_by_row(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("random") / "run.rrd"
    references = []
    observed = SPACES[data.draw(st.sampled_from(OBSERVED))]
    inner = seen(references, data.draw(st.integers(1, 4)), observed, ends=data.draw(st.sampled_from([0, 0.2, 0.9])))
    venv = VecRerunRecorder(inner, path, buffer_bytes=5000)
    venv.reset()
    for what in data.draw(st.lists(st.sampled_from(["step", "step", "step", "reset", "dump"]), max_size=30)):
        if what == "dump":
            venv.dump()
        elif what == "reset":
            venv.reset()
        else:
            venv.step(np.array([venv.action_space.sample() for _ in range(venv.num_envs)]))
    venv.close()
    assert_same_rows(read(path), references)


def test_processes_give_the_rows_of_one_process(path):
    references = []
    drive(seen(references, 2, SPACES["dict"], ends=0.3, reward=np.float64), 12)
    fns = [functools.partial(Drawn, SPACES["dict"], ends=0.3)] * 2
    venv = VecRerunRecorder(SubprocVecEnv(fns), path)
    drive(venv, 12)
    venv.close()
    assert_same_rows(read(path), references)


def test_what_the_environment_returns_stays_as_it_is(path):
    known, venv = (DummyVecEnv([functools.partial(Drawn, ends=0.3)] * 2) for _ in range(2))
    venv = VecRerunRecorder(venv, path)
    for each in (known, venv):
        each.seed(3)
    assert np.array_equal(venv.reset(), known.reset())
    for _ in range(10):
        assert repr(venv.step(np.array([0, 1]))) == repr(known.step(np.array([0, 1])))
    venv.close()


def test_within_vec_normalize_raw_values_are_recorded_and_around_it_normalised_ones(tmp_path):
    references = []
    inner = VecRerunRecorder(seen(references, 2, ends=0.3), tmp_path / "within.rrd")
    outer = VecRerunRecorder(VecNormalize(inner), tmp_path / "around.rrd")
    seen_by_policy = []
    outer.seed(0)
    seen_by_policy.append(outer.reset())
    for _ in range(6):
        observation, _, done, infos = outer.step(np.array([0, 1]))
        if done[0]:
            seen_by_policy.append(infos[0]["terminal_observation"][None])
        seen_by_policy.append(observation)
    outer.close()
    within, around = (read(tmp_path / f"{name}.rrd") for name in ("within", "around"))
    assert_same_rows(within, references)
    assert "normalized" not in within.schema["origin"]
    assert around.schema["origin"]["normalized"] == ["observation", "reward"]
    found = [value.numpy() for value in around["/env_0/observation"].values]
    assert np.array_equal(np.stack(found), np.stack([each[0] for each in seen_by_policy]))


@pytest.mark.parametrize("wrapper", [VecMonitor, VecCheckNan, functools.partial(VecFrameStack, n_stack=3)])
def test_other_wrappers_may_be_within_it_and_around_it(tmp_path, wrapper):
    for name in ("within", "around"):
        venv = DummyVecEnv([functools.partial(Drawn, spaces.Box(-1, 1, (3,)), ends=0.3)] * 2)
        recorder = VecRerunRecorder(wrapper(venv) if name == "within" else venv, tmp_path / f"{name}.rrd")
        venv = recorder if name == "within" else wrapper(recorder)
        drive(venv, 8)
        venv.close()
    steps = [read(tmp_path / f"{name}.rrd")["/env_1/reward"].along("step") for name in ("within", "around")]
    assert steps[0] == steps[1] == list(range(1, 9))


def test_truncation_is_the_time_limits(path):
    venv = VecRerunRecorder(
        make_vec_env(
            "Pendulum-v1", n_envs=2, wrapper_class=gym.wrappers.TimeLimit, wrapper_kwargs={"max_episode_steps": 3}
        ),
        path,
    )
    drive(venv, 4)
    venv.close()
    recorded = read(path)
    flags = {
        name: [bool(value) for value in recorded[f"/env_0/{name}"].values]
        for name in ("terminated", "truncated", "done")
    }
    assert flags["truncated"] == flags["done"] == [False, False, False, True, False, False]
    assert not any(flags["terminated"])
    assert (recorded.schema["env_name"], recorded.schema["fps"]) == ("Pendulum-v1", 30)
    assert recorded.entry("observation")["names"] == ["cos theta", "sin theta", "angular velocity"]


def test_the_name_of_environments_in_processes_is_known(path):
    venv = VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=SubprocVecEnv), path)
    drive(venv, 2)
    venv.close()
    recorded = read(path)
    assert (recorded.schema["env_name"], recorded.schema["fps"]) == ("CartPole-v1", 50)
    assert recorded.entry("action")["names"] == ["left", "right"]


def test_methods_of_the_environments_are_reached(path):
    venv = VecRerunRecorder(DummyVecEnv([functools.partial(Drawn, ends=0)] * 2), path)
    venv.set_options({"easy": True})
    assert venv.seed(5) == [5, 6]
    drive(venv, 3)
    assert venv.get_attr("frame") == [4, 4]
    venv.set_attr("frame", 10, indices=[1])
    assert venv.get_attr("frame") == [4, 10]
    assert venv.env_method("has_wrapper_attr", "frame") == [True, True]
    assert venv.env_is_wrapped(gym.wrappers.TimeLimit) == [False, False]
    assert isinstance(venv.unwrapped, DummyVecEnv)
    assert isinstance(venv, VecEnvWrapper)
    assert len(venv.envs) == 2
    venv.close()


def test_infos_of_resets_and_of_steps_are_recorded_at_their_own_frames(path):
    keys = [("info", "frame"), ("info", "position")]
    venv = VecRerunRecorder(DummyVecEnv([functools.partial(Drawn, ends=0.5)] * 2), path, in_keys=keys)
    drive(venv, 6)
    venv.close()
    frames = [value.item() for value in read(path)["/env_0/info/frame"].values]
    assert frames == list(range(1, len(frames) + 1))
    assert len(read(path)["/env_0/info/position"].values) == 6


@pytest.mark.parametrize("as_infos", [lambda _: None, lambda infos: [None for _ in infos]])
def test_infos_of_no_known_form_cost_the_last_observations_alone(path, as_infos):
    class Silent(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            *result, infos = self.venv.step_wait()
            return (*result, as_infos(infos))

    references = []
    venv = VecRerunRecorder(
        Silent(seen(references, 2, ends=0.5)), path, in_keys=["observation", "action", "done", ("info", "frame")]
    )
    with pytest.warns(UserWarning, match="last observations of episodes are lost"):
        drive(venv, 6)
    venv.close()
    recorded = read(path)
    for env, reference in enumerate(references):
        for name in ("action", "done"):
            wanted = [np.asarray(row[2]).item() for row in reference.rows[name,]]
            assert [value.item() for value in recorded[f"/env_{env}/{name}"].values] == wanted


def test_infos_that_a_later_reset_does_not_give_are_recorded_with_the_last_step(path):
    class Once(Drawn):
        def reset(self, **options):
            observation, info = super().reset(**options)
            return observation, info if self.frame == 1 else {}

    venv = VecRerunRecorder(
        DummyVecEnv([functools.partial(Once, ends=0.5)]), path, in_keys=["observation", ("info", "frame")]
    )
    drive(venv, 6)
    venv.close()
    recorded = read(path)
    rows, steps = recorded["/env_0/info/frame"], recorded["/env_0/observation"].along("episode_step")
    assert steps.count(0) > 1
    assert rows.along("episode_step") == [0, *(step for step in steps if step)]


def test_infos_of_monitors_are_recorded_at_the_ends_of_episodes(path):
    keys = ["observation", ("info", "episode", "r")]
    venv = VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=2), path, in_keys=keys)
    with pytest.warns(UserWarning, match=r"\('info', 'episode', 'r'\)"):
        drive(venv, 60)
    venv.close()
    recorded = read(path)
    for env in range(2):
        steps = recorded[f"/env_{env}/observation"].along("episode_step")
        lengths = [last for last, first in itertools.pairwise(steps) if first == 0]
        assert list(recorded[f"/env_{env}/info/episode/r"].values) == lengths


def test_pictures_of_the_environments_are_recorded(path):
    fns = [functools.partial(Drawn, ends=0, render_mode="rgb_array")] * 2
    venv = VecRerunRecorder(DummyVecEnv(fns), path, render=True, image_format="raw", logged_envs=[1])
    drive(venv, 3)
    venv.close()
    assert [int(value[0, 0, 0]) for value in read(path)["/env_1/pixels"].values] == [1, 2, 3, 4]


def test_a_training_is_recorded_with_its_timesteps_and_its_values(tmp_path):
    venv = VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=2, seed=0), tmp_path / "run", split="episode")
    model = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, seed=0)
    callback = RerunCallback(venv, values=True)
    model.learn(128, callback=callback)
    assert venv.stats()["frames_waiting"] == 0
    assert not model.policy._forward_hooks
    model.save(tmp_path / "model.zip")
    venv.close()
    again = PPO.load(tmp_path / "model.zip", env=make_vec_env("CartPole-v1", n_envs=2))
    assert again.num_timesteps == 128
    episodes = load(tmp_path / "run")
    done = [episode for episode in episodes if episode.properties.terminated]
    assert done
    for episode in done:
        assert episode["value"].shape == episode["log_prob"].shape == (episode.properties.length,)
        assert (episode["log_prob"] < 0).all()
        # Both environments take a step at once.
        ended = [other for other in episodes if other.properties.env == episode.properties.env]
        before = sum(
            other.properties.length for other in ended if other.properties.episode <= episode.properties.episode
        )
        assert episode.properties["num_timesteps"] == 2 * before
    assert read_folder(tmp_path / "run")[0, 0].keys() >= {("value",), ("log_prob",)}


class AsksThePolicy(BaseCallback):
    """Asks for one observation, as a user's callback does, and copies the policy."""

    def _on_step(self):
        policy = self.model.policy
        with torch.no_grad():
            policy(policy.obs_to_tensor(np.zeros((1, 4), np.float32))[0])
        copy.deepcopy(policy)
        return True


def make_model(path, envs=2, **options):
    venv = VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=envs, seed=0), path, **options)
    return venv, PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, seed=0)


def test_values_are_those_of_the_actions_whatever_else_the_policy_is_asked(path):
    venv, model = make_model(path, 3)
    model.learn(24, callback=[RerunCallback(venv, values=True), AsksThePolicy()])
    wanted = model.rollout_buffer.values.reshape(3, 8)
    venv.close()
    recorded = read(path)
    for env in range(3):
        found = [value.item() for value in recorded[f"/env_{env}/value"].values]
        assert np.array_equal(np.array(found, np.float32), wanted[env])
        assert len(found) == len(recorded[f"/env_{env}/action"].values) == 8


def test_values_of_clipped_actions_are_recorded(path):
    venv = VecRerunRecorder(make_vec_env("Pendulum-v1", n_envs=2), path)
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, policy_kwargs={"log_std_init": 2.0})
    model.learn(16, callback=RerunCallback(venv, values=True))
    venv.close()
    assert len(read(path)["/env_0/value"].values) == 8


def test_values_that_come_too_late_are_told(path):
    venv, model = make_model(path)
    model.learn(16)
    with pytest.warns(UserWarning, match="Pass the callback to the first learn"):
        model.learn(16, callback=RerunCallback(venv, values=True))
    venv.close()


def test_an_interrupted_training_leaves_nothing_behind_for_the_next(tmp_path):
    class Interrupts(BaseCallback):
        def _on_step(self):
            raise KeyboardInterrupt

    venv, model = make_model(tmp_path / "run.rrd")
    callback = RerunCallback(values=True)
    with pytest.raises(KeyboardInterrupt):
        model.learn(16, callback=[callback, Interrupts()])
    other = VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=2), tmp_path / "other.rrd")
    model.set_env(other)
    model.learn(16, callback=callback)
    assert not model.policy._forward_hooks
    assert callback.recorder is other
    venv.close()
    other.close()


def test_a_training_with_a_replay_buffer_is_recorded(path):
    venv = VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=1), path)
    model = DQN("MlpPolicy", venv, learning_starts=10, buffer_size=100)
    model.learn(40, callback=RerunCallback())
    assert venv.stats()["frames_waiting"] == 0
    venv.close()
    assert len(read(path)["/env_0/action"].values) == 40


def test_an_evaluation_is_recorded_by_itself(tmp_path):
    evaluated = VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=1), tmp_path / "eval", split="episode")
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=1), n_steps=16, batch_size=16, n_epochs=1)
    model.learn(32, callback=EvalCallback(evaluated, eval_freq=16, n_eval_episodes=2, verbose=0, warn=False))
    evaluated.close()
    assert len([each for each in load(tmp_path / "eval") if not each.properties.interrupted]) == 4


@pytest.mark.parametrize(
    ("trained", "evaluated"),
    [
        ("recorder around", "recorder around"),
        ("recorder within", "recorder within"),
        ("no recorder", "recorder within"),
    ],
)
def test_normalised_environments_are_evaluated_if_both_have_one_order_of_wrappers(tmp_path, trained, evaluated):
    def make(form, name):
        venv = make_vec_env("CartPole-v1", n_envs=1)
        if form == "recorder around":
            return VecRerunRecorder(VecNormalize(venv), tmp_path / name)
        return VecNormalize(VecRerunRecorder(venv, tmp_path / name) if form == "recorder within" else venv)

    model = PPO("MlpPolicy", make(trained, "train.rrd"), n_steps=16, batch_size=16, n_epochs=1)
    test_env = make(evaluated, "eval.rrd")
    model.learn(16, callback=EvalCallback(test_env, eval_freq=16, n_eval_episodes=1, verbose=0, warn=False))
    test_env.close()
    model.get_env().close()
    assert len(load(tmp_path / "eval.rrd")) >= 1


def test_a_callback_without_a_recorder_says_so():
    model = PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=1), n_steps=16, batch_size=16, n_epochs=1)
    with pytest.raises(ValueError, match="there is no VecRerunRecorder"):
        model.learn(16, callback=RerunCallback())


def test_the_callback_finds_a_recorder_within_other_wrappers(path):
    venv = VecNormalize(VecRerunRecorder(make_vec_env("CartPole-v1", n_envs=1), path))
    PPO("MlpPolicy", venv, n_steps=16, batch_size=16, n_epochs=1).learn(16, callback=RerunCallback())
    venv.close()
    assert len(read(path)["/env_0/action"].values) == 16


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_recorders_in_the_environments_write_files_beside_one_another(tmp_path, kind):
    venv = make_vec_env(
        "CartPole-v1",
        n_envs=2,
        wrapper_class=RecordRerun,
        wrapper_kwargs={"sink": tmp_path / "run.rrd"},
        vec_env_cls=kind,
    )
    drive(venv, 3)
    venv.close()
    assert len(list(tmp_path.glob("run.worker_*.rrd"))) == 2
    assert len(load(tmp_path / "run.rrd")) == 2
