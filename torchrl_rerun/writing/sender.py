"""Sender: a process that sends chunks to a viewer. It may hang or be killed without harm to the process that records.

The module is run as a file, and imports Rerun and Arrow alone. Messages come on its standard input, each a kind, a size and so
many bytes: first the greeting, then chunks and layouts, at last the end. On its standard output it writes lines: ``ack N`` (the
viewer has the first N messages after the greeting) and ``error TEXT`` (nothing more is sent, and why).
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import struct
import threading
import time
from io import RawIOBase
from types import TracebackType
from typing import Any, NoReturn

HEADER = struct.Struct("<BQ")
GREETING, CHUNK, LAYOUT, END = range(4)

UNFLUSHED_BYTES = 8 << 20
"""Bytes that are given to Rerun's client before it is flushed."""

SERVED_SECONDS = 0.5
"""Seconds that a server stays after the end, so that connected viewers get the rest."""


def _read_exactly(source: RawIOBase, size: int) -> bytearray | None:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        count = source.readinto(view[at:])
        if not count:
            return None
        at += count
    return data


def _read_message(source: RawIOBase) -> tuple[int, bytearray]:
    """Return the kind and the bytes of the next message; that of the end if the other side is gone."""
    header = _read_exactly(source, HEADER.size)
    if header is None:
        return END, bytearray()
    kind, size = HEADER.unpack(header)
    data = _read_exactly(source, size)
    return (END, bytearray()) if data is None else (kind, data)


def _say(line: str) -> None:
    os.write(1, (line.replace("\n", " ")[:1000] + "\n").encode())


def _leave(error: str | None = None) -> NoReturn:
    """End at once: Rerun's clean-up at the end of a program may take for ever."""
    try:
        if error is not None:
            _say(f"error {error}")
    finally:
        os._exit(0 if error is None else 1)


class _Watchdog:
    """Ends the process if a call takes too long, or if its parent is gone and the rest takes too long.

    A fork of the parent keeps the pipe open, so that an open pipe doesn't prove that the parent lives. Ticks are counted, not
    seconds of the clock: none passes while this process is suspended.
    """

    TICK = 0.25

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._spent: float | None = None
        self._orphaned = 0.0
        self._parent = os.getppid()
        threading.Thread(target=self._run, daemon=True).start()

    def __enter__(self) -> None:
        self._spent = 0.0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._spent = None

    def _run(self) -> None:
        while True:
            time.sleep(self.TICK)
            if self._spent is not None:
                self._spent += self.TICK
                if self._spent > self._seconds:
                    _leave(f"it took nothing for {self._seconds:g} s")
            if os.getppid() != self._parent:
                self._orphaned += self.TICK
                if self._orphaned > self._seconds:
                    os._exit(1)


def _connected(rr: Any, greeting: dict[str, Any]) -> Any:
    stream = rr.RecordingStream(
        greeting["application_id"], recording_id=greeting["recording_id"], send_properties=False, default_enabled=True
    )
    if "connect" in greeting:
        stream.set_sinks(rr.GrpcSink(greeting["connect"]))
    else:
        stream.set_sinks(rr.GrpcServerSink(*greeting["serve"], **greeting["options"]))
    return stream


def main() -> NoReturn:
    """Send the messages that come until the end comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this
    # Imported here, and before the first message comes: other modules import this one for its constants.
    import pyarrow as pa  # noqa: PLC0415
    import rerun as rr  # noqa: PLC0415
    from rerun.chunk import Chunk  # noqa: PLC0415

    source = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - for as long as the process lives
    kind, data = _read_message(source)
    if kind != GREETING:
        _leave()
    greeting: dict[str, Any] = json.loads(data)
    patience = float(greeting["stall_seconds"])
    watch = _Watchdog(patience)
    with watch:
        stream = _connected(rr, greeting)
        stream.flush(timeout_sec=patience)

    messages: queue.Queue[tuple[int, bytearray]] = queue.Queue(maxsize=2)

    def receive() -> None:
        while True:
            message = _read_message(source)
            messages.put(message)
            if message[0] == END:
                return

    threading.Thread(target=receive, daemon=True).start()
    taken = unflushed = 0
    while True:
        if unflushed and (messages.empty() or unflushed > UNFLUSHED_BYTES):
            with watch:
                stream.flush(timeout_sec=patience)
            unflushed = 0
            _say(f"ack {taken}")
        kind, data = messages.get()
        if kind == END:
            break
        with watch:
            if kind == LAYOUT:
                stream.send_blueprint(pickle.loads(data))  # noqa: S301 - from the process that started this one
            else:
                batch = pa.ipc.open_stream(pa.py_buffer(data)).read_next_batch()
                stream.send_chunks(list(Chunk.from_record_batch(batch)))
        taken += 1
        unflushed += len(data) + 1
    with watch:
        stream.flush(timeout_sec=patience)
        if "connect" in greeting:
            stream.disconnect()
        else:
            time.sleep(SERVED_SECONDS)
    _say(f"ack {taken + 1}")
    _leave()


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:  # the parent is told of any error
        _leave("it takes nothing" if "timed out" in str(error).lower() else str(error) or type(error).__name__)
