"""RecordRerun records vector environments of Gymnasium, in each of the modes in which they reset environments."""

from __future__ import annotations

import copy
import functools
import gc
import tracemalloc
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, iterate
from hypothesis import given
from hypothesis import strategies as st

from effort import examples
from gym_environments import SPACES, Drawn, Reference, assert_same_rows
from late_transfers import LateTransfers
from readback import read, read_folder
from torchrl_rerun import KeepLast, RecordingError, load
from torchrl_rerun.blocks import block, devices
from torchrl_rerun.wrappers import RecordRerun as SingleRecorder
from torchrl_rerun.wrappers import describing
from torchrl_rerun.wrappers.vector import RecordRerun

MODES = list(AutoresetMode)


class Seen(gym.Wrapper):
    """Notes what one environment of a batch did: the reference, which knows nothing of batches."""

    def __init__(self, env, references):
        super().__init__(env)
        self.reference = Reference(env)
        references.append(self.reference)

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        self.reference.reset(observation)
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.reference.stepped(action, observation, reward, terminated, truncated)
        return observation, reward, terminated, truncated, info


def seen_envs(references, count, *args, **options):
    return [lambda: Seen(Drawn(*args, **options), references) for _ in range(count)]


def drive(envs, steps, *, seed=0, mode=AutoresetMode.NEXT_STEP):
    """Reset and step a vector environment; reset those that are done if it doesn't."""
    envs.reset(seed=seed)
    envs.action_space.seed(seed)
    for _ in range(steps):
        _, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
        done = terminated | truncated
        if mode is AutoresetMode.DISABLED and done.any():
            envs.reset(options={"reset_mask": done})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("observed", SPACES)
def test_each_environment_has_the_rows_of_what_it_did(path, mode, observed):
    references = []
    inner = SyncVectorEnv(seen_envs(references, 3, SPACES[observed], SPACES[observed], ends=0.3), autoreset_mode=mode)
    envs = RecordRerun(inner, path)
    drive(envs, 12, mode=mode)
    envs.close()
    assert_same_rows(read(path), references)


