"""Damaged or hostile sources: an error names the file in one line, and earlier recordings stay."""

from __future__ import annotations

import io
import os
import zipfile

import h5py
import numpy as np
import pytest
import torch
from torchrl.envs import GymEnv
from typer.testing import CliRunner

from interrupts import interrupted
from readback import read
from rebuilt import episodes_in, rollout_in, steps_in
from torchrl_rerun import RecordingError, RerunRecorder, replay
from torchrl_rerun.cli import app
from torchrl_rerun.stored.trajectories import Trajectory

N = 400


def arrays(length=N):
    random = np.random.default_rng(0)
    return {
        "obs": random.standard_normal((length, 8)).astype("f4"),
        "actions": random.standard_normal((length, 2)).astype("f4"),
        "rewards": random.standard_normal(length),
        "dones": np.arange(length) % 100 == 99,
        "infos/level": random.standard_normal(length),
    }


def written(path, **options):
    if path.suffix == ".npz":
        np.savez(path, **arrays())
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays().items():
                file.create_dataset(name, data=values, chunks=(100, *values.shape[1:]), compression="gzip", **options)
    return path


def flipped(path, name):
    """Change a byte in the last part of an array."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".npz":
        values = np.ascontiguousarray(arrays()[name]).tobytes()
        at = content.index(values) + len(values) - 3
    else:
        with h5py.File(path) as file:
            chunk = file[name].id.get_chunk_info(3)
            at = chunk.byte_offset + chunk.size - 3
    content[at] ^= 255
    path.write_bytes(content)


def refused(source, out):
    done = CliRunner().invoke(app, ["replay", str(source), "-o", str(out)])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    [line] = done.stderr.splitlines()
    return line


@pytest.fixture(params=["npz", "hdf5"])
def source(request, tmp_path):
    return written(tmp_path / f"source.{request.param}")


# --- damages ---


@pytest.mark.parametrize("name", ["obs", "actions", "rewards", "dones"])
def test_a_file_with_a_damaged_required_array_is_refused(name, source, path):
    flipped(source, name)
    assert refused(source, path).startswith(f"not replayed: {source}: {name!r} can't be read: ")
    assert os.listdir(path.parent) == [source.name]


def test_a_damaged_optional_array_is_left_out_with_a_warning(source, path):
    flipped(source, "infos/level")
    with pytest.warns(UserWarning, match=rf"{source.name}: left out infos/level \("):
        replayed = replay(source, path)
    assert "infos/level" not in replayed.array_keys
    assert ("infos", "level") not in read(path).keys()
    assert rollout_in(path)["observation"].numpy().tobytes() == arrays()["obs"].tobytes()


def with_header(path, name, shape, payload=b"", **others):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    np.savez(path, **others)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{name}.npy", header.getvalue() + payload)


@pytest.mark.parametrize("shape", [(10**13,), (10**13, 2), (2, 10**13), (-1,), (10**13, 0)], ids=str)
def test_a_header_that_claims_too_much_data_allocates_nothing(shape, path, tmp_path):
    with_header(tmp_path / "huge.npz", "obs", shape)
    assert str(tmp_path / "huge.npz") in refused(tmp_path / "huge.npz", path)
    with_header(tmp_path / "other.npz", "values", shape, **arrays())
    with pytest.warns(UserWarning, match=r"other\.npz: left out values \("):
        replay(tmp_path / "other.npz", path)
    assert [each.length for each in episodes_in(path)] == [100] * 4


def test_a_zip_directory_that_claims_impossible_sizes_is_refused(path, tmp_path):
    """Directory and header agree on 40 GB in a few hundred bytes."""
    with_header(tmp_path / "bomb.npz", "obs", (10**10,))
    content = bytearray((tmp_path / "bomb.npz").read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = (4 * 10**9 + 128).to_bytes(4, "little")
    (tmp_path / "bomb.npz").write_bytes(content)
    assert "bomb.npz" in refused(tmp_path / "bomb.npz", path)


def test_rows_that_were_never_written_are_not_read_as_zeros(path, tmp_path):
    with h5py.File(tmp_path / "hole.hdf5", "w") as file:
        file["obs"], file["actions"] = np.ones((N, 2)), np.ones((N, 1))
        file.create_dataset("rewards", (N,), "f4", chunks=(100,))[:200] = 1
    assert "'rewards' can't be read: 2 of its 4 chunks were never written" in refused(tmp_path / "hole.hdf5", path)
    with h5py.File(tmp_path / "hole.hdf5", "w") as file:
        file["obs"], file["actions"], file["dones"] = np.ones((N, 2)), np.ones((N, 1)), np.arange(N) == N - 1
        file.create_dataset("values", (10**9,), "f4")
    with pytest.warns(
        UserWarning, match=r"left out values \(its header states 4,000,000,000 bytes, of which 0 were written\)"
    ):
        replay(tmp_path / "hole.hdf5", path)


def test_dangling_and_circular_links_are_named(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.arange(50, dtype="f4").tofile("short.bin")
    with h5py.File("links.hdf5", "w") as file:
        for demo in range(2):
            group = file.create_group(f"data/demo_{demo}")
            group["obs/eef"], group["actions"] = np.full((N, 2), demo, "f4"), np.ones((N, 1))
            group["infos/up"] = group
        group["dangling"] = h5py.SoftLink("/nowhere")
        group["elsewhere"] = h5py.ExternalLink("nowhere.hdf5", "/it")
        group.create_dataset("outside", (N,), "f4", external=[("short.bin", 0, 4 * N)])
        group.create_dataset("missing", (N,), "f4", external=[("missing.bin", 0, 4 * N)])
        layout = h5py.VirtualLayout((N,), "f4")
        layout[:] = h5py.VirtualSource("nowhere.hdf5", "it", (N,))
        group.create_virtual_dataset("virtual", layout)
        file["data/best"] = h5py.SoftLink("/data/demo_1")
        file["data/all"] = file["data"]
    with pytest.warns(UserWarning, match="left out") as warned:
        replay("links.hdf5", path)
    said = " ".join(str(each.message) for each in warned)
    for name in "dangling", "elsewhere", "outside", "missing", "virtual", "infos/up":
        assert f"{name} (" in said
    assert [each["observation", "eef"][0, 0].item() for each in steps_in(path).values()] == [0, 1], "each once"


def test_a_file_with_a_dangling_link_for_its_observation_is_refused(path, tmp_path):
    with h5py.File(tmp_path / "links.hdf5", "w") as file:
        file["actions"], file["obs"] = np.ones((N, 1)), h5py.SoftLink("/nowhere")
    assert "'obs' can't be read: a link to /nowhere" in refused(tmp_path / "links.hdf5", path)


def test_episodes_of_no_steps_are_left_out(path, tmp_path):
    with h5py.File(tmp_path / "it.hdf5", "w") as file:
        for demo, length in enumerate([2, 0, 3]):
            group = file.create_group(f"demo_{demo}")
            group["obs"], group["dones"] = np.ones((length + 1, 2)), np.arange(length) == length - 1
            group["actions"] = np.ones((length, 1))
    with pytest.warns(UserWarning, match="left out 1 of 3 episodes, which have no steps"):
        assert replay(tmp_path / "it.hdf5", path).episodes == 2
    np.savez(tmp_path / "none.npz", obs=np.ones((1, 2)), actions=np.ones((0, 1)), dones=np.ones(0, bool))
    assert f"{tmp_path / 'none.npz'} holds no steps" in refused(tmp_path / "none.npz", path.with_name("other.rrd"))


def test_a_file_that_ends_too_early_is_named(source, path):
    content = source.read_bytes()
    for part in 2, 3, 10:
        source.write_bytes(content[: len(content) * (part - 1) // part])
        assert source.name in refused(source, path)


# --- replacing earlier recordings ---


def tree(folder):
    return {each: each.read_bytes() for each in folder.rglob("*") if each.is_file()}


SPLITS = ["run", "episode", "dump"]


def sink(tmp_path, split):
    return tmp_path / "out" / ("run.rrd" if split == "run" else "runs")


@pytest.mark.parametrize("split", SPLITS)
def test_a_damaged_source_leaves_earlier_recordings_unchanged(split, source, tmp_path):
    out = sink(tmp_path, split)
    replay(source, out, split=split)
    (tmp_path / "out" / "note.txt").write_text("mine")
    before = tree(tmp_path / "out")
    flipped(source, "rewards")
    with pytest.raises(ValueError, match=source.name):
        replay(source, out, split=split, overwrite=True)
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("split", SPLITS)
def test_a_damaged_source_leaves_no_files(split, source, tmp_path):
    flipped(source, "rewards")
    with pytest.raises(ValueError, match=source.name):
        replay(source, sink(tmp_path, split), split=split)
    assert os.listdir(tmp_path) == [source.name]


@pytest.mark.parametrize("split", SPLITS)
def test_ctrl_c_leaves_earlier_recordings_unchanged(split, source, tmp_path):
    out = sink(tmp_path, split)
    replay(source, out, split=split)
    before = tree(tmp_path / "out")
    with interrupted(1500, Trajectory._read_steps) as came:
        replay(source, out, split=split, overwrite=True)
    assert came
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("split", SPLITS)
def test_a_whole_source_replaces_all_files_of_an_earlier_run(split, source, tmp_path):
    out = sink(tmp_path, split)
    replay(source, out, split=split)
    names = sorted(os.listdir(tmp_path / "out"))
    torch.save(GymEnv("CartPole-v1").rollout(3), tmp_path / "short.pt")
    with pytest.raises(FileExistsError):
        replay(tmp_path / "short.pt", out, split=split)
    replayed = replay(tmp_path / "short.pt", out, split=split, overwrite=True)
    assert [each.length for each in episodes_in(out)] == [3]
    assert sorted(os.listdir(tmp_path / "out")) == names, "nothing is left aside"
    assert replayed.path == (out / "dump_000000.rrd" if split == "dump" else out)
    assert replayed.path.exists()


def test_parts_of_a_replaced_recording_are_removed(source, path):
    replay(source, path)
    part = path.with_name("run.part_1.rrd")
    part.write_bytes(path.read_bytes())
    replay(source, path, overwrite=True)
    assert not part.exists()


def test_a_recording_may_be_replaced_by_its_own_replay(source, path):
    replay(source, path)
    replay(path, path, overwrite=True)
    assert rollout_in(path)["observation"].numpy().tobytes() == arrays()["obs"].tobytes()


def test_a_file_of_another_recorder_is_not_replaced(source, path, tmp_path):
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
    env.rollout(3)
    assert "is being written by another recorder" in refused_to_overwrite(source, path)
    env.close()
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(tmp_path / "runs", split="episode"))
    env.rollout(3)
    with pytest.raises(FileExistsError, match="is being written by another recorder"):
        replay(source, tmp_path / "runs", split="episode", overwrite=True)
    env.close()
    assert [each.length for each in episodes_in(path)] == [3]


def refused_to_overwrite(source, out):
    done = CliRunner().invoke(app, ["replay", str(source), "-o", str(out), "--overwrite"])
    assert done.exit_code == 1
    return done.stderr


def test_a_full_disk_leaves_earlier_recordings_unchanged(source, path, monkeypatch):
    import resource
    import signal

    replay(source, path)
    before = path.read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 4, limits[1]))
    try:
        with pytest.raises(RecordingError):
            replay(source, path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == sorted([path.name, source.name])
