"""Unusual names, sizes and data: recorded bit for bit, or left out with a warning. Training always goes on."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from rerun.chunk import RrdReader
from torchrl.data import Composite, Unbounded

from driving import record
from environments import Scripted, Uneven
from readback import assert_recorded, read, same
from torchrl_rerun import RerunRecorder

# --- names ---


@pytest.mark.parametrize(
    "name",
    [
        "a/b",
        "/",
        "a b",
        " ",
        "ü☃漢🤖",
        "line\nbreak\ttab",
        "nul\0byte",
        "\x1b[31mred",
        "\u202eright to left",
        ".",
        "..",
        "-",
        "a.b:c",
        "[0]{1}",
        "env_0",
        "__properties",
        "frame",
        "%s{}\\",
        "k" * 5000,
    ],
    ids=ascii,
)
def test_keys_of_any_name_are_recorded(path, name):
    def observe(t):
        return {name: torch.full((2,), float(t)), "next to it": torch.full((2,), -float(t))}

    _, warned = record(Scripted(observe), path)
    assert warned == []
    recorded = read(path)
    assert (name,) in recorded.keys()
    found = [
        path for path, rows in recorded.entities.items() if rows.values[1].flatten()[0] == 1 and "reward" not in path
    ]
    (entity,) = (path for path in found if not path.endswith(("episode_return", "action")))
    assert_recorded(recorded, name, observe, path=entity.removeprefix("/env_0/"))


def test_names_that_differ_in_escaped_characters_have_different_entities(path):
    names = ["a/b", "a b", "a\\b", "a\nb", "a.b", "a"]

    def observe(t):
        values: dict[str, Any] = {name: torch.tensor([float(i), t]) for i, name in enumerate(names)}
        return values

    record(Scripted(observe), path)
    recorded = read(path)
    entities = [entity for entity, rows in recorded.entities.items() if tuple(rows.values[0].shape) == (2,)]
    assert len(entities) == len(names)
    assert {rows.values[0][0].item() for rows in map(recorded.__getitem__, entities)} == set(
        map(float, range(len(names)))
    )


@pytest.mark.parametrize(("name", "reason"), [("", "an empty name"), ("\ud800", "no valid Unicode")], ids=ascii)
def test_names_that_no_entity_path_can_have_are_left_out_with_a_warning(path, name, reason):
    def observe(t):
        return {name: torch.zeros(2), "x": torch.full((2,), float(t))}

    _, (warned,) = record(Scripted(observe), path)
    assert f"{name!r} is not recorded" in warned
    assert reason in warned
    assert_recorded(read(path), "x", observe)


# --- sizes ---


@pytest.mark.parametrize("logged_envs", [None, "all"])
def test_ten_thousand_environments_are_recorded(path, logged_envs):
    envs, steps = 10_000, 3

    def observe(t):
        return {"x": torch.arange(envs * 2.0).reshape(envs, 2) + t}

    _, warned = record(Scripted(observe, (envs,)), path, steps, logged_envs=logged_envs, in_keys=["x"])
    if logged_envs is None:
        recorded = read(path)
        assert any("of 10000 environments the first 16 are recorded" in said for said in warned)
        assert_recorded(recorded, "x", observe, steps, envs=16)
        assert "/env_16/x" not in recorded.entities
        return
    found = {}
    for chunk in RrdReader(path).stream().filter(is_static=False):
        rows = found.setdefault(int(chunk.entity_path.split("/")[1].removeprefix("env_")), [])
        rows += chunk.to_record_batch().column("Scalars:scalars").to_pylist()
    assert found == {env: [observe(t)["x"][env].tolist() for t in range(steps + 1)] for env in range(envs)}


@pytest.mark.parametrize("image_format", ["raw", "png", "jpeg", "h264", "av1"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 1, 1), (1, 1, 1), (1, 1, 4), (1, 1)], ids=str)
def test_images_of_one_pixel_are_recorded(path, shape, image_format):
    def observe(t):
        return {"x": torch.full(shape, 40 * t, dtype=torch.uint8)}

    _, warned = record(Scripted(observe), path, image_format=image_format, kinds={"x": "image"})
    if image_format in ("h264", "av1") and shape[-1] == 4:
        assert warned == [f"'x' is stored as 'png': {image_format!r} can't hold uint8 (1, 1, 4)"]
    else:
        assert warned == []
    recorded = read(path)
    if image_format in ("raw", "png"):
        assert_recorded(recorded, "x", observe)
    assert [value.shape for value in recorded["/env_0/x"].values] == [shape] * 6


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0, 3), (0, 0)], ids=str)
def test_values_without_numbers_are_recorded(path, shape):
    def observe(t):
        return {"x": torch.zeros(shape)}

    record(Scripted(observe), path)
    assert_recorded(read(path), "x", observe)


@pytest.mark.parametrize("logged_envs", [None, "all"])
def test_an_empty_batch_gives_a_warning_and_no_file(path, logged_envs):
    env = Scripted(lambda t: {"x": torch.zeros(0, 2)}, (0,))
    _, (warned,) = record(env, path, logged_envs=logged_envs)
    assert "nothing is recorded: the batch size (0,) means no environment" in warned
    assert not path.exists()


def test_episodes_without_steps_are_recorded(path):
    env = Scripted(lambda t: {"x": torch.full((2,), float(t))}).append_transform(RerunRecorder(path))
    for _ in range(3):
        env.reset()
    env.rollout(2)
    env.reset()
    env.close()
    recorded = read(path)
    assert recorded["/env_0/x"].along("episode") == [0, 1, 2, 3, 3, 3, 4]
    assert recorded["/env_0/x"].along("episode_step") == [0, 0, 0, 0, 1, 2, 0]
    assert recorded["/env_0/x"].along("frame") == list(range(7))
    assert recorded["/env_0/reward"].along("frame") == [4, 5]


def test_a_recording_may_have_only_episodes_without_steps(path):
    env = Scripted(lambda t: {"x": torch.full((2,), float(t))}).append_transform(RerunRecorder(path))
    for _ in range(3):
        env.reset()
    env.close()
    assert read(path)["/env_0/x"].along("episode") == [0, 1, 2]


def test_an_environment_without_recordable_keys_leaves_no_file(path):
    env = Scripted(lambda t: {"x": torch.zeros(2, dtype=torch.complex32)}, specs={"x": Unbounded((2,))})
    record(env, path, in_keys=["x"])
    assert not path.exists()


# --- data ---

_DTYPES = [
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]


@pytest.mark.parametrize("name", _DTYPES)
def test_extreme_values_of_each_dtype_are_recorded(path, name):
    """NaN, infinities, -0.0, least and greatest numbers: as scalars, vectors, matrices, tensors and pictures."""
    dtype = getattr(torch, name)
    if dtype.is_floating_point:
        info = torch.finfo(dtype)
        special = [float("nan"), float("inf"), -float("inf"), -0.0, info.tiny, info.max, info.min, info.eps]
        extremes = torch.cat([torch.tensor(special, dtype=dtype), torch.tensor([float("nan")]).to(dtype)])
    elif name == "bool":
        extremes = torch.tensor([True, False, True])
    else:
        info = torch.iinfo(dtype)
        extremes = torch.tensor([info.min, info.max, 0, info.max - 1, info.max // 2 + 1], dtype=dtype)

    def observe(t):
        def filled(shape):
            numbers = (np.arange(int(np.prod(shape))) + t) % len(extremes)
            return torch.stack([extremes[i] for i in numbers]).reshape(shape)

        shapes = {"scalar": (), "vector": (7,), "matrix": (9, 9), "long": (100,), "picture": (7, 7, 3)}
        return {key: filled(shape) for key, shape in shapes.items()}

    _, warned = record(Scripted(observe), path, steps=3, image_format="png")
    assert warned == []
    recorded = read(path)
    for key in observe(0):
        assert_recorded(recorded, key, observe, 3)


@pytest.mark.parametrize("batch_size", [(), (2,)])
def test_tensors_that_require_a_gradient_are_recorded(path, batch_size):
    weight = torch.nn.Parameter(torch.ones(*batch_size, 3))

    def observe(t):
        return {"x": weight * t, "picture": (weight * t).unsqueeze(-1).expand(*batch_size, 3, 2000)}

    rollout, warned = record(Scripted(observe, batch_size), path)
    assert warned == []
    recorded = read(path)
    for key in ("x", "picture"):
        assert_recorded(recorded, key, observe, envs=2 if batch_size else None)
    rollout["next", "x"].sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full_like(weight, sum(range(6))))


@pytest.mark.parametrize("size", [4, 1200], ids=["small", "large"])
@pytest.mark.parametrize(
    "laid_out",
    [
        lambda values: values.t().contiguous().t(),
        lambda values: torch.stack([values, -values], -1)[..., 0],
        lambda values: values[:1].expand(3, -1),
        lambda values: values[:, :1].expand(-1, values.shape[1]),
        lambda values: values.flip(0)[torch.tensor([2, 1, 0])],
        lambda values: torch.cat([values, values])[2:5],
    ],
    ids=["transposed", "strided", "one row for all", "one number for all", "gathered", "shifted"],
)
def test_tensors_that_are_not_contiguous_are_recorded(path, laid_out, size):
    def observe(t):
        return {"x": laid_out(torch.arange(3.0 * size).reshape(3, size) + t)}

    _, warned = record(Scripted(observe, (3,)), path)
    assert warned == []
    assert_recorded(read(path), "x", observe, envs=3)


def assert_uneven(path, size_at, steps=5):
    """Assert that each value of ``x`` is recorded with its own shape."""
    recorded = read(path)
    for env in range(2):
        rows = recorded[f"/env_{env}/x"]
        assert rows.along("frame") == list(range(steps + 1))
        for t, value in enumerate(rows.values):
            assert same(value, torch.full((size_at(env, t),), float(t))), (env, t)
    return recorded


SIZES = {
    "by environment": lambda env, t: 2 + env,
    "by time": lambda env, t: 1 + t % 3,
    "by both": lambda env, t: 1 + (t + env) % 4,
    "in the middle": lambda env, t: 2 + env * (t == 2),
    "from the middle on": lambda env, t: 2 + (t > 2),
    "without any": lambda env, t: (2 + t) * (env != t),
}


@pytest.mark.parametrize("name", SIZES)
def test_keys_that_vary_in_shape_are_recorded(path, name):
    env = Uneven(SIZES[name])
    if name in ("in the middle", "from the middle on"):  # no spec declares the shapes
        env.observation_spec = Composite(x=Unbounded((2, 2)), y=Unbounded((2, 2)), shape=(2,))
    env = env.append_transform(RerunRecorder(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.rollout(5, return_contiguous=False)
        env.close()
    recorded = assert_uneven(path, SIZES[name])
    assert_recorded(recorded, "y", env.base_env.values, envs=2)
    assert recorded["/env_1/reward"].along("frame") == [1, 2, 3, 4, 5]


def test_a_rollout_of_different_shapes_is_recorded(path):
    rollout = Uneven(SIZES["by environment"]).rollout(4, return_contiguous=False)
    with RerunRecorder(path) as recorder:
        recorder.log_rollout(rollout)
    assert_uneven(path, SIZES["by environment"], 4)


# --- keys that come and go ---


def test_keys_that_disappear_and_come_back_are_recorded(path):
    def observe(t):
        values = {
            "x": torch.full((2,), float(t)),
            "y": torch.full((2,), -float(t)),
            "big": torch.full((2000,), float(t)),
        }
        return {
            key: value for key, value in values.items() if key == "x" or t not in ((2, 3) if key == "y" else (3, 4))
        }

    _, warned = record(Scripted(observe), path, steps=8)
    assert warned == []
    recorded = read(path)
    assert_recorded(recorded, "x", observe, 8)
    assert_recorded(recorded, "y", observe, 8, missing=[2, 3])
    assert_recorded(recorded, "big", observe, 8, missing=[3, 4])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (torch.zeros(3, 2, dtype=torch.float64), r"float64 (3, 2)"),
        (torch.zeros(3, 2, dtype=torch.int32), r"int32 (3, 2)"),  # an equal number of bytes
        (torch.zeros(3, 2, dtype=torch.complex64), r"complex64 (3, 2)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_of_another_dtype_are_left_out_with_a_warning(path, other, said):
    def observe(t):
        return {"x": other if t in (3, 4) else torch.full((3, 2), float(t)), "y": torch.full((2,), float(t))}

    _, (warned,) = record(Scripted(observe), path, steps=8)
    assert warned == (
        f"'x' is not recorded while it is {said}: the recording began with float32 (3, 2). Give it one dtype from the first "
        "reset on"
    )
    recorded = read(path)
    assert_recorded(recorded, "x", observe, 8, missing=[3, 4])
    assert_recorded(recorded, "y", observe, 8)


@pytest.mark.parametrize("shape", [(2, 3), (6,), (), (0, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("usual", [(3,), (3, 2)], ids=str)
def test_a_key_that_changes_its_shape_is_recorded(path, shape, dtype, usual):
    """Scalars, states and tensors: values before and after keep their kind."""

    def observe(t):
        x = torch.full(shape if t in (3, 4) else usual, t % 2, dtype=dtype)
        return {"x": x, "y": torch.full((2,), float(t))}

    _, warned = record(Scripted(observe, specs={"x": Unbounded(usual), "y": Unbounded((2,))}), path, steps=8)
    assert warned == []
    recorded = read(path)
    assert_recorded(recorded, "x", observe, 8)
    assert_recorded(recorded, "y", observe, 8)
