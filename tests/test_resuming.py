"""Runs that are resumed after a restart, by their recordings."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import textwrap
import warnings

import pytest
import torch
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymWrapper, ParallelEnv, RewardSum, SerialEnv

from environments import Count, Lengths
from programs import python
from readback import hold_the_same, read, read_folder
from rebuilt import files_of, rollout_in
from torchrl_rerun import KeepLast, KeepWorst, RerunRecorder, list_episodes, load
from torchrl_rerun.recording.session import shared_paths


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith("black_box"))


def first_steps(place):
    """Return the first step of each episode, by environment and episode, in the order of file names."""
    found = {}
    for file in files_of(place):
        recorded = read(file)
        by_episode = recorded.schema["split"] == "episode"
        for env in [recorded.episode["env"]] if by_episode else recorded.schema["envs"]:
            for times in recorded["/observation" if by_episode else f"/env_{env}/observation"].times:
                at = (env, times["episode"])
                found[at] = min(times["step"], found.get(at, times["step"]))
    return found


def make(folder, **arguments):
    return GymWrapper(Lengths()).append_transform(RerunRecorder(folder, **arguments))


@pytest.mark.parametrize("split", ["run", "dump", "episode"])
def test_numbers_of_episodes_and_steps_go_on(folder, split):
    env = make(folder, split=split)
    env.rollout(6, break_when_any_done=False)
    env.close()
    before = names(folder)
    env = make(folder, split=split, resume=True)
    env.rollout(3)
    env.close()
    new = [name for name in names(folder) if name not in before]
    assert (
        new
        == {
            "run": ["run.resumed_1.rrd"],
            "dump": ["dump_000001.rrd"],
            "episode": ["env_0_episode_000003.rrd"],
        }[split]
    )
    recorded = read(folder / new[0])
    rows = recorded["/observation" if split == "episode" else "/env_0/observation"]
    assert rows.along("step") == [6, 7, 8, 9]
    assert rows.along("episode") == [3] * 4
    assert rows.along("frame") == ([9, 10, 11, 12] if split == "run" else [0, 1, 2, 3])


@pytest.mark.parametrize("sink", ["run.rrd", "run"])
@pytest.mark.parametrize("split", ["run", "episode"])
def test_resume_begins_a_run_in_an_empty_place(tmp_path, sink, split):
    if (sink, split) == ("run.rrd", "episode"):
        return
    env = make(tmp_path / sink, split=split, resume=True)
    env.rollout(2)
    env.close()
    assert first_steps(tmp_path / sink) == {(0, 0): 0}


def test_a_run_may_be_resumed_several_times(folder):
    for _ in range(3):
        env = make(folder, resume=True)
        env.rollout(2, break_when_any_done=False)
        env.close()
    assert names(folder) == ["run.resumed_1.rrd", "run.resumed_2.rrd", "run.rrd"]
    assert first_steps(folder) == {(0, 0): 0, (0, 1): 2, (0, 2): 4}


def test_a_resumed_file_goes_on_in_a_new_file(path):
    env = make(path)
    env.rollout(2)
    env.close()
    env = make(path, resume=True)
    env.rollout(1)
    env.close()
    assert read(path.with_name("run.resumed_1.rrd"))["/env_0/observation"].along("step") == [2, 3]


def test_a_resumed_run_is_one_recording_and_one_rollout(tmp_path):
    rollouts = []
    for _ in range(3):
        env = SerialEnv(2, [lambda shift=shift: GymWrapper(Lengths(shift)) for shift in range(2)])
        env = env.append_transform(RerunRecorder(tmp_path / "run.rrd", resume=True))
        rollouts.append(env.rollout(5, break_when_any_done=False))
        env.close()
    assert hold_the_same(rollout_in(tmp_path / "run.rrd"), torch.cat(rollouts, -1))
    recordings = [read(path) for path in tmp_path.glob("run*.rrd")]
    assert len(recordings) == 3
    assert {each.schema["split"] for each in recordings} == {"run"}
    assert len({each.recording_id for each in recordings}) == 1


@pytest.mark.parametrize("is_dumped", [False, True])
@pytest.mark.parametrize("split", ["run", "dump", "episode"])
def test_a_file_that_ends_before_its_first_step_takes_no_key_from_the_run(tmp_path, split, is_dumped):
    """It has neither rewards nor actions."""
    place = tmp_path / "run.rrd" if split == "run" else tmp_path / "run"
    env = SerialEnv(2, lambda: Count(3)).append_transform(RerunRecorder(place, split=split))
    rollout = env.rollout(7, break_when_any_done=False)
    env.close()
    before = load(place)
    env = SerialEnv(2, lambda: Count(3)).append_transform(RerunRecorder(place, split=split, resume=True))
    env.reset()
    if is_dumped:
        env.transform.dump()
        check_that_all_is_there(place, before, rollout)
    env.close()
    check_that_all_is_there(place, before, rollout)


def check_that_all_is_there(place, before, rollout):
    loaded = load(place)
    assert loaded.keys() == before.keys()
    keys = ["observation", "reward", "action"]
    assert torch.equal(loaded.rollout()["next", "reward"], rollout["next", "reward"])
    assert torch.equal(loaded.rollout(keys)["action"], rollout["action"])
    assert len(loaded.dataset(keys=keys)) == len(loaded.dataset()) == 14
    assert len(loaded.replay_buffer(batch_size=2, slice_len=2, keys=keys)) == 14


def test_overwriting_removes_the_files_of_resumed_runs(tmp_path):
    for arguments in ({}, {"resume": True}, {"resume": True}, {"overwrite": True}):
        env = make(tmp_path / "run.rrd", **arguments)
        env.rollout(2)
        env.close()
    assert names(tmp_path) == ["run.rrd"]


@pytest.mark.parametrize(
    ("name", "split"), [("run.rrd", "run"), ("runs", "run"), ("runs", "dump"), ("runs", "episode")]
)
def test_an_earlier_run_is_refused_when_the_recorder_is_made(tmp_path, name, split):
    sink = tmp_path / "there" / name
    env = make(sink, split=split)
    env.rollout(2)
    env.close()
    before = {path: path.read_bytes() for path in sink.parent.rglob("*.rrd")}
    with pytest.raises(FileExistsError, match=r"overwrite=True"):
        RerunRecorder(sink, split=split)
    RerunRecorder(sink, split=split, overwrite=True)
    RerunRecorder(sink, split=split, resume=True)
    assert {path: path.read_bytes() for path in sink.parent.rglob("*.rrd")} == before


@pytest.mark.parametrize("split", ["run", "dump", "episode"])
def test_recorders_that_share_a_folder_are_accepted(folder, split):
    """Copies, and recorders that workers make after others have recorded."""
    env = make(folder, split=split)
    env.rollout(20)
    env.transform.dump()
    copied = pickle.loads(pickle.dumps(env.transform))
    beside = GymWrapper(Lengths()).append_transform(copied)
    beside.rollout(20)
    beside.close()
    env.close()
    assert len(list(folder.rglob("*.rrd"))) > 1
    inside = folder.with_name("inside")
    for number in range(2):  # like a worker of a ParallelEnv after another one has recorded
        shared_paths.add(str(inside / "run.rrd" if split == "run" else inside))
        env = make(inside, split=split)
        env.rollout(20)
        env.close()
        assert len(list(inside.rglob("*worker*"))) == number + 1


def test_a_run_that_is_being_recorded_is_not_resumed(folder):
    env = make(folder)
    env.rollout(2)
    env.transform.dump()
    again = make(folder, resume=True)
    with pytest.raises(FileExistsError, match=r"run\.rrd is being written by another recorder"):
        again.rollout(1)
    assert names(folder) == ["run.rrd"]
    env.close()


def test_a_damaged_file_is_left_out_with_a_warning(folder):
    env = make(folder)
    env.rollout(2)
    env.close()
    (folder / "run.part_1.rrd").write_bytes(b"no recording")
    env = make(folder, resume=True)
    with pytest.warns(RuntimeWarning, match=r"run\.part_1\.rrd"):
        env.rollout(1)
    env.close()
    assert read(folder / "run.resumed_1.rrd")["/env_0/observation"].along("step") == [2, 3]


def test_resume_excludes_overwrite_and_needs_a_file(folder):
    with pytest.raises(ValueError, match="contradict one another"):
        RerunRecorder(folder, overwrite=True, resume=True)
    with pytest.raises(ValueError, match="file or folder"):
        RerunRecorder("rerun+http://127.0.0.1:9/proxy", resume=True)
    with pytest.raises(TypeError, match="resume"):
        RerunRecorder(folder, resume="yes")


def test_numbers_of_recorded_environments_of_a_batch_go_on(folder):
    def batch(**arguments):
        return SerialEnv(3, [lambda shift=shift: GymWrapper(Lengths(shift)) for shift in range(3)]).append_transform(
            RerunRecorder(folder, logged_envs=[0, 2], **arguments)
        )

    env = batch()
    env.rollout(7, break_when_any_done=False)
    env.close()
    first = read(folder / "run.rrd")
    env = batch(resume=True)
    env.rollout(1)
    env.close()
    second = read(folder / "run.resumed_1.rrd")
    for i in (0, 2):
        last = first[f"/env_{i}/observation"].along("episode")[-1]
        assert second[f"/env_{i}/observation"].along("episode") == [last + 1] * 2


def test_files_of_workers_are_resumed(folder):
    for resume in (False, True):
        env = ParallelEnv(2, lambda resume=resume: make(folder, resume=resume))
        env.rollout(4, break_when_any_done=False)
        env.close()
    assert "run.worker_1.resumed_1.rrd" in names(folder)
    assert read(folder / "run.worker_1.resumed_1.rrd")["/env_1/observation"].along("step") == [4, 5, 6, 7, 7, 8]


@pytest.mark.parametrize("split", ["run", "episode", "dump"])
def test_files_of_environments_in_series_are_resumed(folder, split):
    """Each environment resumes its own file."""
    place = folder / "run.rrd" if split == "run" else folder / "runs"
    for resume, envs in ((False, 2), (True, 2), (True, 3)):
        program(f"inside {envs}", place, split, resume)
    wanted = {(env, episode): 4 * (episode // 2) + 3 * (episode % 2) for env in range(2) for episode in range(6)}
    assert first_steps(place) == wanted | {(2, 0): 0, (2, 1): 3}


@pytest.mark.parametrize("split", ["run", "episode", "dump"])
@pytest.mark.parametrize(("before", "then"), [("inside 2", "outside 2"), ("outside 2", "inside 2")])
def test_resuming_with_recorders_at_another_place_is_refused(folder, split, before, then):
    place = folder / "run.rrd" if split == "run" else folder / "runs"
    program(before, place, split, False)
    there = sorted(folder.rglob("*"))
    with pytest.raises(FileExistsError, match=r"was recorded (inside|outside of) the environments of a batch"):
        program(then, place, split, True)
    assert sorted(folder.rglob("*")) == there


def program(what, place, split, resume):
    """Record, in each environment, an episode of 3 steps, and an episode that is interrupted after one step."""
    where, envs = what.split()

    def inside():
        return Count(3).append_transform(RerunRecorder(place, split=split, resume=resume))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if where == "inside":
            env = SerialEnv(int(envs), inside)
        else:
            env = SerialEnv(int(envs), lambda: Count(3))
            env = env.append_transform(RerunRecorder(place, split=split, resume=resume))
        try:
            env.rollout(4, break_when_any_done=False)
        finally:
            env.close()
            shared_paths.clear()  # like in another process


def test_keep_policies_are_resumed(folder):
    """A policy knows the earlier run by its folder."""
    keep = KeepLast(2) | KeepWorst(1)
    env = make(folder, split="episode", keep=keep)
    env.rollout(17, break_when_any_done=False)  # episodes of 3, 1, 6, 2, 4 steps, and an interrupted one
    env.close()
    assert [id_[1] for id_ in read_folder(folder)] == [1, 4, 5]
    env = make(folder, split="episode", keep=keep, resume=True)
    env.rollout(4, break_when_any_done=False)
    env.close()
    assert [id_[1] for id_ in read_folder(folder)] == [1, 6, 7]


@pytest.mark.parametrize("split", ["run", "episode"])
def test_numbers_after_a_crash_follow_the_recordings(folder, split):
    script = """
        import os, sys
        sys.path.insert(0, "tests")
        from environments import Lengths
        from torchrl.envs import GymWrapper
        from torchrl_rerun import RerunRecorder
        if __name__ == "__main__":
            recorder = RerunRecorder(sys.argv[1], split=sys.argv[2], resume=True)
            env = GymWrapper(Lengths()).append_transform(recorder)
            env.rollout(10, break_when_any_done=False)
            env.transform.dump()
            if sys.argv[3] == "crash":
                os.kill(os.getpid(), 9)
            env.close()
    """
    command = [*python(), "-c", textwrap.dedent(script), folder, split]
    assert subprocess.run([*command, "crash"], check=False).returncode == -9
    crashed = names(folder)
    subprocess.run([*command, "close"], check=True)
    assert set(crashed) < set(names(folder))
    begin = dict(sorted(first_steps(folder).items()))
    assert list(begin) == [(0, episode) for episode in range(len(begin))]
    assert list(begin.values())[2:5] == [4, 10, 13]


def test_repeated_episode_numbers_are_separate_recordings(folder):
    """Another program may have recorded to the folder meanwhile, with the run id of the user."""
    env = make(folder, split="episode", recording_id="mine")
    env.rollout(4, break_when_any_done=False)
    env.close()
    os.rename(folder / "env_0_episode_000001.rrd", folder / "env_0_episode_000002.rrd")
    env = make(folder, split="episode", recording_id="mine", resume=True)
    env.rollout(3)
    env.close()
    assert names(folder)[-2:] == ["env_0_episode_000002.rrd", "env_0_episode_000002_2.rrd"]
    found = list_episodes(folder).episodes
    assert [each.recording_id for each in found][-2:] == ["e0_ep000001_mine", "e0_ep000002_2_mine"]
    assert [len(each.paths) for each in found] == [1] * 3


# --- checkpoints ---


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_checkpoints_have_no_state_of_a_recorder(folder):
    def plain():
        return GymWrapper(Lengths()).append_transform(RewardSum())

    env = plain().append_transform(RerunRecorder(folder))
    env.rollout(2)
    assert (
        env.state_dict().keys()
        == plain().append_transform(RewardSum()).state_dict().keys() | plain().state_dict().keys()
    )
    plain().load_state_dict(through_a_file(env.state_dict()))
    env.load_state_dict(plain().state_dict())
    env.close()


def test_checkpoints_of_version_0_1_0_load(folder):
    env = make(folder)
    env.rollout(2)
    old = {
        "transforms.0.steps": torch.tensor(7),
        "transforms.0.episodes": torch.tensor([3]),
        "transforms.0.sink": torch.tensor(list(b"/tmp/run.rrd"), dtype=torch.uint8),
    }
    alone = RerunRecorder(folder.with_name("alone.rrd"))
    alone.load_state_dict({key.removeprefix("transforms.0."): value for key, value in old.items()})
    env.append_transform(RewardSum())
    env.load_state_dict(old)
    env.rollout(1)
    env.close()


def test_checkpoints_of_replay_buffers_have_no_state_of_a_recorder(path):
    def buffer(**arguments):
        return TensorDictReplayBuffer(storage=LazyTensorStorage(10), batch_size=2, **arguments)

    recorded = buffer(transform=RerunRecorder(path))
    recorded.extend(GymWrapper(Lengths()).rollout(2))
    recorded.sample()
    buffer().load_state_dict(recorded.state_dict())
