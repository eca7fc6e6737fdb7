"""Disks that are full, and files that are removed, truncated or locked: training goes on, and `dump()` raises."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys

import pytest
from torchrl.envs import GymEnv, SerialEnv
from torchrl.envs.utils import step_mdp

from environments import cartpole
from readback import read
from rrd_files import has_footer, is_whole
from torchrl_rerun import RecordingError, RerunRecorder
from torchrl_rerun.recording import missed
from trainings import run

PATH = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
"""PATH with this installation's commands first."""

TRAIN = """
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path, buffer_bytes=100_000, flush_seconds=0.05))
    env.rollout(100, break_when_any_done=False)
    env.transform.dump()
    {fault}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        print("steps", env.rollout({steps}, break_when_any_done=False).shape[1])
    print("warnings", sum("training goes on" in str(w.message) for w in warned))
    for call in (env.transform.dump, env.close):
        try:
            call()
            print("no error")
        except RecordingError as error:
            print("error", error)
    del env
"""


def train(path, fault: str, steps: int = 500) -> tuple[list[str], str]:
    """Train with a fault in the middle. Return the errors of ``dump()`` and ``close()``, and all output."""
    done = run(TRAIN.format(fault=fault, steps=steps), path)
    assert f"steps {steps}" in done.stdout
    return [line for line in done.stdout.splitlines() if "error" in line], done.stdout


FULL_DISK = """
        import contextlib, resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        env = cartpole().append_transform(RerunRecorder(path, buffer_bytes=1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        env.rollout(50, break_when_any_done=False)
"""


def test_recording_goes_on_when_the_disk_has_room_again(path):
    """The README's advice: after `close()` the next file is used."""
    code = """
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        try:
            env.transform.dump()
        except RecordingError:
            with contextlib.suppress(RecordingError):
                env.transform.close()
        env.rollout(20, break_when_any_done=False)
        env.transform.dump()
        env.close()
    """
    run(FULL_DISK + code, path)
    assert len(read(path.with_name("run.part_1.rrd"))["/env_0/reward"].values) == 20
    assert 0 < len(read(path)["/env_0/reward"].values) < 50


def test_dump_raises_after_every_loss(path):
    """`close()` raises once for a loss. `dump()` raises each time, since its promise is broken."""
    code = """
        for call in (env.transform.close, env.transform.close, env.transform.dump, env.transform.dump):
            try:
                call()
                print("nothing")
            except RecordingError as error:
                print("frames were lost" in str(error))
    """
    assert run(FULL_DISK + code, path).stdout.split() == ["True", "nothing", "True", "True"]


def test_a_full_disk_is_an_error_and_earlier_frames_stay_readable(small_disk):
    path = small_disk / "run.rrd"
    errors, said = train(path, "", steps=2500)
    assert "warnings 1" in said
    assert len(errors) == 2
    for error in errors:
        assert "No space left on device" in error
        assert " 0 frames" not in error
    whole = read(path)["/env_0/observation"]  # earlier frames are readable and complete
    assert whole.along("frame") == sorted(whole.along("frame"))
    assert max(whole.along("step")) >= 100


@pytest.mark.parametrize("room", [60_000, 90_000, 110_000])
def test_a_disk_that_is_full_at_the_layout_leaves_a_whole_recording(small_disk, room):
    """The recording is complete without its layout, and has no half of one."""
    path = small_disk / "run.rrd"
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    env.rollout(50, break_when_any_done=False)
    env.transform.dump()
    stuffing = small_disk / "stuffing"
    free = shutil.disk_usage(small_disk).free
    stuffing.write_bytes(bytes(free - room))  # for the footer, and for none, half or nearly all of the layout
    with pytest.warns(RuntimeWarning, match="has no layout"):
        env.close()
    assert sorted(file.name for file in small_disk.iterdir()) == ["run.rrd", "stuffing"]
    assert has_footer(path)
    assert not is_whole(path)
    assert len(read(path)["/env_1/reward"].values) == 50


def test_a_disk_that_is_full_at_the_footer_leaves_a_file_that_repair_completes(small_disk):
    """All frames are in the file, and the advice of the error works."""
    path = small_disk / "the run.rrd"
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    env.rollout(50, break_when_any_done=False)
    env.transform.dump()
    stuffing = small_disk / "stuffing"
    stuffing.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(RecordingError, match=r"all frames are in the run\.rrd, but it has no footer") as raised:
        env.close()
    assert "No space left on device" in str(raised.value)
    assert env.transform.stats()["frames_lost"] == 0
    assert not has_footer(path)
    assert len(read(path)["/env_1/reward"].values) == 50
    stuffing.unlink()
    command = re.search("`(.+)`", str(raised.value))[1]
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PATH": PATH})
    assert is_whole(path)
    assert len(read(path)["/env_1/reward"].values) == 50


def test_a_deleted_folder_is_an_error(tmp_path):
    path = tmp_path / "folder" / "run.rrd"
    errors, _ = train(path, "import shutil; shutil.rmtree(os.path.dirname(path))")
    assert len(errors) == 2
    for error in errors:
        assert "was removed or replaced" in error
        assert " 0 frames" not in error
    assert not path.parent.exists()


