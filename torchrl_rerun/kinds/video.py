"""Video: encoders and decoders of streams of images, without a delay.

The one module that needs PyAV, which is an extra.

Every picture gives one sample at once: no B-frames, which Rerun can't show, and no frames held back for looking ahead. So
what was dumped can be decoded, and each sample belongs to the row of its picture.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

USUAL_FPS = 30
"""Frames per second at which the viewer plays videos without a frame rate."""


def check_fps(fps: float | None) -> None:
    """Refuse frame rates that no video can have.

    Raises:
        ValueError: the frame rate is no positive number, or infinite.
    """
    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps={fps}: pass a number of frames per second, as 30")


@dataclass(frozen=True)
class Codec:
    """The encoder and the decoder of a video format.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        decoder: FFmpeg's name of the decoder. Its own of AV1 needs hardware.
        least: smallest width and height.
        options: options of the encoder.
    """

    encoder: str
    decoder: str
    least: int
    options: Mapping[str, str]


CODECS: dict[str, Codec] = {
    "h264": Codec(
        "libx264",
        "h264",
        least=2,
        # The slower presets make files half as large, and take up to five times as long. Each keyframe begins anew
        # (IDR), and carries the parameters that are needed to begin there.
        options={"preset": "ultrafast", "tune": "zerolatency", "crf": "23", "forced-idr": "1"},
    ),
    "av1": Codec(
        "libsvtav1",
        "libdav1d",
        least=4,
        # Without low delay (pred-struct=1) it keeps dozens of pictures back. One processor (lp) for each encoder. Files of
        # preset 10 are up to twice as large, and take two thirds of the time.
        options={"preset": "8", "crf": "30", "svtav1-params": "pred-struct=1:lp=1"},
    ),
}

MULTIPLE = 2
"""Width and height must be multiples of this number: colours have half the resolution."""

# SVT-AV1 prints to standard error when an encoder begins and ends. Its errors are raised anyway.
os.environ.setdefault("SVT_LOG", "0")


class Sample(NamedTuple):
    """A picture in a video.

    Attributes:
        data: bytes of the sample.
        is_keyframe: whether decoding can begin with the sample.
    """

    data: bytes
    is_keyframe: bool


class VideoEncoder:
    """Encodes the pictures of one stream of an environment.

    A keyframe comes with the first picture of each episode, and at least once a second of playback.

    Args:
        image_format: one of :data:`CODECS`.
        fps: frames per second of playback; None: unknown.

    >>> encoder = VideoEncoder("h264", fps=30)
    >>> pictures = np.zeros((3, 84, 85, 3), np.uint8)
    >>> [sample.is_keyframe for sample in encoder.encode(pictures, episodes=[0, 0, 1])]
    [True, False, True]
    """

    def __init__(self, image_format: str, fps: float | None) -> None:
        self._codec = CODECS[image_format]
        self._fps = max(1, round(fps or USUAL_FPS))
        self._context: VideoCodecContext | None = None
        self._reformatter = VideoReformatter()
        self._episode: int | None = None
        self._count = 0

    def encode(self, pictures: npt.NDArray[np.uint8], episodes: Sequence[int] | npt.NDArray[np.int64]) -> list[Sample]:
        """Return one sample for each picture.

        Odd or too small sizes are filled up at the right and below by repeating the pixels at the edge.

        Args:
            pictures: ``[n, height, width, depth]`` (1 or 3 channels), of the same size in each call.
            episodes: number of the episode of each picture, ``[n]``.
        """
        _, height, width, depth = pictures.shape
        below, right = self._missing(height), self._missing(width)
        if below or right:
            pictures = np.pad(pictures, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
        context = self._context = self._context or self._opened(height + below, width + right)
        samples = []
        for picture, episode in zip(pictures, episodes, strict=True):
            frame = self._frame(picture if depth > 1 else picture[..., 0])
            frame.pict_type = PictureType.I if episode != self._episode else PictureType.NONE
            self._episode = int(episode)
            (packet,) = context.encode(frame)
            samples.append(Sample(bytes(packet), packet.is_keyframe))
        return samples

    def _missing(self, size: int) -> int:
        return max(self._codec.least - size, -size % MULTIPLE)

    def _frame(self, picture: npt.NDArray[np.uint8]) -> av.VideoFrame:
        source = av.VideoFrame.from_numpy_buffer(
            np.ascontiguousarray(picture), format="gray" if picture.ndim == 2 else "rgb24"
        )
        frame = self._reformatter.reformat(
            source,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        frame.pts, self._count = self._count, self._count + 1
        return frame

    def _opened(self, height: int, width: int) -> VideoCodecContext:
        context = av.CodecContext.create(self._codec.encoder, "w")
        assert isinstance(context, VideoCodecContext), "the encoder makes video"
        context.height, context.width, context.pix_fmt = height, width, "yuv420p"
        context.time_base, context.framerate = Fraction(1, self._fps), Fraction(self._fps)
        context.gop_size, context.max_b_frames = self._fps, 0
        context.thread_count = 1  # the environment needs the other processors
        # Said, so that all viewers show the same colours: they guess otherwise, by the size of the picture.
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        context.options = dict(self._codec.options)
        return context


Tag = TypeVar("Tag")

Samples = Iterable[tuple[Tag, bytes, bool]]
"""Samples of a video: any tag, the bytes, and whether decoding can begin with it."""


def decoder_of(image_format: str) -> VideoCodecContext:
    """Return a decoder of a video format, which holds no pictures back."""
    decoder = av.CodecContext.create(CODECS[image_format].decoder, "r")
    decoder.thread_count = 1
    return cast("VideoCodecContext", decoder)


def decoded(image_format: str, samples: Samples[Tag], *, is_grey: bool) -> Iterator[tuple[Tag, npt.NDArray[Any]]]:
    """Return the pictures of a video with their tags, from the first keyframe on.

    Args:
        image_format: one of :data:`CODECS`.
        samples: in their order.
        is_grey: whether pictures have one channel instead of three.

    >>> encoder = VideoEncoder("h264", fps=30)
    >>> samples = encoder.encode(np.zeros((3, 84, 85, 3), np.uint8), episodes=[0, 0, 0])
    >>> [(tag, picture.shape) for tag, picture in decoded("h264", zip("abc", *zip(*samples)), is_grey=False)][2]
    ('c', (84, 86, 3))
    """
    decoder = decoder_of(image_format)
    waiting: dict[int, Tag] = {}

    def taken(frames: Iterable[av.VideoFrame]) -> Iterator[tuple[Tag, npt.NDArray[Any]]]:
        for frame in frames:
            tag = waiting.pop(cast("int", frame.pts))
            pixels = frame.to_ndarray(format="rgb24")
            yield tag, pixels[..., :1] if is_grey else pixels

    for number, (tag, data, _) in enumerate(itertools.dropwhile(lambda each: not each[2], samples)):
        waiting[number] = tag
        packet = av.Packet(data)
        packet.pts = number
        yield from taken(decoder.decode(packet))
    yield from taken(decoder.decode(None))
