"""Scenes: the state of a simulation is recorded, its bodies are drawn where MuJoCo has them, and both come back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import rerun as rr
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image
from torchrl.envs import GymEnv, ParallelEnv, SerialEnv

import silhouettes
from environments import Count
from looking import mujoco_draws, opened, trouble
from readback import read
from scene_models import GEOMS, Simulated, forward
from torchrl_rerun import MuJoCo, RerunRecorder, load, repair
from torchrl_rerun.rrd.asset_files import asset_files
from torchrl_rerun.wrappers import RecordRerun
from torchrl_rerun.wrappers import sb3 as sb3_wrappers
from torchrl_rerun.wrappers import vector as vector_wrappers

XYZW = [1, 2, 3, 0]


def ran(env, steps, seed=0):
    env.reset(seed=seed)
    for _ in range(steps):
        env.step(env.action_space.sample())
    env.close()


# --- recorded ---


def test_the_state_at_each_frame_is_recorded(path):
    env = Simulated()
    ran(RecordRerun(env, path, scene=True), 20)
    [episode] = load(path)
    assert np.array_equal(episode["scene"], np.stack(env.states))
    assert np.array_equal(episode.tensordict()["next", "scene"], np.stack(env.states)[1:])


def test_the_whole_state_is_recorded_on_request(path):
    env = gym.make("Hopper-v5")
    wrapped = RecordRerun(env, path, scene=MuJoCo("full"))
    wrapped.reset(seed=0)
    model, data = env.unwrapped.model, env.unwrapped.data
    signature = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    states = []
    for _ in range(5):
        wrapped.step(wrapped.action_space.sample())
        states.append(np.empty(mujoco.mj_stateSize(model, signature)))
        mujoco.mj_getState(model, data, states[-1], signature)
    wrapped.close()
    assert np.array_equal(load(path)[0]["scene"][1:], np.stack(states))


def seen_by_gymnasium(path):
    envs = [Simulated(push=0.1 * number) for number in range(3)]
    env = SyncVectorEnv([lambda env=env: env for env in envs])
    ran(vector_wrappers.RecordRerun(env, path, scene=True), 10)
    return envs


def seen_by_stable_baselines3(path):
    common = pytest.importorskip("stable_baselines3.common.vec_env")
    envs = [Simulated(push=0.1 * number) for number in range(3)]
    venv = sb3_wrappers.VecRerunRecorder(common.DummyVecEnv([lambda env=env: env for env in envs]), path, scene=True)
    venv.reset()
    for _ in range(10):
        venv.step(np.zeros((3, 1), np.float32))
    venv.close()
    return envs


@pytest.mark.parametrize("record", [seen_by_gymnasium, seen_by_stable_baselines3])
def test_each_environment_of_a_batch_has_its_own_scene(path, record):
    envs = record(path)
    for episode, env in zip(load(path), envs, strict=True):
        assert np.array_equal(episode["scene"], np.stack(env.states))


def test_torchrl_environments_are_recorded(path):
    env = SerialEnv(2, lambda: GymEnv("HalfCheetah-v5")).append_transform(RerunRecorder(path, scene=True))
    env.set_seed(0)
    rollout = env.rollout(10)
    env.close()
    for number, episode in enumerate(load(path)):
        observed = torch.cat([rollout["observation"][number], rollout["next", "observation"][number, -1:]])
        assert torch.equal(episode["scene"][:, 1:], observed[:, :8])  # all positions but the first one


def recorded_inside(path):
    return GymEnv("HalfCheetah-v5").append_transform(RerunRecorder(path, scene=True))


def test_recorders_inside_workers_see_their_simulators(path):
    env = ParallelEnv(2, recorded_inside, create_env_kwargs=[{"path": path}] * 2)
    env.rollout(5)
    env.close()
    assert [episode["scene"].shape for episode in load(path.parent)] == [(6, 9)] * 2


def test_simulators_in_other_processes_are_refused(path):
    env = ParallelEnv(2, lambda: GymEnv("HalfCheetah-v5")).append_transform(RerunRecorder(path, scene=True))
    with pytest.raises(ValueError, match="make the recorder inside the workers, have a key carry the state out"):
        env.rollout(2)
    env.close()


def test_states_in_a_key_are_a_scene(path):
    env = RecordRerun(
        Simulated("<mujoco><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>"),
        path,
        scene=MuJoCo(model=mujoco.MjModel.from_xml_string(GEOMS), key="observation"),
    )
    with pytest.raises(
        ValueError, match=r"'observation' has shape \(7,\); states of the model have 35, \d+, 28 numbers"
    ):
        env.reset()
    env = RecordRerun(Simulated(), path, scene=MuJoCo(model=mujoco.MjModel.from_xml_string(GEOMS), key="observation"))
    ran(env, 5)
    [episode] = load(path)
    states = np.stack(env.unwrapped.states)[:, : env.unwrapped.model.nq]
    assert np.array_equal(episode["observation"], states)
    data = forward(env.unwrapped.model, np.concatenate([states[-1], [1, 0, 1], [1, 0, 0, 0]]))
    assert np.array_equal(episode.poses("observation").positions[-1], data.xpos)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda: gym.make("CartPole-v1"),
            "scene=True needs an environment that MuJoCo.* simulates, and found CartPoleEnv",
        ),
        (lambda: _with_a_scene(), "scene=True records 'scene', which the environment gives already"),
    ],
)
def test_environments_without_a_scene_are_refused_at_the_first_reset(path, make, why):
    env = RecordRerun(make(), path, scene=True)
    with pytest.raises(ValueError, match=why):
        env.reset()


def _with_a_scene():
    env = Simulated()
    space = env.observation_space
    return gym.wrappers.TransformObservation(env, lambda obs: {"scene": obs}, gym.spaces.Dict(scene=space))


@pytest.mark.parametrize(
    ("make", "error", "why"),
    [
        (lambda: MuJoCo("all"), ValueError, "choose 'pose' or 'full'"),
        (lambda: MuJoCo(key="qpos"), ValueError, "model and key go together"),
        (lambda: RerunRecorder("x.rrd", scene="mujoco"), TypeError, "the source of a scene"),
    ],
)
def test_mistakes_are_told(make, error, why):
    with pytest.raises(error, match=why):
        make()


def test_states_that_a_reset_within_the_step_has_replaced_are_nan(path):
    class Short(Simulated):
        def step(self, action):
            *rest, _, _, info = super().step(action)
            return *rest, len(self.states) % 4 == 0, False, info

    env = SyncVectorEnv([Short], autoreset_mode=AutoresetMode.SAME_STEP)
    ran(vector_wrappers.RecordRerun(env, path, scene=True), 8)
    ends = [np.isnan(episode["scene"]).all(1).tolist() for episode in load(path) if episode.properties.terminated]
    assert ends
    assert all(each == [False] * (len(each) - 1) + [True] for each in ends)


def test_environments_of_other_models_are_left_out_with_a_warning(path):
    models = [GEOMS, GEOMS.replace('name="hand" pos=".3 0 .1"', 'name="hand" pos=".4 0 .1"')]
    env = SyncVectorEnv([lambda xml=xml: Simulated(xml) for xml in models])
    with pytest.warns(UserWarning, match="the scene of environments 1 is not recorded: it has another model"):
        ran(vector_wrappers.RecordRerun(env, path, scene=True), 3)
    first, second = load(path)
    assert not np.isnan(first["scene"]).any()
    assert np.isnan(second["scene"]).all()


# --- drawn ---


def drawn(path, entity):
    """Return the rows of an entity that is drawn, by component."""
    from torchrl_rerun.rrd.reader import parts_in

    found = {}
    for part in parts_in(path):
        for chunk in part.all_chunks():
            if chunk.entity_path == entity:
                batch = chunk.to_record_batch()
                for name in batch.schema.names:
                    if ":" in name:
                        found.setdefault(name, []).extend(batch.column(name).to_pylist())
    return found


FORMS = {
    "spheres": (mujoco.mjtGeom.mjGEOM_SPHERE, "Ellipsoids3D:centers", None),
    "ellipsoids": (mujoco.mjtGeom.mjGEOM_ELLIPSOID, "Ellipsoids3D:centers", "Ellipsoids3D:quaternions"),
    "capsules": (mujoco.mjtGeom.mjGEOM_CAPSULE, "Capsules3D:translations", "Capsules3D:quaternions"),
    "cylinders": (mujoco.mjtGeom.mjGEOM_CYLINDER, "Cylinders3D:centers", "Cylinders3D:quaternions"),
    "boxes": (mujoco.mjtGeom.mjGEOM_BOX, "Boxes3D:centers", "Boxes3D:quaternions"),
    "meshes/wedge/b4_b4_b4_ff": (
        mujoco.mjtGeom.mjGEOM_MESH,
        "InstancePoses3D:translations",
        "InstancePoses3D:quaternions",
    ),
}


def is_still(model, geom):
    return model.body_weldid[model.geom_bodyid[geom]] == 0 and model.body(model.geom_bodyid[geom]).name != "target"


@pytest.mark.parametrize("form", FORMS)
def test_shapes_are_drawn_where_mujoco_has_them(path, form):
    env = Simulated(GEOMS.replace('mesh="wedge"/>', 'mesh="wedge" rgba=".706 .706 .706 1"/>'))
    ran(RecordRerun(env, path, scene=True), 10)
    kind, positions, quaternions = FORMS[form]
    model = env.model
    rows = drawn(path, f"/env_0/scene/{form}")
    geoms = [
        geom
        for geom in range(model.ngeom)
        if model.geom_type[geom] == kind and not is_still(model, geom) and model.geom_group[geom] < 3
    ]
    assert geoms
    for row, state in enumerate(env.states):
        data = forward(model, state)
        for number, geom in enumerate(geoms):
            turned = data.geom_xmat[geom].reshape(3, 3)
            at = data.geom_xpos[geom]
            if form == "capsules":  # Rerun's begin at their origin
                at = at - turned @ [0, 0, model.geom_size[geom, 1]]
            shown = [each for each in rows[positions] if each is not None][row][number]
            assert np.allclose(shown, at, atol=1e-6)
            if quaternions:
                quaternion = np.empty(4)
                mujoco.mju_mat2Quat(quaternion, data.geom_xmat[geom])
                shown = np.array([each for each in rows[quaternions] if each is not None][row][number])
                assert min(np.abs(shown - quaternion[XYZW]).max(), np.abs(shown + quaternion[XYZW]).max()) < 1e-5


def test_shapes_that_never_move_are_drawn_once(path):
    env = Simulated()
    ran(RecordRerun(env, path, scene=True), 3)
    recorded = read(path)
    still = {entity for entity in recorded.static if "/scene/world/" in entity}
    assert {entity.split("/world/")[1].split("/")[0] for entity in still} == {"boxes", "meshes", "planes"}
    [center] = recorded.static["/env_0/scene/world/boxes"]["Boxes3D:centers"]
    assert np.allclose(center, env.data.geom("shelf").xpos, atol=1e-6)
    floor = next(entity for entity in still if "ground" in entity)
    corners = np.array(recorded.static[floor]["Mesh3D:vertex_positions"])
    assert corners.min(0).tolist() == [-3, -3, 0]
    assert corners.max(0).tolist() == [3, 3, 0]
    assert np.array(recorded.static[floor]["Mesh3D:vertex_texcoords"]).max(0).tolist() == [12, 12]


def test_hidden_groups_are_not_drawn_unless_named(path):
    ran(RecordRerun(Simulated(), path, scene=True), 1)
    assert "ghost" not in str(read(path).static["/env_0/scene/spheres"])
    ran(RecordRerun(Simulated(), path, scene=MuJoCo(groups=range(6)), overwrite=True), 1)
    assert "ghost" in str(read(path).static["/env_0/scene/spheres"])


def test_materials_give_colours_to_geoms_without_their_own(path):
    ran(RecordRerun(Simulated(), path, scene=True), 1)
    static = read(path).static["/env_0/scene/spheres"]
    colors = dict(zip(static["Ellipsoids3D:labels"], static["Ellipsoids3D:colors"], strict=True))
    assert colors["ball"] == 0xE61A1AFF
    assert colors["mark"] == 0x808080FF


def test_contacts_sites_and_tendons_are_drawn_on_request(path):
    env = Simulated()
    ran(RecordRerun(env, path, scene=MuJoCo(contacts=True, sites=True, tendons=True)), 200)
    contacts = drawn(path, "/env_0/scene/contacts")["Points3D:positions"]
    strips = drawn(path, "/env_0/scene/tendons")["LineStrips3D:strips"]
    assert any(contacts)
    for state, points, [strip] in zip(env.states, contacts, strips, strict=False):
        data = forward(env.model, state)
        assert np.allclose(np.array(points).reshape(-1, 3), np.reshape(data.contact.pos, (-1, 3)), atol=1e-6)
        assert np.allclose(strip, [data.site("nail").xpos, data.site("tip").xpos], atol=1e-6)
    assert "tip" in str(read(path).static["/env_0/scene/spheres"])


def test_the_way_of_the_root_is_shown_on_request(viewer, path):
    env = RecordRerun(gym.make("Ant-v5"), path, scene=MuJoCo(trail=10))
    ran(env, 20)
    views = opened(viewer, path, 20)
    assert not trouble(views)
    shown = str(viewer.get_blueprint().blueprint)
    assert "VisibleTimeRanges" in shown
    way = np.array(drawn(path, "/env_0/scene/trail")["Points3D:positions"][-20:])
    assert np.allclose(way[:, 0], load(path)[0].poses().positions[-20:, 1], atol=1e-6)


def test_environments_are_shown_side_by_side_on_request(viewer, path):
    env = SyncVectorEnv([Simulated] * 4)
    ran(vector_wrappers.RecordRerun(env, path, scene=MuJoCo(together=True)), 3)
    views = opened(viewer, path, 2)
    assert not trouble(views)
    assert [str(view.origin) for view in views if view.name == "scene"] == ["/"]
    places = [read(path).static[f"/env_{number}/scene"]["Transform3D:translation"][0] for number in range(4)]
    assert len({tuple(place) for place in places}) == 4


# --- read back ---


@pytest.mark.parametrize("name", ["Ant-v5", "Humanoid-v5", "HalfCheetah-v5"])
def test_poses_are_those_of_mj_forward_bit_for_bit(path, name):
    env = RecordRerun(gym.make(name), path, scene=True)
    ran(env, 20)
    [episode] = load(path)
    poses, model = episode.poses(), env.unwrapped.model
    assert poses.bodies == tuple(model.body(number).name or f"body_{number}" for number in range(model.nbody))
    for row, state in enumerate(episode["scene"].numpy()):
        data = forward(model, state)
        assert np.array_equal(poses.positions[row], data.xpos)
        assert np.array_equal(poses.quaternions[row], data.xquat[:, XYZW])


def test_poses_of_all_bodies_and_joints_are_exact(path):
    env = Simulated()
    ran(RecordRerun(env, path, scene=True), 20)
    poses = load(path)[0].poses()
    for row, state in enumerate(env.states):
        data = forward(env.model, state)
        assert np.array_equal(poses.positions[row], data.xpos)
        assert np.array_equal(poses.quaternions[row], data.xquat[:, XYZW])


def test_poses_come_back_in_another_process_from_episodes_whose_model_is_stored_once(tmp_path):
    env = RecordRerun(gym.make("Hopper-v5"), tmp_path, scene=True, split="episode")
    for _ in range(3):
        env.reset(seed=0)
        while True:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                break
    env.close()
    assert len(asset_files(tmp_path)) == 1
    program = f"""
