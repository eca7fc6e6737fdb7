"""`torchrl-rerun export --mp4`: pictures of a recording as mp4 files."""

from __future__ import annotations

import functools
import re
import warnings

import av
import numpy as np
import pytest
import torch
from tensordict import NonTensorData
from torchrl.data import NonTensor
from torchrl.envs import GymEnv, SerialEnv, TransformedEnv
from typer.testing import CliRunner

from commands import without
from driving import record
from environments import Scripted
from pictures import picture, psnr
from readback import read
from torchrl_rerun import RerunRecorder
from torchrl_rerun.cli import app
from torchrl_rerun.export.mp4 import GRID_SIZE, videos_of, write_video
from torchrl_rerun.reading.pictures import camera_tracks, pictures, stored
from torchrl_rerun.rrd.files import files_of
from torchrl_rerun.rrd.framing import Footer
from torchrl_rerun.writing import file as sinks

pixel_cartpole = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False)


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments), "--mp4"])


def exported(*arguments):
    done = export(*arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def played(path):
    """Return the pictures of a video, each with its time in seconds."""
    with av.open(path) as video:
        return [(float(frame.time), torch.tensor(frame.to_ndarray(format="rgb24"))) for frame in video.decode(video=0)]


def packets(path):
    """Return the packets of a video, and whether each is a keyframe."""
    with av.open(path) as video:
        found = [(bytes(packet), packet.is_keyframe) for packet in video.demux(video=0) if packet.size]
    return list(zip(*found, strict=True))


def units(data: bytes, *, is_mp4: bool) -> list[bytes]:
    """Return the units of an H.264 sample, which have lengths before them, or start codes between."""
    if not is_mp4:
        return re.split(rb"\x00{2,3}\x01", data)[1:]
    found = []
    while data:
        size = 4 + int.from_bytes(data[:4], "big")
        found, data = [*found, data[4:size]], data[size:]
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Record two CartPoles in three ways at once. Resets one by one leave frames without a picture."""
    folder = tmp_path_factory.mktemp("runs")
    env = SerialEnv(2, pixel_cartpole)
    env = TransformedEnv(env, RerunRecorder(folder / "video.rrd", image_format="h264"))
    env.append_transform(RerunRecorder(folder / "stills.rrd", image_format="jpeg"))
    env.append_transform(RerunRecorder(folder / "episodes", split="episode"))
    env.set_seed(0)
    torch.manual_seed(0)  # the seed of the actions
    env.rollout(30, break_when_any_done=False)
    env.close()
    return folder


@pytest.fixture(scope="module")
def video(runs):
    return runs / "video.rrd", read(runs / "video.rrd")


def scripted(path, shape=(32, 48, 3), steps=5, **options):
    record(Scripted(lambda t: {"x": picture(t, shape)}), path, steps, kinds={"x": "image"}, **options)


# --- videos of one environment ---


def test_a_video_is_copied(video, tmp_path):
    path, recorded = video
    said = exported(path, "-o", tmp_path)
    assert "copied as it is" in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["video.env_0.mp4", "video.env_1.mp4"]
    frames = [recorded[f"/env_{env}/pixels"].along("frame") for env in range(2)]
    assert frames[0] != frames[1], "one was reset while the other wasn't"
    for env in range(2):
        rows = recorded[f"/env_{env}/pixels"]
        data, keyframes = packets(tmp_path / f"video.env_{env}.mp4")
        assert [units(each, is_mp4=True) for each in data] == [units(each, is_mp4=False) for each in rows.samples]
        assert list(keyframes) == rows.keyframes
        frames = rows.along("frame")
        for (time, shown), frame, value in zip(
            played(tmp_path / f"video.env_{env}.mp4"), frames, rows.values, strict=True
        ):
            assert time == pytest.approx((frame - frames[0]) / 50)
            assert torch.equal(shown, value)


def test_pictures_are_encoded(runs, tmp_path):
    assert "encoded" in exported(runs / "stills.rrd", "--env", 1, "-o", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["stills.env_1.mp4"]
    rows = read(runs / "stills.rrd")["/env_1/pixels"]
    frames = rows.along("frame")
    for (time, shown), frame, value in zip(played(tmp_path / "stills.env_1.mp4"), frames, rows.values, strict=True):
        assert time == pytest.approx((frame - frames[0]) / 50)
        assert psnr(shown, value) > 38


@pytest.mark.parametrize("image_format", ["h264", "png"])
def test_a_video_is_described_with_its_size_and_frame_rate(path, image_format):
    """Odd sizes, and an environment without a frame rate."""
    scripted(path, (31, 47, 3), image_format=image_format)
    said = exported(path)
    assert "run.mp4: 6 pictures, 48x32 (47x31, filled up), 30 frames per second (not known: --fps), " in said
    for t, (time, shown) in enumerate(played(path.with_suffix(".mp4"))):
        assert time == pytest.approx(t / 30, abs=1e-4)
        assert shown.shape == (32, 48, 3)
        assert psnr(shown[:31, :47], picture(t, (31, 47, 3))) > 33
    assert "47x31, filled up), 12.5 frames per second, " in exported(path, "--fps", 12.5, "--overwrite")
    assert played(path.with_suffix(".mp4"))[5][0] == pytest.approx(5 / 12.5)


@pytest.mark.parametrize(
    "observe",
    [
        lambda t: picture(t, (40, 60, 1)),
        lambda t: picture(t, (40, 60, 1))[..., 0],
        lambda t: picture(t, (40, 60, 3)).permute(2, 0, 1),
        lambda t: picture(t, (40, 60, 4)),
        lambda t: picture(t, (40, 60, 3)).float() / 255,
    ],
    ids=["grey", "no channels", "channels first", "alpha", "float"],
)
def test_pictures_of_all_shapes_and_dtypes_are_exported(path, observe):
    record(Scripted(lambda t: {"x": observe(t)}), path, image_format="raw", kinds={"x": "image"})
    exported(path)
    for t, (_, shown) in enumerate(played(path.with_suffix(".mp4"))):
        wanted = observe(t)
        wanted = wanted.permute(1, 2, 0) if wanted.shape[0] == 3 else wanted.reshape(40, 60, -1)[..., :3]
        wanted = (wanted * 255).round().to(torch.uint8) if wanted.is_floating_point() else wanted
        assert psnr(shown, wanted.expand(40, 60, 3)) > 30


def test_each_camera_has_a_video(path):
    env = Scripted(lambda t: {"left": picture(t, (32, 32, 3)), ("up", "right"): picture(t, (32, 64, 3))})
    record(env, path, image_format="png")
    exported(path)
    assert played(path.with_name("run.left.mp4"))[0][1].shape == (32, 32, 3)
    assert played(path.with_name("run.up.right.mp4"))[0][1].shape == (32, 64, 3)
    exported(path, "--key", "up/right", "-o", path.with_name("one.mp4"))
    assert played(path.with_name("one.mp4"))[0][1].shape == (32, 64, 3)


# --- several files ---


def test_parts_and_workers_are_exported_as_one_recording(path, tmp_path, monkeypatch):
    """Several recorders on one path in one process stand for workers. `run.rrd` itself doesn't exist."""
    monkeypatch.setattr(sinks, "CHUNKS_PER_FILE", 60)

    def worker(number):
        recorder = RerunRecorder(path, buffer_bytes=10_000, flush_seconds=0.001, image_format="h264")
        env = Scripted(lambda t: {"x": picture(t + 20 * number, (32, 48, 3))})
        return env.append_transform(recorder)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = SerialEnv(2, [functools.partial(worker, number) for number in range(2)])
        env.rollout(40)
        env.close()
    files = files_of(path)
    assert len(files) > 2
    assert files[:2] == [path.with_name("run.worker_0.rrd"), path.with_name("run.worker_0.part_1.rrd")]
    assert not path.exists()
    exported(path, "-o", tmp_path / "out")
    for number in range(2):
        seen = played(tmp_path / "out" / f"run.env_{number}.mp4")
        assert len(seen) == 41
        for t, (_, shown) in enumerate(seen):
            assert psnr(shown, picture(t + 20 * number, (32, 48, 3))) > 30


def test_a_part_that_begins_between_keyframes_is_exported(path, monkeypatch):
    monkeypatch.setattr(sinks, "CHUNKS_PER_FILE", 40)
    scripted(path, steps=60, image_format="h264", fps=7, buffer_bytes=10_000, flush_seconds=0.001)
    of_each = {
        part: [each.is_keyframe for (track,) in [camera_tracks([part])] for each in stored(track)]
        for part in files_of(path)
    }
    part, keyframes = next((part, them) for part, them in of_each.items() if True in them and not them[0])
    left_out = keyframes.index(True)
    assert f"{left_out} picture" in exported(part)
    assert len(played(part.with_suffix(".mp4"))) == len(keyframes) - left_out
    exported(path)
    assert len(played(path.with_suffix(".mp4"))) == 61


def test_a_folder_of_episodes_gives_a_video_for_each_episode(runs, tmp_path):
    exported(runs / "episodes", "-o", tmp_path)
    recorded = sorted((runs / "episodes").glob("*.rrd"))
    assert len(recorded) > 2
    assert [file.stem for file in sorted(tmp_path.iterdir())] == [file.stem for file in recorded]
    for file in recorded:
        assert len(played(tmp_path / f"{file.stem}.mp4")) == len(read(file)["/pixels"].values)


def test_an_unfinished_file_is_decoded(video, tmp_path):
    path, recorded = video
    unfinished = tmp_path / "run.rrd"
    unfinished.write_bytes(path.read_bytes())
    with unfinished.open("rb+") as file:
        file.truncate(Footer.read(file).start)
    for env, track in enumerate(camera_tracks([unfinished])):
        rows = recorded[f"/env_{env}/pixels"]
        for seen, frame, value in zip(pictures(track), rows.along("frame"), rows.values, strict=True):
            assert seen.frame == frame
            assert np.array_equal(seen.pixels, value)


# --- grids ---


def test_a_grid_holds_the_last_picture_of_each_environment(video, tmp_path):
    path, recorded = video
    exported(path, "--grid", "-o", tmp_path / "grid.mp4")
    rows = [recorded[f"/env_{env}/pixels"] for env in range(2)]
    frames = sorted({frame for each in rows for frame in each.along("frame")})
    shown = played(tmp_path / "grid.mp4")
    assert len(shown) == len(frames)
    held = [torch.zeros(400, 600, 3, dtype=torch.uint8)] * 2
    for frame, (time, seen) in zip(frames, shown, strict=True):
        assert time == pytest.approx((frame - frames[0]) / 50)
        for env, each in enumerate(rows):
            if frame in each.along("frame"):
                held[env] = each.values[each.along("frame").index(frame)]
        assert psnr(seen, torch.cat(held, dim=1)) > 35


def test_a_grid_of_many_environments_is_no_larger_than_a_screen(path):
    colours = torch.tensor([[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]], dtype=torch.uint8)
    observed = colours[:, None, None].expand(4, 1200, 2000, 3)
    record(Scripted(lambda t: {"x": observed}, (4,)), path, 1, image_format="jpeg")
    exported(path, "--grid")
    ((_, shown), _) = played(path.with_suffix(".mp4"))
    assert shown.shape == (1200, 2000, 3)
    assert all(side <= most for side, most in zip(shown.shape, GRID_SIZE, strict=False))
    cells = shown.reshape(2, 600, 2, 1000, 3)[:, 300, :, 500].reshape(4, 3)
    assert (cells.int() - colours.int()).abs().max() < 10


# --- errors ---


def assert_refused(why, *arguments):
    done = export(*arguments)
    assert done.exit_code == 1, done.output
    assert why in done.stderr.replace("\n", " ")


def test_recordings_and_options_that_give_no_video_are_refused(video, path, tmp_path):
    run, _ = video
    assert_refused("nothing.rrd doesn't exist", tmp_path / "nothing.rrd")
    assert_refused("holds no recordings", tmp_path)
    assert_refused("there are no pictures of environment 7, but of 0, 1", run, "--env", 7)
    assert_refused("there are no pictures under 'observation', but under 'pixels'", run, "--key", "observation")
    assert_refused("2 videos can't all be", run, "-o", tmp_path / "one.mp4")
    text = tmp_path / "text.rrd"
    text.write_text("not a recording")
    assert_refused("text.rrd is not a recording", text)
    record(Scripted(lambda t: {"x": torch.zeros(3)}), path)
    assert_refused("run.rrd holds no pictures", path)
    assert list(tmp_path.glob("*.mp4")) == []
    done = CliRunner().invoke(app, ["export", str(run)])
    assert done.exit_code == 2
    assert "--mp4" in done.stderr


def test_a_file_that_is_being_recorded_is_exported_as_it_is(path):
    env = pixel_cartpole().append_transform(RerunRecorder(path))
    env.rollout(3)
    assert "4 pictures" in exported(path)
    env.rollout(3)
    env.close()
    assert "8 pictures" in exported(path, "--overwrite")


def test_existing_files_are_not_overwritten(path):
    scripted(path)
    there = path.with_suffix(".mp4")
    there.write_text("mine")
    assert_refused("run.mp4 exists already", path)
    assert there.read_text() == "mine"
    exported(path, "--overwrite")
    assert len(played(there)) == 6


def test_a_full_disk_leaves_no_partial_video(runs, small_disk):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(508 << 10))
    done = export(runs / "stills.rrd", "--env", 0, "-o", small_disk)
    assert done.exit_code == 1
    assert "not exported: " in done.stderr
    assert "No space left on device" in done.stderr
    assert list(small_disk.iterdir()) == [filler]


