"""`torchrl-rerun view`: the real viewer runs as long as the command."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys

import psutil
import pytest
from typer.testing import CliRunner

from episode_folders import episode, write_episode, write_run
from servers import COMMAND, viewing, wait_until
from torchrl_rerun.cli import app
from torchrl_rerun.viewing.viewer import find_free_port, is_free


def viewer_of(process):
    (child,) = psutil.Process(process.pid).children()
    return child


def opened(process):
    return [argument for argument in viewer_of(process).cmdline() if argument.endswith(".rrd")]


def ports_in(said):
    return [int(port) for port in re.findall(r"127\.0\.0\.\d(?::|%3A)(\d+)", said)]


@pytest.fixture
def run(tmp_path):
    """Write three episodes."""
    for number, value in enumerate([1.0, -5.0, 3.0]):
        write_episode(tmp_path / "ppo", episode(number, value, terminated=True))
    return tmp_path / "ppo"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_with_its_viewer(run, end):
    with viewing(run) as (process, said):
        web_port, port = ports_in(said)
        viewer = viewer_of(process)
        listening = {each.laddr for each in viewer.net_connections() if each.status == psutil.CONN_LISTEN}
        assert listening == {("127.0.0.1", web_port), ("127.0.0.1", port)}
        assert opened(process) == [str(run / f"env_0_episode_{number:06}.rrd") for number in range(3)]
        process.send_signal(end)
        _, complained = process.communicate(timeout=10)
        assert process.returncode == 0, complained
        assert "serving 3 files until Ctrl-C" in complained
        wait_until(lambda: not viewer.is_running())
        assert is_free("127.0.0.1", web_port)


def test_episodes_are_selected_like_in_ls(run):
    with viewing(run, "--worst", 2, "--where", "episode_return<2") as (process, _):
        assert opened(process) == [str(run / f"env_0_episode_{number:06}.rrd") for number in (1, 0)]
    listed = subprocess.run([*COMMAND, "ls", run, "--paths", "--best", "2"], capture_output=True, check=True, text=True)
    with viewing(*listed.stdout.split()) as (process, _):
        assert opened(process) == [str(run / f"env_0_episode_{number:06}.rrd") for number in (2, 0)]


def test_address_and_ports_can_be_chosen(run):
    ports = find_free_port("127.0.0.2"), find_free_port("127.0.0.2")
    with viewing(run, "--bind", "127.0.0.2", "--web-port", ports[0], "--port", ports[1]) as (process, said):
        assert said == (f"open http://127.0.0.2:{ports[0]}/?url=rerun%2Bhttp%3A%2F%2F127.0.0.2%3A{ports[1]}%2Fproxy\n")
        addresses = {each.laddr for each in viewer_of(process).net_connections() if each.status == psutil.CONN_LISTEN}
        assert addresses == {("127.0.0.2", port) for port in ports}


def test_a_port_in_use_is_an_error(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert find_free_port("127.0.0.1", port) != port
        assert_refused(f"nothing can listen on port {port} of 127.0.0.1", run, "--web", "--port", port)


def test_the_command_ends_if_the_viewer_ends(run):
    with viewing(run) as (process, _):
        viewer_of(process).kill()
        _, complained = process.communicate(timeout=10)
        assert process.returncode == 1
        assert "Rerun's viewer ended: exit status -9" in complained


def test_unreadable_files_of_a_folder_are_left_out(run):
    whole = write_run(run / "whole.rrd")
    torn = run / "torn.rrd"
    torn.write_bytes(whole.read_bytes()[:-100])
    (run / "other.rrd").write_text("something else")
    with viewing(run) as (process, _):
        assert len(opened(process)) == 5  # of the torn one a copy
        process.send_signal(signal.SIGINT)
        assert "left out: " in process.communicate(timeout=10)[1]


def view(*arguments):
    return CliRunner().invoke(app, ["view", *map(str, arguments)])


def assert_refused(why, *arguments):
    done = view(*arguments)
    assert done.exit_code == 1
    assert why in done.stderr


def test_files_and_options_that_show_nothing_are_refused(run, tmp_path):
    assert_refused(
        "other.txt is not a recording", (tmp_path / "other.txt").write_text("other") and tmp_path / "other.txt"
    )
    assert_refused("empty.rrd is empty", (tmp_path / "empty.rrd").touch() or tmp_path / "empty.rrd")
    assert_refused("nothing.rrd doesn't exist", tmp_path / "nothing.rrd")
    (tmp_path / "folder").mkdir()
    assert_refused("folder holds no recordings", tmp_path / "folder")
    assert_refused("holds 3 episodes, none of which satisfies the options", run, "--where", "episode_return>100")
    assert_refused("there is no column 'success'", run, "--where", "success=true")
    assert_refused("8.8.8.8 is not an address of this machine", run, "--web", "--bind", "8.8.8.8")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--bind", "0.0.0.0"], "needs --web"),
        (["--web", "--bind", "everywhere"], "is not an IP address"),
        (["--best", "1", "--worst", "1"], "choose one of these"),
    ],
)
def test_contradictory_options_are_refused(run, arguments, why):
    done = view(run, *arguments)
    assert done.exit_code == 2
    assert why in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="displays are asked of the environment on Linux alone")
def test_a_missing_display_is_an_error_with_advice(run, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert_refused("there is no display to open a window on. Use `--web` for a browser", run)
    monkeypatch.setenv("DISPLAY", ":987")  # there is no such display
    assert_refused("Rerun's viewer ended: ", run)


def test_help_imports_no_large_package():
    """Neither Rerun nor NumPy nor torch is imported."""
    code = "import sys, torchrl_rerun.cli; print({'rerun', 'numpy', 'torch'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "set()\n"