from torchrl_rerun import load
print([episode.poses().positions.shape[1:] for episode in load({str(tmp_path)!r})])
"""
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "[(5, 3), (5, 3), (5, 3)]"


def of_a_large_mesh(folder):
    spheres = np.random.default_rng(0).normal(size=(4000, 3))
    vertices = " ".join(f"{each:.4f}" for each in (spheres / np.linalg.norm(spheres, axis=1)[:, None]).ravel())
    xml = f"""<mujoco><asset><mesh name="moon" vertex="{vertices}"/></asset>
    <worldbody><body><freejoint/><geom type="mesh" mesh="moon" rgba="0 1 0 1"/></body></worldbody></mujoco>"""
    env = RecordRerun(Simulated(xml), folder, scene=True, split="episode")
    for _ in range(3):
        env.reset(seed=0)
        env.step(env.action_space.sample())
    env.close()


def test_large_shapes_are_beside_the_episodes(tmp_path):
    of_a_large_mesh(tmp_path)
    [shared] = asset_files(tmp_path)
    assert shared.stat().st_size > 100_000
    assert all(episode.files[0].stat().st_size < 200_000 for episode in load(tmp_path))
    assert load(tmp_path)[0].poses().positions.shape == (2, 2, 3)


def test_a_catalog_takes_the_shapes_as_an_asset(tmp_path):
    pytest.importorskip("datafusion")
    of_a_large_mesh(tmp_path)
    files = [str(episode.files[0]) for episode in load(tmp_path)]
    [shared] = asset_files(tmp_path)
    with rr.server.Server(host="127.0.0.1", datasets={"moon": files}) as server:
        dataset = server.client().get_dataset("moon")
        registered = dataset.register_asset(shared.resolve().as_uri())
        assert all(dataset.assets_for_segment(segment) == [registered] for segment in dataset.segment_ids())


def test_a_scene_without_its_model_is_told(tmp_path):
    ran(RecordRerun(gym.make("Hopper-v5"), tmp_path, scene=True, split="episode"), 3)
    for file in asset_files(tmp_path):
        file.unlink()
    program = f"""
