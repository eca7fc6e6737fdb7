"""Whatever value a key holds: it comes back as it was, or it alone is left out, with a warning that names it."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from tensordict import MemoryMappedTensor, NonTensorData, TensorClass
from torchrl.data import NonTensor, Unbounded
from torchrl.envs import SerialEnv

from driving import record, walk
from environments import Scripted, noting
from readback import is_equal, read, same
from torchrl_rerun import Kind, RerunRecorder, load
from torchrl_rerun.kinds.objects import frozen

CHAT = [{"role": "user", "content": "größer?"}, {"role": "assistant", "content": None, "calls": [{"id": 1, "at": 0.5}]}]
INFO = {"lives": 3, "done": False, "scores": [1, 2.5, -0.0], "text": "{}", "nested": {"": []}, "nothing": None}
STORABLE = {
    "text": "a",
    "no text": "",
    "text that looks like JSON": '{"a": 1}',
    "text that looks like a number": "5",
    "characters": "nul \0, line\n, 𝄞, ü",
    "a lone surrogate": "\ud83d",
    "lone surrogates in a list": ["\ud83d", "ü"],
    "none": None,
    "true": True,
    "zero": 0,
    "a large integer": 2**80,
    "a float": 0.1,
    "not a number": float("nan"),
    "infinity": float("-inf"),
    "negative zero": -0.0,
    "bytes": b"\x00\xff",
    "no bytes": b"",
    "a chat": CHAT,
    "info": INFO,
    "an empty list": [],
    "an empty dict": {},
    "a NumPy float": np.float32(0.1),
    "a NumPy integer": np.int64(2**62),
    "a NumPy bool": np.bool_(True),
    "a NumPy text": np.str_("ü"),
    "an array": np.arange(6.0).reshape(2, 3),
    "an array of one number": np.array(5),
    "an array without numbers": np.zeros((2, 0, 3), np.float16),
    "booleans": np.array([[True, False]]),
    "complex numbers": np.array([1 + 2j, 3], np.complex64),
    "an array in columns": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
}


@pytest.mark.parametrize("name", STORABLE)
def test_a_value_among_texts_comes_back_as_it_was(path, name):
    values = ["a", STORABLE[name], "b", STORABLE[name], STORABLE[name]]
    _, warned = record(noting(values), path, 4)
    assert warned == []
    [episode] = load(path)
    assert is_equal(episode["note"], values)
    steps = load(path).rollout()
    assert is_equal(list(steps.get("note").tolist()), values[:-1])
    assert is_equal(list(steps.get(("next", "note")).tolist()), values[1:])
    assert "recorded" not in steps.keys()
    read(path)  # agrees


@pytest.mark.parametrize("name", STORABLE)
@pytest.mark.parametrize("split", ["run", "episode"])
def test_a_key_whose_first_value_is_no_text_is_recorded(tmp_path, name, split):
    value = STORABLE[name]
    _, warned = record(noting([value, value, "text"]), tmp_path / "run", 2, split=split, image_format="png")
    assert warned == []
    [episode] = load(tmp_path / "run")
    assert is_equal(episode["note"], [value, value, "text"])


class Thing:
    shape = "odd"


LOST = {
    "a tuple": ((1, 2), "tuple"),
    "a tuple in a list": ([(1, 2)], "tuple within a list or dict"),
    "integer keys": ({1: 2}, "dict whose keys are not all strings"),
    "an instance": (Thing(), "Thing"),
    "a set": ({1}, "set"),
    "a complex number": (1j, "complex"),
    "bytes in a list": ([b"x"], "bytes within a list or dict"),
    "a NumPy number in a dict": ({"x": np.float32(1)}, "float32 within a list or dict"),
    "surrogates that are a pair": ("\ud83d\ude00", "str that JSON would change"),
    "an integer too long for Python's own JSON": (10**5000, "int: Exceeds the limit"),
    "an array of texts": (np.array(["a"]), "array of <U1"),
    "an array of objects": (np.array([None]), "array of object"),
    "a date": (np.datetime64("2026-01-01"), "NumPy's datetime64"),
}


@pytest.mark.parametrize("name", LOST)
def test_a_value_that_cannot_be_stored_costs_that_value(path, name):
    odd, said = LOST[name]
    values = ["a", "b", odd, "c", odd, None]
    _, (warned,) = record(noting(values), path, 5)
    assert warned.startswith(f"'note' is not recorded at frame 2: {said}")
    [episode] = load(path)
    assert episode["note"] == ["a", "b", "c", None]
    steps = episode.tensordict()
    assert steps["x"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert steps["next", "x"][:, 0].tolist() == [1, 2, 3, 4, 5]
    assert steps["next", "reward"].flatten().tolist() == [1, 2, 3, 4, 5]
    # What is missing is None beside a mask, by which it differs from a None that was recorded.
    assert steps.get("note").tolist() == ["a", "b", None, "c", None]
    assert steps["recorded", "note"].tolist() == [True, True, False, True, False]
    assert steps.get(("next", "note")).tolist() == ["b", None, "c", None, None]
    assert steps["next", "recorded", "note"].tolist() == [True, False, True, False, True]


def test_a_key_of_which_no_value_can_be_stored(path):
    _, (warned,) = record(noting([Thing()] * 4), path, 3)
    assert warned.startswith("'note' is not recorded at frame 0: Thing")
    assert load(path).rollout()["x"][:, 0].tolist() == [0, 1, 2]


def test_warnings_that_are_errors_cost_no_more(path):
    env = noting(["a", (1, 2), "b", "c"]).append_transform(RerunRecorder(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.rollout(3)
        env.close()
    assert load(path)[0]["note"] == ["a", "b", "c"]


def test_a_list_that_its_owner_changes_is_recorded_as_it_was(path):
    history = []

    def observe(t):
        history.append({"role": "user", "content": str(t)})
        return {"note": NonTensorData(history)}

    env = Scripted(observe, specs={"note": NonTensor(())})
    history.clear()
    record(env, path, 3)
    assert [len(value) for value in load(path)[0]["note"]] == [1, 2, 3, 4]


def test_texts_of_environments_side_by_side(path):
    values = ["a", {"b": [1]}, (1, 2), b"c", None]
    env = SerialEnv(2, lambda: noting(values)).append_transform(RerunRecorder(path))
    with pytest.warns(UserWarning, match="'note' is not recorded at frame 2: tuple"):
        walk(env)
    steps = load(path).rollout()
    for env in range(2):
        assert steps[env].get(("next", "note")).tolist() == [{"b": [1]}, None, b"c", None]
        assert steps[env]["next", "recorded", "note"].tolist() == [True, False, True, True]


def test_arrays_and_texts_under_one_key_of_pictures(path):
    picture = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    values = [
        picture,
        picture[:7],
        "text",
        np.zeros((2, 2)),
        picture.astype(np.int64),
        None,
        picture.transpose(2, 0, 1),
    ]
    _, warned = record(noting(values), path, 6, image_format="png")
    assert warned == []
    assert read(path).kind("note") == "image"
    assert is_equal(load(path)[0]["note"], values)


@pytest.mark.parametrize("laid_out", [(8, 9), (3, 8, 9), (8, 9, 3), (8, 9, 4)], ids=str)
@pytest.mark.parametrize("image_format", ["png", "raw"])
def test_pictures_of_non_tensor_data_have_their_shape(path, laid_out, image_format):
    values = [np.full(laid_out, 20 * t, np.uint8) for t in range(4)]
    record(noting(values), path, 3, image_format=image_format)
    assert read(path).kind("note") == "image"
    assert is_equal(load(path)[0]["note"], values)


def test_a_picture_that_no_file_can_hold_costs_that_picture(path):
    """JPEG has at most 65,535 pixels a side."""
    small, large = np.zeros((8, 9, 3), np.uint8), np.zeros((5, 70_000, 3), np.uint8)
    _, (warned,) = record(noting([small, large, small]), path, 2)
    assert warned.startswith("'note' is not recorded at frame 1: a picture of shape")
    [episode] = load(path)
    assert [picture.shape for picture in episode["note"]] == [(8, 9, 3), (8, 9, 3)]
    assert episode.tensordict()["next", "recorded", "note"].tolist() == [False, True]


def test_lists_that_are_nested_too_deeply():
    """TorchRL's own transforms fail at these."""
    deep = []
    for _ in range(3000):
        deep = [deep]
    within = []
    within.append(within)
    assert frozen(deep).what == frozen(within).what == "list that is nested too deeply"


