"""Export of pictures to mp4 files: a video of each environment, or of all environments side by side.

Recorded video is copied; other pictures are encoded. PyAV, which encodes, is an extra.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer
from PIL import Image

from torchrl_rerun.export.renaming import Wish, distinct, dotted
from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.streams import env_path
from torchrl_rerun.kinds.video import USUAL_FPS, VideoEncoder, check_fps, decoder_of
from torchrl_rerun.paths import format_path, make_absolute
from torchrl_rerun.reading.pictures import (
    CameraTrack,
    EncodedPicture,
    Picture,
    camera_tracks,
    from_keyframe,
    is_video,
    pictures,
    stored,
)
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.openable import folder_of, whole_files_of
from torchrl_rerun.rrd.reader import parts_in

GRID_SIZE = (2160, 3840)
"""Greatest height and width of a grid: few players can show larger videos."""

_FORMAT = "h264"
_SHAPE = 16 / 9
_OF_RECORDING = re.compile(r"(?:\.worker_\d+)?(?:\.resumed_\d+)?(?:\.part_\d+)?$")

Item = TypeVar("Item")
Progress = Callable[[Iterable[Item], int | None], Iterable[Item]]


@dataclass(frozen=True)
class Video:
    """A video to be written.

    Attributes:
        path: the file.
        tracks: the pictures in it. Each of several tracks gets a cell of a grid.
        fps: frames per second; None: unknown.
    """

    path: Path
    tracks: tuple[CameraTrack, ...]
    fps: float | None


@dataclass(frozen=True)
class Exported:
    """A video that was written.

    Attributes:
        path: the file.
        pictures: the number of pictures in it.
        size: its width and height.
        recorded_size: width and height of the recorded pictures.
        fps: frames per second.
        is_copy: whether the recorded video was copied, and nothing encoded.
        left_out: the number of pictures at the beginning that can't be decoded, since they came before a keyframe.
    """

    path: Path
    pictures: int
    size: tuple[int, int]
    recorded_size: tuple[int, int]
    fps: float
    is_copy: bool
    left_out: int


# --- which videos ---


def videos_of(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    envs: Sequence[int] | None = None,
    keys: Sequence[str] | None = None,
    grid: bool = False,
    fps: float | None = None,
    overwrite: bool = False,
) -> list[Video]:
    """Return the videos of a recording: one of each environment, camera and agent, or a grid of each camera.

    The name of a video is the recording, the environment, the key and the agent, as far as there are several of these,
    joined by ``.``, in letters, digits, ``_`` and ``-``. If two videos would have one name, the one that sorts later gets
    ``_2`` at its end, with a warning.

    Args:
        path: the recording, or a folder of them.
        out: a folder, or a file that ends in ``.mp4`` for the only video. Default: beside each recording.
        envs: indices of the environments. Default: all.
        keys: the keys of the cameras, nested ones as ``"agents/pixels"``. Default: all.
        grid: one video of all environments.
        fps: frames per second. Default: those of the recording.
        overwrite: replace files that exist.

    Raises:
        FileNotFoundError: there is no recording.
        FileExistsError: a video exists, and ``overwrite`` is false.
        IndexError: there is no such environment.
        KeyError: there is no such camera.
        ValueError: a file can't be read, there are no pictures, several videos would be one file, or ``fps`` isn't
            positive.
    """
    root = make_absolute(path)
    found = camera_tracks(whole_files_of(root))
    check_fps(fps)
    found = [track for track in found if _rows(track)]  # in a file that isn't finished some may have none yet
    if not found:
        raise ValueError(
            f"{format_path(root)} holds no pictures that RerunRecorder recorded: `torchrl-rerun replay --render` adds some"
        )
    chosen = _chosen(found, envs, keys)
    named = _named(found, root, grid=grid)
    videos = [
        Video(_place(root, tracks[0], name, out), kept, fps or tracks[0].fps)
        for name, tracks in named
        if (kept := tuple(track for track in tracks if track in chosen))
    ]
    if not videos:
        raise ValueError(f"{format_path(root)} holds no pictures of that environment under that key")
    if out is not None and Path(out).suffix == ".mp4":
        if len(videos) > 1:
            raise ValueError(f"{len(videos)} videos can't all be {out}: {_advice(videos, root, grid=grid)}")
        videos = [dataclasses.replace(videos[0], path=make_absolute(out))]
    there = [video.path for video in videos if video.path.exists()]
    if there and not overwrite:
        exist = f" and {len(there) - 1} more exist" if len(there) > 1 else " exists"
        raise FileExistsError(
            f"{format_path(there[0])}{exist} already: choose another place with --out, or pass --overwrite"
        )
    return videos


def _advice(videos: Sequence[Video], root: Path, *, grid: bool) -> str:
    """Return what to do if there are several videos, and the path of one."""
    firsts = [video.tracks[0].files[0] for video in videos]
    recordings = {(folder_of(file), _OF_RECORDING.sub("", file.stem)) for file in firsts}
    if root.is_dir() and len(recordings) > 1:
        return (
            f"each of the {len(recordings):,} recordings in {format_path(root)} has its own. Choose one of them, or give a "
            "folder for the videos"
        )
    if grid:
        return "each camera has a grid of its own. Choose one with --key, or give a folder for the videos"
    return "choose one with --env and --key, or --grid, or give a folder"


def _chosen(found: Sequence[CameraTrack], envs: Sequence[int] | None, keys: Sequence[str] | None) -> set[CameraTrack]:
    known_envs = sorted({track.env for track in found})
    known_keys = list(dict.fromkeys("/".join(track.stream.key) for track in found))
    for env in envs or ():
        if env not in known_envs:
            raise IndexError(f"there are no pictures of environment {env}, but of {', '.join(map(str, known_envs))}")
    for key in keys or ():
        if key not in known_keys:
            raise KeyError(f"there are no pictures under {key!r}, but under {', '.join(map(repr, known_keys))}")
    return {
        track for track in found if (not envs or track.env in envs) and (not keys or "/".join(track.stream.key) in keys)
    }


def _named(found: Sequence[CameraTrack], root: Path, *, grid: bool) -> Iterator[tuple[str, list[CameraTrack]]]:
    """Return the names of the videos, each with its tracks: a name says the environment, the camera and the agent."""
    recordings: dict[tuple[Path, str], list[CameraTrack]] = {}
    for track in found:
        recording = _OF_RECORDING.sub("", track.files[0].stem) if root.is_dir() else root.stem
        recordings.setdefault((folder_of(track.files[0]), recording), []).append(track)
    videos: dict[tuple[Path, Any], list[CameraTrack]] = {}
    wishes: dict[Path, dict[Any, Wish]] = {}
    for (folder, recording), tracks in recordings.items():
        one_env = len({track.env for track in tracks}) == 1
        one_key = len({track.stream.key for track in tracks}) == 1
        for number, track in enumerate(tracks):
            key, agents = track.stream.key, track.stream.agents[track.agent : track.agent + 1]
            parts = [
                *env_path(None if one_env or grid else track.env),
                *([] if one_key else key),
                *([] if grid else agents),
            ]
            # An environment may record again after `close()`: that recording is another video.
            owner = recording, key, *(() if grid else (track.env, track.agent, number))
            told = f"{name_of(key)}{'' if grid else f' of environment {track.env}'} in {recording}"
            videos.setdefault((folder, owner), []).append(track)
            wishes.setdefault(folder, {})[owner] = dotted(owner, told, parts, stem=recording)
    names = {folder: distinct(wished.values(), "file names") for folder, wished in wishes.items()}
    return ((names[folder][owner], tracks) for (folder, owner), tracks in videos.items())


def _place(root: Path, track: CameraTrack, name: str, out: str | os.PathLike[str] | None) -> Path:
    """Return the path of a video: beside its recording, or at the same place below another folder."""
    folder = folder_of(track.files[0])
    if out is not None:
        folder = make_absolute(out) / (folder.relative_to(root) if root.is_dir() else "")
    return folder / f"{name}.mp4"


# --- writing one ---


def write_video(video: Video, progress: Progress[Any] = lambda items, _: items) -> Exported:
    """Write a video. It gets its name when it is whole.

    A picture is shown at the time ``frame / fps``, until the next one of its environment. In a grid each cell shows the
    last picture of its environment, and is black before the first.

    Args:
        video: the video.
        progress: called with the pictures and their number; yields the pictures one by one.

    Raises:
        OSError: the file can't be written.
        ValueError: the pictures are of several sizes, or there are none; or the path is no regular file.
    """
    fps = video.fps or float(USUAL_FPS)
    total = sum(map(_rows, video.tracks))
    first = video.tracks[0]
    is_copy = len(video.tracks) == 1 and is_video(first.stream)
    codec = str(first.stream.kind.format) if is_copy else _FORMAT
    counted = _Counted()
    if is_copy:
        coming = from_keyframe(counted.all(progress(stored(first), total)))
    elif len(video.tracks) == 1:
        coming = encoded(progress(pictures(first), total), fps)
    else:
        coming = encoded(_grid(video.tracks, lambda seen: progress(seen, total)), fps)
    begun = next(coming, None)
    if begun is None:
        raise ValueError(f"{format_path(first.files[0])} holds no pictures at {first.path}")
    with (
        written_aside(video.path, overwrite=True) as hidden,  # `videos_of` has checked that it may be replaced
        av.open(hidden, "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        size, written = mux(container, itertools.chain([begun], coming), codec, fps)
    recorded_size = first.size[::-1] if first.size and len(video.tracks) == 1 else size
    return Exported(video.path, written, size, recorded_size, fps, is_copy, max(0, counted.number - written))


class _Counted:
    """Counts items that pass."""

    def __init__(self) -> None:
        self.number = 0

    def all(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            self.number += 1
            yield item


def _rows(track: CameraTrack) -> int:
    """Return how many pictures a track has."""
    return sum(part.count(track.path) for file in track.files for part in parts_in(file))


class SizesDifferError(ValueError):
    """Pictures are of several sizes, and a video has one."""


def encoded(seen: Iterable[Picture], fps: float) -> Iterator[EncodedPicture]:
    """Yield pictures as the samples of an H.264 video, one by one.

    Raises:
        SizesDifferError: the pictures are of several sizes.
    """
    encoder, shape = VideoEncoder(_FORMAT, fps), None
    for picture in seen:
        pixels = _bytes(picture.pixels)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise SizesDifferError(f"pictures of {shape} and {pixels.shape} can't be one video")
        (sample,) = encoder.encode(pixels[None], [picture.episode])
        yield EncodedPicture(*picture[:3], *sample)


def _bytes(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return pixels as uint8 without an alpha channel. Floats are from 0 to 1."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(np.nan_to_num(pixels.astype(np.float32)), 0, 1) * 255).astype(np.uint8)
    return pixels[..., :3]


def mux(
    container: OutputContainer, coming: Iterable[EncodedPicture], codec: str, fps: float
) -> tuple[tuple[int, int], int]:
    """Write samples into a container, and return their width and height, and their number."""
    rate = Fraction(fps).limit_denominator(1001)
    first, size, count = None, (0, 0), 0
    for each, following in _pairs(coming):
        if first is None:
            first, size = each, _coded_size(codec, each)
            stream = container.add_mux_stream(codec, rate=rate, width=size[0], height=size[1])
        packet = av.Packet(each.sample)
        packet.stream, packet.time_base, packet.is_keyframe = stream, 1 / rate, each.is_keyframe
        packet.pts = packet.dts = each.frame - first.frame
        packet.duration = 1 if following is None else following.frame - each.frame
        container.mux_one(packet)
        count += 1
    return size, count


def _pairs(coming: Iterable[EncodedPicture]) -> Iterator[tuple[EncodedPicture, EncodedPicture | None]]:
    """Yield each picture with the one that follows it; the last one with None."""
    before: EncodedPicture | None = None
    for each in coming:
        if before is not None:
            yield before, each
        before = each
    if before is not None:
        yield before, None


def _coded_size(codec: str, sample: EncodedPicture) -> tuple[int, int]:
    decoder = decoder_of(codec)
    for frame in (*decoder.decode(av.Packet(sample.sample)), *decoder.decode(None)):
        return frame.width, frame.height
    raise ValueError(f"its first {codec} sample can't be decoded")


# --- grids ---

_InCell = tuple[int, Picture]
"""The number of a cell, and a picture in it."""


def _grid(
    tracks: Sequence[CameraTrack], through: Callable[[Iterable[_InCell]], Iterable[_InCell]]
) -> Iterator[Picture]:
    """Yield pictures of all tracks side by side, one for each frame at which any track has a picture.

    Args:
        tracks: the tracks, one for each cell.
        through: called with the pictures of all tracks in the order of their frames; yields them one by one.
    """
    sizes = [track.size for track in tracks]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise ValueError("pictures of varying sizes can't be in a grid")
    height, width = (max(size[axis] for size in known) for axis in (0, 1))
    columns = _columns(len(tracks), width / height)
    rows = -(-len(tracks) // columns)
    shrink = math.ceil(max(height * rows / GRID_SIZE[0], width * columns / GRID_SIZE[1], 1))
    height, width = -(-height // shrink), -(-width // shrink)
    canvas = np.zeros((height * rows, width * columns, 3), np.uint8)
    coming = heapq.merge(*map(_in_cell, itertools.count(), tracks), key=lambda pair: pair[1].frame)
    for frame, seen in itertools.groupby(through(coming), key=lambda pair: pair[1].frame):
        for cell, picture in seen:
            pixels = Image.fromarray(_as_rgb(picture.pixels)).reduce(shrink)
            top, left = cell // columns * height, cell % columns * width
            canvas[top : top + pixels.height, left : left + pixels.width] = np.asarray(pixels)
        yield Picture(frame, 0, 0, canvas)


def _in_cell(cell: int, track: CameraTrack) -> Iterator[_InCell]:
    return ((cell, picture) for picture in pictures(track))


def _as_rgb(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(np.broadcast_to(_bytes(pixels), (*pixels.shape[:2], 3)))


def _columns(cells: int, shape: float) -> int:
    """Return the number of columns for which a grid is about as wide as a screen, and has few empty cells.

    >>> [_columns(cells, 1.5) for cells in (1, 2, 3, 4, 16, 64)]
    [1, 2, 2, 2, 4, 8]
    """

    def badness(columns: int) -> float:
        rows = -(-cells // columns)
        return abs(math.log(columns / rows * shape / _SHAPE)) + (rows * columns - cells) / cells

    return min(range(1, cells + 1), key=badness)
