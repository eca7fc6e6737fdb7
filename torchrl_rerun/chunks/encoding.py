"""Encoding: values that are encoded on several threads, and wait until there are enough of them for a chunk.

A block may hold two images of each environment: 16 environments with images of 400x600 fill it. Chunks of two images
would be mostly overhead, and the viewer would have to search thousands. So encoded images outlive their block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rerun.chunk import Chunk

from torchrl_rerun.blocks.memory import Heap, Journal, MaxAge, Memory, Record
from torchrl_rerun.chunks.encoding_threads import submit
from torchrl_rerun.chunks.losses import LossError, Losses, reason_of
from torchrl_rerun.kinds.arrow import Entity, chunks_of, times_of
from torchrl_rerun.kinds.kind import Encoded, Encoder
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.timelines import EPISODE, FRAME, LOG_TIME, Positions

FULL_BYTES = 1 << 19
"""Bytes of a chunk that is worth what a chunk costs."""

FULL_ROWS = 2048

WAITING_BYTES = 8 << 20
"""Bytes of all encoded values that may wait."""

ENCODED = "encoded"
"""The name of journals of encoded values, each record of which is a chunk, as a stream of Arrow's."""

TOGETHER = 8
"""Values of one environment that one task encodes, if each is a file by itself."""


class Encoding:
    """Has values encoded, those of several environments at the same time, and makes chunks of them.

    Args:
        fps: frames per second of simulated time; None: no ``sim_time``.
        losses: told of values that no file can hold.
        max_age: how long a value waits before it is due.
        memory: where the values that wait are copied to. Default: nowhere.
    """

    def __init__(self, fps: float | None, losses: Losses, *, max_age: MaxAge, memory: Memory | None = None) -> None:
        self._memory = memory or Heap()
        self._fps = fps
        self._losses = losses
        self._max_age = max_age
        self._queues: dict[str, EncodedQueue] = {}

    def queue_for(self, path: str, stream: Stream) -> EncodedQueue | None:
        """Return the queue that encodes values of a stream at an entity; None if values of this stream are not encoded.

        Args:
            path: the entity path.
            stream: the stream.

        Raises:
            LossError: the kind failed to make an encoder.
        """
        queue = self._queues.get(path)
        if queue is None:
            try:
                encoder = stream.kind.encoder(stream, self._fps)
            except Exception as error:
                raise LossError(reason_of(stream, error, "encoder")) from error
            if encoder is not None:
                journal = self._memory.journal(ENCODED)
                queue = self._queues[path] = EncodedQueue(
                    path, stream, encoder, fps=self._fps, losses=self._losses, journal=journal
                )
        return queue

    def finish(self) -> None:
        """Return when all that was added is encoded, or raise what went wrong with it."""
        for queue in self._queues.values():
            queue.finish()

    def keep(self) -> None:
        """Copy the values that wait to where they outlive the process."""
        if self._memory.is_kept:
            for queue in self._queues.values():
                queue.keep()

    def due(self, now: int) -> Iterator[Chunk]:
        """Yield chunks of entities with enough values for one; of all entities if the oldest value is due or too many wait.

        Args:
            now: nanoseconds since the epoch.
        """
        oldest = min((first[LOG_TIME] for first in self._firsts()), default=now)
        if now - oldest > 1e9 * self._max_age.seconds(self._memory) or self.waiting_bytes > WAITING_BYTES:
            yield from self.flush()
            return
        for queue in self._queues.values():
            if queue.is_full:
                yield from queue.chunks()

    def flush(self) -> Iterator[Chunk]:
        """Yield chunks of all values that wait."""
        self.finish()
        for queue in self._queues.values():
            if queue.first is not None:
                yield from queue.chunks()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the values that wait."""
        return sum(queue.bytes for queue in tuple(self._queues.values()))

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame of which a value waits. None: no value waits."""
        return min((int(first[FRAME]) for first in self._firsts()), default=None)

    def _firsts(self) -> list[Positions]:
        """Return the position of the first value of each entity. Called on other threads, too."""
        return [first for queue in tuple(self._queues.values()) if (first := queue.first) is not None]


