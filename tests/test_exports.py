"""Recordings as Parquet, as Minari data sets, and in LeRobot's format: read back by who reads these."""

from __future__ import annotations

import functools
import json
import time

import av
import minari
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from rerun.experimental import LeRobotReader
from torchrl.envs import GymEnv, SerialEnv
from torchrl.envs.libs.vmas import VmasEnv
from typer.testing import CliRunner

from looking import headless_viewer, trouble
from test_hostile import Scripted, record
from torchrl_rerun import RerunRecorder, load
from torchrl_rerun.as_lerobot import to_lerobot
from torchrl_rerun.as_minari import to_minari
from torchrl_rerun.as_parquet import to_parquet
from torchrl_rerun.cli import app

pixel_cartpole = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two CartPoles with pictures, whole and by their episodes: the first as video, the others as files."""
    folder = tmp_path_factory.mktemp("runs")
    env = SerialEnv(2, pixel_cartpole).append_transform(RerunRecorder(folder / "run.rrd", image_format="h264"))
    env.append_transform(RerunRecorder(folder / "ppo", split="episode"))
    env.set_seed(0)
    env.rollout(25, break_when_any_done=False)
    env.close()
    return folder


@pytest.fixture
def data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


# --- Parquet ---


def test_parquet_holds_the_steps_bit_for_bit(runs, tmp_path):
    rows = to_parquet(load(runs / "run.rrd"), tmp_path / "run.parquet")
    table = pq.read_table(tmp_path / "run.parquet")
    assert rows == len(table) == 50
    at = 0
    for episode in load(runs / "run.rrd"):
        steps = episode.tensordict()
        part = table.slice(at, len(steps))
        at += len(steps)
        assert set(part["env"].to_pylist()) == {episode.properties.env}
        assert set(part["episode"].to_pylist()) == {episode.properties.episode}
        assert part["row"].to_pylist() == list(range(len(steps)))
        for name, key in (
            ("observation", "observation"),
            ("next/observation", ("next", "observation")),
            ("action", "action"),
            ("next/reward", ("next", "reward")),
            ("next/terminated", ("next", "terminated")),
        ):
            held = np.stack(part[name].to_numpy()).reshape(steps[key].shape)
            assert held.dtype == steps[key].numpy().dtype
            assert (held == steps[key].numpy()).all()
    assert at == len(table)
    assert "pixels" not in table.schema.names


def test_parquet_has_pictures_where_they_are_asked_for(runs, tmp_path):
    done = export(runs / "ppo", "--parquet", tmp_path / "pixels.parquet", "--key", "pixels", "--env", 1)
    assert done.exit_code == 0, done.stderr
    table = pq.read_table(tmp_path / "pixels.parquet")
    [episode, *_] = load(runs / "ppo").where(lambda episode: episode.env == 1)
    pixels = episode.tensordict(["pixels"])["pixels"].numpy()
    assert (table["pixels"].combine_chunks().to_numpy_ndarray()[: len(pixels)] == pixels).all()
    assert set(table["env"].to_pylist()) == {1}


def test_parquet_has_agents_and_nested_keys(tmp_path):
    env = VmasEnv("flocking", num_envs=2, seed=0).append_transform(RerunRecorder(tmp_path / "run.rrd"))
    env.rollout(5)
    env.close()
    done = export(tmp_path / "run.rrd", "--parquet", tmp_path / "run.parquet")
    assert done.exit_code == 0, done.stderr
    table = pq.read_table(tmp_path / "run.parquet")
    steps = load(tmp_path / "run.rrd")[0].tensordict()
    held = table["agents/observation"].combine_chunks().to_numpy_ndarray()[: len(steps)]
    assert (held == steps["agents", "observation"].numpy()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.bool], ids=str)
def test_parquet_has_every_dtype(path, tmp_path, dtype):
    record(Scripted(lambda t: {"x": torch.arange(6).add(t).to(dtype).reshape(2, 3)}), path, 4)
    to_parquet(load(path), tmp_path / "x.parquet", keys=["x"])
    column = pq.read_table(tmp_path / "x.parquet")["x"].combine_chunks()
    held = np.array(column.storage.to_pylist()).reshape(-1, 2, 3)
    assert (held == load(path)[0].tensordict(["x"])["x"].float().numpy()).all()


def test_recordings_of_different_keys_are_refused_and_leave_nothing(runs, tmp_path):
    env = GymEnv("Pendulum-v1").append_transform(RerunRecorder(tmp_path / "other" / "run.rrd"))
    env.rollout(3)
    env.close()
    mixed = [*load(runs / "run.rrd"), *load(tmp_path / "other")]
    with pytest.raises(ValueError, match=r"is not recorded in the same way in .*export one run at a time"):
        to_parquet(mixed, tmp_path / "mixed.parquet")
    assert [each.name for each in tmp_path.iterdir()] == ["other"]


# --- Minari ---


def test_minari_gives_back_what_was_recorded(runs, data_sets):
    done = export(runs / "ppo", "--minari", "cartpole/expert-v0")
    assert done.exit_code == 0, done.stderr
    assert "left out, unless --key names it: pixels" in done.stderr
    data_set = minari.load_dataset("cartpole/expert-v0")
    episodes = load(runs / "ppo")
    assert data_set.total_episodes == len(episodes)
    assert data_set.total_steps == 50
    for held, episode in zip(data_set, episodes, strict=True):
        steps = episode.tensordict()
        assert (held.observations == episode["observation"].numpy()).all()
        assert held.observations.dtype == np.float32
        assert (held.actions == steps["action"].argmax(-1).numpy()).all()
        assert (held.rewards == steps["next", "reward"][:, 0].numpy()).all()
        assert (held.terminations == steps["next", "terminated"][:, 0].numpy()).all()
        assert held.terminations[-1] != held.truncations[-1]
        assert not held.truncations[:-1].any()
    env = data_set.recover_environment()
    assert (env.spec.id, env.action_space) == ("CartPole-v1", data_set.action_space)
    assert "cartpole/expert-v0" in minari.list_local_datasets()


def test_minari_keeps_pictures_as_pixels(runs, data_sets):
    to_minari(load(runs / "ppo")[:1], "pixels-v0", keys=["pixels", "observation", "action"])
    held, *_ = minari.load_dataset("pixels-v0")
    episode = load(runs / "ppo")[0]
    assert (held.observations["pixels"] == episode["pixels"].numpy()).all()
    assert (held.observations["observation"] == episode["observation"].numpy()).all()


def test_minari_replaces_nothing_unasked(runs, data_sets):
    episodes = load(runs / "ppo")
    folder = to_minari(episodes[:1], "some-v0")
    with pytest.raises(FileExistsError, match="some-v0 exists already"):
        to_minari(episodes, "some-v0")
    assert minari.load_dataset("some-v0").total_episodes == 1
    assert to_minari(episodes, "some-v0", overwrite=True) == folder
    assert minari.load_dataset("some-v0").total_episodes == len(episodes)
    (folder / "data" / "metadata.json").unlink()
    with pytest.raises(FileExistsError, match="isn't what an export wrote"):
        to_minari(episodes, "some-v0", overwrite=True)


def test_minari_has_one_reward_for_each_step(tmp_path, data_sets):
    env = VmasEnv("flocking", num_envs=1, seed=0).append_transform(RerunRecorder(tmp_path / "run.rrd"))
    env.rollout(3)
    env.close()
    done = export(tmp_path / "run.rrd", "--minari", "agents-v0")
    assert done.exit_code == 1
    assert "Minari has one reward for each step" in done.stderr
    assert not [each for each in data_sets.rglob("*") if each.is_file()]


# --- LeRobot ---


@pytest.fixture(scope="module")
def lerobot(runs):
    """The same, from video that is copied and from pictures that are encoded."""
    done = export(runs / "run.rrd", "--lerobot", runs / "copied")
    assert done.exit_code == 0, done.stderr
    to_lerobot(load(runs / "ppo"), runs / "encoded", task="balance the pole", fps=25)
    return runs


@pytest.mark.parametrize(("name", "source"), [("copied", "run.rrd"), ("encoded", "ppo")])
def test_the_sdk_reads_a_lerobot_data_set(lerobot, name, source):
    reader = LeRobotReader(lerobot / name)
    episodes = load(lerobot / source)
    assert (reader.version, reader.episodes()) == ("v3", list(range(len(episodes))))
    for number, episode in enumerate(episodes):
        chunks = sorted(reader.stream(number).to_chunks(), key=lambda chunk: chunk.num_rows)
        held = {chunk.entity_path: chunk for chunk in chunks}  # of several the longest
        steps = episode.tensordict(["observation", "reward"])
        states = held["/observation.state"].to_record_batch().column("Scalars:scalars").to_pylist()
        assert states == steps["observation"].tolist()
        assert held["/next.reward"].num_rows == len(steps)
        assert held["/observation.images.pixels"].num_rows == len(steps)


def test_a_lerobot_data_set_is_as_the_format_says(lerobot):
    info = json.loads((lerobot / "encoded/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 25, 50)
    assert info["features"]["observation.state"]["names"][0] == "cart position"
    frames = pd.read_parquet(lerobot / "encoded" / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(frames.columns) == {name for name, each in info["features"].items() if each["dtype"] != "video"}
    assert frames["index"].tolist() == list(range(50))
    assert np.allclose(frames["timestamp"], frames["frame_index"] / 25)
    assert pd.read_parquet(lerobot / "encoded/meta/tasks.parquet").iloc[0].name == "balance the pole"
    entries = pd.read_parquet(lerobot / "encoded/meta/episodes")
    assert entries["dataset_to_index"].tolist()[:-1] == entries["dataset_from_index"].tolist()[1:]
    stats = json.loads((lerobot / "encoded/meta/stats.json").read_text())
    observed = np.stack(frames["observation.state"])
    assert np.allclose(stats["observation.state"]["mean"], observed.mean(axis=0))
    assert np.allclose(stats["observation.state"]["std"], observed.std(axis=0))
    assert np.shape(stats["observation.images.pixels"]["mean"]) == (3, 1, 1)


def test_videos_have_a_picture_for_each_step(lerobot):
    for name, source in (("copied", "run.rrd"), ("encoded", "ppo")):
        for number, episode in enumerate(load(lerobot / source)):
            file = lerobot / name / f"videos/observation.images.pixels/chunk-000/file-{number:03d}.mp4"
            with av.open(file) as video:
                seen = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            pixels = episode.tensordict(["pixels"])["pixels"].numpy()
            assert len(seen) == len(pixels)
            assert np.abs(np.stack(seen).astype(int) - pixels).mean() < 3


def test_the_viewer_opens_a_lerobot_data_set(lerobot):
    with headless_viewer() as viewer:
        viewer.open([str(lerobot / "encoded")])
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (views := viewer.get_state().views):
            time.sleep(0.2)
        assert {"observation.images.pixels", "observation.state", "next.reward"} <= {view.name for view in views}
        assert not trouble(views)


def test_lerobot_replaces_no_folder_of_others(runs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = export(runs / "run.rrd", "--lerobot", tmp_path, "--overwrite")
    assert done.exit_code == 1
    assert "isn't what an export wrote" in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


# --- the command ---


def test_one_format_at_a_time(runs, tmp_path):
    for options, said in (
        ((), "no format is given: choose one of --mp4"),
        (("--mp4", "--parquet", tmp_path / "x"), "2 formats are given: choose one of --mp4"),
        (("--parquet", tmp_path / "x", "--grid"), "is about videos"),
    ):
        done = export(runs / "run.rrd", *options)
        assert done.exit_code == 2
        assert said in " ".join(done.stderr.replace("│", " ").split())
    for options, error in (
        (("--key", "pixls"), "'pixls' is not recorded, but 'observation'"),
        (("--env", 7), "there are no episodes of environment 7, but of 0, 1"),
    ):
        done = export(runs / "run.rrd", "--parquet", tmp_path / "x.parquet", *options)
        assert done.exit_code == 1
        assert error in done.stderr
    assert not list(tmp_path.iterdir())
