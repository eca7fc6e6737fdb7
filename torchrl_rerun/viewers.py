"""Live viewers: chunks go to a process of their own, and from there over gRPC. Nothing here can hang.

Rerun's own client can: with a viewer that has stopped reading, ``send_chunks`` blocks for ever once its queue is full, and
so does the end of the program (rerun-sdk 0.41). So it runs in a process that can be killed, :mod:`torchrl_rerun.sender`,
and what the viewer doesn't take in time is dropped and counted.
"""

from __future__ import annotations

import collections
import contextlib
import functools
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
from rerun.chunk import Chunk

from torchrl_rerun.sender import CHUNK, END, GREETING, HEADER, LAYOUT

CONNECT_SECONDS = 2.0
"""How long a viewer may take to answer when the recording begins; half of it to accept, half to answer."""

STALL_SECONDS = 10.0
"""How long a viewer may take nothing before it is given up."""

CLOSE_SECONDS = 5.0
"""How long the end of the recording waits for a viewer to take the rest."""

QUEUE_BYTES = 32 << 20
"""What may wait for a viewer, in bytes; a block that comes then is dropped."""

_PIPE_BYTES = 1 << 20  # Linux's limit for processes without privileges
_SCHEMES = {"RerunHttp": "rerun+http", "RerunHttps": "rerun+https", "Rerun": "rerun"}


@dataclass(frozen=True)
class Endpoint:
    """Where a viewer is.

    Attributes:
        url: its address.
        how: what :mod:`torchrl_rerun.sender` must know: ``{"connect": url}``, or ``{"serve": [ip, port], "options": ...}``.
    """

    url: str
    how: dict[str, Any]

    @classmethod
    def of(cls, target: object) -> Endpoint:
        """The endpoint that a URL (``rerun+http://127.0.0.1:9876/proxy``) or one of Rerun's gRPC sinks stands for.

        Rerun's sinks don't say where they go to, but print it (rerun-sdk 0.41).

        Raises:
            TypeError: it is none of these.
            ValueError: it is no URL of a viewer.

        >>> Endpoint.of("rerun+http://127.0.0.1:9876/proxy") == Endpoint.of(rr.GrpcSink())
        True
        """
        if isinstance(target, rr.GrpcServerSink):
            said = re.search(
                r'bind_ip="([^"]+)", port=(\d+), server_memory_limit="([^"]+)", newest_first=(\w+)', repr(target)
            )
            if said is not None:
                options = {"server_memory_limit": said[3], "newest_first": said[4] == "true"}
                return cls(target.uri, {"serve": [said[1], int(said[2])], "options": options})
        elif isinstance(target, rr.GrpcSink):
            said = re.search(r"scheme: (\w+),\s*host: (\w+)\(\s*\"?([^\s\",]+)\"?,?\s*\),\s*port: (\d+)", repr(target))
            if said is not None:
                host = f"[{said[3]}]" if said[2] == "Ipv6" else said[3]
                url = f"{_SCHEMES.get(said[1])}://{host}:{said[4]}/proxy"
                with contextlib.suppress(RuntimeError):
                    if rr.GrpcSink(url) == target:
                        return cls(url, {"connect": url})
        elif isinstance(target, str):
            try:
                rr.GrpcSink(target)
            except RuntimeError as error:
                raise ValueError(f"{target!r} is no address of a viewer: {error}") from None
            return cls(target, {"connect": target})
        raise TypeError(f"{target!r} is no viewer; pass its URL, rerun+http://host:port/proxy")


