"""Replays of data that other libraries stored: recordings equal the stored data bit for bit."""

from __future__ import annotations

import functools
import json
import os
import subprocess

import gymnasium
import h5py
import minari
import nbformat
import numpy as np
import pytest
import rerun as rr
import torch
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from nbclient import NotebookClient
from torchrl.collectors import Collector
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, SerialEnv, TransformedEnv
from torchrl.record import TensorDictRecorder
from typer.testing import CliRunner

from looking import mujoco_draws
from programs import python
from readback import read, same
from rebuilt import episodes_in, rollout_in, steps_in
from torchrl_rerun import RerunRecorder, browse, load, replay
from torchrl_rerun.cli import app
from torchrl_rerun.stored.states import find_state_setter

N = 40


def rollout(env=None, steps=N):
    env = env or GymEnv("CartPole-v1")
    env.set_seed(0)
    return env.rollout(steps, break_when_any_done=False)


def assert_same(recorded, stored):
    for key in stored.keys(include_nested=True, leaves_only=True):
        assert same(recorded[key], stored[key]), key


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("way", ["save", "memmap", "tdz"])
def test_a_stored_rollout_is_replayed(way, envs, path, tmp_path):
    stored = rollout(SerialEnv(envs, lambda: GymEnv("CartPole-v1")) if envs > 1 else None)
    if way == "save":
        torch.save(stored, tmp_path / "stored")
    elif way == "memmap":
        stored.memmap(tmp_path / "stored")
    else:
        stored.save(tmp_path / "stored.tdz")
        (tmp_path / "stored.tdz").rename(tmp_path / "stored")
    replayed = replay(tmp_path / "stored", path)
    assert (replayed.steps, replayed.episodes) == (stored.numel(), len(episodes_in(path)))
    assert_same(rollout_in(path), stored)


def test_a_rollout_may_be_replayed_into_a_folder_of_episodes(tmp_path):
    stored = rollout()
    torch.save(stored, tmp_path / "stored")
    command = ["replay", str(tmp_path / "stored"), "-o", str(tmp_path / "run"), "--split", "episode"]
    asked = CliRunner().invoke(app, command)
    assert asked.exit_code == 0, asked.output
    episodes = episodes_in(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("env_0_episode_*.rrd"))) == len(episodes) > 1
    assert_same(rollout_in(tmp_path / "run"), stored)


def test_a_file_of_tensordict_recorder_is_replayed(path, tmp_path):
    env = TransformedEnv(GymEnv("CartPole-v1"), TensorDictRecorder(str(tmp_path / "it"), skip=1))
    env.transform.tag = str(tmp_path / "it")
    stored = env.rollout(8)
    env.transform.dump()
    replay(tmp_path / "it_tensordict.t", path)
    assert_same(rollout_in(path)["next"], stored["next"])


class Malice:
    def __reduce__(self):
        return os.system, ("touch was_executed",)


def test_a_pickle_that_executes_something_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"rollout": Malice()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt is a pickle that asks for \S*system, and is refused"):
        replay(tmp_path / "evil.pt", path)
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "was_executed").exists(), "it is malicious"


def test_pickles_in_other_files_are_refused(path, tmp_path):
    np.savez(tmp_path / "evil.npz", observations=np.array([Malice()], object), actions=np.zeros(1))
    with pytest.raises(ValueError, match="'observations' can't be read: Python objects, which are never loaded"):
        replay(tmp_path / "evil.npz", path)


@pytest.mark.parametrize("size", [1000, 50])
def test_a_replay_buffer_is_replayed_by_trajectory_oldest_first(size, path, tmp_path):
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(size), batch_size=4)
    seen = []
    for batch in Collector(SerialEnv(2, lambda: GymEnv("CartPole-v1")), None, frames_per_batch=40, total_frames=80):
        buffer.extend(batch.reshape(-1))
        seen.append(batch.reshape(-1).clone())
    stored = torch.cat(seen)[-size:]
    buffer.dumps(tmp_path / "buffer")
    replay(tmp_path / "buffer", path)
    ids = stored["collector", "traj_ids"]
    order = list(dict.fromkeys(ids.tolist()))
    recorded = list(steps_in(path).values())
    assert [each["collector", "traj_ids"][0].item() for each in recorded] == order
    for each, number in zip(recorded, order, strict=True):
        assert_same(each, stored[ids == number])


