"""Recordings of Gymnasium's and Stable-Baselines3's environments are read back and exported in their own terms."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torchrl.envs import GymEnv
from typer.testing import CliRunner

from gym_environments import SPACES, Drawn, Reference
from torchrl_rerun import KeepLast, RerunRecorder, load, to_minari
from torchrl_rerun.cli import app
from torchrl_rerun.export.spaces import space_of
from torchrl_rerun.wrappers import RecordRerun
from torchrl_rerun.wrappers.sb3 import VecRerunRecorder
from torchrl_rerun.wrappers.space_json import space_to_json
from torchrl_rerun.wrappers.vector import RecordRerun as VectorRerun


def record(path, *spaces_, episodes=2, **options):
    env = RecordRerun(Drawn(*spaces_, ends=0.3), path, **options)
    reference = Reference(env)
    for seed in range(episodes):
        reference.reset(env.reset(seed=seed)[0])
        done = False
        while not done:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            reference.stepped(action, observation, reward, terminated, truncated)
            done = terminated or truncated
    env.close()
    return reference


@pytest.mark.parametrize("observed", SPACES)
def test_arrays_are_what_the_environment_gave(path, observed):
    reference = record(path, SPACES[observed])
    for number, episode in enumerate(load(path)):
        for name, found in episode.arrays().items():
            rows = reference.rows.get(name if isinstance(name, tuple) else (name,), [])
            wanted = [value for at, _, value in rows if at == number]
            assert len(found) == len(wanted), name
            for value, expected in zip(found, wanted, strict=True):
                is_outcome = name in ("reward", "done", "terminated", "truncated")
                given = expected[0] if is_outcome else expected
                assert np.array_equal(value, given) if not isinstance(given, str) else value == given
                assert not hasattr(given, "dtype") or value.dtype == given.dtype, name


def test_arrays_are_read_without_torch(path):
    program = """
        import sys

        class Refused:
            def find_spec(self, name, *_):
                if name.partition(".")[0] in ("torch", "tensordict", "torchrl"):
                    raise ImportError(f"{name} is forbidden here")

        sys.meta_path.insert(0, Refused())
        from torchrl_rerun import load

        [episode] = load(sys.argv[1])
        print({name: values.shape for name, values in episode.arrays(["observation", "reward"]).items()})
    """
    reference = record(path, episodes=1)
    steps = len(reference.rows["reward",])
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), path], check=True, capture_output=True, text=True
    )
    assert said.stdout.strip() == f"{{'observation': ({steps + 1}, 3), 'reward': ({steps},)}}"


def test_steps_of_rows_tell_which_belong_together(path):
    env = RecordRerun(Drawn(ends=0), path, in_keys=["observation", "action", "reward", ("info", "start")], skip=3)
    observations, rewards = [env.reset(seed=0)[0]], [None]
    for _ in range(7):
        observation, reward, *_ = env.step(0)
        observations.append(observation)
        rewards.append(reward)
    env.close()
    [episode] = load(path)
    steps, arrays = episode.episode_steps(), episode.arrays()
    assert {name: len(rows) for name, rows in steps.items()} == {name: len(rows) for name, rows in arrays.items()}
    assert steps["info", "start"].tolist() == [0]
    assert np.array_equal(arrays["observation"], [observations[step] for step in steps["observation"]])
    assert arrays["reward"].tolist() == [rewards[step] for step in steps["reward"]]
    assert set(steps["action"]) <= set(steps["observation"])


def test_tensordicts_have_torchrls_form(path):
    record(path, SPACES["dict"], SPACES["from three"])
    steps = load(path)[0].tensordict()
    assert steps["next", "reward"].shape == (*steps.shape, 1)
    assert steps["next", "terminated"].shape == (*steps.shape, 1)
    assert steps["action"].shape == steps.shape
    assert steps["switch"].shape == steps.shape
    assert not steps["done"].any()


@pytest.mark.parametrize(
    "space",
    [
        space
        for name, space in SPACES.items()
        if name in ("box", "double", "bytes", "discrete", "from three", "from below", "many", "many from", "bits")
    ],
)
def test_spaces_come_back_from_the_schema(space):
    assert space_of(json.loads(json.dumps(space_to_json(space)))) == space


def test_every_space_has_a_form_in_json():
    for space in SPACES.values():
        assert json.loads(json.dumps(space_to_json(space)))["type"] == type(space).__name__


def test_exports_to_minari_have_the_environments_own_spaces(path, data_sets):
    import minari

    record(path, SPACES["box"], spaces.Discrete(3, start=1))
    to_minari(load(path), "drawn/random-v0")
    found = minari.load_dataset("drawn/random-v0")
    assert found.observation_space == SPACES["box"]
    assert found.action_space == spaces.Discrete(3, start=1)
    [first, _] = found
    assert np.array_equal(first.observations, load(path)[0].arrays()["observation"])
    assert np.array_equal(first.rewards, load(path)[0].arrays()["reward"])


def test_exports_of_normalised_observations_do_not_claim_the_environments_space(path, data_sets):
    import minari

    venv = VecRerunRecorder(VecNormalize(DummyVecEnv([lambda: Drawn(ends=0)])), path)
    venv.reset()
    for _ in range(3):
        venv.step(np.array([1]))
    venv.close()
    to_minari(load(path), "drawn/normalised-v0")
    found = minari.load_dataset("drawn/normalised-v0")
    assert np.isinf(found.observation_space.high).all()
    assert found.action_space == spaces.Discrete(3)


MAKE = {"sutton_barto_reward": True, "max_episode_steps": 4}


def exported(path):
    """Return what Minari makes of the environment of a recording."""
    import minari

    to_minari(load(path), "drawn/made-v0")
    return minari.load_dataset("drawn/made-v0").recover_environment()


def steps_until_done(env):
    env.reset(seed=0)
    steps, done = 0, False
    while not done:
        _, reward, terminated, truncated, _ = env.step(steps % 2)
        steps, done = steps + 1, terminated or truncated
    return steps, reward


def batched(mode):
    return lambda path: VectorRerun(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode=mode, **MAKE), path)


MADE = {
    "single": lambda path: RecordRerun(gym.make("CartPole-v1", **MAKE), path),
    "sync": batched("sync"),
    "async": batched("async"),
    "native": batched("vector_entry_point"),
    "sb3": lambda path: VecRerunRecorder(make_vec_env("CartPole-v1", 2, env_kwargs=MAKE), path),
    "TorchRL": lambda path: GymEnv("CartPole-v1", **MAKE).append_transform(RerunRecorder(path)),
}


@pytest.mark.parametrize("made", MADE)
def test_minari_recovers_environments_with_their_arguments_and_time_limit(path, data_sets, made):
    env = MADE[made](path)
    if made == "TorchRL":
        env.rollout(4)
    else:
        env.reset()
        action = 1 if made == "single" else np.array([1, 1])
        for _ in range(4):
            env.step(action)
    env.close()
    recovered = exported(path)
    assert recovered.spec.max_episode_steps == 4
    assert recovered.spec.kwargs["sutton_barto_reward"] is True
    assert steps_until_done(recovered) == (4, 0.0)  # of the default reward every step has 1


def test_minari_recovers_environments_with_their_wrappers(path, data_sets):
    inner = gym.wrappers.FlattenObservation(gym.make("Pendulum-v1", g=1.5))
    env = RecordRerun(gym.wrappers.RescaleAction(inner, -1, 1), path)
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    env.close()
    recovered = exported(path)
    assert recovered.spec == env.env.spec
    assert str(recovered) == str(env.env)


class Plain(gym.Wrapper):
    """A wrapper that says nothing of its arguments."""


def test_minari_leaves_out_wrappers_that_can_not_be_made_again(path, data_sets):
    env = RecordRerun(Plain(gym.make("CartPole-v1", max_episode_steps=4)), path)
    env.reset(seed=0)
    env.step(0)
    env.close()
    with pytest.warns(UserWarning, match="without Plain"):
        recovered = exported(path)
    assert recovered.spec.max_episode_steps == 4
    assert not recovered.spec.additional_wrappers


def test_environments_whose_arguments_json_can_not_have_are_those_of_their_name(path, data_sets):
    env = RecordRerun(gym.make("FrozenLake-v1", desc=np.array([list("SF"), list("FG")])), path)
    env.reset(seed=0)
    env.step(1)
    env.close()
    assert "env_spec" not in load(path)[0].schema.source.origin
    assert exported(path).spec == gym.make("FrozenLake-v1").spec


def test_environments_with_functions_are_exported_without_a_spec(path, data_sets):
    import minari

    gym.register("drawn/Function-v0", entry_point=lambda: Drawn(ends=0))
    try:
        env = RecordRerun(gym.make("drawn/Function-v0"), path)
        env.reset(seed=0)
        env.step(0)
        env.close()
        to_minari(load(path), "drawn/function-v0")
    finally:
        gym.registry.pop("drawn/Function-v0")
    assert minari.load_dataset("drawn/function-v0").env_spec is None


def test_recordings_of_episodes_hold_the_spaces_too(tmp_path):
    record(tmp_path / "run", keep=KeepLast(1))
    [episode] = load(tmp_path / "run")
    assert episode.schema.source.origin["spaces"]["action"]["n"] == 3


def test_info_tells_of_these_recordings(path):
    env = RecordRerun(gym.make("CartPole-v1"), path)
    env.reset(seed=0)
    env.step(0)
    env.close()
    said = CliRunner().invoke(app, ["info", str(path)])
    assert not said.exit_code
    assert "CartPole-v1" in said.output
