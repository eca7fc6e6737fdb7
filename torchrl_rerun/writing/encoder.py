"""Pictures: images, encoded on several threads, which wait until there are enough of them for a chunk.

A block holds few pictures of many environments: two, if 16 have images of 400x600. A chunk of so few would be larger by
what a chunk costs than by what is in it, and the viewer would have to find its way among thousands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rerun.chunk import Chunk

from torchrl_rerun.kinds.arrow import Column, Entity, blobs, chunks_of, lists, times_of
from torchrl_rerun.kinds.losses import Losses
from torchrl_rerun.kinds.pixels import encode, pictures_of
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.threads import submit
from torchrl_rerun.kinds.timelines import EPISODE, FRAME, LOG_TIME, Positions

if TYPE_CHECKING:
    from torchrl_rerun.kinds.video import VideoEncoder

FULL_BYTES = 1 << 19
"""Bytes of a chunk that is worth its cost."""

FULL_ROWS = 2048

WAITING_BYTES = 8 << 20
"""Bytes of all pictures that may wait."""

STILLS = 8
"""Pictures of one environment that are encoded in one go, where each is a file by itself."""


class Pictures:
    """Has images encoded, those of several environments at the same time, and makes chunks of them.

    Args:
        fps: frames per second of simulated time; None: no ``sim_time``.
        losses: told of pictures that no file can hold.
        max_age: seconds after which a picture is due.
    """

    def __init__(self, fps: float | None, losses: Losses, *, max_age: float) -> None:
        self._fps = fps
        self._losses = losses
        self._max_age = max_age * 1e9
        self._piles: dict[str, _Pile] = {}

    def add(self, path: str, stream: Stream, rows: npt.NDArray[Any], positions: Positions) -> None:
        """Begin to encode images.

        Args:
            path: the entity path.
            stream: the stream.
            rows: the images, ``[n, *stream.row_shape]``. They must stay as they are until :meth:`settle` returns.
            positions: where they are, ``[n, 5]``.
        """
        pile = self._piles.get(path)
        if pile is None:
            pile = self._piles[path] = _Pile(path, stream, self._fps, self._losses)
        pile.add(rows, positions)

    def settle(self) -> None:
        """Return when all that was added is encoded, or raise what went wrong with it."""
        for pile in self._piles.values():
            pile.settle()

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
        self.settle()
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


class _Encoded(NamedTuple):
    """What became of some pictures.

    Attributes:
        files: a file each, or a sample of a video.
        keyframes: of a video, whether decoding can begin with it.
        lost: those that no file can hold, and why.
    """

    files: list[bytes]
    keyframes: list[bool]
    lost: dict[int, str]


class _Pile:
    """The pictures of one entity that wait.

    Attributes:
        bytes: their size. This and ``first`` are looked at from other threads.
    """

    def __init__(self, path: str, stream: Stream, fps: float | None, losses: Losses) -> None:
        self._path = path
        self._stream = stream
        self._fps = fps
        self._losses = losses
        self._encoder = _video_encoder(stream, fps) if stream.is_video else None
        self._encoding: list[tuple[Future[_Encoded], Positions]] = []
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
        """Begin to encode some."""
        if self._encoder is not None:
            self.settle()  # a video goes on where it was
            episodes = positions[:, EPISODE]
            self._begin(functools.partial(_as_video, self._encoder, self._stream, rows, episodes), positions)
            return
        for at in range(0, len(rows), STILLS):
            part = slice(at, at + STILLS)
            self._begin(functools.partial(_as_stills, self._stream, rows[part]), positions[part])

    def _begin(self, task: Callable[[], _Encoded], positions: Positions) -> None:
        self._encoding.append((submit(task), positions))

    def settle(self) -> None:
        """Take what is encoded, in order."""
        for future, positions in self._encoding:
            files, keyframes, lost = future.result()
            for at, why in lost.items():
                self._losses.add(self._stream.key, positions[at : at + 1, FRAME], why)
            if not files:
                continue
            self._files += files
            self._keyframes += keyframes
            self._positions.append(np.delete(positions, list(lost), axis=0) if lost else positions)
            self.bytes += sum(map(len, files))
        self._encoding.clear()

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


def _as_video(
    encoder: VideoEncoder, stream: Stream, rows: npt.NDArray[Any], episodes: npt.NDArray[np.int64]
) -> _Encoded:
    samples = encoder.encode(pictures_of(stream, rows), episodes)
    return _Encoded([sample.data for sample in samples], [sample.is_keyframe for sample in samples], {})


def _as_stills(stream: Stream, rows: npt.NDArray[Any]) -> _Encoded:
    files, lost = [], {}
    for i in range(len(rows)):  # they may vary in size
        try:
            files.append(encode(pictures_of(stream, rows[i : i + 1])[0], stream.jpeg_quality))
        except Exception as error:  # a side of more than 65,535 pixels, for one
            lost[i] = f"a picture of shape {rows[i].shape} ({error})"
    return _Encoded(files, [], lost)


def _video_encoder(stream: Stream, fps: float | None) -> VideoEncoder:
    from torchrl_rerun.kinds.video import VideoEncoder  # noqa: PLC0415 - PyAV is an extra

    assert stream.image_format is not None, "a video is an image"
    return VideoEncoder(stream.image_format, fps)