def test_a_replay_buffer_of_a_batch_is_replayed(path, tmp_path):
    stored = rollout(SerialEnv(2, lambda: GymEnv("CartPole-v1")))
    buffer = TensorDictReplayBuffer(storage=LazyMemmapStorage(200, ndim=2), batch_size=4)
    buffer.extend(stored)
    buffer.dumps(tmp_path / "buffer")
    replay(tmp_path / "buffer", path)
    assert_same(rollout_in(path), stored)


@pytest.fixture(scope="module")
def minari_set(tmp_path_factory):
    """Write three episodes of CartPole, like Minari's collector, which needs half a gigabyte of jax."""
    folder = tmp_path_factory.mktemp("minari") / "cartpole" / "test-v0" / "data"
    folder.mkdir(parents=True)
    env = gymnasium.make("CartPole-v1")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    storage = MinariStorage.new(folder, **spaces, env_spec=env.spec, data_format="hdf5")
    for i in range(3):
        seen, rows = [env.reset(seed=i)[0]], []
        while not rows or not (rows[-1][2] or rows[-1][3]):
            action = env.action_space.sample()
            observed, *rest, _ = env.step(action)
            seen.append(observed)
            rows.append((action, *rest))
        actions, rewards, terminated, truncated = map(list, zip(*rows, strict=True))
        parts = {"rewards": rewards, "terminations": terminated, "truncations": truncated, "infos": {}}
        buffer = EpisodeBuffer(id=i, seed=i, observations=np.array(seen), actions=np.array(actions), **parts)
        storage.update_episodes([buffer])
    storage.update_metadata({"dataset_id": "cartpole/test-v0", "minari_version": minari.__version__})
    return folder.parent


