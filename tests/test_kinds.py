"""Kinds beyond the built-in basics: points in space, and kinds of a user."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import pytest
import rerun as rr
import rerun.blueprint as rrb
import torch
from rerun.chunk import RrdReader
from tensordict import NonTensorData, TensorDict, lazy_stack

from looking import headless_viewer, opened, rerun_views, trouble
from torchrl_rerun import (
    Depth,
    Encoded,
    Image,
    Kind,
    Points3D,
    RerunRecorder,
    State,
    View,
    archetype_columns,
    exact_column,
    load,
    to_parquet,
)
from torchrl_rerun.kinds import kind as kind_module

STEPS = 6


def rollout_of(observed):
    """Return a rollout of one environment in which a key has these values, one more than steps."""
    steps = len(observed) - 1
    following = {"reward": torch.ones(1, steps, 1), "done": torch.zeros(1, steps, 1, dtype=torch.bool)}
    moments = [
        TensorDict(
            {
                "points": observed[t],
                "action": torch.zeros(1),
                "next": TensorDict({"points": observed[t + 1], **{key: each[0, t] for key, each in following.items()}}),
            }
        )
        for t in range(steps)
    ]
    return lazy_stack([lazy_stack(moments, 0)], 0)


def logged(path, observed, kind):
    with RerunRecorder(path, kinds={"points": kind}) as recorder:
        recorder.log_rollout(rollout_of(observed))


def columns_of(path, entity, *, static=False):
    """Return the columns of an entity by name, from Rerun's own reader, in the order of chunks."""
    chunks = RrdReader(path).stream().filter(content=entity, is_static=static)
    batches = [chunk.to_record_batch() for chunk in chunks]
    names = {name for batch in batches for name in batch.schema.names}
    return {
        name: [v for batch in batches if name in batch.schema.names for v in batch.column(name).to_pylist()]
        for name in names
    }


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
)
@pytest.mark.parametrize("shape", [(5, 3), (3,), (0, 3)])
def test_points_come_back_bit_for_bit(path, dtype, shape):
    observed = [(torch.randn(shape, dtype=torch.float64) * 100 + t).to(dtype) for t in range(STEPS + 1)]
    logged(path, observed, Points3D())
    [episode] = load(path)
    back = episode.tensordict()
    assert back["points"].dtype is dtype
    assert torch.equal(back["points"], torch.stack(observed[:-1]))
    assert torch.equal(back["next", "points"], torch.stack(observed[1:]))


def test_the_viewer_gets_positions_as_float32(path):
    observed = [torch.tensor([[t, 0.1, -2.0], [1.0, 2.0, 3.0]], dtype=torch.float64) for t in range(STEPS + 1)]
    logged(path, observed, Points3D(radii=[0.1, 0.2], colors=(255, 0, 0)))
    shown = columns_of(path, "/env_0/points")
    assert [np.array(each).tolist() for each in shown["Points3D:positions"]] == [
        each.to(torch.float32).tolist() for each in observed
    ]
    assert shown["torchrl_rerun:exact"][0] == observed[0].reshape(-1).tolist(), "float32 doesn't hold 0.1"
    static = columns_of(path, "/env_0/points", static=True)
    assert np.allclose(static["Points3D:radii"], [[0.1, 0.2]])
    assert static["Points3D:colors"] == [[0xFF0000FF]]


def test_the_number_of_points_may_vary(path):
    observed = [torch.randn(n, 3) for n in (3, 0, 7, 7, 1, 3, 2)]
    logged(path, observed, Points3D())
    [episode] = load(path)
    assert all(torch.equal(a, b) for a, b in zip(episode["points"], observed, strict=True))
    shown = columns_of(path, "/env_0/points")["Points3D:positions"]
    assert [len(each) for each in shown] == [3, 0, 7, 7, 1, 3, 2]


