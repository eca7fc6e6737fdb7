"""Transforms behind the recorder: their flags are recorded, and a warning names other changes."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import (
    Compose,
    FrameSkipTransform,
    MultiAction,
    ObservationNorm,
    RandomTruncationTransform,
    RewardScaling,
    SerialEnv,
    StepCounter,
    Transform,
    TransformedEnv,
)

from environments import Count
from readback import hold_the_same, read
from rebuilt import episodes_in, rollout_in
from servers import wait_until
from torchrl_rerun import KeepIf, RerunRecorder
from torchrl_rerun.recording.recording import STALE_CHECKS, Recording


def counting(path, *behind, n=100, **arguments):
    env = Count(n, truncates=True).append_transform(RerunRecorder(path, **arguments))
    for transform in behind:
        env = env.append_transform(transform)
    return env


FLAGS = ("done", "terminated", "truncated")


def flags_are_those_of(path, rollout):
    back = rollout_in(path)
    for flag in FLAGS:
        assert torch.equal(back["next", flag], rollout["next", flag]), flag
        assert torch.equal(back[flag], rollout[flag]), flag


@pytest.mark.parametrize("split", ["run", "dump", "episode"])
def test_truncations_by_a_collector_are_recorded(tmp_path, split):
    """The collector appends a StepCounter behind the recorder."""
    env = counting(tmp_path / "run", split=split)
    [batch] = list(Collector(env, None, frames_per_batch=12, total_frames=12, max_frames_per_traj=4))
    flags_are_those_of(tmp_path / "run", batch)
    assert [(each.length, each.truncated) for each in episodes_in(tmp_path / "run")] == [(4, True)] * 3


@pytest.mark.parametrize("n", [3, 5, 100])
def test_truncations_by_a_step_counter_behind_are_recorded(path, n):
    env = counting(path, StepCounter(4), n=n)
    rollout = env.rollout(14, break_when_any_done=False)
    env.close()
    flags_are_those_of(path, rollout)


def test_environments_of_a_batch_are_truncated_one_by_one(path):
    env = SerialEnv(3, [lambda n=n: Count(n, truncates=True) for n in (2, 5, 9)]).append_transform(RerunRecorder(path))
    env = env.append_transform(StepCounter(4))
    rollout = env.rollout(14, break_when_any_done=False)
    env.close()
    flags_are_those_of(path, rollout)


def test_random_horizons_behind_are_recorded(path):
    env = counting(path, Compose(StepCounter(), RandomTruncationTransform(min_horizon=2, max_horizon=5)))
    rollout = env.rollout(20, break_when_any_done=False)
    env.close()
    flags_are_those_of(path, rollout)


class Waits(Transform):
    """Truncates every third step, after giving another thread time."""

    def __init__(self, entered, goes_on, seconds=0.3):
        super().__init__()
        self.entered, self.goes_on, self.seconds, self.steps = entered, goes_on, seconds, 0

    def _step(self, tensordict, next_tensordict):
        self.steps += 1
        if self.steps == 3:
            self.entered.set()
            self.goes_on.wait(self.seconds)
            next_tensordict.set("truncated", torch.ones(1, dtype=torch.bool))
            next_tensordict.set("done", torch.ones(1, dtype=torch.bool))
        return next_tensordict


@pytest.mark.parametrize("how", ["dump", "close"])
def test_a_dump_by_another_thread_waits_for_a_step_within_transforms_behind(path, how):
    """The file has the final flags of the step."""
    entered, goes_on = threading.Event(), threading.Event()
    env = counting(path, Waits(entered, goes_on))
    recorder = env.transform[0]

    def another():
        assert entered.wait(30)
        getattr(recorder, how)()
        written.append(rollout_in(path))
        goes_on.set()

    written = []
    thread = threading.Thread(target=another)
    thread.start()
    rollout = env.rollout(5)
    thread.join()
    assert len(rollout) == 3
    for flag in FLAGS:
        assert torch.equal(written[0]["next", flag], rollout["next", flag]), flag
    env.close()


def test_a_step_that_failed_behind_delays_no_dump(path):
    env = counting(path, Fails())
    with pytest.raises(ZeroDivisionError):
        env.step(env.rand_action(env.reset()))
    thread = threading.Thread(target=env.transform[0].dump)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread.start()
        thread.join()
    env.close()


def test_a_slow_transform_behind_delays_a_dump_for_a_limited_time(path, monkeypatch):
    """Then the dump writes the flags at that moment, with a warning."""
    monkeypatch.setattr("torchrl_rerun.transform.front_end._REVISING_SECONDS", 0.05)
    entered, goes_on = threading.Event(), threading.Event()
    env = counting(path, Waits(entered, goes_on, seconds=60))
    recorder, said = env.transform[0], []

    def another():
        assert entered.wait(30)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            recorder.dump()
        said.extend(str(each.message) for each in caught)
        goes_on.set()

    thread = threading.Thread(target=another)
    thread.start()
    env.rollout(5)
    thread.join()
    env.close()
    assert ["a transform behind the recorder has been at work for 0.05 s" in each for each in said] == [True]


def test_a_key_that_is_made_behind_gives_a_warning(path):
    env = counting(path, in_keys=["observation", "step_count"])
    with pytest.warns(
        UserWarning, match=r"'step_count' is recorded as it goes into a step.*made by StepCounter behind"
    ):
        [batch] = list(Collector(env, None, frames_per_batch=6, total_frames=6, max_frames_per_traj=4))
    assert torch.equal(rollout_in(path)["step_count"], batch["step_count"])


def test_flags_of_an_outer_environment_are_recorded(path):
    env = TransformedEnv(counting(path), StepCounter(4), auto_unwrap=False)
    rollout = env.rollout(14, break_when_any_done=False)
    env.base_env.transform.close()
    flags_are_those_of(path, rollout)


def test_a_dump_writes_the_final_flags_of_the_last_step(path):
    env = counting(path, StepCounter(3))
    rollout = env.rollout(3)
    env.transform[0].dump()
    assert episodes_in(path)[0].truncated
    flags_are_those_of(path, rollout)
    env.close()


def test_an_old_last_step_is_written_with_its_final_flags(path):
    env = counting(path, StepCounter(3), flush_seconds=0.2)
    tensordict = env.reset()
    for _ in range(3):
        tensordict = env.step(env.rand_action(tensordict))
        flags = tensordict["next", "truncated"]
        tensordict = env.step_mdp(tensordict)
    assert flags.all()
    wait_until(lambda: not env.transform[0].stats()["frames_waiting"])
    assert torch.cat(read(path)["/env_0/truncated"].values).tolist() == [False, False, False, True]
    env.close()


def test_the_keep_policy_knows_how_an_episode_ended(tmp_path):
    env = counting(tmp_path, StepCounter(4), n=3, split="episode", keep=KeepIf(lambda episode: episode.truncated))
    env.rollout(10, break_when_any_done=False)
    env.base_env.n = 9
    env.rollout(10, break_when_any_done=False)
    env.close()
    assert [(each.length, each.terminated) for each in episodes_in(tmp_path)] == [(4, False)] * 2


@pytest.mark.parametrize("skip", [2, 3, 10])
def test_the_last_frame_of_an_episode_is_never_skipped(path, skip):
    env = counting(path, StepCounter(5), skip=skip)
    env.rollout(11, break_when_any_done=False)
    env.close()
    rows = read(path)["/env_0/truncated"]
    shown = sorted({*range(0, 6, skip), 5})
    assert rows.along("episode_step") == shown * 2 + [0, *([1] if skip == 1 else [])]
    assert [value.item() for value in rows.values] == ([step == 5 for step in shown]) * 2 + [False]


def test_frames_of_skipped_steps_are_counted_once(path):
    env = counting(path, StepCounter(5), skip=3)
    env.rollout(10, break_when_any_done=False)
    env.close()
    assert read(path)["/env_0/observation"].along("frame") == list(range(6))


# --- changes of other keys ---


def told_of(env, steps=6):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rollout = env.rollout(steps, break_when_any_done=False)
        env.rollout(steps, break_when_any_done=False)
    messages = [str(each.message) for each in caught if "not what the rollout holds" in str(each.message)]
    return rollout, messages


@pytest.mark.parametrize(
    ("transform", "key"),
    [
        (lambda: FrameSkipTransform(2), "'observation'"),
        (lambda: ObservationNorm(1.0, 2.0, in_keys=["observation"]), "'observation'"),
        (lambda: RewardScaling(0.0, 3.0), "'reward'"),
    ],
)
def test_a_transform_that_changes_values_is_named_once(path, transform, key):
    behind = transform()
    env = counting(path, behind)
    _, told = told_of(env)
    env.close()
    assert len(told) == 1
    assert type(behind).__name__ in told[0]
    assert key in told[0]


def test_a_transform_that_makes_several_steps_is_named(path):
    env = counting(path, MultiAction())
    with pytest.warns(UserWarning, match="MultiAction changes it"):
        env.rollout(2, lambda td: td.set("action", torch.zeros(3, 1)))
    env.close()


def test_a_transform_that_is_appended_after_the_first_frame_is_named(path):
    env = counting(path)
    env.rollout(3)
    env = env.append_transform(ObservationNorm(1.0, 2.0, in_keys=["observation"]))
    _, told = told_of(env)
    env.close()
    assert len(told) == 1
    assert "ObservationNorm" in told[0]


def test_a_transform_of_an_outer_environment_is_named(path):
    inner = counting(path)
    env = TransformedEnv(inner, ObservationNorm(1.0, 2.0, in_keys=["observation"]), auto_unwrap=False)
    _, told = told_of(env)
    inner.close()
    assert len(told) == 1
    assert "ObservationNorm" in told[0]


def test_transforms_that_change_nothing_give_no_warning(path):
    env = counting(path, StepCounter(4), n=3)
    rollout, told = told_of(env)
    env.close()
    assert not told
    assert hold_the_same(rollout_in(path)[:6].select("observation", "action"), rollout.select("observation", "action"))


def test_a_recorder_in_the_last_place_gives_no_warning(path):
    env = SerialEnv(2, lambda: Count(3)).append_transform(StepCounter(4)).append_transform(RerunRecorder(path))
    _, told = told_of(env)
    env.close()
    assert not told


# --- set_truncated ---


def test_set_truncated_is_recorded_in_logged_rollouts_alone(tmp_path):
    """TorchRL sets the flag after all hooks: only a logged rollout has it."""
    env = counting(tmp_path / "live.rrd")
    rollout = env.rollout(5, set_truncated=True)
    env.close()
    assert rollout["next", "truncated"][-1].all()
    with RerunRecorder(tmp_path / "logged.rrd") as recorder:
        recorder.log_rollout(rollout)
    assert [episodes_in(tmp_path / name)[0].truncated for name in ("live.rrd", "logged.rrd")] == [False, True]
    flags_are_those_of(tmp_path / "logged.rrd", rollout)


# --- flags that change in place, are lowered, or come late ---


class InPlace(Transform):
    """Truncates an episode after a number of steps, in place."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.steps = length, 0

    def _reset(self, tensordict, tensordict_reset):
        self.steps = 0
        return tensordict_reset

    def _step(self, tensordict, next_tensordict):
        self.steps += 1
        if self.steps == self.length:
            next_tensordict["truncated"].fill_(True)
            next_tensordict["done"].fill_(True)
        return next_tensordict


