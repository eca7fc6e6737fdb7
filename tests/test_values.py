"""Values of any type: each is recorded unchanged, or left out alone with a warning that names its key."""

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
from readback import assert_rows, read
from storable import LOST, STORABLE, Thing
from torchrl_rerun import Kind, RerunRecorder
from torchrl_rerun.kinds.objects import frozen


def notes(path, env=0):
    return read(path)[f"/env_{env}/note"]


@pytest.mark.parametrize("name", STORABLE)
def test_an_object_among_texts_is_recorded_unchanged(path, name):
    values = ["a", STORABLE[name], "b", STORABLE[name], STORABLE[name]]
    _, warned = record(noting(values), path, 4)
    assert warned == []
    assert_rows(notes(path), dict(enumerate(values)))


@pytest.mark.parametrize("name", STORABLE)
@pytest.mark.parametrize("split", ["run", "episode"])
def test_a_key_whose_first_value_is_an_object_is_recorded(tmp_path, name, split):
    value = STORABLE[name]
    _, warned = record(noting([value, value, "text"]), tmp_path / "run", 2, split=split, image_format="png")
    assert warned == []
    [file] = (tmp_path / "run").iterdir()
    assert_rows(read(file)["/note" if split == "episode" else "/env_0/note"], dict(enumerate([value, value, "text"])))


@pytest.mark.parametrize("name", LOST)
def test_a_value_that_cannot_be_stored_is_left_out_alone(path, name):
    odd, said = LOST[name]
    values = ["a", "b", odd, "c", odd, None]
    _, (warned,) = record(noting(values), path, 5)
    assert warned.startswith(f"'note' is not recorded at frame 2: {said}")
    recorded = read(path)
    assert_rows(recorded["/env_0/note"], {0: "a", 1: "b", 3: "c", 5: None})
    assert_rows(recorded["/env_0/x"], {t: torch.full((2,), float(t)) for t in range(6)})
    assert_rows(recorded["/env_0/reward"], {t: torch.tensor([float(t)]) for t in range(1, 6)})


def test_a_key_without_storable_values_is_left_out(path):
    _, (warned,) = record(noting([Thing()] * 4), path, 3)
    assert warned.startswith("'note' is not recorded at frame 0: Thing")
    recorded = read(path)
    assert "/env_0/note" not in recorded.entities
    assert_rows(recorded["/env_0/x"], {t: torch.full((2,), float(t)) for t in range(4)})


def test_warnings_as_errors_lose_no_other_value(path):
    env = noting(["a", (1, 2), "b", "c"]).append_transform(RerunRecorder(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.rollout(3)
        env.close()
    assert_rows(notes(path), {0: "a", 2: "b", 3: "c"})


def test_a_list_that_changes_later_is_recorded_unchanged(path):
    history = []

    def observe(t):
        history.append({"role": "user", "content": str(t)})
        return {"note": NonTensorData(history)}

    env = Scripted(observe, specs={"note": NonTensor(())})
    history.clear()
    record(env, path, 3)
    whole = [{"role": "user", "content": str(t)} for t in range(4)]
    assert_rows(notes(path), {t: whole[: t + 1] for t in range(4)})


def test_texts_of_several_environments_are_recorded(path):
    values = ["a", {"b": [1]}, (1, 2), b"c", None]
    env = SerialEnv(2, lambda: noting(values)).append_transform(RerunRecorder(path))
    with pytest.warns(UserWarning, match="'note' is not recorded at frame 2: tuple"):
        walk(env)
    for env in range(2):
        assert_rows(notes(path, env), {0: "a", 1: {"b": [1]}, 3: b"c", 4: None})


def test_arrays_and_texts_under_one_key_of_pictures_are_recorded(path):
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
    assert_rows(notes(path), dict(enumerate(values)))


@pytest.mark.parametrize("laid_out", [(8, 9), (3, 8, 9), (8, 9, 3), (8, 9, 4)], ids=str)
@pytest.mark.parametrize("image_format", ["png", "raw"])
def test_pictures_of_non_tensor_data_keep_their_shape(path, laid_out, image_format):
    values = [np.full(laid_out, 20 * t, np.uint8) for t in range(4)]
    record(noting(values), path, 3, image_format=image_format)
    assert read(path).kind("note") == "image"
    assert_rows(notes(path), dict(enumerate(values)))


def test_a_picture_that_cannot_be_encoded_is_left_out_alone(path):
    """JPEG has at most 65,535 pixels a side."""
    small, large = np.zeros((8, 9, 3), np.uint8), np.zeros((5, 70_000, 3), np.uint8)
    _, (warned,) = record(noting([small, large, small]), path, 2)
    assert warned.startswith("'note' is not recorded at frame 1: a picture of shape")
    assert_rows(notes(path), {0: small, 2: small})


def test_lists_that_are_nested_too_deeply_cannot_be_stored():
    """TorchRL's own transforms fail with such lists."""
    deep = []
    for _ in range(3000):
        deep = [deep]
    within = []
    within.append(within)
    assert frozen(deep).what == frozen(within).what == "list that is nested too deeply"


# --- tensors ---


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)], ids=str)
def test_complex_numbers_are_recorded(path, dtype, shape):
    values = [torch.randn(shape, dtype=dtype) for _ in range(5)]
    if shape:
        values[2][...] = complex(float("nan"), -0.0)
    _, warned = record(Scripted(lambda t: {"wave": values[t]}, specs={"wave": Unbounded(shape)}), path, 4)
    assert warned == []
    assert_rows(read(path)["/env_0/wave"], dict(enumerate(values)))


