"""The black box: whatever ends a process, its recording ends with the last step that returned."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import struct
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from rerun.chunk import RrdReader
from torchrl.envs import ParallelEnv, Transform
from typer.testing import CliRunner

import killed_anywhere
from killed_anywhere import Run, Told, recorder
from programs import python
from readback import read, same
from servers import PATIENCE, wait_until
from steps_of_told import steps_in
from torchrl_rerun import KeepLast, RecordingError, RerunRecorder, load, repair
from torchrl_rerun.blocks import black_box
from torchrl_rerun.blocks.black_box import box_of
from torchrl_rerun.blocks.object_log import logged_objects
from torchrl_rerun.cli import app
from torchrl_rerun.errors import FileInUseError
from torchrl_rerun.reading.lacking import warn_of_lacking_episodes
from torchrl_rerun.rrd import box_parts
from torchrl_rerun.rrd import repair as repairing
from torchrl_rerun.rrd.listing import listing_of
from torchrl_rerun.rrd.openable import whole_files_of
from torchrl_rerun.rrd.repair import Repaired
from torchrl_rerun.writing import file as sinks

RUN = Run(2, "batch", "run", keep=False, pictures="", texts=False, buffer_bytes=0, flush_seconds=0.0, rollouts=0)
KILLS = 200


def test_200_kills_at_random_moments_lose_no_step(tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    command = [*python(), killed_anywhere.__file__, str(tmp_path), str(seed), str(KILLS)]
    forked = subprocess.run(command, capture_output=True, text=True, timeout=500, check=True)
    assert forked.stderr == ""
    for number in range(KILLS):
        path = tmp_path / f"{number:03}"
        run = Run(**json.loads((path / "how.json").read_text()))
        check(path, run, int((path / "told").read_text()))


def check(path: Path, run: Run, told: int) -> None:
    """Compare what is loaded with the steps that were made: those that were told, and at most those that were under way."""
    where = f"{path.name}: {run}, {told} told"
    files = sorted(path.glob("run.worker_*.rrd")) or [path / ("run" if run.split == "episode" else "run.rrd")]
    episodes = list(load(files))
    made: dict[int, list[int]] = {}
    for episode in episodes:
        env, rollout = episode.properties.env, episode.tensordict()
        number = made.setdefault(env, [])
        steps = rollout["next", "clock"][:, 0].long()
        length = 3 + (env if run.where == "batch" else 0)
        assert (rollout["next", "clock"] == steps[:, None]).all(), where
        assert (rollout["clock"][:, 0] == steps - 1).all(), where
        assert (rollout["next", "reward"][:, 0] == steps).all(), where
        assert (rollout["next", "age"][:, 0] == torch.arange(1, len(steps) + 1)).all(), where
        assert (rollout["age"][:, 0] == torch.arange(len(steps))).all(), where
        assert (rollout["next", "done"][:, 0] == (rollout["next", "age"][:, 0] == length)).all(), where
        if run.texts:
            assert list(rollout["next", "note"]) == [f"step {step}" for step in steps.tolist()], where
        if run.pictures:
            colors = (steps % 200)[:, None, None, None].expand(-1, 32, 32, 3)
            assert ((rollout["next", "pixels"].int() - colors).abs() <= (0 if run.pictures == "png" else 12)).all(), (
                where
            )
        if episode.properties is not None:
            assert episode.properties.length == len(steps), where
        number += steps.tolist()
    assert sorted(made) == list(range(run.envs)) or not told, where
    under_way = max(1, run.rollouts)
    for env, steps in made.items():
        length = 3 + (env if run.where == "batch" else 0)
        first = 1
        if run.keep:  # files of episodes that aren't kept any longer go when there are others in their place
            first = max((b for a, b in itertools.pairwise(steps) if b != a + 1), default=steps[0])
            steps = steps[steps.index(first) :]
            assert first <= max(1, steps[-1] - killed_anywhere.KEPT * length + 1), where
        assert steps == list(range(first, first + len(steps))), (where, env)
        assert told <= steps[-1] <= told + under_way, (where, env)


# --- what ends a process, and what remains ---

LAST = 30


class Ends(Told):
    """Something happens within the 31st step."""

    def __init__(self, run, envs, happens):
        super().__init__(run, envs)
        self.happens = happens

    def _step(self, tensordict):
        if self.steps == LAST:
            self.happens()
        return super()._step(tensordict)


def record_until(happens, place, first, options):
    env = Ends(RUN, 2, happens).append_transform(RerunRecorder(place, **options))
    data = env.reset()
    if first is not None:
        env.transform.annotate(1, **first)
    for _ in range(40):
        _, data = env.step_and_maybe_reset(env.rand_action(data))
    env.close()


def copied(folder, to):
    """Copy a folder whose owner may remove files meanwhile."""
    while True:
        try:
            return shutil.copytree(folder, to)
        except shutil.Error:
            shutil.rmtree(to)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def segfault():
    ctypes.string_at(0)


def hang():
    os.kill(os.getpid(), signal.SIGSTOP)


def recording_until(happens, place, first=None, **options):
    """Start a process that records until its environment's 31st step."""
    process = multiprocessing.Process(target=record_until, args=(happens, place, first, options))
    process.start()
    return process


