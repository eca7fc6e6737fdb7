"""Image: pictures in the colours of a camera, raw, as PNG or JPEG files, or as video."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr

from torchrl_rerun.kinds import stacks, stills
from torchrl_rerun.kinds.arrow import Column, blobs, lists
from torchrl_rerun.kinds.exact import exact_column
from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.kind import Encoded, Encoder
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.picture import (
    COLOR_MODELS,
    FLOATS,
    Channels,
    ImageFormat,
    Picture,
    Stored,
    Tag,
    channels_of,
    each_bytes,
)
from torchrl_rerun.kinds.streams import Stream

if TYPE_CHECKING:
    from torchrl_rerun.kinds.video import VideoEncoder

IMAGE_FORMATS: tuple[str, ...] = get_args(ImageFormat)
VIDEO_FORMATS = {"h264": rr.VideoCodec.H264, "av1": rr.VideoCodec.AV1}

Stack = Literal["all", "newest", "none"]
"""What is recorded of a stack of frames: all of them side by side, the newest one, or the array as it is."""

QUALITY = 90

BLOB, SAMPLE, KEYFRAME = "EncodedImage:blob", "VideoStream:sample", "VideoStream:is_keyframe"


@dataclass(frozen=True)
class Image(Picture):
    """Pictures in the colours of a camera: uint8 or float, with 1, 3 or 4 channels, or stacks of such frames.

    Args:
        format: ``"raw"`` and ``"png"`` are exact; ``"jpeg"``, ``"h264"`` and ``"av1"`` are not. Images that a format can't
            hold are stored in another one: floats ``"raw"``, four channels ``"png"``, images that vary in size
            ``"jpeg"`` instead of video. Default: the ``image_format`` of the recorder.
        quality: of JPEG files, 1 to 95.
        stack: ``"all"`` records stacks of frames side by side, ``"newest"`` their newest frame alone; with ``"none"`` an image
            is no stack.
        channels: where the channels are: ``"HWC"``, ``"CHW"`` or ``"HW"``. Default: as the shape says.
        frames: number of frames of a stack. Default: as the environment or the shape says.

    Raises:
        ValueError: an option is out of its range.

    >>> Image("png").format
    'png'
    >>> Image("jpeg", quality=100)
    Traceback (most recent call last):
    ValueError: quality=100: pass 1 to 95, as Pillow has them; format='png' loses nothing
    """

    name = "image"
    archetype = "Image"
    components = (SAMPLE, BLOB, "Image:buffer")
    is_camera: ClassVar[bool] = True
    is_bulky: ClassVar[bool] = True

    format: ImageFormat | None = None
    quality: int = QUALITY
    stack: Stack = "all"
    frames: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.frames, bool) or not isinstance(self.frames, int) or self.frames < 0:
            raise ValueError(f"frames={self.frames!r}: pass the number of frames in a stack, a whole number")
        if self.format is not None and self.format not in IMAGE_FORMATS:
            raise ValueError(f"format={self.format!r}: choose one of {', '.join(map(repr, IMAGE_FORMATS))}")
        if not isinstance(self.quality, int) or isinstance(self.quality, bool):
            raise TypeError(f"quality={self.quality!r} is of type {type(self.quality).__name__}; pass a whole number")
        if not 1 <= self.quality <= stills.MAX_QUALITY:
            raise ValueError(
                f"quality={self.quality}: pass 1 to {stills.MAX_QUALITY}, as Pillow has them; format='png' loses nothing"
            )
        if self.stack not in get_args(Stack):
            raise ValueError(f"stack={self.stack!r}: choose one of {', '.join(map(repr, get_args(Stack)))}")

    # --- recognised ---

    @classmethod
    def recognised(cls, leaf: Leaf) -> Self | None:
        if not leaf.is_array:
            return None
        is_image = channels_of(leaf.row_shape) is not None and _is_looked_at(leaf.row_dtype, leaf.row_shape)
        return cls() if is_image or stacks.frames_in(leaf) else None

    def fitted(self, leaf: Leaf) -> Self:
        if not leaf.is_array:
            raise ValueError(
                f"kinds[{name_of(leaf.key)}] = 'image' doesn't fit: non-tensor data that is no array can only be 'text'"
            )
        shape = leaf.row_shape
        frames = self.frames or (0 if self.stack == "none" else stacks.frames_in(leaf))
        if self.stack == "newest" and not frames:
            raise self.misfit(
                leaf,
                f"{leaf.dtype} of shape {shape} with stack='newest': stacks of frames are images [frames, H, W] or "
                "[frames, H, W, C], or frames along the channels",
            )
        channels = self._stacked_channels(leaf, frames) if frames else self.channels_in(leaf)
        if (not channels and not frames) or leaf.row_dtype not in ("uint8", *FLOATS):
            raise self.misfit(
                leaf,
                f"{leaf.row_dtype} of shape {shape}; an image is uint8 or float with 1, 3 or 4 channels, or a stack of such "
                "frames",
            )
        stored = self._possible_format(leaf, channels, frames)
        return replace(
            self,
            format=stored,
            quality=self.quality if stored == "jpeg" else QUALITY,
            stack=self.stack if frames else "all",
            channels=channels,
            frames=frames,
        )

    def _stacked_channels(self, leaf: Leaf, frames: int) -> Channels:
        """Return where a stack of frames keeps its channels.

        Raises:
            ValueError: the shape has no such stack.
        """
        shape = leaf.row_shape
        channels = self.channels or stacks.axes_of(shape) or ""
        if len(shape) == 4 and channels:
            depth, fits = shape[1] if channels == "CHW" else shape[-1], shape[0] == frames
        elif len(shape) == 3 and channels in ("CHW", "HWC"):
            depth, rest = divmod(shape[0] if channels == "CHW" else shape[-1], frames)
            fits = rest == 0
        else:
            depth, fits = 0, False
        if not fits or depth not in COLOR_MODELS:
            raise self.misfit(leaf, f"shape {shape} as a stack of {frames} frames with 1, 3 or 4 channels")
        return channels

    def _possible_format(self, leaf: Leaf, channels: Channels, frames: int) -> ImageFormat:
        """Return the format that is asked for, or one that can hold the images.

        - Floats are raw.
        - JPEG and video have no alpha channel: such images are PNG, which keeps every bit.
        - A video has pictures of one size, and non-tensor data may have others.
        """
        wanted = self.format or "jpeg"
        if leaf.row_dtype != "uint8":
            return "raw"
        shape = leaf.row_shape[1:] if len(leaf.row_shape) == 4 else leaf.row_shape
        depth = 1 if channels == "HW" else shape[0] if channels == "CHW" else shape[-1] if shape else 3
        if frames and len(leaf.row_shape) == 3:
            depth //= frames
        if depth == 4 and wanted not in ("raw", "png"):
            return "png"
        return "jpeg" if wanted in VIDEO_FORMATS and (leaf.dtype == "object" or leaf.varies) else wanted

    def check(self) -> None:
        """Raise ImportError if a video format is asked for and PyAV is missing."""
        if self.is_video:
            try:
                importlib.import_module("torchrl_rerun.kinds.video")
            except ImportError as error:
                raise ImportError(
                    f"image_format={self.format!r} needs PyAV: pip install 'torchrl-rerun[video]', or choose 'jpeg'"
                ) from error

    # --- stored ---

    @property
    def is_video(self) -> bool:
        """Whether images are stored as a video."""
        return self.format in VIDEO_FORMATS

    @property
    def takes_newest(self) -> bool:
        """Whether only the newest frame of a stack is recorded."""
        return self.frames > 0 and self.stack == "newest"

    def is_of_any_size(self, stream: Stream) -> bool:
        """Return whether images of any size are stored as images: each by itself, and not as a stack or in a video."""
        return stream.is_object and not self.frames and not self.is_video

    def holds(self, stream: Stream, value: Any) -> bool:
        """Return whether an array can be stored as the images of a stream are.

        >>> images = Image("jpeg", channels="CHW")
        >>> stream = Stream(("pixels",), images, "object", ())
        >>> images.holds(stream, np.zeros((3, 9, 8), np.uint8)), images.holds(stream, np.zeros((9, 8, 3), np.uint8))
        (True, False)
        """
        if not self.is_of_any_size(stream):
            return super().holds(stream, value)
        if not isinstance(value, np.ndarray) or value.ndim != (2 if self.channels == "HW" else 3) or not value.size:
            return False
        depth = 1 if self.channels == "HW" else value.shape[0 if self.channels == "CHW" else -1]
        if self.format == "raw":
            return depth in COLOR_MODELS and value.dtype.name in ("uint8", *FLOATS)
        return value.dtype == np.uint8 and depth in ((1, 3) if self.format == "jpeg" else COLOR_MODELS)

    def columns(self, stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
        if rows.dtype == object:
            return self.raw_of_any_size([self.as_pictures(stream, rows[i : i + 1])[0] for i in range(len(rows))])
        pictures = self.as_pictures(stream, rows)
        if pictures.dtype.kind == "f" and (pictures < 0).any():
            return self.raw(shown(pictures), exact_column(pictures))
        return self.raw(pictures)

    def encoder(self, stream: Stream, fps: float | None) -> Encoder | None:
        if self.format == "raw":
            return None
        return _AsVideo(self, stream, fps) if self.is_video else _AsStills(self, stream)

    def static(self, stream: Stream, agent: int) -> Iterable[Any]:
        """Return the codec of a video, or the media type of the files."""
        del stream, agent
        if self.format == "raw":
            return ()
        if self.is_video:
            return rr.VideoStream.columns(codec=[VIDEO_FORMATS[str(self.format)]])
        return rr.EncodedImage.columns(media_type=[stills.MEDIA_TYPES[str(self.format)]])

    def as_pictures(self, stream: Stream, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return rows as pictures that can be shown. Frames of a stack are side by side, or the newest one alone.

        >>> stack = Image(channels="CHW", frames=4)
        >>> stream = Stream(("pixels",), stack, "uint8", (4, 84, 96))
        >>> stack.as_pictures(stream, np.zeros((5, 4, 84, 96), np.uint8)).shape
        (5, 84, 384, 1)
        """
        if not self.frames:
            return super().as_pictures(stream, rows)
        frames = stacks.frames_of(np.stack(list(rows)) if rows.dtype == object else rows, self.frames, self.channels)
        return np.ascontiguousarray(frames[:, -1]) if self.takes_newest else stacks.side_by_side(frames)

    # --- read back ---

    def stored(self, batch: pa.RecordBatch) -> Iterator[tuple[bytes | npt.NDArray[Any], bool]]:
        names = set(batch.schema.names)
        if SAMPLE in names:
            keyframes = batch.column(KEYFRAME).flatten().to_pylist()
            yield from zip((sample.tobytes() for sample in each_bytes(batch.column(SAMPLE))), keyframes, strict=True)
        elif BLOB in names:
            yield from ((file.tobytes(), True) for file in each_bytes(batch.column(BLOB)))
        else:
            yield from super().stored(batch)

    def decoded(self, stream: Stream, coming: Iterable[Stored[Tag]]) -> Iterator[tuple[Tag, npt.NDArray[Any]]]:
        """Return pictures as they were shown.

        A video whose first sample isn't a keyframe, as in a part of a recording by itself, begins with the next one.
        """
        if not self.is_video:
            for tag, data, _ in coming:
                yield tag, stills.decode(data) if isinstance(data, bytes) else data
            return
        from torchrl_rerun.kinds.video import decoded  # noqa: PLC0415 - PyAV is an extra

        samples = ((tag, cast("bytes", data), is_keyframe) for tag, data, is_keyframe in coming)
        is_grey = self.channels == "HW" or stream.row_shape[0 if self.channels == "CHW" else -1] == 1
        yield from decoded(str(self.format), samples, is_grey=is_grey)

    def size(self, stream: Stream) -> tuple[int, int, int] | None:
        """Return height, width and depth of each picture as it is shown; None: they vary.

        >>> stack = Image(channels="CHW", frames=4)
        >>> stack.size(Stream(("pixels",), stack, "uint8", (4, 84, 96)))
        (84, 384, 1)
        """
        if not self.frames:
            return super().size(stream)
        shape = stream.row_shape
        frame = shape[1:] if len(shape) == 4 else shape
        depth, height, width = frame if self.channels == "CHW" else (frame[2], *frame[:2])
        beside = 1 if self.takes_newest else self.frames
        return height, width * beside, depth if len(shape) == 4 else depth // self.frames

    def row(self, stream: Stream, picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a picture as the row that it was made of; of a stack whose newest frame alone was recorded that frame.

        >>> stack = Image(channels="CHW", frames=4)
        >>> stack.row(Stream(("pixels",), stack, "uint8", (4, 84, 96)), np.zeros((84, 384, 3), np.uint8)).shape
        (4, 84, 96)
        """
        size = self.size(stream)
        if not self.frames or size is None:
            return super().row(stream, picture)
        height, width, depth = size
        beside = 1 if self.takes_newest else self.frames
        return stacks.stack_in(picture[:height, :width, :depth], beside, self.channels, len(stream.row_shape))

    def recorded_shape(self, stream: Stream) -> tuple[int, ...]:
        """Return the shape of one row as it is read back: of a stack perhaps one frame."""
        if not self.takes_newest:
            return stream.row_shape
        axis = 0 if len(stream.row_shape) == 4 or self.channels == "CHW" else 2
        shape = list(stream.row_shape)
        shape[axis] //= self.frames
        return tuple(shape)

    # --- told ---

    def options(self, image_format: str | None = None) -> Self:
        """Return the format and its quality: rows read back may have other shapes than those that were recorded."""
        return type(self)(self.format if image_format is None else cast("ImageFormat", image_format), self.quality)

    def to_schema(self) -> dict[str, Any]:
        told = {
            "image_format": self.format,
            "jpeg_quality": self.quality if self.format == "jpeg" else 0,
            "channels": self.channels,
            "stack": self.frames,
            "newest": self.takes_newest,
        }
        return {name: value for name, value in told.items() if value}

    @classmethod
    def from_schema(cls, fields: Mapping[str, Any]) -> Self:
        return cls(
            fields.get("image_format", "raw"),
            fields.get("jpeg_quality", QUALITY),
            "newest" if fields.get("newest") else "all",
            channels=fields.get("channels", ""),
            frames=fields.get("stack", 0),
        )


class _AsStills:
    """Encodes images as files, one by one."""

    is_in_order = False

    def __init__(self, kind: Image, stream: Stream) -> None:
        self._kind, self._stream = kind, stream
        self._quality = kind.quality if kind.format == "jpeg" else None

    def encode(self, rows: npt.NDArray[Any], episodes: npt.NDArray[np.int64]) -> Encoded:
        del episodes
        files, lost = [], {}
        for i in range(len(rows)):  # they may vary in size
            try:
                files.append(stills.encode(self._kind.as_pictures(self._stream, rows[i : i + 1])[0], self._quality))
            except Exception as error:  # a side of more than 65,535 pixels, for one
                lost[i] = f"a picture of shape {rows[i].shape} can't be encoded ({error})"
        return Encoded(files, [], lost)

    def columns(self, files: Sequence[bytes], keyframes: Sequence[bool]) -> list[Column]:
        del keyframes
        return [Column(BLOB, "EncodedImage", "Blob", lists(blobs(files), len(files)))]


class _AsVideo:
    """Encodes images as the samples of a video."""

    is_in_order = True

    def __init__(self, kind: Image, stream: Stream, fps: float | None) -> None:
        from torchrl_rerun.kinds.video import VideoEncoder  # noqa: PLC0415 - PyAV is an extra

        self._kind, self._stream = kind, stream
        self._encoder: VideoEncoder = VideoEncoder(str(kind.format), fps)

    def encode(self, rows: npt.NDArray[Any], episodes: npt.NDArray[np.int64]) -> Encoded:
        samples = self._encoder.encode(self._kind.as_pictures(self._stream, rows), episodes)
        return Encoded([sample.data for sample in samples], [sample.is_keyframe for sample in samples], {})

    def columns(self, files: Sequence[bytes], keyframes: Sequence[bool]) -> list[Column]:
        return [
            Column(SAMPLE, "VideoStream", "VideoSample", lists(blobs(files), len(files))),
            Column(KEYFRAME, "VideoStream", "IsKeyframe", lists(pa.array(keyframes), len(files))),
        ]


def shown(pictures: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return pictures of floats, some below 0, as 8-bit ones in which 0 is grey, and -1 and 1 are black and white.

    The viewer takes floats for what they are from 0 to 1 and from 0 to 255. Anything else it stretches from the least to
    the greatest of each picture, and of colours shows pale ones; it can't be told better (rerun-sdk 0.41).

    Args:
        pictures: ``[n, height, width, depth]``. One with numbers beyond -1 and 1 is scaled by the largest of them.
    """
    with np.errstate(over="ignore"):  # numbers that float32 can't hold are as infinite
        numbers = np.nan_to_num(pictures.astype(np.float32), posinf=0, neginf=0)
    largest = np.maximum(np.abs(numbers).max(axis=(1, 2, 3), keepdims=True), 1)
    eight_bit: npt.NDArray[np.uint8] = np.rint((numbers / largest + 1) * 127.5).astype(np.uint8)
    return eight_bit


def _is_looked_at(dtype: str, shape: tuple[int, ...]) -> bool:
    """Return whether data of this dtype and image-like shape is meant to be looked at, and is no matrix of numbers."""
    if dtype == "uint8":
        return len(shape) == 3 or min(shape) > 4
    if dtype in FLOATS:
        return len(shape) == 3 and sorted(shape)[1] > 4
    return False
