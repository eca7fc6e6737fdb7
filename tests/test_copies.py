"""Copies of a recording count as one recording, in any folder."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from torchrl.envs import GymWrapper, SerialEnv
from typer.testing import CliRunner

from environments import Lengths
from episode_folders import episode, write_episode
from rrd_files import rows_of
from torchrl_rerun import RerunRecorder, list_episodes, load, repair
from torchrl_rerun.cli import app
from torchrl_rerun.export.mp4 import videos_of
from torchrl_rerun.export.parquet import to_parquet
from torchrl_rerun.reading.describe import describe_files
from torchrl_rerun.reading.query import query
from torchrl_rerun.viewing.compare import open_runs, write_comparison

COPY = r"is a copy of .*, and counts once"


def lengths(shift):
    return GymWrapper(Lengths(shift), from_pixels=True, pixels_only=False)


def make_recorded(path, shift):
    return GymWrapper(Lengths(shift)).append_transform(RerunRecorder(path))


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Record a folder of episodes, a run of two environments in parts, and a run of two workers, each in a folder."""
    folder = tmp_path_factory.mktemp("originals")
    env = SerialEnv(2, [functools.partial(lengths, shift) for shift in range(2)])
    env = env.append_transform(RerunRecorder(folder / "episodes", split="episode", image_format="png"))
    env.rollout(20, break_when_any_done=False)
    env.close()
    env = SerialEnv(2, [functools.partial(lengths, shift) for shift in range(2)])
    env = env.append_transform(RerunRecorder(folder / "run" / "run.rrd", image_format="png"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            env.rollout(20, break_when_any_done=False)
            env.transform.close()
        env.close()
        workers = [functools.partial(make_recorded, folder / "workers" / "run.rrd", shift) for shift in range(2)]
        env = SerialEnv(2, workers)
        env.rollout(20, break_when_any_done=False)
        env.close()
    return folder


PLACES = ("episodes", "run", "workers")


@pytest.fixture(params=PLACES)
def folder(request, originals, tmp_path):
    return shutil.copytree(originals / request.param, tmp_path / request.param)


def copied(folder):
    """Copy the originals to names that sort before and after theirs, and into folders."""
    files = sorted(folder.rglob("*.rrd"))
    for file in files:
        shutil.copy(file, file.with_name(f"Copy of {file.name}"))
        shutil.copy(file, file.with_name(f"{file.stem} (2).rrd"))
    os.mkdir(folder / "backup")
    for file in files:
        shutil.copy(file, folder / "backup" / file.name)
    return files


def known(folder):
    return [(each.properties, each.files, each.tensordict()) for each in load(folder)]


def test_a_recording_with_copies_counts_once(folder):
    wanted, rollout = known(folder), load(folder).rollout(["reward"])
    files = copied(folder)
    with pytest.warns(UserWarning, match=COPY) as warned:
        found = load(folder)
    assert len([each for each in warned if re.search(COPY, str(each.message))]) == 1, "it is said once"
    assert len(found) == len(wanted)
    for each, (properties, paths, tensordict) in zip(found, wanted, strict=True):
        assert each.properties == properties
        assert each.files == paths
        assert (each.tensordict() == tensordict).all()
    assert (found.rollout(["reward"]) == rollout).all()
    assert {file for each in found for file in each.files} == set(files)


def test_every_command_counts_a_recording_once(folder, tmp_path):
    def asked():
        rows = query(folder, "SELECT env, episode, length, files FROM episodes ORDER BY env, episode").to_pylist()
        [described], others = describe_files(folder)
        summed = {key.key: (key.rows, key.bytes) for key in described.keys}
        steps = to_parquet(load(folder), tmp_path / "steps.parquet", overwrite=True)
        done = CliRunner().invoke(app, ["compare", str(folder), str(folder), "--no-view", "--json"])
        compared = json.loads(done.stdout)["A"]
        return rows, described.recordings, summed, len(described.files), others, steps, compared

    wanted = asked()
    copied(folder)
    with pytest.warns(UserWarning, match=COPY):
        assert asked() == wanted


def test_videos_and_comparisons_ignore_copies(originals, tmp_path):
    folder = shutil.copytree(originals / "run", tmp_path / "run")
    wanted = [(video.path.name, video.tracks[0].files) for video in videos_of(folder)]
    write_comparison(open_runs([folder, folder]), tmp_path / "before.rrd")
    copied(folder)
    with pytest.warns(UserWarning, match=COPY):
        assert [(video.path.name, video.tracks[0].files) for video in videos_of(folder)] == wanted
    write_comparison(open_runs([folder, folder]), tmp_path / "after.rrd")
    before, after = (
        sum(len(batch) for batch in rows_of(tmp_path / f"{name}.rrd", "/A/env_0/observation"))
        for name in ("before", "after")
    )
    assert before == after


def test_ls_counts_an_episode_once_and_names_its_copies(originals, tmp_path):
    folder = shutil.copytree(originals / "episodes", tmp_path / "episodes")
    wanted = CliRunner().invoke(app, ["ls", str(folder)])
    files = copied(folder)
    done = CliRunner().invoke(app, ["ls", str(folder)])
    assert done.stdout == wanted.stdout
    assert re.search(rf"left out: .*{COPY} \(and {3 * len(files) - 1} other copies\)", done.stderr)
    listing = list_episodes(folder)
    assert {file for file, _ in listing.copies} == set(folder.rglob("*.rrd")) - set(files)
    assert set(listing.copies.values()) <= set(files)


@pytest.mark.parametrize("place", ["episodes", "run"])
@pytest.mark.parametrize("which", ["original", "copy"])
def test_a_whole_copy_is_preferred_to_a_torn_one(originals, tmp_path, place, which):
    folder = shutil.copytree(originals / place, tmp_path / place)
    wanted = known(folder)
    original = min(folder.iterdir())
    copy = original.with_name("a.rrd")
    shutil.copy(original, copy)
    torn, whole = (original, copy) if which == "original" else (copy, original)
    content = torn.read_bytes()
    torn.write_bytes(content[: len(content) * 2 // 3])
    with pytest.warns(UserWarning, match=rf"{torn.name} is a copy of .*{whole.name}, and counts once"):
        found = load(folder)
    assert [
        (each.properties, (each.tensordict() == was).all()) for each, (_, _, was) in zip(found, wanted, strict=True)
    ] == [(properties, True) for properties, _, _ in wanted]


def test_a_recording_that_was_rewritten_counts_as_a_copy(originals, tmp_path):
    """`repair` of a torn file and Rerun's own commands rewrite recordings."""
    folder = shutil.copytree(originals / "run", tmp_path / "run")
    wanted, original = known(folder), folder / "run.rrd"
    (folder / "torn.rrd").write_bytes(original.read_bytes()[:-100])
    repair(folder / "torn.rrd", folder / "repaired.rrd")
    os.remove(folder / "torn.rrd")
    for command in ("merge", "optimize"):
        subprocess.run(
            [sys.executable, "-m", "rerun_cli", "rrd", command, original, "-o", folder / f"{command}.rrd"], check=True
        )
    with pytest.warns(UserWarning, match=COPY):
        found = load(folder)
    assert [each.properties for each in found] == [properties for properties, _, _ in wanted]


def test_two_recordings_with_equal_ids_or_episode_numbers_are_two(originals, tmp_path, recwarn):
    """Episode numbers come again after a restart, and a user may give two runs one id."""
    folder = shutil.copytree(originals / "episodes", tmp_path / "episodes")
    for number in range(2):
        env = GymWrapper(Lengths(number)).append_transform(
            RerunRecorder(folder / f"run_{number}", split="episode", recording_id="mine")
        )
        env.rollout(20, break_when_any_done=False)
        env.close()
        env = GymWrapper(Lengths(number)).append_transform(
            RerunRecorder(tmp_path / "named" / f"run_{number}.rrd", recording_id="mine")
        )
        env.rollout(20, break_when_any_done=False)
        env.close()
    apart = sum(len(load(each)) for each in (folder / "run_0", folder / "run_1", originals / "episodes"))
    assert len(load(folder)) == len(list_episodes(folder).episodes) == apart
    named = tmp_path / "named"
    assert len(load(named)) == len(load(named / "run_0.rrd")) + len(load(named / "run_1.rrd"))
    assert not [each for each in recwarn if re.search(COPY, str(each.message))]


def test_copies_of_parts_of_an_unfinished_episode_count_once(tmp_path):
    for number, length in enumerate((10, 20)):
        path = write_episode(
            tmp_path / "run", episode(4, float(length), length, interrupted=True), suffix=f".part_{number}"
        )
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    [found] = list_episodes(tmp_path / "run").episodes
    assert [path.name for path in found.paths] == [f"env_0_episode_000004.part_{number}.rrd" for number in range(2)]


def test_the_same_file_given_twice_is_no_copy(originals, recwarn):
    file = originals / "run" / "run.rrd"
    assert len(load([file, file, originals / "run"])) == len(load(originals / "run"))
    assert not [each for each in recwarn if re.search(COPY, str(each.message))]


def test_a_torn_episode_without_a_whole_copy_is_named(originals, tmp_path):
    folder = shutil.copytree(originals / "episodes", tmp_path / "episodes")
    file = min(folder.iterdir())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 4])
    with pytest.warns(RuntimeWarning, match=rf"left out: .*{file.name} isn't finished"):
        found = load(folder)
    assert len(found) == len(load(originals / "episodes")) - 1
    assert np.all([file not in each.files for each in found])
