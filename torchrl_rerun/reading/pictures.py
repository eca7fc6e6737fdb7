"""Pictures: read from the files of a recording, one after the other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.kinds.picture import Picture as PictureKind
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.rows import naming_damage, values_of, with_any
from torchrl_rerun.rrd.copies import copies_among, warn_of_copies
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.openable import folder_of
from torchrl_rerun.rrd.reader import parts_in


@dataclass(frozen=True)
class CameraTrack:
    """The pictures of one camera of one environment (and agent), in all files of a recording.

    Attributes:
        files: files of the recording that may hold pictures, in their order.
        path: the entity path.
        stream: the stream.
        env: environment index.
        agent: position of the agent.
        fps: frames per second of simulated time; None: unknown.
    """

    files: tuple[Path, ...]
    path: str
    stream: Stream
    env: int
    agent: int
    fps: float | None

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the pictures; None: they vary."""
        size = kind_of(self.stream).size(self.stream)
        return None if size is None else size[:2]


def kind_of(stream: Stream) -> PictureKind:
    """Return the kind of a stream of pictures."""
    kind = stream.kind
    assert isinstance(kind, PictureKind), "the stream is one of pictures"
    return kind


def is_video(stream: Stream) -> bool:
    """Return whether pictures can be decoded only after those before them."""
    return kind_of(stream).is_video


def row_of(stream: Stream, picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a decoded picture ``[height, width, depth]`` as the row that it was made of."""
    return kind_of(stream).row(stream, picture)


class Picture(NamedTuple):
    """A picture.

    Attributes:
        frame: number of the frame.
        episode: number of the environment's episode.
        episode_step: number of steps of the episode before the frame.
        pixels: ``[height, width, depth]`` of the recorded size. Channels come last, wherever they were recorded.
    """

    frame: int
    episode: int
    episode_step: int
    pixels: npt.NDArray[Any]


class EncodedPicture(NamedTuple):
    """A picture as it is stored.

    Attributes:
        frame: number of the frame.
        episode: number of the environment's episode.
        episode_step: number of steps of the episode before the frame.
        data: sample of a video, file, or pixels of a raw picture.
        is_keyframe: whether the picture can be decoded without those before it.
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


def camera_tracks(files: Sequence[Path]) -> list[CameraTrack]:
    """Return the cameras in some files. One recording and one entity path make one track; copies count once.

    Args:
        files: the files. Those of one recording are in the order in which they were begun.

    Raises:
        ValueError: a file can't be read, or is empty.
    """
    found: dict[tuple[Path, str, str], CameraTrack] = {}
    said = [each for file in files for each in parts_in(file)]
    copies = copies_among(said)
    warn_of_copies(copies)
    for part in said:
        if (part.file, part.recording_id) in copies:
            continue
        for track in _tracks(part):
            key = folder_of(part.file), part.recording_id, track.path
            before = found[key].files if key in found else ()
            found[key] = dataclasses.replace(track, files=(*before, part.file))
    return list(found.values())


def _tracks(part: FilePart) -> Iterator[CameraTrack]:
    schema = part.schema
    if schema is None:
        return
    for stream, _ in schema.described:
        if stream.kind.is_camera:
            for env in schema.envs[:1] if stream.shared else schema.envs:
                for agent in range(stream.agent_count):
                    path = schema.path_of(stream, env, agent)
                    yield CameraTrack((part.file,), path, stream, env, agent, schema.source.fps)


def stored(track: CameraTrack) -> Iterator[EncodedPicture]:
    """Yield the pictures of a track as they are stored, with one chunk at a time in memory."""
    for part in (part for file in track.files for part in parts_in(file)):
        for batch in part.chunks(track.path):
            yield from encoded_in(track.stream, batch)


def encoded_in(stream: Stream, batch: pa.RecordBatch) -> Iterator[EncodedPicture]:
    """Return the pictures in some rows as they are stored, without values of the key that are no pictures.

    Raises:
        ValueError: the rows hold no values that are known.
    """
    kind, names = kind_of(stream), set(batch.schema.names)
    if names.isdisjoint(kind.components):
        if names.isdisjoint(values_of(stream)):
            raise ValueError(f"there are no pictures in {', '.join(sorted(names))}")
        return
    batch = with_any(batch, kind.components)
    times = zip(*(batch.column(name).to_pylist() for name in ("frame", "episode", "episode_step")), strict=True)
    with naming_damage(stream):
        pictures = list(kind.stored(batch))
    for (frame, episode, step), (data, is_keyframe) in zip(times, pictures, strict=True):
        yield EncodedPicture(frame, episode, step, data, is_keyframe)


def pictures(track: CameraTrack) -> Iterator[Picture]:
    """Yield the pictures of a track."""
    return decoded(track.stream, stored(track))


def decoded(stream: Stream, coming: Iterable[EncodedPicture]) -> Iterator[Picture]:
    """Yield decoded pictures.

    A video whose first sample isn't a keyframe, as in a part of a recording by itself, begins with the next one.

    Args:
        stream: the stream.
        coming: the pictures as they are stored.
    """
    kind = kind_of(stream)
    size = kind.size(stream)
    for each, pixels in kind.decoded(stream, ((each, each.data, each.is_keyframe) for each in coming)):
        # Video is filled up to sizes that its codec can have.
        yield Picture(*each[:3], pixels if size is None else pixels[: size[0], : size[1]])


def from_keyframe(coming: Iterable[EncodedPicture]) -> Iterator[EncodedPicture]:
    """Return pictures from the first keyframe on: nothing before it can be decoded."""
    return itertools.dropwhile(lambda each: not each.is_keyframe, coming)
