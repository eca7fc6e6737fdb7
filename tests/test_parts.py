"""Long recordings: several complete files, which together are one recording."""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings

import pytest
import torch
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv, SerialEnv

from readback import Recorded, read
from reference import of_rollout
from torchrl_rerun import RecordingError, RerunRecorder
from torchrl_rerun.writing import file as sinks

OBSERVED = ["observation", "done", "terminated", "truncated"]

cartpole = functools.partial(GymEnv, "CartPole-v1")


@pytest.fixture
def short_files(monkeypatch):
    """Make files full after a few blocks."""
    monkeypatch.setattr(sinks, "CHUNKS_PER_FILE", 100)


def parts(path):
    return [path, *sorted(path.parent.glob(f"{path.stem}.part_*.rrd"), key=lambda part: int(part.stem.split("_")[-1]))]


def together(files) -> Recorded:
    """Return several files of a recording as one."""
    first, *others = map(read, files)
    for other in others:
        assert other.recording_id == first.recording_id
        for entity, rows in other.entities.items():
            first[entity].times += rows.times
            first[entity].values += rows.values
    return first


def test_a_long_recording_is_several_complete_files(path, short_files):
    """No row is lost, doubled or moved between files. Each file has a schema, colours, a footer and a layout."""
    recorder = RerunRecorder(path, buffer_bytes=2_000, names={"observation": list("abcd")})
    env = SerialEnv(2, cartpole).append_transform(recorder)
    rollout = env.rollout(500, break_when_any_done=False)
    dumped = env.transform.stats()
    env.close()
    files = parts(path)
    assert len(files) > 3
    of_rollout(rollout, observed=OBSERVED).compare(together(files))
    last = -1
    for file in files:
        recorded = read(file)
        assert recorded.schema == read(path).schema
        assert recorded.static["/env_1/observation"] == read(path).static["/env_1/observation"]
        frames = recorded["/env_0/reward"].along("frame")
        assert frames[0] > last
        last = frames[-1]
        assert len(list(RrdReader(file).blueprints())) == 1
        command = [sys.executable, "-m", "rerun_cli", "rrd", "verify", file]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    assert dumped["bytes_written"] > 0
    assert dumped["frames"] == dumped["frames_written"] + dumped["frames_waiting"]


def test_dumped_frames_are_in_the_files(path, short_files):
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path, buffer_bytes=2_000))
    sizes = []
    for count in range(1, 6):
        env.rollout(60, break_when_any_done=False)
        env.transform.dump()
        assert len(together(parts(path))["/env_0/reward"].values) == 60 * count
        sizes.append(env.transform.stats()["bytes_written"])
    assert sizes == sorted(sizes)
    assert sizes[-1] == sum(file.stat().st_size for file in parts(path))
    env.close()


def test_a_finished_file_may_be_moved_away(path, short_files, tmp_path):
    """For example to a larger disk, while the run goes on."""
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path, buffer_bytes=2_000))
    rollout = env.rollout(200, break_when_any_done=False)
    env.transform.dump()
    assert len(parts(path)) > 1
    moved = path.rename(tmp_path / "archived.rrd")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        env.rollout(100, break_when_any_done=False)
        env.transform.dump()
        env.close()
    assert not path.exists()
    rows = [len(read(file)["/env_0/reward"].values) for file in (moved, *parts(path)[1:])]
    assert sum(rows) == rollout.shape[1] + 100


def test_frames_without_a_place_for_the_next_file_are_lost_and_counted(path, short_files):
    """Training goes on, and the file before is complete."""
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path, buffer_bytes=2_000))
    env.rollout(5, break_when_any_done=False)
    env.transform.dump()
    for number in range(1, 3):
        path.with_name(f"{path.stem}.part_{number}.rrd").write_text("not ours")
    path.with_name(f"{path.stem}.part_3.rrd").symlink_to(
        f"{path.stem}.part_3.rrd"
    )  # a circular link: the file can't be made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env.rollout(200, break_when_any_done=False)
        with pytest.raises(RecordingError, match=r"[1-9][0-9]* frames were lost"):
            env.transform.dump()
        stats = env.transform.stats()
        with pytest.raises(RecordingError):
            env.close()
    assert 0 < stats["frames_lost"] < stats["frames"]
    recorded = read(path)
    assert stats["frames_written"] <= len({f for env in range(2) for f in recorded[f"/env_{env}/done"].along("frame")})
    command = [sys.executable, "-m", "rerun_cli", "rrd", "verify", path]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    for number in range(1, 3):
        assert path.with_name(f"{path.stem}.part_{number}.rrd").read_text() == "not ours"


def test_recording_after_close_goes_on_in_the_next_file(path, short_files):
    """Frames after `close()` go into the next free file, like after a full file."""
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path, buffer_bytes=2_000))
    env.rollout(100, break_when_any_done=False)
    env.transform.close()
    before = parts(path)
    with pytest.warns(UserWarning, match=f"{before[-1].name} was closed; .*part_{len(before)}.rrd"):
        env.rollout(100, break_when_any_done=False)
    env.close()
    assert len(parts(path)) > len(before) > 1
    assert len(together(parts(path))["/env_0/reward"].values) == 200


