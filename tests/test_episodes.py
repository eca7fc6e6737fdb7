"""split="episode": a file for each kept episode, with its properties."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, GymWrapper, ParallelEnv, SerialEnv, StepCounter

from driving import drive, sequences
from effort import examples
from environments import Counter, Lengths, LongEpisode, TwoRewards
from keeping import of_lists, policies
from readback import read, read_folder, same
from reference import Reference
from servers import wait_until
from torchrl_rerun import Episode, KeepBest, KeepIf, KeepLast, KeepWorst, RerunRecorder


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith("black_box"))


class Episodes:
    """A reference of each environment's episodes, step by step."""

    def __init__(self, envs):
        self.over = []
        self.now = [None] * envs
        self.lost = set()

    def reset(self, env, at):
        self.close(env)
        self.now[env] = {"env": env, "episode": at["episode"], "first_step": at["step"], "rewards": [], "ends": False}

    def step(self, env, reward, at, *, ends):
        if self.now[env] is None:  # after the end of the episode, without a reset
            self.lost.add((env, at["frame"]))
        else:
            self.now[env]["rewards"].append(reward)
            self.now[env]["ends"] |= ends

    def close(self, env, *, only_ended=False):
        now = self.now[env]
        if now is None or (only_ended and not now["ends"]):
            return
        self.now[env] = None
        if not now["rewards"]:
            return  # an episode without steps
        self.over.append(
            Episode(
                env=env,
                episode=now["episode"],
                episode_return=float(np.sum(now["rewards"])),
                length=len(now["rewards"]),
                terminated=now["ends"],
                interrupted=not now["ends"],
                first_step=now["first_step"],
            )
        )


