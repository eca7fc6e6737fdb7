"""Keys that would have one name in another format: each gets its own name, and a warning says which."""

from __future__ import annotations

import itertools
import json
import warnings

import duckdb
import h5py
import minari
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from typer.testing import CliRunner

from environments import Scripted
from lerobot_reader import read_by_lerobot  # noqa: F401 - the fixture
from pictures import picture
from torchrl_rerun import RerunRecorder, load
from torchrl_rerun.cli import app
from torchrl_rerun.export.lerobot import to_lerobot
from torchrl_rerun.export.minari import to_minari
from torchrl_rerun.export.mp4 import videos_of
from torchrl_rerun.export.parquet import to_parquet
from torchrl_rerun.export.renaming import Wish, distinct, dotted

OBSERVED = ["observation", "state", "joint pos", "joint_pos", "a/b", ("a", "b"), "env", "Env", "."]
CAMERAS = ["left cam", "left_cam"]
DONE = ["action", "index", "timestamp", "frame_index", "episode_index", "task_index", "task", "next/reward"]
KEYS = [*OBSERVED, *CAMERAS, *DONE]
STEPS = 4

OF_LEROBOT = {
    "observation": "observation.state",
    "state": "observation.state_2",
    "joint_pos": "observation.joint_pos",
    "joint pos": "observation.joint_pos_2",
    ("a", "b"): "observation.a.b",
    "a/b": "observation.a_b",
    "Env": "observation.Env",
    "env": "observation.env_2",
    ".": "observation._",
    "action": "action",
    "index": "index_2",
    "timestamp": "timestamp_2",
    "frame_index": "frame_index_2",
    "episode_index": "episode_index_2",
    "task_index": "task_index_2",
    "task": "task_2",
    "next/reward": "next_reward",
}
OF_MINARI = {key: name.removeprefix("observation.") for key, name in OF_LEROBOT.items()} | {
    "observation": "observation",
    "state": "state",
    **{key: key for key in DONE if key != "next/reward"},
}
OF_PARQUET = {key: key for key in (*OBSERVED, *DONE)} | {
    ("a", "b"): "a/b",
    "a/b": "a/b_2",
    "Env": "Env_2",
    "env": "env_3",
    "next/reward": "next/reward_2",
}


def seen(key, t):
    """Return the value of a key at time t, different for each key."""
    return torch.full((2,), 100.0 * [*OBSERVED, *DONE].index(key) + t)


def observed(t, keys):
    pictures = {key: picture(t + 30 * at, (32, 48, 3)) for at, key in enumerate(CAMERAS)}
    return TensorDict({key: pictures[key] if key in CAMERAS else seen(key, t) for key in keys})


def recorded(path, keys):
    steps = []
    for t in range(STEPS):
        step = observed(t, [key for key in keys if key not in DONE])
        step.update({key: seen(key, t) for key in keys if key in DONE})
        following = observed(t + 1, [key for key in keys if key not in DONE])
        following["reward"] = torch.full((1,), t + 1.0)
        following["done"] = torch.tensor([t == STEPS - 1])
        steps.append(step.set("next", following))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorder = RerunRecorder(path, image_format="png")
        recorder.log_rollout(torch.stack(steps))
        recorder.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("run") / "run.rrd", KEYS)


@pytest.fixture(scope="module")
def other_way_round(tmp_path_factory):
    """Record equal keys in another order."""
    return recorded(tmp_path_factory.mktemp("run") / "run.rrd", KEYS[::-1])


@pytest.fixture(autouse=True)
def data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def wanted(key):
    """Return the values of a key at all steps."""
    return np.stack([seen(key, t) for t in range(STEPS)])


