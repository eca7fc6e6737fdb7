"""Recordings equal rollouts, for widely used environments."""

from __future__ import annotations

import functools

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs import DMControlEnv, EnvBase, GymEnv, ParallelEnv, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.record import PixelRenderTransform

from environments import AutoResettingCartPole, Herd, NativelyAutoResetting, Zoo, cartpole, pendulum, pixel_cartpole
from readback import read, same
from reference import Reference, of_rollout, per_env
from torchrl_rerun import Image, RerunRecorder
from torchrl_rerun.transform.environments import registered_fps

DONE = ["done", "terminated", "truncated"]
OBSERVED = ["observation", *DONE]


def record(env: EnvBase, path, steps: int = 40, **options):
    env = env.append_transform(RerunRecorder(path, **options))
    rollout = env.rollout(steps, break_when_any_done=False)
    env.close()
    return rollout, read(path)


@pytest.mark.parametrize("envs", [1, 4])
def test_cartpole_in_series_is_recorded(path, envs):
    rollout, recorded = record(SerialEnv(envs, cartpole), path, 60)
    of_rollout(rollout, observed=OBSERVED).compare(recorded)
    assert recorded.schema["env_name"] == "CartPole-v1"
    assert recorded.schema["fps"] == 50
    assert recorded.schema["batch_size"] == [envs]


def test_a_single_environment_is_recorded_as_env_0(path):
    rollout, recorded = record(cartpole(), path, 60)
    of_rollout(rollout, observed=OBSERVED).compare(recorded)
    assert recorded.schema["batch_size"] == []
    assert recorded.schema["envs"] == [0]


def test_a_recording_equals_a_run_of_gymnasium_alone(path):
    """Step Gymnasium alone with equal seed and actions, and compare lists of each key."""
    env = cartpole(categorical_action_encoding=True).append_transform(RerunRecorder(path))
    env.set_seed(7)
    rollout = env.rollout(50)
    env.close()
    recorded = read(path)
    plain = gymnasium.make("CartPole-v1")
    plain.reset(seed=7)  # TorchRL seeds by an extra reset
    observation, _ = plain.reset()
    observations, rewards, flags = [observation], [], [False]
    for action in rollout["action"].tolist():
        observation, reward, terminated, truncated, _ = plain.step(action)
        observations.append(observation)
        rewards.append(reward)
        flags.append(terminated)
        if terminated or truncated:
            break
    assert [v.tolist() for v in recorded["/env_0/observation"].values] == [o.tolist() for o in observations]
    assert [v.item() for v in recorded["/env_0/reward"].values] == rewards
    assert [v.item() for v in recorded["/env_0/terminated"].values] == flags
    assert recorded["/env_0/reward"].along("frame") == list(range(1, len(rewards) + 1))
    assert recorded["/env_0/action"].along("frame") == list(range(len(rewards)))


def test_parallel_environments_with_pixels_are_recorded(path):
    rollout, recorded = record(ParallelEnv(2, pixel_cartpole), path, 25, image_format="png")
    of_rollout(rollout, observed=["pixels", *OBSERVED]).compare(recorded)
    assert recorded.kind("pixels") == "image"
    assert recorded.schema["env_name"] == "CartPole-v1"
    assert recorded.schema["fps"] == 50


@pytest.mark.parametrize("image_format", ["raw", "png", "jpeg"])
def test_pixels_are_recorded_in_each_image_format(path, image_format):
    rollout, recorded = record(pixel_cartpole(), path, 8, kinds={"pixels": Image(image_format)})
    reference = of_rollout(rollout, observed=["pixels", *OBSERVED])
    reference.compare(recorded, exact=image_format != "jpeg")
    for row, value in zip(reference.rows[0, "pixels"], recorded["/env_0/pixels"].values, strict=True):
        assert value.shape == row.value.shape
        assert (value.float() - row.value.float()).abs().mean() < 1.0


def test_continuous_actions_are_recorded(path):
    rollout, recorded = record(SerialEnv(2, pendulum), path, 30)
    of_rollout(rollout, observed=OBSERVED).compare(recorded)
    assert recorded.kind("action") == "scalars"


def test_mujoco_is_recorded(path):
    rollout, recorded = record(GymEnv("HalfCheetah-v5"), path, 30)
    assert rollout["observation"].dtype == torch.float64
    of_rollout(rollout, observed=OBSERVED).compare(recorded)


