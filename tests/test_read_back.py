"""Exports, read back by widely used libraries."""

from __future__ import annotations

import json
import shutil
import subprocess

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from driving import record
from environments import Scripted
from lerobot_reader import read_by_lerobot  # noqa: F401 - the fixture
from torchrl_rerun import load
from torchrl_rerun.cli import app
from torchrl_rerun.export.lerobot import to_lerobot
from torchrl_rerun.export.parquet import to_parquet

DTYPES = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int64": torch.int64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@pytest.fixture(scope="module")
def lerobot(runs, tmp_path_factory):
    """Export CartPoles: from video that is copied, and from pictures that are encoded."""
    folder = tmp_path_factory.mktemp("lerobot")
    for source in ("run.rrd", "ppo"):
        (folder / source).symlink_to(runs / source)
    to_lerobot(load(runs / "run.rrd"), folder / "copied")
    to_lerobot(load(runs / "ppo"), folder / "encoded", task="balance the pole", fps=29.97)
    return folder


@pytest.fixture(scope="module")
def held(lerobot, read_by_lerobot):  # noqa: F811
    """Return the data sets as LeRobot reads them."""
    return {name: read_by_lerobot(lerobot / name) for name in ("copied", "encoded")}


@pytest.fixture(scope="module")
def of_all_dtypes(tmp_path_factory):
    """Return numbers of each dtype: a scalar, a row, and a table."""
    path = tmp_path_factory.mktemp("dtypes") / "run.rrd"

    def observe(t):
        shapes = {"one": (), "row": (3,), "table": (2, 3)}
        numbers = {
            shape: torch.arange(max(1, int(np.prod(shapes[shape])))).add(t).reshape(shapes[shape]) for shape in shapes
        }
        return {f"{dtype}_{shape}": numbers[shape].to(DTYPES[dtype]) for dtype in DTYPES for shape in shapes}

    record(Scripted(observe), path, 4)
    return path


def strictly(path):
    """Return the content of a strict JSON file, without NaN and Infinity."""
    return json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{path} has {constant}"))


