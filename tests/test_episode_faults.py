"""Faults with split="episode" and split="dump": kills, full disks, Ctrl-C, and programs that end without `close()`."""

from __future__ import annotations

import collections
import copy
import dataclasses
import gc
import itertools
import os
import pickle
import random
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from torchrl.envs import GymWrapper

import killed_episodes
from environments import LENGTHS, Counter, Lengths, LongEpisode
from interrupts import interrupted
from programs import python
from readback import hold_the_same, read
from rebuilt import rollout_in
from torchrl_rerun import (
    Episode,
    Keep,
    KeepBest,
    KeepIf,
    KeepLast,
    RecordingError,
    RerunRecorder,
    list_episodes,
)
from torchrl_rerun.blocks.block import Block
from torchrl_rerun.blocks.buffer import Buffer
from torchrl_rerun.recording.episode_log import EpisodeLog
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.writing.writer import WriterThread
from trainings import run


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith("black_box"))


# --- kill -9 ---


def over_by(steps: int) -> Iterator[Episode]:
    """Return the episodes that have ended after a number of steps of `killed_episodes`, in order."""
    ends: list[list[int]] = [[*itertools.accumulate(LENGTHS[(n + env) % 8] for n in range(steps))] for env in range(2)]
    for step, env in itertools.product(range(1, steps + 1), range(2)):
        if step in ends[env]:
            number = ends[env].index(step)
            length = LENGTHS[(number + env) % 8]
            yield Episode(env, number, float(length), length, first_step=step - length, terminated=True)


def in_progress(steps: int, env: int) -> tuple[int, int]:
    """Return the current episode of an environment after a number of steps, and the steps within it."""
    made = [episode for episode in over_by(steps) if episode.env == env]
    return len(made), steps - sum(episode.length for episode in made)


def kept(keep: Keep | None, episodes: list[Episode]) -> list[Episode]:
    """Return the episodes that a policy keeps."""
    if keep is None:
        return episodes
    policy, there = keep.new_kept(), {}
    for number, episode in enumerate(episodes):
        marked = dataclasses.replace(episode, start_time=datetime.fromtimestamp(number, UTC))
        there[marked.key] = episode
        for candidate in policy.offer(marked):
            if not policy.holds(candidate):
                there.pop(candidate.key, None)
    return [*there.values()]


def ids(episodes) -> set[tuple[int, int]]:
    return {episode.id for episode in episodes}