def test_two_batch_dimensions_are_recorded(path):
    env = SerialEnv(2, functools.partial(SerialEnv, 3, cartpole))
    rollout, recorded = record(env, path, 40)
    assert rollout.shape == (2, 3, 40)
    of_rollout(rollout, observed=OBSERVED).compare(recorded)
    assert recorded.schema["batch_size"] == [2, 3]
    assert recorded.schema["envs"] == [0, 1, 2, 3, 4, 5]


def test_vectorized_gymnasium_is_recorded(path):
    rollout, recorded = record(GymEnv("CartPole-v1", num_envs=3), path, 60)
    assert rollout["next", "done"].any()
    of_rollout(rollout, observed=OBSERVED).compare(recorded)


def test_an_auto_reset_environment_is_recorded(path):
    env = AutoResettingCartPole("CartPole-v1", auto_reset=True, auto_reset_replace=True)
    rollout, recorded = record(env, path, 60)
    assert rollout["next", "observation"].isnan().any()
    of_rollout(rollout, observed=OBSERVED).compare(recorded)


def test_agents_that_are_done_one_by_one_are_recorded(path):
    """An episode goes on until all agents are done. The first observations after resets of agents are rows, too."""
    env = Herd().append_transform(RerunRecorder(path))
    rollout = env.rollout(12, break_when_any_done=False)
    env.close()
    recorded = read(path)
    assert recorded.entry("sheep", "age")["agents"] == ["dolly", "shaun", "timmy"]
    flags = [("sheep", "done"), ("sheep", "terminated")]
    reference = of_rollout(
        rollout,
        observed=[("sheep", "age"), *flags],
        stepped=[("sheep", "reward")],
        acted=[("sheep", "action")],
        done=("sheep", "done"),
    )
    names = {"agent_0": "dolly", "agent_1": "shaun", "agent_2": "timmy"}
    reference.rows = {
        (env_index, key.replace(key[-7:], names[key[-7:]])): rows for (env_index, key), rows in reference.rows.items()
    }
    reference.compare(recorded)


def test_a_natively_auto_resetting_environment_is_recorded(path):
    env = NativelyAutoResetting().append_transform(RerunRecorder(path))
    assert env._torchrl_native_autoreset
    following, moments = env.reset(), []
    for _ in range(12):
        moment, following = env.step_and_maybe_reset(env.rand_action(following))
        moments.append(moment)
    env.close()
    rollout = torch.stack(moments, -1)
    assert rollout["next", "observation"].isnan().sum() == 4
    of_rollout(rollout, observed=["observation", "done", "terminated"]).compare(read(path))


def test_a_task_of_dm_control_has_its_name_and_frame_rate(path):
    pytest.importorskip("dm_control", reason="dm_control isn't installed")
    env = DMControlEnv("walker", "run")
    assert env._env.control_timestep() == 0.025
    _, recorded = record(env, path, 3)
    assert recorded.schema["fps"] == pytest.approx(40)
    assert recorded.schema["env_name"] == "walker-run"


def test_a_task_of_dm_control_in_workers_has_its_name(path):
    pytest.importorskip("dm_control", reason="dm_control isn't installed")
    _, recorded = record(ParallelEnv(2, functools.partial(DMControlEnv, "walker", "run")), path, 3)
    assert recorded.schema["env_name"] == "walker-run"


def test_vmas_agents_have_entities_of_their_own(path):
    env = VmasEnv("flocking", num_envs=3, n_agents=2, max_steps=12, seed=0)
    rollout, recorded = record(env, path, 30)
    info = [("agents", "info", name) for name in rollout["agents", "info"].keys()]
    of_rollout(
        rollout,
        observed=[("agents", "observation"), *info, "done", "terminated"],
        stepped=[("agents", "reward")],
        acted=[("agents", "action")],
    ).compare(recorded)
    assert recorded.entry("agents", "reward")["agents"] == ["agent_0", "agent_1"]
    total = sum(v.item() for v in recorded["/env_1/agents/reward/agent_1"].values[:12])
    assert recorded["/env_1/agents/episode_return/agent_1"].values[12].item() == pytest.approx(total)
    assert recorded.schema["fps"] == pytest.approx(10)


ZOO_OBSERVED = [
    "image", "float_image", ("state", "position"), ("state", "velocity"), ("state", "half"), "grid", "many", "count",
    "small", "mode", "flags", "done", "terminated",
]  # fmt: skip
ZOO_ACTED = ["one_hot", "multi", "multi_one_hot", "continuous"]