def probed(path):
    """Return the description of a video by ffprobe, which decodes all of it without errors."""
    if shutil.which("ffprobe") is None:
        pytest.skip("there is no ffprobe")
    entries = "stream=codec_name,width,height,avg_frame_rate,nb_read_frames"
    command = ["ffprobe", "-v", "warning", "-count_frames", "-show_entries", entries, "-of", "json", path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not done.stderr
    [stream] = json.loads(done.stdout)["streams"]
    rate, scale = map(int, stream["avg_frame_rate"].split("/"))
    return stream["codec_name"], stream["width"], stream["height"], int(stream["nb_read_frames"]), rate / scale


# --- LeRobot ---


@pytest.mark.parametrize(("name", "source"), [("copied", "run.rrd"), ("encoded", "ppo")])
def test_lerobot_reads_recorded_values(lerobot, held, name, source):
    found, at = held[name], 0
    episodes = load(lerobot / source)
    assert [each["length"] for each in found["episodes"]] == [len(episode.tensordict()) for episode in episodes]
    assert set(found["values"]["task"]) == {"balance the pole" if name == "encoded" else "CartPole-v1"}
    for number, episode in enumerate(episodes):
        steps = episode.tensordict(["observation", "action", "reward", "terminated", "pixels"])
        of_episode = slice(at, at + len(steps))
        at += len(steps)
        values = {key: column[of_episode] for key, column in found["values"].items()}
        assert set(values["episode_index"]) == {number}
        assert np.allclose(values["timestamp"], np.arange(len(steps)) / found["fps"])
        assert (values["observation.state"] == steps["observation"].numpy()).all()
        assert (values["action"] == steps["action"].numpy()).all()
        assert (values["next.reward"] == steps["next", "reward"].squeeze(-1).numpy()).all()
        assert (values["next.terminated"] == steps["next", "terminated"].squeeze(-1).numpy()).all()
        shown = values["observation.images.pixels"].transpose(0, 2, 3, 1) * 255
        assert np.abs(shown - steps["pixels"].numpy()).mean() < 3
    assert at == len(found["values"]["index"])


def test_each_episode_has_its_own_statistics(held):
    found = held["copied"]
    for number, stats in enumerate(found["of_episodes"]):
        assert set(stats) == set(found["features"])
        is_here = found["values"]["episode_index"] == number
        for name, of_feature in stats.items():
            if name == "observation.images.pixels":
                assert {each: value.shape for each, value in of_feature.items()} == dict.fromkeys(
                    ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99"), (3, 1, 1)
                ) | {"count": (1,)}
                first = found["values"][name][is_here][0]
                assert np.allclose(of_feature["mean"].ravel(), first.mean(axis=(1, 2)), atol=0.01)
                continue
            values = found["values"][name][is_here].reshape(is_here.sum(), -1).astype(np.float64)
            for each, computed in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
                assert np.allclose(of_feature[each], computed(values, axis=0)), (name, each)
            assert np.allclose(of_feature["q90"], np.quantile(values, 0.9, axis=0))
            assert of_feature["count"] == [is_here.sum()]


def test_lerobot_aggregates_statistics_of_episodes_to_those_of_the_set(held):
    found = held["encoded"]
    for name, of_feature in found["stats"].items():
        for each, value in of_feature.items():
            assert np.allclose(value, found["aggregated"][name][each], atol=1e-12), (name, each)


def test_metadata_is_strict_json_with_nan_and_infinite_values(path, tmp_path, read_by_lerobot):  # noqa: F811
    """Environments that reset themselves observe NaN; others observe numbers whose squares are infinite."""
    nan, inf = float("nan"), float("inf")
    rows = [[1.0, nan, inf, 1e300, nan], [3.0, 2.0, 5.0, -1e300, nan], [nan, 4.0, -inf, 1.7e308, nan], [0.0] * 5]
    observe = lambda t: {
        "observation": torch.tensor(rows[t], dtype=torch.float64),
        "x": torch.tensor([nan, 1.0, nan, 0.0][t]),
    }
    record(Scripted(observe), path, 3)
    to_lerobot(load(path), tmp_path / "set")
    strictly(tmp_path / "set/meta/info.json")
    written = strictly(tmp_path / "set/meta/stats.json")
    found = read_by_lerobot(tmp_path / "set")
    assert np.array_equal(found["values"]["observation.state"], torch.tensor(rows[:3]), equal_nan=True)
    for stats in (written, found["stats"], found["of_episodes"][0]):
        of_state = stats["observation.state"]
        assert np.allclose(of_state["min"], [1, 2, 5, -1e300, 0])
        assert np.allclose(of_state["max"], [3, 4, 5, 1.7e308, 0])
        assert np.allclose(of_state["mean"], [2, 3, 5, 1.7e308 / 3, 0])
        assert np.allclose(of_state["std"], [1, 1, 0, np.std([1e-8, -1e-8, 1.7]) * 1e308, 0])
        assert np.isfinite([value for name, value in of_state.items() if name != "count"]).all()
        assert np.allclose(stats["observation.x"]["mean"], [1])


def test_lerobot_reads_every_dtype(of_all_dtypes, tmp_path, read_by_lerobot):  # noqa: F811
    to_lerobot(load(of_all_dtypes), tmp_path / "set")
    found = read_by_lerobot(tmp_path / "set")
    steps = load(of_all_dtypes)[0].tensordict()
    for dtype in DTYPES:
        for shape in ("one", "row", "table"):
            wanted = steps[f"{dtype}_{shape}"].float().numpy().reshape(len(steps), -1)
            held = found["values"][f"observation.{dtype}_{shape}"].reshape(len(steps), -1)
            assert (held == wanted).all(), (dtype, shape)


@pytest.mark.parametrize("fps", ["inf", "nan"])
@pytest.mark.parametrize("options", [["--mp4", "--out"], ["--lerobot"]], ids=" ".join)
def test_invalid_frame_rates_are_refused(runs, tmp_path, options, fps):
    done = CliRunner().invoke(app, ["export", str(runs / "run.rrd"), *options, str(tmp_path / "out"), "--fps", fps])
    assert done.exit_code in (1, 2)
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


# --- Parquet ---


def columns(library, file):
    """Return the columns of a Parquet file as a library reads them."""
    if library == "pandas":
        return pd.read_parquet(file)
    if library == "polars":
        return pl.read_parquet(file)
    rows = duckdb.sql(f"FROM '{file}'").fetchall()
    return dict(zip(pq.read_schema(file).names, zip(*rows, strict=True), strict=True))


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb"])
@pytest.mark.parametrize("source", ["an environment", "every dtype"])
def test_parquet_is_read_by_other_libraries(runs, of_all_dtypes, tmp_path, library, source):
    episodes, file = load(of_all_dtypes if source == "every dtype" else runs / "run.rrd"), tmp_path / "run.parquet"
    to_parquet(episodes, file)
    table = columns(library, file)
    names = pq.read_schema(file).names
    assert names[:3] == ["env", "episode", "row"]
    every = [episode.tensordict([key for key in episode.keys() if key != ("pixels",)]) for episode in episodes]
    for name in names[3:]:
        key = ("next", name.removeprefix("next/")) if name.startswith("next/") else name
        wanted = np.concatenate([steps[key].float().numpy().reshape(len(steps), -1) for steps in every])
        held = np.stack([np.ravel(np.asarray(each)) for each in table[name]])
        assert (held == wanted).all(), name


# --- videos ---


def test_ffprobe_decodes_the_videos_of_lerobot(lerobot):
    for name, source, fps in (("copied", "run.rrd", 50), ("encoded", "ppo", 29.97)):
        for number, episode in enumerate(load(lerobot / source)):
            file = lerobot / name / f"videos/observation.images.pixels/chunk-000/file-{number:03d}.mp4"
            assert probed(file) == ("h264", 600, 400, len(episode.tensordict()), pytest.approx(fps, rel=1e-3))


@pytest.mark.parametrize("options", [[], ["--grid"]], ids=["each", "grid"])
def test_ffprobe_decodes_exported_videos(runs, tmp_path, options):
    for source in ("run.rrd", "ppo"):
        done = CliRunner().invoke(
            app, ["export", str(runs / source), "--mp4", *options, "--out", str(tmp_path / source)]
        )
        assert done.exit_code == 0, done.stderr
        said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
        for file in (tmp_path / source).glob("*.mp4"):
            codec, width, height, pictures, _ = probed(file)
            assert codec == "h264"
            assert f"{pictures} pictures, {width}x{height}" in said[str(file)]
