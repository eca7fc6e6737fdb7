"""Scenes of other simulators than MuJoCo, of URDF files, and poses that an environment gives itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import rerun.urdf
import torch
from tensordict import TensorDict
from torchrl.data import Composite, Unbounded
from torchrl.envs import EnvBase, IsaacLabWrapper, SerialEnv

import isaac_stub
from environments import Count
from late_transfers import LateTransfers
from looking import opened, rerun_views, trouble
from readback import read
from torchrl_rerun import IsaacLab, Newton, RerunRecorder, Transforms3D, Urdf, load, repair
from torchrl_rerun.blocks import block, devices
from torchrl_rerun.scenes import isaac_lab, newton
from torchrl_rerun.wrappers import RecordRerun
from torchrl_rerun.wrappers import vector as vector_wrappers

# --- poses of one's own ---


class Posed(gym.Env):
    """Observes positions and quaternions of some bodies."""

    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self, shape=(2, 7), dtype=np.float32):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape, dtype)
        self.random = np.random.default_rng(0)
        self.seen = []

    def reset(self, *, seed=None, options=None):
        return self._observed(), {}

    def step(self, action):
        return self._observed(), 0.0, False, False, {}

    def _observed(self):
        values = self.random.normal(size=self.observation_space.shape)
        values[..., 3:] /= np.linalg.norm(values[..., 3:], axis=-1, keepdims=True)
        self.seen.append(values.astype(self.observation_space.dtype))
        return self.seen[-1]


def ran(env, steps=5):
    env.reset(seed=0)
    for _ in range(steps):
        env.step(env.action_space.sample())
    env.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7,), (3, 7)])
def test_poses_under_any_key_come_back_and_are_drawn_as_axes(path, shape, dtype):
    env = Posed(shape, dtype)
    ran(RecordRerun(env, path, kinds={"observation": Transforms3D("wxyz", length=0.5)}))
    [episode] = load(path)
    seen = np.stack(env.seen)
    assert episode["observation"].numpy().dtype == dtype
    assert np.array_equal(episode["observation"], seen)
    poses = episode.poses("observation")
    flat = seen.astype(np.float64).reshape(len(seen), -1, 7)
    assert np.array_equal(poses.positions, flat[..., :3])
    assert np.array_equal(poses.quaternions, flat[..., [4, 5, 6, 3]])
    arrows = read(path).drawn["/env_0/observation/axes"]
    bodies = flat.shape[1]
    vectors = np.stack(arrows["Arrows3D:vectors"]).reshape(len(seen), bodies, 3, 3)
    assert np.allclose(np.linalg.norm(vectors, axis=-1), 0.5, atol=1e-6)
    assert np.allclose(np.linalg.det(vectors / 0.5), 1, atol=1e-5)
    w, x, y, z = np.moveaxis(flat[..., 3:], -1, 0)
    first = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)], -1)
    assert np.allclose(vectors[:, :, 0], 0.5 * first, atol=1e-6)


def test_bodies_have_names_and_the_view_follows_one(path, viewer):
    kind = Transforms3D(bodies=["cart", "pole"], root=1, up="y")
    env = Posed()
    ran(RecordRerun(env, path, kinds={"observation": kind}))
    [episode] = load(path)
    assert episode.poses().bodies == ("cart", "pole")
    recorded = read(path)
    assert recorded.static["/env_0/observation/axes"]["Arrows3D:labels"] == ["cart", "", "", "pole", "", ""]
    at = recorded.drawn["/env_0/observation/root"]["Points3D:positions"]
    assert np.allclose(np.stack(at)[:, 0], np.stack(env.seen)[:, 1, :3])
    views = opened(viewer, path, 3)
    assert ("3D", "/env_0/observation", "observation") in rerun_views(views)
    assert not trouble(views)


@pytest.mark.parametrize(
    ("shape", "kind", "match"),
    [
        ((6,), Transforms3D(), "poses are"),
        ((1, 2, 7), Transforms3D(), "poses are"),
        ((3, 7), Transforms3D(bodies=["a", "b"]), "names of 2 bodies"),
    ],
)
def test_values_that_are_no_poses_are_refused(path, shape, kind, match):
    env = RecordRerun(Posed(shape), path, kinds={"observation": kind})
    with pytest.raises(ValueError, match=match):
        env.reset()


@pytest.mark.parametrize("wrong", [{"quaternion": "wxzy"}, {"length": 0}, {"up": "x"}])
def test_options_of_poses_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Transforms3D(**wrong)


# --- URDF ---

ARM = """
<robot name="arm">
  <link name="base"><visual><geometry><box size="0.4 0.4 0.1"/></geometry></visual></link>
  <link name="upper"><visual><origin xyz="0 0 0.25"/><geometry><cylinder radius="0.05" length="0.5"/></geometry>
    <material name="red"><color rgba="1 0 0 1"/></material></visual></link>
  <link name="lower"><visual><origin xyz="0 0 0.2" rpy="0.1 0.2 0.3"/>
    <geometry><mesh filename="block.stl" scale="0.1 0.1 0.4"/></geometry></visual></link>
  <link name="tip"><visual><geometry><sphere radius="0.06"/></geometry></visual></link>
  <link name="finger"><collision><geometry><sphere radius="0.06"/></geometry></collision></link>
  <joint name="shoulder" type="revolute"><parent link="base"/><child link="upper"/>
    <origin xyz="0 0 0.1" rpy="0.1 0.2 0.3"/><axis xyz="0 1 0"/>
    <limit lower="-1" upper="1" effort="1" velocity="1"/></joint>
  <joint name="elbow" type="continuous"><parent link="upper"/><child link="lower"/>
    <origin xyz="0 0 0.5"/><axis xyz="0 0.6 0.8"/></joint>
  <joint name="weld" type="fixed"><parent link="lower"/><child link="tip"/><origin xyz="0 0 0.4" rpy="0 1 0"/></joint>
  <joint name="grip" type="prismatic"><parent link="tip"/><child link="finger"/><axis xyz="1 0 0"/>
    <limit lower="-1" upper="1" effort="1" velocity="1"/><mimic joint="elbow" multiplier="0.5" offset="0.01"/></joint>