def recorded_until(*arguments, **options):
    """Run a process that records until its environment's 31st step. Return its exit status."""
    process = recording_until(*arguments, **options)
    process.join()
    return process.exitcode


EVERY_STEP = {env: list(range(1, LAST + 1)) for env in range(2)}


def test_after_a_segfault_the_last_step_is_there(path):
    assert recorded_until(segfault, path) == -signal.SIGSEGV
    assert box_of(path).is_dir()
    assert steps_in(path) == EVERY_STEP


class Lowers(Transform):
    """An environment ends no episode, whatever it says."""

    def _step(self, tensordict, next_tensordict):
        return next_tensordict.update(
            {flag: torch.zeros_like(next_tensordict[flag]) for flag in ("done", "terminated")}
        )


def test_a_step_that_was_revised_is_the_last_one(path):
    if os.fork() == 0:
        env = Told(RUN, 2).append_transform(RerunRecorder(path)).append_transform(Lowers())
        data = env.reset()
        for _ in range(12):  # both environments are done in the last one
            _, data = env.step_and_maybe_reset(env.rand_action(data))
        die()
    os.wait()
    assert steps_in(path) == {env: list(range(1, 13)) for env in range(2)}
    assert not any(episode.tensordict()["next", "done"].any() for episode in load(path))


@pytest.mark.parametrize("split", ["run", "episode"])
def test_repair_finishes_a_recording_and_removes_its_black_box(tmp_path, split):
    place = tmp_path / ("run.rrd" if split == "run" else "run")
    recorded_until(die, place, split=split)
    assert repair(place).envs == 2
    assert not box_of(place).exists()
    for file in [place] if split == "run" else sorted(place.iterdir()):
        assert RrdReader(file).store() is not None
        assert len(RrdReader(file).blueprints()) == 1
    assert steps_in(place) == EVERY_STEP
    assert repair(place) is None


def test_a_folder_is_repaired_whatever_is_in_it(tmp_path):
    (tmp_path / "a.rrd").touch()  # a process may be killed before its first frame
    (tmp_path / "b.rrd").write_bytes(b"RRF2" + b"\xff" * 100)
    recorded_until(die, tmp_path / "d.rrd")
    recorded_until(die, tmp_path / "e", split="episode")
    recorded_until(die, tmp_path / "g.rrd")
    files, folders = [tmp_path / "c.rrd", tmp_path / "h.rrd"], [tmp_path / "f"]
    live = [RerunRecorder(place, split="run") for place in files]
    live += [RerunRecorder(place, split="episode") for place in folders]
    envs = [Told(RUN, 2).append_transform(recorder) for recorder in live]
    for env in envs:
        env.rollout(5)
    with (
        pytest.warns(RuntimeWarning, match=r"a\.rrd is empty: nothing was recorded in it"),
        pytest.raises(FileInUseError, match=r"^4 recordings in .* could not be repaired .*b\.rrd.*c\.rrd.*f.*h\.rrd"),
    ):
        repair(tmp_path)
    for env in envs:
        env.close()
    for place in tmp_path / "d.rrd", tmp_path / "e", tmp_path / "g.rrd":
        assert not box_of(place).exists()
        assert steps_in(place) == EVERY_STEP
        assert repair(place) is None
    (tmp_path / "b.rrd").unlink()
    with pytest.warns(RuntimeWarning, match="is empty"):
        assert repair(tmp_path) is None


