"""Real viewers' servers, on loopback."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import rerun_cli

RERUN = Path(rerun_cli.__file__).with_name("rerun")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
        return True
    return False


@contextlib.contextmanager
def started_viewer() -> Iterator[tuple[str, int]]:
    """A viewer's server without its windows: its URL and process id."""
    port = free_port()
    where = ["--bind", "127.0.0.1", "--port", str(port), "--server-memory-limit", "64MB"]
    process = subprocess.Popen(
        [RERUN, "--serve-grpc", *where],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not _answers(port):
            assert time.monotonic() < deadline, "the viewer never answers"
            time.sleep(0.05)
        yield f"rerun+http://127.0.0.1:{port}/proxy", process.pid
    finally:
        process.kill()
        process.wait()