</robot>
"""

CORNERS = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)], np.float32)
SIDES = [
    (0, 1, 3),
    (0, 3, 2),
    (4, 6, 7),
    (4, 7, 5),
    (0, 4, 5),
    (0, 5, 1),
    (2, 3, 7),
    (2, 7, 6),
    (0, 2, 6),
    (0, 6, 4),
    (1, 5, 7),
    (1, 7, 3),
]


@pytest.fixture
def arm(tmp_path):
    (tmp_path / "arm.urdf").write_text(ARM)
    triangle = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("rest", "<u2")])
    triangles = np.zeros(len(SIDES), triangle)
    triangles["corners"] = CORNERS[np.array(SIDES)]
    header = bytes(80) + np.uint32(len(SIDES)).tobytes()
    (tmp_path / "block.stl").write_bytes(header + triangles.tobytes())
    return tmp_path / "arm.urdf"


class Joints(Posed):
    """Observes the positions of two joints, and two more numbers."""

    def __init__(self):
        super().__init__((4,))

    def _observed(self):
        self.seen.append(self.random.uniform(-3, 3, 4).astype(np.float32))
        return self.seen[-1]


NAMES = ["elbow", None, "shoulder", None]


def matrix(quaternion, position):
    x, y, z, w = quaternion
    out = np.eye(4)
    out[:3, 0] = 1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)
    out[:3, 1] = 2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)
    out[:3, 2] = 2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)
    out[:3, 3] = position
    return out


def by_rerun(path, positions):
    """Return where the links are by Rerun's own loader."""
    found = {"base": np.eye(4)}
    for joint in rerun.urdf.UrdfTree.from_file_path(path).joints():
        of_joint = joint.compute_transform(positions.get(joint.name, 0), clamp=False)
        [quaternion], [position] = (
            each.as_arrow_array().to_pylist() for each in (of_joint.quaternion, of_joint.translation)
        )
        found[joint.child_link] = found[joint.parent_link] @ matrix(quaternion, position)
    return found


