"""`torchrl-rerun info`: descriptions of recordings."""

from __future__ import annotations

import functools
import json
import shutil

import pytest
from torchrl.envs import GymEnv, SerialEnv
from torchrl.envs.libs.vmas import VmasEnv
from typer.testing import CliRunner

from driving import record
from environments import Scripted
from episode_folders import write_chunks
from pictures import picture
from readback import read
from rrd_files import index_of
from torchrl_rerun import RerunRecorder
from torchrl_rerun.cli import app

cartpole = functools.partial(GymEnv, "CartPole-v1")


def info(*arguments):
    return CliRunner().invoke(app, ["info", *map(str, arguments)])


def told(*arguments):
    done = info(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("info") / "run.rrd"
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    env.rollout(60, break_when_any_done=False)
    env.close()
    return path


NUMBERS = ("observation", "reward", "episode_return")


def test_info_describes_a_file(run):
    (found,) = told(run)
    recorded = read(run)
    rows = {
        key: [recorded[f"/env_{env}/{key}"] for env in range(2)]
        for key in ("observation", "action", "done", "truncated")
    }
    frames = [frame for each in rows["observation"] for frame in each.along("frame")]
    episodes = [number for each in rows["observation"] for number in each.along("episode")]
    assert found["application_id"] == found["env_name"] == "CartPole-v1"
    assert (found["batch_size"], found["envs"], found["fps"], found["split"]) == ([2], [0, 1], 50, "run")
    assert found["spans"]["frame"] == [0, max(frames)]
    assert found["spans"]["episode"] == [0, max(episodes)]
    assert found["spans"]["step"] == [0, 60]
    assert found["versions"] == recorded.schema["versions"]
    assert found["files"] == [{"path": str(run), "bytes": run.stat().st_size, "has_layout": True, "trouble": None}]
    keys = {"/".join(key["key"]): key for key in found["keys"]}
    assert keys.keys() == {"/".join(key) for key in recorded.keys()}
    for key, each in rows.items():
        assert keys[key]["rows"] == sum(len(one.values) for one in each)
    assert (keys["observation"]["kind"], keys["observation"]["dtype"]) == ("scalars", "float32")
    assert keys["observation"]["shape"] == [4]
    sizes = sum(key["bytes"] for key in keys.values())
    assert 0.2 * run.stat().st_size < sizes < run.stat().st_size


def test_info_prints_a_file(run):
    done = info(run)
    assert done.exit_code == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == f"{run}: {run.stat().st_size / 1000:.1f} kB, finished, with a layout"
    assert "environment CartPole-v1, batch size [2], environments 0 to 1 recorded" in lines
    assert "frames per second 50" in lines
    assert "steps 0 to 60" in lines
    assert any(line.startswith("observation scalars float32 4 ") for line in lines)


def test_info_reads_no_recorded_values_but_flags_and_categories(run, tmp_path):
    """The description of a file with overwritten values is equal. A row of a flag may stand for several."""
    blank = tmp_path / "run.rrd"
    shutil.copyfile(run, blank)
    rows = index_of(run).to_pylist()
    with blank.open("rb+") as file:
        for row in rows:
            if not row["chunk_is_static"] and row["chunk_entity_path"].rpartition("/")[2] in NUMBERS:
                file.seek(row["chunk_byte_offset"])
                file.write(bytes(row["chunk_byte_size"]))
    (found,), (wanted,) = told(blank), told(run)
    assert found["files"].pop()["path"] != wanted["files"].pop()["path"]
    assert found == wanted


def test_info_describes_pictures_agents_and_statistics(tmp_path):
    record(Scripted(lambda t: {"x": picture(t, (32, 48, 3))}), tmp_path / "a.rrd", image_format="h264", fps=12.5)
    env = VmasEnv("flocking", num_envs=70, n_agents=3, max_steps=20)
    env = env.append_transform(RerunRecorder(tmp_path / "b.rrd"))
    with pytest.warns(UserWarning, match="first 16 are recorded"):
        env.rollout(4)
    env.close()
    pictures, agents = told(tmp_path)
    (key,) = (key for key in pictures["keys"] if key["key"] == ["x"])
    assert (key["image_format"], key["rows"], pictures["fps"]) == ("h264", 6, 12.5)
    assert agents["envs"] == list(range(16))
    (key,) = (key for key in agents["keys"] if key["key"] == ["agents", "observation"])
    assert (key["agents"], key["rows"]) == (["agent_0", "agent_1", "agent_2"], 16 * 3 * 5)
    (key,) = (key for key in agents["keys"] if key["key"] == ["batch", "agents", "reward"])
    assert (key["kind"], key["rows"]) == ("statistics", 4)
    said = info(tmp_path).stdout
    assert "batch size [70], environments 0 to 15 recorded" in said
    assert "3x18 (3 agents)" in said


def test_a_folder_of_episodes_is_summed_up(tmp_path):
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(tmp_path, split="episode"))
    rollout = env.rollout(60, break_when_any_done=False)
    env.close()
    files = sorted(tmp_path.glob("*.rrd"))
    (found,) = told(tmp_path)
    assert (found["recordings"], found["split"], found["envs"]) == (len(files), "episode", [0, 1])
    assert [file["path"] for file in found["files"]] == [str(file) for file in files]
    (reward,) = (key for key in found["keys"] if key["key"] == ["reward"])
    assert reward["rows"] == rollout.numel()
    assert f"{len(files)}, each of an episode" in info(tmp_path).stdout


def test_info_names_unreadable_files(run, tmp_path):
    whole = run.read_bytes()
    size = len(whole)
    (tmp_path / "torn.rrd").write_bytes(whole[: size // 2])
    (tmp_path / "other.rrd").write_text("something else")
    done = info(tmp_path / "torn.rrd")
    assert done.exit_code == 0
    assert f"`torchrl-rerun repair {tmp_path / 'torn.rrd'}`" in done.stderr
    done = info(tmp_path / "other.rrd", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (1, [])
    assert "other.rrd is not a recording" in done.stderr
    write_chunks(tmp_path / "foreign.rrd", [], "foreign")
    assert info(tmp_path / "foreign.rrd").exit_code == 1
    assert info(tmp_path / "nothing.rrd").exit_code == 1


def test_info_describes_a_file_that_is_being_recorded(path):
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(3)
    env.transform.dump()
    done = info(path)
    env.close()
    assert done.exit_code == 0
    assert "run.rrd: " in done.stdout
    assert "unfinished, without a layout" in done.stdout
    assert "still being recorded" in done.stderr
    assert "observation" in done.stdout
