"""Viewing: Rerun's own viewer as a process, in a window, in browsers or without either, which ends when this one does."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self
from urllib.parse import quote

LOOPBACK = "127.0.0.1"
GRPC_PORT, WEB_PORT = 9876, 9090
"""Rerun's own, which are taken if they are free."""

_STARTS_WITHIN = 30.0
_ENDS_WITHIN = 5.0
_NO_DISPLAY = "neither WAYLAND_DISPLAY nor"
_NO_GRAPHICS = "No graphics adapter"


class ViewerError(RuntimeError):
    """The viewer didn't start, or ended by itself with an error."""


class Viewer:
    """A viewer that runs until the block ends in which it is.

    Args:
        arguments: of Rerun's program.

    Raises:
        ViewerError: there is no such program.
    """

    def __init__(self, *arguments: object) -> None:
        self._arguments = [str(_program()), *map(str, arguments)]

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={"RUST_LOG": "warn", "NO_COLOR": "1", **os.environ},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def wait_until_it_listens(self, address: str, port: int) -> None:
        """Wait until it can be connected to.

        Raises:
            ViewerError: it ended, or doesn't listen for too long.
        """
        deadline = time.monotonic() + _STARTS_WITHIN
        while not _accepts(address, port):
            self.check()
            if time.monotonic() > deadline:
                raise ViewerError(f"the viewer doesn't listen on port {port} after {_STARTS_WITHIN:.0f} s")
            time.sleep(0.05)
        self.check()

    def wait(self) -> None:
        """Wait until it is closed.

        Raises:
            ViewerError: it ended with an error.
        """
        self._process.wait()
        if self._process.returncode:
            self._fail()

    def check(self) -> None:
        """Look whether it still runs.

        Raises:
            ViewerError: it doesn't.
        """
        if self._process.poll() is not None:
            self._fail()

    def _fail(self) -> NoReturn:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        if _NO_DISPLAY in said:
            raise ViewerError("there is no display to open a window on")
        if _NO_GRAPHICS in said:
            raise ViewerError("there is no graphics driver: install one (Debian: apt-get install mesa-vulkan-drivers)")
        last = said.splitlines()[-1] if said else f"exit status {self._process.returncode}"
        raise ViewerError(f"Rerun's viewer ended: {last}")


def in_window(files: Sequence[Path]) -> Viewer:
    """A viewer of some recordings in a window of its own.

    Raises:
        ViewerError: there is no display.
    """
    if sys.platform == "linux" and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        raise ViewerError("there is no display to open a window on")
    # `auto`: another viewer on the usual port would be sent the recordings, and none would start.
    return Viewer("--bind", LOOPBACK, "--port", "auto", *_absolute(files))


def in_browsers(files: Sequence[Path], *, bind: str, port: int, web_port: int) -> Viewer:
    """A viewer of some recordings for browsers, on two ports: of its page, and of what is recorded.

    Args:
        files: the recordings.
        bind: the address that it listens on.
        port: the port of what is recorded.
        web_port: the port of the page.
    """
    # A page of another name than localhost has to be allowed to ask for what is recorded.
    others = () if ipaddress.ip_address(bind).is_loopback else ("--cors-allow-origin", f"http://*:{web_port}")
    # What is beyond the limit would be dropped; 1 GiB unless it is said.
    limit = ("--server-memory-limit", "75%")
    return Viewer(
        "--serve-web", "--bind", bind, "--port", port, "--web-viewer-port", web_port, *limit, *others, *_absolute(files)
    )


def headless(port: int, size: tuple[int, int]) -> Viewer:
    """A viewer without a window, of a size.

    Args:
        port: the port by which it is told what to do.
        size: width and height.
    """
    window = ("--window-size", "x".join(map(str, size)))
    return Viewer("--headless", "--hide-welcome-screen", "--bind", LOOPBACK, "--port", port, *window)


def web_address(bind: str, port: int, web_port: int) -> str:
    """What to open in a browser.

    >>> web_address("127.0.0.1", 9876, 9090)
    'http://127.0.0.1:9090/?url=rerun%2Bhttp%3A%2F%2F127.0.0.1%3A9876%2Fproxy'
    """
    address = ipaddress.ip_address(bind)
    host = socket.gethostname() if address.is_unspecified else f"[{bind}]" if address.version == 6 else bind
    return f"http://{host}:{web_port}/?url={quote(f'rerun+http://{host}:{port}/proxy', safe='')}"


def free_port(bind: str, preferred: int = 0) -> int:
    """A port that nobody listens on: the preferred one, if it is free.

    Args:
        bind: the address to listen on.
        preferred: a port; 0: any.

    Raises:
        OSError: there is no such address on this machine.
    """
    try:
        return _bound(bind, preferred)
    except OSError:
        return _bound(bind, 0)


def is_free(bind: str, port: int) -> bool:
    """Whether nobody listens on a port."""
    try:
        _bound(bind, port)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does, so that the viewer in it ends, too."""

    def end(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bound(bind: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family) as probe:
        if sys.platform != "win32":  # what a server that has just ended left behind is free for servers
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((bind, port))
        return int(probe.getsockname()[1])


def _accepts(bind: str, port: int) -> bool:
    address = ipaddress.ip_address(bind)
    host = ("::1" if address.version == 6 else LOOPBACK) if address.is_unspecified else bind
    with contextlib.suppress(OSError), socket.create_connection((host, port), 0.5):
        return True
    return False


def _absolute(files: Sequence[Path]) -> list[Path]:
    return [file.absolute() for file in files]


def _program() -> Path:
    """Rerun's program itself: the script of that name starts it as a process of its own, which would outlive it."""
    import rerun_cli  # noqa: PLC0415

    folder = Path(rerun_cli.__file__).parent
    places = ("rerun.exe" if sys.platform == "win32" else "rerun", "Rerun.app/Contents/MacOS/Rerun")
    for place in places:
        if (folder / place).exists():
            return folder / place
    raise ViewerError(f"Rerun's program is not in {folder}: install rerun-sdk again")
