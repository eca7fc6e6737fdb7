"""Decoding: pictures, out of the files of a recording, one after the other."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr
from PIL import Image

from torchrl_rerun.kinds.exact import EXACT
from torchrl_rerun.kinds.pixels import ARCHETYPES, COLOR_MODELS
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.rows import PICTURES, VALUES, with_any
from torchrl_rerun.rrd.copies import copies_among, say_copies
from torchrl_rerun.rrd.reader import FilePart, parts_in

if TYPE_CHECKING:
    import av
    from av.video.codeccontext import VideoCodecContext

_DECODERS: Mapping[str, str] = {"h264": "h264", "av1": "libdav1d"}
"""FFmpeg's decoders of the video formats. Its own of AV1 needs hardware."""

_DEPTHS = {model.value: depth for depth, model in COLOR_MODELS.items()}


@dataclass(frozen=True)
class Track:
    """The pictures of one camera of one environment (and agent), wherever they are stored.

    Attributes:
        files: the recording's files that may hold some, in their order.
        path: the entity path.
        stream: how they were recorded.
        env: the environment's index.
        lane: position of the agent.
        fps: frames per second of simulated time; None: unknown.
    """

    files: tuple[Path, ...]
    path: str
    stream: Stream
    env: int
    lane: int
    fps: float | None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the pictures; None: they vary."""
        return _size(self.stream)


def _size(stream: Stream) -> tuple[int, int] | None:
    if stream.is_of_any_size:
        return None
    height, width, _ = stream.picture_shape
    return height, width


class Picture(NamedTuple):
    """A picture as it was seen.

    Attributes:
        frame: when.
        episode: the number of its environment's episode.
        episode_step: steps of the episode before it.
        pixels: ``[height, width, depth]``, channels last however they were recorded, and of the recorded size.
    """

    frame: int
    episode: int
    episode_step: int
    pixels: npt.NDArray[Any]


class Stored(NamedTuple):
    """A picture as it is stored: encoded, but for raw ones, which are decoded with no more work.

    Attributes:
        frame: when it was seen.
        episode: the number of its environment's episode.
        episode_step: steps of the episode before it.
        data: a sample of a video, a file, or pixels.
        is_keyframe: whether it can be decoded without those before it.
    """

    frame: int
    episode: int
    episode_step: int
    data: bytes | npt.NDArray[Any]
    is_keyframe: bool

    @property
    def sample(self) -> bytes:
        """The sample, of a video."""
        return cast("bytes", self.data)


def tracks_of(files: Sequence[Path]) -> list[Track]:
    """All pictures in some files. What is of one recording and at one path is one track; copies count once.

    Args:
        files: the files, those of one recording in the order in which they were begun.

    Raises:
        ValueError: a file can't be read, or there is nothing in it.
    """
    found: dict[tuple[Path, str, str], Track] = {}
    said = [each for file in files for each in parts_in(file)]
    copies = copies_among(said)
    say_copies(copies)
    for part in said:
        if (part.file, part.recording_id) in copies:
            continue
        for track in _tracks(part):
            key = part.file.parent, part.recording_id, track.path
            before = found[key].files if key in found else ()
            found[key] = dataclasses.replace(track, files=(*before, part.file))
    return list(found.values())


def _tracks(part: FilePart) -> Iterator[Track]:
    schema = part.schema
    if schema is None:
        return
    for stream, _ in schema.described:
        if stream.kind == "image":
            for env in schema.envs[:1] if stream.shared else schema.envs:
                for lane in range(stream.lanes):
                    path = schema.path_of(stream, env, lane)
                    yield Track((part.file,), path, stream, env, lane, schema.source.fps)


def stored(track: Track) -> Iterator[Stored]:
    """What is stored of a track, without decoding it, a chunk at a time in memory."""
    for part in (part for file in track.files for part in parts_in(file)):
        for batch in part.chunks(track.path):
            yield from stored_in(batch)


def stored_in(batch: pa.RecordBatch) -> Iterator[Stored]:
    """What is stored in some rows of a track. Values of a key of pictures that are none are left out."""
    names = set(batch.schema.names)
    if names.isdisjoint(PICTURES) and not names.isdisjoint(VALUES):
        return
    batch = with_any(batch, PICTURES)
    times = zip(*(batch.column(name).to_pylist() for name in ("frame", "episode", "episode_step")), strict=True)
    for (frame, episode, step), (data, is_keyframe) in zip(times, _values(batch), strict=True):
        yield Stored(frame, episode, step, data, is_keyframe)


def pictures(track: Track) -> Iterator[Picture]:
    """The pictures of a track, decoded."""
    return decoded(track.stream, stored(track))


def decoded(stream: Stream, coming: Iterable[Stored]) -> Iterator[Picture]:
    """Pictures, decoded.

    A video whose first sample isn't a keyframe, as in a part of a recording by itself, begins with the next one.

    Args:
        stream: how they were recorded.
        coming: what is stored of them.
    """
    size = _size(stream)
    for each in _video(stream, coming) if stream.is_video else _stills(coming):
        if size is not None:
            height, width = size  # video is filled up to sizes that its codec can have
            yield each._replace(pixels=each.pixels[:height, :width])
        else:
            yield each


def _stills(coming: Iterable[Stored]) -> Iterator[Picture]:
    for each in coming:
        pixels = np.asarray(Image.open(io.BytesIO(each.data))) if isinstance(each.data, bytes) else each.data
        yield Picture(*each[:3], pixels[..., None] if pixels.ndim == 2 else pixels)


def from_keyframe(coming: Iterable[Stored]) -> Iterator[Stored]:
    """What comes from the first keyframe on: nothing before it can be decoded."""
    return itertools.dropwhile(lambda each: not each.is_keyframe, coming)


def decoder_of(image_format: str) -> VideoCodecContext:
    """A decoder of a video format, which holds no pictures back.

    Raises:
        ImportError: PyAV is missing.
    """
    import av  # noqa: PLC0415 - an extra

    decoder = av.CodecContext.create(_DECODERS[image_format], "r")
    decoder.thread_count = 1
    return cast("VideoCodecContext", decoder)


def _video(stream: Stream, coming: Iterable[Stored]) -> Iterator[Picture]:
    import av  # noqa: PLC0415 - an extra

    assert stream.image_format is not None, "it is a video"
    decoder = decoder_of(stream.image_format)
    is_grey = stream.channels == "HW" or stream.row_shape[0 if stream.channels == "CHW" else -1] == 1
    waiting: dict[int, Stored] = {}

    def taken(frames: Iterable[av.VideoFrame]) -> Iterator[Picture]:
        for frame in frames:
            each = waiting.pop(cast("int", frame.pts))
            pixels = frame.to_ndarray(format="rgb24")
            yield Picture(*each[:3], pixels[..., :1] if is_grey else pixels)

    for number, each in enumerate(from_keyframe(coming)):
        waiting[number] = each
        packet = av.Packet(each.sample)
        packet.pts = number
        yield from taken(decoder.decode(packet))
    yield from taken(decoder.decode(None))


def _values(batch: pa.RecordBatch) -> Iterator[tuple[bytes | npt.NDArray[Any], bool]]:
    """What is stored in each row, and whether it can be decoded by itself.

    Raises:
        ValueError: it is stored in no way that is known.
    """
    names = set(batch.schema.names)
    if "VideoStream:sample" in names:
        keyframes = batch.column("VideoStream:is_keyframe").flatten().to_pylist()
        samples = _bytes(batch.column("VideoStream:sample"))
        yield from zip((sample.tobytes() for sample in samples), keyframes, strict=True)
        return
    if "EncodedImage:blob" in names:
        yield from ((file.tobytes(), True) for file in _bytes(batch.column("EncodedImage:blob")))
        return
    archetype = next((each for each in ARCHETYPES.values() if f"{each}:buffer" in names), None)
    if archetype is None:
        raise ValueError(f"there are no pictures in {', '.join(sorted(names))}")
    formats = batch.column(f"{archetype}:format").flatten().to_pylist()
    # What the viewer would show wrongly is there once more as it was.
    exact = batch.column(EXACT) if EXACT in names else [pa.scalar(None)] * len(batch)
    for buffer, said, numbers in zip(_bytes(batch.column(f"{archetype}:buffer")), formats, exact, strict=True):
        if numbers.is_valid:
            pixels = numbers.values.to_numpy(zero_copy_only=False)
        else:
            pixels = buffer.view(rr.ChannelDatatype(said["channel_datatype"]).to_np_dtype())
        yield pixels.reshape(said["height"], said["width"], _DEPTHS.get(said["color_model"], 1)), True


def _bytes(column: pa.ListArray) -> Iterator[npt.NDArray[np.uint8]]:
    """The one value of each row, without a copy."""
    values = column.flatten()
    data, ends = values.values.to_numpy(), values.offsets.to_numpy()
    return (data[first:last] for first, last in itertools.pairwise(ends))