def test_a_robot_is_where_reruns_loader_has_it(path, arm):
    env = Joints()
    ran(RecordRerun(env, path, scene=Urdf(arm, {"observation": NAMES})))
    [episode] = load(path)
    poses = episode.poses()
    assert poses.bodies == ("base", "upper", "lower", "tip", "finger")
    for frame, numbers in enumerate(env.seen):
        elbow, _, shoulder, _ = map(float, numbers)
        there = by_rerun(arm, {"elbow": elbow, "shoulder": shoulder, "grip": 0.5 * elbow + 0.01})
        for at, link in enumerate(poses.bodies):
            found = matrix(poses.quaternions[frame, at], poses.positions[frame, at])
            assert np.allclose(found, there[link], atol=1e-6)


def test_the_key_of_the_joints_stays_what_it_is(path, arm, tmp_path, viewer):
    env, plain = Joints(), Joints()
    ran(RecordRerun(env, path, scene=Urdf(arm, {"observation": NAMES})))
    ran(RecordRerun(plain, tmp_path / "plain.rrd"))
    with_scene, without = read(path), read(tmp_path / "plain.rrd")
    assert np.array_equal(with_scene["/env_0/observation"].values, without["/env_0/observation"].values)
    assert np.array_equal(load(path)[0]["observation"], np.stack(env.seen))
    views = opened(viewer, path, 3)
    assert ("3D", "/env_0/observation/scene", "observation") in rerun_views(views)
    assert ("TimeSeries", "/env_0", "observation") in rerun_views(views)
    assert not trouble(views)


def test_shapes_of_links_are_drawn_with_their_colours_and_scales(path, arm):
    env = Joints()
    ran(RecordRerun(env, path, scene=Urdf(arm, {"observation": NAMES})))
    recorded = read(path)
    scene = "/env_0/observation/scene"
    [cylinder] = recorded.static[f"{scene}/cylinders"]["Cylinders3D:colors"]
    assert cylinder == 0xFF0000FF
    [mesh] = [entity for entity in recorded.static if entity.startswith(f"{scene}/meshes/")]
    assert recorded.static[mesh]["Asset3D:media_type"] == ["model/stl"]
    scales = recorded.drawn[mesh]["InstancePoses3D:scales"]
    assert np.allclose(np.stack(scales), [0.1, 0.1, 0.4])
    assert not any("collision" in entity or "finger" in entity for entity in recorded.static)
    assert "Capsules3D" not in str(recorded.static[f"{scene}/cylinders"])


class Arms(EnvBase):
    """Two arms; each environment observes its joints."""

    def __init__(self):
        super().__init__()
        self.observation_spec = Composite(joints=Unbounded((2,)))
        self.action_spec = Unbounded((1,))
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict=None, **kwargs):
        return TensorDict(joints=torch.zeros(2))

    def _step(self, tensordict):
        return TensorDict(joints=torch.rand(2), reward=torch.zeros(1), done=torch.zeros(1, dtype=torch.bool))

    def _set_seed(self, seed):
        pass


@pytest.mark.parametrize("split", ["run", "episode"])
def test_robots_of_torchrls_environments_are_drawn(tmp_path, arm, split):
    to = tmp_path / ("run.rrd" if split == "run" else "run")
    recorder = RerunRecorder(to, scene=Urdf(arm, {"joints": ["shoulder", "elbow"]}), split=split)
    env = SerialEnv(2, Arms).append_transform(recorder)
    rollout = env.rollout(4)
    env.close()
    episodes = load(to)
    assert len(episodes) == 2
    for number, episode in enumerate(episodes):
        assert torch.equal(episode["joints"][1:], rollout["next", "joints"][number])
        assert episode.poses().positions.shape == (5, 5, 3)
        assert not np.array_equal(episode.poses().quaternions[1], episode.poses().quaternions[2])


@pytest.mark.parametrize(
    ("joints", "match"),
    [
        ({"observation": ["sholder"]}, "did you mean 'shoulder'"),
        ({"observation": ["weld"]}, "no joint 'weld'"),
        ({"observation": ["elbow", "elbow"]}, "twice"),
        ({"observation": "elbow"}, "pass a list"),
        ({}, "one key"),
        ({"a": ["elbow"], "b": ["shoulder"]}, "one key"),
    ],
)
def test_names_of_joints_are_checked_at_once(arm, joints, match):
    with pytest.raises(ValueError, match=match):
        Urdf(arm, joints)


