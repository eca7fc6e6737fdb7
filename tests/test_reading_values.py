"""Values of any type that `load` gives back: non-tensor data in lists and steps, and complex numbers bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrl.data import Unbounded
from torchrl.envs import SerialEnv

from driving import record, walk
from environments import Scripted, noting
from readback import is_equal, same
from storable import LOST, STORABLE
from torchrl_rerun import RerunRecorder, load


@pytest.mark.parametrize("name", STORABLE)
def test_non_tensor_data_comes_back_in_episodes_and_steps(path, name):
    values = ["a", STORABLE[name], "b", STORABLE[name], STORABLE[name]]
    record(noting(values), path, 4)
    [episode] = load(path)
    assert is_equal(episode["note"], values)
    steps = load(path).rollout()
    assert is_equal(list(steps.get("note").tolist()), values[:-1])
    assert is_equal(list(steps.get(("next", "note")).tolist()), values[1:])
    assert "recorded" not in steps.keys()


@pytest.mark.parametrize("name", STORABLE)
@pytest.mark.parametrize("split", ["run", "episode"])
def test_non_tensor_data_comes_back_with_any_first_value(tmp_path, name, split):
    values = [STORABLE[name], STORABLE[name], "text"]
    record(noting(values), tmp_path / "run", 2, split=split, image_format="png")
    [episode] = load(tmp_path / "run")
    assert is_equal(episode["note"], values)


@pytest.mark.parametrize("name", LOST)
def test_a_value_that_was_not_stored_is_none_beside_a_mask(path, name):
    """The mask distinguishes it from a recorded None."""
    odd, _ = LOST[name]
    record(noting(["a", "b", odd, "c", odd, None]), path, 5)
    [episode] = load(path)
    assert episode["note"] == ["a", "b", "c", None]
    steps = episode.tensordict()
    assert steps["x"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert steps["next", "x"][:, 0].tolist() == [1, 2, 3, 4, 5]
    assert steps["next", "reward"].flatten().tolist() == [1, 2, 3, 4, 5]
    assert steps.get("note").tolist() == ["a", "b", None, "c", None]
    assert steps["recorded", "note"].tolist() == [True, True, False, True, False]
    assert steps.get(("next", "note")).tolist() == ["b", None, "c", None, None]
    assert steps["next", "recorded", "note"].tolist() == [True, False, True, False, True]


@pytest.mark.filterwarnings("ignore:'note' is not recorded")
def test_texts_of_several_environments_come_back(path):
    values = ["a", {"b": [1]}, (1, 2), b"c", None]
    walk(SerialEnv(2, lambda: noting(values)).append_transform(RerunRecorder(path)))
    steps = load(path).rollout()
    for env in range(2):
        assert steps[env].get(("next", "note")).tolist() == [{"b": [1]}, None, b"c", None]
        assert steps[env]["next", "recorded", "note"].tolist() == [True, False, True, True]


@pytest.mark.parametrize("image_format", ["png", "raw"])
def test_pictures_arrays_and_texts_under_one_key_come_back(path, image_format):
    picture = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    flat = picture[..., 0].copy()
    values = [
        picture,
        picture[:7],
        "text",
        np.zeros((2, 2)),
        picture.astype(np.int64),
        None,
        picture.transpose(2, 0, 1),
        flat,
    ]
    record(noting(values), path, 7, image_format=image_format)
    assert is_equal(load(path)[0]["note"], values)


def test_a_picture_that_cannot_be_encoded_is_none_beside_a_mask(path):
    """JPEG has at most 65,535 pixels a side."""
    small, large = np.zeros((8, 9, 3), np.uint8), np.zeros((5, 70_000, 3), np.uint8)
    record(noting([small, large, small]), path, 2)
    [episode] = load(path)
    assert [picture.shape for picture in episode["note"]] == [(8, 9, 3), (8, 9, 3)]
    assert episode.tensordict()["next", "recorded", "note"].tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)], ids=str)
def test_complex_numbers_come_back_in_arrays_and_steps(path, dtype, shape):
    values = [torch.randn(shape, dtype=dtype) for _ in range(5)]
    if shape:
        values[2][...] = complex(float("nan"), -0.0)
    record(Scripted(lambda t: {"wave": values[t]}, specs={"wave": Unbounded(shape)}), path, 4)
    assert same(load(path)[0]["wave"], torch.stack(values))
    assert same(load(path).rollout()["next", "wave"], torch.stack(values[1:]))
