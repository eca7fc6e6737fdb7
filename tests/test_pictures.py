"""Encoded images: video and its keyframes, and pictures that wait until they fill a chunk."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv, SerialEnv

from driving import record
from environments import Scripted
from pictures import picture, psnr
from programs import python
from readback import decoded, read
from reference import of_rollout
from torchrl_rerun import Image, RecordingError, RerunRecorder

DONE = ["done", "terminated", "truncated"]

pixel_cartpole = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False)


def chunks_of(path, entity: str) -> list[int]:
    """Return the number of rows of each chunk of an entity."""
    chunks = RrdReader(path).stream()
    return [chunk.num_rows for chunk in chunks if chunk.entity_path == entity and not chunk.is_static]


@pytest.mark.parametrize(("image_format", "buffer_bytes"), [("h264", 64 << 20), ("h264", 100_000), ("av1", 64 << 20)])
def test_video_is_recorded_of_several_environments_with_partial_resets(path, image_format, buffer_bytes):
    """Blocks hold all frames, or one frame each."""
    recorder = RerunRecorder(path, image_format=image_format, buffer_bytes=buffer_bytes)
    env = SerialEnv(2, pixel_cartpole).append_transform(recorder)
    env.set_seed(0)
    rollout = env.rollout(80, break_when_any_done=False)
    env.close()
    recorded = read(path)
    reference = of_rollout(rollout, observed=["pixels", "observation", *DONE])
    reference.compare(recorded, exact=False)
    assert recorded.entry("pixels")["image_format"] == image_format
    for env_index in range(2):
        rows = recorded[f"/env_{env_index}/pixels"]
        for row, value in zip(reference.rows[env_index, "pixels"], rows.values, strict=True):
            assert psnr(value, row.value) > 40, row.frame
        assert rows.along("episode")[-1] > 0, "an episode ended within a block"
        since = 0
        for position, is_keyframe in zip(rows.along("episode_step"), rows.keyframes, strict=True):
            since = 0 if position == 0 else since + 1
            assert is_keyframe == (since % 50 == 0), "at the start of an episode, and once a second"
    done = subprocess.run([sys.executable, "-m", "rerun_cli", "rrd", "verify", path], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("image_format", ["h264", "av1"])
def test_a_keyframe_comes_once_a_second_of_playback(path, image_format):
    """Decoding can begin at any keyframe."""
    _, warned = record(Scripted(lambda t: {"x": picture(t, (32, 32, 3))}), path, 40, image_format=image_format, fps=10)
    assert warned == []
    rows = read(path)["/env_0/x"]
    keyframes = [t for t, is_keyframe in enumerate(rows.keyframes) if is_keyframe]
    assert keyframes == [0, 10, 20, 30, 40]
    for keyframe in keyframes:
        found = decoded(rows.samples[keyframe:], image_format)
        assert len(found) == 41 - keyframe
        assert psnr(torch.tensor(found[0]), picture(keyframe, (32, 32, 3))) > 28


@pytest.mark.parametrize("image_format", ["h264", "av1"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 3), (1, 1, 1), (2, 3, 3), (8, 8, 3), (16, 16, 3), (63, 65, 3), (33, 64, 1), (17, 200, 3), (400, 600, 3)],
    ids=str,
)
def test_video_may_have_any_size(path, shape, image_format):
    """Odd and very small sizes are padded. Pictures are cut to the recorded size when they are read."""
    _, warned = record(
        Scripted(lambda t: {"x": picture(t, shape)}), path, image_format=image_format, kinds={"x": "image"}
    )
    assert warned == []
    for t, value in enumerate(read(path)["/env_0/x"].values):
        assert value.shape == shape
        assert psnr(value, picture(t, shape)) > 24  # few pixels with colours at half the resolution


@pytest.mark.parametrize("image_format", ["h264", "av1"])
def test_video_may_have_channels_first_or_no_channels(path, image_format):
    def observe(t):
        return {"first": picture(t, (40, 60, 3)).permute(2, 0, 1), "none": picture(t, (40, 60, 1))[..., 0]}

    record(Scripted(observe), path, image_format=image_format)
    recorded = read(path)
    for name in ("first", "none"):
        for t, value in enumerate(recorded[f"/env_0/{name}"].values):
            assert psnr(value, observe(t)[name]) > 33


@pytest.mark.parametrize("image_format", ["h264", "av1"])
def test_decoded_colours_equal_recorded_ones(path, image_format):
    """The stream declares its colour space, so that any decoder shows the recorded colours."""
    squares = torch.zeros(64, 64, 3, dtype=torch.uint8)
    colours = {(8, 8): (255, 0, 0), (8, 40): (0, 255, 0), (40, 8): (0, 0, 255), (40, 40): (200, 120, 40)}
    for (row, column), colour in colours.items():
        squares[row - 8 : row + 24, column - 8 : column + 24] = torch.tensor(colour, dtype=torch.uint8)
    record(Scripted(lambda t: {"x": squares}), path, image_format=image_format)
    for value in read(path)["/env_0/x"].values:
        for (row, column), colour in colours.items():
            assert (value[row + 8, column + 8].int() - torch.tensor(colour)).abs().max() <= 2


def test_keys_of_one_recording_may_have_different_image_formats(path):
    """Alpha and floats can't be video or JPEG: they are stored exactly, as PNG or raw."""
    generator = torch.Generator().manual_seed(0)
    alpha = torch.randint(0, 256, (20, 30, 4), generator=generator, dtype=torch.uint8)
    floats = torch.rand(20, 30, 1, generator=generator)
    depth = alpha[..., 0]

    def observe(t):
        return {
            "video": picture(t, (20, 30, 3)),
            "alpha": alpha + t,
            "floats": floats * t,
            "depth": depth + t,
            "raw": alpha[..., :3] - t,
        }

    _, warned = record(Scripted(observe), path, image_format="h264", kinds={"raw": Image("raw")})
    assert sorted(warned) == [
        "'alpha' is stored as 'png': 'h264' can't hold uint8 (20, 30, 4)",
        "'depth' is stored as 'raw': 'h264' can't hold pictures of kind 'depth'",
        "'floats' is stored as 'raw': 'h264' can't hold float32 (20, 30, 1)",
    ]
    recorded = read(path)
    assert [recorded.entry(key)["image_format"] for key in observe(0)] == ["h264", "png", "raw", "raw", "raw"]
    for t in range(6):
        for key in ("alpha", "floats", "depth", "raw"):
            assert torch.equal(recorded[f"/env_0/{key}"].values[t], observe(t)[key])


