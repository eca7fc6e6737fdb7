"""Rewinding: an environment is put back to a recorded step, and goes on from there as it did."""

from __future__ import annotations

import functools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import (
    RecordEpisodeStatistics,
    TimeAwareObservation,
    TransformObservation,
)
from torchrl.envs import Compose, DMControlEnv, DoubleToFloat, GymEnv, RewardSum, SerialEnv, StepCounter, TransformedEnv

from torchrl_rerun import Divergence, MuJoCo, RerunRecorder, RewindError, load, rewind
from torchrl_rerun.wrappers import RecordRerun

ROBOTS = ("Ant-v5", "HalfCheetah-v5", "Humanoid-v5", "Hopper-v5")


def make(name, **options):
    return gymnasium.make(name, disable_env_checker=True, **options)


def run(env, path, seed=0, episodes=1, most=40, **options):
    """Record episodes of a Gymnasium environment by random actions. Return the results of the steps of each."""
    env = RecordRerun(env, path, **options)
    env.action_space.seed(1)
    told = []
    for number in range(episodes):
        results = [env.reset(seed=None if number else seed)]
        while len(results) <= most and not (len(results) > 1 and (results[-1][2] or results[-1][3])):
            results.append(env.step(env.action_space.sample()))
        told.append(results)
    env.close()
    return told


def goes_on(env, episode, at, results, **close):
    """Take the recorded actions from a step on, and compare: exactly, unless told otherwise."""
    same = functools.partial(np.testing.assert_allclose, **{"rtol": 0, "atol": 0, **close})
    actions = episode.arrays(["action"])["action"]
    for action, expected in zip(actions[at:], results[at + 1 :], strict=True):
        result = env.step(action)
        same(result[0], expected[0])
        same(result[1], expected[1])
        assert result[2:4] == expected[2:4]


# --- by the state ---


@pytest.mark.parametrize("name", ROBOTS)
@pytest.mark.parametrize("step", [0, 1, 6, -1])
def test_a_robot_goes_on_bit_for_bit_from_its_full_state(name, step, path):
    [results] = run(make(name, max_episode_steps=12), path, scene=MuJoCo("full"))
    [episode] = load(path)
    env = make(name, max_episode_steps=12)
    observation, info = rewind(env, episode, step)
    at = step % 12
    assert (observation == results[at][0]).all()
    assert info.keys() == results[at][1 if at == 0 else 4].keys()
    goes_on(env, episode, at, results)
    assert results[-1][3], "the time limit came when it had come"


@pytest.mark.parametrize("name", ROBOTS)
def test_torchrl_goes_on_bit_for_bit_with_what_its_transforms_carry(name, path):
    make_env = lambda *more: TransformedEnv(GymEnv(name), Compose(StepCounter(), RewardSum(), DoubleToFloat(), *more))
    env = make_env(RerunRecorder(path, scene=MuJoCo("full")))
    env.set_seed(0)
    rollout = env.rollout(15)
    env.close()
    [episode] = load(path)
    for at in (0, 1, 9):
        again = make_env()
        state = torch.get_rng_state()
        now = rewind(again, episode, at)
        assert (torch.get_rng_state() == state).all()
        reset = again.fake_tensordict().exclude("action", "next", "reward")
        assert set(now.keys()) == set(reset.keys())
        for step in rollout[at:]:
            for key in now.keys():
                assert (now[key] == step[key]).all(), key
            result = again.step(now.set("action", step["action"]))["next"]
            for key in result.keys():
                assert (result[key] == step["next", key]).all(), key
            now = result.exclude("reward")


def test_tasks_of_dm_control_go_on_bit_for_bit_until_their_time_is_over(path):
    pytest.importorskip("dm_control", reason="dm_control isn't installed")
    make_env = lambda: DMControlEnv("cheetah", "run", time_limit=0.2)
    env = make_env().append_transform(RerunRecorder(path, scene=MuJoCo("full")))
    rollout = env.rollout(100)
    env.close()
    assert len(rollout) == 20
    [episode] = load(path)
    for at in (0, 1, 9):
        again = make_env()
        now = rewind(again, episode, at)
        for step in rollout[at:]:
            now = again.step(now.set("action", step["action"]))["next"]
            for key in now.keys():
                assert (now[key] == step["next", key]).all(), key