def test_kill_9_at_random_moments_keeps_dumped_and_ended_episodes(tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    command = [*python(), killed_episodes.__file__, str(tmp_path), str(seed)]
    forked = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert forked.stderr == ""
    found = collections.Counter(check(tmp_path / f"run_{i}", i) for i in range(killed_episodes.RUNS))
    print(dict(found))
    assert check(tmp_path / "whole", 1) == "closed"
    assert (
        check(tmp_path / "slow", 4) == "recorded"
    )  # never dumped: it was killed when an episode had been written for its age
    assert any((tmp_path / "slow").glob("env_*.rrd"))
    assert found["dumped"] + found["closed"] > 0
    for number in range(5):
        resume(tmp_path / f"run_{number}", number)


def check(folder: Path, number: int) -> str:
    """Compare the folder of a killed process with its notes. Return its state: "closed", "dumped" or "recorded"."""
    keep = killed_episodes.KEEPS[number % len(killed_episodes.KEEPS)]
    lines = [line.split() for line in folder.with_suffix(".notes").read_text().splitlines()]
    notes = [(what, int(step), int(moment)) for what, step, moment in lines]
    made, dumped = (max([step for what, step, _ in notes if what == wanted], default=0) for wanted in ("step", "dump"))
    closed = notes[-1:] and notes[-1][0] == "closed"
    seen = {"whole": set(), "parts": collections.defaultdict(list)}
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        recorded = read(path)
        episode = recorded.episode
        id_ = episode["env"], episode["episode"]
        rows = [tuple(map(int, value)) for value in recorded["/observation"].values]
        moments = recorded["/observation"].along("episode_step")
        assert rows == [(id_[1], t) for t in moments], path
        assert recorded["/observation"].along("frame") == moments
        if ".part_" in path.name:
            assert episode["interrupted"]
            seen["parts"][id_] += moments
            continue
        seen["whole"].add(id_)
        assert moments == list(range(episode["length"] + 1))
        assert len(recorded["/reward"].values) == len(recorded["/action"].values) == episode["length"]
        assert episode["episode_return"] == episode["length"] == recorded["/episode_return"].values[-1].item()
        if not episode["interrupted"]:
            assert episode["length"] == LENGTHS[sum(id_) % 8]
    over = [*over_by(made + 1)]  # the note of the last step may be missing
    stay = ids(kept(keep, over))
    at_close = [
        Episode(env, *in_progress(made, env)[:1], 0.0, in_progress(made, env)[1], interrupted=True) for env in range(2)
    ]
    at_close = [end for end in at_close if end.length]
    stay_at_close = ids(kept(keep, [*over_by(made), *at_close]))
    may_be_closing = made == killed_episodes.STEPS and folder.name != "slow"
    if may_be_closing:  # the policy may have dropped episodes for those that close() interrupts
        over += at_close
        stay &= stay_at_close
    missing = ids(kept(keep, [*over_by(dumped)])) & stay - seen["whole"]
    assert not missing, f"{folder.name}: {missing} were over after {dumped} steps of {made}, and dumped"
    if closed:
        assert seen["whole"] == stay_at_close
        assert not seen["parts"]
    else:
        assert seen["whole"] <= ids(over)
    for env in range(2) if dumped and not closed else ():
        episode, steps = in_progress(dumped, env)
        if (env, episode) not in seen["whole"] and ((env, episode) in stay or (env, episode) not in ids(over)):
            assert sorted(seen["parts"][env, episode])[: steps + 1] == list(range(steps + 1))
    listing = list_episodes(folder)
    assert not listing.unreadable
    listed, there = ids(found.episode for found in listing.episodes), seen["whole"] | set(seen["parts"])
    now = {(env, in_progress(steps, env)[0]) for env in range(2) for steps in (made, made + 1)}
    assert there <= listed <= there | ids(over) | now  # the others are in the black box
    return "closed" if closed else "dumped" if dumped else "recorded"


def resume(folder: Path, number: int) -> None:
    """Resume in the folder of a killed run. The policy counts the episodes that are there."""
    keep = killed_episodes.KEEPS[number % len(killed_episodes.KEEPS)]
    before = [found.episode for found in list_episodes(folder).episodes]
    stay = kept(keep, before)  # numbers go on after the last of these
    numbers = [max([e.episode for e in stay if e.env == env], default=-1) for env in range(2)]
    env = killed_episodes.environment(folder, keep, resume=True)
    env.rollout(30, break_when_any_done=False)
    env.close()
    made = [*over_by(30)]
    made += [
        Episode(env, *in_progress(30, env)[:1], 0.0, in_progress(30, env)[1], interrupted=True) for env in range(2)
    ]
    made = [
        dataclasses.replace(e, episode=e.episode + 1 + numbers[e.env], episode_return=float(e.length)) for e in made
    ]
    listing = list_episodes(folder)
    assert not listing.unreadable
    assert not [name for name in names(folder) if name.startswith(".")]
    wanted = kept(keep, [*before, *(episode for episode in made if episode.length)])
    found = [found.episode for found in listing.episodes]
    assert sorted((e.env, e.episode, e.length) for e in found) == sorted((e.env, e.episode, e.length) for e in wanted)


def test_parts_beside_the_whole_episode_are_not_listed_with_it(folder):
    """A kill may come after the episode is written, and before its parts are removed."""
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode"))
    tensordict = env.reset()
    env.step(env.rand_action(tensordict))
    env.transform.dump()
    part = folder / "env_0_episode_000000.part_0.rrd"
    kept = part.read_bytes()
    env.close()
    part.write_bytes(kept)
    [found] = list_episodes(folder).episodes
    assert [path.name for path in found.paths] == ["env_0_episode_000000.rrd"]


def test_an_episode_is_removed_after_its_replacement_is_written(folder):
    """Otherwise a kill in between would leave neither episode."""
    recorder = RerunRecorder(
        folder, split="episode", keep=KeepLast(1), buffer_bytes=1500, flush_seconds=100, blueprint=False
    )
    env = GymWrapper(Lengths()).append_transform(recorder)
    env.rollout(10)
    recorder.dump()
    for _ in range(20):
        env.rollout(10)
        recorder._front_end.recording._writer.flush()
        assert any(".part_" not in name for name in names(folder))
    env.close()
    assert names(folder) == ["env_0_episode_000020.rrd"]


# --- Ctrl-C ---


def test_ctrl_c_loses_and_duplicates_no_episode(folder):
    """Ctrl-C at any operation of a reset, a step or a dump: each recorded frame is in the file of its episode."""
    recorder = RerunRecorder(folder, split="episode", blueprint=False)
    env = GymWrapper(Lengths()).append_transform(recorder)
    functions = [
        Recording._add,
        Recording._log_episodes,
        Recording._event,
        Recording.dump,
        Buffer.add,
        Block.add,
    ]
    functions += [
        EpisodeLog.reset,
        EpisodeLog.step,
        EpisodeLog.close_ended,
        EpisodeLog._begin,
        EpisodeLog._close,
        EpisodeLog._go_on,
    ]
    plain = env.base_env._env
    tensordict, count, without = env.reset(), 0, 0
    while without < 6:
        with interrupted(count, *functions) as came:
            for _ in range(2):
                following = env.step(env.rand_action(tensordict))["next"]
                tensordict = env.reset() if following["done"].any() else following
                if count % 5 == 0:
                    recorder.dump()
        if came and (plain.t == 0 or plain.t >= LENGTHS[plain.episode % 8]):
            tensordict = env.reset()
        without += not came
        count += 13
    env.close()
    assert count > 1000
    stats, steps = recorder.stats(), 0
    for found in list_episodes(folder).episodes:
        [path], episode = found.paths, found.episode
        recorded = read(path)
        assert recorded["/observation"].along("episode_step") == list(range(episode.length + 1))
        assert recorded["/episode_return"].values[-1].item() == episode.episode_return == episode.length
        assert len({int(value[0]) for value in recorded["/observation"].values}) == 1
        steps += episode.length
    assert steps == stats["steps"]
    assert stats["frames"] == stats["frames_written"] == steps + stats["episodes"]


@pytest.mark.parametrize("split", ["dump", "episode"])
def test_a_close_after_ctrl_c_in_close_writes_the_rest(tmp_path, split):
    count, came = 0, [True]
    while came:
        folder = tmp_path / str(count)
        env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split=split, blueprint=False))
        env.rollout(5, break_when_any_done=False)
        with interrupted(
            count, Recording.close, Recording._flush, WriterThread.finish, EpisodeLog.close, EpisodeLog._close
        ) as came:
            env.transform.close()
        env.close()
        if split == "episode":
            assert [(e.episode.episode, e.episode.length) for e in list_episodes(folder).episodes] == [
                (0, 3),
                (1, 1),
                (2, 1),
            ]
        else:
            assert len(read(folder / "dump_000000.rrd")["/env_0/reward"].values) == 5
        count += 17
    assert count > 100


