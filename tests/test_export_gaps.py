"""Exports of keys with gaps, of values that vary in shape and of objects among texts, read by other libraries."""

from __future__ import annotations

import functools
import json
import math
import re
import warnings

import duckdb
import minari
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensordict import NonTensorData, TensorDict, lazy_stack
from torchrl.data import Composite, NonTensor, Unbounded
from torchrl.envs import GymWrapper

from commands import export
from driving import record, walk
from environments import Lengths, Scripted
from torchrl_rerun import RerunRecorder, load
from torchrl_rerun.export.lerobot import to_lerobot
from torchrl_rerun.export.minari import to_minari
from torchrl_rerun.export.parquet import to_parquet

VALUES = {
    "number": torch.tensor(2, dtype=torch.int64),
    "flag": torch.tensor([True]),
    "vector": torch.full((3,), 2.5),
    "half": torch.full((2,), 1.5, dtype=torch.bfloat16),
    "table": torch.full((2, 3), 4, dtype=torch.uint8),
    "many": torch.full((2000,), 1.0),
    "nothing": torch.zeros(0),
    "text": NonTensorData("there"),
}
MISSING = {"middle": [2, 3], "second": [1], "last": [6], "scattered": [1, 3, 5]}
READERS = {
    "pyarrow": lambda file: pq.read_table(file).to_pylist(),
    "polars": lambda file: pl.read_parquet(file).to_dicts(),
    "duckdb": lambda file: duckdb.sql(f"select * from '{file}'").to_arrow_table().to_pylist(),
}


def of_texts(values, path, steps=None):
    """Record texts, one for each frame."""
    env = Scripted(
        lambda t: {"x": torch.full((1,), float(t)), "note": NonTensorData(values[t % len(values)])},
        specs={"x": Unbounded((1,)), "note": NonTensor(())},
    )
    walk(env.append_transform(RerunRecorder(path)), len(values) - 1 if steps is None else steps)


class Ending(Scripted):
    """Ends an episode after two steps."""

    def _step(self, tensordict):
        out = super()._step(tensordict)
        return out.set("done", torch.full((1,), self.t == 2))


def plain(value):
    """Return a value of a library as plain Python, arrays as flat lists."""
    if isinstance(value, pl.Series | np.ndarray):
        value = value.to_list() if isinstance(value, pl.Series) else value.tolist()
    if isinstance(value, list) and value and isinstance(value[0], list | pl.Series | np.ndarray):
        return [one for each in value for one in plain(each)]
    return value


# --- keys that are missing at some frames ---


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("name", VALUES)
def test_parquet_has_a_row_for_each_step_and_null_for_missing_values(path, tmp_path, name, missing):
    value = VALUES[name]
    there = [t not in MISSING[missing] for t in range(7)]
    specs = {"x": Unbounded((1,)), "y": NonTensor(()) if name == "text" else Unbounded(value.shape, dtype=value.dtype)}
    env = Scripted(lambda t: {"x": torch.full((1,), float(t))} | ({"y": value} if there[t] else {}), specs=specs)
    walk(env.append_transform(RerunRecorder(path)), 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_parquet(load(path), tmp_path / "all.parquet", keys=["x", "y", "reward"]) == 6
        assert to_parquet(load(path), tmp_path / "alone.parquet", keys=["y"]) == 6
    wanted = "there" if name == "text" else value.float().flatten().tolist()
    wanted = wanted[0] if isinstance(wanted, list) and len(wanted) == 1 else wanted
    for reader, read in READERS.items():
        for file in ("all.parquet", "alone.parquet"):
            rows = read(tmp_path / file)
            assert [row["row"] for row in rows] == list(range(6)), reader
            assert [plain(row["y"]) for row in rows] == [wanted if there[t] else None for t in range(6)], reader
            assert [plain(row["next/y"]) for row in rows] == [wanted if there[t + 1] else None for t in range(6)], (
                reader
            )
        rows = read(tmp_path / "all.parquet")
        assert [row["x"] for row in rows] == [0, 1, 2, 3, 4, 5]
        assert [row["next/x"] for row in rows] == [row["next/reward"] for row in rows] == [1, 2, 3, 4, 5, 6]
    frame = pd.read_parquet(tmp_path / "all.parquet")
    assert frame["y"].isna().tolist() == [not each for each in there[:6]]
    assert frame["next/y"].isna().tolist() == [not each for each in there[1:]]


def test_a_dense_tensor_with_gaps_is_an_arrow_tensor_column(path, tmp_path):
    record(Scripted(lambda t: {"x": torch.ones(1)} | ({} if t == 2 else {"y": torch.full((2, 2), t)})), path, 4)
    to_parquet(load(path), tmp_path / "x.parquet")
    column = pq.read_table(tmp_path / "x.parquet")["y"]
    assert column.type == pa.fixed_shape_tensor(pa.int64(), (2, 2))
    assert column.combine_chunks().storage.to_pylist() == [[0] * 4, [1] * 4, None, [3] * 4]


def test_no_step_is_lost_if_each_key_is_missing_at_frames_of_its_own(path, tmp_path):
    """No key has a value at each frame: neither rewards nor flags are recorded."""

    def observe(t):
        return {key: torch.full((1,), float(t)) for key, gap in (("x", 2), ("y", 4)) if t != gap}

    record(Scripted(observe), path, 6, in_keys=["x", "y"])
    assert to_parquet(load(path), tmp_path / "x.parquet", keys=["x"]) == 6
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["x"] for row in rows] == [0, 1, None, 3, 4, 5]
    assert [row["next/x"] for row in rows] == [1, None, 3, 4, 5, 6]