def test_a_model_that_changes_at_each_reset_needs_the_seed(path):
    """The target of dm_control's reacher is in the model, and not in the state."""
    pytest.importorskip("dm_control", reason="dm_control isn't installed")
    env = DMControlEnv("reacher", "easy").append_transform(RerunRecorder(path, scene=MuJoCo("full")))
    env.set_seed(0)
    rollout = env.rollout(8)
    env.close()
    [episode] = load(path)
    with pytest.raises(RewindError, match="'scene' has states of another model than the environment's"):
        rewind(DMControlEnv("reacher", "easy"), episode, 5)
    now = rewind(DMControlEnv("reacher", "easy"), episode, 5, seed=0)
    assert (now["to_target"] == rollout["to_target"][5]).all()


def test_a_frame_skip_of_torchrl_counts_for_the_time_limit(path):
    env = GymEnv("Pendulum-v1", frame_skip=4).append_transform(RerunRecorder(path))
    rollout = env.rollout(1000)
    env.close()
    assert rollout["next", "truncated"][-1]
    [episode] = load(path)
    again = GymEnv("Pendulum-v1", frame_skip=4)
    now = rewind(again, episode, -2)
    for step in rollout[-2:]:
        now = again.step(now.set("action", step["action"]))["next"]
        assert now["truncated"] == step["next", "truncated"]


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"])
def test_classic_control_goes_on_from_its_observation(name, path):
    [results] = run(make(name), path, most=12)
    [episode] = load(path)
    for at in (0, 1, 5):
        env = make(name)
        observation, _ = rewind(env, episode, at)
        assert observation == pytest.approx(results[at][0], abs=1e-5)
        goes_on(env, episode, at, results, rtol=1e-4, atol=1e-4)


def test_a_robot_goes_on_from_its_observation_at_its_place(path):
    """By default a scene has positions, those on the ground, which are not observed, included."""
    [results] = run(make("HalfCheetah-v5"), path, scene=True)
    [episode] = load(path)
    env = make("HalfCheetah-v5")
    rewind(env, episode, 30)
    assert env.unwrapped.data.qpos == pytest.approx(episode["scene"][30].numpy(), abs=1e-9)
    goes_on(env, episode, 30, results, rtol=1e-6, atol=1e-6)


def test_wrappers_have_counted_the_steps(path):
    wrapped = lambda: RecordEpisodeStatistics(make("Hopper-v5", max_episode_steps=10))
    [results] = run(wrapped(), path, scene=MuJoCo("full"))
    [episode] = load(path)
    env = wrapped()
    rewind(env, episode, 4)
    for action in episode.arrays(["action"])["action"][4:]:
        *_, info = env.step(action)
    assert info["episode"]["l"] == 10
    assert info["episode"]["r"] == results[-1][4]["episode"]["r"]


# --- by the seed and the actions since ---


class Smoothed(gymnasium.ObservationWrapper):
    """Observations are means of the last one and the present one."""

    def reset(self, **options):
        self._before = None
        return super().reset(**options)

    def observation(self, observation):
        before, self._before = self._before, observation
        return observation if before is None else (before + observation) / 2


def test_what_a_wrapper_remembers_is_right_after_the_actions(path):
    """The observation is more than that from which the pendulum's state follows."""
    [results] = run(TimeAwareObservation(make("Pendulum-v1")), path)
    [episode] = load(path)
    with pytest.raises(RewindError, match=r"by state: 'observation' has shape \(4,\), .* no seed is recorded"):
        rewind(TimeAwareObservation(make("Pendulum-v1")), episode, 5)
    env = TimeAwareObservation(make("Pendulum-v1"))
    observation, _ = rewind(env, episode, 5, seed=0)
    assert (observation == results[5][0]).all()
    goes_on(env, episode, 5, results)


@pytest.mark.parametrize("split", ["run", "episode"])
def test_later_episodes_are_reached_through_those_before(split, tmp_path):
    """Ice is slippery: each episode takes random numbers from where the one before has left them."""
    told = run(make("FrozenLake-v1"), tmp_path / split, episodes=12, split=split)
    episodes = load(tmp_path / split)
    assert len(episodes) == 12
    for number in (0, 1, 11):
        episode, results = episodes[number], told[number]
        env = make("FrozenLake-v1")
        at = episode.properties.length // 2
        observation, _ = rewind(env, episode, at, seed=0 if split == "run" else None)
        assert observation == results[at][0]
        goes_on(env, episode, at, results)


