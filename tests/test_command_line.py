"""All commands: messages on files that they cannot read, and progress bars."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import threading

import pytest
import rerun as rr
import torch
from rerun.chunk import RrdReader
from torchrl.envs import GymEnv
from typer.testing import CliRunner

from programs import python
from rebuilt import episodes_in
from torchrl_rerun import RerunRecorder
from torchrl_rerun.cli import app, console
from torchrl_rerun.rrd.openable import whole_files_of
from torchrl_rerun.rrd.reader import parts_in

STEPS = 40
BAR = "━"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder of a recording, its rollout as saved by torch, and files that are no recordings."""
    folder = tmp_path_factory.mktemp("recorded")
    env = GymEnv("CartPole-v1", from_pixels=True, pixels_only=False)
    env = env.append_transform(RerunRecorder(folder / "run.rrd"))
    rollout = env.rollout(STEPS, break_when_any_done=False)
    env.close()
    torch.save(rollout.exclude("pixels", ("next", "pixels")), folder / "rollout.pt")
    (folder / "text.rrd").write_text("precious text\n")
    (folder / "nothing.rrd").touch()
    with rr.RecordingStream("other") as stream:
        stream.save(folder / "foreign.rrd")
        stream.log("a", rr.Scalars(1.0))
    del stream
    whole = (folder / "run.rrd").read_bytes()
    [part] = parts_in(folder / "run.rrd")
    end = (part.index.offsets + part.index.sizes).max()
    (folder / "torn.rrd").write_bytes(whole[: end + 100])  # within the layout
    (folder / "folder").mkdir()
    return folder


@pytest.fixture
def here(recorded, tmp_path, monkeypatch):
    """The working directory, with a copy of these files."""
    folder = shutil.copytree(recorded, tmp_path / "here")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return folder


# --- unreadable files ---

COMMANDS = (
    "view FILE --web",
    "view FILE --worst 3",
    "ls FILE",
    "query FILE length>3",
    "compare run.rrd FILE --no-view",
    "info FILE",
    "export FILE --mp4 -o videos",
    "export FILE --parquet out.parquet",
    "export FILE --minari cartpole/out-v0",
    "export FILE --lerobot out",
    "screenshot FILE out.png",
    "replay FILE -o out.rrd",
    "repair FILE -o out.rrd",
)
LOOKS = ("view FILE --web", "screenshot FILE out.png")  # the viewer shows any recording of Rerun
READS = (
    "query",
    "compare",
    "info",
    "export",
    "replay",
    "repair",
)  # up to the last complete message
SAID = {
    "text.rrd": ("is not a recording", "looks like text"),
    "nothing.rrd": ("is empty", "looks like an empty file"),
    "nowhere.rrd": ("doesn't exist",),
    "foreign.rrd": ("`torchrl-rerun view foreign.rrd`", "no pictures that RerunRecorder recorded", "nothing to repair"),
    "torn.rrd": ("`torchrl-rerun query torn.rrd true`",),
    "folder": ("holds no recordings", "holds no episodes", "is a folder"),
}


def cases():
    for name in SAID:
        done = {"foreign.rrd": LOOKS, "torn.rrd": (*LOOKS, *READS)}.get(name, "nothing")
        yield from ((command, name) for command in COMMANDS if not command.startswith(done))


@pytest.mark.parametrize(("command", "name"), [*cases()])
def test_a_command_names_an_unreadable_file_in_one_line(here, capfd, command, name):
    """The line says what the file is and what to do. Rerun prints nothing."""
    before = sorted(here.rglob("*"))
    done = CliRunner().invoke(app, command.replace("FILE", name).split())
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert name in line
    assert any(said in line for said in SAID[name]), line
    assert capfd.readouterr() == ("", "")
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith(READS)])
def test_a_torn_file_is_read_up_to_its_last_complete_message(here, command):
    done = CliRunner().invoke(app, command.replace("FILE", "torn.rrd").split())
    assert done.exit_code == 0, done.stderr or done.exception
    assert done.stdout


def test_copies_are_viewed_of_files_that_are_torn(here):
    before = sorted(here.rglob("*"))
    [copy] = whole_files_of("torn.rrd")
    assert copy.name == "torn.rrd"
    assert RrdReader(copy).store() is not None
    assert sorted(here.rglob("*")) == before