# --- tensors ---


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)], ids=str)
def test_complex_numbers_come_back(path, dtype, shape):
    values = [torch.randn(shape, dtype=dtype) for _ in range(5)]
    if shape:
        values[2][...] = complex(float("nan"), -0.0)
    _, warned = record(Scripted(lambda t: {"wave": values[t]}, specs={"wave": Unbounded(shape)}), path, 4)
    assert warned == []
    read(path)
    assert same(load(path)[0]["wave"], torch.stack(values))
    assert same(load(path).rollout()["next", "wave"], torch.stack(values[1:]))


UNUSUAL = {
    "conjugate": lambda t: torch.full((3,), t + 1j, dtype=torch.complex64).conj(),
    "negative": lambda t: torch.full((3,), t + 1j, dtype=torch.complex64).conj().imag,
    "a parameter": lambda t: torch.nn.Parameter(torch.full((3,), float(t))),
    "memory-mapped": lambda t: MemoryMappedTensor.from_tensor(torch.full((3,), float(t))),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_tensors_come_back(path, name):
    env = Scripted(lambda t: {"x": UNUSUAL[name](t)}, specs={"x": Unbounded((3,))})
    _, warned = record(env, path, 3)
    assert warned == []
    wanted = [UNUSUAL[name](t).detach().resolve_conj().resolve_neg() for t in range(4)]
    assert same(load(path)[0]["x"], torch.stack([torch.tensor(value.tolist(), dtype=value.dtype) for value in wanted]))


class Pair(TensorClass):
    left: torch.Tensor
    right: torch.Tensor


REFUSED = {
    "jagged": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
    "strided nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.quint8),
    "without data": lambda: torch.zeros(3, device="meta"),
    "8-bit floats": lambda: torch.zeros(3, dtype=torch.float8_e4m3fn),
    "half complex": lambda: torch.zeros(3, dtype=torch.complex32),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("at", [0, 2], ids=["from the first step on", "later"])
def test_tensors_that_no_array_holds_cost_that_key(path, name, at):
    """Neither `reset` nor `step` raises, `close` neither."""

    def observe(t):
        return {"odd": REFUSED[name]() if t >= at else torch.zeros(3), "x": torch.full((2,), float(t))}

    env = Scripted(observe, specs={"x": Unbounded((2,))}).append_transform(RerunRecorder(path, in_keys=["odd", "x"]))
    with pytest.warns(UserWarning, match="'odd' is not recorded") as warned:
        walk(env)
    assert sum("'odd'" in str(each.message) for each in warned) == 1
    [episode] = load(path)
    assert episode["x"][:, 0].tolist() == [0, 1, 2, 3, 4]
    if at:
        assert len(episode["odd"]) == 2


@pytest.mark.parametrize("in_keys", [None, ["x", "pair"]])
def test_a_tensorclass_where_a_tensor_is_expected(path, in_keys):
    def observe(t):
        return {"x": torch.full((2,), float(t)), "pair": Pair(torch.zeros(1), torch.ones(1), batch_size=[])}

    env = Scripted(observe, specs={"x": Unbounded((2,)), "pair": Unbounded((1,))})
    env = env.append_transform(RerunRecorder(path, in_keys=in_keys))
    if in_keys is not None:  # the user's to mend
        with pytest.raises(KeyError, match="'pair' is a group of keys"):
            env.reset()
        return
    with pytest.warns(UserWarning, match="'pair' is not recorded"):
        walk(env)


@pytest.mark.parametrize("batch_size", [(), (2,)])
def test_a_value_that_is_suddenly_of_another_class(path, batch_size):
    """Numbers, then text; and the other way."""

    def observe(t):
        number = torch.full((*batch_size, 2), float(t))
        text = NonTensorData(f"text {t}", batch_size=batch_size)
        return {"a": text if t == 2 else number, "b": number if t == 2 else text, "x": number}

    specs = {"x": Unbounded((*batch_size, 2))}
    env = Scripted(observe, batch_size, specs).append_transform(RerunRecorder(path, in_keys=["a", "b", "x"]))
    with pytest.warns(UserWarning, match="'a' is not recorded while it is of type NonTensorData"):
        walk(env)
    for episode in load(path):
        assert episode["a"][:, 0].tolist() == [0, 1, 3, 4]
        assert [type(value) for value in episode["b"]] == [str, str, np.ndarray, str, str]
        assert episode["x"][:, 0].tolist() == [0, 1, 2, 3, 4]


class Full(Kind):
    """A kind that can't store anything."""

    name = "full"

    def columns(self, stream, rows):
        raise MemoryError("no room")


def test_a_kind_that_fails_costs_its_key(path):
    observed = {"big": torch.zeros(100), "other": torch.zeros(100), "x": torch.zeros(2)}
    _, (warned,) = record(Scripted(lambda t: observed), path, 3, kinds={"big": Full()})
    assert re.match(
        r"'big' is not recorded at frame 0: Full.columns failed for float32 \(100,\) \(MemoryError: no room\)",
        warned,
    )
    assert len(load(path)[0]["other"]) == len(load(path)[0]["x"]) == 4
