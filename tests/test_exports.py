"""Exports to Parquet, Minari and LeRobot, read back by the libraries of these formats."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import textwrap
import warnings
from pathlib import Path

import av
import minari
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rerun as rr
import torch
from rerun.experimental import LeRobotReader
from tensordict import NonTensorData
from torchrl.data import NonTensor
from torchrl.envs import GymEnv, SerialEnv, TransformedEnv
from torchrl.envs.libs.vmas import VmasEnv
from torchrl.record import PixelRenderTransform

from commands import export
from driving import record
from environments import Scripted, Zoo
from looking import trouble
from programs import python
from rrd_files import index_of
from servers import wait_until
from torchrl_rerun import RerunRecorder, load
from torchrl_rerun.export.lerobot import to_lerobot
from torchrl_rerun.export.minari import to_minari
from torchrl_rerun.export.parquet import to_parquet

pixel_cartpole = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False)


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


def test_parquet_has_pictures_if_they_are_asked_for(runs, tmp_path):
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


def test_recordings_of_different_keys_are_refused_and_leave_no_file(runs, tmp_path):
    env = GymEnv("Pendulum-v1").append_transform(RerunRecorder(tmp_path / "other" / "run.rrd"))
    env.rollout(3)
    env.close()
    mixed = [*load(runs / "run.rrd"), *load(tmp_path / "other")]
    with pytest.raises(ValueError, match=r"is not recorded in the same way in .*run\.rrd: take one run at a time"):
        to_parquet(mixed, tmp_path / "mixed.parquet")
    assert [each.name for each in tmp_path.iterdir()] == ["other"]


# --- Minari ---


def test_minari_gives_back_the_recorded_episodes(runs, data_sets):
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


@pytest.mark.parametrize("name", ["badname", "cartpole/x", "../x-v0"])
def test_an_invalid_minari_id_is_refused(runs, data_sets, name):
    done = export(runs / "ppo", "--minari", name)
    assert done.exit_code == 1
    assert name in done.stderr
    assert "Traceback" not in done.output


def test_minari_replaces_a_data_set_with_overwrite_alone(runs, data_sets):
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
    """Export to LeRobot: from video that is copied, and from pictures that are encoded."""
    done = export(runs / "run.rrd", "--lerobot", runs / "copied")
    assert done.exit_code == 0, done.stderr
    to_lerobot(load(runs / "ppo"), runs / "encoded", task="balance the pole", fps=25)
    return runs


@pytest.mark.parametrize(("name", "source"), [("copied", "run.rrd"), ("encoded", "ppo")])
def test_rerun_reads_a_lerobot_data_set(lerobot, name, source):
    reader = LeRobotReader(lerobot / name)
    episodes = load(lerobot / source)
    assert (reader.version, reader.episodes()) == ("v3", list(range(len(episodes))))
    for number, episode in enumerate(episodes):
        chunks = sorted(reader.stream(number).to_chunks(), key=lambda chunk: chunk.num_rows)
        held = {chunk.entity_path: chunk for chunk in chunks}  # the longest of several
        steps = episode.tensordict(["observation", "reward"])
        states = held["/observation.state"].to_record_batch().column("Scalars:scalars").to_pylist()
        assert states == steps["observation"].tolist()
        assert held["/next.reward"].num_rows == len(steps)
        assert held["/observation.images.pixels"].num_rows == len(steps)


def test_a_lerobot_data_set_follows_the_format(lerobot):
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


def test_the_viewer_opens_a_lerobot_data_set(lerobot, viewer):
    viewer.open([str(lerobot / "encoded")])
    wait_until(lambda: viewer.get_state().views)
    views = viewer.get_state().views
    assert {"observation.images.pixels", "observation.state", "next.reward"} <= {view.name for view in views}
    assert not trouble(views)


def test_lerobot_replaces_no_other_folder(runs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = export(runs / "run.rrd", "--lerobot", tmp_path, "--overwrite")
    assert done.exit_code == 1
    assert "isn't what an export wrote" in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def in_several_files(tmp_path_factory):
    """Record two CartPoles in parts, and in dumps that each end within an episode."""
    folder = tmp_path_factory.mktemp("several")
    env = SerialEnv(2, pixel_cartpole).append_transform(RerunRecorder(folder / "run.rrd", image_format="h264"))
    env.append_transform(RerunRecorder(folder / "dumps", split="dump"))
    env.set_seed(0)
    following = env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # recording goes on in another part
        for _ in range(3):
            steps = env.rollout(9, auto_reset=False, tensordict=following, break_when_any_done=False)
            following = env.step_mdp(steps[:, -1])
            env.transform[0].close()
            env.transform[1].dump()
    env.close()
    assert len(list(folder.rglob("*.rrd"))) == 6
    return folder


@pytest.mark.parametrize("name", ["run.rrd", "dumps"])
def test_a_recording_in_several_files_has_a_video_of_each_episode(in_several_files, tmp_path, name):
    episodes = load(in_several_files / name)
    assert {len(episode.files) for episode in episodes} == {3}
    to_lerobot(episodes, tmp_path / "set")
    assert len(list((tmp_path / "set").rglob("*.mp4"))) == len(episodes)
    frames = pd.read_parquet(tmp_path / "set/data/chunk-000/file-000.parquet")
    reader = LeRobotReader(tmp_path / "set")
    for number, episode in enumerate(episodes):
        with av.open(tmp_path / f"set/videos/observation.images.pixels/chunk-000/file-{number:03d}.mp4") as video:
            seen = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        pixels = episode.tensordict(["pixels"])["pixels"].numpy()
        assert len(seen) == len(pixels) == (frames["episode_index"] == number).sum()
        assert np.abs(np.stack(seen).astype(int) - pixels).mean() < 3
        shown = 0
        for chunk in reader.stream(number).to_chunks():  # a video begins at each keyframe
            if "VideoStream:sample" in chunk.to_record_batch().schema.names:
                shown += chunk.num_rows
        assert shown == len(seen)


def test_videos_of_different_sizes_in_a_data_set_are_refused(tmp_path):
    for run, size in (("a", 32), ("b", 48)):
        shape = (size, size, 3)
        seen = functools.partial(np.full, shape, 100, np.uint8)
        env = Scripted(lambda t, seen=seen: {"x": NonTensorData(seen())}, specs={"x": NonTensor(())})
        record(env, tmp_path / run / "run.rrd", 3, image_format="png", kinds={"x": "image"})
    with pytest.raises(ValueError, match=r"the video observation\.images\.x of .*b/run\.rrd is not as the others are"):
        to_lerobot(load(tmp_path), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_single_picture_of_all_environments_is_refused(path, tmp_path):
    class Rendered(Zoo):
        def render(self):
            return np.full((12, 16, 3), self.t, np.uint8)

    env = TransformedEnv(Rendered((2,)), PixelRenderTransform())
    record(env, path, 4, in_keys=["pixels", "count"], image_format="raw")
    with pytest.raises(
        ValueError, match=r"'pixels' stands for all .*isn't recorded of episode \d of environment 1 in .*run"
    ):
        to_lerobot(load(path), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    of_first = load(path).where(lambda episode: episode.env == 0)
    assert to_lerobot(of_first, tmp_path / "set").cameras == ("observation.images.pixels",)


# --- errors within an export ---

OPTIONS = {
    "parquet": lambda folder: ["--parquet", folder / "run.parquet", "--key", "observation", "--key", "pixels"],
    "minari": lambda folder: [
        "--minari",
        "cartpole/kept-v0",
        "--key",
        "observation",
        "--key",
        "action",
        "--key",
        "pixels",
    ],
    "lerobot": lambda folder: ["--lerobot", folder / "set"],
    "mp4": lambda folder: ["--mp4", "--out", folder / "run.mp4"],
}


@pytest.fixture(scope="module")
def whole_and_damaged(tmp_path_factory):
    """Make a recording, and a copy whose last pictures are damaged."""
    folder = tmp_path_factory.mktemp("damaged")
    whole, damaged = folder / "whole.rrd", folder / "damaged.rrd"
    env = pixel_cartpole().append_transform(RerunRecorder(whole, image_format="jpeg", buffer_bytes=20_000))
    env.set_seed(0)
    env.rollout(15, break_when_any_done=False)
    env.close()
    data, index = bytearray(whole.read_bytes()), index_of(whole)
    places = zip(
        *(index[f"chunk_{name}"].to_pylist() for name in ("entity_path", "byte_offset", "byte_size")), strict=True
    )
    *_, (_, offset, size) = (place for place in places if place[0] == "/env_0/pixels")
    data[offset + size // 2 : offset + size // 2 + 64] = bytes(64 * [255])
    damaged.write_bytes(data)
    return whole, damaged


def files_in(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("form", OPTIONS)
def test_a_damaged_recording_leaves_earlier_exports_unchanged(whole_and_damaged, tmp_path, data_sets, form):
    whole, damaged = whole_and_damaged
    done = export(damaged, *OPTIONS[form](tmp_path))
    assert done.exit_code == 1
    assert not files_in(tmp_path)
    done = export(whole, *OPTIONS[form](tmp_path))
    assert done.exit_code == 0, done.stderr
    before = files_in(tmp_path)
    assert before
    done = export(damaged, *OPTIONS[form](tmp_path), "--overwrite")
    assert done.exit_code == 1
    assert "not exported" in done.stderr or "nothing exported" in done.stderr
    assert "Traceback" not in done.output
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("form", ["parquet", "minari", "lerobot"])
def test_an_interrupted_export_leaves_earlier_exports_unchanged(runs, tmp_path, data_sets, form):
    def exported(**options):
        if form == "parquet":
            to_parquet(load(runs / "ppo"), tmp_path / "run.parquet", **options)
        elif form == "minari":
            to_minari(load(runs / "ppo"), "kept-v0", **options)
        else:
            to_lerobot(load(runs / "ppo"), tmp_path / "set", **options)

    def interrupted(items, _):
        yield next(iter(items))
        raise KeyboardInterrupt

    exported()
    before = files_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        exported(overwrite=True, progress=interrupted)
    assert files_in(tmp_path) == before
    exported(overwrite=True)
    assert files_in(tmp_path).keys() == before.keys()


@pytest.mark.parametrize("form", OPTIONS)
def test_a_full_disk_leaves_no_partial_export(whole_and_damaged, small_disk, monkeypatch, form):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(small_disk / "minari"))
    (small_disk / "filler").write_bytes(bytes(508 << 10))
    done = export(whole_and_damaged[0], *OPTIONS[form](small_disk))
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert list(files_in(small_disk)) == [small_disk / "filler"]


def test_an_export_does_not_replace_its_own_recording(runs, tmp_path):
    recording = shutil.copy(runs / "run.rrd", tmp_path)
    done = export(recording, "--parquet", recording, "--overwrite")
    assert done.exit_code == 1
    assert "run.rrd holds the episodes that are exported: choose another file" in done.stderr
    assert Path(recording).read_bytes() == (runs / "run.rrd").read_bytes()


# --- recordings without a complete file ---


KILLED = """
    import functools, os, sys
    from torchrl.envs import GymEnv, SerialEnv
    from torchrl_rerun import RerunRecorder
    env = SerialEnv(2, functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False))
    env = env.append_transform(RerunRecorder(sys.argv[1], image_format="jpeg", buffer_bytes=20_000))
    env.set_seed(0)
    env.rollout(20, break_when_any_done=False)
    env.transform.dump()
    os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    """Make the file of a killed process, and a copy that ends within a message and has lost pictures."""
    path = tmp_path_factory.mktemp("torn") / "run.rrd"
    command = [*python(), "-c", textwrap.dedent(KILLED), path]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    return path