@pytest.mark.parametrize("batch", [(), (2,), (2, 2)])
def test_every_dtype_and_kind_comes_back_bit_for_bit(path, batch):
    env = Zoo(batch).append_transform(RerunRecorder(path, image_format="png"))
    rollout = env.rollout(20, break_when_any_done=False)
    env.close()
    recorded = read(path)
    assert {".".join(key): recorded.kind(*key) for key in recorded.keys()} == {
        "image": "image",
        "float_image": "image",
        "state.position": "scalars",
        "state.velocity": "scalars",
        "state.half": "scalars",
        "grid": "tensor",
        "many": "tensor",
        "count": "scalars",
        "small": "scalars",
        "mode": "state",
        "flags": "state",
        "note": "text",
        "done": "state",
        "terminated": "state",
        "one_hot": "state",
        "multi": "state",
        "multi_one_hot": "state",
        "continuous": "scalars",
        "reward": "scalars",
        "episode_return": "scalars",
    }
    notes = {path_: recorded.entities.pop(path_) for path_ in list(recorded.entities) if path_.endswith("/note")}
    of_rollout(rollout, observed=ZOO_OBSERVED, acted=ZOO_ACTED).compare(recorded)
    assert len(notes) == max(1, int(np.prod(batch)))
    for env_index in range(len(notes)):
        assert notes[f"/env_{env_index}/note"].values[0] == f"0: Zoë {env_index}"


def test_states_are_recorded_with_labels(path):
    env = Zoo((1,)).append_transform(RerunRecorder(path, names={"one_hot": ["north", "east", "south", "west"]}))
    rollout = env.rollout(6, break_when_any_done=False)
    env.close()
    recorded = read(path)
    actions = rollout["one_hot"][0].int().argmax(-1).tolist()
    shown = []
    for state in recorded["/env_0/one_hot"].states:
        shown.append(state[0] if state is not None else shown[-1])
    assert shown == [["north", "east", "south", "west"][action] for action in actions]


def test_pixels_of_a_transform_are_recorded(path):
    env = cartpole(render_mode="rgb_array").append_transform(PixelRenderTransform())
    rollout, recorded = record(env, path, 6, image_format="raw")
    of_rollout(rollout, observed=["pixels", *OBSERVED]).compare(recorded)


def test_non_tensor_pixels_of_each_environment_are_recorded(path):
    make = functools.partial(cartpole, render_mode="rgb_array")
    env = SerialEnv(2, lambda: make().append_transform(PixelRenderTransform(as_non_tensor=True)))
    env = env.append_transform(RerunRecorder(path, image_format="png"))
    rollout = env.rollout(5)
    env.close()
    recorded = read(path)
    for i in range(2):
        frames = [rollout[i, 0]["pixels"], *(rollout[i, t]["next", "pixels"] for t in range(rollout.shape[1]))]
        for found, wanted in zip(recorded[f"/env_{i}/pixels"].values, frames, strict=True):
            assert same(found, wanted)


def test_one_picture_of_a_whole_batch_is_recorded_once(path):
    class Rendered(Zoo):
        def render(self):
            return np.full((12, 16, 3), self.t, np.uint8)

    env = TransformedEnv(Rendered((3,)), PixelRenderTransform())
    env = env.append_transform(RerunRecorder(path, in_keys=["pixels", "count"], image_format="raw"))
    rollout = env.rollout(4, break_when_any_done=False)
    env.close()
    recorded = read(path)
    assert {p for p in recorded.entities if p.endswith("pixels")} == {"/env_0/pixels"}
    assert [np.unique(picture).tolist() for picture in recorded["/env_0/pixels"].values] == [[t] for t in range(5)]
    reference = of_rollout(rollout, observed=["count"], acted=[])
    for env in range(3):
        wanted = [row.value for row in reference.rows[env, "count"]]
        assert all(same(*both) for both in zip(recorded[f"/env_{env}/count"].values, wanted, strict=True))


def test_dictionary_observations_are_recorded(path):
    space = gymnasium.spaces.Dict(
        camera=gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8),
        arm=gymnasium.spaces.Dict(joints=gymnasium.spaces.Box(-1, 1, (3,), np.float32)),
        mode=gymnasium.spaces.Discrete(4),
    )

    class Arm(gymnasium.Env):
        observation_space = space
        action_space = gymnasium.spaces.MultiDiscrete([3, 2])

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return space.sample(), {}

        def step(self, action):
            return space.sample(), float(self.np_random.random()), bool(self.np_random.random() < 0.2), False, {}

    from torchrl.envs import GymWrapper

    rollout, recorded = record(GymWrapper(Arm()), path, 30, image_format="png")
    of_rollout(rollout, observed=["camera", ("arm", "joints"), "mode", *DONE]).compare(recorded)
    assert recorded.kind("mode") == "state"
    assert recorded.kind("action") == "state"


