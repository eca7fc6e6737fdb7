"""Pools of environments that are stepped asynchronously."""

from __future__ import annotations

import functools
import warnings

import pytest
from tensordict import LazyStackedTensorDict, NonTensorStack, TensorDict
from torchrl.envs import AsyncEnvPool

from environments import Count
from rebuilt import episodes_in
from torchrl_rerun import RerunRecorder


def recorded(path, n):
    return Count(n).append_transform(RerunRecorder(path))


def pool_of(path, backend, lengths=(2, 3, 5)):
    return AsyncEnvPool([functools.partial(recorded, path, n) for n in lengths], backend=backend)


def close(pool):
    for env in getattr(pool, "envs", ()):  # a pool of threads leaves its environments open
        env.close()
    pool.close(raise_if_closed=False)


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_workers_have_their_index_in_the_pool(tmp_path, backend):
    for number in range(2):
        path = tmp_path / f"run_{number}.rrd"
        pool = pool_of(path, backend)
        rollout = pool.rollout(4)
        close(pool)
        assert sorted(each.name for each in tmp_path.glob(f"run_{number}*")) == [
            f"run_{number}.worker_{env}.rrd" for env in range(3)
        ]
        first = [(each.env, each.length) for each in episodes_in(path) if each.episode == 0]
        assert first == [(0, 2), (1, 2), (2, 2)], "a rollout ends when any episode does"
        assert rollout.shape == (3, 2)


def test_environments_that_are_stepped_asynchronously_are_recorded(tmp_path):
    pool = pool_of(tmp_path / "run.rrd", "threading")
    pool.async_reset_send(nothing(pool))
    data = pool.async_reset_recv(min_get=3)
    for _ in range(6):
        pool.async_step_and_maybe_reset_send(pool.rand_action(data))
        _, data = pool.async_step_and_maybe_reset_recv(min_get=3)
    close(pool)
    lengths = {}
    for each in episodes_in(tmp_path / "run.rrd"):
        lengths.setdefault(each.env, []).append(each.length)
    assert lengths == {0: [2, 2, 2], 1: [3, 3], 2: [5, 1]}


def nothing(pool):
    data = LazyStackedTensorDict(*[TensorDict() for _ in range(pool.num_envs)])
    data["env_index"] = NonTensorStack(*range(pool.num_envs))
    return data


def test_a_recorder_outside_of_a_pool_gives_a_warning_of_steps_that_it_misses(path):
    pool = AsyncEnvPool([functools.partial(Count, 3)] * 2, backend="threading").append_transform(RerunRecorder(path))
    with pytest.warns(UserWarning, match="async_step_and_maybe_reset_send"):
        pool.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pool.reset()
    pool.transform.close()