@pytest.mark.parametrize("way", ["folder", "id", "HDF5"])
def test_a_minari_set_is_replayed(way, minari_set, path, monkeypatch):
    """The HDF5 file of the set has a group for each episode."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(minari_set.parent.parent))
    hdf5 = minari_set / "data" / "main_data.hdf5"
    replay({"folder": minari_set, "id": "cartpole/test-v0", "HDF5": hdf5}[way], path)
    stored = minari.MinariDataset(minari_set / "data")
    assert all(each.terminated for each in episodes_in(path))
    for each, episode in zip(steps_in(path).values(), stored.iterate_episodes(), strict=True):
        assert same(each["observation"], torch.from_numpy(episode.observations[:-1]))
        assert same(each["next", "observation"], torch.from_numpy(episode.observations[1:]))
        assert same(each["action"], torch.from_numpy(episode.actions))
        assert same(each["next", "reward"][:, 0], torch.from_numpy(episode.rewards))


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    ends = np.isin(np.arange(3000), [1200, 2999])
    return {
        "img": random.standard_normal((3000, 5)).astype("f4"),
        "actions": random.standard_normal((3000, 2)),
        "rewards": random.standard_normal(3000).astype("f4"),
        "terminals": ends,
        "timeouts": np.zeros(3000, bool),
        "infos/level": np.arange(3000),
        "infos/note": np.zeros(7),
    }


@pytest.mark.parametrize("kind", ["npz", "compressed", "hdf5"])
def test_arrays_over_time_are_replayed(kind, arrays, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = path.relative_to(tmp_path)
    file = tmp_path / "arrays"
    if kind == "hdf5":
        with h5py.File(file, "w") as written:
            for name, values in arrays.items():
                written[name] = values
    else:
        with file.open("wb") as opened:
            (np.savez if kind == "npz" else np.savez_compressed)(opened, **arrays)
    asked = CliRunner().invoke(app, ["replay", str(file), "-o", str(path), "-k", "observation=img"])
    assert asked.exit_code == 0, asked.output
    assert f"{path}: 2 episodes, 3,000 steps of 1 environment, {file}: " in asked.output
    [taken] = [line.removeprefix("arrays: ") for line in asked.stderr.splitlines() if line.startswith("arrays: ")]
    renamed = "img as observation, actions as action, rewards as reward, terminals as terminated, timeouts as truncated"
    assert set(taken.split(", ")) == {*renamed.split(", "), "infos/level as infos/level"}
    assert "left out infos/note" in asked.stderr
    assert "environment batch size [], environment 0 recorded" in " ".join(
        CliRunner().invoke(app, ["info", str(path)]).stdout.split()
    )
    assert [each.length for each in episodes_in(path)] == [1201, 1799]
    both = rollout_in(path)
    assert same(both["observation"], torch.from_numpy(arrays["img"]))
    assert same(both["next", "observation"][:1200], torch.from_numpy(arrays["img"][1:1201]))
    assert both["next", "observation"][[1200, 2999]].isnan().all(), "it isn't stored"
    assert same(both["action"], torch.from_numpy(arrays["actions"]))
    assert same(both["next", "reward"][:, 0], torch.from_numpy(arrays["rewards"]))
    assert same(both["infos", "level"], torch.from_numpy(arrays["infos/level"]))
    assert same(both["next", "terminated"][:, 0], torch.from_numpy(arrays["terminals"]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PAR1....", "looks like Parquet"),
        (b"", "an empty file"),
        (b"hello", "looks like text"),
        (b"PK\3\4", "cut off"),
    ],
)
def test_unreadable_sources_are_refused_with_their_format(content, said, path, tmp_path):
    (tmp_path / "what").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        replay(tmp_path / "what", path)
    assert not path.exists()


def test_arrays_of_unknown_names_are_refused_with_advice(path, tmp_path):
    np.savez(tmp_path / "a.npz", foo=np.zeros(3))
    with pytest.raises(ValueError, match=r"called foo, none of which .* --key observation=NAME"):
        replay(tmp_path / "a.npz", path)


def test_the_recording_of_a_killed_process_is_replayed(path, tmp_path):
    """One environment has no picture, and another has lost some."""
    env = SerialEnv(2, lambda: GymEnv("CartPole-v1", from_pixels=True, pixels_only=False))
    env = env.append_transform(RerunRecorder(path, image_format="raw"))
    env.rollout(12, break_when_any_done=False)
    env.transform.dump()
    torn = tmp_path / "torn.rrd"
    torn.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    env.close()
    asked = CliRunner().invoke(app, ["replay", str(torn), "-o", str(tmp_path / "out.rrd")])
    assert asked.exit_code == 0, asked.output
    assert "torn.rrd isn't finished: it holds" in asked.stderr
    with pytest.warns(UserWarning, match="isn't finished"):
        left = load(torn)
    again = load(tmp_path / "out.rrd")
    others = [key for key in left.keys() if key not in {("pixels",), ("episode_return",)}]
    pictures = 0
    for one, other in zip(again, left, strict=True):
        assert_same(one.tensordict(others), other.tensordict(others))
        assert len(one["pixels"]) == len(other["pixels"])
        assert all(map(same, one["pixels"], other["pixels"]))
        pictures += len(one["pixels"])
    assert sum(each.properties.length for each in again) == 24
    assert 0 < pictures < 24


def test_recordings_of_different_environments_are_refused(tmp_path):
    def recorded(name, make, **options):
        env = make().append_transform(RerunRecorder(tmp_path / name / "run.rrd", **options))
        env.rollout(3)
        env.close()

    recorded("both/a", lambda: GymEnv("CartPole-v1"))
    recorded("both/b", lambda: GymEnv("Pendulum-v1"))
    asked = CliRunner().invoke(app, ["replay", str(tmp_path / "both"), "-o", str(tmp_path / "out.rrd")])
    assert asked.exit_code == 1
    assert "b/run.rrd is of Pendulum-v1, and " in asked.stderr
    assert "a/run.rrd is of CartPole-v1: replay one run at a time" in asked.stderr
    recorded("keys/a", lambda: GymEnv("CartPole-v1"))
    recorded("keys/b", lambda: GymEnv("CartPole-v1"), in_keys=["observation", "action"])
    with pytest.raises(
        ValueError, match=r"'.*' is not recorded in the same way in .*b/run\.rrd: take one run at a time"
    ):
        replay(tmp_path / "keys", tmp_path / "out.rrd")
    assert not (tmp_path / "out.rrd").exists()


def test_a_recording_is_rendered_afterwards(path, tmp_path):
    env = SerialEnv(2, lambda: GymEnv("CartPole-v1")).append_transform(RerunRecorder(path))
    env.set_seed(0)
    env.rollout(30, break_when_any_done=False)
    env.close()
    replayed = replay(path, tmp_path / "seen.rrd", render="CartPole-v1", image_format="png")
    assert not replayed.divergences
    before, after = rollout_in(path), rollout_in(tmp_path / "seen.rrd")
    assert_same(after, before)
    simulator = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    simulator.reset()
    simulator.unwrapped.state = before[1, 20]["observation"].double().numpy()
    assert np.array_equal(after[1, 20]["pixels"].numpy(), simulator.render())


@pytest.mark.parametrize("name", ["Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "CliffWalking-v1"])
def test_a_rollout_is_rendered_from_its_seed(name, path, tmp_path):
    env = GymEnv(name)
    env.set_seed(3)
    torch.save(env.rollout(20, break_when_any_done=False), tmp_path / "stored")
    assert not replay(tmp_path / "stored", path, render=name, seed=3).divergences
    assert rollout_in(path)["pixels"][0].any()


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_batch_is_rendered_from_its_seed(vectorized, path, tmp_path):
    make = functools.partial(GymEnv, "Pendulum-v1")
    env = make(num_envs=3) if vectorized else SerialEnv(3, make)
    env.set_seed(3)
    torch.save(env.rollout(4), tmp_path / "stored")
    command = ["replay", str(tmp_path / "stored"), "-o", str(path), "--render", "Pendulum-v1", "--seed", "3"]
    asked = CliRunner().invoke(app, command)
    assert (asked.exit_code, asked.stderr) == (0, "")
    assert all(of_env["pixels"].any() for of_env in rollout_in(path))
    command[-1:] = ["4", "--overwrite"]
    assert "leave the seed out" in CliRunner().invoke(app, command).stderr
    assert not CliRunner().invoke(app, [*command[:-3], "--overwrite"]).stderr


def test_rendering_stops_at_a_divergence_with_a_message(path, tmp_path):
    stored = rollout()
    stored["next", "reward"][5] = 3
    torch.save(stored, tmp_path / "stored")
    asked = CliRunner().invoke(app, ["replay", str(tmp_path / "stored"), "-o", str(path), "--render", "CartPole-v1"])
    assert "environment 0, episode 0, step 6: 'reward' differs by 2" in asked.output
    recorded = rollout_in(path)
    assert_same(recorded, stored)
    assert [pixels.any().item() for pixels in recorded["pixels"][:8]] == [True] * 6 + [False] * 2


def test_an_environment_without_a_state_setter_needs_a_seed(path, tmp_path):
    torch.save(rollout(GymEnv("FrozenLake-v1"), 5), tmp_path / "stored")
    with pytest.raises(ValueError, match=r"pass the seed \(--seed\)"):
        replay(tmp_path / "stored", path, render="FrozenLake-v1")


@pytest.mark.parametrize("name", ["Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0"])
def test_classic_control_is_rendered_from_states(name, path, tmp_path):
    stored = rollout(GymEnv(name), 5)
    torch.save(stored, tmp_path / "stored")
    assert not replay(tmp_path / "stored", path, render=name).divergences
    assert all(picture.any() for picture in read(path)["/env_0/pixels"].values)
    stored["next", "observation"][2] += 0.01
    torch.save(stored, tmp_path / "stored")
    [divergence] = replay(tmp_path / "stored", path, render=name, overwrite=True).divergences
    assert (divergence.step, divergence.key) == (3, ("observation",))


ROBOTS = [
    f"{name}-{version}"
    for name in ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "Ant", "InvertedPendulum")
    for version in ("v4", "v5")
] + ["Humanoid-v5", "HumanoidStandup-v5"]


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("name", ROBOTS)
def test_robots_are_set_to_observed_states(name):
    """Positions on the ground are not observed. Observations of Hopper and Walker2d clip speeds."""
    real, again = (gymnasium.make(name, disable_env_checker=True) for _ in range(2))
    set_state = find_state_setter(again)
    real.action_space.seed(0)
    states, ended = [], True
    for _ in range(80):
        if ended:
            states.append(real.reset(seed=1)[0])
            again.reset(seed=2)
            set_state(states[-1])
        action = real.action_space.sample()
        (state, reward, ended, *_), (seen, gained, *_) = real.step(action), again.step(action)
        assert seen == pytest.approx(state, rel=1e-9, abs=1e-9)
        assert gained == pytest.approx(reward, rel=1e-9, abs=1e-9)
        states.append(state)
        set_state(state)
    assert name not in ("Walker2d-v4", "Walker2d-v5") or np.abs(states).max() == 10


RENDERED = """
import os
os.environ["MUJOCO_GL"] = "egl"
import json
import sys
import gymnasium
import torch
from torchrl.envs import GymEnv
from torchrl_rerun import replay

