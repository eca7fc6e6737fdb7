"""`torchrl-rerun screenshot`: pictures of the real viewer."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import rerun as rr
import torch
from PIL import Image
from rerun.chunk import Chunk
from rerun.experimental import Recording, Timeline
from typer.testing import CliRunner

from driving import record
from environments import Scripted
from episode_folders import write_chunks
from torchrl_rerun.cli import app
from torchrl_rerun.viewing.screenshots import Moment, _make_time_argument

COLOURS = torch.tensor([[200, 40, 40], [40, 200, 40], [40, 40, 200]], dtype=torch.uint8)


def shoot(*arguments):
    return CliRunner().invoke(app, ["screenshot", *map(str, arguments)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Record a video whose pictures are of one colour each, another one at each frame."""
    path = tmp_path_factory.mktemp("screenshots") / "run.rrd"
    env = Scripted(lambda t: {"x": COLOURS[t % 3].expand(64, 64, 3)})
    record(env, path, 8, image_format="h264", fps=10)
    return path


def share(picture, colour) -> float:
    """Return the share of a picture that is close to a colour."""
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    return float((np.abs(pixels - colour.numpy()).max(-1) < 12).mean())


def needs_a_driver(done):
    if "graphics driver" in done.stderr:
        pytest.skip(done.stderr)
    return done


def test_screenshots_of_several_moments_are_saved(run, tmp_path):
    done = needs_a_driver(
        shoot(
            run, tmp_path / "at_{}.png", "--at", "frame=4", "--at", "sim_time=0.2", "--at", "end", "--size", "800x600"
        )
    )
    assert done.exit_code == 0, done.stderr
    for place, colour in (("4", COLOURS[1]), ("0.2", COLOURS[2]), ("end", COLOURS[8 % 3])):
        picture = tmp_path / f"at_{place}.png"
        assert f"{picture}\n" in done.stdout, "and not that it was still changing"
        assert Image.open(picture).size == (800, 600)
        assert share(picture, colour) > 0.1
        assert sum(share(picture, other) for other in COLOURS) - share(picture, colour) < 0.01


def test_a_view_that_fails_gives_an_error_and_a_picture(tmp_path):
    """The exit status is 1."""
    path = tmp_path / "broken.rrd"
    size = rr.components.ImageFormat(width=64, height=64, color_model="RGB", channel_datatype="U8")
    images = rr.Image.columns(buffer=[b"too short"], format=[size])
    write_chunks(path, [Chunk.from_columns("/x", [rr.TimeColumn("frame", sequence=[0])], images)], "broken")
    done = needs_a_driver(shoot(path, tmp_path / "out.png"))
    assert done.exit_code == 1
    assert "a view fails: x: Invalid data length" in done.stderr
    assert (tmp_path / "out.png").exists()


def test_invalid_files_and_options_are_refused(run, tmp_path):
    (tmp_path / "there.png").write_text("mine")
    (tmp_path / "text.rrd").write_text("not a recording")
    for why, *arguments in [
        ("there.png exists already", run, tmp_path / "there.png"),
        ("text.rrd is not a recording", tmp_path / "text.rrd", tmp_path / "out.png"),
        ("'60' is not a timeline and a place on it", run, tmp_path / "out.png", "--at", "60"),
        ("{} stands for the place of --at", run, tmp_path / "out_{}.png"),
    ]:
        done = shoot(*arguments)
        assert done.exit_code == 1
        assert why in done.stderr
    assert shoot(run, tmp_path / "out.png", "--size", "large").exit_code == 2
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".png"] == ["there.png"]


def test_places_on_timelines_are_parsed():
    second = 1_000_000_000
    timelines = [
        Timeline("frame", "sequence", 0, 8),
        Timeline("sim_time", "duration", 0, 2 * second),
        Timeline("log_time", "timestamp", 0, second * 86400),
    ]
    recording = Recording("", "", timelines, None, None)
    assert _make_time_argument(Moment("frame", "8"), recording) == {"sequence": 8}
    assert _make_time_argument(Moment("sim_time", "1.5"), recording) == {
        "duration": np.timedelta64(3 * second // 2, "ns")
    }
    there = _make_time_argument(Moment("log_time", "1970-01-01T01:00:00+00:00"), recording)
    assert there == {"timestamp": np.datetime64(3600 * second, "ns")}
    for said, argument in [
        ("frame=-1", {"sequence": 8}),
        ("frame=-9", {"sequence": 0}),
        ("frame=end", {"sequence": 8}),
        ("end", {"sequence": 8}),
        ("sim_time=-0.5", {"duration": np.timedelta64(3 * second // 2, "ns")}),
    ]:
        assert _make_time_argument(Moment.parse(said), Recording("", "", timelines, "frame", None)) == argument
    before = Recording("", "", [Timeline("frame", "sequence", -1, 8)], None, None)
    assert _make_time_argument(Moment.parse("frame=-1"), before) == {"sequence": -1}, "an action before the dump"
    for said, why in [
        ("frame=-10", "nothing is recorded at frame=-10, but from 0 to 8"),
        ("frame=9", "nothing is recorded at frame=9, but from 0 to 8"),
        ("frame=1.5", "'1.5' is not a place on frame: pass a whole number"),
        ("sim_time=2.5", "nothing is recorded at sim_time=2.5, but from 0 to 2"),
        ("log_time=1969-12-31", "nothing is recorded at log_time=1969-12-31, but from 1970-01-01T00:00:00Z"),
        ("log_time=noon", "pass a date and time"),
        ("time=1", "the timeline 'time' doesn't exist; recorded are frame, sim_time, log_time"),
    ]:
        with pytest.raises(ValueError, match=why):
            _make_time_argument(Moment.parse(said), recording)


@pytest.mark.skipif(sys.platform != "linux", reason="drivers are found by the environment on Linux")
def test_a_missing_graphics_driver_is_an_error_with_advice(run, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "torchrl_rerun.cli", "screenshot", run, tmp_path / "out.png"],
        env=os.environ | {"VK_DRIVER_FILES": "/nothing", "VK_ICD_FILENAMES": "/nothing", "WGPU_BACKEND": "vulkan"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert (
        "no screenshot: no graphics driver is installed: install one (Debian: apt-get install mesa-vulkan-drivers)"
        in (done.stderr)
    )
