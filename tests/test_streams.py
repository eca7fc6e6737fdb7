"""From a key and its data to a kind: what people expect of their arrays."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from torchrl_rerun.kinds.streams import Leaf, Stream, UnsupportedLeafError, describe


def described(dtype, shape, **leaf):
    options = {name: leaf.pop(name) for name in ("kinds", "names", "image_format", "stacks") if name in leaf}
    settings = {"kinds": {}, "names": {}, "image_format": "jpeg"} | options
    return describe(Leaf(("key",), dtype, shape, **leaf), **settings)


@pytest.mark.parametrize(
    ("dtype", "shape", "kind", "channels"),
    [
        ("uint8", (84, 84, 3), "image", "HWC"),
        ("uint8", (3, 84, 84), "image", "CHW"),
        ("uint8", (1, 84, 84), "image", "CHW"),
        ("uint8", (84, 84, 4), "image", "HWC"),
        ("uint8", (84, 84), "image", "HW"),
        ("uint8", (1, 1, 3), "image", "HWC"),
        ("float32", (3, 64, 64), "image", "CHW"),
        ("float16", (64, 64, 1), "image", "HWC"),
        ("float32", (64, 64), "tensor", ""),  # a matrix, not a picture
        ("float32", (4, 4, 3), "tensor", ""),
        ("uint8", (2, 19, 19), "tensor", ""),  # planes of a board
        ("uint8", (32, 84, 84), "tensor", ""),
        ("int64", (84, 84, 3), "tensor", ""),
        ("float32", (), "scalars", ""),
        ("float64", (64,), "scalars", ""),
        ("float64", (65,), "tensor", ""),
        ("float32", (3, 2), "tensor", ""),
        ("bool", (1,), "state", ""),
        ("bool", (8,), "state", ""),
        ("bool", (100,), "tensor", ""),
        ("uint8", (5,), "scalars", ""),
    ],
)
def test_kind_of_data(dtype, shape, kind, channels):
    stream = described(dtype, shape)
    assert (stream.kind, stream.channels) == (kind, channels)


@pytest.mark.parametrize(
    ("dtype", "shape", "asked", "stored"),
    [
        ("uint8", (84, 84, 3), "jpeg", "jpeg"),
        ("uint8", (84, 84, 4), "jpeg", "png"),
        ("float32", (84, 84, 3), "jpeg", "raw"),
        ("uint8", (84, 84, 3), "h264", "h264"),
        ("uint8", (84, 84, 4), "h264", "png"),
        ("uint8", (4, 84, 84), "h264", "h264"),  # frames of grey, and no alpha
        ("float32", (84, 84, 3), "h264", "raw"),
        ("uint8", (84, 84, 3), {("other",): "raw"}, "jpeg"),
        ("uint8", (84, 84, 3), {("key",): "raw"}, "raw"),
    ],
)
def test_image_format(dtype, shape, asked, stored):
    assert described(dtype, shape, image_format=asked).image_format == stored


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "kind"),
    [
        ("depth", "float32", (48, 64), "depth"),
        ("Depth_Image", "uint16", (48, 64, 1), "depth"),
        ("wrist_depth", "float16", (1, 48, 64), "depth"),
        ("depth", "uint8", (48, 64, 3), "image"),
        ("depth", "float32", (1,), "scalars"),
        ("depths", "float32", (48, 64), "tensor"),
        ("segmentation", "int64", (48, 64), "segmentation"),
        ("camera_semantic", "uint8", (48, 64, 1), "segmentation"),
        ("instance_seg", "int32", (1, 48, 64), "segmentation"),
        ("instance_ids", "uint16", (48, 64), "segmentation"),
        ("segmentation", "float32", (48, 64), "tensor"),
        ("segmentation", "int64", (3,), "scalars"),
        ("instances", "int64", (10, 7), "tensor"),
        ("segment", "uint8", (48, 64), "image"),
    ],
)
def test_names_that_say_what_a_picture_is(name, dtype, shape, kind):
    assert describe(Leaf((name,), dtype, shape), kinds={}, names={}, image_format="jpeg").kind == kind


@pytest.mark.parametrize(
    ("dtype", "shape", "known", "stack"),
    [
        ("uint8", (4, 84, 84), 0, 4),  # gymnasium's FrameStackObservation of grey images, and TorchRL's CatFrames
        ("float32", (4, 84, 84), 0, 4),
        ("uint8", (4, 84, 84, 3), 0, 4),
        ("uint8", (4, 3, 84, 84), 0, 4),
        ("uint8", (12, 84, 84), 0, 4),
        ("uint8", (84, 84, 12), 0, 4),
        ("uint8", (5, 84, 84), 0, 5),
        ("uint8", (3, 84, 84), 0, 0),
        ("uint8", (3, 84, 84), 3, 3),
        ("uint8", (12, 84, 84), 12, 12),
        ("uint8", (84, 84, 4), 0, 0),
        ("uint8", (84, 84, 4), 4, 4),
        ("uint8", (4, 8, 8), 0, 0),
        ("uint8", (4, 8, 8), 4, 4),
        ("int64", (4, 84, 84), 4, 0),
        ("uint8", (84, 84), 4, 0),
    ],
)
def test_stacks_of_frames(dtype, shape, known, stack):
    found = described(dtype, shape, stack=known)
    assert found.stack == stack
    assert (found.kind == "image") is (dtype != "int64")


def test_no_stack_of_frames_if_the_user_says_so():
    assert described("uint8", (4, 84, 84), stacks="none").image_format == "png", "RGBA"
    assert described("uint8", (12, 84, 84), stacks={("key",): "none"}).kind == "tensor"


def test_a_matrix_that_is_a_picture_after_all():
    assert described("float32", (64, 64), kinds={("key",): "image"}).channels == "HW"


def test_an_agent_dimension_is_not_part_of_the_row():
    stream = described("float32", (2, 18), agents=("fox", "hare"))
    assert (stream.kind, stream.row_shape, stream.lanes) == ("scalars", (18,), 2)


def test_the_spec_decides_before_the_data():
    assert described("int64", (), discrete="index", categories=(5,)).kind == "state"
    assert described("int64", ()).kind == "scalars"


@pytest.mark.parametrize("sample", ["text", b"bytes", {"a": 1}, None, 5, np.array(["text"])])
def test_non_tensor_data_that_is_no_array_of_numbers_is_text(sample):
    assert described("object", (), sample=sample).kind == "text"


def test_dtypes_that_no_kind_can_hold():
    with pytest.raises(UnsupportedLeafError, match="complex32 data can't be recorded"):
        described("complex32", (2,))


@pytest.mark.parametrize(("shape", "kind"), [((3,), "tensor"), ((8, 8, 3), "image"), ((), "tensor")])
def test_keys_that_vary_in_shape_are_pictures_or_tensors(shape, kind):
    assert described("uint8", shape, varies=True).kind == kind


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ({"kinds": {("key",): "scalars"}, "shape": (100,)}, "at most 64 numbers"),
        ({"kinds": {("key",): "state"}, "shape": (3,)}, "whole numbers or booleans"),
        ({"names": {("key",): ["a"]}, "shape": (3,)}, "1 names, but a row has 3 numbers"),
        ({"names": {("key",): ["a"]}, "shape": (100,)}, "no numbers to name"),
        ({"kinds": {("key",): "depth"}, "shape": (8, 8, 3)}, "depth is one channel of numbers"),
        ({"kinds": {("key",): "segmentation"}, "shape": (8, 8)}, "one channel of whole numbers"),
        ({"stacks": {("key",): "newest"}, "shape": (8, 8, 3)}, "not recorded as a stack of frames"),
    ],
)
def test_overrides_that_do_not_fit(leaf, message):
    with pytest.raises(ValueError, match=message):
        described("float32", leaf.pop("shape"), **leaf)


@pytest.mark.parametrize(
    "stream",
    [
        Stream(("reward",), "scalars", "float32", ()),
        Stream(("a", "b"), "scalars", "bfloat16", (2, 3), agents=("fox", "hare"), names=("x", "y", "z")),
        Stream(("pixels",), "image", "uint8", (8, 8, 3), image_format="png", channels="HWC"),
        Stream(("pixels",), "image", "uint8", (4, 8, 8), image_format="jpeg", jpeg_quality=90, channels="CHW", stack=4),
        Stream(("pixels",), "image", "uint8", (4, 8, 8), image_format="raw", channels="CHW", stack=4, newest=True),
        Stream(("action",), "state", "int64", (5,), discrete="one_hot", categories=(2, 3), names=("no", "yes", "so")),
        Stream(("picture",), "image", "object", (), image_format="jpeg", shared=True),
        Stream(("points",), "tensor", "float32", (3, 4), varies=True),
        Stream(("episode_return",), "scalars", "float64", (1,), sums=("reward",)),
        Stream(("__properties", "x"), "scalars", "float32", (1,), place=("__properties_2", "x")),
    ],
)
def test_a_stream_comes_back_from_its_json(stream):
    assert Stream.from_json(json.loads(json.dumps(stream.as_json() | {"moment": "observed"}))) == stream


def test_every_field_of_a_stream_has_been_in_that_test():
    given = test_a_stream_comes_back_from_its_json.pytestmark[0].args[1]
    where_it_came_from = {"device"}  # of no interest to a reader
    for field in (field for field in dataclasses.fields(Stream) if field.name not in where_it_came_from):
        assert len({getattr(stream, field.name) for stream in given}) > 1, field.name