UNUSUAL = {
    "conjugate": lambda t: torch.full((3,), t + 1j, dtype=torch.complex64).conj(),
    "negative": lambda t: torch.full((3,), t + 1j, dtype=torch.complex64).conj().imag,
    "a parameter": lambda t: torch.nn.Parameter(torch.full((3,), float(t))),
    "memory-mapped": lambda t: MemoryMappedTensor.from_tensor(torch.full((3,), float(t))),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_tensors_are_recorded(path, name):
    env = Scripted(lambda t: {"x": UNUSUAL[name](t)}, specs={"x": Unbounded((3,))})
    _, warned = record(env, path, 3)
    assert warned == []
    wanted = [UNUSUAL[name](t).detach().resolve_conj().resolve_neg() for t in range(4)]
    wanted = [torch.tensor(value.tolist(), dtype=value.dtype) for value in wanted]
    assert_rows(read(path)["/env_0/x"], dict(enumerate(wanted)))


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
def test_tensors_without_an_array_are_left_out_by_key(path, name, at):
    """`reset`, `step` and `close` do not raise."""

    def observe(t):
        return {"odd": REFUSED[name]() if t >= at else torch.zeros(3), "x": torch.full((2,), float(t))}

    env = Scripted(observe, specs={"x": Unbounded((2,))}).append_transform(RerunRecorder(path, in_keys=["odd", "x"]))
    with pytest.warns(UserWarning, match="'odd' is not recorded") as warned:
        walk(env)
    assert sum("'odd'" in str(each.message) for each in warned) == 1
    recorded = read(path)
    assert_rows(recorded["/env_0/x"], {t: torch.full((2,), float(t)) for t in range(5)})
    if at:
        assert_rows(recorded["/env_0/odd"], {t: torch.zeros(3) for t in range(at)})
    else:
        assert "/env_0/odd" not in recorded.entities


@pytest.mark.parametrize("in_keys", [None, ["x", "pair"]])
def test_a_tensorclass_that_stands_for_a_tensor_is_refused_or_left_out(path, in_keys):
    def observe(t):
        return {"x": torch.full((2,), float(t)), "pair": Pair(torch.zeros(1), torch.ones(1), batch_size=[])}

    env = Scripted(observe, specs={"x": Unbounded((2,)), "pair": Unbounded((1,))})
    env = env.append_transform(RerunRecorder(path, in_keys=in_keys))
    if in_keys is not None:  # to be fixed by the user
        with pytest.raises(KeyError, match="'pair' is a group of keys"):
            env.reset()
        return
    with pytest.warns(UserWarning, match="'pair' is not recorded"):
        walk(env)


@pytest.mark.parametrize("batch_size", [(), (2,)])
def test_a_value_of_another_class_is_left_out_alone(path, batch_size):
    """Text among numbers, and numbers among texts."""

    def observe(t):
        number = torch.full((*batch_size, 2), float(t))
        text = NonTensorData(f"text {t}", batch_size=batch_size)
        return {"a": text if t == 2 else number, "b": number if t == 2 else text, "x": number}

    specs = {"x": Unbounded((*batch_size, 2))}
    env = Scripted(observe, batch_size, specs).append_transform(RerunRecorder(path, in_keys=["a", "b", "x"]))
    with pytest.warns(UserWarning, match="'a' is not recorded while it is of type NonTensorData"):
        walk(env)
    recorded = read(path)
    numbers = {t: torch.full((2,), float(t)) for t in range(5)}
    for env in range(*batch_size or (1,)):
        assert_rows(recorded[f"/env_{env}/a"], {t: number for t, number in numbers.items() if t != 2})
        assert_rows(recorded[f"/env_{env}/b"], {t: numbers[2].numpy() if t == 2 else f"text {t}" for t in range(5)})
        assert_rows(recorded[f"/env_{env}/x"], numbers)


class Full(Kind):
    """A kind that fails to store all values."""

    name = "full"

    def columns(self, stream, rows):
        raise MemoryError("no room")


def test_a_kind_that_fails_loses_its_key_alone(path):
    observed = {"big": torch.zeros(100), "other": torch.zeros(100), "x": torch.zeros(2)}
    _, (warned,) = record(Scripted(lambda t: observed), path, 3, kinds={"big": Full()})
    assert re.match(
        r"'big' is not recorded at frame 0: Full.columns failed for float32 \(100,\) \(MemoryError: no room\)",
        warned,
    )
    recorded = read(path)
    assert "/env_0/big" not in recorded.entities
    for key in ("other", "x"):
        assert_rows(recorded[f"/env_0/{key}"], dict.fromkeys(range(4), observed[key]))
