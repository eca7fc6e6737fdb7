"""The commands on recordings that aren't finished: parts of them lie in files, and the rest in a black box."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import av
import pytest
from rerun.chunk import LazyChunkStream
from typer.testing import CliRunner

from killed_anywhere import Run, Told
from torchrl_rerun import KeepIf, KeepLast, RerunRecorder, list_episodes, load
from torchrl_rerun.cli import app
from torchrl_rerun.rrd.openable import whole_files_of
from torchrl_rerun.rrd.reader import parts_in

RUN = Run(1, "batch", "run", keep=False, pictures="png", texts=False, buffer_bytes=0, flush_seconds=0.0, rollouts=0)


def record(env, steps):
    """Make steps, the first one with a reset."""
    data = env.reset()
    for _ in range(steps):
        _, data = env.step_and_maybe_reset(env.rand_action(data))
    return data


@pytest.fixture(scope="module")
def killed_folder(tmp_path_factory):
    """Return a folder as a kill leaves it: episode 0 has a file, episode 1 a part, and episode 2 is in the box alone."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    env = Told(RUN, 1).append_transform(RerunRecorder(folder, split="episode", image_format="png"))
    data = record(env, 4)  # an episode has 3 steps
    env.transform.dump()
    for _ in range(4):
        _, data = env.step_and_maybe_reset(env.rand_action(data))
    crashed = shutil.copytree(folder, folder.with_name("crashed"))
    env.close()
    assert [file.name for file in sorted(crashed.iterdir())] == [
        ".black_box",
        "env_0_episode_000000.rrd",
        "env_0_episode_000001.part_0.rrd",
    ]
    return crashed