def with_pictures(episode):
    """Return the number of steps with a picture before and after them."""
    steps = episode.tensordict(["pixels"])
    if "recorded" not in steps.keys():
        return len(steps)
    return int((steps["recorded", "pixels"] & steps["next", "recorded", "pixels"]).sum())


def test_the_recording_of_a_killed_process_is_exported(torn, tmp_path, data_sets):
    with pytest.warns(UserWarning, match="isn't finished"):
        episodes = load(torn)
    steps = sum(episode.properties.length for episode in episodes)
    pictures = [with_pictures(episode) for episode in episodes]
    pictured = sum(pictures)
    assert 0 < pictured < steps
    for *options, said in (
        ("--parquet", tmp_path / "x.parquet", f"{steps} steps of {len(episodes)} episodes"),
        ("--minari", "torn-v0", f"{len(episodes)} episodes in"),
        ("--lerobot", tmp_path / "set", f"{pictured} steps of "),
    ):
        done = export(torn, *options)
        assert done.exit_code == 0, done.output
        assert "warning: " in done.stderr
        assert "isn't finished" in done.stderr
        assert said in done.stdout
    held = minari.load_dataset("torn-v0")
    for each, episode in zip(held, episodes, strict=True):
        assert (each.observations[:-1] == episode.tensordict(["observation"])["observation"].numpy()).all()
    lengths = pd.read_parquet(tmp_path / "set/meta/episodes")["length"].tolist()
    assert lengths == [length for length in pictures if length]
    for number, length in enumerate(lengths):
        with av.open(tmp_path / f"set/videos/observation.images.pixels/chunk-000/file-{number:03d}.mp4") as video:
            assert sum(1 for _ in video.decode(video=0)) == length
    done = export(torn, "--mp4", "-o", tmp_path / "videos")
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "videos").glob("*.mp4"))


