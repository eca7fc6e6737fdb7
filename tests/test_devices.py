"""Values on an accelerator: copied asynchronously, in order, and written after their transfer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

from environments import Simulator
from late_transfers import Arriving, LateTransfers
from readback import read, same
from torchrl_rerun import RerunRecorder, repair
from torchrl_rerun.blocks import block, devices
from torchrl_rerun.transform import specs

DEVICES = ["fake", pytest.param("cuda:0", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    if request.param == "fake":
        for module in (block, devices):
            monkeypatch.setattr(module, "Transfers", LateTransfers)
        monkeypatch.setattr(specs, "device_of", lambda value: "cpu")
        LateTransfers.begun = LateTransfers.waited = 0
        return torch.device("cpu")
    return torch.device(request.param)


@pytest.mark.parametrize("logged_envs", [None, [1, 3], slice(1, 3)])
def test_values_of_an_accelerator_are_recorded_bit_for_bit(path, device, logged_envs):
    env = Simulator(4, device).append_transform(
        RerunRecorder(path, image_format="raw", logged_envs=logged_envs, buffer_bytes=200_000)
    )
    env.base_env.seen.clear()  # values of TorchRL's trial step
    rollout = env.rollout(60, break_when_any_done=False).cpu()
    env.close()
    recording = read(path)
    for number in range(4) if logged_envs is None else [1, 3] if logged_envs == [1, 3] else [1, 2]:
        for key in ("x", "half", "picture"):
            rows = recording[f"/env_{number}/{key}"]
            assert len(rows.values) > 60
            seen = zip(rows.along("frame"), rows.values, strict=True)
            assert all(same(value, env.base_env.seen[frame][key][number]) for frame, value in seen)
        rewards = recording[f"/env_{number}/reward"].values
        assert all(same(a, b) for a, b in zip(rewards, rollout["next", "reward"][number], strict=True))
        actions = recording[f"/env_{number}/action"].values
        assert all(same(a, b) for a, b in zip(actions, rollout["action"][number], strict=True))
        returns = recording[f"/env_{number}/episode_return"].values
        assert returns[-1] == pytest.approx(_return(rollout, number), rel=1e-6)


def test_copies_into_the_black_box_may_come_after_the_blocks_were_written(path, monkeypatch):
    for module in (block, devices):
        monkeypatch.setattr(module, "Transfers", LateTransfers)
    monkeypatch.setattr(specs, "device_of", lambda value: "cpu")
    arrive = Arriving.synchronize

    def arrive_late(arriving):
        if threading.current_thread().name.endswith("mirror"):
            time.sleep(0.01)
        arrive(arriving)

    monkeypatch.setattr(Arriving, "synchronize", arrive_late)
    env = Simulator(4, "cpu").append_transform(RerunRecorder(path, image_format="raw", buffer_bytes=200_000))
    env.base_env.seen.clear()  # values of TorchRL's trial step
    env.rollout(100, break_when_any_done=False)
    env.close()
    recording = read(path)
    for number in range(4):
        for key in ("x", "half", "picture"):
            rows = recording[f"/env_{number}/{key}"]
            seen = zip(rows.along("frame"), rows.values, strict=True)
            assert all(same(value, env.base_env.seen[frame][key][number]) for frame, value in seen)


def _return(rollout, number):
    total = 0.0
    for reward, done in zip(rollout["next", "reward"][number], rollout["next", "done"][number], strict=True):
        total += reward.double().item()
        last = total
        if done:
            total = 0.0
    return last


def test_values_are_written_after_their_transfer(path, monkeypatch):
    for module in (block, devices):
        monkeypatch.setattr(module, "Transfers", LateTransfers)
    monkeypatch.setattr(specs, "device_of", lambda value: "cpu")
    monkeypatch.setattr(LateTransfers, "are_kept", False)
    LateTransfers.begun = LateTransfers.waited = 0
    recorder = RerunRecorder(path, image_format="raw", flush_seconds=1000.0)
    env = Simulator(4, "cpu").append_transform(recorder)
    env.rollout(10, break_when_any_done=False)
    recorder.dump()
    waited = LateTransfers.waited  # transfers of values that are written by now
    assert LateTransfers.begun > 50
    env.rollout(10, break_when_any_done=False)
    assert LateTransfers.waited == waited
    env.transform.dump()
    assert LateTransfers.waited > waited
    env.close()


def test_statistics_over_many_environments_on_an_accelerator(path, device):
    env = Simulator(100, device).append_transform(RerunRecorder(path, in_keys=["x", "reward"]))
    rollout = env.rollout(10, break_when_any_done=False).cpu()
    env.close()
    means = [float(row[0]) for row in read(path)["/batch/reward"].values]
    assert means == pytest.approx(rollout["next", "reward"].double().mean(0)[:, 0].tolist())


AT_MOST_MISSING = 2
"""Steps that a kill may cost: those whose values are on their way from the accelerator."""


def step_until_killed(path, device, steps):
    """Record steps, a few milliseconds each, and be killed when the last one has returned."""
    if device == "cpu":
        for module in (block, devices):
            module.Transfers = LateTransfers
        specs.device_of = lambda value: "cpu"
    env = Simulator(4, device).append_transform(RerunRecorder(path, image_format="raw", flush_seconds=1000.0))
    data = env.reset()
    for _ in range(steps):
        time.sleep(0.005)
        _, data = env.step_and_maybe_reset(env.rand_action(data))
    os.kill(os.getpid(), signal.SIGKILL)


def test_values_that_have_arrived_from_an_accelerator_outlive_the_process(path, device):
    process = multiprocessing.Process(target=step_until_killed, args=(path, str(device), 30))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    env = Simulator(4, device)
    data = env.reset()
    for _ in range(30):
        _, data = env.step_and_maybe_reset(env.rand_action(data))
    repair(path)
    recording = read(path)
    for number in range(4):
        for key in ("x", "half", "picture"):
            rows = recording[f"/env_{number}/{key}"]
            seen = zip(rows.along("frame"), rows.values, strict=True)
            assert all(same(value, env.seen[frame][key][number]) for frame, value in seen)
        assert 30 - AT_MOST_MISSING <= recording[f"/env_{number}/reward"].along("step")[-1] <= 30
