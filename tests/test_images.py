"""Kinds of pictures: depth, segmentations, floats of any range and frame stacks are recorded bit for bit."""

from __future__ import annotations

import io

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import (
    AddRenderObservation,
    FrameStackObservation,
    GrayscaleObservation,
    TransformObservation,
)
from PIL import Image
from rerun.chunk import RrdReader
from torchrl.envs import CatFrames, Compose, GrayScale, GymEnv, GymWrapper, ToTensorImage, TransformedEnv

import torchrl_rerun
from driving import record
from environments import Scripted
from looking import opened
from pictures import picture, psnr
from readback import assert_recorded, read, same
from torchrl_rerun import RerunRecorder

GENERATOR = torch.Generator().manual_seed(0)

SIZE = (24, 40)

RANGES = {
    "float32": (-3.0, 70.0),
    "float16": (-3.0, 70.0),
    "float64": (-3.0, 70.0),
    "uint8": (0, 255),
    "uint16": (0, 65535),
    "int32": (-9, 1 << 30),
    "int64": (-9, 1 << 62),
    "bool": (0, 1),
}


def noise(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    least, most = RANGES[dtype]
    random = torch.rand(shape, generator=GENERATOR, dtype=torch.float64)
    return (
        (least + random * (most - least)).round(decimals=0 if isinstance(least, int) else 9).to(getattr(torch, dtype))
    )


@pytest.mark.parametrize("shape", [SIZE, (*SIZE, 1), (1, *SIZE)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "uint8", "uint16", "int32"])
def test_depth_images_are_recorded(path, dtype, shape):
    values = noise(dtype, (6, *shape))
    if dtype == "float32":
        values[1, ..., :5, :5].fill_(torch.nan)
        values[2].fill_(torch.inf)
    record(Scripted(lambda t: {"depth": values[t]}), path, kinds={"depth": "depth"})
    recorded = read(path)
    assert recorded.kind("depth") == "depth"
    assert_recorded(recorded, "depth", lambda t: {"depth": values[t]})


@pytest.mark.parametrize("shape", [SIZE, (*SIZE, 1), (1, *SIZE)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "bool"])
def test_segmentations_are_recorded_with_their_labels(path, dtype, shape):
    values = noise(dtype, (6, *shape))
    names = {"mask": ["floor", "robot"]}
    record(Scripted(lambda t: {"mask": values[t]}), path, kinds={"mask": "segmentation"}, names=names)
    recorded = read(path)
    assert_recorded(recorded, "mask", lambda t: {"mask": values[t]})
    (classes,) = recorded.static["/env_0/mask"]["AnnotationContext:context"]
    assert [(each["class_id"], each["class_description"]["info"]["label"]) for each in classes] == [
        (0, "floor"),
        (1, "robot"),
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("shape", [(*SIZE, 3), (3, *SIZE), (*SIZE, 4), (*SIZE, 1)], ids=str)
def test_floats_below_zero_are_shown_as_8_bit_and_kept_exactly(path, shape, dtype):
    """Exact values, NaN, infinities and -0.0 included, are stored beside 8-bit pictures."""
    values = (torch.rand(6, *shape, generator=GENERATOR) * 2 - 1).to(getattr(torch, dtype))
    values[1].clamp_(min=0)  # a key whose floats are not below zero
    values[2, 0, 0, 0] = torch.nan
    values[3, 0, 0, 0] = -torch.inf
    values[4] = -0.0
    record(Scripted(lambda t: {"x": values[t]}), path)
    assert_recorded(read(path), "x", lambda t: {"x": values[t]})


def test_floats_from_minus_one_to_one_look_like_floats_from_zero_to_one(viewer, path, tmp_path):
    colours = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.2, 0.2], [1.0, 0.6, 0.1]]).repeat_interleave(20, 0)
    picture = colours.expand(60, 60, 3).contiguous()
    record(Scripted(lambda t: {"a": picture, "b": picture * 2 - 1, "c": picture * 255}), path, in_keys=["a", "b", "c"])
    views = opened(viewer, path, 3)
    assert [view.reports for view in views] == [[]] * 3
    viewer.save_screenshot(str(tmp_path / "picture.png"))
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).astype(int)
    for colour in ((0, 128, 255), (51, 51, 51), (255, 153, 26)):
        alike = (np.abs(pixels - colour).max(-1) <= 1).sum()
        wanted = (np.abs(pixels - colour).max(-1) <= 1).any(axis=1)
        rows = np.flatnonzero(np.diff(wanted.astype(int)) == 1)
        assert alike > 3000
        assert len(rows) >= 3, "in each of the three views, which are below one another"


STACKS = [(4, *SIZE), (12, *SIZE), (*SIZE, 12), (3, *SIZE, 3), (5, 3, *SIZE), (2, *SIZE, 4), (7, *SIZE)]


