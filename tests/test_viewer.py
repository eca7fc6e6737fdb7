"""Recordings in the real viewer, without a display."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import rerun as rr
import rerun.blueprint as rrb
import torch
from PIL import Image
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv, SerialEnv
from torchrl.envs.libs.vmas import VmasEnv

from environments import Scripted, Zoo
from looking import opened, record, rerun_views, trouble

cartpole = functools.partial(GymEnv, "CartPole-v1")
pixel_cartpole = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False)


def test_a_cell_for_each_environment(viewer, path, tmp_path):
    record(SerialEnv(2, pixel_cartpole), path, 30)
    views = opened(viewer, path, 20)
    assert trouble(views) == []
    assert set(rerun_views(views)) == {
        ("TimeSeries", "/", "episode_return, whole run"),
        *(
            view
            for env in range(2)
            for view in [
                ("2D", f"/env_{env}/pixels", f"env {env}: pixels"),
                ("StateTimeline", f"/env_{env}", f"env {env}: action, terminated, truncated"),
                ("TimeSeries", f"/env_{env}", f"env {env}: observation"),
                ("TimeSeries", f"/env_{env}", f"env {env}: reward"),
            ]
        ),
    }
    picture = tmp_path / "picture.png"
    viewer.save_screenshot(str(picture))
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert (pixels == 255).all(-1).mean() > 0.1  # the white pictures of two CartPoles are on the screen


def test_agents_are_shown_without_errors(viewer, path):
    record(VmasEnv("flocking", num_envs=2, n_agents=3, max_steps=20), path, 15)
    views = opened(viewer, path, 10)
    assert views
    assert trouble(views) == []


def test_each_kind_is_shown_without_errors(viewer, path):
    record(Zoo((2,)), path, 12, image_format="png")
    views = opened(viewer, path, 8)
    assert {view.view_class for view in views} == {
        "2D",
        "TimeSeries",
        "StateTimeline",
        "Tensor",
        "TextDocument",
        "BarChart",
    }
    assert trouble(views) == []


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("image_format", ["raw", "png"])
def test_grey_and_transparent_pictures_are_shown(viewer, path, image_format, channels):
    record(
        Scripted(lambda t: {"x": torch.full((24, 32, channels), 20 * t, dtype=torch.uint8)}),
        path,
        5,
        image_format=image_format,
    )
    views = opened(viewer, path, 3)
    assert ("2D", "/env_0/x", "x") in rerun_views(views)
    assert trouble(views) == []


def test_errors_of_views_behind_tabs_are_found(viewer, path):
    views = [rrb.Spatial2DView(origin=origin, name=origin) for origin in ("/fine", "/broken")]
    with rr.RecordingStream("tabs") as stream:
        stream.save(path, default_blueprint=rrb.Blueprint(rrb.Tabs(*views), auto_views=False))
        stream.set_time("frame", sequence=0)
        stream.log("/fine", rr.Image(np.zeros((8, 8, 3), np.uint8)))
        size = rr.components.ImageFormat(width=8, height=8, color_model="RGB", channel_datatype="U8")
        stream.log("/broken", rr.Image.from_fields(buffer=b"short", format=size))
    [(name, reports)] = trouble(opened(viewer, path, 0))
    assert name == "/broken"
    assert "Invalid data length" in reports[0].summary


def test_many_states_are_shown_in_one_lane(viewer, path):
    """500 states are one lane, and named actions another one."""
    record(GymEnv("Taxi-v4"), path, 15)
    views = opened(viewer, path, 10)
    assert rerun_views(views) == [
        ("StateTimeline", "/env_0", "observation, action, terminated, truncated"),
        ("TimeSeries", "/", "episode_return, whole run"),
        ("TimeSeries", "/env_0", "reward"),
    ]
    assert trouble(views) == []


def test_a_layout_of_the_user_is_shown(viewer, path):
    mine = rrb.Blueprint(rrb.TimeSeriesView(origin="/env_0/reward", name="mine"), auto_views=False)
    record(cartpole(), path, 5, blueprint=mine)
    assert rerun_views(opened(viewer, path, 3)) == [("TimeSeries", "/env_0/reward", "mine")]


def test_a_recording_without_blueprint_has_no_layout(path):
    record(cartpole(), path, 5, blueprint=False)
    assert RrdReader(path).blueprints() == []
    assert len(RrdReader(path).recordings()) == 1


def test_a_run_folder_opens_with_all_episodes(viewer, tmp_path):
    """Each episode opens with its layout. The picture is of the selected episode."""
    folder = tmp_path / "run"
    record(SerialEnv(2, pixel_cartpole), folder, 60, split="episode")
    files = sorted(folder.glob("*.rrd"))
    assert len(files) > 3
    views = opened(viewer, folder, 5)
    assert rerun_views(views) == [
        ("2D", "/pixels", "pixels"),
        ("StateTimeline", "/", "action, terminated, truncated"),
        ("TimeSeries", "/", "observation"),
        ("TimeSeries", "/", "return"),
        ("TimeSeries", "/", "reward"),
    ]
    assert trouble(views) == []
    assert all(RrdReader(file).blueprints() for file in files)
