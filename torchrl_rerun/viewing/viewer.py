"""Rerun's viewer as a child process: in a window, for browsers, or headless."""

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

from torchrl_rerun.rrd.openable import shapes_of
from torchrl_rerun.viewing.program import ViewerError, find_program
from torchrl_rerun.viewing.shapes import with_shapes

LOOPBACK = "127.0.0.1"
GRPC_PORT, WEB_PORT = 9876, 9090
"""Default ports of Rerun, which are used if they are free."""

_STARTS_WITHIN = 30.0
_ENDS_WITHIN = 5.0
_NO_DISPLAY = "neither WAYLAND_DISPLAY nor"
_NO_GRAPHICS = "No graphics adapter"


class Viewer:
    """Viewer process, which runs during a ``with`` block.

    Args:
        arguments: Arguments of Rerun's program.

    Raises:
        ViewerError: Rerun's program is missing.
    """

    def __init__(self, *arguments: object) -> None:
        self._arguments = [str(find_program()), *map(str, arguments)]

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

    def wait_until_listening(self, address: str, port: int) -> None:
        """Wait until the viewer accepts connections.

        Raises:
            ViewerError: The viewer ended, or didn't listen within 30 s.
        """
        deadline = time.monotonic() + _STARTS_WITHIN
        while not _accepts(address, port):
            self.check()
            if time.monotonic() > deadline:
                raise ViewerError(f"the viewer doesn't listen on port {port} after {_STARTS_WITHIN:.0f} s")
            time.sleep(0.05)
        self.check()

    def wait(self) -> None:
        """Wait until the user closes the viewer.

        Raises:
            ViewerError: The viewer ended with an error.
        """
        self._process.wait()
        if self._process.returncode:
            self._fail()

    def check(self) -> None:
        """Check that the viewer runs.

        Raises:
            ViewerError: The viewer ended.
        """
        if self._process.poll() is not None:
            self._fail()

    def _fail(self) -> NoReturn:
        self._errors.seek(0)
        output = self._errors.read().decode(errors="replace").strip()
        if _NO_DISPLAY in output:
            raise ViewerError("there is no display to open a window on")
        if _NO_GRAPHICS in output:
            raise ViewerError(
                "no graphics driver is installed: install one (Debian: apt-get install mesa-vulkan-drivers)"
            )
        last = output.splitlines()[-1] if output else f"exit status {self._process.returncode}"
        raise ViewerError(f"Rerun's viewer ended: {last}")


def open_window(files: Sequence[Path]) -> Viewer:
    """Return a viewer that shows recordings in a window.

    Raises:
        ViewerError: There is no display.
    """
    if sys.platform == "linux" and not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")):
        raise ViewerError("there is no display to open a window on")
    # rerun-sdk 0.41: on the default port, a running viewer would get the recordings, and no new one would start.
    assets = [argument for shared in shapes_of(files) for argument in ("--asset", shared.absolute())]
    return Viewer("--bind", LOOPBACK, "--port", "auto", *assets, *_make_absolute(files))


def serve_web(files: Sequence[Path], *, bind: str, port: int, web_port: int) -> Viewer:
    """Return a viewer that serves recordings to browsers.

    Args:
        files: Recordings.
        bind: Address to listen on.
        port: Port of the recordings.
        web_port: Port of the viewer's page.
    """
    # Browsers refuse data from another port unless the server allows the page's address; localhost is allowed already.
    others = () if ipaddress.ip_address(bind).is_loopback else ("--cors-allow-origin", f"http://*:{web_port}")
    # The server drops data beyond its limit, which is 1 GiB by default.
    limit = ("--server-memory-limit", "75%")
    return Viewer(
        "--serve-web",
        "--bind",
        bind,
        "--port",
        port,
        "--web-viewer-port",
        web_port,
        *limit,
        *others,
        *_make_absolute(with_shapes(files)),  # rerun-sdk 0.41: `--asset` is for windows
    )


def start_headless(port: int, size: tuple[int, int]) -> Viewer:
    """Return a viewer without a window.

    Args:
        port: Port of the client that controls it.
        size: Width and height in pixels.
    """
    window = ("--window-size", "x".join(map(str, size)))
    return Viewer("--headless", "--hide-welcome-screen", "--bind", LOOPBACK, "--port", port, *window)


def make_web_address(bind: str, port: int, web_port: int) -> str:
    """Return the address to open in a browser.

    >>> make_web_address("127.0.0.1", 9876, 9090)
    'http://127.0.0.1:9090/?url=rerun%2Bhttp%3A%2F%2F127.0.0.1%3A9876%2Fproxy'
    """
    address = ipaddress.ip_address(bind)
    host = socket.gethostname() if address.is_unspecified else f"[{bind}]" if address.version == 6 else bind
    return f"http://{host}:{web_port}/?url={quote(f'rerun+http://{host}:{port}/proxy', safe='')}"


def find_free_port(bind: str, preferred: int = 0) -> int:
    """Return a port that no program listens on.

    Args:
        bind: Address to listen on.
        preferred: Port to return if it is free. Default: 0, any.

    Raises:
        OSError: The address is not one of this machine.
    """
    try:
        return _bind(bind, preferred)
    except OSError:
        return _bind(bind, 0)


def is_free(bind: str, port: int) -> bool:
    """Return whether no program listens on a port."""
    try:
        _bind(bind, port)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def end_on_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM during the block, so that the viewer in it ends, too."""

    def end(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bind(bind: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family) as probe:
        if sys.platform != "win32":  # connections of a server that has just ended still hold its port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((bind, port))
        return int(probe.getsockname()[1])


def _accepts(bind: str, port: int) -> bool:
    address = ipaddress.ip_address(bind)
    host = ("::1" if address.version == 6 else LOOPBACK) if address.is_unspecified else bind
    with contextlib.suppress(OSError), socket.create_connection((host, port), 0.5):
        return True
    return False


def _make_absolute(files: Sequence[Path]) -> list[Path]:
    return [file.absolute() for file in files]
