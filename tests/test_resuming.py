"""A run that goes on after a restart: the recorder's counters are part of the environment's state."""

from __future__ import annotations

import io
import subprocess
import textwrap

import pytest
import torch
from torchrl.envs import GymWrapper, ParallelEnv, RewardSum, SerialEnv

from programs import python
from readback import read, read_folder
from test_selection import Lengths
from torchrl_rerun import KeepLast, KeepWorst, RerunRecorder, list_episodes


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def make(folder, **arguments):
    return GymWrapper(Lengths()).append_transform(RerunRecorder(folder, **arguments))


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("split", ["run", "dump", "episode"])
def test_numbers_go_on(folder, split):
    env = make(folder, split=split)
    env.rollout(6, break_when_any_done=False)
    state = through_a_file(env.state_dict())
    env.close()
    before = names(folder)
    env = make(folder, split=split)
    env.load_state_dict(state)
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
    assert rows.along("frame") == [0, 1, 2, 3]


def test_without_a_state_a_run_is_not_resumed(folder):
    env = make(folder)
    env.rollout(2)
    env.close()
    with pytest.raises(FileExistsError):
        make(folder).rollout(1)


def test_after_the_first_frames(folder):
    """A policy may have been built with a reset of the environment before the checkpoint is loaded."""
    env = make(folder)
    env.rollout(6, break_when_any_done=False)
    state = env.state_dict()
    env.close()
    env = make(folder, overwrite=True)
    env.load_state_dict(state)
    env.rollout(1)
    env.load_state_dict(state)
    env.rollout(2)
    env.close()
    assert read(folder / "run.resumed_2.rrd")["/env_0/observation"].along("step") == [
        6,
        7,
    ]  # the second episode has one step


def test_checkpoints_of_before(folder):
    """Those without a recorder, and those of one that had seen nothing, can be loaded."""
    plain = GymWrapper(Lengths()).append_transform(RewardSum())
    env = GymWrapper(Lengths()).append_transform(RewardSum()).append_transform(RerunRecorder(folder))
    env.load_state_dict(plain.state_dict())
    env.load_state_dict(env.state_dict())
    env.rollout(2)
    env.close()
    assert names(folder) == ["run.rrd"]


def test_the_state_of_another_recorder(folder, tmp_path):
    """Who copies the state of the training environment to that of the evaluation means the other transforms."""
    env = make(folder)
    env.rollout(4)
    evaluation = make(tmp_path / "evaluation")
    with pytest.warns(UserWarning, match="doesn't take over its step and episode numbers"):
        evaluation.load_state_dict(env.state_dict())
    evaluation.rollout(2)
    evaluation.close()
    env.close()
    assert read(tmp_path / "evaluation/run.rrd")["/env_0/observation"].along("step") == [0, 1, 2]


def test_batches(folder):
    def batch():
        return SerialEnv(3, [lambda shift=shift: GymWrapper(Lengths(shift)) for shift in range(3)]).append_transform(
            RerunRecorder(folder, logged_envs=[0, 2])
        )

    env = batch()
    env.rollout(7, break_when_any_done=False)
    state = env.state_dict()
    env.close()
    first = read(folder / "run.rrd")
    env = batch()
    env.load_state_dict(state)
    env.rollout(1)
    env.close()
    second = read(folder / "run.resumed_1.rrd")
    for i in (0, 2):
        last = first[f"/env_{i}/observation"].along("episode")[-1]
        assert second[f"/env_{i}/observation"].along("episode") == [last + 1] * 2


def test_in_workers(folder):
    env = ParallelEnv(2, lambda: make(folder))
    env.rollout(4, break_when_any_done=False)
    state = env.state_dict()
    env.close()
    assert any("episodes" in str(key) for key in flat(state))
    env = ParallelEnv(2, lambda: make(folder))
    env.load_state_dict(state)
    env.rollout(1)
    env.close()
    assert "run.worker_1.resumed_1.rrd" in names(folder)
    assert read(folder / "run.worker_1.resumed_1.rrd")["/env_1/observation"].along("step") == [4, 5]


def flat(state, prefix=""):
    for key, value in state.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_what_is_kept_goes_on(folder):
    """The folder is what a policy knows of the run before."""
    keep = KeepLast(2) | KeepWorst(1)
    env = make(folder, split="episode", keep=keep)
    env.rollout(17, break_when_any_done=False)  # episodes of 3, 1, 6, 2, 4 steps and one that is cut
    state = env.state_dict()
    env.close()
    assert [id_[1] for id_ in read_folder(folder)] == [1, 4, 5]
    env = make(folder, split="episode", keep=keep)
    env.load_state_dict(state)
    env.rollout(4, break_when_any_done=False)
    env.close()
    assert [id_[1] for id_ in read_folder(folder)] == [1, 6, 7]


def test_after_a_crash(folder):
    """A checkpoint, a kill, and a restart: numbers that come again don't replace what is there."""
    script = """
        import os, sys, torch
        sys.path.insert(0, "tests")
        from test_resuming import make
        if __name__ == "__main__":
            env = make(sys.argv[1], split="episode")
            if sys.argv[2] == "resume":
                env.load_state_dict(torch.load(sys.argv[3], weights_only=True))
            env.rollout(10, break_when_any_done=False)
            torch.save(env.state_dict(), sys.argv[3])
            env.rollout(2)
            env.transform.dump()
            if sys.argv[2] != "resume":
                os.kill(os.getpid(), 9)
            env.close()
    """
    command = [*python(), "-c", textwrap.dedent(script), folder]
    killed = subprocess.run([*command, "begin", folder.parent / "state.pt"], check=False)
    assert killed.returncode == -9
    crashed = names(folder)
    assert crashed == [
        "env_0_episode_000000.rrd",
        "env_0_episode_000001.rrd",
        "env_0_episode_000002.rrd",
        "env_0_episode_000003.rrd",
    ]
    subprocess.run([*command, "resume", folder.parent / "state.pt"], check=True)
    assert set(crashed) < set(names(folder))
    assert "env_0_episode_000003_2.rrd" in names(folder) or "env_0_episode_000004.rrd" in names(folder)


def test_numbers_that_come_again(folder):
    """They are recordings of their own, also if the user has named the run."""
    env = make(folder, split="episode", recording_id="mine")
    env.rollout(4, break_when_any_done=False)
    state = env.state_dict()
    env.rollout(3)
    env.close()
    env = make(folder, split="episode", recording_id="mine")
    env.load_state_dict(state)
    env.rollout(3)
    env.close()
    assert names(folder)[-2:] == ["env_0_episode_000002.rrd", "env_0_episode_000002_2.rrd"]
    found = list_episodes(folder).episodes
    assert [each.recording_id for each in found][-2:] == ["e0_ep000002_mine", "e0_ep000002_2_mine"]
    assert [len(each.paths) for each in found] == [1] * 4
