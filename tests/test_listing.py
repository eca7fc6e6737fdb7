"""Lists of the episodes in a folder: `list_episodes` and `torchrl-rerun ls`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import rerun as rr
from rerun.chunk import Chunk
from typer.testing import CliRunner

from episode_folders import BEGINNING, episode, write_chunks, write_episode, write_run
from torchrl_rerun import Episode, RerunRecorder, list_episodes
from torchrl_rerun.cli import app
from torchrl_rerun.kinds.episode import EPISODE_PROPERTIES

COMMAND = [sys.executable, "-m", "torchrl_rerun.cli", "ls"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ppo"


@pytest.fixture
def run(folder):
    """Write six episodes of two environments, in order of their beginning."""
    for number, value in enumerate([1.0, -5.0, 3.0]):
        for env in range(2):
            known = {"annotations": {"success": value + env > 2, "goal": "left"}, "seed": 7} if env else {}
            write_episode(folder, episode(number, value + env, 10 * (number + 1), env=env, terminated=True, **known))
    return folder


def ls(*arguments):
    return CliRunner().invoke(app, ["ls", *map(str, arguments)])


def shown(*arguments):
    """Return the episodes in the JSON output, as pairs of environment and episode."""
    done = ls(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return [(each["env"], each["episode"]) for each in json.loads(done.stdout)]


# --- the function ---


def test_a_listed_episode_equals_the_recorded_one(folder):
    written = Episode(
        1,
        12,
        -3.25,
        17,
        truncated=True,
        first_step=2**40,
        start_time=BEGINNING,
        seed=2**62,
        annotations={
            "success": True,
            "collisions": 3,
            "goal": "left [b]",
            "forces": [0.5, 2.0],
            "x:y z": 1.5,
            "note": "",
        },
    )
    path = write_episode(folder, written)
    listing = list_episodes(folder)
    [found] = listing.episodes
    assert found.episode == written
    assert found.paths == (path,)
    assert found.path == path
    assert found.size == path.stat().st_size
    assert found.recording_id == "env_1_episode_000012_run"
    assert (listing.runs, listing.unreadable) == ([], [])
    assert list_episodes(path).episodes == [found]


def test_unknown_properties_are_nan_or_none(folder):
    write_episode(folder, Episode(0, 0, math.nan, 0, interrupted=True))
    [found] = list_episodes(folder).episodes
    assert math.isnan(found.episode.episode_return)
    assert found.episode.seed is None
    assert found.episode.interrupted


def test_episodes_are_in_the_order_in_which_they_began(run):
    episodes = [found.episode for found in list_episodes(run).episodes]
    assert [each.id for each in episodes] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]


def test_folders_of_workers_are_listed(folder):
    paths = [write_episode(folder / f"worker_{number}", episode(3, env=number)) for number in range(2)]
    assert [found.path for found in list_episodes(folder).episodes] == paths


def test_parts_of_an_unfinished_episode_are_one_episode(folder):
    lengths = {10: 100, 0: 10, 2: 30, 1: 20}
    paths = {
        number: write_episode(folder, episode(4, float(length), length, interrupted=True), suffix=f".part_{number}")
        for number, length in lengths.items()
    }
    [found] = list_episodes(folder).episodes
    assert found.paths == tuple(paths[number] for number in (0, 1, 2, 10))
    assert (found.episode.length, found.episode.episode_return) == (100, 100.0)
    assert found.size == sum(path.stat().st_size for path in paths.values())


def test_a_whole_episode_is_preferred_to_its_parts(folder):
    """A process was killed after writing the episode, and before removing its parts."""
    write_episode(folder, episode(4, 9.0, 20, interrupted=True), suffix=".part_0")
    whole = write_episode(folder, episode(4, 9.0, 20, terminated=True))
    [found] = list_episodes(folder).episodes
    assert found.path == whole
    assert found.episode.terminated


def test_episodes_of_two_runs_are_two(folder):
    write_episode(folder, episode(0))
    write_episode(folder, episode(0), suffix="_2", run="other")
    assert len(list_episodes(folder).episodes) == 2


def test_files_that_are_no_episodes_are_left_out(run):
    write_run(run / "run.rrd")
    write_chunks(run / "other.rrd", [Chunk.from_property("episode", rr.AnyValues(env=1))], "other")
    (run / "layout.rbl").write_bytes(b"layout")
    (run / "notes.txt").write_text("notes")
    (run / ".hidden.rrd").write_text("being written")
    (run / ".folder").mkdir()
    (run / ".folder" / "joined.rrd").write_text("being written")
    listing = list_episodes(run)
    assert len(listing.episodes) == 6
    assert listing.runs == [run / "run.rrd"]
    assert listing.unreadable == []


def test_files_that_cannot_be_read_are_named(run):
    content = write_episode(run, episode(9)).read_bytes()
    bad = {
        "empty": b"",
        "header": content[:12],
        "text": b"precious text",
        "torn": content[:3000],
        "zeros": content[:3000] + bytes(len(content) - 3000),
    }
    for name, damaged in bad.items():
        (run / f"{name}.rrd").write_bytes(damaged)
    (run / "dangling.rrd").symlink_to(run / "nowhere")
    listing = list_episodes(run)
    assert len(listing.episodes) == 7
    assert [path.stem for path in listing.unreadable] == sorted(bad)


@pytest.mark.parametrize("missing", range(1, 6000, 371))
def test_a_file_that_ends_too_early_is_an_episode_or_unreadable(folder, missing):
    path = write_episode(folder, episode(9))
    path.write_bytes(path.read_bytes()[:-missing])
    listing = list_episodes(folder)
    assert len(listing.episodes) + len(listing.unreadable) == 1
    assert not listing.runs


def test_an_episode_without_a_footer_is_listed(folder):
    """The process was killed after writing the whole episode."""
    path = write_episode(folder, episode(9, 4.0))
    path.write_bytes(path.read_bytes()[:-1])
    [found] = list_episodes(folder).episodes
    assert found.episode.episode_return == 4.0


def test_annotations_of_one_name_may_have_several_types(folder):
    values = [3, 0.5, "a", True, [1.0, 2.0], ""]
    for number, value in enumerate(values):
        write_episode(folder, episode(number, annotations={"x": value}))
    assert [found.episode["x"] for found in list_episodes(folder).episodes] == values


def test_several_episodes_in_one_file_are_listed(run, tmp_path):
    merged = tmp_path / "merged.rrd"
    files = [str(found.path) for found in list_episodes(run).episodes]
    subprocess.run([sys.executable, "-m", "rerun_cli", "rrd", "merge", *files, "-o", merged], check=True)
    assert len(list_episodes(merged).episodes) == 6


def test_a_file_that_is_removed_while_listing_is_left_out(run):
    def removing(files):
        for file in files:
            if file.name == "env_0_episode_000001.rrd":
                file.unlink()
            yield file

    listing = list_episodes(run, removing)
    assert len(listing.episodes) == 5
    assert listing.unreadable == []


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere doesn't exist"):
        list_episodes(tmp_path / "nowhere")


# --- the command: selection and order ---


def test_best_worst_and_last_select_episodes(run):
    write_episode(run, episode(3, 99.0, interrupted=True))
    write_episode(run, episode(4, math.nan, terminated=True))
    assert shown(run)[-2:] == [(0, 3), (0, 4)]
    assert shown(run, "--best", 3) == [(1, 2), (0, 2), (1, 0)]
    assert shown(run, "--worst", 3) == [(0, 4), (0, 1), (1, 1)]
    assert shown(run, "--last", 2) == [(0, 3), (0, 4)]
    assert shown(run, "--best", 3, "--sort", "length") == [(1, 0), (1, 2), (0, 2)]
    assert shown(run, "--last", 2, "--reverse") == [(0, 4), (0, 3)]


def test_episodes_may_be_sorted_by_any_column(run):
    write_episode(run, episode(3, math.nan, interrupted=True))
    by_return = [(0, 1), (1, 1), (0, 0), (1, 0), (0, 2), (1, 2)]
    nothing = [(0, 3)]
    assert shown(run, "-s", "episode_return") == by_return + nothing
    assert shown(run, "--sort", "episode_return", "--reverse") == by_return[::-1] + nothing
    assert shown(run, "--sort", "success")[:3] == [(1, 0), (1, 1), (1, 2)]
    assert shown(run, "--sort", "terminated")[0] == (0, 3)
    for column in (*EPISODE_PROPERTIES, "size", "goal", "files"):
        assert len(shown(run, "--sort", column)) == 7


def test_values_of_any_kind_can_be_sorted(folder):
    for number, value in enumerate(["b", 2, [1.0, 2.0], True, "a", 1.5, None]):
        annotations = {} if value is None else {"x": value}
        write_episode(folder, episode(number, annotations=annotations))
    assert [number for _, number in shown(folder, "--sort", "x")] == [3, 5, 1, 4, 0, 2, 6]


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("success=true", 1),
        ("success!=true", 2),
        ("success = false", 2),
        ("success=null", 3),
        ("episode_return<=1", 3),
        ("episode_return>3", 1),
        ("goal=left", 3),
        ('goal="left"', 3),
        ("goal=right", 0),
        ("goal<3", 0),
        ("terminated=true", 6),
        ("seed=7", 3),
        ("start_time>2020", 6),
        ("start_time<2020-01-02", 0),
        ("start_time>2026-11", 6),
        ("start_time>2026-11-21T12:00:01", 4),
        ("start_time>=2026-11-21 12:00:01Z", 5),
        ("start_time=2026-11-21T21:00:01+09:00", 1),
        ("start_time!=2026-11-21T12:00:01Z", 5),
        ("start_time=null", 0),
    ],
)
def test_conditions_select_episodes(run, condition, count):
    assert len(shown(run, "--where", condition)) == count


def test_nan_is_found_as_nan_and_differs_from_null(run):
    write_episode(run, episode(3, math.nan, annotations={"score": math.nan, "goal": "nan"}))
    write_episode(run, episode(4, math.inf, annotations={"score": 1.0}))
    for said in ("nan", "NaN", "NAN"):
        assert shown(run, "--where", f"episode_return={said}") == [(0, 3)]
        assert len(shown(run, "--where", f"episode_return!={said}")) == 7
    assert shown(run, "--where", "score=nan") == [(0, 3)]
    assert shown(run, "--where", "score!=nan") == [(0, 4)]
    assert shown(run, "--where", "goal=nan") == [(0, 3)]
    assert shown(run, "--where", "episode_return=null") == []
    assert len(shown(run, "--where", "score=null")) == 6
    assert shown(run, "--where", "episode_return=inf") == [(0, 4)]
    assert shown(run, "--where", "episode_return>-inf", "--where", "episode_return<inf") == shown(run)[:6]
    assert (0, 3) in shown(run, "--where", "episode_return!=1")  # NaN doesn't equal 1


def test_conditions_are_applied_before_rankings(run):
    assert shown(run, "-w", "env=0", "-w", "length>10", "--best", 1) == [(0, 2)]


# --- the command: output ---


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_times_in_tables_and_conditions_are_utc(run, zone, monkeypatch):
    """A time that is copied from the table finds its episode in any time zone."""
    began = BEGINNING + timedelta(seconds=20, microseconds=123456)
    write_episode(run, replace(episode(10), start_time=began))
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        header, *_, last = ls(run).stdout.splitlines()
        told = last.split()[header.split().index("start_time")]
        assert told == "2026-11-21T12:00:20.123456Z"
        assert shown(run, "--where", f"start_time={told}") == [(0, 10)]
        assert len(shown(run, "--where", f"start_time<{told}")) == 6
        assert shown(run, "--where", f"start_time>{told}") == []
        assert shown(run, "--where", "start_time>=2026-11-21 12:00:20") == [(0, 10)]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_ranking_counts_the_episodes_that_it_leaves_out(run):
    write_episode(run, episode(3, 99.0, interrupted=True))
    write_episode(run, episode(4, math.nan, terminated=True))
    assert ls(run, "--best", 3).stderr == "ranking: 1 episode was interrupted, and is left out; 1 has no return\n"
    assert ls(run, "--worst", 3).stderr == "ranking: 1 episode was interrupted, and is left out\n"
    done = ls(run, "--best", 7, "--json")
    assert [each["episode_return"] for each in json.loads(done.stdout)][-2:] == [-5.0, 99.0]
    assert done.stderr == "ranking: 1 episode was interrupted, and is among them: too few ended; 1 has no return\n"
    assert ls(run).stderr == ""


def test_a_ranking_uses_interrupted_episodes_if_too_few_ended(folder):
    for number in range(3):
        write_episode(folder, episode(number, float(number), interrupted=True))
    done = ls(folder, "--best", 2, "--json")
    assert [each["episode_return"] for each in json.loads(done.stdout)] == [2.0, 1.0]
    assert done.stderr == (
        "ranking: 1 episode was interrupted, and is left out; 2 episodes were interrupted, and are among them: too few ended\n"
    )


def test_json_has_all_properties(folder):
    written = episode(0, math.inf, annotations={"forces": [math.nan, 1.0]})
    path = write_episode(folder, written)
    done = ls(folder, "--json")
    assert json.loads(done.stdout) == [
        {
            "env": 0,
            "episode": 0,
            "episode_return": None,
            "length": 20,
            "terminated": False,
            "truncated": False,
            "interrupted": False,
            "first_step": 0,
            "start_time": "2026-11-21T12:00:00+00:00",
            "seed": None,
            "annotations": {"forces": [None, 1.0]},
            "in_black_box": False,
            "files": [str(path)],
            "size": path.stat().st_size,
            "recording_id": "env_0_episode_000000_run",
        }
    ]
    assert "NaN" not in done.stdout


def test_a_table_in_a_pipe_has_a_complete_line_for_each_episode(run):
    """Each episode has one line, and each heading is one word."""
    write_episode(run / "worker_0", episode(5, -0.5, annotations={"goal": "a long way [red]\n" + 50 * "x"}))
    done = ls(run, "--sort", "episode_return")
    header, *lines = done.stdout.splitlines()
    assert header.split() == [*EPISODE_PROPERTIES, "size", "goal", "success", "files"]
    assert len(lines) == 7
    assert lines[0].split()[:5] == ["0", "1", "-5", "20", "true"]
    assert lines[0].split()[-1] == "env_0_episode_000001.rrd"
    assert f"a long way [red]\\n{50 * 'x'}" in lines[2]
    assert lines[2].split()[-1] == "worker_0/env_0_episode_000005.rrd"
    assert done.stderr == ""


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_a_table_in_a_terminal_has_no_wrapped_lines(run, width):
    """Columns without room are left out."""
    write_episode(run, episode(5, -0.5, annotations={"goal": 50 * "x"}))
    done = CliRunner().invoke(
        app,
        ["ls", str(run), "--sort", "size"],
        env={"COLUMNS": str(width), "FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm"},
    )
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8
    assert ("first_step" in done.stderr) == (width < 140)
    if width > 60:
        assert "size" in done.stdout.splitlines()[0]


def test_the_table_counts_parts(folder):
    for number in range(3):
        write_episode(folder, episode(4, length=number + 1, interrupted=True), suffix=f".part_{number}")
    assert "env_0_episode_000004.part_2.rrd and 2 more" in ls(folder).stdout


def test_an_annotation_with_the_name_of_a_column_is_renamed(folder):
    for number in range(2):
        write_episode(folder, episode(number, annotations={"size": -number, "[red]": 1}))
    assert shown(folder, "--sort", "annotated size") == [(0, 1), (0, 0)]
    assert "[red]" in ls(folder).stdout


def test_unreadable_files_are_named_with_advice(run):
    (run / "torn [1].rrd").write_bytes(b"RRF2")
    done = ls(run, "--json")
    assert len(json.loads(done.stdout)) == 6
    assert f"left out: {run}/torn [1].rrd isn't finished" in done.stderr
    assert f"torchrl-rerun repair '{run}/torn [1].rrd'" in done.stderr


def test_a_list_may_be_empty(run):
    done = ls(run, "--where", "episode_return>100")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "none of 6 episodes" in done.stderr
    assert shown(run, "--where", "episode_return>100") == []


def assert_refused(message, *arguments):
    done = ls(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert message in done.stderr


def test_sources_without_episodes_are_refused(tmp_path, run):
    assert_refused("nowhere doesn't exist", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert_refused("empty holds no episodes: none was recorded, or its keep policy kept none", tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note.txt").touch()
    assert_refused("other holds no episodes: pass the folder that RerunRecorder(", tmp_path / "other")
    whole = write_run(tmp_path / "my run.rrd")
    assert_refused(
        f"holds recordings of whole runs, not of single episodes: open them with `torchrl-rerun view '{whole}'`, "
        f"list their episodes with `torchrl-rerun query '{whole}' true`",
        whole,
    )
    other = tmp_path / "empty" / "other.rrd"
    write_chunks(other, [Chunk.from_property("a", rr.AnyValues(b=1))], "other")
    assert_refused("other.rrd is no recording of torchrl_rerun", other)
    other.write_bytes(b"RRF2")
    assert_refused(f"torchrl-rerun repair {other}", other)
    assert_refused("holds no readable recording", tmp_path / "empty")
    assert_refused(
        "there is no column 'reward', but env, episode, episode_return, length, terminated", run, "--sort", "reward"
    )
    assert_refused("there is no column 'reward'", run, "--where", "reward=1")
    assert_refused("'noon' is not a time: write it as 2026-01-31T12:00:00Z", run, "--where", "start_time>noon")
    assert_refused("'success' is not a column, one of < <= = != >= >, and a value", run, "--where", "success")
    assert ls(run, "--best", 1, "--worst", 1).exit_code == 2
    assert ls(run, "--best", 0).exit_code == 2


def test_a_recording_of_a_whole_run_is_refused(path):
    from torchrl.envs import GymEnv

    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
    env.rollout(3)
    env.close()
    assert_refused("holds recordings of whole runs", path)


def test_the_ls_command_runs_as_a_program(run):
    done = subprocess.run([*COMMAND, run, "--worst", "1"], capture_output=True, text=True, check=True)
    header, line = done.stdout.splitlines()
    assert header.startswith("env  episode  episode_return")
    assert line.endswith("env_0_episode_000001.rrd")
    assert done.stderr == ""


def test_listing_does_not_import_torch():
    code = "import sys, torchrl_rerun.rrd.listing; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
