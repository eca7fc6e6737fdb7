"""split="dump": a recording for the frames between two dumps."""

from __future__ import annotations

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, GymWrapper, ParallelEnv, SerialEnv

from environments import Lengths
from readback import read
from torchrl_rerun import RerunRecorder, load


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith("black_box"))


def test_each_dump_is_a_recording(folder):
    recorder = RerunRecorder(folder, split="dump")
    env = GymWrapper(Lengths()).append_transform(recorder)
    for _ in range(3):
        env.rollout(100)
        recorder.dump()
    recorder.dump()  # no frame has come
    env.rollout(100)
    env.close()
    assert names(folder) == [f"dump_00000{i}.rrd" for i in range(4)]
    recorded = [read(folder / name) for name in names(folder)]
    assert len({each.recording_id for each in recorded}) == 4
    for number, each in enumerate(recorded):
        rows = each["/env_0/observation"]
        assert set(rows.along("episode")) == {number}
        assert rows.along("frame") == list(range(len(rows.values)))
        assert rows.along("sim_time") == [frame * 10**8 for frame in rows.along("frame")]
        assert [value.item() for value in each["/env_0/episode_return"].values] == rows.along("episode_step")
    steps = [step for each in recorded for step in each["/env_0/observation"].along("step")]
    assert steps == [0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 10, 11, 12]


def test_a_dump_is_named_by_number_suffix_and_step(folder):
    recorder = RerunRecorder(folder, split="dump")
    env = GymWrapper(Lengths()).append_transform(recorder)
    for arguments in ({"suffix": "eval"}, {"step": 20}, {"suffix": "eval", "step": 30}, {}):
        env.rollout(2)
        recorder.dump(**arguments)
    with pytest.raises(ValueError, match="suffix='a/b' can't be part of a file's name"):
        recorder.dump("a/b")
    assert names(folder) == [
        "dump_000000_eval.rrd",
        "dump_000001_step_20.rrd",
        "dump_000002_eval.rrd",
        "dump_000003.rrd",
    ]


def test_a_dump_in_the_middle_of_an_episode_ends_the_recording_and_not_the_episode(folder):
    recorder = RerunRecorder(folder, split="dump")
    env = GymWrapper(Lengths()).append_transform(recorder)
    tensordict = env.reset()
    actions = []
    for _ in range(3):
        tensordict = env.rand_action(tensordict)
        actions.append(tensordict["action"].clone())
        tensordict = env.step_mdp(env.step(tensordict))
        recorder.dump()
    env.close()
    first, second, third = (read(folder / name) for name in names(folder))
    assert first["/env_0/observation"].along("episode_step") == [0, 1]
    assert third["/env_0/observation"].along("episode_step") == [3]
    assert third["/env_0/episode_return"].values[0].item() == 3
    # The action belongs to the last frame of the recording before.
    assert second["/env_0/action"].along("frame") == [-1]
    assert second["/env_0/action"].along("episode_step") == [1]
    for each, action in zip((first, second, third), actions, strict=True):
        assert torch.equal(each["/env_0/action"].values[0], action)


def test_a_dump_of_a_batch_holds_its_pictures(folder):
    recorder = RerunRecorder(folder, split="dump", kinds={"observation": "tensor"})
    env = SerialEnv(3, lambda: GymWrapper(Lengths())).append_transform(recorder)
    for _ in range(2):
        env.rollout(4, break_when_any_done=False)
        recorder.dump()
        assert recorder.stats()["frames_waiting"] == 0
    assert recorder.stats()["frames"] == recorder.stats()["frames_written"] == 11  # resets included
    env.close()
    assert [len(read(folder / name)["/env_2/observation"].values) for name in names(folder)] == [6, 5]


def test_each_worker_dumps_to_its_own_folder(folder):
    env = ParallelEnv(2, lambda: GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="dump")))
    env.rollout(6, break_when_any_done=False)
    env.close()
    assert names(folder) == ["worker_0", "worker_1"]
    assert names(folder / "worker_1") == ["dump_000000.rrd"]


def test_a_folder_with_dumps_is_not_overwritten(folder):
    def make(**arguments):
        return GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="dump", **arguments))

    env = make()
    for _ in range(3):
        env.rollout(2)
        env.transform.dump()
    env.close()
    with pytest.raises(FileExistsError, match="holds recordings of an earlier run"):
        make()
    assert len(names(folder)) == 3
    env = make(overwrite=True)
    env.reset()
    assert len([name for name in names(folder) if not name.startswith(".")]) == 3  # no frame has come yet
    env.rollout(2)
    env.close()
    assert names(folder) == ["dump_000000.rrd"]


def test_a_folder_for_whole_runs_gets_a_file(folder):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder))
    env.rollout(2)
    env.close()
    assert names(folder) == ["run.rrd"]
    with pytest.raises(FileExistsError, match=r"run.rrd exists"):
        RerunRecorder(folder)


def test_dumps_of_a_collector_are_a_file_for_each_batch(folder):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="dump"))
    recorder = env.transform
    collector = Collector(env, frames_per_batch=4, total_frames=12)
    for number, _ in enumerate(collector):
        recorder.dump(suffix=f"batch_{number}")
    collector.shutdown()
    # When its frames are spent the collector closes the environment before it gives the last batch.
    assert names(folder) == ["dump_000000_batch_0.rrd", "dump_000001_batch_1.rrd", "dump_000002.rrd"]


def test_any_value_may_be_a_suffix(path):
    """Code that was written for ``VideoRecorder`` may pass any suffix."""
    recorder = RerunRecorder(path)
    env = GymWrapper(Lengths()).append_transform(recorder)
    env.rollout(2)
    recorder.dump("eval/0")
    env.close()
    assert len(read(path)["/env_0/observation"].values) == 3


def test_a_number_makes_recordings_of_so_many_frames(tmp_path):
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(tmp_path / "run", split=10))
    env.set_seed(0)
    rollout = env.rollout(35, break_when_any_done=False)
    env.close()
    files = sorted((tmp_path / "run").glob("*.rrd"))
    counts = [len(read(file)["/env_0/observation"].values) for file in files]
    assert counts[:-1] == [10] * (len(files) - 1)
    assert sum(counts) == 35 + 1 + int(rollout["next", "done"].sum())
    found = load(tmp_path / "run").rollout(["observation", "action", "reward"])
    assert torch.equal(found["next", "observation"], rollout["next", "observation"])


def test_a_number_makes_recordings_of_so_many_frames_of_rollouts(tmp_path):
    rollout = GymEnv("CartPole-v1").rollout(25, break_when_any_done=False)
    recorder = RerunRecorder(tmp_path / "run", split=10)
    recorder.log_rollout(rollout)
    recorder.close()
    counts = [len(read(file)["/env_0/observation"].values) for file in sorted((tmp_path / "run").glob("*.rrd"))]
    assert counts[:2] == [10, 10]
    assert torch.equal(load(tmp_path / "run").rollout(["action"])["action"], rollout["action"])


@pytest.mark.parametrize(("split", "error"), [(0, ValueError), (True, ValueError), (2.5, ValueError)])
def test_no_other_number_is_a_split(tmp_path, split, error):
    with pytest.raises(error, match="split="):
        RerunRecorder(tmp_path / "run", split=split)
