"""Recordings of older versions can be read: `make.py` in each folder made those that are there."""

from __future__ import annotations

import gzip
import io
import json
import warnings
from pathlib import Path

import pytest
import rerun as rr
import torch
from rerun.chunk import Chunk
from tensordict import TensorDict
from typer.testing import CliRunner

from driving import record
from environments import Scripted
from episode_folders import write_chunks
from readback import read, same
from torchrl_rerun import Episode, list_episodes, load
from torchrl_rerun.cli import app
from torchrl_rerun.kinds.schema import SCHEMA_VERSION, Source, episode_chunk, property_chunk
from torchrl_rerun.rrd.reader import parts_in

FOLDERS = [Path(__file__).parent / f"recordings_v{version}" for version in (1, 2)]
RECORDINGS = sorted(file for folder in FOLDERS for file in folder.glob("*.pt.gz"))


def expected_of(file):
    """Return the path of a recording, and its expected content."""
    stem = file.name.removesuffix(".pt.gz")
    place = next(each for each in (file.with_name(stem), file.with_name(f"{stem}.rrd")) if each.exists())
    expected = torch.load(io.BytesIO(gzip.decompress(file.read_bytes())), weights_only=True)
    return place, expected["episodes"], expected["lossy"]


def assert_same(found, wanted, key, lossy):
    if {key, key[-1]} & set(lossy):  # decoders differ in the last bit
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), key
        assert (found.float() - wanted.float()).abs().max() <= 4, key
    else:
        assert same(found, wanted), key


def leaves(steps):
    keys = steps.keys(True, True, is_leaf=lambda kind: not issubclass(kind, TensorDict))
    found = {key: steps.get(key) for key in keys}
    return {key: value if isinstance(value, torch.Tensor) else value.tolist() for key, value in found.items()}


def test_there_are_recordings_of_each_kind():
    kinds = {"single", "batch", "agents", "jpeg", "h264", "episodes", "dumps", "workers", "parts", "skipped", "killed"}
    later = {"discrete", "gaps", "missing", "objects", "regrouped", "zoo"}
    for folder, wanted in zip(FOLDERS, (kinds, kinds | later), strict=True):
        assert {file.name.removesuffix(".pt.gz") for file in RECORDINGS if file.parent == folder} == wanted


@pytest.mark.parametrize("file", RECORDINGS, ids=lambda file: f"{file.parent.name}/{file.name.split('.')[0]}")
def test_an_old_recording_has_its_expected_content(file):
    place, expected, lossy = expected_of(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a killed run gives a warning
        episodes = load(place)
    assert {each.properties.id for each in episodes} == set(expected)
    for each in episodes:
        wanted = expected[each.properties.id]
        said = {**each.properties.properties, "start_time": each.properties.start_time.isoformat()}
        assert said == wanted["properties"]
        assert each.properties.annotations == wanted["annotations"]
        assert set(each.keys()) == set(wanted["rows"])
        for key, rows in wanted["rows"].items():
            assert_same(each[key], rows, key, lossy)
        if wanted["steps"] is not None:  # otherwise some frames were not recorded
            steps = leaves(each.tensordict())
            assert set(steps) == set(wanted["steps"])
            for key, values in wanted["steps"].items():
                assert_same(steps[key], values, (key,) if isinstance(key, str) else key, lossy)


def test_an_old_run_folder_is_listed():
    place, expected, _ = expected_of(FOLDERS[0] / "episodes.pt.gz")
    found = {each.episode.id: each.episode.annotations for each in list_episodes(place).episodes}
    assert found == {number: each["annotations"] for number, each in expected.items()}


def test_recordings_have_the_version_of_the_format(path):
    record(Scripted(lambda t: {"x": torch.zeros(1)}), path)
    assert read(path).schema["schema_version"] == SCHEMA_VERSION == 3
    for version, folder in enumerate(FOLDERS, 1):
        single, *_ = expected_of(folder / "single.pt.gz")
        [part] = parts_in(single)
        assert json.loads(part.properties["torchrl_rerun"]["schema"])["schema_version"] == version


@pytest.mark.parametrize("split", ["run", "episode"])
def test_a_recording_of_a_later_version_is_refused(tmp_path, split):
    newer = json.loads(
        property_chunk(Source(()), [0], [], split=split).to_record_batch().column("schema")[0].as_py()[0]
    )
    newer["schema_version"] = 99
    chunks = [Chunk.from_property("torchrl_rerun", rr.AnyValues(schema=json.dumps(newer)))]
    chunks += [episode_chunk(Episode(0, 0, 1.0, 3, first_step=0))] if split == "episode" else []
    write_chunks(tmp_path / "newer.rrd", chunks, "newer")
    with pytest.raises(ValueError, match=r"newer\.rrd was made by a newer torchrl_rerun, schema version 99.*update"):
        load(tmp_path / "newer.rrd")[0].keys()
    for command in ("info", "ls"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "newer.rrd")])
        assert done.exit_code
        assert "made by a newer torchrl_rerun" in " ".join(done.output.split()), command