@pytest.fixture
def folder(killed_folder, tmp_path, monkeypatch):
    """Return a copy of the folder, in the current one."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(killed_folder, tmp_path / "run")


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def pictures_in(video):
    with contextlib.closing(av.open(str(video))) as opened:
        return sum(1 for _ in opened.decode(video=0))


# --- pictures ---


def test_the_video_of_an_episode_holds_its_parts_and_what_is_in_the_box(folder):
    done = run("export", "run", "--mp4", "-o", "videos")
    assert done.exit_code == 0, done.stderr
    assert {video.name: pictures_in(video) for video in Path("videos").iterdir()} == {
        "env_0_episode_000000.mp4": 4,
        "env_0_episode_000001.mp4": 4,
        "env_0_episode_000002.mp4": 3,
    }


@pytest.mark.parametrize("grid", [[], ["--grid"]])
def test_the_videos_of_a_folder_are_not_one_file(folder, grid):
    done = run("export", "run", "--mp4", *grid, "-o", "run.mp4")
    assert done.exit_code == 1
    assert "3 videos can't all be" in done.stderr
    assert "each of the 3 recordings in run has its own. Choose one of them, or give a folder" in done.stderr


def test_a_copy_of_an_episode_takes_the_place_of_its_parts(folder):
    names = ["env_0_episode_000000.rrd", "env_0_episode_000001.rrd", "env_0_episode_000002.rrd"]
    assert [file.name for file in whole_files_of(folder)] == names


def test_the_video_of_a_run_holds_its_finished_files_and_the_one_that_is_not(tmp_path):
    path = tmp_path / "run.rrd"
    env = Told(RUN, 1).append_transform(RerunRecorder(path, image_format="png"))
    record(env, 4)
    env.close()
    env = Told(RUN, 1).append_transform(RerunRecorder(path, image_format="png", resume=True))
    record(env, 2)
    done = run("export", path, "--mp4", "-o", tmp_path / "run.mp4")
    env.close()
    assert done.exit_code == 0, done.stderr
    assert pictures_in(tmp_path / "run.mp4") == 6 + 3, "two resets and four steps; a reset and two steps"


# --- paths ---

PART = "env_0_episode_000001.part_0.rrd"


def test_paths_are_those_of_files_and_a_note_says_what_is_in_the_box(folder):
    done = run("ls", "run", "--paths")
    assert done.stdout.split() == [str(folder / name) for name in ("env_0_episode_000000.rrd", PART)]
    said = "1 episode without a file and the rest of 1 episode are in the black box: `torchrl-rerun repair run` makes files"
    assert said in done.stderr
    asked = run("query", "run", "length < 3", "--paths")
    assert asked.stdout == ""
    assert "1 episode without a file, in the black box: `torchrl-rerun repair run`" in asked.stderr
    assert run("repair", "run").exit_code == 0
    done = run("ls", "run", "--paths")
    assert (len(done.stdout.split()), done.stderr) == (3, "")


def test_lists_say_which_episodes_are_in_the_box(folder):
    listed = run("ls", "run").stdout.splitlines()[1:]
    assert [line.rstrip().rsplit("  ", 1)[-1] for line in listed] == [
        "env_0_episode_000000.rrd",
        f"{PART} and the black box",
        "in the black box",
    ]
    fields = json.loads(run("ls", "run", "--json").stdout)
    assert [(len(each["files"]), each["in_black_box"]) for each in fields] == [(1, False), (1, True), (0, True)]
    assert [len(each.files) for each in list_episodes(folder).episodes] == [1, 1, 0]
    assert "in the black box" in run("query", "run", "length < 3").stdout
    assert json.loads(run("query", "run", "length < 3", "--json").stdout)[0]["files"] == []


@pytest.mark.parametrize(
    "command",
    ["ls FILE", "info FILE", "export FILE --parquet out.parquet", "export FILE --mp4 -o out.mp4", "repair FILE"],
)
def test_a_part_whose_rest_is_in_the_box_gives_a_warning(folder, command):
    done = run(*command.replace("FILE", f"run/{PART}").split())
    assert done.exit_code == 0
    said = f"run/{PART} holds only a part of the episode: the rest is in the black box of the folder. Pass the folder, run,"
    assert done.stderr.count(said) == 1
    with pytest.warns(RuntimeWarning, match="only a part of the episode"):
        assert len(load(folder / PART)) == 1
    assert "only a part" not in run(*command.replace("FILE", "run").split()).stderr


# --- a black box that was left behind ---


def write_pictures(path, target):
    """Write the pictures of a recording, and its description, to a file."""
    [part] = parts_in(path)
    chunks = [chunk for chunk in part.all_chunks() if chunk.is_static or chunk.entity_path.endswith("/pixels")]
    LazyChunkStream.from_iter(chunks).write_rrd(
        target, application_id=part.application_id, recording_id=part.recording_id
    )


@pytest.fixture
def without_box(tmp_path, monkeypatch):
    """Return a file as a kill leaves it whose pictures were written, and whose numbers waited in a box that isn't there."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "whole.rrd"
    env = Told(RUN, 1).append_transform(RerunRecorder(path, image_format="png", blueprint=False))
    record(env, 7)  # of two episodes and a third one
    env.close()
    lost = tmp_path / "run.rrd"
    write_pictures(path, lost)
    lost.write_bytes(lost.read_bytes()[:-1])
    return lost


def test_without_its_box_a_file_gives_its_pictures_and_names_all_keys_that_lack_rows(without_box):
    lost = "0 of 10 rows of 'age', 0 of 10 rows of 'clock'.* 0 of 7 rows of 'reward', 0 of 7 rows of 'action'"
    box = r"the black box beside the original has the rest: copy that hidden folder to \S*\.run\.rrd\.black_box$"
    with pytest.warns(UserWarning, match=f"run.rrd isn't finished: it holds {lost}.*{box}"):
        episodes = load(without_box)
    assert [each.properties.length for each in episodes] == [3, 3, 1]
    for each, whole in zip(episodes, load("whole.rrd"), strict=True):
        steps, wanted = each.tensordict(), whole.tensordict()
        assert (steps["next", "pixels"] == wanted["next", "pixels"]).all()
        assert not steps["next", "recorded", "reward"].any()
        assert steps["next", "reward"].isnan().all()