@pytest.mark.parametrize("image_format", ["h264", "av1"])
def test_dumped_pictures_can_be_decoded(path, image_format):
    """The encoder has no delay: each dump writes all pictures so far, and the video goes on."""
    recorder = RerunRecorder(path, image_format=image_format)
    env = Scripted(lambda t: {"x": picture(t, (48, 48, 3))}).append_transform(recorder)
    tensordict = env.reset()
    for t in range(1, 13):
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
        env.transform.dump()
        rows = read(path)["/env_0/x"]
        assert len(rows.values) == t + 1
        assert psnr(rows.values[t], picture(t, (48, 48, 3))) > 30
    assert rows.keyframes == [True] + [False] * 12
    env.close()


@pytest.mark.parametrize("image_format", ["jpeg", "png", "h264"])
def test_pictures_of_many_blocks_are_one_chunk(path, image_format):
    """A block holds one picture. Pictures wait until they fill a chunk, and `stats()` counts them."""
    recorder = RerunRecorder(path, image_format=image_format, buffer_bytes=10_000)
    env = Scripted(lambda t: {"x": picture(t, (48, 48, 3))}).append_transform(recorder)
    env.rollout(20)
    waiting = env.transform.stats()
    assert waiting["frames_waiting"] == 21
    assert waiting["bytes_waiting"] > 0
    env.transform.dump()
    dumped = env.transform.stats()
    assert (dumped["frames_waiting"], dumped["frames_written"], dumped["bytes_waiting"]) == (0, 21, 0)
    assert chunks_of(path, "/env_0/x") == [21]
    env.close()


