"""Pictures: encoded images, which wait until there are enough of them for a chunk.

A block holds few pictures of many environments: two, if 16 have images of 400x600. A chunk of so few would be larger by
what a chunk costs than by what is in it, and the viewer would have to find its way among thousands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rerun.chunk import Chunk

from torchrl_rerun.arrow import Column, Entity, blobs, chunks_of, lists, times_of
from torchrl_rerun.episodes import EPISODE, FRAME, LOG_TIME, Positions
from torchrl_rerun.images import channels_last, channels_of, encode
from torchrl_rerun.streams import Stream

if TYPE_CHECKING:
    from torchrl_rerun.video import VideoEncoder

FULL_BYTES = 1 << 19
"""Bytes of a chunk that is worth its cost."""

FULL_ROWS = 2048

WAITING_BYTES = 8 << 20
"""Bytes of all pictures that may wait."""


class Pictures:
    """Encodes images, on the writer's thread, and makes chunks of them.

    Args:
        fps: frames per second of simulated time; None: no ``sim_time``.
        max_age: seconds after which a picture is due.
    """

    def __init__(self, fps: float | None, *, max_age: float) -> None:
        self._fps = fps
        self._max_age = max_age * 1e9
        self._piles: dict[str, _Pile] = {}

    def add(self, path: str, stream: Stream, rows: npt.NDArray[Any], positions: Positions) -> None:
        """Encode images.

        Args:
            path: the entity path.
            stream: the stream.
            rows: the images, ``[n, *stream.row_shape]``.
            positions: where they are, ``[n, 5]``.
        """
        pile = self._piles.get(path)
        if pile is None:
            pile = self._piles[path] = _Pile(path, stream, self._fps)
        pile.add(rows, positions)

    def due(self, now: int) -> Iterator[Chunk]:
        """Chunks of those that are enough for one, and of all when the oldest is too old or there are too many.

        Args:
            now: nanoseconds since the epoch.
        """
        oldest = min((first[LOG_TIME] for first in self._firsts()), default=now)
        if now - oldest > self._max_age or self.waiting_bytes > WAITING_BYTES:
            yield from self.rest()
            return
        for pile in self._piles.values():
            if pile.is_full:
                yield from pile.chunks()

    def rest(self) -> Iterator[Chunk]:
        """Chunks of all that wait."""
        for pile in self._piles.values():
            if pile.first is not None:
                yield from pile.chunks()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the pictures that wait."""
        return sum(pile.bytes for pile in tuple(self._piles.values()))

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame of which a picture waits; None: there is none."""
        return min((int(first[FRAME]) for first in self._firsts()), default=None)

    def _firsts(self) -> list[Positions]:
        """Where the first picture of each pile is that has any. Also asked on other threads."""
        return [first for pile in tuple(self._piles.values()) if (first := pile.first) is not None]


class _Pile:
    """The pictures of one entity that wait.

    Attributes:
        bytes: their size. This and ``first`` are looked at from other threads.
    """

    def __init__(self, path: str, stream: Stream, fps: float | None) -> None:
        self._path = path
        self._stream = stream
        self._fps = fps
        self._encoder = _video_encoder(stream, fps) if stream.is_video else None
        self._files: list[bytes] = []
        self._keyframes: list[bool] = []
        self._positions: list[Positions] = []  # a piece for each time that some were added
        self.bytes = 0

    @property
    def first(self) -> Positions | None:
        """Where the first of them is, ``[5]``; None: there are none."""
        positions = self._positions
        return positions[0][0] if positions else None

    @property
    def is_full(self) -> bool:
        """Whether they are worth a chunk."""
        return self.bytes >= FULL_BYTES or len(self._files) >= FULL_ROWS

    def add(self, rows: npt.NDArray[Any], positions: Positions) -> None:
        """Encode some."""
        stream = self._stream
        if self._encoder is not None:
            samples = self._encoder.encode(channels_last(rows, stream.channels), positions[:, EPISODE])
            files = [sample.data for sample in samples]
            self._keyframes += [sample.is_keyframe for sample in samples]
        else:
            assert stream.image_format is not None, "it is an image"
            varying = stream.dtype == "object"
            stacks = [channels_last(row[None], channels_of(row) if varying else stream.channels) for row in rows]
            files = [encode(stack[0], stream.image_format) for stack in stacks]
        self._files += files
        self._positions.append(positions)
        self.bytes += sum(map(len, files))

    def chunks(self) -> Iterator[Chunk]:
        """A chunk of all of them. They are forgotten when the next one is asked for: then it is with the sink."""
        count = len(self._files)
        values = lists(blobs(self._files), count)
        if self._encoder is not None:
            is_keyframe = lists(pa.array(self._keyframes), count)
            columns = [
                Column("VideoStream:sample", "VideoStream", "VideoSample", values),
                Column("VideoStream:is_keyframe", "VideoStream", "IsKeyframe", is_keyframe),
            ]
        else:
            columns = [Column("EncodedImage:blob", "EncodedImage", "Blob", values)]
        times = times_of(np.concatenate(self._positions), self._fps)
        yield from chunks_of(times, [Entity(self._path, columns)])
        self._files, self._keyframes, self._positions = [], [], []
        self.bytes = 0


def _video_encoder(stream: Stream, fps: float | None) -> VideoEncoder:
    from torchrl_rerun.video import VideoEncoder  # noqa: PLC0415 - PyAV is an extra

    assert stream.image_format is not None, "a video is an image"
    return VideoEncoder(stream.image_format, fps)