@pytest.mark.parametrize("how", [{}, {"pictures": "png"}, {"pictures": "h264"}, {"texts": True}])
@pytest.mark.parametrize("split", ["run", "episode"])
def test_rows_that_are_in_the_file_already_are_left_out(tmp_path, split, how):
    """A process may be killed when a block is written, and isn't free yet. Some of its rows may be missing in the file."""
    run = Run(**{**RUN.__dict__, **how, "split": split, "buffer_bytes": 64 << 20, "flush_seconds": 100.0})
    place = tmp_path / ("run.rrd" if split == "run" else "run")
    env = Told(run, 2).append_transform(recorder(run, place))
    rollout = env.rollout(60, break_when_any_done=False)
    copied(box_of(place), tmp_path / "box")
    env.transform.dump()
    for cut in [0, 2_000, 30_000, 60_000] if split == "run" else [0]:
        found = tmp_path / f"{cut}"
        if split == "run":
            found.mkdir()
            data = place.read_bytes()
            (found / place.name).write_bytes(data[: len(data) - cut])
        else:
            shutil.copytree(place, found / place.name)
            shutil.rmtree(box_of(found / place.name))
        shutil.copytree(tmp_path / "box", box_of(found / place.name))
        back = load(found / place.name).rollout()
        for key in ["clock", "age", ("next", "reward"), ("next", "done"), ("next", "terminated"), ("next", "clock")]:
            assert torch.equal(back[key], rollout[key]), (cut, key)
        if run.texts:
            assert list(back["next", "note"]) == list(rollout["next", "note"])
        if run.pictures == "png":
            assert torch.equal(back["next", "pixels"], rollout["next", "pixels"])
    env.close()


def test_the_black_box_goes_with_the_file_that_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "CHUNKS_PER_FILE", 20)
    folder = tmp_path / "folder"
    env = Told(RUN, 2).append_transform(RerunRecorder(folder / "run.rrd"))
    data = env.reset()
    for number in range(30):
        _, data = env.step_and_maybe_reset(env.rand_action(data))
        if number % 5 == 4:
            env.transform.dump()
    _, data = env.step_and_maybe_reset(env.rand_action(data))
    assert len(list(folder.glob("run*.rrd"))) > 2
    assert len(list(folder.glob(".*black_box"))) == 1
    crashed = copied(folder, tmp_path / "crashed")
    assert steps_in(crashed / "run.rrd") == {env: list(range(1, 32)) for env in range(2)}
    env.close()
    assert not list(folder.glob(".*"))


def test_statistics_over_all_environments_survive(path):
    env = Told(RUN, 100).append_transform(RerunRecorder(path, logged_envs=[0, 1], aggregate=True))
    env.rollout(20, break_when_any_done=False)
    crashed = path.with_name("crashed.rrd")
    shutil.copy(path, crashed)
    copied(box_of(path), box_of(crashed))
    env.close()
    repair(crashed)
    wanted, found = read(path), read(crashed)
    for entity in ("/batch/reward", "/batch/episode_return", "/env_1/episode_return"):
        assert same(found[entity].values, wanted[entity].values)
        assert found[entity].along("frame") == wanted[entity].along("frame")


def test_a_copy_is_repaired_and_the_recording_stays(path):
    recorded_until(die, path)
    out = path.with_name("copy.rrd")
    repair(path, out)
    assert box_of(path).is_dir()
    assert steps_in(out) == steps_in(path) == EVERY_STEP