name, wrong = sys.argv[1:]
env = GymEnv(name)
env.set_seed(0)
torch.manual_seed(0)
stored = env.rollout(3)
assert len(stored) == 3, "it ends before"
torch.save(stored, "stored")
seed = 0 if name.startswith("Reacher") else None
told = []
for options in {}, json.loads(wrong):
    make = lambda: gymnasium.make(name, render_mode="rgb_array", **options)
    replayed = replay("stored", f"run_{len(told)}.rrd", render=make, seed=seed)
    told.append([str(each) for each in replayed.divergences])
print(json.dumps(told))
"""


@pytest.mark.parametrize(
    ("name", "wrong", "parts"),
    [
        ("HalfCheetah-v5", {"ctrl_cost_weight": 2.0}, "step 1: 'reward' differs by "),
        ("InvertedPendulum-v5", {"frame_skip": 1}, "step 1: 'observation' differs by "),
        ("Reacher-v5", {"reward_control_weight": 5.0}, "step 1: 'reward' differs by "),
    ],
)
def test_robots_are_rendered_until_they_diverge(name, wrong, parts, tmp_path):
    """From states, and Reacher from its seed. The program sets MUJOCO_GL before MuJoCo is imported."""
    mujoco_draws()
    program = [*python(), "-c", RENDERED, name, json.dumps(wrong)]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    right, [said] = json.loads(done.stdout.splitlines()[-1])
    assert right == []
    assert said.startswith(f"environment 0, episode 0, {parts}")
    rendered = [[bool(each.any()) for each in read(tmp_path / f"run_{i}.rrd")["/env_0/pixels"].values] for i in (0, 1)]
    assert rendered == [[True] * 4, [True] + [False] * 3]


LARGE = {
    "a memory-mapped rollout": """