def test_pictures_that_are_missing_are_null(path, tmp_path):
    picture = torch.arange(40 * 40 * 3, dtype=torch.uint8).reshape(40, 40, 3)
    env = Scripted(lambda t: {"x": torch.ones(1)} | ({} if t in (1, 2) else {"pixels": picture + t}))
    record(env, path, 4, image_format="png")
    assert to_parquet(load(path), tmp_path / "x.parquet", keys=["pixels"]) == 4
    table = pq.read_table(tmp_path / "x.parquet")
    for name, first in (("pixels", 0), ("next/pixels", 1)):
        for t, held in enumerate(table[name].combine_chunks().storage.to_pylist(), first):
            assert held == (None if t in (1, 2) else (picture + t).flatten().tolist())


# --- frames that were not recorded ---


def test_steps_that_were_not_recorded_are_counted_and_nothing_is_renumbered(path, tmp_path):
    recorder = RerunRecorder(path)
    env = Scripted(lambda t: {"x": torch.full((1,), float(t))}).append_transform(recorder)
    tensordict = env.reset()
    for t in range(12):
        recorder.switch(t not in (4, 5, 8))
        tensordict = env.step_mdp(env.step(env.rand_action(tensordict)))
    env.close()
    with pytest.warns(
        UserWarning, match=r"^episode 0 of environment 0 in .*run\.rrd: 5 steps are left out, since not both"
    ):
        assert to_parquet(load(path), tmp_path / "x.parquet") == 7
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["row"] for row in rows] == [row["x"] for row in rows] == [0, 1, 2, 3, 7, 10, 11]
    assert [row["next/x"] for row in rows] == [1, 2, 3, 4, 8, 11, 12]


@pytest.mark.parametrize("split", ["run", "episode"])
def test_one_warning_counts_the_steps_left_out_of_all_episodes(tmp_path, data_sets, split):
    env = GymWrapper(Lengths()).append_transform(RerunRecorder(tmp_path / "run", split=split, skip=2))
    env.rollout(10, break_when_any_done=False)
    env.close()
    episodes = load(tmp_path / "run")
    steps = sum(episode.properties.length for episode in episodes)
    for form in (
        ["--parquet", tmp_path / "x.parquet"],
        ["--lerobot", tmp_path / "set"],
        ["--minari", "skipped-v0"],
    ):
        done = export(tmp_path / "run", *form)
        assert done.exit_code == 0, done.output
        assert done.stderr.count("warning: ") == 1
        said = re.search(
            r"episode \d of environment 0 in .* and (\d) more: (\d) steps are left out \((\d) of these", done.stderr
        )
        assert said, done.stderr
        kept = len(pq.read_table(tmp_path / "x.parquet"))
        assert steps - int(said[2]) == kept > 0


@pytest.mark.parametrize("form", ["parquet", "minari", "lerobot"])
def test_an_error_says_why_no_step_can_be_exported(path, tmp_path, data_sets, form):
    record(Scripted(lambda t: {"x": torch.ones(1)}), path, 6, skip=2)
    done = export(path, f"--{form}", "none-v0" if form == "minari" else tmp_path / "out")
    assert done.exit_code == 1
    assert "there are no steps to export: episode 0 of environment 0 in" in done.stderr
    assert "6 steps are left out, since" in done.stderr
    assert not (tmp_path / "out").exists()
    assert not [each for each in data_sets.rglob("*") if each.is_file()]