def test_a_recorder_before_other_transforms_records_values_at_its_place(path):
    env = TransformedEnv(cartpole(), RerunRecorder(path)).append_transform(StepCounter(max_steps=7))
    with pytest.warns(UserWarning, match="'step_count' can't be seen"):
        rollout = env.rollout(20, break_when_any_done=False)
    env.close()
    recorded = read(path)
    assert ("step_count",) not in recorded.keys()
    observed = recorded["/env_0/observation"]
    ends = rollout["next", "done"].flatten().tolist()
    assert observed.along("episode")[-1] == sum(ends[:-1])


def test_policy_outputs_are_recorded_at_the_frame_of_their_observation(path):
    env = cartpole().append_transform(RerunRecorder(path, in_keys=["observation", "action", "logits", "reward"]))

    def policy(tensordict):
        tensordict["logits"] = tensordict["observation"].sum(-1, keepdim=True) * torch.ones(2)
        return env.rand_action(tensordict)

    rollout = env.rollout(9, policy)
    env.close()
    recorded = read(path)
    of_rollout(rollout, observed=["observation"], acted=["action", "logits"]).compare(recorded)


def test_logged_envs_selects_environments(path):
    env = SerialEnv(5, cartpole)
    env = env.append_transform(RerunRecorder(path, logged_envs=[-1, 1]))
    rollout = env.rollout(40, break_when_any_done=False)
    env.close()
    recorded = read(path)
    assert recorded.schema["envs"] == [1, 4]
    full = of_rollout(rollout, observed=OBSERVED)
    for i in (1, 4):
        values = [row.value for row in full.rows[i, "observation"]]
        assert all(same(a, b) for a, b in zip(recorded[f"/env_{i}/observation"].values, values, strict=True))
    assert {p.split("/")[1] for p in recorded.entities} == {"env_1", "env_4"}


def test_the_first_16_of_many_environments_are_recorded_by_default(path):
    env = Zoo((100,)).append_transform(RerunRecorder(path, in_keys=["count"]))
    with pytest.warns(UserWarning, match="of 100 environments the first 16 are recorded"):
        env.rollout(3)
    env.close()
    assert read(path).schema["envs"] == list(range(16))


def test_partial_resets_by_hand_are_recorded(path):
    env = SerialEnv(3, pendulum).append_transform(RerunRecorder(path))
    reference = Reference(3)
    tensordict = env.reset()
    reference.reset(per_env(tensordict, OBSERVED))
    for mask in ([True, False, True], [False, True, False]):
        tensordict = env.rand_action(tensordict)
        tensordict = env.step(tensordict)
        reference.steps(per_env(tensordict, ["action"]), per_env(tensordict["next"], [*OBSERVED, "reward"]))
        tensordict = env.step_mdp(tensordict)
        tensordict["_reset"] = torch.tensor(mask)[:, None]
        tensordict = env.reset(tensordict)
        reference.reset(per_env(tensordict, OBSERVED, [i for i in range(3) if mask[i]]))
    env.close()
    reference.compare(read(path))


def test_partial_steps_by_hand_are_recorded(path):
    env = SerialEnv(3, pendulum).append_transform(RerunRecorder(path))
    reference = Reference(3)
    tensordict = env.reset()
    reference.reset(per_env(tensordict, OBSERVED))
    for mask in ([True, False, True], [True, True, True], [False, False, True]):
        tensordict = env.rand_action(tensordict)
        tensordict["_step"] = torch.tensor(mask)
        tensordict = env.step(tensordict)
        envs = [i for i in range(3) if mask[i]]
        reference.steps(per_env(tensordict, ["action"], envs), per_env(tensordict["next"], [*OBSERVED, "reward"], envs))
        tensordict = env.step_mdp(tensordict)
        tensordict.pop("_step", None)
    env.close()
    reference.compare(read(path))


@pytest.mark.parametrize("name", ["Ant", "HalfCheetah", "Hopper", "InvertedPendulum", "Swimmer", "Walker2d"])
def test_frame_rates_of_robots_are_known_without_making_an_environment(name):
    pytest.importorskip("mujoco")
    env = gymnasium.make(f"{name}-v5")
    assert registered_fps(f"{name}-v5") == env.metadata["render_fps"]
    env.close()
