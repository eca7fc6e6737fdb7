"""The plan: keys that are read at each moment, and values that don't follow it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tensordict import NonTensorData, TensorDict
from torchrl.envs import GymEnv

from torchrl_rerun import RerunRecorder
from torchrl_rerun.kinds.endings import Endings
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.recording.options import Options
from torchrl_rerun.transform.plan import Acted, Plan
from torchrl_rerun.transform.readers import ArrayReader, Reader, Readers


def stream(*key, dtype="float32", shape=(), sample=None):
    return Options().describe(Leaf(key, dtype, shape, sample=sample))


def readers(*streams, batch_size=(2,)):
    return Readers(Reader.of(each, batch_size) for each in streams)


def never(_):
    raise AssertionError("no value is of another shape")


@pytest.mark.parametrize("keys", [[("x",)], [("x",), ("y",)], [("x",), ("robot", "y")]])
def test_missing_values_of_a_tensordict_are_none(keys):
    tensordict = TensorDict(batch_size=[2])
    for key in keys:
        tensordict.set(key, torch.rand(2))
    some = readers(*(stream(*key) for key in keys))
    assert all(value is tensordict.get(key) for key, value in zip(keys, some.values(tensordict), strict=True))
    tensordict.pop(keys[0])
    assert some.values(tensordict)[0] is None
    assert all(value is not None for value in some.values(tensordict)[1:])


@pytest.mark.parametrize("batch_size", [(), (4,), (2, 2)])
def test_arrays_have_one_dimension_of_environments(batch_size):
    some = readers(stream("x", shape=(3,)), batch_size=batch_size)
    value = torch.rand(*batch_size, 3)
    [array] = ArrayReader(never).arrays(some, [value])
    np.testing.assert_array_equal(array, value.numpy().reshape(-1, 3))
    assert np.shares_memory(array, value.numpy())


@pytest.mark.parametrize(
    "value",
    [
        torch.rand(2, 3, requires_grad=True),
        torch.rand(2, 3).T.contiguous().T,
        torch.rand(2, 1, 3),
        torch.rand(3).expand(2, 3),
    ],
    ids=["gradient", "transposed", "a dimension of one", "expanded"],
)
def test_tensors_that_numpy_does_not_convert_are_read(value):
    [array] = ArrayReader(never).arrays(readers(stream("x", shape=(3,))), [value])
    np.testing.assert_array_equal(array, value.detach().numpy().reshape(2, 3))


def test_objects_are_read_by_environment():
    some = readers(stream("said", dtype="object", sample="a"))
    [array] = ArrayReader(never).arrays(some, [NonTensorData("hello", batch_size=[2])])
    assert array.tolist() == ["hello", "hello"]


@pytest.mark.parametrize("value", [torch.zeros(2, 3, dtype=torch.int64), "text"])
def test_values_of_another_dtype_are_left_out_with_one_warning(value):
    reader, some = ArrayReader(never), readers(stream("x", shape=(3,)), stream("y"))
    other = torch.rand(2)
    with pytest.warns(
        UserWarning, match=r"'x' is not recorded while it is .*: the recording began with float32"
    ) as warned:
        read = [reader.arrays(some, [value, other]) for _ in range(2)]
    for first, second in read:
        assert first is None
        np.testing.assert_array_equal(second, other)
    assert len(warned) == 1


def test_a_key_whose_shape_changes_becomes_a_varying_key():
    first = stream("x", shape=(3,))
    plan = Plan(readers(first))
    asked = []

    def vary(of):
        asked.append(of)
        return dataclasses.replace(of, varies=True)

    reader = ArrayReader(vary)
    [array] = reader.arrays(plan.observed, [torch.ones(2, 5)])
    assert [each.tolist() for each in array] == [[1.0] * 5] * 2
    assert asked == [first]
    later = plan.varied(dataclasses.replace(first, varies=True))
    [array] = ArrayReader(never).arrays(later.observed, [torch.ones(2, 4)])
    assert [each.shape for each in array] == [(4,)] * 2
    assert plan.observed.each[0].stream == first  # the plan itself never changes


def test_a_plan_is_frozen():
    plan = Plan(readers(stream("x")))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.is_complete = True
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.observed.each[0].stream = None


def test_a_plan_can_grow_to_more_environments():
    plan = Plan(readers(stream("x", shape=(3,))), acted=readers(stream("action"))).grown(5)
    [array] = ArrayReader(never).arrays(plan.observed, [torch.rand(5, 3)])
    assert array.shape == (5, 3)
    assert plan.acted.each[0].shape == (5,)


def test_the_flags_of_the_plan_end_episodes():
    following = TensorDict(done=torch.tensor([[True], [False]]), batch_size=[2])
    plan = Plan(readers(stream("x")), endings=Endings([("done",)]))
    ends = plan.ends(following)
    assert ends is not None
    assert ends.either.tolist() == [True, False]
    assert plan.ends(following.zero_()) is None


def test_values_of_the_policy_are_found_by_key():
    acted = Acted([("action",), ("logits",)], [1, 2])
    assert list(acted.select([("logits",), ("value",)])) == [2, None]


def test_the_plan_is_made_at_the_first_step_and_never_changes(tmp_path):
    recorder = RerunRecorder(tmp_path / "run.rrd")
    env = GymEnv("CartPole-v1").append_transform(recorder)
    tensordict = env.reset()
    assert not recorder._front_end.plan.is_complete
    tensordict = env.step(env.rand_action(tensordict))
    plan = recorder._front_end.plan
    assert set(plan.observed.keys) == {
        ("observation",),
        ("done",),
        ("terminated",),
        ("truncated",),
    }  # the keys of a reset
    assert plan.stepped.keys == (("reward",),)
    assert plan.acted.keys == (("action",),)
    env.rollout(20)
    env.close()
    assert recorder._front_end.plan is plan
