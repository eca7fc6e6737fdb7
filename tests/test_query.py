"""SQL queries of episodes: `query` and `torchrl-rerun query`."""

from __future__ import annotations

import json
import re
import time

import pytest
from torchrl.envs import GymWrapper, SerialEnv
from typer.testing import CliRunner

from commands import without
from environments import LENGTHS, Lengths
from torchrl_rerun import RerunRecorder, load
from torchrl_rerun.cli import app
from torchrl_rerun.cli.query import query_episodes
from torchrl_rerun.reading.query import query, table_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Record episodes of known lengths with rewards of 1: a folder with annotations, and one file."""
    folder = tmp_path_factory.mktemp("runs")
    recorder = RerunRecorder(folder / "ppo", split="episode")
    env = GymWrapper(Lengths(0)).append_transform(recorder)
    for number in range(5):
        env.rollout(100)
        recorder.annotate(success=number % 2 == 0, goal=["left", "right"][number % 2], **{"Final Score": number})
    env.close()
    env = SerialEnv(2, [lambda: GymWrapper(Lengths(0)), lambda: GymWrapper(Lengths(1))])
    env = env.append_transform(RerunRecorder(folder / "run.rrd"))
    env.rollout(30, break_when_any_done=False)
    env.close()
    return folder


def asked(*arguments):
    return CliRunner().invoke(app, ["query", *map(str, arguments)])


def numbers(table):
    return table.column("episode").to_pylist()


def test_an_sql_condition_selects_episodes(runs):
    lengths = LENGTHS[:5]
    limit = sorted(lengths)[2]
    wanted = [number for number, length in enumerate(lengths) if length < limit]
    assert numbers(query(runs / "ppo", f"episode_return < {limit}")) == wanted
    assert numbers(query(runs / "ppo", "success AND goal = 'left'")) == [0, 2, 4]
    assert numbers(query(runs / "ppo", '"Final Score" BETWEEN 1 AND 2')) == [1, 2]
    assert numbers(query(load(runs / "ppo")[2:], "TRUE")) == [2, 3, 4]


def test_several_runs_may_be_queried_at_once(runs):
    both = query([runs / "ppo", runs / "run.rrd"], "length > 0")
    assert numbers(both) == [
        *numbers(query(runs / "ppo", "length > 0")),
        *numbers(query(runs / "run.rrd", "length > 0")),
    ]
    assert numbers(query([*load(runs / "ppo")], "length > 0")) == numbers(query(runs / "ppo", "length > 0"))


def test_episodes_of_a_whole_run_are_found_by_their_properties(runs):
    found = query(runs / "run.rrd", "terminated AND env = 1").to_pylist()
    known = [each.properties for each in load(runs / "run.rrd") if each.properties.env == 1]
    assert found
    assert [row["episode"] for row in found] == [each.episode for each in known if each.terminated]
    assert [row["episode_return"] for row in found] == [each.episode_return for each in known if each.terminated]
    assert found[0]["start_time"] == known[0].start_time
    assert found[0]["files"] == [str(runs / "run.rrd")]


def test_a_complete_query_returns_its_own_rows(runs):
    said = "SELECT goal, count(*) AS n, avg(length) AS mean FROM episodes GROUP BY goal ORDER BY goal"
    left = [LENGTHS[0], LENGTHS[2], LENGTHS[4]]
    assert query(runs / "ppo", said).to_pylist()[0] == {"goal": "left", "n": 3, "mean": sum(left) / 3}


@pytest.mark.filterwarnings("ignore:score was of type")
def test_annotations_of_several_types_become_text(tmp_path):
    recorder = RerunRecorder(tmp_path / "mixed", split="episode")
    env = GymWrapper(Lengths(0)).append_transform(recorder)
    for value in (1.5, "much", True):
        env.rollout(100)
        recorder.annotate(score=value)
    env.close()
    assert table_of(load(tmp_path / "mixed")).column("score").to_pylist() == ["1.5", "much", "True"]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (
            "retrn < 3",
            "No field named retrn.* The columns are env, episode, episode_return, length, terminated, .*, goal, success, files",
        ),
        ("goal = left", "No field named left.*in single quotes"),
        ("length <", "'length <' can't be answered: .*Expected: an expression"),
        ("length", "non-boolean predicate"),
        ("SELECT * FROM steps", "'steps' not found|steps.* not found"),
    ],
)
def test_invalid_queries_are_refused(runs, said, error):
    with pytest.raises(ValueError, match=error):
        query(runs / "ppo", said)


def test_the_command_prints_a_table_or_json_or_paths(runs):
    table = asked(runs / "ppo", "episode = 3")
    header, line = table.stdout.splitlines()
    assert header.split()[:3] == ["env", "episode", "episode_return"]
    assert line.split()[:3] == ["0", "3", str(LENGTHS[3])]
    assert line.rstrip().endswith("env_0_episode_000003.rrd")
    [row] = json.loads(asked(runs / "ppo", "episode = 3", "--json").stdout)
    assert (row["length"], row["goal"], row["seed"]) == (LENGTHS[3], "right", None)
    assert asked(runs / "ppo", "episode > 2", "--paths").stdout.splitlines() == [
        str(runs / "ppo" / f"env_0_episode_00000{number}.rrd") for number in (3, 4)
    ]
    assert asked(runs / "run.rrd", "TRUE", "--paths").stdout.splitlines() == [str(runs / "run.rrd")]
    assert asked(runs / "ppo", "FALSE").stderr == "none\n"


JSON = {
    "max(start_time) - min(start_time)": lambda known: (known[-1].start_time - known[0].start_time).total_seconds(),
    "INTERVAL '90 seconds'": lambda known: [0, 0, 90_000_000_000],  # months, days, nanoseconds
    "CAST(max(length) AS DECIMAL(10, 2))": lambda known: f"{max(each.length for each in known)}.00",
    "CAST('ab' AS BYTEA)": lambda known: b"ab".hex(),
    "CAST(max(start_time) AS DATE)": lambda known: known[-1].start_time.date().isoformat(),
    "CAST(max(start_time) AS TIME)": lambda known: known[-1].start_time.time().isoformat(),
    "max(start_time)": lambda known: known[-1].start_time.isoformat(),
    "CAST(max(start_time) AS TIMESTAMP)": lambda known: known[-1].start_time.replace(tzinfo=None).isoformat(),
    "named_struct('share', CAST('NaN' AS DOUBLE))": lambda known: {"share": None},
    "make_array(CAST('inf' AS DOUBLE), 1.5)": lambda known: [None, 1.5],
}


@pytest.mark.parametrize("said", JSON)
def test_values_of_all_sql_types_are_printed_as_json_and_as_a_table(runs, said):
    question = f"SELECT {said} AS x FROM episodes LIMIT 1"
    done = asked(runs / "ppo", question, "--json")
    assert done.exit_code == 0, done.exception
    wanted = JSON[said]([each.properties for each in load(runs / "ppo")])
    assert json.loads(done.stdout, parse_constant=pytest.fail) == [{"x": wanted}]
    heading, value = asked(runs / "ppo", question).stdout.splitlines()
    assert heading.strip() == "x"
    assert value.strip()


def test_a_column_named_files_may_hold_other_values(runs):
    files = [str(runs / "ppo" / f"env_0_episode_00000{number}.rrd") for number in range(5)]
    for said, paths in (
        ("files[1] AS files", files),
        ("CASE WHEN episode > 1 THEN files END AS files", files[2:]),
        ("'nowhere' AS files", ["nowhere"]),
    ):
        question = f"SELECT {said} FROM episodes ORDER BY episode"
        assert asked(runs / "ppo", question, "--paths").stdout.splitlines() == paths
        assert asked(runs / "ppo", question).exit_code == 0
    for said, kind in (("length AS files", "int64"), ("make_array(length) AS files", "list<.*int64>")):
        question = f"SELECT {said} FROM episodes"
        assert asked(runs / "ppo", question).exit_code == 0
        done = asked(runs / "ppo", question, "--paths")
        assert done.exit_code == 1
        assert re.search(
            f"no answer: --paths needs the column files unchanged, .* of type {kind} under this name", done.stderr
        )


def test_columns_with_equal_names_are_renamed(runs):
    said = "SELECT a.episode, b.episode FROM episodes a JOIN episodes b ON a.episode = b.episode + 1 ORDER BY a.episode"
    assert json.loads(asked(runs / "ppo", said, "--json").stdout)[0] == {"episode": 1, "episode_2": 0}
    assert asked(runs / "ppo", said).stdout.splitlines()[0].split() == ["episode", "episode_2"]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_times_are_shown_and_compared_in_utc(runs, zone, monkeypatch):
    """A time that `query` or `ls` shows finds its episode in both, in any time zone."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for number, known in enumerate(each.properties for each in load(runs / "ppo")):
            table = asked(runs / "ppo", f"episode = {number}").stdout.splitlines()
            told = table[1].split()[table[0].split().index("start_time")]
            assert told == f"{known.start_time:%Y-%m-%dT%H:%M:%S.%f}Z"
            assert numbers(query(runs / "ppo", f"start_time = '{told}'")) == [number]
            assert numbers(query(runs / "ppo", f"start_time > '{told}'")) == [*range(number + 1, 5)]
            assert numbers(query(runs / "ppo", f"start_time < '{told.rstrip('Z')}'")) == [*range(number)]
            listed = CliRunner().invoke(app, ["ls", str(runs / "ppo"), "--where", f"start_time={told}"]).stdout
            assert told in listed
            assert len(listed.splitlines()) == 2
        assert told[:-1] in asked(runs / "ppo", "SELECT CAST(max(start_time) AS TIMESTAMP) FROM episodes").stdout
        info = CliRunner().invoke(app, ["info", str(runs / "ppo")]).stdout
        assert re.search(rf"recorded +{known.start_time:%Y-%m-%d %H}:\d\d:\d\d to \S+ \S+ UTC", info)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_nan_is_found_by_comparison(runs):
    said = "SELECT episode FROM (SELECT episode, CASE WHEN episode = 1 THEN CAST('NaN' AS DOUBLE) ELSE 1.0 END AS x FROM episodes)"
    assert numbers(query(runs / "ppo", f"{said} WHERE x = 'nan'")) == [1]


def test_columns_have_the_names_of_ls(runs):
    listed = CliRunner().invoke(app, ["ls", str(runs / "ppo")]).stdout.splitlines()[0].split()
    assert [name for name in listed if name != "size"] == asked(runs / "ppo", "TRUE").stdout.splitlines()[0].split()
    assert "Columns are those of `ls`, except `size`" in (query_episodes.__doc__ or "")


def test_without_datafusion_the_extra_is_named(runs):
    done = without(["datafusion"], "query", runs / "ppo", "TRUE")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("no answer: query needs DataFusion")
    assert "install the extra catalog: pip install 'torchrl-rerun[catalog]'" in done.stderr


def test_the_command_prints_errors(runs, tmp_path):
    for arguments, error in (
        ((runs / "ppo", "retrn < 3"), "No field named retrn"),
        ((tmp_path / "gone", "TRUE"), "gone doesn't exist"),
        (
            (runs / "ppo", "SELECT env FROM episodes", "--paths"),
            "--paths needs the column files, but the query returns env",
        ),
    ):
        done = asked(*arguments)
        assert done.exit_code == 1
        assert error in done.stderr
