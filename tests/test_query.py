"""Episodes asked for in SQL, as a function and as a command."""

from __future__ import annotations

import json
import sys

import pytest
from torchrl.envs import GymWrapper, SerialEnv
from typer.testing import CliRunner

from test_selection import LENGTHS, Lengths
from torchrl_rerun import RerunRecorder, load
from torchrl_rerun.cli import app
from torchrl_rerun.cli.query import query_episodes
from torchrl_rerun.querying import query, table_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Episodes of known lengths, whose rewards are 1 each: as a folder with annotations, and as one file."""
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


def test_a_condition_in_sql_gives_the_episodes_of_which_it_is_true(runs):
    lengths = LENGTHS[:5]
    limit = sorted(lengths)[2]
    wanted = [number for number, length in enumerate(lengths) if length < limit]
    assert numbers(query(runs / "ppo", f"episode_return < {limit}")) == wanted
    assert numbers(query(runs / "ppo", "success AND goal = 'left'")) == [0, 2, 4]
    assert numbers(query(runs / "ppo", '"Final Score" BETWEEN 1 AND 2')) == [1, 2]
    assert numbers(query(load(runs / "ppo")[2:], "TRUE")) == [2, 3, 4]


def test_several_runs_are_asked_at_once(runs):
    both = query([runs / "ppo", runs / "run.rrd"], "length > 0")
    assert numbers(both) == [
        *numbers(query(runs / "ppo", "length > 0")),
        *numbers(query(runs / "run.rrd", "length > 0")),
    ]
    assert numbers(query([*load(runs / "ppo")], "length > 0")) == numbers(query(runs / "ppo", "length > 0"))


def test_of_a_whole_run_the_episodes_are_found_by_what_they_came_to(runs):
    found = query(runs / "run.rrd", "terminated AND env = 1").to_pylist()
    known = [each.properties for each in load(runs / "run.rrd") if each.properties.env == 1]
    assert found
    assert [row["episode"] for row in found] == [each.episode for each in known if each.terminated]
    assert [row["episode_return"] for row in found] == [each.episode_return for each in known if each.terminated]
    assert found[0]["start_time"] == known[0].start_time
    assert found[0]["files"] == [str(runs / "run.rrd")]


def test_a_whole_query_gives_its_own_rows(runs):
    said = "SELECT goal, count(*) AS n, avg(length) AS mean FROM episodes GROUP BY goal ORDER BY goal"
    left = [LENGTHS[0], LENGTHS[2], LENGTHS[4]]
    assert query(runs / "ppo", said).to_pylist()[0] == {"goal": "left", "n": 3, "mean": sum(left) / 3}


@pytest.mark.filterwarnings("ignore:score was of type")
def test_annotations_of_several_types_are_text(tmp_path):
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
            "there is no column retrn, but env, episode, episode_return, length, terminated, .*, goal, success, files",
        ),
        ("goal = left", "there is no column left.*in single quotes"),
        ("length <", "'length <' can't be answered: .*Expected: an expression"),
        ("length", "non-boolean predicate"),
        ("SELECT * FROM steps", "'steps' not found|steps.* not found"),
    ],
)
def test_what_cant_be_asked_is_said(runs, said, error):
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


def test_columns_are_called_as_in_ls(runs):
    listed = CliRunner().invoke(app, ["ls", str(runs / "ppo")]).stdout.splitlines()[0].split()
    assert [name for name in listed if name != "size"] == asked(runs / "ppo", "TRUE").stdout.splitlines()[0].split()
    assert "as `ls` has them, but for `size`" in (query_episodes.__doc__ or "")


def test_without_datafusion_the_extra_is_named(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "datafusion", None)
    done = asked(runs / "ppo", "TRUE")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("no answer: query needs DataFusion")
    assert "install the extra catalog: pip install 'torchrl-rerun[catalog]'" in done.stderr


def test_the_command_says_what_is_wrong(runs, tmp_path):
    for arguments, error in (
        ((runs / "ppo", "retrn < 3"), "no answer: there is no column retrn, but env"),
        ((tmp_path / "gone", "TRUE"), "gone doesn't exist"),
        (
            (runs / "ppo", "SELECT env FROM episodes", "--paths"),
            "--paths needs the column files, and this query gives env",
        ),
    ):
        done = asked(*arguments)
        assert done.exit_code == 1
        assert error in done.stderr
