"""Paths: equal meaning in all functions, links that are followed, and files that are replaced atomically."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torchrl.envs import GymWrapper
from typer.testing import CliRunner

from environments import LENGTHS, Lengths
from programs import python
from rebuilt import episodes_in
from torchrl_rerun import RecordingError, RerunRecorder, list_episodes, load, repair, replay
from torchrl_rerun.cli import app
from torchrl_rerun.export.lerobot import to_lerobot
from torchrl_rerun.export.mp4 import videos_of, write_video
from torchrl_rerun.export.parquet import to_parquet
from torchrl_rerun.reading.describe import describe_files
from torchrl_rerun.reading.query import query
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.viewing.compare import open_runs, write_comparison

STEPS = 12
FIRST, SECOND = LENGTHS[1:3]
"""Steps of the first episode with shift 0, and with shift 1."""
NOT_UTF8 = os.fsdecode(b"r\xff")


def record(sink, steps=STEPS, shift=0, **options):
    env = GymWrapper(Lengths(shift), from_pixels=True, pixels_only=False).append_transform(
        RerunRecorder(sink, image_format="png", **options)
    )
    rollout = env.rollout(steps, break_when_any_done=False)
    env.close()
    return rollout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record a whole run, and a folder of episodes."""
    folder = tmp_path_factory.mktemp("recorded")
    record(folder / "run.rrd")
    record(folder / "episodes", split="episode")
    return folder