def test_torchrl_is_rewound_by_seed_and_actions(path):
    env = GymEnv("FrozenLake-v1").append_transform(RerunRecorder(path))
    env.set_seed(3)
    rollout = env.rollout(60, break_when_any_done=False)
    env.close()
    begins = [0, *(rollout["next", "done"].flatten().nonzero().flatten() + 1).tolist()]
    for number, episode in enumerate(load(path)):
        again = GymEnv("FrozenLake-v1")
        at = episode.properties.length - 1
        now = rewind(again, episode, at, seed=3)
        step = rollout[begins[number] + at]
        assert (now["observation"] == step["observation"]).all()
        result = again.step(now.set("action", step["action"]))["next"]
        assert (result["observation"] == step["next", "observation"]).all()


def test_one_of_a_batch_is_rewound_by_itself(tmp_path):
    env = SerialEnv(3, functools.partial(GymEnv, "FrozenLake-v1"))
    env = env.append_transform(RerunRecorder(tmp_path / "run", split="episode"))
    env.set_seed(1)
    env.rollout(30, break_when_any_done=False)
    env.close()
    for episode in load(tmp_path / "run"):
        now = rewind(GymEnv("FrozenLake-v1"), episode, -1)
        assert (now["observation"] == episode["observation"][-2]).all()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_gymnasium_and_torchrl_rewind_each_others_recordings(name, tmp_path):
    run(make(name), tmp_path / "gymnasium.rrd", most=8)
    env = GymEnv(name).append_transform(RerunRecorder(tmp_path / "torchrl.rrd"))
    env.set_seed(0)
    env.rollout(8)
    env.close()
    for seed in (None, 0):
        [episode] = load(tmp_path / "gymnasium.rrd")
        now = rewind(GymEnv(name), episode, 4, seed=seed)
        assert now["observation"].numpy() == pytest.approx(episode["observation"][4].numpy(), abs=1e-5)
        [episode] = load(tmp_path / "torchrl.rrd")
        observation, _ = rewind(make(name), episode, 4, seed=seed)
        assert observation == pytest.approx(episode["observation"][4].numpy(), abs=1e-5)