@pytest.mark.parametrize(("missing", "kept"), [([1], 4), ([6], 5), ([2, 3], 1), ([1, 4], 1)], ids=str)
def test_minari_and_lerobot_warn_of_steps_that_are_left_out(path, tmp_path, data_sets, missing, kept):
    specs = {"x": Unbounded((1,)), "y": Unbounded((1,))}
    observe = lambda t: {"x": torch.full((1,), float(t))} | ({} if t in missing else {"y": torch.full((1,), float(t))})
    walk(Scripted(observe, specs=specs).append_transform(RerunRecorder(path)), 6)
    said = f"{6 - kept} steps are left out" if kept < 5 else "1 step is left out"
    with pytest.warns(UserWarning, match=said):
        to_minari(load(path), "gaps-v0")
    [held] = minari.load_dataset("gaps-v0")
    first = 2 if missing[0] == 1 else 0
    assert held.observations["y"].flatten().tolist() == list(range(first, first + kept + 1))
    with pytest.warns(UserWarning, match=said):
        assert to_lerobot(load(path), tmp_path / "set").steps == kept
    frames = pd.read_parquet(tmp_path / "set/data/chunk-000/file-000.parquet")
    assert frames["observation.y"].tolist() == list(range(first, first + kept))


# --- texts ---


def test_strings_are_string_columns(path, tmp_path):
    of_texts(["a", "null", "", '"b"', "ü☃"], path)
    done = export(path, "--parquet", tmp_path / "x.parquet", "--key", "note")
    assert done.exit_code == 0, done.output
    table = pq.read_table(tmp_path / "x.parquet")
    assert table["note"].to_pylist() == ["a", "null", "", '"b"']
    assert table["next/note"].to_pylist() == ["null", "", '"b"', "ü☃"]
    assert table.schema.field("note").metadata is None
    assert pl.read_parquet(tmp_path / "x.parquet")["note"].to_list() == ["a", "null", "", '"b"']


MIXED = [
    "a",
    {"k": [1, None]},
    [1, 2.5, "ü"],
    3,
    None,
    True,
    2.5,
    np.float32(0.5),
    np.int64(7),
    "\ud800",
    "3",
    math.inf,
]


@pytest.mark.parametrize("value", MIXED[1:-2], ids=repr)
def test_an_object_among_texts_makes_the_whole_column_json(path, tmp_path, value):
    of_texts(["a", value, "3"], path)
    done = export(path, "--parquet", tmp_path / "x.parquet", "--key", "note")
    assert done.exit_code == 0, done.output
    for name in ("note", "next/note"):
        assert pq.read_schema(tmp_path / "x.parquet").field(name).metadata == {b"media_type": b"application/json"}
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert list(map(json.loads, frame["note"])) == ["a", value]
    assert list(map(json.loads, frame["next/note"])) == [value, "3"]


def test_json_columns_of_all_values_are_read_by_other_libraries(path, tmp_path):
    of_texts(MIXED, path)
    assert to_parquet(load(path), tmp_path / "x.parquet", keys=["note"]) == len(MIXED) - 1
    assert [json.loads(each) for each in pl.read_parquet(tmp_path / "x.parquet")["next/note"]] == MIXED[1:]
    strict = [each for each in MIXED if each not in ("\ud800", math.inf)]  # DuckDB's JSON is strict
    of_texts(strict, path.with_name("strict.rrd"))
    to_parquet(load(path.with_name("strict.rrd")), tmp_path / "x.parquet", keys=["note"], overwrite=True)
    found = duckdb.sql(f"select note->'$.k[0]' as one from '{tmp_path}/x.parquet' where json_type(note) = 'OBJECT'")
    assert found.fetchall() == [("1",)]


def test_a_recorded_none_differs_from_a_missing_text(path, tmp_path):
    env = Scripted(
        lambda t: {"x": torch.ones(1)} | ({} if t == 1 else {"note": NonTensorData(None if t == 2 else "a")}),
        specs={"x": Unbounded((1,)), "note": NonTensor(())},
    )
    walk(env.append_transform(RerunRecorder(path)), 3)
    to_parquet(load(path), tmp_path / "x.parquet", keys=["note"])
    assert pq.read_table(tmp_path / "x.parquet")["note"].to_pylist() == ['"a"', None, "null"]