def told(export):
    """Return the warnings of an export."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        export()
    return [str(each.message) for each in warned if each.category is UserWarning]


# --- the rule ---


@given(st.lists(st.text("aAé_2", min_size=1, max_size=3), max_size=12), st.randoms())
def test_names_differ_and_do_not_depend_on_order(names, random):
    wishes = [Wish(number, str(number), name, name) for number, name in enumerate(names)]
    shuffled = random.sample(wishes, len(wishes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, again = (distinct(each, "a test", taken=["a", "A_2"]) for each in (wishes, shuffled))
    assert found == again
    assert len(found) == len(names)
    assert len({name.casefold() for name in found.values()} | {"a", "a_2"}) == len(names) + 2


def test_a_name_without_a_conflict_is_not_given_to_another_key():
    wishes = [Wish(key, key, name, name) for key, name in [("1", "x"), ("2", "x"), ("3", "x_2")]]
    with pytest.warns(UserWarning, match="2 is 'x_3'"):
        assert distinct(wishes, "a test") == {"1": "x", "2": "x_3", "3": "x_2"}


def test_a_key_spelled_like_the_name_gets_it_first():
    with pytest.warns(UserWarning, match="'joint pos' is 'joint_pos_2'"):
        names = distinct([dotted(key, repr(key), [key]) for key in ("joint pos", "joint_pos")], "a test")
    assert names == {"joint_pos": "joint_pos", "joint pos": "joint_pos_2"}


# --- the formats ---


def test_lerobot_has_each_key_under_its_own_name(path, tmp_path, read_by_lerobot):  # noqa: F811
    [warning] = told(lambda: to_lerobot(load(path), tmp_path / "set"))
    for key in ("state", "joint pos", "index", "timestamp"):
        assert f"{key!r} is {OF_LEROBOT[key]!r}" in warning
    found = read_by_lerobot(tmp_path / "set")
    for key, name in OF_LEROBOT.items():
        values = wanted(key)
        assert (found["values"][name] == values).all(), key
        for stats in (found["stats"][name], found["of_episodes"][0][name]):
            assert stats["mean"][0] == pytest.approx(values[:, 0].mean())
            assert (stats["min"][0], stats["max"][0]) == (values[0, 0], values[-1, 0])
    assert found["values"]["index"].tolist() == found["values"]["frame_index"].tolist() == list(range(STEPS))
    assert found["values"]["task"] == ["recorded"] * STEPS
    for at, name in enumerate(["observation.images.left_cam_2", "observation.images.left_cam"]):
        shown = found["values"][name]
        for t in range(STEPS):
            pixels = picture(t + 30 * at, (32, 48, 3)).permute(2, 0, 1) / 255
            assert np.abs(shown[t] - pixels.numpy()).mean() < 0.02


def test_parquet_has_each_key_under_its_own_name(path, tmp_path):
    file = tmp_path / "run.parquet"
    [warning] = told(lambda: to_parquet(load(path), file))
    assert warning.endswith(": 'Env' is 'Env_2', 'env' is 'env_3', 'a/b' is 'a/b_2', 'next/reward' is 'next/reward_2'")
    names = duckdb.sql(f"DESCRIBE FROM '{file}'").fetchall()
    tables = {
        "pandas": pd.read_parquet(file),
        "polars": pl.read_parquet(file),
        "duckdb": {
            name: [row[0] for row in duckdb.sql(f"SELECT \"{name}\" FROM '{file}'").fetchall()] for name, *_ in names
        },
    }
    for library, table in tables.items():
        assert list(table["env"]) == [0] * STEPS, library
        for key, name in OF_PARQUET.items():
            values = np.stack([np.atleast_1d(each) for each in table[name]])
            assert (values == wanted(key)).all(), (library, key)
            if key in OBSERVED:
                following = np.stack([np.asarray(each) for each in table[f"next/{name}"]])
                assert (following == wanted(key) + 1).all(), (library, key)
        assert [float(each) for each in table["next/reward"]] == [1.0, 2.0, 3.0, 4.0]


def test_minari_has_each_key_under_its_own_name(path):
    warned = told(lambda: to_minari(load(path), "renamed-v0"))
    assert ["of what is observed" in each for each in warned] == [True, False]
    [episode] = minari.load_dataset("renamed-v0")
    assert set(episode.observations) == {OF_MINARI[key] for key in OBSERVED}
    assert set(episode.actions) == {OF_MINARI[key] for key in DONE}
    for key in (*OBSERVED, *DONE):
        held = (episode.observations if key in OBSERVED else episode.actions)[OF_MINARI[key]][:STEPS]
        assert (held == wanted(key)).all(), key


def test_each_video_has_its_own_file(path, tmp_path):
    done = CliRunner().invoke(app, ["export", str(path), "--mp4", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    assert sorted(each.name for each in tmp_path.glob("*.mp4")) == ["run.left_cam.mp4", "run.left_cam_2.mp4"]
    assert done.stderr.count("warning") == 1
    assert "'left cam' of environment 0 in run is 'run.left_cam_2'" in done.stderr
    grids = {video.path.name: [track.stream.key for track in video.tracks] for video in videos_of(path, grid=True)}
    assert grids == {"run.left_cam.mp4": [("left_cam",)], "run.left_cam_2.mp4": [("left cam",)]}


def test_videos_of_two_recordings_have_different_files(tmp_path):
    for name, keys in (("run", ["x", "y"]), ("run.x", ["z"])):
        env = Scripted(lambda t, keys=keys: {key: picture(t, (32, 48, 3)) for key in keys})
        env = env.append_transform(RerunRecorder(tmp_path / f"{name}.rrd", image_format="png"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env.rollout(2)
            env.close()
    names = [video.path.name for video in videos_of(tmp_path)]
    assert sorted(names) == ["run.x.mp4", "run.x_2.mp4", "run.y.mp4"]


def test_names_in_exports_do_not_depend_on_the_order_of_keys(path, other_way_round, tmp_path):
    files = {}
    for name, source in (("one", path), ("other", other_way_round)):
        told(lambda name=name, source=source: to_lerobot(load(source), tmp_path / name, keys=[*OBSERVED, *DONE]))
        told(lambda name=name, source=source: to_parquet(load(source), tmp_path / f"{name}.parquet"))
        told(lambda name=name, source=source: to_minari(load(source), f"{name}-v0"))
        with h5py.File(tmp_path / "minari" / f"{name}-v0" / "data" / "main_data.hdf5") as file:
            held = {key: values[:].tolist() for key, values in file["episode_0/observations"].items()}
        stats = json.loads((tmp_path / name / "meta/stats.json").read_text())
        videos = [(video.path.name, video.tracks[0].stream.key) for video in videos_of(source, grid=True)]
        table = pd.read_parquet(tmp_path / f"{name}.parquet")
        columns = {column: [np.asarray(each).tolist() for each in table[column]] for column in table.columns}
        files[name] = held, stats, sorted(videos), columns
    assert files["one"] == files["other"]


def test_a_key_that_is_exported_alone_keeps_its_name(path, tmp_path):
    assert not told(lambda: to_lerobot(load(path), tmp_path / "set", keys=["state", "action"]))
    assert "observation.state" in json.loads((tmp_path / "set/meta/stats.json").read_text())


@pytest.mark.parametrize("key", ["a/b", ("a", "b")])
def test_nested_keys_and_keys_with_a_slash_are_selected_by_spelling(path, tmp_path, key):
    """A nested key and a key with a slash have one spelling on the command line: both are exported."""
    told(lambda: to_parquet(load(path), tmp_path / "run.parquet", keys=[key]))
    columns = [name for name in pd.read_parquet(tmp_path / "run.parquet") if not name.startswith("next/")]
    assert set(columns) == {"env", "episode", "row", "a/b", *(["a/b_2"] if key == "a/b" else [])}


def test_columns_of_several_runs_are_in_one_order(path, other_way_round, tmp_path):
    both = list(itertools.chain(load(path), load(other_way_round)))
    told(lambda: to_parquet(both, tmp_path / "both.parquet"))
    table = pd.read_parquet(tmp_path / "both.parquet")
    assert (np.stack(table["state"][:STEPS]) == np.stack(table["state"][STEPS:])).all()


def test_unchanged_names_give_no_warning(tmp_path):
    env = Scripted(lambda t: {"observation": torch.full((3,), float(t))})
    env = env.append_transform(RerunRecorder(tmp_path / "run.rrd"))
    env.rollout(2)
    env.close()
    episodes = load(tmp_path / "run.rrd")
    for export in (
        lambda: to_lerobot(episodes, tmp_path / "set"),
        lambda: to_parquet(episodes, tmp_path / "run.parquet"),
        lambda: to_minari(episodes, "plain-v0"),
    ):
        assert not told(export)