@pytest.mark.parametrize("split", ["run", "episode"])
def test_a_resumed_run_goes_on_after_the_last_step(tmp_path, split):
    place = tmp_path / ("run.rrd" if split == "run" else "run")
    recorded_until(die, place, split=split)
    env = Told(RUN, 2)
    env.steps = LAST
    env = env.append_transform(RerunRecorder(place, split=split, resume=True))
    env.rollout(10, break_when_any_done=False)
    env.close()
    assert steps_in(place) == {env: list(range(1, LAST + 11)) for env in range(2)}
    assert not box_of(place).exists()


def test_an_earlier_run_in_a_black_box_alone_is_not_replaced(tmp_path):
    recorded_until(die, tmp_path / "run", split="episode")
    with pytest.raises(FileExistsError, match="holds recordings of an earlier run"):
        RerunRecorder(tmp_path / "run", split="episode")
    assert steps_in(tmp_path / "run") == EVERY_STEP


def test_seeds_annotations_and_the_policy_survive(tmp_path):
    place = tmp_path / "run"
    first = {"level": 3.0, "why": "x" * 3000}
    assert recorded_until(die, place, first, split="episode", keep=KeepLast(50)) == -signal.SIGKILL
    [episode] = [each for each in load(place) if each.properties.id == (1, 0)]
    assert episode.properties["level"] == 3.0
    assert episode.properties["why"] == "x" * 3000
    last = [each.properties for each in load(place)][-1]
    assert last.interrupted
    assert last["keep"] == repr(KeepLast(50))


@pytest.mark.parametrize("is_repaired", [False, True])
def test_annotations_survive_a_dump(tmp_path, is_repaired):
    """All rows of the episode are in a file, which was written before it was over: the box has notes alone."""
    place = tmp_path / "run"
    if os.fork() == 0:
        env = Told(RUN, 0).append_transform(RerunRecorder(place, split="episode"))
        data = env.reset()
        for _ in range(2):
            _, data = env.step_and_maybe_reset(env.rand_action(data))
        env.transform.annotate(None, level=3)
        env.transform.dump()
        env.transform.annotate(None, why="so")
        die()
    os.wait()
    assert [file.name for file in place.glob("*.rrd")] == ["env_0_episode_000000.part_0.rrd"]
    if is_repaired:
        assert repair(place) == Repaired(place, frames=3, episodes=1, envs=1, cut_bytes=0, lacking={})
        assert [file.name for file in place.iterdir()] == ["env_0_episode_000000.rrd"]
    [episode] = load(place)
    assert episode.properties.annotations == {"level": 3.0, "why": "so"}
    assert (episode.properties.length, episode.properties.episode_return, episode.properties.interrupted) == (
        2,
        3,
        True,
    )
    assert steps_in(place) == {0: [1, 2]}


@pytest.mark.parametrize("is_repaired", [False, True])
@pytest.mark.parametrize("is_reset", [False, True])
def test_an_episode_whose_last_step_is_in_a_file_ended_as_it_did(tmp_path, is_reset, is_repaired):
    place = tmp_path / "run"
    if os.fork() == 0:
        recorder = RerunRecorder(place, split="episode", flush_seconds=0.02, buffer_bytes=200)
        env = Told(RUN, 0).append_transform(recorder)
        data = env.reset()
        for _ in range(3):
            data = env.step(env.rand_action(data))["next"]
        wait_until(lambda: not recorder.stats()["frames_waiting"] and list(place.glob("*.rrd")))
        if is_reset:
            env.reset()
        die()
    os.wait()
    if is_repaired:
        repair(place)
    episode = load(place)[0]
    assert episode.tensordict()["next", "terminated"][:, 0].tolist() == [False, False, True]
    assert (episode.properties.terminated, episode.properties.interrupted) == (True, False)
    assert (episode.properties.length, episode.properties.episode_return) == (3, 6)


def in_episodes(place, **options):
    """Return an environment that is recorded to a folder, after 30 steps."""
    env = Told(RUN, 2).append_transform(RerunRecorder(place, split="episode", **options))
    env.rollout(LAST, break_when_any_done=False)
    return env


