"""Frames that are recorded: compared with Gymnasium's RecordVideo, and with a reference for random options."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import RecordVideo
from gymnasium.wrappers.vector import RecordVideo as VectorRecordVideo
from hypothesis import given
from hypothesis import strategies as st
from torchrl.envs import GymEnv, GymWrapper, SerialEnv

from driving import STEPS, TRIGGERS, drive, sequences
from effort import examples
from environments import Counter, Lengths
from readback import read
from reference import Reference
from torchrl_rerun import RerunRecorder


class _Noting:
    """RecordVideo that notes the frames that it would encode."""

    def stop_recording(self):
        self.videos = [
            *getattr(self, "videos", []),
            [tuple(map(int, frame[0, 0, :2])) for frame in self.recorded_frames],
        ]
        self.recorded_frames, self.recording, self._video_name = [], False, None


class NotingRecordVideo(_Noting, RecordVideo):
    pass


class NotingVectorRecordVideo(_Noting, VectorRecordVideo):
    pass


def recorded_moments(path, env=0):
    rows = read(path).entities.get(f"/env_{env}/observation")
    return [] if rows is None else [tuple(map(int, value)) for value in rows.values]


def of_record_video(tmp_path, triggers, length, shift=0):
    video = NotingRecordVideo(
        Lengths(shift), str(tempfile.mkdtemp(dir=tmp_path)), video_length=length, **TRIGGERS[triggers]
    )
    video.reset()
    for number in range(STEPS):
        if video.step(0)[2] and number + 1 < STEPS:
            video.reset()
    video.close()
    return moments_of(video)


def of_vector_record_video(tmp_path, triggers, length):
    batch = gymnasium.vector.SyncVectorEnv([Lengths] * 3, autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED)
    video = NotingVectorRecordVideo(
        batch, str(tempfile.mkdtemp(dir=tmp_path)), record_first_only=True, video_length=length, **TRIGGERS[triggers]
    )
    video.reset()
    for number in range(STEPS):
        ended = video.step(np.zeros(3, np.int64))[2]
        if ended.any() and number + 1 < STEPS:
            video.reset(options={"reset_mask": ended})
    video.close()
    return moments_of(video)


def moments_of(video):
    return [moment for one in getattr(video, "videos", []) for moment in one]


@pytest.mark.parametrize("length", [0, 1, 2, 7])
@pytest.mark.parametrize("triggers", TRIGGERS)
def test_recorded_moments_equal_those_of_record_video(path, tmp_path, triggers, length):
    env = GymWrapper(Lengths()).append_transform(
        RerunRecorder(path, recording_length=length, blueprint=False, **TRIGGERS[triggers])
    )
    env.rollout(STEPS, break_when_any_done=False)
    env.close()
    assert recorded_moments(path) == of_record_video(tmp_path, triggers, length)


@pytest.mark.parametrize("length", [0, 4])
@pytest.mark.parametrize("triggers", TRIGGERS)
def test_each_environment_of_a_batch_is_triggered_by_itself(path, tmp_path, triggers, length):
    env = SerialEnv(3, [lambda shift=shift: GymWrapper(Lengths(shift)) for shift in range(3)]).append_transform(
        RerunRecorder(path, recording_length=length, blueprint=False, **TRIGGERS[triggers])
    )
    env.rollout(STEPS, break_when_any_done=False)
    env.close()
    for shift in range(3):
        assert recorded_moments(path, shift) == of_record_video(tmp_path, triggers, length, shift)
    assert recorded_moments(path) == of_vector_record_video(tmp_path, triggers, length)


@dataclass
class Model:
    """Recorded frames of one environment, by RecordVideo's rules and skipping, step by step."""

    episode_trigger: object
    step_trigger: object
    length: int
    skip: int
    running: bool = False
    count: int = 0
    since: int = 0
    shown: list[int] = field(default_factory=list)

    def take(self, frame, *, ends=False):
        has_triggers = self.episode_trigger or self.step_trigger
        if has_triggers and not self.running:
            return
        if self.since % self.skip == 0 or ends:
            self.shown.append(frame)
        self.count += 1
        if has_triggers and self.length and self.count > self.length:
            self.running = False

    def reset(self, frame, episode):
        self.since = 0
        if not self.length:
            self.running = False
        if self.episode_trigger and self.episode_trigger(episode):
            self.running, self.count = True, 0
        self.take(frame)

    def step(self, frame, step, *, ends):
        self.since += 1
        if self.step_trigger and self.step_trigger(step - 1):
            self.running, self.count, self.since = True, 0, 0
        self.take(frame, ends=ends)


