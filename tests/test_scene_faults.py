"""Scenes whose models change, fail, or are named oddly: training goes on, and what is recorded is true."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from scene_models import GEOMS, Simulated, forward
from torchrl_rerun import MuJoCo, load
from torchrl_rerun.rrd.asset_files import asset_files
from torchrl_rerun.rrd.reader import parts_in
from torchrl_rerun.viewing.shapes import with_shapes
from torchrl_rerun.wrappers import RecordRerun, vector
from torchrl_rerun.writing.episode_folder import episodes_in


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.rrd"


def ran(env, episodes=2, steps=3):
    for _ in range(episodes):
        env.reset(seed=0)
        for _ in range(steps):
            env.step(env.action_space.sample())
    env.close()


def is_lost(episode):
    return np.isnan(episode["scene"].numpy()).all(1).tolist()


# --- models that change ---


class Changing(Simulated):
    """Changes its model at the second reset and goes back to the first one at the third."""

    def __init__(self, change):
        super().__init__()
        self.change, self.count, self.first = change, 0, self.model

    def reset(self, *, seed=None, options=None):
        self.count += 1
        self.model = self.change(mujoco.MjModel.from_xml_string(GEOMS)) if self.count == 2 else self.first
        self.data = mujoco.MjData(self.model)
        return super().reset(seed=seed)

    def _now(self):
        return super()._now()[:28]


def moved(model):
    model.body_pos[model.body("tied").id] += 0.5
    return model


def larger(model):
    del model
    return mujoco.MjModel.from_xml_string(
        GEOMS.replace("</worldbody>", "<body><freejoint/><geom size='.1'/></body></worldbody>")
    )


def wider(model):
    model.geom_size[model.geom("ball").id] *= 2
    return model


def rearranged(model):
    model.body_pos[model.body("welded").id] += 0.5
    return model


def heavier(model):
    model.body_mass[:] *= 2
    return model


@pytest.mark.parametrize("change", [moved, larger])
def test_where_bodies_are_elsewhere_the_scene_is_unknown_until_the_model_is_the_recorded_one_again(path, change):
    with pytest.warns(UserWarning, match="not recorded: it has another model") as told:
        ran(RecordRerun(Changing(change), path, scene=True), episodes=4)
    assert len(told) == 1
    lost = [is_lost(episode) for episode in load(path)]
    assert lost == [[False] * 4, [True] * 4, [False] * 4, [False] * 4]


def test_a_model_that_is_written_to_is_told_from_the_recorded_one(path):
    class Written(Simulated):
        def reset(self, *, seed=None, options=None):
            moved(self.model)
            return super().reset(seed=seed)

    with pytest.warns(UserWarning, match="not recorded: it has another model"):
        ran(RecordRerun(Written(), path, scene=True))
    assert [any(is_lost(episode)) for episode in load(path)] == [False, True]


@pytest.mark.parametrize("model", ["changed", "new"])
@pytest.mark.parametrize("change", [wider, rearranged])
def test_other_shapes_and_furniture_are_told_and_what_moves_stays_true(path, change, model):
    env = Changing(change)
    moving = env.model.body_weldid != 0
    if model == "changed":
        env.change = lambda _: change(env.first)
    with pytest.warns(UserWarning, match="drawn with the shapes of the first model") as told:
        ran(RecordRerun(env, path, scene=True))
    assert len(told) == 1
    for number, episode in enumerate(load(path)):
        states = env.states[number * 4 : number * 4 + 4]
        assert np.array_equal(episode["scene"], states)
        expected = np.array([forward(env.first, state).xpos for state in states])
        assert np.array_equal(episode.poses().positions[:, moving], expected[:, moving])


def test_other_masses_are_no_other_scene(path, recwarn):
    ran(RecordRerun(Changing(heavier), path, scene=True))
    assert not any(lost for episode in load(path) for lost in is_lost(episode))
    assert not [each for each in recwarn if "scene" in str(each.message)]


def test_a_simulator_that_fails_costs_the_others_nothing(path):
    class Failing(Simulated):
        is_well = True

        @property
        def data(self):
            if not self.is_well:
                raise RuntimeError("the simulator is gone")
            return self._data

        @data.setter
        def data(self, data):
            self._data = data

        def step(self, action):
            self.is_well = True
            found = super().step(action)
            self.is_well = len(self.states) != 3
            return found

    env = SyncVectorEnv([Failing, Simulated])
    with pytest.warns(UserWarning, match="can't be read: RuntimeError: the simulator is gone"):
        ran(vector.RecordRerun(env, path, scene=True), episodes=1, steps=4)
    assert [is_lost(episode) for episode in load(path)] == [[False, False, True, False, False], [False] * 5]


# --- names ---

TWO = "<mesh name='{}' vertex='0 0 0 1 0 0 0 1 0 0 0 1' {}/>"
NAMED_ALIKE = {
    "a mesh and a height field": (
        TWO.format("hill", "") + "<hfield name='hill' nrow='4' ncol='4' size='1 1 1 .1'/>",
        "<geom type='mesh' mesh='hill'/><geom type='hfield' hfield='hill'/>",
    ),
    "a mesh with a texture, and one with the number of the texture": (
        "<texture name='squares' type='2d' builtin='checker' width='8' height='8'/><material name='squares' texture='squares'/>"
        + TWO.format("arm", "texcoord='0 0 1 0 0 1 1 1'")
        + TWO.format("arm_0", "scale='2 2 2'"),
        "<geom type='mesh' mesh='arm' material='squares'/><geom type='mesh' mesh='arm_0' rgba='1 1 1 1'/>",
    ),
    "a plane without a name, and one with its number": (
        "",
        "<geom name='geom_1' type='plane' size='1 1 1'/><geom type='plane' size='2 2 1'/>",
    ),
}


def shapes_in(path):
    [part] = parts_in(path)
    return [each for each in part.index.paths if "/meshes/" in each or "/planes/" in each]


@pytest.mark.parametrize("name", NAMED_ALIKE)
def test_shapes_that_are_named_alike_are_drawn_each(path, name):
    assets, geoms = NAMED_ALIKE[name]
    ran(
        RecordRerun(
            Simulated(f"<mujoco><asset>{assets}</asset><worldbody>{geoms}</worldbody></mujoco>"), path, scene=True
        )
    )
    assert len(shapes_in(path)) == 2


def test_instances_of_one_mesh_are_one_entity(path):
    geoms = "<geom type='mesh' mesh='arm'/><geom type='mesh' mesh='arm' pos='2 0 0'/>"
    ran(
        RecordRerun(
            Simulated(f"<mujoco><asset>{TWO.format('arm', '')}</asset><worldbody>{geoms}</worldbody></mujoco>"),
            path,
            scene=True,
        )
    )
    assert len(shapes_in(path)) == 1


@pytest.mark.parametrize("name", ["left arm", "left/arm", "..", "ärm", "ar\\m", "%20"])
def test_meshes_of_any_name_are_drawn_without_a_word(path, name, capfd):
    assets, geoms = TWO.format(name, ""), f"<body><freejoint/><geom type='mesh' mesh='{name}'/></body>"
    ran(
        RecordRerun(
            Simulated(f"<mujoco><asset>{assets}</asset><worldbody>{geoms}</worldbody></mujoco>"), path, scene=True
        )
    )
    [entity] = shapes_in(path)
    assert entity.count("/") - entity.count("\\/") == 5
    assert "WARN" not in capfd.readouterr().err


# --- runs that go on ---


@pytest.mark.parametrize("change", [moved, larger])
def test_a_run_that_goes_on_with_another_model_has_each_ones_poses(path, change):
    first = Simulated()
    ran(RecordRerun(first, path, scene=True), episodes=1)
    second = Simulated()
    second.model = change(second.model)
    second.data = mujoco.MjData(second.model)
    second.observation_space = gym.spaces.Box(-np.inf, np.inf, (second.model.nq,), np.float64)
    ran(RecordRerun(second, path, scene=True, resume=True), episodes=1)
    episodes = load(path)
    assert len(episodes) == 2
    for episode, env in zip(episodes, [first, second], strict=True):
        assert np.array_equal(episode["observation"], [state[: env.model.nq] for state in env.states])
        assert np.array_equal(episode.poses().positions, [forward(env.model, state).xpos for state in env.states])


# --- assets that are damaged ---

LARGE = "<mujoco><asset><mesh name='rock' vertex='{}'/></asset><worldbody><body><freejoint/><geom type='mesh' mesh='rock'/></body></worldbody></mujoco>"
"""A model with a mesh that is stored beside the episodes."""


def rock():
    points = np.random.default_rng(0).normal(size=(2000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return Simulated(LARGE.format(" ".join(map(str, points.ravel()))))


def damaged(folder, data):
    """Record episodes, and put something else into the file of their shapes. Returns that file."""
    ran(RecordRerun(rock(), folder, scene=True, split="episode"))
    [assets] = asset_files(folder)
    assets.write_bytes(data)
    return assets


@pytest.mark.parametrize("data", [b"", b"no recording"])
def test_episodes_are_shown_without_shapes_that_are_damaged(tmp_path, data):
    assets = damaged(tmp_path, data)
    episodes = episodes_in(tmp_path)
    with pytest.warns(RuntimeWarning, match=f"shapes are missing: .*{assets.name}"):
        assert with_shapes(episodes) == episodes


def test_a_run_that_goes_on_writes_damaged_assets_anew(tmp_path):
    assets = damaged(tmp_path, b"")
    ran(RecordRerun(rock(), tmp_path, scene=True, split="episode", resume=True))
    assert asset_files(tmp_path) == [assets]
    assert list(assets.parent.iterdir()) == [assets]
    assert any("/meshes/rock/" in each for part in parts_in(assets) for each in part.index.paths)


# --- environments that fail ---


def test_properties_of_an_environment_that_fail_are_passed_over(path):
    class Odd(Simulated):
        @property
        def physics(self):
            raise RuntimeError("there is none")

    ran(RecordRerun(Odd(), path, scene=True), episodes=1)
    assert is_lost(load(path)[0]) == [False] * 4


@pytest.mark.filterwarnings("error")
def test_a_simulation_that_blows_up_is_recorded_as_it_is(path, monkeypatch):
    monkeypatch.chdir(path.parent)  # MuJoCo writes its warnings there

    class Blowing(Simulated):
        def step(self, action):
            *rest, info = super().step(action)
            self.data.qpos[:] = [1e300, np.nan, np.inf][len(self.states) % 3]
            return *rest, info

    env = Blowing()
    env.model.geom_rgba[:] = np.nan
    ran(RecordRerun(env, path, scene=MuJoCo(contacts=True, tendons=True, sites=True)), episodes=1)
    [episode] = load(path)
    assert [each[0] for each in episode["scene"][1:].tolist()] == pytest.approx([np.inf, 1e300, np.nan], nan_ok=True)


# --- programs that are killed ---

KILLED = """
import os, sys
import gymnasium as gym
from scene_models import Simulated
from torchrl_rerun.wrappers import RecordRerun