def test_all_episodes_share_the_type_of_a_column(tmp_path):
    """The last episode has a dict, hence rows of the first one are JSON, too."""
    with RerunRecorder(tmp_path / "run", split="episode") as recorder:
        for values in (["a", "b", "c"], ["d", "e", {"f": 1}]):
            env = Ending(
                lambda t, values=values: {"x": torch.ones(1), "note": NonTensorData(values[t])},
                specs={"x": Unbounded((1,)), "note": NonTensor(())},
            )
            recorder.log_rollout(env.rollout(2))
    to_parquet(load(tmp_path / "run"), tmp_path / "x.parquet", keys=["note"])
    held = pq.read_table(tmp_path / "x.parquet")
    assert held["note"].to_pylist() == ['"a"', '"b"', '"d"', '"e"']
    assert held["next/note"].to_pylist() == ['"b"', '"c"', '"e"', '{"f": 1}']
    first = load(tmp_path / "run").where(lambda episode: episode.episode == 0)
    to_parquet(first, tmp_path / "first.parquet", keys=["note"])
    assert pq.read_table(tmp_path / "first.parquet")["note"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize("values", [[b"a", b"\xff\x00", b""], [np.bytes_(b"a"), b"b", b"c"]], ids=repr)
def test_bytes_are_binary_columns(path, tmp_path, values):
    of_texts(values, path)
    to_parquet(load(path), tmp_path / "x.parquet", keys=["note"])
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.field("note").type == pa.binary()
    assert table["note"].to_pylist() == [bytes(each) for each in values[:2]]
    assert duckdb.sql(f"select note from '{tmp_path}/x.parquet'").fetchall() == [(bytes(each),) for each in values[:2]]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([b"a", "b"], "bytes and strings"),
        ([b"a", 3], "bytes and other values"),
        ([np.ones(2), "a"], "arrays of float64 with 1 dimension and strings"),
        ([np.ones(2), np.ones((2, 2))], "arrays of float64 with 1 dimension and arrays of float64 with 2 dimensions"),
        ([np.ones(2), np.ones(2, np.int8)], "arrays of float64 with 1 dimension and arrays of int8 with 1 dimension"),
        ([np.ones(2, np.complex64)], "arrays of complex64 with 1 dimension"),
    ],
    ids=str,
)
def test_keys_without_a_column_type_are_refused_by_name(path, tmp_path, values, what):
    of_texts(values, path, 3)
    done = export(path, "--parquet", tmp_path / "x.parquet", "--key", "x", "--key", "note")
    assert done.exit_code == 1
    assert f"nothing exported: 'note' holds {what}, for which Parquet has no column: leave that key out" in done.stderr
    assert not (tmp_path / "x.parquet").exists()


# --- shapes that vary ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16, torch.bool], ids=str)
def test_values_that_vary_in_shape_are_nested_lists(path, tmp_path, dtype):
    shapes = [(2, 3), (4, 1), (0, 5), (3, 0), (1, 1)]
    env = Scripted(
        lambda t: {"x": torch.ones(1)} | ({} if t == 1 else {"y": torch.full(shapes[t], t).to(dtype)}),
        specs={"x": Unbounded((1,)), "y": Unbounded((-1, -1), dtype=dtype)},
    )
    walk(env.append_transform(RerunRecorder(path)), 4)
    to_parquet(load(path), tmp_path / "x.parquet", keys=["y"])
    wanted = [None if t == 1 else torch.full(shapes[t], t).to(dtype).tolist() for t in range(5)]
    for read in READERS.values():
        rows = read(tmp_path / "x.parquet")
        assert [row["y"] for row in rows] == wanted[:4]
        assert [row["next/y"] for row in rows] == wanted[1:]


def test_agents_whose_values_differ_in_shape_are_lists_of_lists(path, tmp_path):
    sizes = (2, 5)
    env = Scripted(
        lambda t: {"agents": lazy_stack([TensorDict(obs=torch.full((size,), float(t))) for size in sizes])},
        specs={"agents": torch.stack([Composite(obs=Unbounded((size,))) for size in sizes], 0)},
    )
    env.group_map = {"agents": ["small", "large"]}
    env = env.append_transform(RerunRecorder(path))
    env.rollout(2, return_contiguous=False)
    env.close()
    assert load(path)[0].schema.described[0][0].agents == ("small", "large")
    to_parquet(load(path), tmp_path / "x.parquet", keys=[("agents", "obs")])
    for read in READERS.values():
        rows = read(tmp_path / "x.parquet")
        assert [row["agents/obs"] for row in rows] == [[[t] * 2, [t] * 5] for t in (0, 1)]
        assert [row["next/agents/obs"] for row in rows] == [[[t] * 2, [t] * 5] for t in (1, 2)]