from torchrl_rerun import load
load({str(tmp_path)!r})[0].poses()
"""
    told = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert "the model of 'scene' is not in the recording" in told.stderr


def test_recordings_without_a_scene_say_so(path):
    env = Count().append_transform(RerunRecorder(path))
    env.rollout(3)
    env.close()
    with pytest.raises(KeyError, match="has no scene: record with scene=True"):
        load(path)[0].poses()


# --- after a crash ---


def _killed(path, split):
    env = RecordRerun(gym.make("HalfCheetah-v5"), path, scene=True, split=split)
    env.reset(seed=0)
    for _ in range(30):
        env.step(np.zeros(6, np.float32))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("split", ["run", "episode"])
def test_the_scene_of_a_killed_process_is_there_to_its_last_step(tmp_path, split):
    path = tmp_path / ("run.rrd" if split == "run" else "run")
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(path, split))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [episode] = load(path)
    assert len(episode["scene"]) == 31
    assert len(episode.poses().positions) == 31
    repair(path)
    [file] = load(path)[0].files
    rows = drawn(file, "/env_0/scene/capsules" if split == "run" else "/scene/capsules")
    assert len([each for each in rows["Capsules3D:translations"] if each is not None]) == 31


# --- in the viewer ---

PUPPET = """
<mujoco>
  <asset>
    <mesh name="wedge" vertex="0 0 0  .5 0 0  0 .5 0  0 0 .5"/>
    <mesh name="block" vertex="-.2 -.1 -.1  .2 -.1 -.1  -.2 .1 -.1  .2 .1 -.1  -.2 -.1 .1  .2 -.1 .1  -.2 .1 .1  .2 .1 .1"/>
  </asset>
  <worldbody>
    <geom type="plane" size="3 3 .1"/>
    <body pos="0 0 .8"><freejoint/><geom type="mesh" mesh="wedge"/>
      <body pos=".4 .1 .2" euler="20 30 40"><joint axis="0 1 0"/><geom type="mesh" mesh="block" euler="10 0 0"/></body>
      <body pos="-.2 -.3 0"><joint axis="1 0 0"/><geom type="mesh" mesh="block" pos="0 0 -.2"/></body>
    </body>
  </worldbody>
