"""Trajectories that were stored without pictures or poses get the scene that a recorder would have seen."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import gymnasium
import minari
import mujoco
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv, SerialEnv
from typer.testing import CliRunner

from torchrl_rerun import MuJoCo, RerunRecorder, load, replay
from torchrl_rerun.cli import app
from torchrl_rerun.kinds.assets import ASSETS
from torchrl_rerun.rrd.asset_files import asset_files
from torchrl_rerun.rrd.reader import parts_in
from torchrl_rerun.wrappers import RecordRerun

OBSERVED = {"HalfCheetah-v5": 1, "Ant-v5": 2, "Humanoid-v5": 2, "Hopper-v5": 1, "InvertedPendulum-v5": 0}
"""Robots whose positions are in their observations, but for so many."""


def stored(name, path, folder, steps=25, seed=0):
    """Record a rollout with its scene, and store it without."""
    env = GymEnv(name).append_transform(RerunRecorder(path, scene=True))
    env.set_seed(seed)
    rollout = env.rollout(steps, break_when_any_done=False)
    env.close()
    torch.save(rollout, folder / "stored")
    return folder / "stored"


def drawn(path):
    """Return all columns of the scene of a recording, by entity and name: static ones and those over time."""
    columns = {}
    for chunk in RrdReader(path).store().stream():
        if chunk.entity_path.startswith("/env_0/scene"):
            batch = chunk.to_record_batch()
            for name in set(batch.schema.names) - {"log_time", "rerun.controls.RowId"}:
                columns.setdefault((chunk.entity_path, name), []).extend(batch.column(name).to_pylist())
    return columns


@pytest.mark.parametrize("name", OBSERVED)
def test_the_scene_follows_from_observations(name, path, tmp_path):
    """Positions that aren't observed are those of another reset, and go on from there."""
    source, out = stored(name, path, tmp_path, seed=5), tmp_path / "out.rrd"
    replayed = replay(source, out, scene=name)
    assert not replayed.divergences
    hidden = OBSERVED[name]
    for episode, expected in zip(load(out), load(path), strict=True):
        off = (episode["scene"] - expected["scene"]).numpy()
        assert np.abs(off[:, hidden:]).max() == 0
        assert off[:, :hidden] == pytest.approx(np.broadcast_to(off[0, :hidden], off[:, :hidden].shape), abs=1e-9)


@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Reacher-v5"])
def test_the_scene_from_a_seed_is_the_recorded_one(name, path, tmp_path):
    source, out = stored(name, path, tmp_path, seed=5), tmp_path / "out.rrd"
    assert not replay(source, out, scene=name, seed=5).divergences
    [episode], [expected] = load(out), load(path)
    assert torch.equal(episode["scene"], expected["scene"])
    assert np.array_equal(episode.poses().positions, expected.poses().positions)
    kinds = [next(s.kind for s, _ in each.schema.described if s.key == ("scene",)) for each in (episode, expected)]
    assert kinds[0] == kinds[1]


def test_the_scene_is_drawn_as_a_recorder_draws_it(path, tmp_path):
    source, out = stored("HalfCheetah-v5", path, tmp_path, seed=5), tmp_path / "out.rrd"
    replay(source, out, scene="HalfCheetah-v5", seed=5)
    found, expected = drawn(out), drawn(path)
    assert ("/env_0/scene/capsules", "Capsules3D:translations") in expected
    assert found == expected


def test_the_scenes_of_a_batch(path, tmp_path):
    env = SerialEnv(2, functools.partial(GymEnv, "Hopper-v5")).append_transform(RerunRecorder(path, scene=True))
    env.set_seed(5)
    torch.save(env.rollout(20), tmp_path / "stored")
    env.close()
    replay(tmp_path / "stored", tmp_path / "out.rrd", scene="Hopper-v5", seed=5)
    for episode, expected in zip(load(tmp_path / "out.rrd"), load(path), strict=True):
        assert torch.equal(episode["scene"], expected["scene"])