pixels = {"o": torch.empty(n, 84, 84, 3, dtype=torch.uint8), "next": {"o": torch.empty(n, 84, 84, 3, dtype=torch.uint8)}}
TensorDict(pixels, [n]).memmap_like("stored")  # nothing is written but its size
""",
    "what TensorDictRecorder saves": """
moments = {"o": torch.zeros(2 * n, 84, 84, 3, dtype=torch.uint8), "reward": torch.zeros(2 * n, 1)}
torch.save(TensorDict(moments, [2 * n]), "stored")
""",
}


@pytest.mark.parametrize("how", LARGE)
def test_a_replay_takes_bounded_memory(how, tmp_path):
    """The source has 250 MB; a process of its own measures its memory."""

    def told(program):
        program = f"n = {steps}\n{program}"
        done = subprocess.run([*python(), "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    steps = 6000
    told(f"import torch\nfrom tensordict import TensorDict\n{LARGE[how]}")
    grown = told(
        """
import resource
from torchrl_rerun import replay
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
replay("stored", "run.rrd", image_format="raw", buffer_bytes=8 << 20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    )
    stored = 2 * steps * 84 * 84 * 3 >> 20
    assert int(grown.split()[-1]) < 0.5 * stored


def test_browse_outside_a_notebook_prints_a_command(path, tmp_path, capsys):
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
    env.rollout(20)
    env.close()
    browse(path)
    assert capsys.readouterr().out == f"to watch them: rerun {path}\n"
    torn = tmp_path / "torn.rrd"
    torn.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(
        ValueError, match=r"torn\.rrd isn't finished.*`torchrl-rerun repair \S*torn\.rrd` makes it whole"
    ):
        browse(torn)
    with rr.server.Server(host="127.0.0.1", datasets={"runs": [str(path)]}) as server:
        dataset = server.client().get_dataset("runs")
        with pytest.raises(
            ValueError, match=r"episode 0 of environment 0 in runs/.* is in a catalog, and not in a file"
        ):
            browse(load(dataset))