def test_files_left_out_of_a_list_are_named_with_the_reason(here):
    env = GymEnv("CartPole-v1").append_transform(RerunRecorder(here / "episodes", split="episode"))
    env.rollout(5)
    env.close()
    shutil.copy("text.rrd", here / "episodes")
    done = CliRunner().invoke(app, ["ls", "episodes"])
    assert done.exit_code == 0
    assert done.stderr == "left out: episodes/text.rrd is not a recording: it doesn't begin as an .rrd file does\n"
    shutil.copy("torn.rrd", here / "episodes")
    assert "text.rrd is not a recording" in (said := CliRunner().invoke(app, ["ls", "episodes"]).stderr)
    assert said.endswith("(and 1 other)\n")


# --- progress bars ---


def in_terminal(command):
    """Return the text on standard output, a pipe, and on standard error, a terminal, of a program."""
    ours, theirs = pty.openpty()
    terminal = bytearray()

    def listen():
        try:
            while got := os.read(ours, 1 << 16):
                terminal.extend(got)
        except OSError:  # the program ended
            pass
        os.close(ours)

    listening = threading.Thread(target=listen)
    listening.start()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"},
    ) as program:
        os.close(theirs)
        printed, _ = program.communicate()
    listening.join()
    assert program.returncode == 0, terminal.decode()
    return printed.decode(), terminal.decode()


AT_ONCE = """
import types
from torchrl_rerun.cli import app, console

class Timer:
    "A timer without delay."
    def __init__(self, seconds, function):
        self.start = function
    def cancel(self): ...
    def join(self): ...

console.threading = types.SimpleNamespace(Timer=Timer)
"""


@pytest.mark.parametrize(
    ("command", "bars"),
    [
        ("export run.rrd --lerobot out", ["reading", "exporting"]),
        ("export run.rrd --mp4 -o out.mp4", ["reading"]),
        ("screenshot run.rrd out.png", ["looking: out.png"]),
        ("compare run.rrd run.rrd --no-view", ["reading"]),
        ("query run.rrd length>3", ["reading"]),
        ("repair torn.rrd", ["repairing torn.rrd"]),
        ("replay rollout.pt -o out.rrd --render CartPole-v1", ["replaying"]),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_long_command_shows_a_progress_bar(command, bars):
    # A screenshot controls the viewer.
    start = [sys.executable] if command.startswith("screenshot") else python()
    printed, terminal = in_terminal([*start, "-c", AT_ONCE + "app()", *command.split()])
    shown = [line for line in terminal.replace("\r", "\n").splitlines() if BAR in line]
    for text in bars:  # a bar without a total moves, and may begin with a gap
        assert any(re.search(rf"{re.escape(text)} +{BAR}.*0:00:0", line) for line in shown), terminal
    assert terminal.rindex("\x1b[?25h") > terminal.rindex(BAR), "the cursor is back"
    assert printed
    assert not {BAR, "\x1b"} & set(printed)


@pytest.mark.usefixtures("here")
def test_without_a_terminal_no_progress_bar_is_shown(monkeypatch):
    monkeypatch.setattr(console, "DELAY", 0.0)
    done = CliRunner().invoke(app, ["query", "run.rrd", "length > 0 AND env = 0"])
    rows = len(episodes_in("run.rrd"))
    assert done.stderr == f"{rows} row{'s' * (rows > 1)}\n"


def test_a_short_command_shows_no_progress_bar():
    source = "from torchrl_rerun.cli import console; console.DELAY = 1000.0; "
    source += "print(len([*console.show_progress(range(9), 9, 'quick')]))"
    assert in_terminal([*python(), "-c", source]) == ("9\n", "")


def test_a_progress_bar_appears_before_the_first_item():
    """A bar within another one replaces it. The bar is cleared at the end."""
    source = """
import sys, time
class Terminal:
    "Standard error, with a copy of the text that was written to it."
    said = ""
    file = sys.stderr  # Rich replaces `sys.stderr` while it shows a bar
    def write(self, text):
        self.said += text
        return self.file.write(text)
    def __getattr__(self, name):
        return getattr(self.file, name)
console.messages.file = terminal = Terminal()
def wait_for(text):
    while text not in terminal.said:
        time.sleep(0.01)
def items():
    for shown in ("inner", "50%"):
        wait_for(shown)
        yield
with console.show_status("outer"):
    wait_for("outer")
    for number, _ in enumerate(console.show_progress(items(), 2, "inner")):
        console.messages.print(f"item {number}")
"""
    _, terminal = in_terminal([*python(), "-c", AT_ONCE + source])
    lines = terminal.replace("\r", "\n").splitlines()
    assert not any("outer" in line and "inner" in line for line in lines)
    at = [terminal.index(said) for said in ("outer", "inner", "item 0", "50%", "item 1")]
    assert at == sorted(at)
    assert "\x1b[2K" in terminal[terminal.rindex(BAR) :]
