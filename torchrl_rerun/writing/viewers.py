"""Live viewers: chunks go through a pipe to a process of their own, and from there over gRPC.

rerun-sdk 0.41: if a viewer stops reading, ``send_chunks`` blocks for ever once its queue is full, and so does the end of the
program. So Rerun's client runs in a process that can be killed, :mod:`torchrl_rerun.writing.sender`, and chunks that the viewer
doesn't take in time are dropped and counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.writing.live import CLOSE_SECONDS, STALL_SECONDS, LiveSink
from torchrl_rerun.writing.sender import CHUNK, END, GREETING, HEADER, LAYOUT

CONNECT_SECONDS = 2.0
"""Seconds that a viewer may take when the recording begins, half of them to accept a connection, half to answer."""

_PIPE_BYTES = 1 << 20  # Linux's limit for processes without privileges


@dataclass(frozen=True)
class Endpoint:
    """The address of a viewer.

    Attributes:
        url: its URL.
        how: the part of the greeting of :mod:`torchrl_rerun.writing.sender` that names it: ``{"connect": url}``, or
            ``{"serve": [ip, port], "options": ...}``.
    """

    url: str
    how: dict[str, Any]

    @classmethod
    def of(cls, target: str | rr.GrpcServerSink) -> Endpoint:
        """Return the endpoint of a URL (``rerun+http://127.0.0.1:9876/proxy``), or of a server that viewers connect to.

        Raises:
            TypeError: the server doesn't tell its address.
            ValueError: ``target`` is no URL of a viewer.

        >>> Endpoint.of("rerun+http://127.0.0.1:9876/proxy").how
        {'connect': 'rerun+http://127.0.0.1:9876/proxy'}
        """
        if isinstance(target, str):
            try:
                rr.GrpcSink(target)
            except RuntimeError as error:
                raise ValueError(f"{target!r} is no address of a viewer: {error}") from None
            return cls(target, {"connect": target})
        # rerun-sdk 0.41: the address and the limit of its memory are in the `repr` alone. The server runs in a process of its
        # own, which must be told both.
        said = re.search(
            r'bind_ip="([^"]+)", port=(\d+), server_memory_limit="([^"]+)", newest_first=(\w+)', repr(target)
        )
        if said is None:
            raise TypeError(
                f"{target!r} doesn't tell its address; pass the URL of a viewer, rerun+http://host:port/proxy"
            )
        options = {"server_memory_limit": said[3], "newest_first": said[4] == "true"}
        return cls(target.uri, {"serve": [said[1], int(said[2])], "options": options})


class Viewer(LiveSink):
    """A viewer that shows the recording while it is made.

    Args:
        endpoint: its address.
    """

    FATE = "is gone"

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(f"the viewer at {endpoint.url}")
        self._url = endpoint.url
        self._how = endpoint.how
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def open(self, *, application_id: str, recording_id: str) -> None:
        """Look for the viewer, and start the process that sends to it.

        Raises:
            ConnectionError: there is no viewer, or it doesn't answer.
            OSError: the process can't be started, or the port to serve at is in use.
        """
        if "connect" in self._how:
            _probe(self._url)
        else:
            with socket.socket() as port:
                port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                port.bind(tuple(self._how["serve"]))
        hidden = ("RERUN", "_RERUN_TEST_FORCE_SAVE")  # they would send the data elsewhere
        self._process = subprocess.Popen(
            # Run as a file: as a module of the package it would import the package first.
            [sys.executable, "-P", str(Path(__file__).with_name("sender.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={name: value for name, value in os.environ.items() if name not in hidden},
        )
        self._owner = os.getpid()
        with contextlib.suppress(ImportError, AttributeError, OSError):
            import fcntl  # noqa: PLC0415 - there is none on Windows

            fcntl.fcntl(self._input(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        names = {"application_id": application_id, "recording_id": recording_id, "stall_seconds": STALL_SECONDS}
        greeting = json.dumps(self._how | names).encode()
        os.write(self._input(), HEADER.pack(GREETING, len(greeting)) + greeting)  # for which a pipe has room
        for task in (self._pump, self._listen):
            threading.Thread(target=task, name="torchrl_rerun-viewer", daemon=True).start()

    def show(self, layout: rrb.Blueprint) -> None:
        """Arrange the views by a layout."""
        self._send(LAYOUT, pickle.dumps(layout))

    def close(self) -> None:
        """Send the rest, for 5 s at the most, and end. Chunks that are in a queue then are lost."""
        process = self._process
        if process is None or self._owner != os.getpid():
            return
        self._send(END, b"")
        with self._changed:
            self._is_closing = not self._is_over
            self._changed.wait_for(lambda: self._is_over, CLOSE_SECONDS)
        process.kill()  # no harm if it has ended; one that hangs lets go of the pipe, and so of our threads
        process.wait()
        self._process = None

    # --- the threads ---

    def _pump(self) -> None:
        """Write the queue into the pipe. A viewer that doesn't read blocks this thread, and no other."""
        with contextlib.suppress(OSError):
            while (message := self._next()) is not None:
                (kind, data), size = message
                for part in (memoryview(HEADER.pack(kind, size)), data):
                    written = 0
                    while written < len(part):
                        written += os.write(self._input(), part[written:])
                self._taken(size)
                if kind == END:
                    break

    def _listen(self) -> None:
        """Read the lines that the process writes until it ends."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        why = "the process that sends to it has ended"
        for line in process.stdout:
            word, _, rest = line.decode(errors="replace").strip().partition(" ")
            if word == "ack":
                self._acknowledge(int(rest))
            elif word == "error":
                why = rest
        self._end(why)

    def _input(self) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def _message(self, chunk: pa.Buffer) -> tuple[int, memoryview]:
        return CHUNK, memoryview(chunk)

    def _stalled(self) -> None:
        """Do nothing: the process that sends has a watchdog of its own."""

    def _send(self, kind: int, data: bytes) -> None:
        self._put((kind, memoryview(data)), len(data))


def _probe(url: str) -> None:
    """Raise unless a gRPC server answers: open a TCP connection, and exchange the settings that HTTP/2 begins with.

    A connection alone proves nothing: the system accepts it for a process that is stopped.

    Raises:
        ConnectionError: no process listens, or it doesn't answer in time, or is no gRPC server.
    """
    address = urlsplit(url)
    seconds = CONNECT_SECONDS / 2
    try:
        with socket.create_connection((address.hostname or "127.0.0.1", address.port or 9876), seconds) as connection:
            if address.scheme != "rerun+http":
                return  # an encrypted connection: its handshake is left to Rerun
            connection.settimeout(seconds)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            answer = connection.recv(9)
    except OSError as error:
        why = f"no answer for {seconds:g} s" if isinstance(error, TimeoutError) else error
        raise ConnectionError(f"no viewer at {url}: {why}; start one with `rerun --bind 127.0.0.1`") from error
    if len(answer) < 4 or answer[3] != 4:
        raise ConnectionError(f"no viewer at {url}: what listens there is no gRPC server")