@pytest.mark.parametrize("size", [0, 20_000])
def test_a_truncated_file_is_an_error(path, size):
    """Like `> run.rrd`. Later writes go on at their offset, and leave a hole that is not readable."""
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(100, break_when_any_done=False)
    env.transform.dump()
    env.rollout(20, break_when_any_done=False)
    env.transform.dump()
    os.truncate(path, size)
    assert env.rollout(100, break_when_any_done=False).shape == (100,)
    with pytest.raises(
        RecordingError, match=r"[1-9]\d* frames were lost: .* was overwritten while it was being recorded"
    ):
        env.transform.dump()
    env.rollout(100, break_when_any_done=False)
    with pytest.raises(RecordingError, match="overwritten"):
        env.close()


def test_a_replaced_file_is_an_error(path):
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(5)
    env.transform.dump()
    path.unlink()
    path.write_bytes(b"precious")
    env.rollout(5)
    with pytest.raises(RecordingError, match="removed or replaced"):
        env.close()
    assert path.read_bytes() == b"precious"


def test_a_file_that_becomes_read_only_is_written_to_its_end(path):
    """The file is open already."""
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(5)
    env.transform.dump()
    path.chmod(0o444)
    env.rollout(5)
    env.transform.dump()
    env.close()
    assert len(read(path)["/env_0/reward"].values) == 10


def test_a_file_that_becomes_immutable_is_an_error(path):
    """Immutable (`chattr +i`) files can't be written even if they are open."""
    path.touch()
    try:
        subprocess.run(["chattr", "+i", path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file can be made immutable here: {error}")
    finally:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            subprocess.run(["chattr", "-i", path], check=True, capture_output=True)
    path.unlink()
    try:
        errors, said = train(path, "import subprocess; subprocess.run(['chattr', '+i', path], check=True)", steps=1500)
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    assert "warnings 1" in said
    assert len(errors) == 2
    assert all("Operation not permitted" in error for error in errors)
    assert max(read(path)["/env_0/reward"].along("step")) >= 100


def test_a_recording_in_a_folder_that_becomes_read_only_is_whole(path):
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
    env.rollout(5)
    env.transform.dump()
    path.parent.chmod(0o555)
    try:
        env.close()
    finally:
        path.parent.chmod(0o755)
    assert is_whole(path)  # the layout needs no other file
    assert len(read(path)["/env_0/reward"].values) == 5


def test_a_closed_recording_without_a_place_for_its_next_part_loses_frames_and_training_goes_on(path):
    """Training goes on after close() though there is no place for the next part."""
    env = cartpole().append_transform(RerunRecorder(path))
    env.rollout(5)
    env.transform.close()
    shutil.rmtree(path.parent)
    path.parent.touch()  # a file where the folder was
    with pytest.warns(
        RuntimeWarning, match=r"frames were lost: they came after close\(\) of run\.rrd.*training goes on"
    ):
        rollout = env.rollout(5)
    assert len(rollout) == 5
    env.rollout(5)
    with pytest.raises(RecordingError, match="frames were lost: they came after close"):
        env.transform.dump()
    with pytest.raises(RecordingError, match="frames were lost: they came after close"):
        env.close()
    path.parent.unlink()


def assert_counts(recorder, **counts) -> None:
    stats = recorder.stats()
    assert {name: stats[name] for name in counts} == counts


def test_a_closed_recording_goes_on_when_its_next_part_has_a_place(path, monkeypatch):
    """Retries are rare. Lost frames are counted, and later frames have the numbers that they would have had."""
    monkeypatch.setattr(missed, "RETRY_SECONDS", 1000.0)
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path))
    env.rollout(5)
    env.transform.close()
    shutil.rmtree(path.parent)
    path.parent.touch()
    with pytest.warns(RuntimeWarning, match=r"frames were lost: they came after close\(\) of run\.rrd"):
        env.rollout(5)
    path.parent.unlink()
    lost = env.rollout(3)
    assert not path.parent.exists()
    assert_counts(env.transform, frames=16, steps=13, episodes=6, frames_written=6, frames_lost=10)
    with pytest.raises(RecordingError, match="10 frames were lost: "):
        env.transform.dump()
    with pytest.raises(RecordingError, match="10 frames were lost: "):
        env.transform.close()
    env.transform.close()
    monkeypatch.setattr(missed, "RETRY_SECONDS", 0.0)
    with pytest.warns(UserWarning, match=r"recorded in run\.part_1\.rrd"):
        env.rollout(2, auto_reset=False, tensordict=step_mdp(lost[..., -1]))
    env.rollout(4)
    env.close()
    assert_counts(env.transform, frames=23, steps=19, episodes=8, frames_written=13, frames_lost=10)
    part = read(path.with_name("run.part_1.rrd"))
    rows = part["/env_1/observation"]
    assert rows.along("frame") == list(range(16, 23))
    assert rows.along("step") == [14, 15, 15, 16, 17, 18, 19]
    assert rows.along("episode") == [2] * 2 + [3] * 5
    assert rows.along("episode_step") == [4, 5, 0, 1, 2, 3, 4]
    assert [value.isnan().item() for value in part["/env_1/episode_return"].values] == [True] * 2 + [False] * 5


def test_lost_frames_of_another_batch_size_are_counted(path):
    recorder = RerunRecorder(path)
    recorder.log_rollout(SerialEnv(2, cartpole).rollout(5))
    recorder.close()
    shutil.rmtree(path.parent)
    path.parent.touch()
    with pytest.warns(RuntimeWarning, match=r"frames were lost: they came after close\(\) of run\.rrd"):
        recorder.log_rollout(SerialEnv(3, cartpole).rollout(4))
    assert_counts(recorder, frames=11, steps=9, episodes=2, frames_written=6, frames_lost=5)
    with pytest.raises(RecordingError, match="5 frames were lost: "):
        recorder.close()
    path.parent.unlink()
