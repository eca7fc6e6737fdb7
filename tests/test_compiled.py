"""Compiled environments: the recorder is called, and never traced."""

from __future__ import annotations

import functools

import pytest
import torch
from torchrl.envs import RewardSum, StepCounter, TransformedEnv

from environments import Count
from readback import hold_the_same
from rebuilt import episodes_in, rollout_in, steps_in
from torchrl_rerun import RerunRecorder


@pytest.fixture(autouse=True)
def _forget_what_was_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(path, n=5):
    return TransformedEnv(Count(n), RewardSum()).append_transform(RerunRecorder(path))


def rollout_of(env):
    torch.manual_seed(0)
    return env.rollout(12, break_when_any_done=False)


def recorded(tmp_path, name, compiled):
    env = make(tmp_path / name)
    rollout = rollout_of(compiled(env))
    env.close()
    return rollout, rollout_in(tmp_path / name)


@pytest.mark.parametrize(("backend", "warmup"), [("eager", None), ("aot_eager", 2), ("inductor", 2)])
def test_a_compiled_environment_records_the_rollout_of_the_uncompiled_one(tmp_path, backend, warmup):
    _, plain = recorded(tmp_path, "plain.rrd", lambda env: env)
    rollout, found = recorded(tmp_path, "compiled.rrd", lambda env: env.compile(backend=backend, warmup=warmup))
    for name in ("plain.rrd", "compiled.rrd"):
        assert [each.length for each in episodes_in(tmp_path / name)] == [5, 5, 2]
    assert hold_the_same(found, plain)
    assert torch.equal(found["next", "observation"], rollout["next", "observation"])


def test_a_compiled_step_is_recorded(tmp_path):
    env = make(tmp_path / "run.rrd")
    step = torch.compile(env.step, backend="eager")
    data = env.reset()
    for _ in range(4):
        data = env.step_mdp(step(env.rand_action(data)))
    env.close()
    assert rollout_in(tmp_path / "run.rrd")["next", "observation"].flatten().tolist() == [1, 2, 3, 4]


def test_a_compiled_environment_records_flags_of_transforms_behind(tmp_path):
    env = (
        Count(9, truncates=True).append_transform(RerunRecorder(tmp_path / "run.rrd")).append_transform(StepCounter(4))
    )
    env.compile(backend="eager", warmup=2)
    rollout = rollout_of(env)
    env.close()
    assert [each.truncated for each in episodes_in(tmp_path / "run.rrd")] == [True] * 3
    assert torch.equal(rollout_in(tmp_path / "run.rrd")["next", "truncated"], rollout["next", "truncated"])


ONE_GRAPH = {
    "step": lambda env: torch.compile(env.step, backend="eager", fullgraph=True),
    "step_and_maybe_reset": lambda env: torch.compile(env.step_and_maybe_reset, backend="eager", fullgraph=True),
    "env.compile": lambda env: env.compile(backend="eager", fullgraph=True).step_and_maybe_reset,
    "env.compile after a warm-up": lambda env: functools.partial(
        env.compile(backend="eager", fullgraph=True, warmup=2).rollout, 6, auto_reset=False, break_when_any_done=False
    ),
}


@pytest.mark.parametrize("how", ONE_GRAPH)
def test_fullgraph_is_refused_with_advice(tmp_path, how):
    """The environment and its recording go on uncompiled."""
    env = make(tmp_path / "run.rrd")
    compiled, data = ONE_GRAPH[how](env), env.rand_action(env.reset())
    with pytest.raises(Exception, match=r"compile the environment without fullgraph=True, or record the rollouts"):
        compiled(tensordict=data)
    env.eager()
    rollout = env.rollout(4)
    env.close()
    assert hold_the_same(list(steps_in(tmp_path / "run.rrd").values())[-1], rollout)