def test_a_recording_gets_a_scene(tmp_path):
    """The episodes of a folder have their seeds with them."""
    env = GymEnv("Reacher-v5").append_transform(RerunRecorder(tmp_path / "run", split="episode"))
    env.set_seed(3)
    env.rollout(10)
    env.close()
    assert not replay(tmp_path / "run", tmp_path / "out.rrd", scene="Reacher-v5").divergences
    assert torch.isfinite(load(tmp_path / "out.rrd")[0]["scene"]).all()


@pytest.mark.parametrize("split", ["run", "episode"])
@pytest.mark.parametrize("there", [True, False], ids=["with", "without"])
def test_a_recording_of_a_scene_is_recorded_again_in_another_process(tmp_path, split, there):
    """Without the model the states are recorded, and are not drawn."""
    env = RecordRerun(gymnasium.make("Hopper-v5"), tmp_path / "run", scene=True, split="episode")
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.sample())
    env.close()
    if not there:
        for file in asset_files(tmp_path / "run"):
            file.unlink()
    program = f"from torchrl_rerun import replay; replay({str(tmp_path / 'run')!r}, {str(tmp_path / 'out')!r}, split={split!r})"
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ("is neither in the recording nor in .assets beside it" in told.stderr) == (not there)
    [episode], [expected] = load(tmp_path / "out"), load(tmp_path / "run")
    assert torch.equal(episode["scene"], expected["scene"])
    assert torch.equal(episode["observation"], expected["observation"])
    files = [*asset_files(tmp_path / "out"), *episode.files]
    kept = [each for file in files for part in parts_in(file) for each in part.index.paths if each.startswith(ASSETS)]
    assert bool(kept) == there


# --- stored positions ---


def walk(name, lengths, seed=0):
    """Return observations, positions, actions and rewards of some episodes, one row more of the first two."""
    env = gymnasium.make(name, disable_env_checker=True)
    env.action_space.seed(seed)
    told = []
    for length in lengths:
        observation, _ = env.reset(seed=seed)
        observed, positions, actions, rewards = [observation], [env.unwrapped.data.qpos.copy()], [], []
        for _ in range(length):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            observed.append(observation)
            positions.append(env.unwrapped.data.qpos.copy())
            rewards.append(reward)
        told.append(tuple(map(np.array, (observed, positions, actions, rewards))))
    return told


def test_positions_that_minari_holds_are_taken_as_they_are(tmp_path, data_sets):
    told = walk("HalfCheetah-v5", [12, 7])
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=observed,
            actions=actions,
            rewards=rewards.tolist(),
            terminations=[False] * len(actions),
            truncations=[False] * (len(actions) - 1) + [True],
            infos={"qpos": positions + number},  # whatever is stored
        )
        for number, (observed, positions, actions, rewards) in enumerate(told)
    ]
    env = gymnasium.make("HalfCheetah-v5")
    minari.create_dataset_from_buffers("cheetah/test-v0", buffers, env=env, eval_env=env)
    out = tmp_path / "out.rrd"
    assert replay("cheetah/test-v0", out, scene="HalfCheetah-v5").episodes == 2
    for number, (episode, (_, positions, _, _)) in enumerate(zip(load(out), told, strict=True)):
        assert np.array_equal(episode["scene"], positions + number)


@pytest.mark.parametrize("lengths", [[9, 6], [1500, 30]])
def test_positions_of_steps_alone_leave_the_last_one_unknown(lengths, tmp_path):
    """D4RL's files have a row of infos for each step, and none for the observation after the last one."""
    told = walk("HalfCheetah-v5", lengths)
    ends = np.zeros(sum(lengths), bool)
    ends[np.cumsum(lengths) - 1] = True
    arrays = {
        "observations": np.concatenate([observed[:-1] for observed, *_ in told]),
        "actions": np.concatenate([actions for _, _, actions, _ in told]),
        "timeouts": ends,
        "infos/qpos": np.concatenate([positions[:-1] for _, positions, *_ in told]),
    }
    np.savez(tmp_path / "old.npz", **arrays)
    out = tmp_path / "out.rrd"
    assert replay(tmp_path / "old.npz", out, scene="HalfCheetah-v5").episodes == 2
    for episode, (_, positions, _, _) in zip(load(out), told, strict=True):
        assert np.array_equal(episode["scene"][:-1], positions[:-1])
        assert episode["scene"][-1].isnan().all()


