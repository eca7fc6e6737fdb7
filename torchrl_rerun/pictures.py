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
            pile = self._piles[path] = _Pile(stream, self._fps)
        pile.add(rows, positions)

    def due(self, now: int) -> Iterator[Chunk]:
        """Chunks of those that are enough for one, and of all when the oldest is too old or there are too many.

        Args:
            now: nanoseconds since the epoch.
        """
        oldest = min((pile.positions[0][0, LOG_TIME] for pile in self._piles.values() if pile.positions), default=now)
        if now - oldest > self._max_age or self.waiting_bytes > WAITING_BYTES:
            yield from self.rest()
            return
        for path, pile in self._piles.items():
            if pile.is_full:
                yield from pile.chunks(path, self._fps)

    def rest(self) -> Iterator[Chunk]:
        """Chunks of all that wait."""
        for path, pile in self._piles.items():
            if pile.positions:
                yield from pile.chunks(path, self._fps)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the pictures that wait."""
        return sum(pile.bytes for pile in tuple(self._piles.values()))

    @property
    def oldest_waiting(self) -> int | None:
        """Number of the first frame of which a picture waits; None: there is none."""
        return min(
            (pile.first_frame for pile in tuple(self._piles.values()) if pile.first_frame is not None), default=None
        )


class _Pile:
    """The pictures of one entity that wait.

    Attributes:
        positions: where they are, a piece for each time that some were added.
        first_frame: the frame of the first; None: there are none. This and ``bytes`` are looked at from other threads.
        bytes: their size.
    """

    def __init__(self, stream: Stream, fps: float | None) -> None:
        self._stream = stream
        self._encoder = _video_encoder(stream, fps) if stream.is_video else None
        self._files: list[bytes] = []
        self._keyframes: list[bool] = []
        self.positions: list[Positions] = []
        self.first_frame: int | None = None
        self.bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether they are worth a chunk."""
        return self.bytes >= FULL_BYTES or len(self._files) >= FULL_ROWS

    def add(self, rows: npt.NDArray[Any], positions: Positions) -> None:
        """Encode some."""
        stream = self._stream
        if self.first_frame is None:
            self.first_frame = int(positions[0, FRAME])
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
        self.positions.append(positions)
        self.bytes += sum(map(len, files))

    def chunks(self, path: str, fps: float | None) -> Iterator[Chunk]:
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
        positions = np.concatenate(self.positions)
        yield from chunks_of(times_of(positions, fps), [Entity(path, columns)])
        self._files, self._keyframes, self.positions = [], [], []
        self.first_frame, self.bytes = None, 0


def _video_encoder(stream: Stream, fps: float | None) -> VideoEncoder:
    from torchrl_rerun.video import VideoEncoder  # noqa: PLC0415 - PyAV is an extra

    assert stream.image_format is not None, "a video is an image"
    return VideoEncoder(stream.image_format, fps)