@pytest.mark.parametrize("recording_id", [None, "mine"])
def test_recording_with_another_batch_size_is_another_recording(path, recording_id):
    """Frames begin at 0 again, also if the batch size returns to the first one."""
    recorder = RerunRecorder(path, recording_id=recording_id)
    files = [path, path.with_name("run.part_1.rrd"), path.with_name("run.part_2.rrd"), path.with_name("run.part_3.rrd")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for count in (2, 3, 2, 2):
            recorder.log_rollout(SerialEnv(count, cartpole).rollout(5))
            recorder.close()
    recorded = [read(file) for file in files]
    firsts = [each["/env_1/observation"].along("frame")[0] for each in recorded]
    assert firsts == [0, 0, 0, 6]
    first, second, third, fourth = (each.recording_id for each in recorded)
    if recording_id is None:
        assert len({first, second, third}) == 3
        assert fourth == third
    else:
        assert {first, second, third, fourth} == {recording_id}


def test_workers_have_parts_of_their_own(path, short_files):
    """Several recorders on one path in one process stand for workers: `run.worker_1.part_1.rrd`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = SerialEnv(2, lambda: cartpole().append_transform(RerunRecorder(path, buffer_bytes=1_000)))
        env.rollout(200, break_when_any_done=False)
        env.close()
    for worker in range(2):
        files = parts(path.with_name(f"{path.stem}.worker_{worker}.rrd"))
        assert len(files) > 1
        assert len(together(files)[f"/env_{worker}/reward"].values) == 200


@pytest.fixture
def older(path, short_files):
    """Record several files at the path: with a single recorder, and with two workers."""

    def record(path):
        env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path, buffer_bytes=2_000))
        env.rollout(200, break_when_any_done=False)
        env.close()
        return parts(path)

    return [file for name in ("run", "run.worker_0", "run.worker_1") for file in record(path.with_name(f"{name}.rrd"))]


def test_parts_of_a_replaced_recording_are_removed(path, older):
    """Otherwise they would count as parts of the new recording."""
    others = [path.with_name(name) for name in ("run.part_of_it.rrd", "run.part_1.txt", "run.part_1.part_2.rrd")]
    for other in others:
        other.write_text("precious")
    of_workers = [file for file in older if "worker" in file.name]
    env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path, overwrite=True))
    env.reset()
    assert all(file.exists() for file in older), "nothing is lost before it is known that the new one begins"
    env.rollout(5)
    there = [file for file in path.parent.iterdir() if not file.name.endswith("black_box")]
    assert sorted(there) == sorted([path, *others, *of_workers])
    env.close()
    assert len(read(path)["/env_0/reward"].values) == 5


def test_parts_of_a_replaced_recording_of_a_worker_are_removed(path, older):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = SerialEnv(1, lambda: cartpole().append_transform(RerunRecorder(path, overwrite=True)))
        env.rollout(5)
        env.close()
    new = path.with_name("run.worker_0.rrd")
    assert sorted(path.parent.iterdir()) == sorted([new, *(file for file in older if "worker_0" not in file.name)])


def test_parts_stay_if_the_recording_is_not_replaced(path, older):
    before = {file: file.read_bytes() for file in older}
    env = cartpole().append_transform(RerunRecorder(path, overwrite=True, in_keys=["obs"]))
    with pytest.raises(KeyError, match="obs"):
        env.rollout(5)
    env.close()
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_part_that_is_being_recorded_stays(path):
    """The first file is closed, and may be replaced."""
    first = cartpole().append_transform(RerunRecorder(path))
    first.rollout(5)
    first.transform.close()
    with pytest.warns(UserWarning, match=r"run\.part_1\.rrd"):
        first.rollout(5)
    second = cartpole().append_transform(RerunRecorder(path, overwrite=True))
    second.rollout(4)
    first.close()
    second.close()
    part = path.with_name("run.part_1.rrd")
    assert [len(read(file)["/env_0/reward"].values) for file in (path, part)] == [4, 5]


def test_frames_of_other_environments_open_no_part(path):
    """A part would be empty if only environments that are not recorded are reset and stepped after `close()`."""
    recorder = RerunRecorder(path, logged_envs=[1])
    env = SerialEnv(2, cartpole).append_transform(recorder)
    td = env.rollout(3)[:, -1]["next"]
    recorder.close()
    other = torch.tensor([True, False])
    td = env.reset(td.set("_reset", other[:, None]))
    td = env.rand_action(td).set("_step", other)
    env.step(td)
    assert [file.name for file in path.parent.iterdir()] == ["run.rrd"]
    with pytest.warns(UserWarning, match="part_1"):
        env.rollout(2)
    env.close()
    assert [times["step"] for times in read(parts(path)[1])["/env_1/observation"].times] == [4, 5, 6]