ARM = """
<mujoco>
  <worldbody>
    <body name="target" mocap="true" pos="1 2 3"><geom type="sphere" size="0.1"/></body>
    <body><joint type="hinge"/><geom type="capsule" size="0.05 0.3"/>
      <body pos="0 0 0.6"><joint type="slide"/><geom type="box" size="0.1 0.1 0.1"/></body>
    </body>
  </worldbody>
</mujoco>
"""


def arm(folder, positions):
    (folder / "arm.xml").write_text(ARM)
    np.savez(folder / "old.npz", obs=positions, actions=positions, angles=positions)
    return folder / "arm.xml", folder / "old.npz"


@pytest.mark.filterwarnings("ignore:.*NOTHING SAYS WHERE EPISODES END")
def test_positions_of_a_model_without_an_environment(tmp_path):
    positions = np.random.default_rng(0).normal(size=(6, 2))
    model, source = arm(tmp_path, positions)
    out = tmp_path / "out.rrd"
    command = ["replay", str(source), "-o", str(out), "--scene", str(model), "--key", "qpos=angles"]
    asked = CliRunner().invoke(app, command)
    assert asked.exit_code == 0, asked.output
    [episode] = load(out)
    assert np.array_equal(episode["scene"][:6, :2], positions)
    compiled = mujoco.MjModel.from_xml_path(str(model))
    data = mujoco.MjData(compiled)
    data.qpos = positions[4]
    mujoco.mj_forward(compiled, data)
    assert np.array_equal(episode.poses().positions[4], data.xpos)


@pytest.mark.filterwarnings("ignore:.*NOTHING SAYS WHERE EPISODES END")
def test_a_key_of_states_is_a_scene_of_its_own(tmp_path):
    positions = np.random.default_rng(0).normal(size=(6, 2))
    model, source = arm(tmp_path, positions)
    replay(source, tmp_path / "out.rrd", scene=MuJoCo(model=model, key="angles"))
    [episode] = load(tmp_path / "out.rrd")
    assert episode.poses("angles").positions.shape[1:] == (4, 3)


# --- what can't be had ---


def test_states_are_unknown_from_a_divergence_on(path, tmp_path):
    source, out = stored("HalfCheetah-v5", path, tmp_path, steps=8), tmp_path / "out.rrd"
    rollout = torch.load(source, weights_only=False)
    rollout["next", "reward"][4] = 100
    torch.save(rollout, source)
    asked = CliRunner().invoke(app, ["replay", str(source), "-o", str(out), "--scene", "HalfCheetah-v5"])
    assert "environment 0, episode 0, step 5: 'reward' differs by" in asked.stderr
    assert "no pictures or poses from there on" in " ".join(asked.stderr.split())
    known = torch.isfinite(load(out)[0]["scene"]).all(-1)
    assert known.tolist() == [True] * 5 + [False] * 4


ROD = """<robot name="arm"><link name="base"/><link name="rod"><visual><geometry><box size="1 1 1"/></geometry></visual></link>
<joint name="hinge" type="continuous"><parent link="base"/><child link="rod"/><axis xyz="0 1 0"/></joint></robot>"""