def test_arrays_of_non_tensor_data_may_be_points(path):
    observed = [np.random.default_rng(t).normal(size=(t + 1, 3)).astype(np.float32) for t in range(STEPS + 1)]
    logged(path, [NonTensorData(each) for each in observed], Points3D())
    [episode] = load(path)
    assert all(np.array_equal(a, b) for a, b in zip(episode["points"], observed, strict=True))
    assert "Points3D:positions" in columns_of(path, "/env_0/points")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (torch.zeros(4, 2), r"shape \(4, 2\); points are \[n, 3\], or \[3\] of one"),
        (torch.zeros(2, 4, 3), r"shape \(2, 4, 3\)"),
        (torch.zeros(4, 3, dtype=torch.bool), "bool data; points are real numbers"),
        (NonTensorData("text"), "object data; points are real numbers"),
    ],
)
def test_values_of_other_shapes_and_dtypes_are_refused_as_points(path, value, why):
    with pytest.raises(ValueError, match=rf"kinds\['points'\] = 'points3d' doesn't fit {why}"):
        logged(path, [value] * 3, "points3d")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radii": -1}, "radii=-1: pass a positive number, or one for each point"),
        ({"radii": [0.1, float("nan")]}, "pass a positive number"),
        ({"colors": (256, 0, 0)}, "from 0 to 255"),
        ({"colors": [(1, 2)]}, "red, green, blue"),
        ({"colors": (1.0, 0.5, 0.2)}, "whole numbers from 0 to 255"),
        ({"colors": 0xFF0000FF}, "red, green, blue"),
        ({"radii": "big"}, "radii='big': pass a positive number"),
    ],
)
def test_options_of_points_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Points3D(**options)


def test_points_are_shown_in_a_3d_view(path, tmp_path):
    logged(path, [torch.rand(200, 3) + 0.1 * t for t in range(STEPS + 1)], Points3D(radii=0.05, colors=(255, 255, 255)))
    with headless_viewer() as viewer:
        views = opened(viewer, path, 3)
        assert trouble(views) == []
        assert ("3D", "/env_0/points", "points") in rerun_views(views)


@dataclass(frozen=True)
class Doubled(Kind):
    """A user's kind without a view, that stores numbers as they are."""

    name = "doubled"

    def view(self, stream):
        return View(rrb.Spatial3DView)


@dataclass(frozen=True)
class Clumsy(Kind):
    """A kind that stores its values, and fails in all other methods."""

    name = "clumsy"

    def static(self, stream, agent):
        raise ZeroDivisionError("static")

    def view(self, stream):
        raise ZeroDivisionError("view")


def warnings_of(path, observed, kind):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        logged(path, observed, kind)
    return list(dict.fromkeys(str(each.message) for each in warned))


def test_a_kind_whose_view_fails_is_recorded(path):
    observed = [torch.full((2, 2), float(t)) for t in range(STEPS + 1)]
    assert sorted(warnings_of(path, observed, Clumsy())) == [
        "'points' has no view in the layout: Clumsy.view failed (ZeroDivisionError: view)",
        "the names and colours of 'points' are not recorded: ZeroDivisionError('static')",
    ]
    [episode] = load(path)
    assert torch.equal(episode.tensordict()["points"], torch.stack(observed[:-1]))
    assert RrdReader(path).blueprints()


@dataclass(frozen=True)
class Picky(Kind):
    """A kind that fails at one value."""

    name = "picky"
    refused: float = 3.0
    how: str = "raises"

    def columns(self, stream, rows):
        if (rows == self.refused).any():
            if self.how == "raises":
                raise RuntimeError("not this one")
            if self.how == "forgets":
                return archetype_columns(rr.Arrows3D.columns(vectors=np.zeros((len(rows), 3))), [1] * len(rows))
            return [exact_column(stream.numbers(np.repeat(rows, 2, axis=0)))]
        return [exact_column(stream.numbers(rows))]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("raises", "Picky.columns failed for float32 (2, 2) (RuntimeError: not this one)"),
        ("forgets", "Picky.columns returned none of torchrl_rerun:exact, by which it could be read: add exact_column("),
        ("is long", "Picky.columns made 2 rows of torchrl_rerun:exact of 1 values"),
    ],
)
def test_a_value_that_a_kind_cannot_store_is_left_out_alone(path, how, why):
    observed = [torch.full((2, 2), float(t)) for t in range(STEPS + 1)]
    (warned,) = warnings_of(path, observed, Picky(how=how))
    assert warned.startswith(f"'points' is not recorded at frame 3: {why}")
    columns = columns_of(path, "/env_0/points")
    first = [row[0] for row in columns["torchrl_rerun:exact"]]
    assert dict(zip(columns["frame"], first, strict=True)) == {t: t for t in (0, 1, 2, 4, 5, 6)}


