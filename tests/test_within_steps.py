"""Transforms in front of the recorder that make several steps within one, or skip steps."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import ConditionalSkip, MultiAction, ParallelEnv, SerialEnv, TransformedEnv

from environments import Count
from readback import read
from rebuilt import episodes_in, rollout_in
from torchrl_rerun import RerunRecorder


def chunks(env, count):
    return lambda td: td.set("action", torch.zeros(*env.batch_size, count, 1))


def agree(path, rollout, keys=("observation", "done", "terminated")):
    back = rollout_in(path)
    for key in keys:
        assert torch.equal(back["next", key], rollout["next", key]), key
        assert torch.equal(back[key], rollout[key]), key


@pytest.mark.parametrize("stack_rewards", [True, False])
@pytest.mark.parametrize("n", [3, 4, 5, 7])
def test_an_episode_may_end_within_a_chunk_of_actions(path, n, stack_rewards):
    env = TransformedEnv(Count(n), MultiAction(stack_rewards=stack_rewards)).append_transform(RerunRecorder(path))
    rollout = env.rollout(6, chunks(env, 3), break_when_any_done=False)
    env.close()
    agree(path, rollout)
    ends = [each.terminated for each in episodes_in(path)]
    assert ends == [True] * int(rollout["next", "done"].sum()) + [False] * (not rollout["next", "done"][-1])


def test_the_last_step_is_recorded_without_a_later_hook(path):
    env = TransformedEnv(Count(4), MultiAction()).append_transform(RerunRecorder(path))
    rollout = env.rollout(2, chunks(env, 3))
    env.transform[-1].dump()
    assert rollout["next", "done"][-1].all()
    assert episodes_in(path)[0].terminated
    env.close()


@pytest.mark.parametrize("batch", [SerialEnv, ParallelEnv])
def test_environments_end_at_different_times_of_a_chunk(path, batch):
    env = batch(3, [lambda n=n: Count(n) for n in (2, 4, 9)])
    env = TransformedEnv(env, MultiAction(stack_rewards=False)).append_transform(RerunRecorder(path))
    rollout = env.rollout(5, chunks(env, 3), break_when_any_done=False)
    env.close()
    agree(path, rollout)


@pytest.mark.parametrize("batch", [SerialEnv, ParallelEnv])
def test_environments_that_were_not_stepped_get_no_rows(path, batch):
    env = batch(3, [lambda n=n: Count(n) for n in (3, 5, 9)])
    env = TransformedEnv(env, ConditionalSkip(lambda data: data["observation"] == torch.tensor([[2.0], [1.0], [99.0]])))
    env = env.append_transform(RerunRecorder(path))
    rollout = env.rollout(7, break_when_any_done=False)
    env.close()
    recorded = read(path)
    for number in range(3):
        moved = (rollout["next", "observation"] != rollout["observation"])[number].flatten()
        seen = recorded[f"/env_{number}/observation"].along("episode_step")
        assert len(seen) - 1 == moved.sum()
        assert recorded[f"/env_{number}/reward"].along("step") == (moved.nonzero().flatten() + 1).tolist()


def test_no_environment_gets_rows_if_all_are_skipped(path):
    env = TransformedEnv(Count(9), ConditionalSkip(lambda data: data["observation"] == 2)).append_transform(
        RerunRecorder(path)
    )
    rollout = env.rollout(6, break_when_any_done=False)
    env.close()
    assert rollout["next", "observation"].flatten().tolist() == [1, 2, 2, 2, 2, 2]
    rows = read(path)["/env_0/observation"]
    assert [value.item() for value in rows.values] == [0, 1, 2]


def skips():
    return TransformedEnv(Count(9), ConditionalSkip(lambda data: data["observation"] == 2))


@pytest.mark.parametrize("inner", [skips, lambda: SerialEnv(2, skips)], ids=["inner", "of a batch"])
def test_steps_that_an_inner_environment_skips_are_recorded_like_in_the_rollout(path, inner):
    """Skipped steps look like steps from outside, hence a warning."""
    env = TransformedEnv(inner(), RerunRecorder(path), auto_unwrap=False)
    with pytest.warns(UserWarning, match="ConditionalSkip skips inside an inner environment"):
        rollout = env.rollout(6, break_when_any_done=False)
    env.close()
    agree(path, rollout)


def test_calls_that_skip_all_are_counted(path):
    """The timeline ``step`` counts calls of ``env.step``."""
    skipped = iter([False, True, True, False, False])
    env = TransformedEnv(Count(9), ConditionalSkip(lambda data: torch.tensor([next(skipped)])))
    env = env.append_transform(RerunRecorder(path))
    env.rollout(5, break_when_any_done=False)
    env.close()
    assert read(path)["/env_0/observation"].along("step") == [0, 1, 4, 5]


def test_a_step_that_fails_is_not_counted(path):
    class Fails(Count):
        def _step(self, tensordict):
            if self.t == 2:
                raise OSError("the simulator is gone")
            return super()._step(tensordict)

    env = Fails(9).append_transform(RerunRecorder(path))
    with pytest.raises(OSError, match="simulator"):
        env.rollout(6)
    env.reset()
    env.close()
    assert read(path)["/env_0/observation"].along("episode_step") == [0, 1, 2, 0]