def picked_in_a_notebook(run, then=""):
    """Select an episode in the list of a notebook. Return its file, the events for the viewer, and the printed text."""
    cells = [
        f"from torchrl_rerun import browse\nbrowser = browse({run.name!r})\nbrowser",
        (
            "import json\nsent = browser._viewer.widget._viewer._event_queue\nbefore = len(sent)\n"
            "browser.select.value = 1\n"
            "print(json.dumps([browser.chosen.files[0].name, [event for event, _ in sent[before:]]]))"
        ),
        then,
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(run.parent)}}).execute()
    shown, (told,), said = (cell.outputs for cell in notebook.cells)
    assert sum("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in shown) >= 2
    return *json.loads(told["text"]), "".join(each["text"] for each in said)


def test_browse_opens_a_selected_episode(tmp_path):
    recorder = RerunRecorder(tmp_path / "run", split="episode")
    env = GymEnv("CartPole-v1").append_transform(recorder)
    env.rollout(60, break_when_any_done=False)
    env.close()
    torn = tmp_path / "torn.rrd"
    whole = next((tmp_path / "run").iterdir()).read_bytes()
    torn.write_bytes(whole[:3000])
    name, events, said = picked_in_a_notebook(
        tmp_path / "run", "try:\n    browse('torn.rrd')\nexcept ValueError as error:\n    print(error)"
    )
    assert name == "env_0_episode_000001.rrd"
    assert (events[0]["type"], events[-1]["type"]) == ("rrd", "recording_id")
    assert said.startswith("torn.rrd isn't finished")
    assert said.endswith("`torchrl-rerun repair torn.rrd` makes it whole\n")


def test_browse_shows_the_first_step_of_an_episode_in_a_whole_run(path):
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
    env.rollout(60, break_when_any_done=False)
    env.close()
    _, events, _ = picked_in_a_notebook(path)
    first = min(times["step"] for times in read(path)["/env_0/observation"].times if times["episode"] == 1)
    assert first > 0
    assert [event["type"] for event in events] == ["recording_id", "time_ctrl"]
    assert (events[1]["timeline"], int(events[1]["sequence"])) == ("step", first)