@pytest.mark.parametrize("name", ["ppo", "run.rrd"])
def test_a_catalog_is_exported(runs, tmp_path, data_sets, name):
    files = load(runs / name)
    paths = sorted({str(file) for episode in files for file in episode.files})
    with rr.server.Server(host="127.0.0.1", datasets={"ppo": paths}) as server:
        dataset = server.client().get_dataset("ppo")
        held = load(dataset)
        assert {episode.files for episode in held} == {()}
        for source, episodes in (("catalog", held), ("files", files)):
            to_parquet(episodes, tmp_path / f"{source}.parquet")
            to_minari(episodes, f"{source}-v0")
            to_lerobot(episodes, tmp_path / source)
    assert pq.read_table(tmp_path / "catalog.parquet").equals(pq.read_table(tmp_path / "files.parquet"))
    for one, other in zip(*(minari.load_dataset(f"{each}-v0") for each in ("catalog", "files")), strict=True):
        assert (one.observations == other.observations).all()
        assert (one.rewards == other.rewards).all()
    for file in filter(Path.is_file, (tmp_path / "files").rglob("*")):
        assert (tmp_path / "catalog" / file.relative_to(tmp_path / "files")).read_bytes() == file.read_bytes(), file


# --- the command ---


def test_an_export_needs_exactly_one_format(runs, tmp_path):
    for options, said in (
        ((), "no format is given: choose one of --mp4"),
        (("--mp4", "--parquet", tmp_path / "x"), "2 formats are given: choose one of --mp4"),
        (("--parquet", tmp_path / "x", "--grid"), "needs --mp4"),
    ):
        done = export(runs / "run.rrd", *options)
        assert done.exit_code == 2
        assert said in " ".join(done.stderr.replace("│", " ").split())
    for options, error in (
        (("--key", "pixls"), "'pixls' is not recorded, but 'observation'"),
        (("--env", 7), "no episode is of environment 7; recorded are 0, 1"),
    ):
        done = export(runs / "run.rrd", "--parquet", tmp_path / "x.parquet", *options)
        assert done.exit_code == 1
        assert error in done.stderr
    assert not list(tmp_path.iterdir())