@examples(30)
@given(sequences(), st.none() | policies)
def test_files_equal_the_episodes_that_a_reference_keeps(run, keep):
    envs, events, ends, buffer_bytes = run
    reference, episodes = Reference(envs), Episodes(envs)

    def reset(chosen):
        for i in chosen:
            episodes.reset(i, reference.at[i])

    def step(i, reward, *, ends):
        episodes.step(i, reward, reference.at[i], ends=ends)

    def dump():
        for i in range(envs):
            episodes.close(i, only_ended=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*after its episode was over")
            recorder.dump()

    with tempfile.TemporaryDirectory() as folder:
        recorder = RerunRecorder(
            folder, split="episode", keep=keep, image_format="raw", buffer_bytes=buffer_bytes, blueprint=False
        )
        env = Counter(envs, itertools.chain(ends)).append_transform(recorder)
        drive(env, events, reference, dumped=dump, was_reset=reset, was_stepped=step)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*after its episode was over")
            env.close()
        for i in range(envs):
            episodes.close(i)
        over = {episode.id: episode for episode in episodes.over}
        kept = set(over) if keep is None else of_lists(keep, episodes.over)
        recorded = read_folder(folder)
        assert set(recorded) == kept
        assert len(names(Path(folder))) == len(kept)
        for id_ in kept:
            check(recorded[id_], over[id_], reference, episodes.lost)


def check(recorded, episode, reference, lost=frozenset()):
    found = recorded.episode
    for name in ("env", "episode", "length", "terminated", "truncated", "interrupted", "first_step"):
        assert found[name] == getattr(episode, name), name
    assert found["episode_return"] == pytest.approx(episode.episode_return, abs=1e-9)
    expected = {}
    for (env, key), rows in reference.rows.items():
        rows = [row for row in rows if row.episode == episode.episode and (env, row.frame) not in lost]
        if env == episode.env and rows:
            expected[f"/{key}"] = rows
    assert {path for path in recorded.entities if path != "/episode_return"} == set(expected)
    for path, rows in expected.items():
        entity = recorded[path]
        if path == "/action" and lost:
            continue  # an action after the end is recorded if it came before the file was written
        assert [same(value, row.value) for value, row in zip(entity.values, rows, strict=True)] == [True] * len(rows)
        for timeline in ("step", "episode", "episode_step"):
            assert entity.along(timeline) == [getattr(row, timeline) for row in rows], (path, timeline)
        assert entity.along("frame") == entity.along("episode_step")


def test_each_episode_has_a_file(folder):
    env = SerialEnv(3, [lambda shift=shift: GymWrapper(Lengths(shift)) for shift in range(3)]).append_transform(
        RerunRecorder(folder, split="episode")
    )
    env.rollout(9, break_when_any_done=False)
    env.close()
    assert names(folder) == [
        "env_0_episode_000000.rrd",  # of 3 steps
        "env_0_episode_000001.rrd",  # of 1
        "env_0_episode_000002.rrd",  # of 6, of which 5 were made
        "env_1_episode_000000.rrd",
        "env_1_episode_000001.rrd",
        "env_1_episode_000002.rrd",
        "env_2_episode_000000.rrd",
        "env_2_episode_000001.rrd",
        "env_2_episode_000002.rrd",
    ]
    recorded = read_folder(folder)
    assert {id_: (e.episode["length"], e.episode["interrupted"]) for id_, e in recorded.items()} == {
        (0, 0): (3, False),
        (0, 1): (1, False),
        (0, 2): (5, True),
        (1, 0): (1, False),
        (1, 1): (6, False),
        (1, 2): (2, False),
        (2, 0): (6, False),
        (2, 1): (2, False),
        (2, 2): (1, True),
    }
    paths = {frozenset(each.entities) for each in recorded.values()}
    assert paths == {
        frozenset({"/observation", "/reward", "/episode_return", "/action", "/done", "/terminated", "/truncated"})
    }
    assert len({each.recording_id for each in recorded.values()}) == 9


def test_numbers_are_padded_so_that_names_sort(folder):
    env = SerialEnv(12, lambda: GymEnv("CartPole-v1")).append_transform(RerunRecorder(folder, split="episode"))
    env.rollout(3)
    env.close()
    assert names(folder)[2:4] == ["env_02_episode_000000.rrd", "env_03_episode_000000.rrd"]


def test_files_of_episodes_that_are_not_kept_are_removed(folder):
    recorder = RerunRecorder(folder, split="episode", keep=KeepBest(2))
    env = GymWrapper(Lengths()).append_transform(recorder)
    for _ in range(8):
        env.rollout(100)
    recorder.dump()
    assert names(folder) == ["env_0_episode_000002.rrd", "env_0_episode_000005.rrd"]  # of 6 and 5 steps
    for _ in range(8):  # a second time
        env.rollout(100)
    env.close()
    assert names(folder) == ["env_0_episode_000002.rrd", "env_0_episode_000010.rrd"]


def test_an_episode_that_is_not_kept_is_never_written(folder, monkeypatch):
    written = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: written.append(path.name) or replace(path, target))
    recorder = RerunRecorder(folder, split="episode", keep=KeepLast(2))
    env = GymWrapper(Lengths()).append_transform(recorder)
    for _ in range(50):
        env.rollout(100)
    env.close()
    assert [name for name in written if name.endswith(".rrd")] == [
        ".env_0_episode_000048.rrd",
        ".env_0_episode_000049.rrd",
    ]


