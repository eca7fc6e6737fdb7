"""The black box where a run meets odd values, other processes, and kills at the worst moments."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
import warnings

import numpy as np
import pytest
from tensordict import NonTensorData

from killed_anywhere import Run, Told
from servers import PATIENCE
from steps_of_told import steps_in
from torchrl_rerun import FileInUseError, KeepLast, RecordingError, RerunRecorder, load, repair
from torchrl_rerun.blocks import black_box, episode_notes, memory
from torchrl_rerun.blocks.black_box import box_of
from torchrl_rerun.chunks import episode_rows
from torchrl_rerun.rrd import locks
from torchrl_rerun.writing import episode_files
from torchrl_rerun.writing import file as sinks

RUN = Run(2, "batch", "run", keep=False, pictures="", texts=False, buffer_bytes=0, flush_seconds=0.0, rollouts=0)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed(record, *arguments):
    """Run a function in a forked process that kills itself."""
    process = multiprocessing.get_context("fork").Process(target=record, args=arguments)
    process.start()
    process.join()  # with a limit it would wait for the processes that this one has forked
    assert process.exitcode == -signal.SIGKILL


def step(env, data, steps):
    for _ in range(steps):
        _, data = env.step_and_maybe_reset(env.rand_action(data))
    return data


def up_to(steps):
    return {env: list(range(1, steps + 1)) for env in range(2)}


# --- limits and odd values ---


def record_with_few_handles(place, envs):
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 60, most))
    recorder = RerunRecorder(place, keep=KeepLast(1000), flush_seconds=100.0, buffer_bytes=200_000)
    env = Told(RUN, envs).append_transform(recorder)
    step(env, env.reset(), 30)
    with contextlib.closing(env):
        assert recorder.stats()["has_black_box"]
    assert not recorder.stats()["frames_lost"]
    die()


def test_episodes_that_wait_need_no_open_files(tmp_path):
    killed(record_with_few_handles, tmp_path / "run", 40)
    lengths = [episode.properties.length for episode in load(tmp_path / "run")]
    assert len(lengths) >= 100
    assert sum(lengths) == 40 * 30


class Odd(Told):
    """A text, or in step 5 another value."""

    def __init__(self, value):
        super().__init__(Run(**{**RUN.__dict__, "texts": True}), 0)
        self.value = value

    def _observed(self):
        out = super()._observed()
        return out.set("note", NonTensorData(self.value)) if self.steps == 5 else out


ODD = {
    "record": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "record's row": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])[0],
    "objects": np.array([object(), None], object),
    "functions": np.array([lambda: 0], object),
    "instance": KeepLast(1),
    "time": np.array(["2026-01-01"], "datetime64[D]"),
}


def record_odd(place, value):
    warnings.simplefilter("ignore")
    env = Odd(value).append_transform(RerunRecorder(place, flush_seconds=100.0))
    step(env, env.reset(), 20)
    die()


@pytest.mark.filterwarnings("ignore:.*isn't finished")
@pytest.mark.parametrize("name", ODD)
def test_a_value_that_cannot_be_stored_costs_that_value(path, name):
    killed(record_odd, path, ODD[name])
    for _ in range(2):
        [rollout] = [load(path).rollout()]
        assert rollout["next", "clock"][..., 0].reshape(-1).tolist() == list(range(1, 21))
        notes = [*load(path).rollout()["next", "note"]]
        assert [notes[at] for at in (3, 5)] == ["step 4", "step 6"]
        repair(path)


# --- names ---


def record_and_die(place, steps=30, dump=0):
    warnings.simplefilter("ignore")
    env = Told(RUN, 2).append_transform(RerunRecorder(place))
    data = env.reset()
    if dump:
        data = step(env, data, dump)
        env.transform.dump()
    step(env, data, steps - dump)
    die()


@pytest.mark.parametrize("dump", [0, 20])
def test_a_link_leads_to_the_black_box(tmp_path, dump):
    (tmp_path / "there").mkdir()
    killed(record_and_die, tmp_path / "there" / "run.rrd", 30, dump)
    link = tmp_path / "latest.rrd"
    link.symlink_to(tmp_path / "there" / "run.rrd")
    assert steps_in(link) == up_to(30)
    repair(link)
    assert steps_in(tmp_path / "there" / "run.rrd") == up_to(30)


def test_a_long_name_has_a_black_box(tmp_path):
    place = tmp_path / f"{'n' * 250}.rrd"
    killed(record_and_die, place)
    assert box_of(place).is_dir()
    assert steps_in(place) == up_to(30)
    repair(place)
    assert steps_in(place) == up_to(30)
    assert [file.name for file in tmp_path.iterdir()] == [place.name]


def test_a_box_is_told_by_the_start_of_its_machine_and_not_by_its_name(path, monkeypatch):
    killed(record_and_die, path)
    monkeypatch.setitem(black_box.MACHINE, "host", "a container beside it")
    assert steps_in(path) == up_to(30)


# --- other processes ---


@pytest.mark.parametrize("split", ["run", "episode"])
def test_a_process_whose_recording_was_removed_leaves_the_box_of_the_next_one(tmp_path, split):
    place = tmp_path / ("run.rrd" if split == "run" else "run")
    env = Told(RUN, 2).append_transform(RerunRecorder(place, split=split))
    data = step(env, env.reset(), 10)
    if split == "run":
        place.unlink()
    else:
        shutil.rmtree(place)
    ready, go_on = multiprocessing.Event(), multiprocessing.Event()

    def record():
        env = Told(RUN, 2).append_transform(RerunRecorder(place, split=split))
        data = step(env, env.reset(), 20)
        ready.set()
        go_on.wait()
        step(env, data, 10)
        die()

    process = multiprocessing.get_context("fork").Process(target=record)
    process.start()
    assert ready.wait(PATIENCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(env, data, 2000)  # more than a block
    with contextlib.suppress(RecordingError):
        env.close()
    go_on.set()
    process.join(PATIENCE)
    assert steps_in(place) == up_to(30)


@pytest.mark.parametrize("split", ["run", "episode"])
def test_a_child_that_outlives_its_parent_keeps_no_lock(tmp_path, split):
    place = tmp_path / ("run.rrd" if split == "run" else "run")
    hearing, told = os.pipe()

    def record():
        env = Told(RUN, 2).append_transform(RerunRecorder(place, split=split))
        data = step(env, env.reset(), 20)
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        os.write(told, f"{child}\n".encode())
        step(env, data, 10)
        die()

    killed(record)
    child = int(os.read(hearing, 100))
    try:
        assert not locks.is_locked(place)
        repair(place)
    finally:
        os.kill(child, signal.SIGKILL)
    assert steps_in(place) == up_to(30)


def test_a_reader_that_looks_at_a_lock_gets_no_recorder_refused(path):
    path.touch()
    reader, recorder = (os.open(path, os.O_RDWR) for _ in range(2))
    locks.fcntl.flock(reader, locks.fcntl.LOCK_SH)
    release = threading.Timer(0.05, lambda: locks.fcntl.flock(reader, locks.fcntl.LOCK_UN))
    release.start()
    locks.lock(recorder, path)
    with pytest.raises(FileInUseError, match="is being written"):
        locks.lock(reader, path)
    release.join()
    os.close(reader)
    os.close(recorder)


# --- the worst moments ---


@pytest.mark.parametrize(
    ("where", "is_before"),
    [("next_part", True), ("next_part", False), ("mark_whole", True), ("mark_whole", False), ("_begin_file", False)],
)
def test_a_kill_between_two_files_costs_no_step(tmp_path, monkeypatch, where, is_before):
    place = tmp_path / "run.rrd"
    of = sinks.FileTarget if where == "next_part" else sinks.FileWriter

    def record():
        said = os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        monkeypatch.setattr(sinks, "CHUNKS_PER_FILE", 60)
        env = Told(RUN, 2).append_transform(RerunRecorder(place, flush_seconds=0.01))
        data = step(env, env.reset(), 5)
        real = getattr(of, where)

        def last(self):
            is_it = where != "mark_whole" or (self.path == place and self._is_full)
            if is_before and is_it:
                die()
            found = real(self)
            return die() if is_it else found

        if where == "_begin_file":
            monkeypatch.setattr(black_box.BlackBox, "move", lambda self, path: (real_move(self, path), die()))
        else:
            monkeypatch.setattr(of, where, last)
        while True:
            data = step(env, data, 1)
            os.write(said, b".")
            time.sleep(0.002)

    real_move = black_box.BlackBox.move
    killed(record)
    told = 5 + (tmp_path / "said").stat().st_size
    found = steps_in(place)
    assert found in (up_to(told), up_to(told + 1))
    for file in sorted(tmp_path.glob("*.rrd")):
        with contextlib.suppress(ValueError):  # empty: nothing came into it
            repair(file)
    assert steps_in(place) == found
    assert not [*tmp_path.glob(".*")]


NOTED = {"level": 3.0, "why": "x" * 3000}


@pytest.mark.parametrize("moment", ["filled", "named", "noted"])
def test_a_kill_while_an_annotation_is_noted_costs_that_one_alone(tmp_path, monkeypatch, moment):
    place = tmp_path / "run"

    def record():
        env = Told(RUN, 2).append_transform(RerunRecorder(place, split="episode", flush_seconds=100.0))
        step(env, env.reset(seed=7), 1)
        env.transform.annotate(0, level=1.0)
        env.transform.annotate(1, level=2.0)
        if moment == "filled":
            monkeypatch.setattr(os, "rename", lambda *_, **__: die())
        elif moment == "named":
            monkeypatch.setattr(memory.Region, "free", lambda _: die())
        else:
            monkeypatch.setattr(episode_notes.np, "frombuffer", lambda *_: die())
        env.transform.annotate(1, **NOTED)

    killed(record)
    for _ in range(2):
        found = {each.properties.env: dict(each.properties.annotations) for each in load(place)}
        assert found == {0: {"level": 1.0}, 1: {"level": 2.0}}
        repair(place)


@pytest.mark.parametrize("is_before", [True, False])
def test_a_kill_between_the_parts_of_an_episode_leaves_it_one(tmp_path, monkeypatch, is_before):
    place = tmp_path / "run"

    def record():
        env = Told(RUN, 2).append_transform(RerunRecorder(place, split="episode", flush_seconds=100.0))
        data = step(env, env.reset(), 2)
        real = episode_rows.EpisodeRows.clear

        def clear(self):
            if is_before:
                die()
            real(self)
            die()

        step(env, data, 5)
        step(env, data, 1)
        monkeypatch.setattr(episode_rows.EpisodeRows, "clear", clear)
        env.transform.dump()

    killed(record)
    whole = up_to(8)
    for _ in range(2):
        episodes = [each.properties.id for each in load(place)]
        assert len(set(episodes)) == len(episodes)
        assert steps_in(place) == whole
        repair(place)


def test_a_mistake_with_overwrite_leaves_the_killed_run_as_it_was(path):
    killed(record_and_die, path, 30, 20)
    before = {file: file.read_bytes() for file in sorted(path.parent.rglob("*")) if file.is_file()}
    env = Told(RUN, 2).append_transform(RerunRecorder(path, overwrite=True, in_keys=["nothing of this name"]))
    with pytest.raises(KeyError, match="nothing of this name"):
        step(env, env.reset(), 1)
    assert {file: file.read_bytes() for file in sorted(path.parent.rglob("*")) if file.is_file()} == before
    assert steps_in(path) == up_to(30)
    env = Told(RUN, 2).append_transform(RerunRecorder(path, overwrite=True))
    step(env, env.reset(), 3)
    env.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert steps_in(path) == up_to(3)


def record_on_and_die(place):
    warnings.simplefilter("ignore")
    env = Told(RUN, 2)
    env.steps = 30
    env = env.append_transform(RerunRecorder(place, resume=True))
    step(env, env.reset(), 10)
    die()


def test_a_repair_takes_the_path_that_the_recorder_was_given(path):
    killed(record_and_die, path)
    killed(record_on_and_die, path)
    assert box_of(path.with_name("run.resumed_1.rrd")).is_dir()
    assert repair(path).path == path
    assert sorted(file.name for file in path.parent.iterdir()) == ["run.resumed_1.rrd", "run.rrd"]
    assert repair(path) is None
    assert steps_in(path) == up_to(40)


# --- episodes that aren't kept ---


def record_until_one_is_given_up(place):
    give_up = episode_files.EpisodeFiles._give_up

    def give_up_and_die(files, rows):
        give_up(files, rows)
        die()

    episode_files.EpisodeFiles._give_up = give_up_and_die
    recorder = RerunRecorder(place, keep=KeepLast(1), flush_seconds=0.05)
    env = Told(RUN, 1).append_transform(recorder)
    data = env.reset()
    _, data = env.step_and_maybe_reset(env.rand_action(data))
    deadline = time.monotonic() + PATIENCE
    while not list(box_of(place).glob("episode_*")):  # its first rows are in the journal
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while True:
        _, data = env.step_and_maybe_reset(env.rand_action(data))


def test_an_episode_that_is_given_up_is_there_whole_or_not_at_all(tmp_path):
    killed(record_until_one_is_given_up, tmp_path / "run")
    episodes = list(load(tmp_path / "run"))
    assert 0 not in [episode.properties.episode for episode in episodes]
    for episode in episodes:
        ages = episode["age"][:, 0].tolist()
        assert ages == list(range(len(ages)))