# --- the user's functions ---


@pytest.mark.parametrize("trigger", ["episode_trigger", "step_trigger"])
def test_a_trigger_that_fails_gives_one_warning_and_its_episode_is_recorded(folder, trigger):
    """Training goes on."""

    def fails(number):
        if number % 2:
            raise ZeroDivisionError
        return False

    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode", **{trigger: fails}))
    with pytest.warns(RuntimeWarning, match=r"fails at .* failed at 1: ZeroDivisionError\(\)") as warned:
        env.rollout(30, break_when_any_done=False)
    env.close()
    assert len([w for w in warned if "ZeroDivisionError" in str(w.message)]) == 1
    there = [found.episode.episode for found in list_episodes(folder).episodes]
    assert there == ([1, 3, 5, 7, 9] if trigger == "episode_trigger" else [*range(9), 10])


@pytest.mark.parametrize("leave", [SystemExit, KeyboardInterrupt])
def test_a_predicate_that_ends_the_writer_thread_is_an_error_of_the_recording(folder, leave):
    """SystemExit and KeyboardInterrupt are no subclasses of Exception, and end a thread."""

    def predicate(episode):
        raise leave

    recorder = RerunRecorder(folder, split="episode", keep=KeepIf(predicate))
    env = GymWrapper(Lengths()).append_transform(recorder)
    env.rollout(3)
    with pytest.raises(RecordingError, match="frames were lost"):
        recorder.dump()
    with pytest.raises(RecordingError):
        env.close()


@pytest.mark.parametrize(
    "values",
    [
        {"drop_untyped_nones": False},
        {"self": 1},
        {"cls": "x"},
        {"a/b": 1.5},
        {"höhe ü": ["ß"]},
        {"a:b": True},
        {"Env": 3},
    ],
)
def test_annotations_may_have_any_name(folder, values):
    recorder = RerunRecorder(folder, split="episode")
    env = GymWrapper(Lengths()).append_transform(recorder)
    env.rollout(3)
    recorder.annotate(**values)
    env.close()
    [found] = list_episodes(folder).episodes
    assert {
        name: [value] if values[name] == ["ß"] else value for name, value in found.episode.annotations.items()
    } == values