@pytest.mark.parametrize("image_format", ["h264", "png"])
def test_an_interrupted_export_leaves_no_partial_video(path, image_format):
    scripted(path, image_format=image_format)
    there = path.with_suffix(".mp4")
    there.write_text("mine")

    def interrupted(items, _):
        for number, item in enumerate(items):
            if number == 3:
                raise KeyboardInterrupt
            yield item

    (video,) = videos_of(path, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        write_video(video, interrupted)
    assert sorted(file.name for file in path.parent.iterdir()) == ["run.mp4", "run.rrd"]
    assert there.read_text() == "mine"


def test_pictures_of_varying_sizes_are_refused(path):
    sizes = [(20, 30, 3), (40, 30, 3)]
    env = Scripted(lambda t: {"x": NonTensorData(np.full(sizes[t % 2], 100, np.uint8))}, specs={"x": NonTensor(())})
    record(env, path, image_format="png", kinds={"x": "image"})
    assert_refused("pictures of (20, 30, 3) and (40, 30, 3) can't be one video", path)
    assert list(path.parent.glob("*.mp4")) == []


def test_an_export_without_pyav_names_the_extra(path):
    scripted(path)
    done = without(["av"], "export", path, "--mp4")
    assert done.returncode == 1
    assert "needs PyAV: install the extra video: pip install 'torchrl-rerun[video]'" in done.stderr.replace("\n", " ")