def test_pictures_wait_at_most_for_flush_seconds(path):
    env = Scripted(lambda t: {"x": picture(t, (48, 48, 3))}).append_transform(
        RerunRecorder(path, buffer_bytes=10_000, flush_seconds=1e-6)
    )
    env.rollout(20)
    env.close()
    assert sum(chunks_of(path, "/env_0/x")) == 21
    assert len(chunks_of(path, "/env_0/x")) > 10


def test_pictures_that_fill_a_chunk_do_not_wait(path):
    noise = torch.randint(0, 256, (200, 200, 3), dtype=torch.uint8)  # PNG does not compress noise
    env = Scripted(lambda t: {"x": noise}).append_transform(
        RerunRecorder(path, image_format="png", buffer_bytes=300_000)
    )
    env.rollout(20)
    env.close()
    assert chunks_of(path, "/env_0/x") == [5, 5, 5, 5, 1]


def test_a_full_disk_loses_waiting_pictures_and_counts_them(small_disk):
    """Frames whose pictures are lost count as lost, although their other keys are written."""
    path = small_disk / "run.rrd"
    # PNG does not compress noise: 21 pictures of 24 kB fill a chunk, and 20 fit on the disk.
    env = Scripted(lambda t: {"x": torch.randint(0, 256, (90, 90, 3), dtype=torch.uint8), "t": torch.full((1,), t)})
    recorder = RerunRecorder(path, image_format="png", buffer_bytes=50_000, blueprint=False)
    env = env.append_transform(recorder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env.rollout(20)
        with pytest.raises(RecordingError, match="21 frames were lost"):
            env.transform.dump()
        assert env.transform.stats()["frames_lost"] == 21
        with pytest.raises(RecordingError, match="21 frames were lost"):
            env.close()
    assert "/env_0/x" not in read(path).entities


def test_the_recorder_needs_pyav_for_video_alone(path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from absent import hide
hide("av")
from torchrl.envs import GymEnv
from torchrl_rerun import Image, RerunRecorder
for options in ({{"image_format": "h264"}}, {{"kinds": {{"pixels": Image("h264")}}}}):
    try:
        RerunRecorder({str(path)!r}, **options)
    except ImportError as error:
        print(error)
env = GymEnv("CartPole-v1", from_pixels=True).append_transform(RerunRecorder({str(path)!r}, image_format="jpeg"))
env.rollout(5)
env.close()
"""
    done = subprocess.run([*python(), "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.count("needs PyAV: pip install 'torchrl-rerun[video]'") == 2
    assert len(read(path)["/env_0/pixels"].values) == 6


def test_the_docs_read_a_video_back(tmp_path, monkeypatch):
    page = Path(__file__).parents[1].joinpath("docs", "images.md").read_text()
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, found)
    wanted = read("video.rrd")["/env_0/pixels"].values
    assert len(found["frames"]) == len(wanted) > 5
    assert all((frame == value.numpy()).all() for frame, value in zip(found["frames"], wanted, strict=True))


def test_samples_in_a_row_are_a_stream_for_ffmpeg(path):
    """Concatenated samples are a plain Annex B stream, which can be used without Rerun."""
    record(Scripted(lambda t: {"x": picture(t, (48, 64, 3))}), path, 30, image_format="h264")
    data = b"".join(read(path)["/env_0/x"].samples)
    stream = path.with_suffix(".h264")
    stream.write_bytes(data)
    with av.open(str(stream), format="h264") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.stack(frames).shape == (31, 48, 64, 3)