def test_without_its_box_a_file_is_exported_with_gaps(without_box):
    done = run("export", "run.rrd", "--parquet", "run.parquet")
    assert done.stdout == "run.parquet: 7 steps of 3 episodes\n", done.stderr


def test_parts_without_their_box_give_a_warning(folder):
    shutil.rmtree(folder / ".black_box")
    write_pictures(folder / PART, folder / PART)
    said = f"{PART} is a part of an episode that isn't finished: 0 of . rows of 'age'.*copy that hidden folder to "
    with pytest.warns(UserWarning, match=said + r"\S*run/\.black_box"):
        load(folder)


def test_a_recording_without_a_step_is_not_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = Told(RUN, 1).append_transform(RerunRecorder("run.rrd"))
    env.reset()
    env.close()
    for form in ("--parquet", "--minari", "--lerobot"):
        done = run("export", "run.rrd", form, "out/run-v0")
        assert done.exit_code == 1
        assert done.stderr == "nothing exported: run.rrd holds no step\n"


# --- messages ---

AS_RUN = (
    "run.rrd holds recordings of whole runs, not of single episodes: open them with `torchrl-rerun view run.rrd`, list"
)


def test_messages_tell_a_program_that_records_from_one_that_was_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = Told(RUN, 1).append_transform(RerunRecorder("run.rrd"))
    record(env, 4)
    Path("killed").mkdir()
    shutil.copy("run.rrd", "killed/run.rrd")
    shutil.copytree(".run.rrd.black_box", "killed/.run.rrd.black_box")
    assert "not finished: run.rrd is still being recorded: its program runs, or hangs." in run("info", "run.rrd").stderr
    assert run("ls", "run.rrd").stderr.startswith(f"nothing to list: {AS_RUN}")
    env.close()
    monkeypatch.chdir("killed")
    said = "run.rrd isn't finished: its program was killed, or gave the recording up; `torchrl-rerun repair run.rrd` makes it whole"
    assert said in run("info", "run.rrd").stderr
    assert run("ls", "run.rrd").stderr.startswith(f"nothing to list: {AS_RUN}")
    assert "`torchrl-rerun query run.rrd true`" in run("ls", "run.rrd").stderr
    assert run("query", "run.rrd", "true").stderr == "2 rows\n"


def test_messages_tell_a_folder_that_is_recorded_from_one_that_was_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = Told(RUN, 1).append_transform(RerunRecorder("run", split="episode"))
    record(env, 4)
    shutil.copytree("run", "killed")
    assert "run is still being recorded" in run("info", "run").stderr
    assert run("ls", "run", "--paths").stderr.endswith("makes files of them, when the program has ended\n")
    env.close()
    assert "killed isn't finished: its program was killed" in run("info", "killed").stderr


# --- keep and resume ---


@pytest.mark.parametrize(
    ("keep", "kept"),
    [(KeepLast(1), [(4, False)]), (KeepIf(lambda episode: episode.interrupted) | KeepLast(1), [(2, True), (4, False)])],
)
def test_a_resumed_run_keeps_the_episode_of_the_crash_if_its_policy_does(tmp_path, keep, kept):
    env = Told(RUN, 1).append_transform(RerunRecorder(tmp_path / "run", keep=KeepLast(1)))
    record(env, 8)  # two episodes, and most of a third one
    crashed = shutil.copytree(tmp_path / "run", tmp_path / "crashed")
    env.close()
    env = Told(RUN, 1).append_transform(RerunRecorder(crashed, keep=keep, resume=True))
    record(env, 6)
    env.close()
    assert [(each.episode.episode, each.episode.interrupted) for each in list_episodes(crashed).episodes] == kept