def test_a_folder_is_read_while_its_owner_closes_it(tmp_path, monkeypatch):
    """Its black box is gone after it was read, and the files of the folder are others than before."""
    place = tmp_path / "run"
    env = in_episodes(place, keep=KeepLast(100))
    found = box_parts.rest_of_episodes

    def and_close(*arguments):
        env.close()
        return found(*arguments)

    monkeypatch.setattr(box_parts, "rest_of_episodes", and_close)
    assert steps_in(place) == EVERY_STEP


@pytest.mark.parametrize("how", ["dump", "close", "goes on"])
def test_episodes_are_read_though_their_owner_has_written_them_since(tmp_path, how):
    place = tmp_path / "run"
    env = in_episodes(place, keep=KeepLast(100))
    loaded = load(place)
    assert len(loaded)
    if how == "goes on":
        data = env.reset()
        for _ in range(10):
            _, data = env.step_and_maybe_reset(env.rand_action(data))
    if how != "close":
        env.transform.dump()
    else:
        env.close()
    found: dict[int, list[int]] = {}
    for episode in loaded:
        clock = episode.tensordict(["clock"])["next", "clock"]
        found.setdefault(episode.properties.env, []).extend(clock[:, 0].long().tolist())
    assert found == EVERY_STEP
    env.close()


