"""The kind of a key, by its name, spec and data."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from torchrl_rerun import Depth, Image, Kind, Points3D, Scalars, Segmentation, State, Tensor, Text, Transforms3D
from torchrl_rerun.kinds.describe import KINDS
from torchrl_rerun.kinds.leaf import Leaf, UnsupportedLeafError
from torchrl_rerun.kinds.mujoco_state import MuJoCoState
from torchrl_rerun.kinds.schema import stream_from_schema, stream_to_schema
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.urdf_joints import UrdfJoints
from torchrl_rerun.recording.options import Options


def described(dtype, shape, key="key", **leaf):
    options = {name: leaf.pop(name) for name in ("kinds", "names", "image_format") if name in leaf}
    return Options(**options).describe(Leaf((key,), dtype, shape, **leaf))


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
def test_the_kind_follows_from_dtype_and_shape(dtype, shape, kind, channels):
    found = described(dtype, shape).kind
    assert (found.name, getattr(found, "channels", "")) == (kind, channels)


@pytest.mark.parametrize(
    ("dtype", "shape", "asked", "stored"),
    [
        ("uint8", (84, 84, 3), "jpeg", "jpeg"),
        ("uint8", (84, 84, 4), "jpeg", "png"),
        ("float32", (84, 84, 3), "jpeg", "raw"),
        ("uint8", (84, 84, 3), "h264", "h264"),
        ("uint8", (84, 84, 4), "h264", "png"),
        ("uint8", (4, 84, 84), "h264", "h264"),  # grey frames without alpha
        ("float32", (84, 84, 3), "h264", "raw"),
    ],
)
def test_the_image_format_follows_from_dtype_and_shape(dtype, shape, asked, stored):
    assert described(dtype, shape, image_format=asked).kind.format == stored
    assert described(dtype, shape, image_format="av1", kinds={"key": Image(asked)}).kind.format == stored


def test_an_image_without_a_format_has_the_format_of_the_recorder():
    assert described("uint8", (84, 84, 3), image_format="png", kinds={"key": Image()}).kind.format == "png"
    assert described("uint8", (84, 84, 3), image_format="png", kinds={"key": "image"}).kind.format == "png"
    assert (
        described("uint8", (84, 84, 3), image_format="png", kinds={"other": Image("raw")}, key="key").kind.format
        == "png"
    )


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
def test_the_kind_of_a_picture_follows_from_its_name(name, dtype, shape, kind):
    assert described(dtype, shape, key=name).kind.name == kind


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
def test_frame_stacks_are_recognized(dtype, shape, known, stack):
    found = described(dtype, shape, stack=known).kind
    assert getattr(found, "frames", 0) == stack
    assert isinstance(found, Image) is (dtype != "int64")


def test_stack_none_prevents_a_frame_stack():
    assert described("uint8", (4, 84, 84), kinds={"key": Image(stack="none")}).kind.format == "png", "RGBA"
    with pytest.raises(ValueError, match="an image is uint8 or float with 1, 3 or 4 channels"):
        described("uint8", (12, 84, 84), kinds={"key": Image(stack="none")})


def test_a_matrix_may_be_a_picture_by_choice():
    assert described("float32", (64, 64), kinds={("key",): "image"}).kind.channels == "HW"


def test_an_agent_dimension_is_not_part_of_the_row():
    stream = described("float32", (2, 18), agents=("fox", "hare"))
    assert (stream.kind, stream.row_shape, stream.agent_count) == (Scalars(), (18,), 2)


def test_the_spec_is_preferred_to_the_data():
    assert described("int64", (), discrete="index", categories=(5,)).kind == State((), "index", (5,))
    assert described("int64", ()).kind == Scalars()


@pytest.mark.parametrize("sample", ["text", b"bytes", {"a": 1}, None, 5, np.array(["text"])])
def test_non_tensor_data_that_is_no_array_of_numbers_is_text(sample):
    assert described("object", (), sample=sample).kind == Text()


def test_dtypes_that_no_kind_can_hold():
    with pytest.raises(UnsupportedLeafError, match="complex32 data can't be recorded"):
        described("complex32", (2,))


@pytest.mark.parametrize(("shape", "kind"), [((3,), "tensor"), ((8, 8, 3), "image"), ((), "tensor")])
def test_keys_that_vary_in_shape_are_pictures_or_tensors(shape, kind):
    assert described("uint8", shape, varies=True).kind.name == kind


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ({"kinds": {("key",): "scalars"}, "shape": (100,)}, "at most 64 numbers"),
        ({"kinds": {("key",): "state"}, "shape": (3,)}, "whole numbers or booleans"),
        ({"names": {("key",): ["a"]}, "shape": (3,)}, "1 names, but a row has 3 numbers"),
        ({"names": {("key",): ["a"]}, "shape": (100,)}, "no numbers to name"),
        ({"kinds": {("key",): "depth"}, "shape": (8, 8, 3)}, "depth is one channel of numbers"),
        ({"kinds": {("key",): "segmentation"}, "shape": (8, 8)}, "one channel of whole numbers"),
        ({"kinds": {("key",): Image(stack="newest")}, "shape": (8, 8, 3)}, "stacks of frames are images"),
        ({"kinds": {("key",): Points3D()}, "shape": (8, 2)}, r"points are \[n, 3\]"),
    ],
)
def test_options_that_do_not_fit_are_refused(leaf, message):
    with pytest.raises(ValueError, match=message):
        described("float32", leaf.pop("shape"), **leaf)


ON_BODIES = {
    "bodies": ("a",),
    "quaternion": "wxyz",
    "length": 1.0,
    "geometry": "ab",
    "center": (0.0, 0.0, 1.0),
    "radius": 3.0,
    "root": 1,
    "grid": False,
    "up": "y",
    "spacing": 1.0,
    "trail": 9,
}


@pytest.mark.parametrize(
    "stream",
    [
        Stream(("reward",), Scalars(), "float32", ()),
        Stream(("a", "b"), Scalars(["x", "y", "z"]), "bfloat16", (2, 3), agents=("fox", "hare")),
        Stream(("pixels",), Image("png", channels="HWC"), "uint8", (8, 8, 3)),
        Stream(("pixels",), Image("jpeg", 80, channels="CHW", frames=4), "uint8", (4, 8, 8)),
        Stream(("pixels",), Image("raw", stack="newest", channels="CHW", frames=4), "uint8", (4, 8, 8)),
        Stream(("action",), State(["no", "yes", "so"], "one_hot", [2, 3]), "int64", (5,)),
        Stream(("picture",), Image("jpeg"), "object", (), shared=True),
        Stream(("points",), Tensor(), "float32", (3, 4), varies=True),
        Stream(("points",), Points3D(0.1, [(1, 2, 3), (4, 5, 6)]), "float32", (2, 3)),
        Stream(("pose",), Transforms3D("wxyz", 0.1, ["base"], "ab12", (1.0, 2.0, 3.0), 2.0), "float32", (1, 7)),
        Stream(("joints",), Scalars(), "float32", (2,), scene=UrdfJoints(**ON_BODIES, tree="ef", joints=(1, -1))),
        Stream(
            ("scene",),
            MuJoCoState(**ON_BODIES, model="cd", signature=7, contacts=True, tendons=True),
            "float64",
            (15,),
        ),
        Stream(("depth",), Depth(1000.0, channels="HW"), "uint16", (8, 8)),
        Stream(("classes",), Segmentation(["floor"], channels="HW"), "uint8", (8, 8)),
        Stream(("note",), Text(), "object", ()),
        Stream(("episode_return",), Scalars(), "float64", (1,), reward_key=("reward",)),
        Stream(("__properties", "x"), Scalars(), "float32", (1,), place=("__properties_2", "x")),
    ],
)
def test_a_stream_equals_its_json_round_trip(stream):
    assert stream_from_schema(json.loads(json.dumps(stream_to_schema(stream) | {"moment": "observed"}))) == stream


def test_every_field_of_a_stream_is_in_the_round_trip():
    given = test_a_stream_equals_its_json_round_trip.pytestmark[0].args[1]
    where_it_came_from = {"device"}  # not needed by a reader
    for field in (field for field in dataclasses.fields(Stream) if field.name not in where_it_came_from):
        assert len({getattr(stream, field.name) for stream in given}) > 1, field.name


def test_every_kind_and_option_is_in_the_round_trip():
    streams = test_a_stream_equals_its_json_round_trip.pytestmark[0].args[1]
    given = [kind for stream in streams for _, kind in stream.drawing]
    for kind in KINDS:
        of_kind = [each for each in given if isinstance(each, kind)]
        for field in dataclasses.fields(kind):
            assert any(getattr(each, field.name) != field.default for each in of_kind), (kind, field.name)
        assert of_kind, kind


def test_kinds_with_equal_names_are_refused():
    with pytest.raises(
        ValueError,
        match=r"Photo has the name of torchrl_rerun\.kinds\.image\.Image, 'image': two kinds never share one",
    ):

        class Photo(Kind):
            name = "image"


def test_a_kind_without_its_class_can_be_listed_and_not_read():
    told = {"key": ["x"], "dtype": "float32", "shape": [3], "kind": "wind", "options": {"scale": 2}}
    stream = stream_from_schema(told)
    assert (stream.kind.name, stream.kind.format, stream.kind.view(stream)) == ("wind", None, None)
    with pytest.raises(ValueError, match="'x' is of kind 'wind', which is not known here: import the module"):
        stream.kind.check_readable(stream)