class Pictures(gymnasium.Env):
    """Pictures of noise, in episodes of four steps."""

    observation_space = gymnasium.spaces.Box(0, 255, (60, 60, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.rng, self.steps = np.random.default_rng(seed), 0
        return self._seen(), {}

    def _seen(self):
        return self.rng.integers(0, 256, (60, 60, 3), np.uint8)

    def step(self, action):
        self.steps += 1
        return self._seen(), 1.0, self.steps == 4, False, {}


def test_episodes_that_are_not_kept_make_room_before_any_is_encoded(folder):
    recorder = RerunRecorder(folder, keep=KeepIf(lambda _: False), buffer_bytes=1_000_000)
    env = GymWrapper(Pictures()).append_transform(recorder)
    env.rollout(400, break_when_any_done=False)  # 5.4 MB
    assert recorder.stats()["bytes_written"] == 0
    env.close()


def test_kept_episodes_are_written_without_a_dump(folder):
    """Kept episodes survive a kill of the process without a dump."""
    recorder = RerunRecorder(folder, split="episode", keep=KeepLast(100), flush_seconds=0.2)
    env = GymWrapper(Lengths()).append_transform(recorder)
    wait_until(lambda: env.rollout(1) is not None and len(names(folder)) > 3)
    env.close()


def test_an_episode_has_its_annotations_and_seed(folder):
    recorder = RerunRecorder(folder, split="episode", keep=KeepIf(lambda episode: episode["success"]))
    env = GymEnv("CartPole-v1").append_transform(recorder)
    env.set_seed(11)
    for success in (True, False, True):
        env.rollout(100)
        recorder.annotate(success=np.bool_(success), distances=torch.tensor([0.5, 1.5]), note="a")
    env.close()
    recorded = read_folder(folder)
    assert set(recorded) == {(0, 0), (0, 2)}
    episode = recorded[0, 2].episode
    assert (episode["success"], episode["note"], episode["seed"]) == (True, "a", 11)
    whole = recorded[0, 2].static["/__properties/episode"]
    assert whole["distances"] == [0.5, 1.5]


def test_an_annotation_may_be_for_one_of_several_environments(folder):
    recorder = RerunRecorder(folder, split="episode", logged_envs=[1, 2])
    env = SerialEnv(3, lambda: GymEnv("CartPole-v1")).append_transform(recorder)
    with pytest.raises(ValueError, match="there is nothing to annotate"):
        recorder.annotate(1, success=True)
    env.rollout(3)
    recorder.annotate(env=2, success=True)
    with pytest.raises(ValueError, match="env is missing: 2 environments"):
        recorder.annotate(success=True)
    with pytest.raises(IndexError, match="env=0 is not recorded; recorded are 1, 2"):
        recorder.annotate(0, success=True)
    with pytest.raises(ValueError, match="'length' is what the recorder itself says"):
        recorder.annotate(1, length=3)
    with pytest.raises(TypeError, match="what=<object"):
        recorder.annotate(1, what=object())
    env.close()
    recorded = read_folder(folder)
    assert recorded[2, 0].episode["success"] is True
    assert "success" not in recorded[1, 0].episode


def test_annotations_of_whole_runs_are_refused(path):
    recorder = RerunRecorder(path)
    with pytest.raises(ValueError, match="they need split='episode'"):
        recorder.annotate(success=True)


def test_a_limit_behind_the_recorder_ends_an_episode(folder):
    """Collectors append a limit behind the recorder: the next reset has the flags."""
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode"))
    env = env.append_transform(StepCounter(max_steps=2))
    env.rollout(9, break_when_any_done=False)
    env.close()
    recorded = read_folder(folder)
    ends = [(e.episode["length"], e.episode["terminated"], e.episode["truncated"]) for e in recorded.values()]
    assert ends[:3] == [(2, False, True), (1, True, False), (2, False, True)]


def test_episodes_go_on_in_the_next_batch_of_a_collector(folder):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode"))
    collector = Collector(env, frames_per_batch=4, total_frames=16)
    for _ in collector:
        pass
    collector.shutdown()
    recorded = read_folder(folder)
    assert [each.episode["length"] for each in recorded.values()] == [3, 1, 6, 2, 4]
    assert not any(each.episode["interrupted"] for each in list(recorded.values())[:-1])


def test_a_reset_in_the_middle_interrupts_an_episode(folder):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode"))
    env.rollout(2)
    env.rollout(1)
    env.close()
    recorded = read_folder(folder)
    assert [(e.episode["length"], e.episode["interrupted"]) for e in recorded.values()] == [(2, True), (1, False)]


def test_an_episode_too_long_for_memory_is_one_file(folder):
    """The episode is written in parts, which become one file."""
    recorder = RerunRecorder(folder, split="episode", image_format="raw", buffer_bytes=1 << 16)
    env = SerialEnv(2, [lambda: GymWrapper(LongEpisode(40)), lambda: GymWrapper(LongEpisode(25))]).append_transform(
        recorder
    )
    parts = set()
    tensordict = env.reset()
    for _ in range(40):
        tensordict = env.step_and_maybe_reset(env.rand_action(tensordict))[1]
        parts |= {name for name in names(folder) if "part" in name}
    env.close()
    assert parts
    recorded = read_folder(folder)
    assert [path.name for path in sorted(folder.iterdir())] == [
        "env_0_episode_000000.rrd",
        "env_1_episode_000000.rrd",
        "env_1_episode_000001.rrd",
    ]
    rows = recorded[0, 0]["/pixels"]
    assert rows.along("frame") == list(range(41))
    assert [int(value[0, 0, 0]) for value in rows.values] == list(range(41))


def test_a_dump_in_the_middle_writes_an_episode(folder):
    recorder = RerunRecorder(folder, split="episode", keep=KeepWorst(1))
    env = GymWrapper(Lengths()).append_transform(recorder)
    tensordict = env.reset()
    tensordict = env.step(env.rand_action(tensordict))["next"]
    recorder.dump()
    assert names(folder) == ["env_0_episode_000000.part_0.rrd"]
    part = read(folder / "env_0_episode_000000.part_0.rrd")
    assert (part.episode["interrupted"], part.episode["length"], part.episode["episode_return"]) == (True, 1, 1.0)
    assert recorder.stats()["frames_waiting"] == 0
    for _ in range(2):
        tensordict = env.step(env.rand_action(tensordict))["next"]
    recorder.dump()
    assert names(folder) == ["env_0_episode_000000.rrd"]
    assert read(folder / "env_0_episode_000000.rrd")["/observation"].along("frame") == [0, 1, 2, 3]
    env.rollout(5)
    env.close()
    assert names(folder) == ["env_0_episode_000001.rrd"]  # of one step


def test_episodes_without_a_trigger_have_no_file(folder):
    env = GymWrapper(Lengths()).append_transform(
        RerunRecorder(folder, split="episode", episode_trigger=lambda episode: episode % 3 == 0)
    )
    env.rollout(30, break_when_any_done=False)
    env.close()
    recorded = read_folder(folder)
    assert [id_[1] for id_ in recorded] == [0, 3, 6, 9]
    assert [each.episode["length"] for each in recorded.values()] == [3, 2, 1, 1]
    assert [len(each["/observation"].values) for each in recorded.values()] == [4, 3, 2, 2]


def test_each_worker_records_to_its_own_folder(folder):
    env = ParallelEnv(2, lambda: GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode")))
    env.rollout(6, break_when_any_done=False)
    env.close()
    assert names(folder) == ["worker_0", "worker_1"]
    assert set(read_folder(folder)) == {(env, episode) for env in range(2) for episode in range(3)}


def test_the_return_of_agents_is_the_mean_of_their_sums(folder):
    from torchrl.envs import VmasEnv

    env = VmasEnv("navigation", num_envs=2, seed=0, max_steps=5, n_agents=3).append_transform(
        RerunRecorder(folder, split="episode")
    )
    rollout = env.rollout(5)
    env.close()
    recorded = read_folder(folder)
    assert set(recorded) == {(0, 0), (1, 0)}
    total = rollout["next", "agents", "reward"][1].double().sum(0).mean().item()
    assert recorded[1, 0].episode["episode_return"] == pytest.approx(total)
    assert "/agents/reward/agent_2" in recorded[1, 0].entities


def test_a_folder_with_recordings_is_not_overwritten(folder):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode"))
    env.rollout(30)
    env.close()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds recordings of an earlier run \(env_0_episode_000000.rrd, ...\)"):
        RerunRecorder(folder, split="episode")
    assert names(folder) == ["env_0_episode_000000.rrd", "notes.txt"]
    over = RerunRecorder(folder, split="episode", overwrite=True)
    env = GymWrapper(Lengths()).append_transform(over)
    env.reset()
    assert names(folder) == ["env_0_episode_000000.rrd", "notes.txt"]  # no frame has come yet
    env.rollout(1)
    env.close()
    assert names(folder) == ["env_0_episode_000001.rrd", "notes.txt"]


def test_all_files_of_an_earlier_run_are_replaced(folder):
    """Parts, and files with a number in their name, too."""
    folder.mkdir()
    left = ["env_0_episode_000004_2.rrd", "env_0_episode_000004_2.part_0.rrd", "env_0_episode_000005.part_1.rrd"]
    for name in left:
        (folder / name).touch()
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode", overwrite=True))
    env.rollout(100)
    env.close()
    assert names(folder) == ["env_0_episode_000000.rrd"]


def test_a_second_recorder_in_a_folder_is_refused(folder):
    first = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode"))
    first.rollout(1)
    second = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode"))
    with pytest.raises(FileExistsError, match="is being written by another recorder"):
        second.reset()
    first.close()


def test_steps_after_the_end_of_an_episode_give_a_warning_and_are_not_recorded(folder):
    recorder = RerunRecorder(folder, split="episode")
    env = GymWrapper(Lengths()).append_transform(recorder)
    tensordict = env.rollout(100)[-1]
    recorder.dump()
    env.step(env.rand_action(env.step_mdp(tensordict)))
    with pytest.warns(RuntimeWarning, match="environment 0 was stepped after its episode was over, without a reset"):
        env.close()
    assert read(folder / "env_0_episode_000000.rrd")["/observation"].along("frame") == [0, 1, 2, 3]


def test_recording_goes_on_after_close(folder):
    recorder = RerunRecorder(folder, split="episode")
    env = GymWrapper(Lengths()).append_transform(recorder)
    tensordict = env.reset()
    tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    recorder.close()
    tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    env.rollout(1)
    env.close()
    assert names(folder) == [
        "env_0_episode_000000.rrd",
        "env_0_episode_000000_2.rrd",
        "env_0_episode_000001.rrd",
    ]
    first, second = (read(folder / name).episode for name in names(folder)[:2])
    assert (first["length"], second["length"], second["first_step"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        ({"sink": "run.rrd", "split": "episode"}, ValueError, "makes several files: pass a folder"),
        ({"sink": "run", "split": "steps"}, ValueError, "split='steps': choose one of 'run', 'dump', 'episode'"),
        ({"sink": "run", "split": "run", "keep": KeepLast(1)}, ValueError, "needs split='episode'.*leave out split"),
        ({"sink": "run", "split": "dump", "keep": KeepLast(1)}, ValueError, "needs split='episode'.*leave out split"),
        ({"sink": "run.rrd", "keep": KeepLast(1)}, ValueError, "makes several files: pass a folder"),
        ({"sink": "run", "split": "episode", "keep": 5}, TypeError, "keep=5 is of type int; pass a policy"),
        ({"sink": "rerun+http://127.0.0.1:9876/proxy", "split": "episode"}, ValueError, "records into a folder"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, monkeypatch, arguments, error, what):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=what):
        RerunRecorder(**arguments)


def test_keep_implies_a_file_for_each_episode(folder):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, keep=KeepLast(1)))
    for _ in range(2):
        env.rollout(100)
    env.close()
    assert names(folder) == ["env_0_episode_000001.rrd"]


def test_keep_needs_a_recorded_reward(folder):
    recorder = RerunRecorder(folder, split="episode", keep=KeepBest(1), in_keys=["observation"])
    env = GymWrapper(Lengths()).append_transform(recorder)
    with pytest.raises(ValueError, match="goes by the reward, which is not recorded: add it to in_keys"):
        env.rollout(1)


def test_the_return_is_of_the_first_of_several_rewards(folder):
    """In the part that a dump writes, and in the whole episode."""
    recorder = RerunRecorder(folder, split="episode")
    env = TwoRewards().append_transform(recorder)
    td = env.reset()
    for _ in range(3):
        td = env.step(env.rand_action(td))["next"]
    recorder.dump()
    (part,) = folder.glob("*.part_0.rrd")
    returns = [read(part).episode["episode_return"]]
    env.close()
    (whole,) = folder.glob("*.rrd")
    returns.append(read(whole).episode["episode_return"])
    assert env.reward_keys[0] == "cost"
    assert returns == [21.0, 21.0]


def test_states_of_an_episode_over_several_blocks_are_drawn_in_their_order(tmp_path):
    """Values are observed at times 0 to 12, and the episode ends at time 9: a block with its reset has rows of its own times."""
    values = torch.tensor([0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0], dtype=torch.bool)
    done = torch.zeros(12, 1, dtype=torch.bool)
    done[8] = True
    following = {"contact": values[1:], "reward": torch.zeros(12, 1), "done": done}
    rollout = TensorDict({"contact": values[:-1], "action": torch.zeros(12), "next": following}, (12,))
    recorder = RerunRecorder(tmp_path / "run", split="episode", flush_seconds=0.01, blueprint=False)
    for first, last in ((0, 3), (3, 6), (6, 12)):
        recorder.log_rollout(rollout[first:last])
        wait_until(lambda: recorder._front_end.recording._buffers.small.oldest_waiting() is None)
    recorder.close()
    rows = read_folder(tmp_path / "run")[0, 0]["/contact"]
    assert [bool(value.any()) for value in rows.values] == values[:10].tolist()
    in_force = itertools.accumulate(rows.states, lambda last, state: last if state is None else state)
    drawn = list(in_force)
    assert [state == drawn[4] for state in drawn] == values[:10].tolist()
