"""Several threads may use a recorder at once: rows aren't mixed."""

from __future__ import annotations

import threading
import time

import pytest
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from counting import Count
from torchrl_rerun import RerunRecorder, load


def wrong(path):
    """How many transitions never existed."""
    steps = load(path).rollout()
    bad = (steps["next", "observation"] != steps["observation"] + 1) | (
        steps["next", "reward"] != steps["next", "observation"] + 10
    )
    return int(bad.sum()), len(steps)


def test_a_buffer_that_samples_in_threads(path):
    recorder = RerunRecorder(path)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(70), batch_size=8, prefetch=3, transform=recorder)
    buffer.extend(Count(7).rollout(70, break_when_any_done=False))
    for _ in range(40):
        buffer.sample()
    deadline = time.monotonic() + 30
    while recorder.stats()["steps"] < 8 * 40 and time.monotonic() < deadline:
        time.sleep(0.05)
    recorder.close()
    bad, steps = wrong(path)
    assert bad == 0
    assert steps >= 8 * 40


@pytest.mark.parametrize("way", ["log_rollout", "forward", "callback"])
def test_every_way_in(path, way):
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