@pytest.mark.filterwarnings("ignore:.*NOTHING SAYS WHERE EPISODES END")
def test_a_urdf_is_drawn_by_the_joints_that_the_command_line_names(tmp_path):
    (tmp_path / "arm.urdf").write_text(ROD)
    np.savez(tmp_path / "arm.npz", obs=np.linspace(0, 1, 12).reshape(6, 2), actions=np.zeros(6))
    command = ["replay", tmp_path / "arm.npz", "-o", tmp_path / "arm.rrd", "--scene", tmp_path / "arm.urdf"]
    for joints, why in (("observation", "KEY=NAME"), ("observation=knee,", "knee")):
        refused = CliRunner().invoke(app, [*map(str, command), "--joints", joints])
        assert refused.exit_code
        assert why in refused.output
    done = CliRunner().invoke(app, [*map(str, command), "--joints", "observation=,hinge"])
    assert done.exit_code == 0, done.output
    [episode] = load(tmp_path / "arm.rrd")
    angles = episode["observation"][:, 1].numpy()
    turned = episode.poses().quaternions[:, 1]
    assert np.allclose(turned[:, 1], np.sin(angles / 2), equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*NOTHING SAYS WHERE EPISODES END")
def test_what_is_missing_or_does_not_fit_is_named(path, tmp_path):
    model, source = arm(tmp_path, np.zeros((6, 2)))
    out = tmp_path / "out.rrd"
    with pytest.raises(ValueError, match=r"the source holds no 'qpos', .*--key qpos=NAME"):
        replay(source, out, scene=str(model))
    np.savez(tmp_path / "wide.npz", obs=np.zeros((6, 2)), actions=np.zeros(6), qpos=np.zeros((6, 3)))
    with pytest.raises(ValueError, match=r"'qpos' has shape \(3,\), and the model has 2 positions"):
        replay(tmp_path / "wide.npz", out, scene=str(model))
    np.savez(tmp_path / "long.npz", obs=np.zeros((7, 2)), actions=np.zeros(6), angles=np.zeros((7, 2)))
    with pytest.warns(UserWarning, match=r"angles \(float64 \(7, 2\), .*; for a row more, --key infos/angles=angles\)"):
        replay(tmp_path / "long.npz", tmp_path / "long.rrd")
    replay(tmp_path / "long.npz", tmp_path / "far.rrd", scene=str(model), keys={("infos", "qpos"): "angles"})
    assert torch.isfinite(load(tmp_path / "far.rrd")[0]["scene"]).all()
    with pytest.raises(ValueError, match=r"scene='arm.urdf' is a URDF, .*scene=Urdf\('arm.urdf', joints="):
        replay(tmp_path / "wide.npz", out, scene="arm.urdf")
    with pytest.raises(FileNotFoundError, match="there is no model at"):
        replay(source, out, scene=str(tmp_path / "none.xml"))
    with pytest.raises(ValueError, match="scene='CartPole-v1' needs an environment that MuJoCo simulates"):
        replay(source, out, scene="CartPole-v1")
    with pytest.raises(ValueError, match="scene='Nothing-v5'"):
        replay(source, out, scene="Nothing-v5")
    with pytest.raises(ValueError, match=r"seed=1 needs render=.* or scene="):
        replay(source, out, seed=1)
    assert not out.exists()
    stored("Reacher-v5", path, tmp_path)
    with pytest.raises(ValueError, match=r"Reacher-v5 can't be set to a stored observation, .*pass the seed"):
        replay(tmp_path / "stored", out, scene="Reacher-v5")
    with pytest.raises(ValueError, match="the source holds 'scene' already: leave scene out"):
        replay(path, out, scene="Reacher-v5")


def test_no_graphics_library_is_needed(path, tmp_path):
    """MuJoCo is told to have none: to make a renderer would be an error."""
    source = stored("Hopper-v5", path, tmp_path, steps=5)
    program = f"""
import mujoco
assert not hasattr(mujoco, "GLContext")
from torchrl_rerun.cli import app
app(["replay", {str(source)!r}, "-o", "out.rrd", "--scene", "Hopper-v5"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | {"MUJOCO_GL": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    assert torch.isfinite(load(tmp_path / "out.rrd")[0]["scene"]).all()