def test_a_file_that_is_missing_or_no_urdf_is_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="no URDF at"):
        Urdf(tmp_path / "none.urdf", {"observation": []})
    (tmp_path / "odd.urdf").write_text("<mujoco/>")
    with pytest.raises(ValueError, match=r"odd\.urdf' can't be read"):
        Urdf(tmp_path / "odd.urdf", {"observation": []})
    (tmp_path / "free.urdf").write_text(ARM.replace("continuous", "floating"))
    with pytest.raises(ValueError, match="'elbow' is floating"):
        Urdf(tmp_path / "free.urdf", {"observation": ["shoulder"]})


def test_a_mesh_that_is_missing_costs_that_shape_and_is_told(path, arm):
    (arm.parent / "block.stl").unlink()
    with pytest.warns(UserWarning, match=r"lower of .* is not drawn: its mesh can't be read"):
        scene = Urdf(arm, {"observation": NAMES})
    ran(RecordRerun(Joints(), path, scene=scene))
    recorded = read(path)
    assert not any("meshes" in entity for entity in recorded.static)
    assert "/env_0/observation/scene/boxes" in recorded.drawn


def _killed(folder):
    scenes = {
        "arm": (Joints(), Urdf(folder / "arm.urdf", {"observation": NAMES})),
        "isaac": (isaac_stub.IsaacEnv(), True),
    }
    for name, (env, scene) in scenes.items():
        env = RecordRerun(env, folder / name, scene=scene, split="episode")
        env.reset()
        for _ in range(2):
            env.step(env.action_space.sample())
    os.kill(os.getpid(), signal.SIGKILL)