@pytest.fixture
def here(recorded, tmp_path, monkeypatch):
    """Change to a copy of the folder of recordings."""
    folder = shutil.copytree(recorded, tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def home(here, tmp_path, monkeypatch):
    """Set the home folder to an empty folder."""
    (folder := tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def ran(*arguments):
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout


# --- the meaning of a path ---


def test_a_leading_tilde_is_the_home_folder_in_all_functions(here, home):
    record("~/run.rrd")
    record("~/episodes", split="episode")
    record("~/dumps", split="dump")
    assert {each.name for each in home.iterdir()} == {"run.rrd", "episodes", "dumps"}
    assert len(load("~/run.rrd")[0].tensordict()) == FIRST
    assert len(load("~/*.rrd")) == len(load(["~/run.rrd"])) == len(load(home / "run.rrd"))
    assert len(list_episodes("~/episodes").episodes) == len(load("~/episodes"))
    assert len(query("~/run.rrd", "TRUE")) == len(load("~/run.rrd"))
    assert describe_files("~/run.rrd")[0][0].files[0].path == home / "run.rrd"
    assert repair("~/run.rrd", "~/repaired.rrd") is None
    to_parquet(load("~/run.rrd"), "~/run.parquet")
    assert to_lerobot(load("~/run.rrd"), "~/lerobot").path == home / "lerobot"
    write_video(videos_of("~/run.rrd", "~/run.mp4")[0])
    write_comparison(open_runs(["~/run.rrd", "~/repaired.rrd"]), "~/both.rrd")
    replay("~/run.rrd", "~/replayed.rrd")
    there = {"replayed.rrd", "repaired.rrd", "run.parquet", "lerobot", "run.mp4", "both.rrd"}
    assert there <= {each.name for each in home.iterdir()}
    assert not (here / "~").exists()


def test_a_leading_tilde_is_the_home_folder_on_the_command_line(here, home):
    """If no shell has replaced the tilde."""
    shutil.copytree(here, home, dirs_exist_ok=True)
    whole = (home / "run.rrd").read_bytes()
    (home / "torn.rrd").write_bytes(whole[:-100])
    for command in (
        "ls ~/episodes",
        "info ~/run.rrd",
        "repair ~/torn.rrd",
        "query ~/run.rrd TRUE",
        "export ~/run.rrd --parquet ~/run.parquet",
        "export ~/run.rrd --mp4 -o ~/run.mp4",
        "compare ~/run.rrd ~/torn.rrd --no-view -o ~/both.rrd",
        "replay ~/run.rrd -o ~/replayed.rrd",
    ):
        assert ran(*command.split())
    assert {"run.parquet", "run.mp4", "both.rrd", "replayed.rrd"} <= {each.name for each in home.iterdir()}
    assert not (here / "~").exists()


def test_a_tilde_after_the_start_of_a_path_is_a_name(here, home):
    record("./~")  # a folder
    assert (here / "~" / "run.rrd").exists()
    assert len(load("./~")) == len(load("run.rrd"))
    assert ran("info", "./~").startswith("./~/run.rrd: ")


def test_a_tilde_before_an_unknown_user_is_a_name(here):
    record("~nobody_is_called_so.rrd")
    assert len(load("~nobody_is_called_so.rrd")) == len(load(here / "~nobody_is_called_so.rrd"))


def test_names_may_have_colons(here):
    record("run:1.rrd")
    record("http:/of:episodes", split="episode")
    found = load("run:1.rrd")
    assert len(found) == len(load("run.rrd"))
    assert len(list_episodes("http:/of:episodes").episodes) == len(found)
    to_parquet(found, "file:run.parquet")
    to_lerobot(found, "lerobot:run")
    assert ran("export", "run:1.rrd", "--mp4").startswith("run:1.mp4: ")
    assert ran("export", "run:1.rrd", "--mp4", "-o", "tcp:x.mp4").startswith("tcp:x.mp4: ")
    write_comparison(open_runs(["run:1.rrd", "run.rrd"]), "both:a.rrd")
    there = {"file:run.parquet", "lerobot:run", "run:1.mp4", "tcp:x.mp4", "both:a.rrd"}
    assert there <= {each.name for each in here.iterdir()}


def test_recordings_loaded_by_relative_paths_are_read_after_a_change_of_the_working_directory(here, monkeypatch):
    wanted = [load("run.rrd"), load("episodes"), load("*.rrd")]
    wanted = [(each, [episode.tensordict() for episode in load(here / place)]) for each, place in zip(
        wanted, ("run.rrd", "episodes", "run.rrd"), strict=True)]  # fmt: skip
    [listed, *_] = list_episodes("episodes").episodes
    [video] = videos_of("run.rrd", "out.mp4")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    record("run.rrd", shift=3)  # another run with an equal name
    for recordings, tensordicts in wanted:
        for episode, tensordict in zip(recordings, tensordicts, strict=True):
            assert (episode.tensordict() == tensordict).all()
            assert all(file.is_absolute() and file.exists() for file in episode.files)
    assert listed.path.exists()
    assert write_video(video).path == here / "out.mp4"


@pytest.mark.parametrize("how", ["renamed", "written over", "recorded again"])
def test_reading_a_file_that_was_replaced_after_loading_is_an_error(here, how):
    record("other.rrd", shift=2)
    [first, *_] = load("run.rrd")
    if how == "renamed":
        os.replace("other.rrd", "run.rrd")
    elif how == "written over":  # same file, new content
        Path("run.rrd").write_bytes(Path("other.rrd").read_bytes())
    else:
        record("run.rrd", overwrite=True)
    with pytest.raises(ValueError, match=r"run.rrd was (replaced|overwritten) since it was loaded: load it again"):
        first.tensordict()
    assert len(load("run.rrd")[0].tensordict())


def test_reading_an_episode_that_was_replaced_after_loading_is_an_error(here):
    record("others", split="episode", shift=2)
    [first, *_] = load("episodes")
    os.replace(here / "others" / first.files[0].name, first.files[0])
    with pytest.raises(ValueError, match=rf"{first.files[0].name} was replaced since it was loaded: load it again"):
        first.tensordict()


def test_a_path_below_a_file_does_not_exist(here):
    for place in ("run.rrd/run.rrd", "run.rrd/episodes"):
        with pytest.raises(FileNotFoundError, match=rf"{place} doesn't exist"):
            load(place)
        assert f"{place} doesn't exist" in run("ls", place).stderr
        assert run("export", "episodes", "--parquet", place).exit_code == 1


# --- links ---


def test_a_link_to_a_recording_includes_its_parts(here):
    """The parts are beside the target of the link."""
    (here / "data").mkdir()
    env = GymWrapper(Lengths(0)).append_transform(RerunRecorder("data/long.rrd"))
    env.rollout(3)
    env.transform.close()
    with pytest.warns(UserWarning, match="long.part_1.rrd"):
        env.rollout(3)
    env.close()
    (here / "latest.rrd").symlink_to("data/long.rrd")
    assert len(load("latest.rrd")) == len(load("data/long.rrd")) == 2


def test_recording_through_a_link_writes_its_target(here):
    (here / "disk").mkdir()
    (here / "link.rrd").symlink_to("disk/real.rrd")  # the target doesn't exist yet
    record("link.rrd")
    assert episodes_in("disk/real.rrd")[0].length == FIRST
    assert os.path.islink("link.rrd")
    with pytest.raises(FileExistsError, match=r"real.rrd exists"):
        RerunRecorder("link.rrd")
    record("link.rrd", shift=1, overwrite=True)
    assert os.path.islink("link.rrd")
    assert episodes_in("disk/real.rrd")[0].length == SECOND
    assert [each.name for each in (here / "disk").iterdir()] == ["real.rrd"]


def written(here):
    """Return functions that write one file, by suffix; each takes the path."""
    found = load(here / "run.rrd")
    return {
        "parquet": lambda path: to_parquet(found, path, overwrite=True),
        "mp4": lambda path: write_video(videos_of(here / "run.rrd", path, overwrite=True)[0]),
        "rrd": lambda path: write_comparison(open_runs([here / "run.rrd", here / "run.rrd"]), path, overwrite=True),
    }


@pytest.mark.parametrize("kind", ["parquet", "mp4", "rrd"])
def test_an_export_through_a_link_writes_its_target(here, kind):
    (here / "disk").mkdir()
    (here / "disk" / f"real.{kind}").write_text("old")
    (here / f"link.{kind}").symlink_to(f"disk/real.{kind}")
    (here / f"new.{kind}").symlink_to(f"disk/not_there.{kind}")
    os.chmod(here / "disk" / f"real.{kind}", 0o600)
    write = written(here)[kind]
    for name, leads in (("link", "real"), ("new", "not_there")):
        write(here / f"{name}.{kind}")
        assert (here / f"{name}.{kind}").is_symlink()
        assert (here / "disk" / f"{leads}.{kind}").stat().st_size > 100
    assert stat.S_IMODE(os.stat(here / "disk" / f"real.{kind}").st_mode) == 0o600
    assert sorted(each.name for each in (here / "disk").iterdir()) == [f"not_there.{kind}", f"real.{kind}"]


def test_a_data_set_through_a_link_is_written_to_its_target(here):
    (here / "disk").mkdir()
    (here / "link").symlink_to("disk/data")
    for _ in range(2):
        to_lerobot(load("run.rrd"), "link", overwrite=True)
    assert (here / "link").is_symlink()
    assert [each.name for each in (here / "disk").iterdir()] == ["data"]


def special(here, kind):
    path = here / f"special.{kind}"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("kind", ["parquet", "mp4", "rrd"])
def test_pipes_and_devices_are_never_replaced(here, kind):
    pipe = special(here, kind)
    (here / f"link.{kind}").symlink_to(pipe)
    (here / f"other.{kind}").symlink_to(f"device.{kind}")
    with contextlib.suppress(PermissionError):  # only root may make a device
        os.mknod(here / f"device.{kind}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    before = {each.name: each.lstat().st_mode for each in here.iterdir()}
    for name in ("special", "link", "device", "other"):
        if (here / f"{name}.{kind}").exists():
            with pytest.raises(ValueError, match=r"is a (pipe|device), and not a file: choose another path"):
                written(here)[kind](here / f"{name}.{kind}")
    assert {each.name: each.lstat().st_mode for each in here.iterdir()} == before


@pytest.mark.parametrize("where", [subprocess.PIPE, "a file"])
def test_standard_output_is_never_replaced(here, where):
    source = (
        "from torchrl_rerun import load\nfrom torchrl_rerun.export.parquet import to_parquet\n"
        "to_parquet(load('run.rrd'), 'stdout', overwrite=True)"
    )
    os.symlink(system := "/proc/self/fd/1", "stdout")  # like /dev/stdout
    with open("printed", "wb") as printed:
        output = where if where == subprocess.PIPE else printed
        done = subprocess.run([*python(), "-c", source], stdout=output, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "stdout is" in done.stderr
    assert "choose another path" in done.stderr
    assert os.readlink("stdout") == system
    assert os.path.getsize("printed") == 0


def test_a_recorder_and_a_repair_refuse_pipes(here):
    pipe = special(here, "rrd")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(ValueError, match="is a pipe, and not a file: choose another path"):
            RerunRecorder(pipe, **options)
    with pytest.raises(ValueError, match="is a pipe, and not a recording"):
        repair(pipe)
    with pytest.raises(ValueError, match="is a pipe, and not a file"):
        repair(here / "run.rrd", pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize(
    "command",
    ["ls", "info", "query FILE TRUE", "view", "repair", "compare run.rrd", "export --mp4", "replay FILE -o never.rrd"],
)
def test_a_pipe_or_a_device_is_refused_as_a_recording_without_waiting(here, command):
    pipe = special(here, "rrd")
    for path, what in ((pipe, "pipe"), ("/dev/zero", "device")):
        done = run(*(command if "FILE" in command else f"{command} FILE").replace("FILE", str(path)).split())
        assert done.exit_code == 1
        assert f"is a {what}, and not a recording" in done.stderr


def test_pipes_sockets_and_circular_links_in_a_folder_are_left_out(here):
    os.mkfifo(here / "episodes" / "pipe.rrd")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(here / "episodes" / "socket.rrd"))
        (here / "episodes" / "loop.rrd").symlink_to("loop.rrd")
        assert len(list_episodes("episodes").episodes) == len(load("episodes")) == len(load("episodes/*.rrd"))
        assert list_episodes("episodes").unreadable == []


def test_a_circular_link_is_an_error_that_names_it(here):
    (here / "a.parquet").symlink_to("b.parquet")
    (here / "b.parquet").symlink_to("a.parquet")
    done = run("export", "run.rrd", "--parquet", "a.parquet", "--overwrite")
    assert done.exit_code == 1
    assert "Too many levels of symbolic links" in done.stderr
    assert "a.parquet" in done.stderr


def test_links_to_folders_are_followed_once(here):
    wanted = len(load("episodes"))
    os.rename("episodes", "disk")
    (here / "link").symlink_to("disk")
    (here / "runs").mkdir()
    (here / "runs" / "ppo").symlink_to("../disk")
    (here / "runs" / "again").symlink_to("../disk")
    (here / "disk" / "round").symlink_to("..")  # a cycle
    for place in ("link", "runs", "runs/ppo"):
        assert len(load(place).where(lambda episode: True)) >= wanted
        files = [file for each in list_episodes(place).episodes for file in each.paths]
        assert len(files) == len({file.resolve() for file in files}) == wanted
    assert ran("ls", "link").count("\n") == wanted + 1
    assert describe_files("runs/ppo")[0][0].recordings == wanted


# --- names that aren't UTF-8 ---


def test_names_that_are_not_utf8_are_refused_if_rerun_opens_the_file(here):
    if sys.platform != "linux":
        pytest.skip("other systems have no such names")
    for name, split in ((f"{NOT_UTF8}.rrd", "run"), (NOT_UTF8, "episode"), (NOT_UTF8, "dump")):
        with pytest.raises(ValueError, match=r"r\\xff.* has a name that isn't UTF-8, which Rerun can't open"):
            RerunRecorder(here / name, split=split)
    shutil.copy("run.rrd", f"{NOT_UTF8}.rrd")
    for command in ("ls", "info", "view", "repair", "compare run.rrd", "export --mp4"):
        done = run(*command.split(), f"{NOT_UTF8}.rrd")
        assert done.exit_code == 1
        assert r"r\xff.rrd has a name that isn't UTF-8, which Rerun can't open: rename it" in done.stderr


def test_a_recording_whose_name_is_not_utf8_is_read_without_rerun(here):
    os.rename("run.rrd", f"{NOT_UTF8}.rrd")
    found = load(f"{NOT_UTF8}.rrd")
    assert len(found[0].tensordict()) == FIRST
    [row] = json.loads(ran("query", f"{NOT_UTF8}.rrd", "episode = 0", "--json"))
    assert row["files"] == [rf"{here}/r\xff.rrd"]
    assert ran("query", f"{NOT_UTF8}.rrd", "episode = 0", "--paths") == f"{here}/r\\xff.rrd\n"
    assert "xff.rrd" in ran("query", f"{NOT_UTF8}.rrd", "episode = 0")


def test_an_export_may_have_any_name(here):
    for write in (
        lambda: ran("export", "run.rrd", "--parquet", f"{NOT_UTF8}.parquet"),
        lambda: ran("export", "run.rrd", "--lerobot", f"lerobot_{NOT_UTF8}"),
        lambda: ran("export", "run.rrd", "--mp4", "-o", f"{NOT_UTF8}.mp4"),
        lambda: ran("compare", "run.rrd", "run.rrd", "--no-view", "-o", f"{NOT_UTF8}.rrd"),
    ):
        write()
    there = {f"{NOT_UTF8}.parquet", f"lerobot_{NOT_UTF8}", f"{NOT_UTF8}.mp4", f"{NOT_UTF8}.rrd"}
    assert there <= {each.name for each in here.iterdir()}
    name = 250 * "n"
    to_parquet(load("run.rrd"), name)
    assert os.path.getsize(name)


# --- replacing ---


@pytest.mark.parametrize("sign", [None, "sign"])
def test_an_incomplete_replacement_leaves_the_earlier_file(here, sign):
    path = here / "there"
    if sign is None:
        path.write_text("mine")
    else:
        path.mkdir()
        (path / sign).write_text("mine")
    before = sorted(here.rglob("*"))

    def write_half():
        with written_aside(path, overwrite=True, sign=sign) as hidden:
            if sign is None:
                hidden.write_text("half of")
            else:
                hidden.mkdir()
                (hidden / "half").write_text("of it")
            raise RecordingError

    with pytest.raises(RecordingError):
        write_half()
    assert sorted(here.rglob("*")) == before
    assert (path if sign is None else path / sign).read_text() == "mine"


def test_a_folder_that_cannot_be_renamed_leaves_the_earlier_one(here, monkeypatch):
    """A failure between the two renames."""
    (here / "there").mkdir()
    (here / "there" / "sign").write_text("mine")
    replace = Path.replace

    def fails(self, target):
        if self.name == "whole":
            raise OSError("no")
        return replace(self, target)

    def write():
        with written_aside(here / "there", overwrite=True, sign="sign") as hidden:
            hidden.mkdir()
            monkeypatch.setattr(Path, "replace", fails)

    with pytest.raises(OSError, match="no"):
        write()
    assert (here / "there" / "sign").read_text() == "mine"


def test_a_damaged_source_leaves_earlier_exports_unchanged(here):
    """The exports are a video and a table; the damage is found on the way."""
    record("torn.rrd", steps=200)
    assert ran("export", "run.rrd", "--mp4", "-o", "out.mp4")
    to_parquet(load("run.rrd"), "out.parquet")
    content = bytearray(Path("torn.rrd").read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    Path("torn.rrd").write_bytes(content)
    before = {each.name: each.read_bytes() for each in here.iterdir() if each.is_file()}
    for arguments in (("--mp4", "-o", "out.mp4"), ("--parquet", "out.parquet")):
        assert run("export", "torn.rrd", *arguments, "--overwrite").exit_code == 1
    assert {each.name: each.read_bytes() for each in here.iterdir() if each.is_file()} == before


def test_a_repair_through_a_link_writes_its_target(here):
    whole = Path("run.rrd").read_bytes()
    Path("torn.rrd").write_bytes(whole[: len(whole) // 2])
    (here / "link.rrd").symlink_to("disk/repaired.rrd")
    assert repair("torn.rrd", "link.rrd").path == here / "disk" / "repaired.rrd"
    assert (here / "link.rrd").is_symlink()
    assert episodes_in("disk/repaired.rrd")
    (here / "in_place.rrd").symlink_to("torn.rrd")
    assert repair("in_place.rrd").path == here / "torn.rrd"
    assert (here / "in_place.rrd").is_symlink()
    assert sorted(each.name for each in here.iterdir() if each.name.startswith(".")) == []


# --- numbers out of range ---


@pytest.mark.parametrize("fps", ["inf", "nan", "-inf", "0", "1e300"])
def test_frame_rates_out_of_range_are_refused(here, fps):
    for arguments in (("--mp4", "-o", "out.mp4"), ("--lerobot", "out")):
        done = run("export", "run.rrd", *arguments, "--fps", fps)
        assert done.exit_code == 2
        assert "is not from 0.001 to 10000" in " ".join(done.stderr.split())
    if not np.isfinite(float(fps)):
        with pytest.raises(ValueError, match=r"fps=-?(inf|nan)"):
            videos_of("run.rrd", "out.mp4", fps=float(fps))
        with pytest.raises(ValueError, match=r"fps=-?(inf|nan)"):
            to_lerobot(load("run.rrd"), "out", fps=float(fps))
        with pytest.raises(ValueError, match=r"fps=-?(inf|nan) must be positive"):
            RerunRecorder("new.rrd", fps=float(fps))
    assert not (here / "out").exists()


# --- standard output ---


@pytest.mark.parametrize("command", ["info run.rrd", "ls episodes --json", "query run.rrd TRUE"])
def test_a_full_disk_behind_standard_output_is_an_error_in_one_line(here, command):
    source = "from torchrl_rerun.cli import app; app()"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*python(), "-c", source, *command.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.count("No space left on device") == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