@examples(15)
@given(st.data())
def test_random_episodes_and_partial_resets_are_recorded_row_by_row(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("random") / "run.rrd"
    references, count = [], data.draw(st.integers(1, 4))
    mode = data.draw(st.sampled_from(MODES))
    observed, acted = (SPACES[data.draw(st.sampled_from(sorted(SPACES)))] for _ in range(2))
    fns = seen_envs(references, count, observed, acted, ends=data.draw(st.sampled_from([0, 0.2, 0.8])))
    envs = RecordRerun(SyncVectorEnv(fns, copy=data.draw(st.booleans()), autoreset_mode=mode), path, buffer_bytes=5000)
    envs.reset(seed=data.draw(st.integers(0, 9)))
    done = np.zeros(count, bool)
    for what in data.draw(st.lists(st.sampled_from(["step", "step", "step", "reset", "some", "dump"]), max_size=30)):
        if what == "dump":
            envs.dump()
        elif what == "reset":
            envs.reset()
            done[:] = False
        elif what == "some" or (mode is AutoresetMode.DISABLED and done.any()):
            mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
            mask |= done if mode is AutoresetMode.DISABLED else False
            if mask.any():
                envs.reset(options={"reset_mask": mask})
            done &= ~mask
        else:
            _, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
            done = terminated | truncated
    envs.close()
    assert_same_rows(read(path), references)


@pytest.mark.parametrize("mode", MODES)
def test_processes_give_the_rows_of_one_process(tmp_path, mode):
    references = []
    fns = [functools.partial(Drawn, SPACES["dict"], ends=0.2) for _ in range(2)]
    known = SyncVectorEnv(seen_envs(references, 2, SPACES["dict"], ends=0.2), autoreset_mode=mode)
    drive(known, 15, mode=mode)
    envs = RecordRerun(AsyncVectorEnv(fns, autoreset_mode=mode), tmp_path / "run.rrd")
    drive(envs, 15, mode=mode)
    envs.close()
    assert_same_rows(read(tmp_path / "run.rrd"), references)


@examples(10)
@given(st.data())
def test_frames_that_are_left_out_are_neither_the_first_nor_the_last_of_an_episode(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("random") / "run.rrd"
    references, mode, skip = [], data.draw(st.sampled_from(MODES)), data.draw(st.integers(2, 5))
    chosen = data.draw(st.sampled_from([None, [0], [1, 2]]))
    inner = SyncVectorEnv(seen_envs(references, 3, ends=0.15), autoreset_mode=mode)
    envs = RecordRerun(inner, path, skip=skip, logged_envs=chosen)
    drive(envs, 30, mode=mode)
    envs.close()
    recorded = read(path)
    for env in chosen or range(3):
        ended = {row[:2] for row in references[env].rows["done",] if row[2].item()}
        wanted = [row[:2] for row in references[env].rows["observation",] if row[1] % skip == 0 or row[:2] in ended]
        rows = recorded[f"/env_{env}/observation"]
        assert list(zip(rows.along("episode"), rows.along("episode_step"), strict=True)) == wanted
        returns = dict(
            zip(
                zip(rows.along("episode"), rows.along("episode_step"), strict=True),
                recorded[f"/env_{env}/episode_return"].values,
                strict=True,
            )
        )
        for episode, step in ended:
            rewards = [row[2].item() for row in references[env].rows["reward",] if row[0] == episode]
            assert returns[episode, step].item() == pytest.approx(sum(rewards), abs=1e-12)


class Native(VectorEnv):
    """A vector environment of its own, that counts. It gives last observations in one array, as ALE's do, or not at all."""

    def __init__(self, mode, *, has_final=True):
        self.num_envs = 3
        self.single_observation_space = spaces.Box(-100, 100, (2,))
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, 3)
        self.action_space = batch_space(self.single_action_space, 3)
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.has_final = has_final
        self.count = np.zeros(3)

    def reset(self, *, seed=None, options=None):
        self.count[:] = 0
        return self._observed(), {}

    def step(self, actions):
        self.count += 1
        done = self.count >= [2, 3, 4]
        info = {}
        if self.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP:
            if self.has_final:
                info = {"final_obs": self._observed()}
            self.count[done] = 0
        elif done.any():
            self.count = np.where(self.count > [2, 3, 4], 0, self.count)
            done = self.count == [2, 3, 4]
        return self._observed(), np.ones(3, np.float32), done, np.zeros(3, bool), info

    def _observed(self):
        return np.stack([self.count, -self.count], axis=1).astype(np.float32)


def counts(recorded, env):
    return [value[0].item() for value in recorded[f"/env_{env}/observation"].values]


def test_last_observations_in_one_array_have_rows_of_their_own(path):
    envs = RecordRerun(Native(AutoresetMode.SAME_STEP), path)
    drive(envs, 5)
    envs.close()
    recorded = read(path)
    assert counts(recorded, 0) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert counts(recorded, 2) == [0, 1, 2, 3, 4, 0, 1]
    assert recorded.schema["origin"]["autoreset_mode"] == "SameStep"
    assert recorded.entry("reward")["dtype"] == "float32"


def test_lost_last_observations_are_nan_and_the_schema_says_so(path):
    envs = RecordRerun(Native(AutoresetMode.SAME_STEP, has_final=False), path)
    with pytest.warns(UserWarning, match="last observations of episodes are lost"):
        drive(envs, 5)
    envs.close()
    recorded = read(path)
    assert [str(each) for each in counts(recorded, 0)] == ["0.0", "1.0", "nan", "0.0", "1.0", "nan", "0.0", "1.0"]
    assert recorded.schema["origin"]["last_observations"] == "lost"
    assert [len(episode.tensordict()) for episode in load(path) if episode.properties.env == 0] == [2, 2, 1]


@pytest.mark.parametrize("options", [{"reset_mask": np.array([True, False, False])}, {"env_idx": [0]}])
def test_environments_that_reset_all_whatever_the_options_say_are_recorded_so(path, options):
    envs = RecordRerun(Native(None), path)
    envs.reset()
    envs.step(np.zeros(3, np.int64))
    envs.reset(options=options)
    envs.step(np.zeros(3, np.int64))
    envs.close()
    recorded = read(path)
    for env in range(3):
        assert counts(recorded, env) == [0, 1, 0, 1]
        assert recorded[f"/env_{env}/observation"].along("episode") == [0, 0, 1, 1]


def test_a_missing_mode_means_the_next_step(path):
    envs = RecordRerun(Native(None), path)
    drive(envs, 6)
    envs.close()
    recorded = read(path)
    assert counts(recorded, 0) == [0, 1, 2, 0, 1, 2, 0]
    assert recorded["/env_0/reward"].along("step") == [1, 2, 4, 5]
    assert recorded.schema["origin"]["autoreset_mode"] == "NextStep"


def test_a_call_that_only_resets_counts_as_a_step(path):
    envs = RecordRerun(SyncVectorEnv([functools.partial(Drawn, ends=1)] * 2), path)
    drive(envs, 4)
    envs.close()
    recorded = read(path)
    assert recorded["/env_1/observation"].along("step") == [0, 1, 2, 3, 4]
    assert recorded["/env_1/reward"].along("step") == [1, 3]
    assert recorded["/env_1/action"].along("step") == [0, 2]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ends", [0, 0.5, 1])
def test_environments_that_were_reset_before_begin_with_the_observation_after_their_first_step(path, mode, ends):
    references = []
    inner = SyncVectorEnv(seen_envs(references, 3, ends=ends), autoreset_mode=mode)
    inner.reset(seed=0)
    envs = RecordRerun(inner, path)
    for _ in range(8):
        _, _, terminated, truncated, _ = envs.step(np.zeros(3, np.int64))
        done = terminated | truncated
        if mode is AutoresetMode.DISABLED and done.any():
            envs.reset(options={"reset_mask": done})
    envs.close()
    recorded = read(path)
    for env, reference in enumerate(references):
        rewards = [row[2].item() for row in reference.rows["reward",]]
        assert [value.item() for value in recorded[f"/env_{env}/reward"].values] == rewards[1:]
        observations = [row[2] for row in reference.rows["observation",]][1:]  # without that of the reset
        has_ended = reference.rows["done",][1][2].item()
        seen = [value.numpy() for value in recorded[f"/env_{env}/observation"].values]
        assert np.array_equal(np.stack(seen), np.stack(observations[1:] if has_ended else observations))


def test_what_the_environments_return_stays_as_it_is(path):
    known = SyncVectorEnv([functools.partial(Drawn, ends=0.3)] * 2, autoreset_mode="SameStep")
    envs = RecordRerun(SyncVectorEnv([functools.partial(Drawn, ends=0.3)] * 2, autoreset_mode="SameStep"), path)
    mask = {"reset_mask": np.array([True, False])}
    for call in (
        lambda e: e.reset(seed=3),
        *[lambda e: e.step(np.array([0, 1]))] * 9,
        lambda e: e.reset(options=mask.copy()),
    ):
        for found, wanted in zip(call(envs), call(known), strict=True):
            assert repr(found) == repr(wanted)
    envs.close()


def test_environments_are_chosen_and_statistics_are_of_all(path):
    references = []
    inner = SyncVectorEnv(seen_envs(references, 4, ends=0.2))
    envs = RecordRerun(inner, path, logged_envs=[1, 3], aggregate=True)
    drive(envs, 20)
    envs.close()
    recorded = read(path)
    assert recorded.schema["envs"] == [1, 3]
    for env in (1, 3):
        rewards = [value.item() for value in recorded[f"/env_{env}/reward"].values]
        assert rewards == [row[2].item() for row in references[env].rows["reward",]]
    assert len(recorded["/batch/reward"].values)


def test_environments_out_of_range_are_named_at_the_first_reset(path):
    envs = RecordRerun(SyncVectorEnv([Drawn] * 2), path, logged_envs=[2])
    with pytest.raises(IndexError, match="2 environments, 0 to 1"):
        envs.reset()


@pytest.mark.parametrize("mode", MODES)
def test_episodes_have_recordings_of_their_own(tmp_path, mode):
    references = []
    inner = SyncVectorEnv(seen_envs(references, 2, ends=0.3), autoreset_mode=mode)
    envs = RecordRerun(inner, tmp_path / "run", split="episode")
    drive(envs, 25, mode=mode, seed=5)
    envs.close()
    found = read_folder(tmp_path / "run")
    for env, reference in enumerate(references):
        rewards = reference.rows["reward",]
        for episode in range(reference.episode):
            wanted = [row[2].item() for row in rewards if row[0] == episode]
            recorded = found[env, episode]
            assert [value.item() for value in recorded["/reward"].values] == wanted
            assert recorded.episode["length"] == len(wanted)
            assert recorded.episode["seed"] == 5 + env
            assert recorded.episode["terminated"] or recorded.episode["truncated"]


def test_seeds_of_native_vector_environments_are_unknown(tmp_path):
    envs = RecordRerun(Native(None), tmp_path / "run", split="episode")
    envs.reset(seed=5)
    envs.step(np.zeros(3, np.int64))
    envs.reset(seed=[7, None, 9])
    envs.step(np.zeros(3, np.int64))
    envs.close()
    found = {(each.properties.env, each.properties.episode): each.properties.seed for each in load(tmp_path / "run")}
    assert found == {(0, 0): None, (1, 0): None, (2, 0): None, (0, 1): 7, (1, 1): None, (2, 1): 9}


@pytest.mark.parametrize("seed", [3.0, 2**70, "three", [1.5, None, {}], np.array([[1, 2]])])
def test_seeds_of_odd_forms_are_unknown_and_never_reach_training(tmp_path, seed):
    envs = RecordRerun(Native(None), tmp_path / "run", split="episode")
    envs.reset(seed=seed)
    envs.step(np.zeros(3, np.int64))
    envs.close()
    assert {each.properties.seed for each in load(tmp_path / "run")} == {None}


def test_infos_of_a_batch_are_recorded_and_missing_ones_leave_gaps(path):
    class Sometimes(Drawn):
        def step(self, action):
            *rest, info = super().step(action)
            return (*rest, info | ({"odd": self.frame} if self.frame % 2 else {}))

    envs = RecordRerun(
        SyncVectorEnv([functools.partial(Sometimes, ends=0)] * 2),
        path,
        in_keys=[("info", "frame"), ("info", "position")],
    )
    drive(envs, 3)
    envs.close()
    recorded = read(path)
    assert [value.item() for value in recorded["/env_1/info/frame"].values] == [1, 2, 3, 4]
    assert [value.tolist() for value in recorded["/env_1/info/position"].values] == [[2, 2], [3, 3], [4, 4]]


def test_infos_of_last_steps_are_recorded_with_these(path):
    inner = SyncVectorEnv([functools.partial(Drawn, ends=1)] * 2, autoreset_mode="SameStep")
    envs = RecordRerun(inner, path, in_keys=[("info", "frame"), ("info", "position")])
    drive(envs, 2)
    envs.close()
    recorded = read(path)
    assert [value.item() for value in recorded["/env_1/info/frame"].values] == [1, 2, 3, 4, 5]
    assert [value.tolist() for value in recorded["/env_1/info/position"].values] == [[2, 2], [4, 4]]


class SometimesInforms(Drawn):
    """Says at which frame it is, but for the last one of each episode of three steps."""

    def reset(self, **options):
        return super().reset(**options)[0], {"at": 1}

    def step(self, action):
        observation, reward, *_ = super().step(action)
        is_over = self.frame % 4 == 0
        return observation, reward, is_over, False, {} if is_over else {"at": self.frame}


@pytest.mark.parametrize("as_list", [False, True])
def test_infos_that_last_steps_do_not_give_leave_gaps(path, as_list):
    inner = SyncVectorEnv([SometimesInforms] * 2, autoreset_mode="SameStep")
    inner = gym.wrappers.vector.DictInfoToList(inner) if as_list else inner
    envs = RecordRerun(inner, path, in_keys=["observation", ("info", "at")])
    drive(envs, 7)
    envs.close()
    recorded = read(path)
    rows = recorded["/env_1/info/at"]
    found = [int(value) for value in rows.values]
    assert list(zip(rows.along("episode"), rows.along("episode_step"), found, strict=True)) == [
        *((0, 0, 1), (0, 1, 2), (0, 2, 3)),
        *((1, 0, 1), (1, 1, 6), (1, 2, 7)),
        *((2, 0, 1), (2, 1, 10)),
    ]
    assert "last_observations" not in recorded.schema["origin"]


@pytest.mark.parametrize("where", ["within", "around"])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_statistics_of_episodes_are_recorded_at_their_ends(path, where, mode):
    def make():
        env = SometimesInforms()
        return gym.wrappers.RecordEpisodeStatistics(env) if where == "within" else env

    inner = SyncVectorEnv([make] * 2, autoreset_mode=mode)
    inner = gym.wrappers.vector.RecordEpisodeStatistics(inner) if where == "around" else inner
    envs = RecordRerun(inner, path, in_keys=["observation", "reward", ("info", "episode", "l")])
    with pytest.warns(UserWarning, match=r"\('info', 'episode', 'l'\).*there are \('info', 'at'\)"):
        drive(envs, 8)
    envs.close()
    for env in range(2):
        rows = read(path)[f"/env_{env}/info/episode/l"]
        assert [int(value) for value in rows.values] == [3, 3]
        assert rows.along("episode_step") == [3, 3]
        assert rows.along("episode") == [0, 1]


def test_infos_as_lists_of_dictionaries_are_recorded(path):
    inner = SyncVectorEnv([functools.partial(Drawn, ends=0.5)] * 2, autoreset_mode="SameStep")
    envs = RecordRerun(gym.wrappers.vector.DictInfoToList(inner), path, in_keys=["observation", ("info", "frame")])
    drive(envs, 6)
    envs.close()
    recorded = read(path)
    values = [value.item() for value in recorded["/env_0/info/frame"].values]
    assert values == list(range(1, len(values) + 1))
    assert "last_observations" not in recorded.schema["origin"]


def test_pictures_of_the_environments_are_recorded(path):
    fns = [functools.partial(Drawn, ends=0, render_mode="rgb_array")] * 2
    envs = RecordRerun(SyncVectorEnv(fns), path, render=True, image_format="raw", logged_envs=[1])
    drive(envs, 3)
    envs.close()
    assert [int(value[0, 0, 0]) for value in read(path)["/env_1/pixels"].values] == [1, 2, 3, 4]


def test_recorders_in_the_environments_of_a_batch_write_files_beside_one_another(tmp_path):
    with pytest.warns(UserWarning, match="inside the environments of a batch"):
        envs = gym.make_vec(
            "CartPole-v1",
            num_envs=2,
            vectorization_mode="sync",
            wrappers=[functools.partial(SingleRecorder, sink=tmp_path / "run.rrd")],
        )
    drive(envs, 5)
    envs.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.worker_0.rrd", "run.worker_1.rrd"]
    assert sorted(episode.properties.env for episode in load(tmp_path / "run.rrd")) == [0, 1]


def test_recorders_in_worker_processes_write_files_beside_one_another(tmp_path):
    envs = gym.make_vec(
        "CartPole-v1",
        num_envs=2,
        vectorization_mode="async",
        wrappers=[functools.partial(SingleRecorder, sink=tmp_path / "run.rrd")],
    )
    drive(envs, 5)
    envs.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.worker_0.rrd", "run.worker_1.rrd"]
    assert sorted(episode.properties.env for episode in load(tmp_path / "run.rrd")) == [0, 1]


def test_wrappers_around_the_recorder_and_within_it_work(path):
    inner = gym.wrappers.vector.RecordEpisodeStatistics(SyncVectorEnv([functools.partial(Drawn, ends=0.5)] * 2))
    envs = RecordRerun(inner, path, in_keys=["observation", "reward"])
    outer = VectorWrapper(envs)
    drive(outer, 10)
    assert outer.num_envs == 2
    assert outer.unwrapped is inner.unwrapped
    outer.close()
    assert outer.closed
    assert read(path).keys() >= {("observation",), ("reward",)}


def test_no_environment_but_vector_environments_is_taken(path):
    with pytest.raises(TypeError, match="VectorEnv"):
        RecordRerun(Drawn(), path)
    with pytest.raises(ValueError, match="'NextStep', 'SameStep', 'Disabled'"):
        RecordRerun(SyncVectorEnv([Drawn]), path, autoreset_mode="never")


class Batched(gym.Env):
    """A ``gymnasium.Env`` that is a batch of environments with tensors, as those of Isaac Lab and ManiSkill are."""

    def __init__(self):
        import torch

        self.torch = torch
        self.num_envs = 3
        self.single_observation_space = spaces.Dict(policy=spaces.Box(-100, 100, (2,)))
        self.single_action_space = spaces.Box(-1, 1, (1,))
        self.observation_space = batch_space(self.single_observation_space, 3)
        self.action_space = batch_space(self.single_action_space, 3)
        self.count = torch.zeros(3)

    def reset(self, *, seed=None, options=None):
        indices = (options or {}).get("env_idx", self.torch.arange(3))
        self.count[indices] = 0
        return self._observed(), {}

    def step(self, action):
        self.count += 1
        done = self.count >= self.torch.tensor([2, 3, 4])
        if self.resets:
            self.count[done] = 0
        return self._observed(), self.torch.ones(3), done, self.torch.zeros(3, dtype=self.torch.bool), {}

    def _observed(self):
        return {"policy": self.torch.stack([self.count, -self.count], 1)}


def batched(module, *, resets):
    return type("Batched", (Batched,), {"__module__": module, "resets": resets})()


def test_isaac_lab_resets_within_the_step_and_loses_last_observations(path):
    env = SingleRecorder(batched("isaaclab.envs.manager_based_rl_env", resets=True), path)
    env.reset()
    action = env.unwrapped.torch.zeros(3, 1)
    env.step(action)
    with pytest.warns(UserWarning, match="last observations of episodes are lost"):
        env.step(action)
    env.step(action)
    env.step(action)
    env.close()
    recorded = read(path)
    assert [str(value[0].item()) for value in recorded["/env_0/policy"].values] == [
        "0.0",
        "1.0",
        "nan",
        "0.0",
        "1.0",
        "nan",
        "0.0",
    ]
    assert recorded.schema["batch_size"] == [3]


def test_tensors_on_an_accelerator_are_copied_beside_the_environment(path, monkeypatch):
    for module in (block, devices):
        monkeypatch.setattr(module, "Transfers", LateTransfers)
    monkeypatch.setattr(describing, "device_of", lambda value: "cpu" if hasattr(value, "is_cuda") else "")
    LateTransfers.begun = 0
    env = SingleRecorder(batched("isaaclab.envs.manager_based_rl_env", resets=True), path)
    env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(4):
            env.step(env.unwrapped.torch.full((3, 1), float(step)))
    env.close()
    recorded = read(path)
    assert LateTransfers.begun > 10
    for env_index, wanted in enumerate(
        (["0.0", "1.0", "nan", "0.0", "1.0", "nan", "0.0"], ["0.0", "1.0", "2.0", "nan", "0.0", "1.0"])
    ):
        assert [str(value[0].item()) for value in recorded[f"/env_{env_index}/policy"].values] == wanted
        assert [value.item() for value in recorded[f"/env_{env_index}/reward"].values] == [1, 1, 1, 1]
        assert [value.item() for value in recorded[f"/env_{env_index}/action"].values] == [0, 1, 2, 3]


def test_maniskill_resets_what_the_user_resets(path):
    env = SingleRecorder(batched("mani_skill.envs.sapien_env", resets=False), path)
    env.reset()
    torch = env.unwrapped.torch
    for _ in range(3):
        *_, done, _, _ = env.step(torch.zeros(3, 1))
        if done.any():
            env.reset(options={"env_idx": torch.where(done)[0]})
    env.close()
    recorded = read(path)
    assert [value[0].item() for value in recorded["/env_0/policy"].values] == [0, 1, 2, 0, 1]
    assert [value[0].item() for value in recorded["/env_1/policy"].values] == [0, 1, 2, 3, 0]


def test_other_batches_must_be_told_when_they_are_reset(path):
    env = batched("mine", resets=False)
    with pytest.raises(ValueError, match="pass autoreset_mode='NextStep'"):
        SingleRecorder(env, path)
    env = SingleRecorder(env, path, autoreset_mode="Disabled")
    env.reset()
    env.close()
    assert read(path)["/env_2/policy"].values


def test_actions_are_those_of_the_policy(path):
    class Clipping(VectorWrapper):
        def step(self, actions):
            actions[:] = 0
            return self.env.step(actions)

    envs = RecordRerun(Clipping(SyncVectorEnv([functools.partial(Drawn, ends=0)] * 2)), path)
    envs.reset()
    envs.step(np.array([2, 1]))
    envs.close()
    assert [read(path)[f"/env_{env}/action"].values[0].item() for env in range(2)] == [2, 1]
    assert len(list(iterate(envs.action_space, np.array([0, 1])))) == 2


def test_a_copy_of_the_environments_records_a_file_of_its_own(path):
    envs = RecordRerun(SyncVectorEnv([functools.partial(Drawn, ends=0.5)] * 2), path)
    drive(envs, 3)
    other = copy.deepcopy(envs)
    drive(other, 5)
    drive(envs, 2)
    other.close()
    envs.close()
    assert read(path)["/env_0/observation"].along("step")[-1] == 5
    assert read(path.with_name("run.worker_0.rrd"))["/env_0/observation"].along("step")[-1] == 5


def test_flags_in_lists_are_recorded(path):
    class Lists(Native):
        def step(self, actions):
            observation, reward, terminated, truncated, info = super().step(actions)
            return observation, reward.tolist(), terminated.tolist(), truncated.tolist(), info

    envs = RecordRerun(Lists(None), path)
    envs.reset()
    for _ in range(4):
        envs.step(np.zeros(3, np.int64))
    envs.close()
    recorded = read(path)
    assert counts(recorded, 0) == [0, 1, 2, 0, 1]
    assert [value.item() for value in recorded["/env_0/terminated"].values] == [False, False, True, False, False]


def test_results_of_no_known_form_end_the_recording_and_not_the_training(path):
    class Odd(Native):
        def step(self, actions):
            return super().step(actions)[:4]

    envs = RecordRerun(Odd(AutoresetMode.NEXT_STEP), path)
    envs.reset()
    with pytest.warns(RuntimeWarning):
        assert len(envs.step(np.zeros(3, np.int64))) == 4
    envs.step(np.zeros(3, np.int64))
    with pytest.raises(RecordingError):
        envs.close()


def test_the_memory_of_many_episodes_of_which_few_are_kept_is_flat(tmp_path):
    """A million steps of it are a row of ``make bench``."""
    envs = RecordRerun(SyncVectorEnv([lambda: Drawn(ends=0.5)] * 8), tmp_path / "run", keep=KeepLast(10))
    envs.reset(seed=0)
    actions = np.zeros(8, np.int64)
    tracemalloc.start()
    try:
        held = []
        for steps in (200, 300, 600):
            for _ in range(steps):
                envs.step(actions)
            envs.dump()
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
            assert len(list((tmp_path / "run").glob("*.rrd"))) <= 10 + 8  # and those in progress
    finally:
        tracemalloc.stop()
    envs.close()
    assert envs.stats()["episodes"] > 1500
    assert held[2] - held[1] < 100_000  # 70 bytes for each episode, at most