class GoesOn(Transform):
    """Lowers the flags that end an episode."""

    def _step(self, tensordict, next_tensordict):
        never = torch.zeros(1, dtype=torch.bool)
        return next_tensordict.update({flag: never.clone() for flag in FLAGS})


class WaitsForACondition(Transform):
    """Waits in each step until a condition holds; ``begin`` makes the condition of one step."""

    def __init__(self, begin):
        super().__init__()
        self.begin = begin

    def _step(self, tensordict, next_tensordict):
        wait_until(self.begin())
        return next_tensordict


class Fails(Transform):
    def _step(self, tensordict, next_tensordict):
        raise ZeroDivisionError


@pytest.mark.parametrize("split", ["run", "episode"])
def test_flags_that_are_raised_in_place_behind_are_recorded(tmp_path, split):
    env = counting(tmp_path / "run", InPlace(3), split=split)
    rollout = env.rollout(8, break_when_any_done=False)
    env.close()
    flags_are_those_of(tmp_path / "run", rollout)
    ends = [(each.length, each.truncated) for each in episodes_in(tmp_path / "run")]
    assert ends == [(3, True), (3, True), (2, False)]


@pytest.mark.parametrize("split", ["run", "episode"])
def test_flags_that_are_lowered_behind_are_recorded(tmp_path, split):
    env = counting(tmp_path / "run", GoesOn(), n=3, split=split)
    rollout = env.rollout(8)
    env.close()
    flags_are_those_of(tmp_path / "run", rollout)
    assert episodes_in(tmp_path / "run") == [(0, 0, 8, False, False)]


def test_a_step_that_is_not_finished_is_not_flushed_by_age(path, monkeypatch):
    checks = []
    check = Recording.flush_if_stale
    monkeypatch.setattr(Recording, "flush_if_stale", lambda recording: (check(recording), checks.append(recording)))

    def begin():
        enough = len(checks) + 2 * STALE_CHECKS  # by then the step is older than flush_seconds
        return lambda: len(checks) > enough

    env = counting(path, Compose(WaitsForACondition(begin), StepCounter(2)), flush_seconds=0.1)
    rollout = env.rollout(4, break_when_any_done=False)
    env.close()
    flags_are_those_of(path, rollout)


def test_an_environment_whose_step_failed_is_freed(path):
    env = counting(path, Fails())
    with pytest.raises(ZeroDivisionError):
        env.rollout(3)
    env.transform[0].close()
    seen = weakref.ref(env.base_env)
    del env
    gc.collect()
    assert seen() is None