def test_episodes_whose_owner_has_replaced_their_parts_since_they_were_listed_lack_nothing(tmp_path):
    place = tmp_path / "run"
    env = in_episodes(place)
    env.transform.dump()
    listed = listing_of(place.glob("*.part_0.rrd")).episodes
    env.close()
    assert listed
    assert not any(each.path.exists() for each in listed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_lacking_episodes(listed)


def record_for_a_while(place, options):
    env = Told(RUN, 2).append_transform(RerunRecorder(place, split="episode", **options))
    data = env.reset()
    for step in range(300):
        _, data = env.step_and_maybe_reset(env.rand_action(data))
        if step % 20 == 0:
            env.transform.dump()
        time.sleep(0.003)
    env.close()


@pytest.mark.parametrize("options", [{"flush_seconds": 0.01, "buffer_bytes": 300}, {"keep": KeepLast(1000)}])
def test_a_folder_is_read_at_any_moment(tmp_path, options):
    place = tmp_path / "run"
    process = multiprocessing.Process(target=record_for_a_while, args=(place, options))
    process.start()
    wait_until(lambda: list(place.glob("*.rrd")))
    is_over = False
    while not is_over:
        is_over = not process.is_alive()
        for steps in steps_in(place).values():
            assert steps == list(range(1, len(steps) + 1))
    assert steps_in(place) == {env: list(range(1, 301)) for env in range(2)}


def test_a_folder_is_shown_though_nothing_is_in_its_black_box(tmp_path):
    env = Told(RUN, 2).append_transform(RerunRecorder(tmp_path / "run", split="episode"))
    env.rollout(12, break_when_any_done=False)  # both environments are done in the last one
    env.transform.dump()
    assert box_of(tmp_path / "run").is_dir()
    assert len(whole_files_of(tmp_path / "run")) == len(load(tmp_path / "run")) == 7
    env.close()


def test_a_repair_that_was_interrupted_is_begun_anew(tmp_path, monkeypatch):
    """The program has looked into the folder before."""
    place = tmp_path / "run"
    recorded_until(die, place, split="episode", keep=KeepLast(50))
    os.utime(place, (0, 0))
    assert steps_in(place) == EVERY_STEP
    write, written = repairing.write_whole, []

    def interrupt(*arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(arguments)
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(repairing, "write_whole", interrupt)
        with pytest.raises(KeyboardInterrupt):
            repair(place)
    assert len(list(place.glob("*.rrd"))) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a copy is counted once, with a warning
        assert steps_in(place) == EVERY_STEP
    assert repair(place).envs == 2
    assert steps_in(place) == EVERY_STEP


def hidden_in(folder):
    return sorted(each for each in folder.iterdir() if each.name.startswith(".torchrl-rerun."))


def repaired_until(happens, place):
    """Start a process that repairs a recording until its new file is written."""

    def write_and(*arguments):
        written(*arguments)
        happens()

    written, repairing.write_whole = repairing.write_whole, write_and
    repair(place)


@pytest.mark.parametrize("split", ["run", "episode"])
def test_what_a_killed_repair_was_writing_is_removed_by_the_next(tmp_path, split):
    """What another one is writing there stays."""
    folder = tmp_path / "run"
    place = folder / "run.rrd" if split == "run" else folder
    recorded_until(die, place, split=split)
    killed = multiprocessing.Process(target=repaired_until, args=(die, place))
    killed.start()
    killed.join()
    [abandoned] = hidden_in(folder)
    shutil.copy(next(abandoned.iterdir()), folder / "other.rrd")
    with (folder / "other.rrd").open("rb+") as other:
        other.truncate((folder / "other.rrd").stat().st_size - 7)
    hung = multiprocessing.Process(target=repaired_until, args=(hang, folder / "other.rrd"))
    hung.start()
    try:
        wait_until(lambda: "T (stopped)" in Path(f"/proc/{hung.pid}/status").read_text())
        assert not abandoned.exists()
        [live] = hidden_in(folder)
        if split == "run":
            repair(place)
        else:
            with pytest.raises(FileInUseError, match="other"):
                repair(place)
        assert hidden_in(folder) == [live]
        assert [file.name for file in live.iterdir()] == ["whole.rrd"]
    finally:
        os.kill(hung.pid, signal.SIGCONT)
        hung.join(PATIENCE)
    assert hung.exitcode == 0
    assert not hidden_in(folder)
    assert not box_of(place).exists()


@pytest.mark.parametrize("split", ["run", "episode"])
def test_a_hung_process_is_looked_into(tmp_path, split):
    place = tmp_path / ("run.rrd" if split == "run" else "run")
    process = recording_until(hang, place, split=split)
    try:
        wait_until(lambda: "T (stopped)" in Path(f"/proc/{process.pid}/status").read_text())
        before = {file: file.read_bytes() for file in sorted(tmp_path.rglob("*")) if file.is_file()}
        assert steps_in(place) == EVERY_STEP
        info = CliRunner().invoke(app, ["info", str(place)])
        assert info.exit_code == 0, info.output
        if split == "episode":
            listed = json.loads(CliRunner().invoke(app, ["ls", "--json", str(place)]).output)
            assert sum(each["length"] for each in listed) == 2 * LAST
        for file in whole_files_of(place):  # what is viewed
            assert RrdReader(file).store() is not None
        with pytest.raises(OSError, match="is being written by another"):
            repair(place)
        after = {file: file.read_bytes() for file in sorted(tmp_path.rglob("*")) if file.is_file()}
        assert after == before
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.join(PATIENCE)
    assert process.exitcode == 0
    assert not box_of(place).exists()
    assert {env: len(steps) for env, steps in steps_in(place).items()} == {0: 40, 1: 40}


def test_the_recording_of_a_killed_worker_ends_with_its_last_step(tmp_path):
    path = tmp_path / "run.rrd"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = ParallelEnv(2, functools.partial(recording_worker, path), serial_for_single=False, mp_start_method="fork")
        data = env.reset()
        for _ in range(10):
            _, data = env.step_and_maybe_reset(env.rand_action(data))
        os.kill(env._workers[0].pid, signal.SIGKILL)
        env._workers[0].join()
        env._workers[1].kill()
        env._workers[1].join()
    found = [steps_in(file) for file in sorted(tmp_path.glob("*.rrd"))]
    assert found == [{0: list(range(1, 11))}, {1: list(range(1, 11))}]


def recording_worker(path):
    return Told(RUN, 0).append_transform(RerunRecorder(path))


@pytest.mark.parametrize("split", ["run", "episode"])
def test_after_a_restart_of_the_machine_the_black_box_is_left_out(tmp_path, split):
    """Pages come to the disk in any order: what is there after a loss of power may never have been true."""
    place = tmp_path / ("run.rrd" if split == "run" else "run")
    recorded_until(die, place, split=split)
    said = json.loads((box_of(place) / "recording.json").read_text())
    said["machine"]["booted"] = "before"
    (box_of(place) / "recording.json").write_text(json.dumps(said))
    with (
        pytest.warns(RuntimeWarning, match="is left out: the machine was started again"),
        contextlib.suppress(ValueError),
    ):
        assert not len(load(place))
    said["machine"]["host"] = "another machine"
    (box_of(place) / "recording.json").write_text(json.dumps(said))
    assert steps_in(place) == EVERY_STEP


# --- when there can be no black box ---


def test_a_finished_recording_has_no_black_box(path):
    recorder = RerunRecorder(path)
    env = Told(RUN, 2).append_transform(recorder)
    env.rollout(5, break_when_any_done=False)
    assert recorder.stats()["has_black_box"]
    assert box_of(path).is_dir()
    env.close()
    assert [file.name for file in path.parent.iterdir()] == ["run.rrd"]


def test_without_room_for_a_black_box_memory_serves(small_disk):
    path = small_disk / "run.rrd"
    recorder = RerunRecorder(path)
    env = Told(Run(**{**RUN.__dict__, "pictures": "jpeg"}), 2).append_transform(recorder)
    with pytest.warns(RuntimeWarning, match=r"there is no black box for run.rrd \(.*No space left") as warned:
        env.rollout(30, break_when_any_done=False)
    assert len([each for each in warned if "black box" in str(each.message)]) == 1
    assert not recorder.stats()["has_black_box"]
    env.close()
    assert steps_in(path) == EVERY_STEP


def test_a_black_box_that_cannot_be_made_leaves_nothing(path, monkeypatch):
    def fail(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(black_box, "make_file", fail)
    env = Told(RUN, 2).append_transform(RerunRecorder(path))
    with pytest.warns(RuntimeWarning, match=r"no black box for run.rrd \(.*not supported"):
        env.rollout(LAST, break_when_any_done=False)
    env.close()
    assert [file.name for file in path.parent.iterdir()] == ["run.rrd"]
    assert steps_in(path) == EVERY_STEP


def test_a_folder_that_is_removed_costs_its_recording_alone(tmp_path):
    folder = tmp_path / "folder"
    recorder = RerunRecorder(folder / "run.rrd", flush_seconds=0.01)
    env = Told(RUN, 2).append_transform(recorder)
    env.rollout(5, break_when_any_done=False)
    folder.rename(tmp_path / "gone")  # the recorder may write while it is removed
    shutil.rmtree(tmp_path / "gone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env.rollout(50, break_when_any_done=False)
    with pytest.raises(RecordingError):
        recorder.close()


# --- boxes from elsewhere ---


def test_a_black_box_runs_no_code():
    with pytest.warns(RuntimeWarning, match=r"left out: .* posix\.system is no plain value"):
        assert not list(logged_objects(_area_with(b"cposix\nsystem\n(S'true'\ntR."), 1))


def _area_with(pickled):
    area = np.zeros(200, np.uint8)
    entry = struct.pack("<4q", 0, 0, 0, len(pickled)) + pickled
    area[: len(entry)] = np.frombuffer(entry, np.uint8)
    return area


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_black_box_is_an_error_or_costs_rows(tmp_path_factory, seed, crashed):
    place = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(crashed, place)
    rng = random.Random(seed)
    for file in box_of(place / "run.rrd").iterdir():
        data = bytearray(file.read_bytes())
        for _ in range(rng.choice([0, 1, 20])):
            data[rng.randrange(min(len(data), 6000))] = rng.randrange(256)
        file.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
    with contextlib.suppress(ValueError):
        for episode in load(place / "run.rrd"):
            episode.tensordict()


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crashed")
    recorded_until(die, folder / "run.rrd")
    return folder
