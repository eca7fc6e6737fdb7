"""Comparisons of runs: as a table, and in the real viewer."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv, GymWrapper, SerialEnv
from typer.testing import CliRunner

from environments import LENGTHS, Lengths
from looking import opened, trouble
from rrd_files import rows_of
from torchrl_rerun import Episode, RerunRecorder, load
from torchrl_rerun.cli import app
from torchrl_rerun.viewing.compare import open_runs, subtract_measures, summarize_episodes, write_comparison

pixel_cartpole = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Record whole runs of two CartPoles with pictures, and folders of episodes of known lengths."""
    folder = tmp_path_factory.mktemp("runs")
    for number, name in enumerate(("before", "after")):
        env = SerialEnv(2, pixel_cartpole).append_transform(RerunRecorder(folder / f"{name}.rrd"))
        env.set_seed(number)
        env.rollout(25, break_when_any_done=False)
        env.close()
        recorder = RerunRecorder(folder / name, split="episode")
        env = GymWrapper(Lengths(number)).append_transform(recorder)
        for episode in range(4):
            env.rollout(100)
            recorder.annotate(success=episode < number + 2)
        env.close()
    return folder


def compare(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def entities(path):
    reader = RrdReader(path)
    return {chunk.entity_path for recording in reader.recordings() for chunk in reader.stream(store=recording)}


# --- the table ---


def test_returns_and_lengths_are_of_episodes_that_ended():
    episodes = [
        Episode(0, 0, 1.0, 10, terminated=True, annotations={"success": True, "goal": "left"}),
        Episode(0, 1, 5.0, 30, truncated=True, annotations={"success": False, "score": 2}),
        Episode(0, 2, 90.0, 2, interrupted=True),
    ]
    found = summarize_episodes(episodes)
    assert (found["episodes"], found["steps in all"]) == (3, 42)
    assert (found["return"], found["return std"], found["return min"], found["return max"]) == (3.0, 2.0, 1.0, 5.0)
    assert found["length"] == 20
    assert found["interrupted"] == pytest.approx(1 / 3)
    assert (found["success"], found["score"]) == (0.5, 2.0)
    assert "goal" not in found


def test_means_come_with_the_number_of_interrupted_episodes_and_the_mean_of_all():
    """Most of twelve rollouts were cut at 200 steps: the few that ended are not typical."""
    ended = [Episode(0, number, 41.1, 41, terminated=True) for number in range(2)]
    cut = [Episode(0, number, 104.7, 200, interrupted=True) for number in range(2, 12)]
    found = summarize_episodes([*ended, *cut])
    assert (found["episodes"], found["left out (interrupted)"], found["return"]) == (12, 10, pytest.approx(41.1))
    assert found["return of all"] == pytest.approx(94.1)


def test_interrupted_episodes_count_if_no_episode_ended():
    found = summarize_episodes([Episode(0, number, 90.0 + number, 200, interrupted=True) for number in range(3)])
    assert (found["return"], found["return of all"], found["length"]) == (91.0, 91.0, 200)
    assert (found["left out (interrupted)"], found["interrupted"]) == (0, 1)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Record a folder of rollouts that are all cut short, and a folder in which some end."""
    folder = tmp_path_factory.mktemp("cut")
    for name, steps in (("all", 1), ("some", 3)):
        env = GymWrapper(Lengths(2)).append_transform(RerunRecorder(folder / name, split="episode"))
        for _ in range(4):
            env.rollout(steps)
        env.close()
    return folder


def test_the_command_prints_the_number_of_interrupted_episodes(cut):
    some = [each.properties for each in load(cut / "some")]
    ended = [each for each in some if not each.interrupted]
    assert 0 < len(ended) < len(some)
    done = compare(cut / "all", cut / "some", "--no-view", "--json")
    found = json.loads(done.stdout)
    assert (found["A"]["left out (interrupted)"], found["A"]["return"]) == (0, 1.0)
    assert found["B"]["left out (interrupted)"] == len(some) - len(ended)
    assert found["B"]["return"] == np.mean([each.episode_return for each in ended])
    assert found["B"]["return of all"] == np.mean([each.episode_return for each in some])
    assert done.stderr.splitlines() == [
        f"A ({cut}/all): all of 4 episodes were interrupted: returns and lengths are of their recorded parts",
        f"B ({cut}/some): {len(some) - len(ended)} of 4 episodes were interrupted, and are left out of returns and lengths",
    ]
    table = compare(cut / "all", cut / "some", "--no-view").stdout
    assert "left out (interrupted)" in table


@pytest.mark.parametrize(("option", "choose"), [("--best", max), ("--worst", min)])
def test_best_and_worst_leave_out_interrupted_episodes_and_say_so(cut, tmp_path, option, choose):
    out = tmp_path / "both.rrd"
    done = compare(cut / "all", cut / "some", "--no-view", "-o", out, option)
    assert done.exit_code == 0, done.stderr
    some = [each.properties for each in load(cut / "some")]
    lengths = [each.length for each in some if not each.interrupted]
    assert [batch.num_rows for batch in rows_of(out, "/A/reward")] == [1]
    assert [batch.num_rows for batch in rows_of(out, "/B/reward")] == [choose(lengths)]
    assert (
        f"ranking of {cut}/all: 3 episodes were interrupted, and are left out; 1 episode was interrupted" in done.stderr
    )
    assert f"ranking of {cut}/some: {4 - len(lengths)} episode" in done.stderr


def test_unknown_returns_have_no_mean_and_no_difference():
    known, unknown = (
        summarize_episodes([Episode(0, 0, 1.0, 10, terminated=True)]),
        summarize_episodes([Episode(0, 0, float("nan"), 10)]),
    )
    assert unknown["return"] is None
    [difference] = subtract_measures([known, unknown])
    assert difference["return"] is None
    assert difference["length"] == 0
    assert summarize_episodes([])["length"] is None


def test_the_command_prints_the_means_of_runs(runs):
    done = compare(runs / "before", runs / "after", "--json", "--no-view")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    before, after = LENGTHS[:4], LENGTHS[1:5]
    assert found["A"]["run"] == str(runs / "before")
    assert (found["A"]["return"], found["B"]["return"]) == (np.mean(before), np.mean(after))
    assert found["B - A"]["return"] == pytest.approx(np.mean(after) - np.mean(before))
    assert found["B - A"]["success"] == pytest.approx(0.25)
    table = compare(runs / "before", runs / "after", "--no-view").stdout.splitlines()
    assert table[0] == f"A: {runs / 'before'}"
    assert table[2].split() == ["A", "B", "B", "-", "A"]
    assert [line.split() for line in table if line.startswith("success")] == [["success", "0.5", "0.75", "0.25"]]


# --- the recording ---


def test_a_comparison_holds_all_rows_of_each_run_below_a_letter(runs, tmp_path):
    out = tmp_path / "both.rrd"
    write_comparison(open_runs([runs / "before.rrd", runs / "after.rrd"]), out)
    paths = entities(out)
    assert {"/A/env_1/pixels", "/B/env_0/observation"} <= paths
    for letter, name in (("A", "before"), ("B", "after")):
        for path in ("/env_0/observation", "/env_1/pixels"):
            was = [batch.to_pydict() for batch in rows_of(runs / f"{name}.rrd", path)]
            now = [batch.to_pydict() for batch in rows_of(out, f"/{letter}{path}")]
            assert now == was
        returns = [batch.to_pydict() for batch in rows_of(out, f"/{letter}/returns")]
        known = sorted(each.properties.episode_return for each in load(runs / f"{name}.rrd"))
        assert sorted(value for [value] in returns[0]["Scalars:scalars"]) == known
    assert [each.name for each in tmp_path.iterdir()] == ["both.rrd"]


def ranges_in(path):
    """Return the ranges of plots in the layout of a file."""
    reader = RrdReader(path)
    [layout] = reader.blueprints()
    batches = [chunk.to_record_batch() for chunk in reader.stream(store=layout)]
    return [
        tuple(batch.column("ScalarAxis:range")[0].as_py()[0])
        for batch in batches
        if "ScalarAxis:range" in batch.schema.names
    ]


def test_plots_of_both_runs_have_equal_ranges(runs, tmp_path):
    files = [runs / "before.rrd", runs / "after.rrd"]
    write_comparison(open_runs(files), tmp_path / "both.rrd")
    seen = {"observation": [], "reward": [], "return": [0.0]}  # a return starts at 0
    for each in [episode for file in files for episode in load(file)]:
        seen["observation"] += each["observation"].flatten().tolist()
        seen["reward"] += each["reward"].flatten().tolist()
        seen["return"].append(each.properties.episode_return)
    wanted = [(min(values), max(values)) for values in seen.values()]
    found = sorted(ranges_in(tmp_path / "both.rrd"))
    assert len(found) == 12  # of two environments each
    margins = [(low - margin, high + margin) for low, high in wanted for margin in [0.05 * (high - low) or 0.5]]
    assert np.allclose(found, sorted([*margins] * 4))


def test_a_comparison_of_folders_shows_one_episode_of_each(runs, tmp_path):
    for options, choose in (((), lambda lengths: lengths[-1]), (("--best",), max), (("--worst",), min)):
        out = tmp_path / "both.rrd"
        done = compare(runs / "before", runs / "after", "--no-view", "-o", out, "--overwrite", *options)
        assert done.exit_code == 0, done.stderr
        for letter, lengths in (("A", LENGTHS[:4]), ("B", LENGTHS[1:5])):
            [rows] = [batch.num_rows for batch in rows_of(out, f"/{letter}/reward")]
            assert rows == choose(lengths)


def test_the_viewer_shows_both_runs_without_errors(runs, tmp_path, viewer):
    """One episode beside a whole run."""
    write_comparison(open_runs([runs / "before", runs / "after.rrd"]), tmp_path / "both.rrd")
    views = opened(viewer, tmp_path / "both.rrd", 10)
    names = {view.name for view in views}
    assert {"A: reward", "A: return", "B env 0: pixels", "B env 1: reward", "return, whole run"} <= names
    assert not trouble(views)


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path):
    out = tmp_path / "there.rrd"
    out.write_bytes(b"mine")
    for arguments, error in (
        ((runs / "before.rrd", tmp_path / "gone"), "gone doesn't exist"),
        ((runs / "before.rrd", runs / "after.rrd", "-o", out, "--no-view"), "there.rrd exists already"),
    ):
        done = compare(*arguments)
        assert done.exit_code == 1
        assert error in done.stderr
    assert out.read_bytes() == b"mine"
    assert compare(runs / "before.rrd").exit_code == 2
    folder = tmp_path / "several"
    folder.mkdir()
    for name in ("before", "after"):
        (folder / f"{name}.rrd").write_bytes((runs / f"{name}.rrd").read_bytes())
    with pytest.raises(ValueError, match="several holds 2 recordings of torchrl_rerun, of which one can be compared"):
        open_runs([folder, runs / "after.rrd"])