class Viewer:
    """A viewer that is watching now.

    Args:
        endpoint: where it is.

    Attributes:
        url: its address.
        dropped_frames: frames that it was not sent, in whole or in part.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.url
        self.dropped_frames = 0
        self._how = endpoint.how
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._changed = threading.Condition()
        self._queue: collections.deque[tuple[int, memoryview]] = collections.deque()
        self._queued_bytes = 0
        self._sent = 0
        self._acknowledged = 0
        self._is_over = False
        self._is_closing = False
        self._why = ""
        self._dropping = False
        self._counted = 0

    def open(self, *, application_id: str, recording_id: str) -> None:
        """Look for the viewer, and start the process that sends to it.

        Raises:
            ConnectionError: there is no viewer, or it doesn't answer.
            OSError: the process can't be started, or the port to serve at is taken.
        """
        if "connect" in self._how:
            _probe(self.url)
        else:
            with socket.socket() as port:
                port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                port.bind(tuple(self._how["serve"]))
        hidden = ("RERUN", "_RERUN_TEST_FORCE_SAVE")  # they would send the data elsewhere
        self._process = subprocess.Popen(
            # As a file: as a module of the package it would import torch first.
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
        self._put(GREETING, json.dumps(self._how | names).encode())
        for task in (self._pump, self._listen):
            threading.Thread(target=task, name="torchrl_rerun-viewer", daemon=True).start()

    def begin(self, frames: tuple[int, int] | None) -> None:
        """Chunks come that belong together: of the frames ``[first, last)``, or of none. Whether there is room for them."""
        self._dropping = self._is_over or (frames is not None and self._queued_bytes > QUEUE_BYTES)
        if self._dropping and frames is not None:
            first, last = frames
            self.dropped_frames += max(0, last - max(first, self._counted))
            self._counted = max(self._counted, last)

    def offer(self, chunk: Chunk) -> None:
        """Take a copy of a chunk, if there is room for what it belongs to. Never waits."""
        if not self._dropping:
            self._put(CHUNK, _encoded(chunk.to_record_batch()))

    def show(self, layout: rrb.Blueprint) -> None:
        """Arrange the views by a layout."""
        self._put(LAYOUT, pickle.dumps(layout))

    def sync(self) -> None:
        """Return when the viewer has what it was offered, or is given up: after 10 s without progress at the latest."""
        with self._changed:
            while not self._is_over and self._acknowledged < self._sent:
                seen = self._acknowledged
                if not self._changed.wait_for(functools.partial(self._has_news, seen), STALL_SECONDS):
                    return

    def _has_news(self, seen: int) -> bool:
        return self._is_over or self._acknowledged != seen

    def trouble(self) -> ConnectionError | None:
        """What became of the viewer, if it takes nothing any more."""
        if not self._is_over or self._is_closing:
            return None
        return ConnectionError(
            f"the viewer at {self.url} is gone ({self._why or 'the process that sends to it has ended'})"
        )

    def close(self) -> None:
        """Send the rest, for 5 s at the most, and end. What is in a queue then is lost."""
        process = self._process
        if process is None or self._owner != os.getpid():
            return
        self._put(END, b"")
        with self._changed:
            self._is_closing = not self._is_over
            self._changed.wait_for(lambda: self._is_over, CLOSE_SECONDS)
        process.kill()  # no harm if it has ended; one that hangs lets go of the pipe, and so of our threads
        process.wait()
        self._process = None

    # --- the threads ---

    def _pump(self) -> None:
        """Write what is queued into the pipe: a viewer that doesn't read blocks this thread, and no other."""
        with contextlib.suppress(OSError):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: bool(self._queue) or self._is_over)
                    if self._is_over:
                        break
                    kind, data = self._queue.popleft()
                for part in (memoryview(HEADER.pack(kind, len(data))), data):
                    written = 0
                    while written < len(part):
                        written += os.write(self._input(), part[written:])
                self._queued_bytes -= len(data)
                if kind == END:
                    break

    def _listen(self) -> None:
        """Read what the process says until it ends."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        for line in process.stdout:
            word, _, rest = line.decode(errors="replace").strip().partition(" ")
            with self._changed:
                if word == "ack":
                    self._acknowledged = int(rest)
                elif word == "error":
                    self._why = rest
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._queue.clear()
            self._changed.notify_all()

    def _input(self) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    def _put(self, kind: int, data: bytes | pa.Buffer) -> None:
        with self._changed:
            if not self._is_over:
                self._queue.append((kind, memoryview(data)))
                self._queued_bytes += len(data)
                self._sent += kind in (CHUNK, LAYOUT)
                self._changed.notify_all()


def _probe(url: str) -> None:
    """Ask whether a gRPC server answers: a TCP connection, then the settings that HTTP/2 begins with.

    A connection alone says nothing: the system accepts it for a process that is stopped.

    Raises:
        ConnectionError: nobody listens, or who listens doesn't answer in time or speaks something else.
    """
    address = urlsplit(url)
    seconds = CONNECT_SECONDS / 2
    try:
        with socket.create_connection((address.hostname or "127.0.0.1", address.port or 9876), seconds) as connection:
            if address.scheme != "rerun+http":
                return  # encrypted: leave it at that
            connection.settimeout(seconds)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            answer = connection.recv(9)
    except OSError as error:
        why = f"no answer for {seconds:g} s" if isinstance(error, TimeoutError) else error
        raise ConnectionError(f"no viewer at {url}: {why}; start one with `rerun --bind 127.0.0.1`") from error
    if len(answer) < 4 or answer[3] != 4:
        raise ConnectionError(f"no viewer at {url}: what listens there is no gRPC server")


def _encoded(batch: pa.RecordBatch) -> pa.Buffer:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return stream.getvalue()