env = RecordRerun(gym.wrappers.TimeLimit(Simulated(), 5), sys.argv[1], scene=True, split=eval(sys.argv[2]))
env.reset(seed=0)
for _ in range(8):
    *_, truncated, _ = env.step(env.action_space.sample())
    if truncated:
        env.reset()
os.kill(os.getpid(), 9)
"""

READ = """
import sys, warnings
from torchrl_rerun import load, repair
warnings.simplefilter("ignore")
for _ in range(2):
    print([len(episode["scene"]) for episode in load(sys.argv[1])])
    repair(sys.argv[1])
"""


def program(code, *arguments):
    """Run a program; return its exit status and its output."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120, check=False)
    return run.returncode, run.stdout.split("\n")[:-1], run.stderr


@pytest.mark.parametrize("split", [2, 3, 7])
def test_all_steps_of_a_killed_process_are_in_its_parts(tmp_path, split):
    assert program(KILLED, tmp_path, split)[0] == -signal.SIGKILL
    assert program(READ, tmp_path)[:2] == (0, ["[6, 4]"] * 2)


def test_without_its_assets_a_killed_run_is_read_and_repaired(tmp_path):
    assert program(KILLED, tmp_path, "'episode'")[0] == -signal.SIGKILL
    shutil.rmtree(tmp_path / ".assets")
    assert program(READ, tmp_path)[:2] == (0, ["[6, 4]"] * 2)