def newest(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if len(shape) == 4:
        return value[-1]
    if shape[-1] == 12:
        return value[..., -3:]
    return value[-3:] if shape[0] == 12 else value[-1]


@pytest.mark.parametrize("image_format", ["raw", "png"])
@pytest.mark.parametrize("shape", [tuple(32 if n == 24 else n for n in shape) for shape in STACKS], ids=str)
def test_frame_stacks_are_recorded(path, tmp_path, shape, image_format):
    values = noise("uint8", (6, *shape))
    env = Scripted(lambda t: {"x": values[t]})
    record(env, path, image_format=image_format)
    assert_recorded(read(path), "x", lambda t: {"x": values[t]})

    env.t = 0
    record(env, tmp_path / "newest.rrd", kinds={"x": torchrl_rerun.Image(image_format, stack="newest")})
    recorded = read(tmp_path / "newest.rrd")
    assert recorded.entry("x")["newest"]
    assert recorded.entry("x")["shape"] == list(shape)
    for t, value in enumerate(recorded["/env_0/x"].values):
        assert same(value, newest(values[t], shape).reshape(-1).contiguous())


def test_a_stack_of_grey_frames_may_be_video(path):
    ramp = torch.arange(64, dtype=torch.uint8) * 3
    stack = torch.stack([ramp.expand(48, 64) + 10 * i for i in range(4)])
    record(Scripted(lambda t: {"x": stack}), path, image_format="h264")
    for value in read(path)["/env_0/x"].values:
        assert psnr(value, stack) > 33


def test_frame_stacks_of_gymnasium_and_torchrl_are_recorded(path, tmp_path):
    """Frames are side by side, the newest at the right. Two grey frames are recognized by CatFrames."""
    grey = GrayscaleObservation(AddRenderObservation(gymnasium.make("CartPole-v1", render_mode="rgb_array")))
    small = TransformObservation(
        grey, lambda pixels: pixels[::10, ::10], gymnasium.spaces.Box(0, 255, (40, 60), np.uint8)
    )
    rollout, _ = record(GymWrapper(FrameStackObservation(small, 4)), path, image_format="png")
    recorded = read(path)
    assert recorded.entry("observation")["stack"] == 4
    assert_recorded(recorded, "observation", _observed(rollout, "observation"))
    (first,) = RrdReader(path).stream().filter(content="/env_0/observation", is_static=False)
    blob = bytes(first.to_record_batch().column("EncodedImage:blob")[5].as_py()[0])
    shown = np.asarray(Image.open(io.BytesIO(blob)))
    assert (shown == np.concatenate(rollout["next", "observation"][4].numpy(), axis=1)).all()

    chain = Compose(ToTensorImage(), GrayScale(), CatFrames(3, -3, in_keys=["pixels"]))
    env = TransformedEnv(GymEnv("CartPole-v1", from_pixels=True), chain)
    rollout, _ = record(env, tmp_path / "cat.rrd")
    recorded = read(tmp_path / "cat.rrd")
    assert recorded.entry("pixels")["stack"] == 3, "without CatFrames it would be RGB"
    assert_recorded(recorded, "pixels", _observed(rollout, "pixels"))


def _observed(rollout, key):
    return lambda t: {key: rollout[key][0] if t == 0 else rollout["next", key][t - 1]}


def test_jpeg_quality_changes_the_size_of_files(path, tmp_path):
    values = torch.stack([picture(t, (*SIZE, 3)) for t in range(6)])
    sizes = []
    for quality in (50, 95):
        file = tmp_path / f"{quality}.rrd"
        env = Scripted(lambda t: {"x": values[t]})
        record(env, file, kinds={"x": torchrl_rerun.Image(quality=quality)})
        assert read(file).entry("x")["jpeg_quality"] == quality
        sizes.append(file.stat().st_size)
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"quality": 0}, ValueError, "quality=0: pass 1 to 95"),
        ({"quality": 100}, ValueError, "pass 1 to 95"),
        ({"quality": 90.0}, TypeError, "a whole number"),
        ({"stack": "latest"}, ValueError, "stack='latest': choose one of 'all', 'newest', 'none'"),
        ({"format": "gif"}, ValueError, "format='gif': choose one of 'raw'"),
    ],
)
def test_options_of_images_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        torchrl_rerun.Image(**options)


def test_a_kind_for_a_key_that_is_not_recorded_is_an_error(path):
    env = Scripted(lambda t: {"x": torch.zeros(4, 40, 40, dtype=torch.uint8)})
    env = env.append_transform(RerunRecorder(path, kinds={"pixels": torchrl_rerun.Image(stack="newest")}))
    with pytest.raises(KeyError, match="kinds names 'pixels', which is not recorded"):
        env.rollout(3)


@pytest.fixture
def no_ffmpeg(monkeypatch):
    """Hide ``ffmpeg``, which the viewer looks for in PATH."""
    monkeypatch.setenv("PATH", "/nowhere")


def test_the_viewer_shows_av1_without_ffmpeg(no_ffmpeg, viewer, path, tmp_path):
    white = torch.full((100, 100, 3), 255, dtype=torch.uint8)
    record(Scripted(lambda t: {"x": white}), path, in_keys=["x"], image_format="av1")
    assert [view.reports for view in opened(viewer, path, 3)] == [[]]
    viewer.save_screenshot(str(tmp_path / "picture.png"))
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB"))
    assert (pixels > 250).all(-1).mean() > 0.2


def test_every_kind_of_picture_is_shown(viewer, path):
    def observe(t):
        ramp = torch.arange(60.0).expand(40, 60)
        return {
            "depth": ramp / 10 + t,
            "segmentation": (ramp // 20).to(torch.int64),
            "frames": torch.stack([ramp + i for i in range(4)]).to(torch.uint8),
        }

    names = {"segmentation": ["floor", "robot", "wall"]}
    record(Scripted(observe), path, in_keys=["depth", "segmentation", "frames"], names=names)
    views = opened(viewer, path, 3)
    assert sorted((view.view_class, str(view.origin), view.reports) for view in views) == [
        ("2D", "/env_0/depth", []),
        ("2D", "/env_0/frames", []),
        ("2D", "/env_0/segmentation", []),
    ]