class Crane(gymnasium.Env):
    """Spaces within spaces: a crane that turns and lifts, and a load that swings at random."""

    def __init__(self, wind: float = 1.0) -> None:
        arm = spaces.Dict(angle=spaces.Box(-np.inf, np.inf), gear=spaces.Discrete(3))
        self.observation_space = spaces.Dict(arm=arm, load=spaces.Box(-np.inf, np.inf, (2,), np.float64))
        self.action_space = spaces.Dict(turn=spaces.Box(-1, 1), lift=spaces.Tuple([spaces.Discrete(3)]))
        self._wind = wind

    def _seen(self):
        arm = {"angle": np.array([self.angle], np.float32), "gear": np.int64(self.gear)}
        return {"arm": arm, "load": self.load.copy()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.angle, self.gear, self.load = 0.0, 0, self.np_random.normal(size=2)
        return self._seen(), {}

    def step(self, action):
        self.angle += float(action["turn"][0])
        self.gear = int(action["lift"][0])
        self.load += self.np_random.normal(size=2) * (self._wind if self.angle else 1.0)
        return self._seen(), float(self.load[0]), False, False, {}


def test_spaces_within_spaces_are_rewound(path):
    [results] = run(Crane(), path, most=9)
    [episode] = load(path)
    observation, _ = rewind(Crane(), episode, 6, seed=0)
    expected = results[6][0]
    assert observation["arm"] == expected["arm"]
    assert (observation["load"] == expected["load"]).all()


def test_lossy_pictures_are_not_compared(path):
    drawn = lambda: GymEnv("CartPole-v1", from_pixels=True, pixels_only=True)
    env = drawn().append_transform(RerunRecorder(path))
    env.set_seed(0)
    rollout = env.rollout(4)
    env.close()
    [episode] = load(path)
    assert (rewind(drawn(), episode, 3, seed=0)["pixels"] == rollout["pixels"][3]).all()


def drawn_hopper():
    picture = lambda observation: np.resize(np.abs(observation * 100).astype(np.uint8), (64, 64, 3))
    return TransformObservation(make("Hopper-v5"), picture, spaces.Box(0, 255, (64, 64, 3), np.uint8))


def test_a_first_observation_that_is_a_lossy_picture_is_refused(path):
    """The state could be set, but nothing gives the observation of it. A step later the environment does."""
    [results] = run(drawn_hopper(), path, scene=MuJoCo("full"))
    [episode] = load(path)
    env = drawn_hopper()
    observation, _ = rewind(env, episode, 1)
    assert (observation == results[1][0]).all()
    goes_on(env, episode, 1, results)
    with pytest.raises(RewindError, match="'observation' is not recorded, or doesn't come back as it was"):
        rewind(env, episode, 0)


def test_a_state_that_turns_out_wrong_is_not_kept(path):
    """The wrapper's memory is in the observation, and not in the state."""
    smoothed = lambda: Smoothed(make("Pendulum-v1"))
    [results] = run(smoothed(), path)
    [episode] = load(path)
    with pytest.raises(RewindError, match=r"by state: .*step 5: 'observation' differs by") as caught:
        rewind(smoothed(), episode, 5)
    assert caught.value.divergence is not None
    env = smoothed()
    observation, _ = rewind(env, episode, 5, seed=0)
    assert (observation == results[5][0]).all()
    goes_on(env, episode, 5, results)


# --- what can't be rewound ---


def test_the_step_at_which_they_part_is_named(path):
    run(Crane(), path, most=9)
    [episode] = load(path)
    with pytest.raises(RewindError, match="episode 0, step 1: 'load' differs by") as caught:
        rewind(Crane(wind=2.0), episode, 6, seed=0)
    divergence = caught.value.divergence
    assert isinstance(divergence, Divergence)
    assert (divergence.step, divergence.key) == (1, ("load",))
    with pytest.raises(RewindError, match="step 0: 'load' differs by"):
        rewind(Crane(), episode, 6, seed=1)


def test_the_state_of_another_robot_is_refused(path):
    run(make("Hopper-v5"), path, scene=MuJoCo("full"))
    [episode] = load(path)
    with pytest.raises(RewindError, match="'scene' has states of another model than the environment's") as caught:
        rewind(make("Walker2d-v5"), episode, 3)
    assert caught.value.divergence is None


def test_what_is_missing_is_named(path, tmp_path):
    run(Crane(), path, most=9)
    [episode] = load(path)
    with pytest.raises(
        RewindError, match=r"no whole state is recorded.*Crane; by seed and actions: no seed is recorded"
    ):
        rewind(Crane(), episode, 6)
    run(Crane(), tmp_path / "some.rrd", most=9, skip=3)
    [episode] = load(tmp_path / "some.rrd")
    with pytest.raises(RewindError, match="the action of step 1 of episode 0 is not recorded"):
        rewind(Crane(), episode, 6, seed=0)
    run(make("Hopper-v5"), tmp_path / "hops.rrd", most=9, skip=3, scene=MuJoCo("full"))
    [episode] = load(tmp_path / "hops.rrd")
    with pytest.raises(RewindError, match="by state: the action of step 4 is not recorded"):
        rewind(make("Hopper-v5"), episode, 5)


def test_episodes_before_that_were_not_kept_are_missed(tmp_path):
    run(make("FrozenLake-v1"), tmp_path / "run", episodes=4, split="episode")
    episodes = load(tmp_path / "run")
    last = episodes[3]
    episodes[1].files[0].unlink()
    with pytest.raises(RewindError, match="not all of the 3 episodes before this one are recorded"):
        rewind(make("FrozenLake-v1"), last, last.properties.length)


def test_an_argument_that_is_no_single_environment_is_refused(path):
    run(Crane(), path, most=3)
    [episode] = load(path)
    with pytest.raises(ValueError, match=r"one environment is rewound at a time, and this is a batch of \(2,\)"):
        rewind(SerialEnv(2, functools.partial(GymEnv, "CartPole-v1")), episode, 1)
    with pytest.raises(TypeError, match="SyncVectorEnv is no single environment"):
        rewind(gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync"), episode, 1)
    for step in (4, -4):
        with pytest.raises(IndexError, match=f"3 steps, and none of number {step}"):
            rewind(Crane(), episode, step)