def test_a_kind_whose_class_is_missing_is_an_error_that_names_the_key(path, monkeypatch):
    observed = [torch.randn(n, 3) for n in (3, 1, 3)]
    logged(path, observed, Points3D())
    monkeypatch.delitem(kind_module._KINDS, "points3d")  # like in a process that has not imported the class
    [episode] = load(path)
    for read in (episode.tensordict, lambda: episode["points"], load(path).rollout):
        with pytest.raises(
            ValueError, match=r"'points' is of kind 'points3d', which is not known here: import the module"
        ):
            read()
    assert episode.tensordict(["action"]).batch_size == (2,)


@dataclass(frozen=True)
class Failing(Kind):
    """A kind that fails in one of its methods."""

    name = "failing"
    where: str = ""

    def _fail(self, where):
        if self.where == where:
            raise ZeroDivisionError(where)

    def holds(self, stream, value):
        self._fail("holds")
        return super().holds(stream, value)

    def is_of_any_size(self, stream):
        self._fail("is_of_any_size")
        return False

    def static(self, stream, agent):
        return ["junk"] if self.where == "static" else ()

    def encoder(self, stream, fps):
        self._fail("encoder")
        return FailingEncoder(self) if self.where.startswith("encode.") else None

    @classmethod
    def from_schema(cls, fields):
        if fields["options"]["where"] == "from_schema":
            raise KeyError("option")
        return super().from_schema(fields)


class FailingEncoder:
    is_in_order = False

    def __init__(self, kind):
        self._where = kind.where

    def encode(self, rows, episodes):
        if self._where == "encode.raises":
            raise ZeroDivisionError("encode")
        return None if self._where == "encode.returns" else Encoded([b""] * len(rows), [], {})

    def columns(self, files, keyframes):
        raise ZeroDivisionError("columns")


@pytest.mark.parametrize("varies", [False, True], ids=["one shape", "any shape"])
@pytest.mark.parametrize(
    "where",
    [
        *("holds", "is_of_any_size", "static", "encoder", "encode.raises", "encode.returns", "encode.columns"),
        "from_schema",
    ],
)
def test_a_kind_that_fails_loses_its_key_at_most(path, where, varies):
    observed = [torch.full((1 + varies * t % 3, 2), float(t)) for t in range(STEPS + 1)]
    said = warnings_of(path, observed, Failing(where=where))
    assert len(said) <= 2
    assert all("points" in each for each in said)
    [episode] = load(path)
    assert episode.tensordict(["action"]).batch_size == (STEPS,)
    assert episode.properties.episode_return == STEPS


@pytest.mark.parametrize("split", ["run", "episode"])
def test_a_view_that_fails_leaves_a_complete_recording(tmp_path, split):
    sink = tmp_path / ("run" if split == "episode" else "run.rrd")

    def record():
        recorder = RerunRecorder(sink, split=split, kinds={"points": Clumsy()})
        recorder.log_rollout(rollout_of([torch.zeros(2, 2)] * 4))
        recorder.close()

    with pytest.warns(UserWarning, match="'points' has no view in the layout: Clumsy.view failed"):
        record()
    assert len(load(sink)) == 1


def test_values_of_the_wrong_shape_from_a_kind_are_an_error_that_names_the_key(path, monkeypatch):
    logged(path, [torch.zeros(2, 2)] * 4, Doubled())
    monkeypatch.setattr(Doubled, "values", lambda self, stream, batch: np.zeros((1, 2, 2)), raising=False)
    with pytest.raises(ValueError, match=r"Doubled.values gave float64 \(1, 2, 2\) for [14] rows of 'points'"):
        load(path)[0]["points"]