def only_shown(reference, models):
    """Return the reference without frames that are not recorded, and with new frame numbers."""
    numbers = {frame: number for number, frame in enumerate(sorted({f for model in models for f in model.shown}))}
    for (env, key), rows in list(reference.rows.items()):
        rows[:] = [row for row in rows if row.frame in models[env].shown]
        for row in rows:
            row.frame = numbers[row.frame]
        if not rows:
            del reference.rows[env, key]


numbers = st.sets(st.integers(0, 12), max_size=6)


@examples(40)
@given(sequences(), st.none() | numbers, st.none() | numbers, st.integers(0, 5), st.integers(1, 4))
def test_recorded_frames_of_random_options_equal_a_reference(run, episodes, steps, length, skip):
    envs, events, ends, buffer_bytes = run
    choice = (None if episodes is None else episodes.__contains__, None if steps is None else steps.__contains__)
    length = 0 if choice == (None, None) else length
    models = [Model(*choice, length, skip) for _ in range(envs)]
    reference, returns = Reference(envs), {}
    total = np.zeros(envs)

    def reset(chosen):
        for i in chosen:
            total[i] = 0
            models[i].reset(reference.frame, reference.at[i]["episode"])
            returns[i, reference.frame] = 0.0

    def step(i, reward, *, ends):
        total[i] += reward
        models[i].step(reference.frame, reference.step, ends=ends)
        returns[i, reference.frame] = total[i]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.rrd")
        recorder = RerunRecorder(
            path,
            image_format="raw",
            buffer_bytes=buffer_bytes,
            blueprint=False,
            episode_trigger=choice[0],
            step_trigger=choice[1],
            recording_length=length,
            skip=skip,
        )
        env = Counter(envs, itertools.chain(ends)).append_transform(recorder)
        drive(env, events, reference, dumped=recorder.dump, was_reset=reset, was_stepped=step)
        env.close()
        wanted = [[returns[i, frame] for frame in model.shown] for i, model in enumerate(models)]
        only_shown(reference, models)
        recorded = read(path)
        found = {p for p in recorded.entities if "episode_return" not in p}
        assert found == {f"/env_{i}/{key}" for i, key in reference.rows}
        reference.compare_returns = lambda *_: None  # the sums are of recorded rewards alone
        reference.compare(recorded)
        for i in range(envs):
            rows = recorded.entities.get(f"/env_{i}/episode_return")
            assert [value.item() for value in (rows.values if rows else [])] == wanted[i]


def test_the_first_and_the_last_frame_are_never_skipped(path):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(path, skip=4, blueprint=False))
    env.rollout(10, break_when_any_done=False)
    env.close()
    assert recorded_moments(path) == [(0, 0), (0, 3), (1, 0), (1, 1), (2, 0), (2, 4), (2, 6)]


def test_switch_turns_recording_on_and_off(path):
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path, blueprint=False))
    recorder = env.transform
    assert recorder.enabled
    tensordict = env.reset(seed=0)
    for _ in range(3):
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    recorder.switch()
    assert not recorder.enabled
    for _ in range(2):
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    recorder.switch("on")
    for _ in range(2):
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    env.close()
    recorded = read(path)
    assert recorded["/env_0/observation"].along("step") == [0, 1, 2, 3, 6, 7]
    assert recorded["/env_0/observation"].along("frame") == [0, 1, 2, 3, 4, 5]
    assert recorded["/env_0/action"].along("step") == [0, 1, 2, 3, 6]
    assert [value.item() for value in recorded["/env_0/episode_return"].values] == [0, 1, 2, 3, 6, 7]
    with pytest.raises(ValueError, match="mode='maybe'"):
        recorder.switch("maybe")


def test_a_recorder_may_be_off_from_the_beginning(path):
    recorder = RerunRecorder(path, blueprint=False)
    recorder.switch("off")
    env = GymEnv("CartPole-v1").append_transform(recorder)
    env.rollout(3)
    recorder.switch(True)
    env.rollout(3)
    env.close()
    assert set(read(path)["/env_0/observation"].along("episode")) == {1}


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        ({"skip": 0}, ValueError, "skip=0: pass 1 or more"),
        ({"skip": 2.0}, TypeError, "skip=2.0 is of type float"),
        ({"recording_length": 5}, ValueError, "needs a trigger"),
        ({"recording_length": -1}, ValueError, "recording_length=-1: pass 0 or more"),
        ({"episode_trigger": 100}, TypeError, "episode_trigger=100 can't be called"),
    ],
)
def test_wrong_arguments_are_refused(path, arguments, error, what):
    with pytest.raises(error, match=what):
        RerunRecorder(path, **arguments)