class EncodedQueue:
    """The values of one entity that are being encoded, or wait for a chunk.

    Attributes:
        bytes: size of the encoded values. Other threads read this and ``first``.
    """

    def __init__(
        self, path: str, stream: Stream, encoder: Encoder, *, fps: float | None, losses: Losses, journal: Journal
    ) -> None:
        self._journal = journal
        self._kept = 0  # of the files
        self._path = path
        self._stream = stream
        self._fps = fps
        self._losses = losses
        self._encoder = encoder
        self._encoding: list[tuple[Future[Encoded], Positions]] = []
        self._files: list[bytes] = []
        self._keyframes: list[bool] = []
        self._positions: list[Positions] = []  # a piece for each time that some were added
        self.bytes = 0

    @property
    def first(self) -> Positions | None:
        """Position of the first value, ``[6]``. None: no value waits."""
        positions = self._positions
        return positions[0][0] if positions else None

    @property
    def is_full(self) -> bool:
        """Whether the values are worth a chunk."""
        return self.bytes >= FULL_BYTES or len(self._files) >= FULL_ROWS

    def add(self, rows: npt.NDArray[Any], positions: Positions) -> None:
        """Begin to encode rows.

        Args:
            rows: the values, ``[n, *stream.row_shape]``. They must stay as they are until :meth:`finish` returns.
            positions: positions of the rows, ``[n, 6]``.
        """
        if self._encoder.is_in_order:
            self.finish()  # each goes on where the one before it ended
        together = len(rows) if self._encoder.is_in_order else TOGETHER
        for at in range(0, len(rows), together):
            part = slice(at, at + together)
            task = functools.partial(self._encoder.encode, rows[part], positions[part, EPISODE])
            self._encoding.append((submit(task), positions[part]))

    def finish(self) -> None:
        """Wait until all rows are encoded, and take them in order."""
        for future, positions in self._encoding:
            try:
                files, keyframes, lost = _whole(future.result(), len(positions))
            except Exception as error:
                if self._encoder.is_in_order:
                    raise  # what follows can't be encoded without it
                self._losses.add(self._stream.key, positions[:, FRAME], reason_of(self._stream, error, "encode"))
                continue
            for at, why in lost.items():
                self._losses.add(self._stream.key, positions[at : at + 1, FRAME], why)
            if not files:
                continue
            self._files += files
            self._keyframes += keyframes
            self._positions.append(np.delete(positions, list(lost), axis=0) if lost else positions)
            self.bytes += sum(map(len, files))
        self._encoding.clear()

    def keep(self) -> None:
        """Add a chunk of the values that came since the last call to the journal."""
        first = self._kept
        if first == len(self._files):
            return
        self._kept = len(self._files)
        records = []
        for chunk in self._chunks(slice(first, None)):
            batch = chunk.to_record_batch()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            records.append(Record({}, {"chunk": np.frombuffer(sink.getvalue(), np.uint8)}))
        self._journal.append(records)

    def chunks(self) -> Iterator[Chunk]:
        """Yield a chunk of all values. They are forgotten when the next chunk is asked for: this one is kept by then."""
        yield from self._chunks(slice(None))
        self._files, self._keyframes, self._positions = [], [], []
        self._kept = self.bytes = 0
        self._journal.clear()

    def _chunks(self, part: slice) -> list[Chunk]:
        """Return a chunk of some of the values; none if they can't be stored."""
        positions = np.concatenate(self._positions)[part]
        try:
            columns = self._encoder.columns(self._files[part], self._keyframes[part])
            return list(chunks_of(times_of(positions, self._fps), [Entity(self._path, columns)]))
        except Exception as error:
            self._losses.add(self._stream.key, positions[:, FRAME], reason_of(self._stream, error, "columns"))
            return []


def _whole(encoded: Encoded, count: int) -> Encoded:
    """Return encoded values, or raise if there is not a file or a reason for each."""
    if len(encoded.files) + len(encoded.lost) != count:
        raise ValueError(f"{len(encoded.files)} files of {count} values")
    return encoded