@pytest.mark.parametrize("number", [2**24 + 1, 2**53 + 1, 2**63 - 1, -(2**63) + 1])
def test_whole_numbers_beyond_float32_come_back(path, number):
    observed = [torch.tensor([[number, t, -t]]) for t in range(STEPS + 1)]
    logged(path, observed, Points3D())
    assert torch.equal(load(path)[0].tensordict()["points"], torch.stack(observed[:-1]))


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (Image(channels="HW"), (3, 9, 8), r"shape \(3, 9, 8\) with channels='HW'"),
        (Image(channels="CHW"), (9, 8, 3), r"shape \(9, 8, 3\) with channels='CHW'"),
        (Image(frames=3), (4, 40, 40), "as a stack of 3 frames"),
        (Image(frames=5), (4, 40, 40, 3), "as a stack of 5 frames"),
        (Depth(channels="CHW"), (9, 8), "with channels='CHW'"),
        (State(discrete="one_hot", categories=[3]), (2,), "not one number for each of"),
        (State(discrete="index"), (2,), "and no categories"),
        (Points3D(radii=[0.1, 0.2]), (3, 3), "with 2 radii; pass one, or one for each point"),
    ],
)
def test_options_that_do_not_fit_the_values_are_refused_at_the_first_reset(path, kind, shape, message):
    with pytest.raises(ValueError, match=rf"kinds\['points'\] = .* doesn't fit .*{message}"):
        logged(path, [torch.zeros(shape, dtype=torch.uint8)] * 3, kind)
    assert not path.exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Image(channels="foo"), "channels='foo': choose one of"),
        (lambda: Image(frames=-1), "frames=-1: pass the number of frames"),
        (lambda: Depth(meter=-1), "meter=-1: pass a positive number"),
        (lambda: Depth(meter="x"), "meter='x': pass a positive number"),
        (lambda: State(discrete="foo"), "discrete='foo': choose one of 'index', 'one_hot'"),
    ],
)
def test_options_out_of_their_range_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numpy_numbers_are_valid_options(path):
    logged(path, [torch.zeros(8, 8)] * 3, Depth(meter=np.float32(1000)))
    assert columns_of(path, "/env_0/points", static=True)["DepthImage:meter"] == [[1000.0]]


def test_an_export_leaves_out_a_key_whose_kind_is_not_known(path, tmp_path, monkeypatch):
    logged(path, [torch.zeros(2, 2)] * 4, Doubled())
    monkeypatch.delitem(kind_module._KINDS, "doubled")
    to_parquet(load(path), tmp_path / "steps.parquet")
    assert "points" not in pq.read_schema(tmp_path / "steps.parquet").names
    assert pq.read_metadata(tmp_path / "steps.parquet").num_rows == 3
    with pytest.raises(
        ValueError, match="'points' is of kind 'doubled', whose class is not imported here: leave it out"
    ):
        to_parquet(load(path), tmp_path / "other.parquet", keys=["points"])


class Nameless(Kind):
    """A kind without a name."""


@dataclass(frozen=True)
class Optioned(Kind):
    name = "optioned"
    option: object = None

    def fitted(self, leaf):
        return None if self.option == "forgets" else self


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Nameless(), r"kinds\['points'\]: Nameless has no name"),
        (Optioned({}), "options of a kind are hashable"),
        (Optioned(np.float32(1)), "options of a kind are hashable and have a form in JSON"),
        (Optioned("forgets"), r"kinds\['points'\]: Optioned.fitted returned None; return self"),
        ("Points3D", r"kinds\['points'\]='Points3D' \(did you mean 'points3d'\?\): choose one of"),
        (rr.Points3D, "an archetype of Rerun's is no kind"),
        (5, "choose one of .*'text'"),
    ],
)
def test_invalid_kinds_are_refused_before_the_first_frame(path, kind, message):
    with pytest.raises((TypeError, ValueError), match=message):
        logged(path, [torch.zeros(2, 3)] * 3, kind)
    assert not path.exists()


def test_counts_of_an_archetype_must_fit_its_values():
    with pytest.raises(ValueError, match="counts add up to 2, and there are 6 values of Arrows3D:vectors"):
        list(archetype_columns(rr.Arrows3D.columns(vectors=np.zeros((6, 3))), [1, 1]))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int16, np.int64])
def test_points_of_numpy_dtypes_are_drawn_and_come_back_in_their_dtype(path, dtype):
    observed = [(10 * np.random.default_rng(t).normal(size=(t + 1, 3))).astype(dtype) for t in range(STEPS + 1)]
    logged(path, [NonTensorData(each) for each in observed], Points3D())
    [episode] = load(path)
    for value, expected in zip(episode["points"], observed, strict=True):
        assert value.dtype == dtype
        assert np.array_equal(value, expected)
    assert len(columns_of(path, "/env_0/points")["Points3D:positions"]) == STEPS + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.complex64, torch.bfloat16])
def test_values_of_a_user_defined_kind_come_back(path, dtype):
    observed = [torch.full((2, 2), t, dtype=dtype) for t in range(STEPS + 1)]
    logged(path, observed, Doubled())
    [episode] = load(path)
    assert torch.equal(episode.tensordict()["points"], torch.stack(observed[:-1]))


def test_a_kind_of_ones_own_that_claims_to_be_of_pictures_is_refused():
    with pytest.raises(TypeError, match="is no subclass of Image, Depth or Segmentation"):
        type("Map", (Kind,), {"name": "map", "is_picture": True})