def test_a_shape_that_varies_in_a_later_episode_makes_nested_lists(tmp_path):
    with RerunRecorder(tmp_path / "run", split="episode") as recorder:
        for sizes in ([3, 3, 3], [3, 4, 2]):
            env = Ending(
                lambda t, sizes=sizes: {"x": torch.ones(1), "y": torch.full((sizes[t],), float(t))},
                specs={"x": Unbounded((1,)), "y": Unbounded((3,))},
            )
            recorder.log_rollout(env.rollout(2, return_contiguous=False))
    to_parquet(load(tmp_path / "run"), tmp_path / "x.parquet", keys=["y"])
    held = pq.read_table(tmp_path / "x.parquet")
    assert held["y"].to_pylist() == [[0] * 3, [1] * 3, [0] * 3, [1] * 4]
    assert held["next/y"].to_pylist() == [[1] * 3, [2] * 3, [1] * 4, [2] * 2]


def test_pictures_of_several_sizes_are_exported(path, tmp_path):
    sizes = [(8, 9, 3), (10, 7, 3), (8, 9, 3)]
    env = Scripted(
        lambda t: {"x": torch.ones(1), "seen": NonTensorData(np.full(sizes[t], t, np.uint8))},
        specs={"x": Unbounded((1,)), "seen": NonTensor(())},
    )
    walk(env.append_transform(RerunRecorder(path, image_format="png")), 2)
    to_parquet(load(path), tmp_path / "x.parquet", keys=["seen"])
    held = pq.read_table(tmp_path / "x.parquet")["seen"].to_pylist()
    assert [np.array(each).shape for each in held] == sizes[:2]
    done = export(path, "--lerobot", tmp_path / "set")
    assert done.exit_code == 1
    assert "'seen': pictures of (8, 9, 3) and (10, 7, 3) can't be one video: leave that key out" in done.stderr


# --- keys that a format can't hold ---

REFUSED = {
    "complex": torch.ones(2, dtype=torch.complex64),
    "note": NonTensorData("a"),
    "depth": torch.ones(8, 8),
    "none": torch.ones(0),
}
CAN_BE_NAMED = {"parquet": {"note", "depth"}, "minari": {"depth"}, "lerobot": set()}
HOLDS_UNASKED = {"parquet": {"none"}, "minari": {"none"}, "lerobot": set()}


@pytest.mark.parametrize("form", CAN_BE_NAMED)
def test_a_key_that_is_left_out_is_hinted_at_or_refused(path, tmp_path, data_sets, form):
    specs = {key: NonTensor(()) if key == "note" else Unbounded(each.shape) for key, each in REFUSED.items()}
    env = Scripted(lambda t: {"x": torch.ones(1), **REFUSED}, specs=specs | {"x": Unbounded((1,))})
    walk(env.append_transform(RerunRecorder(path)), 3)
    option = [f"--{form}", "some-v0" if form == "minari" else tmp_path / "out", "--overwrite"]
    done = export(path, *option)
    assert done.exit_code == 0, done.output
    hint = re.search(r"left out, unless --key names it: (.*)", done.stderr)
    assert set(hint[1].split(", ") if hint else ()) == CAN_BE_NAMED[form]
    for key in REFUSED:
        can_be_named = key in CAN_BE_NAMED[form] | HOLDS_UNASKED[form]
        assert bool(re.search(f"left out: '{key}' (is|has)", done.stderr)) != can_be_named
        asked = export(path, *option, "--key", "x", "--key", "action", "--key", key)
        assert (asked.exit_code == 0) == can_be_named, asked.output
        assert can_be_named or re.search(f"nothing exported: '{key}' (is|has) .*: leave it out", asked.stderr)


def test_a_single_key_must_be_in_a_list(path, tmp_path):
    record(Scripted(lambda t: {"x": torch.ones(1)}), path, 2)
    for export_to in (to_parquet, to_lerobot, functools.partial(to_minari)):
        with pytest.raises(TypeError, match=r"keys='x': pass a list of keys, even of one: \['x'\]"):
            export_to(
                load(path), "some-v0" if export_to not in (to_parquet, to_lerobot) else tmp_path / "out", keys="x"
            )
