"""Several threads that use one recorder: rows are not mixed."""

from __future__ import annotations

import threading

import pytest
import torch
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import SerialEnv

from environments import Count
from rebuilt import episodes_in, rollout_in, steps_in
from servers import wait_until
from torchrl_rerun import RerunRecorder


def wrong(path):
    """Return the number of recorded transitions that never existed."""
    steps = rollout_in(path)
    bad = (steps["next", "observation"] != steps["observation"] + 1) | (
        steps["next", "reward"] != steps["next", "observation"] + 10
    )
    return int(bad.sum()), len(steps)


def test_a_buffer_that_samples_in_threads_is_recorded(path):
    recorder = RerunRecorder(path)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(70), batch_size=8, prefetch=3, transform=recorder)
    buffer.extend(Count(7).rollout(70, break_when_any_done=False))
    for _ in range(40):
        buffer.sample()
    wait_until(lambda: recorder.stats()["steps"] >= 8 * 40)
    buffer._prefetch_executor.shutdown()  # samples that come after close() begin another file, which would still be written
    recorder.close()
    bad, steps = wrong(path)
    assert bad == 0
    assert steps >= 8 * 40


@pytest.mark.parametrize("at", [1, 3, 7])
@pytest.mark.parametrize("envs", [1, 2])
def test_a_rollout_that_is_logged_within_an_episode_is_not_mixed_with_it(path, at, envs):
    """The episode goes on as another episode."""
    recorder = RerunRecorder(path)
    env = SerialEnv(envs, lambda: Count(7)).append_transform(recorder)
    logged = SerialEnv(envs, lambda: Count(5)).rollout(5)
    tensordict = env.reset()
    for step in range(8):
        if step == at:
            recorder.log_rollout(logged)
            recorder.log_rollout(logged)
        if step < 7:
            tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    recorder.log_rollout(logged)
    env.close()
    assert wrong_of_each(path) == (0, 22 * envs)
    lengths = [each.length for each in episodes_in(path) if each.env == envs - 1]
    assert lengths == [length for length in (at, 5, 5, 7 - at, 5) if length]


def test_partial_steps_after_a_logged_rollout_are_recorded_by_environment(path):
    recorder = RerunRecorder(path)
    env = SerialEnv(2, lambda: Count(7)).append_transform(recorder)
    tensordict = env.reset()
    for step, mask in enumerate(([True, True], [False, True], [True, True], [False, True])):
        if step == 1:
            recorder.log_rollout(SerialEnv(2, lambda: Count(5)).rollout(5))
        tensordict["_step"] = torch.tensor(mask)
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
        tensordict.pop("_step", None)
    env.close()
    lengths = {number: [] for number in range(2)}
    for (number, _), steps in steps_in(path).items():
        lengths[number].append(len(steps))
        assert torch.equal(steps["next", "observation"], steps["observation"] + 1)
    assert lengths == {0: [1, 5, 1], 1: [1, 5, 3]}


def test_a_rollout_that_another_thread_logs_is_not_mixed_with_others(path):
    recorder = RerunRecorder(path)
    env = Count(7).append_transform(recorder)
    rollout = Count(5).rollout(5)
    is_over = threading.Event()

    def log():
        while not is_over.wait(0.001):
            recorder.log_rollout(rollout)

    thread = threading.Thread(target=log)
    thread.start()
    env.rollout(200, break_when_any_done=False)
    is_over.set()
    thread.join()
    env.close()
    bad, steps = wrong_of_each(path)
    assert bad == 0
    assert steps >= 200


def wrong_of_each(path):
    """Return the number of transitions that never existed, and of all, by episode."""
    found = list(steps_in(path).values())
    bad = sum(int((each["next", "observation"] != each["observation"] + 1).sum()) for each in found)
    return bad, sum(map(len, found))


@pytest.mark.parametrize("way", ["log_rollout", "forward", "callback"])
def test_each_way_of_recording_works_in_several_threads(path, way):
    recorder = RerunRecorder(path)
    failed = []

    def record():
        try:
            for _ in range(12):
                if way == "callback":
                    Count(7).rollout(9, break_when_any_done=False, callback=recorder.callback)
                else:
                    getattr(recorder, way)(Count(7).rollout(7))
                recorder.dump()
                recorder.stats()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    assert not failed
    bad, steps = wrong(path)
    assert bad == 0
    assert steps == (4 * 12 * 8 if way == "callback" else 4 * 12 * 7)