</mujoco>
"""


def made_by_dm_control():
    pytest.importorskip("dm_control", reason="dm_control isn't installed")
    from torchrl.envs import DMControlEnv

    return DMControlEnv("walker", "run")


ROBOTS = {
    "Ant": lambda: gym.make("Ant-v5"),
    "Humanoid": lambda: gym.make("Humanoid-v5"),
    "HalfCheetah": lambda: gym.make("HalfCheetah-v5"),
    "meshes": lambda: Simulated(PUPPET),
    "walker": made_by_dm_control,
}


@pytest.mark.parametrize("name", ROBOTS)
def test_the_viewer_draws_what_mujoco_draws(viewer, path, name):
    mujoco_draws()
    env = ROBOTS[name]()
    position, target = [1.6, -2.0, 1.7], [0.0, 0.0, 0.8]
    options = {"scene": True, "blueprint": silhouettes.layout("/env_0/scene", position, target)}
    if name == "walker":
        model = env._env.physics.model.ptr
        env = env.append_transform(RerunRecorder(path, **options))
        env.rollout(5)
        env.close()
    else:
        model = env.unwrapped.model
        ran(RecordRerun(env, path, **options), 5)
    views = opened(viewer, path, 5)
    assert not trouble(views)
    shown = silhouettes.of_rerun(viewer, views)
    qpos = load(path)[0]["scene"][5].numpy()[: model.nq]
    wanted = silhouettes.of_mujoco(model, qpos, shown.shape, position, target, path.parent)
    assert wanted.mean() > 0.005
    assert silhouettes.overlap(shown, wanted) >= 0.9


def test_pictures_of_episodes_have_the_shapes_that_are_beside_them(tmp_path):
    of_a_large_mesh(tmp_path / "run")
    file = load(tmp_path / "run")[0].files[0]
    command = [sys.executable, "-m", "torchrl_rerun.cli", "screenshot", file, tmp_path / "shape.png"]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    if "no graphics driver" in run.stderr:
        pytest.skip("no graphics driver")
    assert run.returncode == 0, run.stderr
    picture = np.asarray(Image.open(tmp_path / "shape.png").convert("RGB")).astype(int)
    is_green = picture[..., 1] > 60 + picture[..., [0, 2]].max(-1)
    assert is_green[:, : picture.shape[1] // 2].mean() > 0.02