def test_scenes_of_a_killed_process_are_there_to_its_last_step(arm):
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(arm.parent,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    for name, place, entity in (("arm", "observation/scene", "cylinders"), ("isaac", "scene", "axes")):
        assert [len(episode.poses().positions) for episode in load(arm.parent / name)] == [3] * (
            3 if name == "isaac" else 1
        )
        repair(arm.parent / name)
        [file] = load(arm.parent / name)[0].files
        assert len(read(file).drawn[f"/{place}/{entity}"]["frame"]) == 3


def test_names_for_another_number_of_numbers_are_refused(path, arm):
    env = RecordRerun(Joints(), path, scene=Urdf(arm, {"observation": ["elbow"]}))
    with pytest.raises(ValueError, match="names 1 numbers of 'observation', and it has 4"):
        env.reset()


def test_a_key_of_a_scene_that_never_comes_is_told(path, arm):
    scene = Urdf(arm, {"joint_pos": NAMES})
    with pytest.raises(
        KeyError, match=r"scene names 'joint_pos', which is not recorded; there are 'action'.*'observation'"
    ):
        ran(RecordRerun(Joints(), path, scene=scene))
    env = Arms().append_transform(RerunRecorder(path, scene=scene, overwrite=True))
    with pytest.raises(KeyError, match="scene names 'joint_pos', which is not recorded"):
        env.rollout(3)


# --- Isaac Lab, by a stub ---

XYZW = [0, 1, 2, 3, 4, 5, 6]
WXYZ = [0, 1, 2, 6, 3, 4, 5]


def isaac_values(env, frames, number, order):
    """Return the poses of an environment as they should be recorded: NaN where it was reset within the step."""
    wanted, count = [], 0
    for _ in range(frames):
        poses = env.poses(torch.full((env.num_envs,), float(count)))[number]
        wanted.append(torch.full_like(poses, torch.nan) if count == 3 + number else poses)
        if count == 3 + number:
            wanted.append(env.poses(torch.zeros(env.num_envs))[number])
            count = 0
        count += 1
    return torch.stack(wanted)[:frames, :, order].numpy()


def seven_steps_of(env, path, logged):
    wrapped = RecordRerun(env, path, scene=True, logged_envs=logged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last observations are lost
        wrapped.reset()
        for _ in range(7):
            wrapped.step(torch.zeros(3, 1))
    wrapped.close()
    return read(path)


@pytest.mark.parametrize(("version", "order", "quaternion"), [(2, WXYZ, "wxyz"), (3, XYZW, "xyzw")])
@pytest.mark.parametrize("logged", [None, [0, 2]])
def test_the_bodies_of_isaac_lab_are_recorded_relative_to_their_origins(path, version, order, quaternion, logged):
    env = isaac_stub.IsaacEnv(version)
    recorded = seven_steps_of(env, path, logged)
    [told] = [key for key in recorded.schema["keys"] if key["key"] == ["scene"]]
    assert told["options"].get("quaternion", "xyzw") == quaternion
    assert told["options"]["bodies"] == ["robot/base", "robot/arm", "robot/tip", "cube", "balls/a", "balls/b"]
    for number in logged or range(3):
        found = np.stack(recorded[f"/env_{number}/scene"].values)
        wanted = isaac_values(env, len(found), number, order)
        assert found.dtype == np.float32
        assert np.array_equal(np.isnan(found), np.isnan(wanted))
        assert np.allclose(found, wanted, atol=1e-5, equal_nan=True)
        assert np.isnan(found).any()


def test_isaac_lab_in_torchrl_loses_the_moment_before_the_reset_within_a_step(path):
    env = IsaacLabWrapper(isaac_stub.IsaacEnv(), device="cpu").append_transform(RerunRecorder(path, scene=True))
    env.rollout(5)  # to the end of the first episode, of environment 0
    env.close()
    recorded = read(path)
    for number in range(3):
        found = np.stack(recorded[f"/env_{number}/scene"].values)
        lost = np.flatnonzero(np.isnan(found).all((1, 2)))
        assert lost.tolist() == ([3] if number == 0 else [])


@pytest.mark.parametrize("logged", [None, [0, 2], [1]])
def test_values_on_an_accelerator_are_copied_beside_the_environment(path, monkeypatch, logged):
    for module in (block, devices):
        monkeypatch.setattr(module, "Transfers", LateTransfers)
    monkeypatch.setattr(isaac_lab, "device_of", lambda values: "cpu")
    LateTransfers.begun = 0
    env = isaac_stub.IsaacEnv()
    recorded = seven_steps_of(env, path, logged)
    assert LateTransfers.begun >= 8
    for number in logged or range(3):
        found = np.stack(recorded[f"/env_{number}/scene"].values)
        assert np.allclose(found, isaac_values(env, len(found), number, XYZW), atol=1e-5, equal_nan=True)


def test_bodies_of_isaac_lab_are_drawn_with_the_shapes_of_a_urdf(path, tmp_path):
    (tmp_path / "robot.urdf").write_text(
        """<robot name="robot"><link name="base"><visual><geometry><box size="1 1 1"/></geometry></visual></link>
        <link name="arm"/><link name="hand"><visual><origin xyz="0 0 1"/><geometry><sphere radius="0.1"/></geometry></visual>
        </link><joint name="a" type="continuous"><parent link="base"/><child link="arm"/><axis xyz="0 0 1"/></joint>
        <joint name="b" type="fixed"><parent link="arm"/><child link="hand"/><origin xyz="0 1 0" rpy="1.5707963267948966 0 0"/>
        </joint></robot>"""
    )
    env = isaac_stub.IsaacEnv()
    source = IsaacLab({"robot": tmp_path / "robot.urdf"}, objects=["robot", "cube"])
    wrapped = RecordRerun(env, path, scene=source)
    wrapped.reset()
    wrapped.close()
    recorded = read(path)
    assert recorded["/env_0/scene"].values[0].shape == (4, 7)
    labels = recorded.static["/env_0/scene/boxes"]["Boxes3D:labels"]
    assert labels == ["base", "robot/tip", "cube"]
    [at] = recorded.drawn["/env_0/scene/ellipsoids"]["Ellipsoids3D:centers"]
    poses = env.poses(torch.zeros(3))[0].numpy()
    arm_turn = matrix(poses[1, 3:], poses[1, :3])
    assert np.allclose(
        at[0], (arm_turn @ [0, 0, 0, 1])[:3], atol=1e-6
    )  # the hand is a metre up and a metre back from there


def test_a_scene_of_isaac_lab_with_newton_may_refuse_families(path):
    env = isaac_stub.IsaacEnv(has_newton=True)
    wrapped = RecordRerun(env, path, scene=True)
    wrapped.reset()
    wrapped.close()
    assert read(path)["/env_0/scene"].values[0].shape == (3, 7)


def test_objects_that_isaac_lab_has_not_are_refused(path):
    wrapped = RecordRerun(isaac_stub.IsaacEnv(), path, scene=IsaacLab(objects=["dog"]))
    with pytest.raises(ValueError, match="no object 'dog'; there are robot, cube, balls"):
        wrapped.reset()
    with pytest.raises(ValueError, match="quaternion='zxy'"):
        IsaacLab(quaternion="zxy")
    with pytest.raises(FileNotFoundError, match=r"no URDF at 'none\.urdf'"):
        IsaacLab({"robot": "none.urdf"})


def test_data_of_an_unknown_version_of_isaac_lab_are_refused(path):
    env = isaac_stub.IsaacEnv()
    env.scene.articulations["odd"] = SimpleNamespace(body_names=["a"], data=SimpleNamespace())
    wrapped = RecordRerun(env, path, scene=True)
    with pytest.raises(ValueError, match="data of 'odd' has none of body_link_pose_w"):
        wrapped.reset()


# --- Newton ---


@pytest.fixture(scope="module")
def worlds():
    pytest.importorskip("newton", reason="needs newton and warp-lang, which want another MuJoCo than the tests")
    import newton_worlds

    return newton_worlds


def swung(envs, steps=10):
    envs.reset()
    for _ in range(steps):
        envs.step(np.zeros((envs.num_envs, 1), np.float32))
    envs.close()


@pytest.mark.parametrize("logged", [None, [0, 2], [1]])
def test_the_poses_of_newtons_worlds_are_recorded_bit_for_bit(path, worlds, logged):
    envs = worlds.CartPoles()
    swung(vector_wrappers.RecordRerun(envs, path, scene=True, logged_envs=logged))
    recorded = read(path)
    seen = np.stack(envs.seen).reshape(11, 3, 2, 7)
    for number in logged or range(3):
        found = np.stack(recorded[f"/env_{number}/scene"].values)
        assert found.dtype == np.float32
        assert np.array_equal(found, seen[:, number])
    assert not np.array_equal(seen[0], seen[-1])
    assert load(path)[0].poses().bodies == ("cart", "pole_0")


def test_poses_of_newton_on_an_accelerator_are_copied_beside_the_environment(path, worlds, monkeypatch):
    for module in (block, devices):
        monkeypatch.setattr(module, "Transfers", LateTransfers)
    monkeypatch.setattr(newton, "device_of", lambda values: "cpu")
    LateTransfers.begun = 0
    envs = worlds.CartPoles((2, 3, 2))
    with pytest.warns(UserWarning, match="environments 1 is not recorded"):
        swung(vector_wrappers.RecordRerun(envs, path, scene=True))
    recorded = read(path)
    assert LateTransfers.begun == 11
    seen = np.stack(envs.seen)
    for number, bodies in {0: slice(0, 2), 2: slice(5, 7)}.items():
        assert np.array_equal(np.stack(recorded[f"/env_{number}/scene"].values), seen[:, bodies])
    assert np.isnan(np.stack(recorded["/env_1/scene"].values)).all()


class Poles(EnvBase):
    """Newton's cart-poles as an environment of TorchRL's."""

    def __init__(self, poles):
        super().__init__(batch_size=[poles.num_envs])
        self.poles, self.model = poles, poles.model
        shape = (poles.num_envs, 1)
        self.observation_spec = Composite(observation=Unbounded(shape), shape=shape[:1])
        self.action_spec, self.reward_spec = Unbounded(shape), Unbounded(shape)

    @property
    def state_0(self):
        return self.poles.state_0

    def _reset(self, tensordict=None, **kwargs):
        return TensorDict(observation=torch.tensor(self.poles.reset()[0]), batch_size=self.batch_size)

    def _step(self, tensordict):
        zeros = torch.zeros(*self.batch_size, 1)
        seen = torch.tensor(self.poles.step(None)[0])
        return TensorDict(observation=seen, reward=zeros, done=zeros.bool(), batch_size=self.batch_size)

    def _set_seed(self, seed):
        pass


def test_newton_in_an_environment_of_torchrls_is_recorded(path, worlds):
    env = Poles(worlds.CartPoles()).append_transform(RerunRecorder(path, scene=True))
    env.base_env.poles.seen.clear()  # poses of TorchRL's trial step
    env.rollout(5)
    env.close()
    seen = np.stack(env.base_env.poles.seen)
    for number in range(3):
        assert np.array_equal(np.stack(read(path)[f"/env_{number}/scene"].values), seen[:, 2 * number : 2 * number + 2])


def test_shapes_of_newton_are_drawn(path, worlds, viewer):
    envs = worlds.CartPoles()
    swung(vector_wrappers.RecordRerun(envs, path, scene=True))
    recorded = read(path)
    assert np.allclose(recorded.static["/env_1/scene/boxes"]["Boxes3D:half_sizes"], [[0.2, 0.3, 0.1]])
    assert np.allclose(recorded.static["/env_1/scene/capsules"]["Capsules3D:lengths"], [0.8])
    assert any(entity.startswith("/env_1/scene/world/planes/ground_plane") for entity in recorded.static)
    boxes = np.stack(recorded.drawn["/env_1/scene/boxes"]["Boxes3D:centers"])
    assert np.allclose(boxes[:, 0], np.stack(envs.seen)[:, 2, :3], atol=1e-6)
    assert not trouble(opened(viewer, path, 3))


def test_a_world_of_another_number_of_bodies_is_not_recorded_and_told(path, worlds):
    envs = vector_wrappers.RecordRerun(worlds.CartPoles((2, 3, 2)), path, scene=True)
    with pytest.warns(UserWarning, match="environments 1 is not recorded: environment 0 has 2 bodies"):
        envs.reset()
    swung(envs, 3)
    recorded = read(path)
    assert np.isnan(np.stack(recorded["/env_1/scene"].values)).all()
    assert not np.isnan(np.stack(recorded["/env_2/scene"].values)).any()


@pytest.mark.parametrize("holder", ["sim", "simulator"])
def test_a_simulation_is_found_in_what_an_environment_holds(path, worlds, holder):
    envs = worlds.Holding(holder)
    swung(vector_wrappers.RecordRerun(envs, path, scene=True), 2)
    assert np.array_equal(np.stack(read(path)["/env_2/scene"].values), np.stack(envs.held.seen)[:, 4:])


def test_model_and_state_may_be_given(path, worlds):
    envs = worlds.Holding("of_its_own")
    with pytest.raises(ValueError, match="found Holding"):
        vector_wrappers.RecordRerun(envs, path, scene=True).reset()
    source = Newton(envs.held.model, lambda: envs.held.state_0)
    envs.held.seen.clear()
    swung(vector_wrappers.RecordRerun(envs, path, scene=source, overwrite=True), 2)
    assert np.array_equal(np.stack(read(path)["/env_2/scene"].values), np.stack(envs.held.seen)[:, 4:])


def test_simulations_of_a_world_each_are_recorded_side_by_side(path, worlds):
    singles = [worlds.CartPole(), worlds.CartPole()]
    envs = gym.vector.SyncVectorEnv([lambda env=env: env for env in singles])
    swung(vector_wrappers.RecordRerun(envs, path, scene=True), 3)
    for number, single in enumerate(singles):
        assert np.array_equal(np.stack(read(path)[f"/env_{number}/scene"].values), np.stack(single.poles.seen))


def test_more_environments_than_worlds_are_refused(path, worlds):
    inner = worlds.CartPoles()
    two = worlds.models((2, 2))
    envs = vector_wrappers.RecordRerun(inner, path, scene=Newton(two, two.state))
    with pytest.raises(ValueError, match="simulates 2 worlds, and environment 2 is recorded"):
        envs.reset()


def test_newton_is_given_both_or_neither():
    with pytest.raises(ValueError, match="go together"):
        Newton(object())
    with pytest.raises(TypeError, match="can't be called"):
        Newton(object(), 3)


# --- none ---


def test_an_environment_without_a_simulator_is_told_of_all_that_are_known(path):
    env = Count(3).append_transform(RerunRecorder(path, scene=True))
    with pytest.raises(ValueError, match="MuJoCo, Newton or Isaac Lab simulates, and found Count: if a key has"):
        env.reset()