@pytest.mark.parametrize(
    ("values", "error"), [({"x": 10**400}, TypeError), ({"x": "\ud800"}, TypeError), ({"": 1}, ValueError)]
)
def test_annotations_that_cannot_be_stored_are_refused(folder, values, error):
    recorder = RerunRecorder(folder, split="episode")
    env = GymWrapper(Lengths()).append_transform(recorder)
    env.rollout(3)
    with pytest.raises(error):
        recorder.annotate(**values)
    env.close()
    assert len(list_episodes(folder).episodes) == 1


def test_a_key_may_be_called_like_the_properties_of_a_recording(folder):
    class Colliding(Lengths):
        def __init__(self):
            super().__init__()
            space = gymnasium.spaces.Dict(episode=gymnasium.spaces.Box(-1, 1000, (2,), np.float32))
            self.observation_space = gymnasium.spaces.Dict(__properties=space)

        def _seen(self):
            return {"__properties": {"episode": super()._seen()}}

    env = GymWrapper(Colliding()).append_transform(RerunRecorder(folder, split="episode"))
    rollout = env.rollout(3)
    env.close()
    assert len(list_episodes(folder).episodes) == 1
    assert hold_the_same(rollout_in(folder), rollout)


# --- the disk ---

TRAIN = """
    import contextlib
    import shutil
    from torchrl_rerun.recording import missed
    missed.RETRY_SECONDS = 1e6  # what was lost once is not tried again while the test looks
    for split in ("dump", "episode"):
        folder = os.path.join(path, split)
        recorder = RerunRecorder(folder, split=split, flush_seconds=0.05, buffer_bytes=100_000)
        env = SerialEnv(2, cartpole).append_transform(recorder)

        def check():
            s = recorder.stats()
            assert s["frames"] == s["frames_written"] + s["frames_waiting"] + s["frames_lost"], s

        env.rollout(20, break_when_any_done=False)
        {fault}
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            more = 10
            while more:
                env.rollout(20, break_when_any_done=False)
                check()
                more -= any("training goes on" in str(w.message) for w in warned)
        print(split, "warnings", sum("training goes on" in str(w.message) for w in warned))
        for call in (recorder.dump, env.close):
            try:
                call()
            except RecordingError as error:
                print(split, "error", error)
            check()
        print(split, "lost", recorder.stats()["frames_lost"] > 0)
        {mended}
"""


def train(folder, fault: str, mended: str = "") -> list[str]:
    """Train with a fault in the middle, with split="dump" and split="episode". Return the printed lines."""
    return run(TRAIN.format(fault=fault, mended=mended), folder).stdout.splitlines()


def test_a_full_disk_loses_frames_with_an_error_and_leaves_whole_files(small_disk):
    stuffing = small_disk / "stuffing"
    # The writer may take some of the room meanwhile.
    fill = f"""with contextlib.suppress(OSError):
            open({str(stuffing)!r}, "wb").write(bytes(max(0, shutil.disk_usage(path).free - 100_000)))"""
    said = train(small_disk, fill, f"os.unlink({str(stuffing)!r})")
    assert [line.split()[:2] for line in said] == [
        ["dump", "warnings"],
        ["dump", "error"],  # the error closes it
        ["dump", "lost"],
        ["episode", "warnings"],
        ["episode", "error"],
        ["episode", "error"],
        ["episode", "lost"],
    ]
    assert all("No space left on device" in line and " 0 frames" not in line for line in said if " error " in line)
    assert all(line.endswith("True") for line in said if " lost " in line)
    for path in small_disk.rglob("*.rrd"):
        assert not path.name.startswith(".")
        recorded = read(path)
        if path.parent.name == "episode":
            assert len(recorded["/observation"].values) == recorded.episode["length"] + 1


def test_a_deleted_folder_gives_one_warning_and_an_error(tmp_path):
    # Wait for all writes, so that files are opened again. A dump writes episodes in progress.
    fault = """if split == "episode":
            recorder.dump()
        while recorder.stats()["frames_waiting"]:
            time.sleep(0.01)
        shutil.rmtree(folder)"""
    said = train(tmp_path, fault)
    assert [line for line in said if "warnings" in line] == ["dump warnings 1", "episode warnings 1"]
    errors = [line for line in said if " error " in line]
    assert [line.split()[0] for line in errors] == ["dump", "episode", "episode"]
    assert not [line for line in errors if "was removed or replaced" not in line or " 0 frames" in line]
    assert not names(tmp_path)


