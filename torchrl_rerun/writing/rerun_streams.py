"""Recording streams of the user's own, to which both the user and the recorder log.

rerun-sdk 0.41: if no process takes what a stream sends, or the disk is full, its queue fills up until ``send_chunks`` blocks for
ever, and so does the end of the program. So a stream is flushed every few megabytes, and given up if that fails.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import multiprocessing
import os
import threading
import time
import uuid
import weakref
from typing import Any

import pyarrow as pa
import rerun as rr
import rerun.blueprint as rrb
from rerun.chunk import Chunk

from torchrl_rerun.kinds.exact import EXACT, are_exact_floats
from torchrl_rerun.kinds.schema import PROPERTIES_ENTITY, RECORDING_INFO
from torchrl_rerun.writing.live import CLOSE_SECONDS, STALL_SECONDS, LiveSink
from torchrl_rerun.writing.sender import UNFLUSHED_BYTES

FLUSH_SECONDS = 2.5
"""Seconds of one flush. A stream that takes nothing is flushed again and again until it is given up."""

_INSTEAD = "append the recorder to the batched environment, or give it a file or the URL of a viewer"


class NoStreamError(ConnectionError):
    """There is no recording stream to record to."""


class OutOfReachError(NoStreamError):
    """A recording stream exists, or may exist, in another process."""


class UsersStream:
    """A recording stream that the user made, or made the active one.

    It can be copied within its process. In other processes, such as the workers of a batched environment, it can't be found.

    Args:
        stream: the stream; None: the one that is active when a recording begins.

    Attributes:
        label: its name in messages.
    """

    def __init__(self, stream: rr.RecordingStream | None) -> None:
        self.label = "the active recording" if stream is None else f"the recording stream {application_id_of(stream)!r}"
        self._process = os.getpid()
        self._token = None if stream is None else uuid.uuid4().hex
        self._stream = stream
        if self._token is not None and stream is not None:
            _of_this_process[self._token] = stream

    def found(self) -> rr.RecordingStream:
        """Return the stream.

        Raises:
            OutOfReachError: it lives in another process.
            NoStreamError: there is no active recording.
        """
        is_active = self._token is None
        stream = rr.get_data_recording() if is_active else self._stream
        if stream is not None and not stream.to_native().is_forked_child():
            return stream
        if multiprocessing.parent_process() is not None or self._process != os.getpid():
            what = "there is no active recording" if is_active else f"{self.label} can't be had"
            raise OutOfReachError(f"{what} in a process of its own: {_INSTEAD}")
        raise NoStreamError(
            "there is no active recording: call rr.init(...) before the environment is reset, or pass a sink"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}  # a stream can be neither pickled nor copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self._token is not None and self._process == os.getpid():
            self._stream = _of_this_process.get(self._token)


_of_this_process: weakref.WeakValueDictionary[str, rr.RecordingStream] = weakref.WeakValueDictionary()


def application_id_of(stream: rr.RecordingStream) -> str:
    """Return the id by which the viewer groups the recordings of a stream."""
    return rr.get_application_id(stream) or ""


class LiveStream(LiveSink):
    """A recording stream of the user's that gets the chunks of a recording. It stays open when the recording ends.

    Args:
        stream: the stream.
        label: its name in messages.
        envs: the indices of the environments that are recorded.
        is_sole: whether no other sink keeps the recording.
    """

    FATE = "was given up"

    def __init__(self, stream: rr.RecordingStream, label: str, envs: range, *, is_sole: bool) -> None:
        super().__init__(label, is_sole=is_sole)
        self._stream = stream
        self._part = _Part(os.getpid(), stream.get_recording_id(), envs)
        self._is_open = False
        self._thread: threading.Thread | None = None

    def open(self, *, application_id: str, recording_id: str) -> None:
        """Begin to take chunks, under the ids that the stream has itself.

        Raises:
            OSError: another recorder has environments of these indices in the stream.
        """
        del application_id, recording_id
        for other in _taken:
            if self._part.is_in_the_way_of(other):
                raise OSError(
                    f"{self.label} holds env_{other.envs[0]} of another recorder: give each a recording stream of its own (of "
                    "one application_id, to see them together), or append one recorder to a batched environment"
                )
        _taken.append(self._part)
        if self._stream not in _recorded_to:
            atexit.unregister(rr.rerun_shutdown)
            _recorded_to.append(self._stream)
        self._is_open = True
        self._thread = threading.Thread(target=self._pump, name="torchrl_rerun-stream", daemon=True)
        self._thread.start()

    def offer(self, chunk: Chunk) -> None:
        """Take a copy of a chunk, unless it names the recording: the user names the stream."""
        if chunk.entity_path != f"/{PROPERTIES_ENTITY}/{RECORDING_INFO}":
            super().offer(chunk)

    def show(self, layout: rrb.Blueprint) -> None:
        """Arrange the views by a layout."""
        self._put(layout, 0)

    def close(self) -> None:
        """Pass on the rest, for 5 s at the most, and let go of the stream."""
        if not self._is_open:
            return
        self._is_open = False
        self._put(None, 0)
        with self._changed:
            self._is_closing = not self._is_over
            self._changed.wait_for(lambda: self._is_over, CLOSE_SECONDS)
        if not self._is_over:
            self._stalled()
        if self._thread is not None:
            self._thread.join(2 * FLUSH_SECONDS)  # within Rerun's client it would crash when the interpreter ends
        _taken.remove(self._part)

    def _message(self, chunk: pa.Buffer) -> pa.Buffer:
        return chunk

    def _pump(self) -> None:
        """Pass on the queue. A stream that blocks this thread blocks no other."""
        passed = unflushed = 0
        try:
            while True:
                if unflushed and (not self._queue or unflushed > UNFLUSHED_BYTES):
                    self._flush()
                    self._acknowledge(passed)
                    unflushed = 0
                following = self._next()
                if following is None:
                    return
                message, size = following
                if message is None:
                    break
                if isinstance(message, rrb.Blueprint):
                    self._stream.send_blueprint(message)
                else:
                    batch = pa.ipc.open_stream(message).read_next_batch()
                    self._stream.send_chunks(list(Chunk.from_record_batch(beside_the_users(batch))))
                self._taken(size)
                passed += 1
                unflushed += size + 1
            self._acknowledge(passed + 1)
            self._end()
        except Exception as error:
            self._end(str(error))

    def _flush(self) -> None:
        """Wait until all chunks that were passed on have arrived.

        Raises:
            RuntimeError: they haven't, for so long that the stream is given up.
        """
        waited = 0.0
        while True:
            began = time.monotonic()
            try:
                self._stream.flush(timeout_sec=FLUSH_SECONDS)
            except RuntimeError as error:
                waited += FLUSH_SECONDS
                if "severed" in str(error) or waited >= STALL_SECONDS or self._is_over:
                    raise
                time.sleep(max(0.0, began + FLUSH_SECONDS - time.monotonic()))
            else:
                return

    def _stalled(self) -> None:
        self._end(f"it took nothing for {CLOSE_SECONDS if self._is_closing else STALL_SECONDS:g} s")

    def _end(self, why: str = "") -> None:
        super()._end(why)
        if why:
            _given_up.append(self._stream)


def beside_the_users(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch in which numbers to plot are Rerun's ``Scalar`` components.

    rerun-sdk 0.41: in one recording the viewer plots either columns that claim to be ``Scalar``s, or those that don't. The
    user's do. ``Scalar`` is float64; numbers that float64 doesn't hold to the bit are kept in a second column.
    """
    at = batch.schema.get_field_index("Scalars:scalars")
    if at < 0:
        return batch
    field, held = batch.schema.field(at), batch.column(at)
    plotted = held.cast(pa.list_(pa.float64()), safe=False)  # large integers are rounded
    metadata = {**field.metadata, b"rerun:component_type": b"rerun.components.Scalar"}
    changed = batch.set_column(at, pa.field(field.name, plotted.type, metadata=metadata), plotted)
    if not are_exact_floats(held.flatten().to_numpy(zero_copy_only=False)):
        exact = {b"rerun:kind": b"data", b"rerun:component": EXACT.encode()}
        return changed.append_column(pa.field(EXACT, held.type, metadata=exact), held)
    return changed


@dataclasses.dataclass(frozen=True)
class _Part:
    """A recorder's part of a recording stream."""

    process: int
    recording_id: str | None
    envs: range

    def is_in_the_way_of(self, other: _Part) -> bool:
        return (
            (self.process, self.recording_id) == (other.process, other.recording_id)
            and self.envs.start < other.envs.stop
            and other.envs.start < self.envs.stop
        )


_taken: list[_Part] = []


_recorded_to: list[rr.RecordingStream] = []
"""All streams that were recorded to. Rerun may wait for ever when a stream is collected as garbage, so none is."""

_given_up: list[rr.RecordingStream] = []


def _end_rerun() -> None:
    """End Rerun's client at the end of the program, in 10 s at the most.

    rerun-sdk 0.41: the client waits for ever for a viewer that has stopped reading, both when a stream is collected as garbage
    and at the end of the program, even if a flush has succeeded.
    """
    if not _recorded_to:
        return
    end = threading.Thread(target=rr.rerun_shutdown, daemon=True)
    if not _given_up:
        end.start()
        end.join(STALL_SECONDS)
    if _given_up or end.is_alive():
        for stream in _recorded_to:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))


atexit.register(_end_rerun)  # registered before any recorder, so that recorders are closed before it runs
