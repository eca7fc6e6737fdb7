"""Start real viewers on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import rerun_cli
from rerun.chunk import RrdReader

RERUN = Path(rerun_cli.__file__).with_name("rerun")

FORGETFUL = ("--server-memory-limit", "64MB")
"""Options of a viewer that keeps only the newest 64 MB."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


PATIENCE = 300.0
"""Seconds that a test waits for a state, however busy the machine is."""


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.02)


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run Rerun's own program until the block ends."""
    process = subprocess.Popen(
        [RERUN, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def started_viewer(*options: object) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a viewer's server without windows. Yield its process and URL."""
    port = free_port()
    with started("--serve-grpc", "--bind", "127.0.0.1", "--port", port, *options) as process:
        wait_until(lambda: _accepts(port))
        yield process, f"rerun+http://127.0.0.1:{port}/proxy"


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
        return True
    return False


@contextlib.contextmanager
def received(url, path, until):
    """Save all data that a viewer gets to a file, which is complete when the block ends.

    Args:
        url: URL of the viewer.
        path: path of the file.
        until: returns whether the file is complete; polled after the block.
    """
    with started(url, "--save", path, "--bind", "127.0.0.1", "--port", free_port()) as client:
        wait_until(path.exists)
        yield
        wait_until(until)
        wait_until(lambda: _is_at_rest(path))
        client.send_signal(signal.SIGINT)
        client.wait(PATIENCE)


def _is_at_rest(path):
    """Return whether a file holds whole messages, and no more come: the client would end within one."""
    size = path.stat().st_size
    try:
        RrdReader(path).recordings()
    except RuntimeError:
        return False
    time.sleep(0.2)
    return path.stat().st_size == size


COMMAND = [sys.executable, "-m", "torchrl_rerun.cli"]


@contextlib.contextmanager
def viewing(*arguments):
    """Run `torchrl-rerun view --web`. Yield its process and its output when it has printed the address."""
    process = subprocess.Popen(
        [*COMMAND, "view", "--web", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process, process.stdout.readline()
    finally:
        for each in [*psutil.Process(process.pid).children(), process] if process.poll() is None else []:
            each.kill()
        process.communicate()