# --- the end of the program, and copies ---


def test_episodes_are_written_when_the_program_fails(folder):
    run(
        """
        env = SerialEnv(2, cartpole).append_transform(RerunRecorder(path, split="episode"))
        env.rollout(5, break_when_any_done=False)
        raise RuntimeError
        """,
        folder,
        code=1,
    )
    assert [found.episode.length for found in list_episodes(folder).episodes] == [5, 5]


def test_a_recorder_that_is_garbage_collected_writes_its_episodes(folder):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode"))
    env.rollout(5, break_when_any_done=False)
    env.transform.__dict__["_parent"] = None
    del env
    gc.collect()
    assert [found.episode.length for found in list_episodes(folder).episodes] == [3, 1, 1]


def test_a_forked_child_has_a_folder_of_its_own(folder):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(folder, split="episode", keep=KeepLast(2)))
    env.rollout(3)
    child = os.fork()
    if child == 0:
        try:
            env.rollout(1)
            env.transform.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    env.rollout(1)
    env.rollout(6)
    env.close()
    assert names(folder) == ["env_0_episode_000001.rrd", "env_0_episode_000002.rrd", "worker_0"]
    assert len(names(folder / "worker_0")) == 1


def test_copies_record_into_folders_of_their_own(folder):
    recorder = RerunRecorder(folder, split="episode", keep=KeepLast(2) & KeepBest(2))
    envs = [
        GymWrapper(Lengths()).append_transform(each)
        for each in (recorder, copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder)))
    ]
    for env in envs:
        env.rollout(3)
    for env in envs:
        env.close()
    assert names(folder) == ["env_0_episode_000000.rrd", "worker_0", "worker_1"]


# --- memory ---


def test_endless_and_discarded_episodes_take_bounded_memory(folder):
    """Waiting data is bounded by `buffer_bytes`, plus a block and a frame in work. No memory is leaked."""
    bound = 1 << 16
    recorder = RerunRecorder(
        folder, split="episode", keep=KeepLast(3) | KeepBest(2), image_format="raw", buffer_bytes=bound, blueprint=False
    )
    env = Counter(2, itertools.repeat([False, True])).append_transform(recorder)
    most = 0
    tensordict = env.reset()
    for _ in range(1500):
        tensordict = env.step_and_maybe_reset(env.rand_action(tensordict))[1]
        most = max(most, recorder.stats()["bytes_waiting"])
    recorder.dump()
    recording = recorder._front_end.recording
    output, episodes = recording._output, recording.chunk_writer.episodes
    assert most <= 1.25 * bound + 400
    assert len(output._in_progress) <= 2
    assert not output._waiting
    assert not output._ended
    assert len(episodes._files) == 5
    assert len([name for name in names(folder) if name.startswith("env_1")]) <= 6
    env.close()
    rows = read(folder / "env_0_episode_000000.rrd")["/image"]
    assert rows.along("frame") == list(range(1501))


def test_dumps_at_every_step_become_one_file(folder):
    """Hundreds of parts become one file. Each part of a video can be decoded alone."""
    env = GymWrapper(LongEpisode(60)).append_transform(
        RerunRecorder(folder, split="episode", image_format="h264", blueprint=False)
    )
    tensordict = env.reset()
    for _ in range(59):
        tensordict = env.step(env.rand_action(tensordict))["next"]
        env.transform.dump()
    assert len(names(folder)) == 59
    assert read(folder / "env_0_episode_000000.part_30.rrd")["/pixels"].keyframes == [True]
    env.step(env.rand_action(tensordict))
    env.close()
    assert names(folder) == ["env_0_episode_000000.rrd"]
    assert read(folder / "env_0_episode_000000.rrd")["/pixels"].along("frame") == list(range(61))


def test_a_recorder_that_is_appended_late_records_from_the_current_step(folder):
    env = GymWrapper(Lengths())
    tensordict = env.reset()
    env = env.append_transform(RerunRecorder(folder, split="episode"))
    for _ in range(3):
        tensordict = env.step(env.rand_action(tensordict))["next"]
    env.close()
    assert [found.episode.length for found in list_episodes(folder).episodes] == [3]
