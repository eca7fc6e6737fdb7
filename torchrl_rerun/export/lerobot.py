"""Export to data sets of LeRobot's format, version 3.0, which Rerun opens, too.

The format is written with pyarrow and PyAV: the ``lerobot`` package requires gigabytes, and other versions of torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tensordict.utils import NestedKey

from torchrl_rerun.export.lerobot_statistics import Statistics
from torchrl_rerun.export.mp4 import SizesDifferError, encoded, mux
from torchrl_rerun.export.parquet import TableWriter
from torchrl_rerun.export.renaming import Wish, distinct, dotted
from torchrl_rerun.export.steps import (
    BROKEN,
    LeftOut,
    Progress,
    array_of,
    chosen,
    described,
    name_episode,
    unbroken_transitions,
    without_progress,
)
from torchrl_rerun.kinds.endings import FLAGS
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.kinds.schema import Moment, TimedStream
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.video import USUAL_FPS, check_fps
from torchrl_rerun.paths import make_absolute
from torchrl_rerun.reading.loaded_episode import LoadedEpisode
from torchrl_rerun.reading.pictures import decoded, from_keyframe, is_video
from torchrl_rerun.reading.steps import steps as read_steps
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.frame_codes import FrameCodes, episode_span

SIGN = "meta/info.json"
"""The file in the folder of a data set by which it is known."""

_VERSION = "v3.0"
_FILES_PER_CHUNK = 1000
_PLACE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_VIDEO = f"videos/{{video_key}}/{_PLACE}.mp4"
_DATA = f"data/{_PLACE}.parquet"
_INDICES = ("frame_index", "episode_index", "index", "task_index")
_OWN = (*_INDICES, "timestamp", "task", "subtask", "subtask_index", "language_persistent", "language_events")
"""The names that have a meaning of their own for LeRobot (lerobot 0.4 to 0.6)."""

_Names = Mapping[tuple[Key, int], str]
"""The features of keys, and of cameras by the position of the agent."""


@dataclass(frozen=True)
class LeRobotDataset:
    """A data set that was written.

    Attributes:
        path: its folder.
        episodes: the number of its episodes.
        steps: the number of their steps.
        cameras: the names of its videos.
        fps: frames per second.
    """

    path: Path
    episodes: int
    steps: int
    cameras: tuple[str, ...]
    fps: float


def to_lerobot(
    episodes: Sequence[LoadedEpisode],
    path: str | os.PathLike[str],
    *,
    task: str | None = None,
    fps: float | None = None,
    keys: Sequence[NestedKey] | None = None,
    overwrite: bool = False,
    progress: Progress = without_progress,
) -> LeRobotDataset:
    """Write episodes as a data set of LeRobot's format: numbers as Parquet, and a video of each episode and camera.

    ====================  ================================================================
    key                   feature
    ====================  ================================================================
    ``observation``       ``observation.state``
    other observations    ``observation.`` and the key
    cameras               ``observation.images.`` and the key
    rewards and flags     ``next.reward``, ``next.done`` and so on
    actions               the key
    ====================  ================================================================

    - Values of several dimensions, and of agents, are flattened to vectors.
    - Recorded video is copied. Other pictures are encoded as H.264.
    - Names are in letters, digits, ``_`` and ``-``, their parts joined by ``.``. If two keys would have one name, or a name
      that LeRobot has a meaning for (``index``, ``timestamp``, ...), the key that sorts later gets ``_2`` at its end, with a
      warning.
    - Statistics are those of finite values: neither JSON nor LeRobot's normalization can have others.

    Args:
        episodes: the episodes, as :func:`~torchrl_rerun.load` returns them. Steps are taken to be ``1 / fps`` seconds apart.
        path: the folder. It gets its name when it is whole.
        task: the task, in words. Default: the environment's name.
        fps: frames per second. Default: those of the recording, or 30.
        keys: the keys. Default: all but depth, segmentations, non-tensor data, and the returns that the recorder worked out.
        overwrite: replace a data set that exists.
        progress: called with the episodes and their number; yields the episodes one by one.

    Raises:
        FileExistsError: the folder exists, and ``overwrite`` is false or it is no data set.
        KeyError: a key isn't recorded.
        ValueError: there are no steps; an episode lacks a picture at a step, or its videos have another form than those of
            the first one; or ``fps`` isn't positive.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_rerun import RerunRecorder, load, to_lerobot
        >>> path = tempfile.mkdtemp() + "/run.rrd"
        >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(path))
        >>> rollout = env.rollout(5)
        >>> env.close()
        >>> dataset = to_lerobot(load(path), f"{path}.lerobot", task="balance the pole")
        >>> dataset.episodes, dataset.steps, dataset.fps
        (1, 5, 50.0)
    """
    if not episodes:
        raise ValueError("there are no episodes to export")
    schema = episodes[0].schema
    if keys is None:
        keys = [stream.key for stream, moment in schema.described if is_usual(stream) and not unheld(stream, moment)]
    check_fps(fps)
    rate = fps or schema.source.fps or float(USUAL_FPS)
    names = _names(chosen(episodes[0], keys, unheld))
    with written_aside(path, overwrite=overwrite, sign=SIGN) as hidden:
        dataset = _Dataset(hidden, rate, task or schema.source.name or "recorded", names)
        with TableWriter(dataset.data) as writer:
            for episode, found in described(progress(episodes, len(episodes)), keys, unheld):
                if (table := dataset.add(episode, found)) is not None:
                    writer.add(table)
        if not dataset.episodes:
            raise dataset.left_out.nothing()
        dataset.describe()
    dataset.left_out.say()
    return LeRobotDataset(make_absolute(path), len(dataset.episodes), dataset.steps, tuple(dataset.videos), rate)


def is_usual(stream: Stream) -> bool:
    """Return whether a key that the format holds is exported by default: all but the returns that the recorder worked out."""
    return not stream.reward_key


def unheld(stream: Stream, _: Moment) -> str:
    """Return why the format can't hold a key; empty if it can."""
    if stream.kind.is_camera:
        return "varies in size, and a video of LeRobot's format is of one" if stream.varies else ""
    if stream.is_picture:
        return f"is of kind {stream.kind.name!r}, and LeRobot's format has videos of images and numbers alone"
    if not stream.is_plain:
        return "is no tensor of real numbers of one shape, and LeRobot's format has videos and such numbers alone"
    return "" if math.prod(stream.shape) else f"has no numbers (shape {stream.shape})"


@dataclass(frozen=True)
class _Episode:
    """An episode in the data set.

    Attributes:
        number: its number in the data set.
        length: the number of its steps.
        start: the number of steps in the episodes before it.
        statistics: statistics of its values, by the names of the features.
    """

    number: int
    length: int
    start: int
    statistics: dict[str, Statistics]

    @property
    def file(self) -> dict[str, int]:
        """The numbers of its video file."""
        chunk, file = divmod(self.number, _FILES_PER_CHUNK)
        return {"chunk_index": chunk, "file_index": file}


class _Dataset:
    """A data set that is being written.

    Args:
        folder: the folder.
        fps: frames per second.
        task: the task, in words.
        names: the names of the features.

    Attributes:
        episodes: the episodes so far.
        steps: the number of their steps.
        videos: the features that are videos.
        left_out: the steps that are left out.
    """

    def __init__(self, folder: Path, fps: float, task: str, names: _Names) -> None:
        self.episodes: list[_Episode] = []
        self.steps = 0
        self.videos: dict[str, dict[str, Any]] = {}
        self.left_out = LeftOut(BROKEN)
        self._folder = folder
        self._fps = int(fps) if float(fps).is_integer() else fps
        self._task = task
        self._names = names
        self._numbers: dict[str, dict[str, Any]] = {}

    @property
    def data(self) -> Path:
        """The file of the numbers."""
        return self._file(_DATA, chunk_index=0, file_index=0)

    def add(self, episode: LoadedEpisode, found: Sequence[TimedStream]) -> pa.Table | None:
        """Add an episode, write its videos, and return the table of its numbers; None: no step of it is exported.

        Args:
            episode: the episode.
            found: how its exported keys are recorded.
        """
        numbers = [(stream, moment) for stream, moment in found if not stream.is_picture]
        at = unbroken_transitions(episode, found, self.left_out)  # at which no picture is missing either
        if not len(at):
            return None
        steps = read_steps(episode.history, numbers, episode_span(episode.properties.episode), at)
        added = _Episode(len(self.episodes), len(steps), self.steps, {})
        self.episodes.append(added)
        self.steps += added.length
        values: dict[str, npt.NDArray[Any]] = {}
        for stream, moment in numbers:
            is_next = moment is Moment.STEPPED or stream.key[-1] in FLAGS
            name = self._names[stream.key, 0]
            values[name] = array_of(steps["next"] if is_next else steps, stream).reshape(added.length, -1)
            self._numbers[name] = _numbers_feature(stream, values[name])
        values |= self._indices(added)
        added.statistics.update({name: Statistics.of(each) for name, each in values.items()})
        self._add_videos(episode, added, [stream for stream, _ in found if stream.kind.is_camera], at.before)
        return pa.table({name: _column(each) for name, each in values.items()})

    def _indices(self, added: _Episode) -> dict[str, npt.NDArray[Any]]:
        """Return the columns by which LeRobot finds the steps of an episode, ``[n, 1]`` each."""
        frames = np.arange(added.length)
        indices: dict[str, npt.NDArray[Any]] = {
            "timestamp": (frames / self._fps).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(added.length, added.number),
            "index": frames + added.start,
            "task_index": np.zeros(added.length, np.int64),
        }
        return {name: values[:, None] for name, values in indices.items()}

    def _add_videos(
        self, episode: LoadedEpisode, added: _Episode, cameras: Iterable[Stream], steps: FrameCodes
    ) -> None:
        """Write a video of each camera, with a picture for each step, and check that all episodes have the same videos."""
        videos = {}
        for stream in cameras:
            for agent in range(stream.agent_count):
                name = self._names[stream.key, agent]
                path = self._file(_VIDEO, video_key=name, **added.file)
                self._write_video(path, episode, stream, agent, steps)
                videos[name], added.statistics[name] = self._seen_in(path)
        if self.episodes[0] is added:
            self.videos = videos
        if videos != self.videos:
            name = min(name for name in {*videos, *self.videos} if videos.get(name) != self.videos.get(name))
            raise ValueError(
                f"the video {name} of {name_episode(episode)} is not as the others are: take one run at a time"
            )

    def _write_video(self, path: Path, episode: LoadedEpisode, stream: Stream, agent: int, steps: FrameCodes) -> None:
        held = episode.history.stored(stream, agent, episode_span(episode.properties.episode))

        def wanted(coming: Iterator[Any]) -> Iterator[Any]:
            for at, code in enumerate(steps.tolist()):
                each = next(coming, None)
                if each is None or each.episode << 32 | each.episode_step != code:
                    raise ValueError(
                        f"{name_episode(episode)} hasn't got a picture under {name_of(stream.key)} at each of its steps, and "
                        "can't be a video of LeRobot's: leave that key out, or the episode"
                    )
                yield each._replace(frame=at)

        if is_video(stream):
            codec, coming = str(stream.kind.format), wanted(from_keyframe(held))
        else:
            codec, coming = "h264", encoded(wanted(decoded(stream, held)), self._fps)
        with av.open(path, "w", options={"movflags": "faststart"}) as container:
            try:
                mux(container, coming, codec, self._fps)
            except SizesDifferError as error:
                raise ValueError(
                    f"{name_episode(episode)}, {name_of(stream.key)}: {error}: leave that key out"
                ) from error

    def _seen_in(self, path: Path) -> tuple[dict[str, Any], Statistics]:
        """Return the feature of a video, and statistics of the colours of its first picture."""
        with av.open(path) as video:
            frame = next(video.decode(video=0))
            feature = _video_feature(frame, video.streams.video[0].codec.name, self._fps)
        return feature, Statistics.of_picture(frame.to_ndarray(format="rgb24"))

    def describe(self) -> None:
        """Write the metadata of the data set."""
        entries = []
        for episode in self.episodes:
            end = episode.start + episode.length
            entry = {
                "episode_index": episode.number,
                "tasks": [self._task],
                "length": episode.length,
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": episode.start,
                "dataset_to_index": end,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
            for video in self.videos:
                place = episode.file | {"from_timestamp": 0.0, "to_timestamp": episode.length / self._fps}
                entry |= {f"videos/{video}/{name}": value for name, value in place.items()}
            for feature, statistics in episode.statistics.items():
                entry |= {f"stats/{feature}/{name}": value for name, value in statistics.as_lists().items()}
            entries.append(entry)
        pq.write_table(
            pa.Table.from_pylist(entries), self._file(f"meta/episodes/{_PLACE}.parquet", chunk_index=0, file_index=0)
        )
        pq.write_table(_tasks([self._task]), self._file("meta/tasks.parquet"))
        plain = dict.fromkeys(_INDICES, "int64") | {"timestamp": "float32"}
        indices = {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in plain.items()}
        info = {
            "codebase_version": _VERSION,
            "robot_type": None,
            "total_episodes": len(self.episodes),
            "total_frames": self.steps,
            "total_tasks": 1,
            "chunks_size": _FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": _DATA,
            "video_path": _VIDEO if self.videos else None,
            "features": self._numbers | self.videos | indices,
        }
        self._file(SIGN).write_text(json.dumps(info, indent=4, allow_nan=False))
        by_feature = {
            name: Statistics.together([episode.statistics[name] for episode in self.episodes])
            for name in self.episodes[0].statistics
        }
        stats = {name: statistics.as_lists() for name, statistics in by_feature.items()}
        self._file("meta/stats.json").write_text(json.dumps(stats, indent=4, allow_nan=False))

    def _file(self, place: str, **indices: Any) -> Path:
        path = self._folder / place.format(**indices)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _names(found: Iterable[TimedStream]) -> _Names:
    """Return the names of the features: one for each key, and for each camera and agent."""
    return distinct((wish for stream, moment in found for wish in _wishes(stream, moment)), "LeRobot", _OWN)


def _wishes(stream: Stream, moment: Moment) -> Iterator[Wish]:
    told = name_of(stream.key)
    if stream.kind.is_camera:
        for agent in range(stream.agent_count):
            names = stream.agents[agent : agent + 1]
            of_agent = "".join(f" of {name}" for name in names)
            parts = ["observation", "images", *stream.key, *names]
            yield dotted((stream.key, agent), told + of_agent, parts)
    elif moment is Moment.ACTED:
        yield dotted((stream.key, 0), told, stream.key)
    elif moment is Moment.STEPPED or stream.key[-1] in FLAGS:
        yield dotted((stream.key, 0), told, ["next", *stream.key])
    else:
        key = ("state",) if stream.key == ("observation",) else stream.key
        yield dotted((stream.key, 0), told, ["observation", *key])


def _numbers_feature(stream: Stream, values: npt.NDArray[Any]) -> dict[str, Any]:
    size = values.shape[1]
    return {
        "dtype": values.dtype.name,
        "shape": [size],
        "names": list(stream.kind.names) if len(stream.kind.names) == size > 1 else None,
    }


def _video_feature(frame: av.VideoFrame, codec: str, fps: float) -> dict[str, Any]:
    said = {
        "height": frame.height,
        "width": frame.width,
        "codec": codec,
        "pix_fmt": "yuv420p",
        "fps": fps,
        "channels": 3,
    }
    info = {f"video.{name}": value for name, value in said.items()} | {"video.is_depth_map": False, "has_audio": False}
    shape = [frame.height, frame.width, 3]
    return {"dtype": "video", "shape": shape, "names": ["height", "width", "channels"], "info": info}


def _column(values: npt.NDArray[Any]) -> pa.Array:
    """Return the column of vectors, ``[n, size]``: lists of fixed size; plain numbers if the size is 1."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _tasks(tasks: Sequence[str]) -> pa.Table:
    """Return the table of tasks as pandas writes it with their names as the index: LeRobot reads it so."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": tasks})
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": kind, "metadata": None}
        for name, kind in (("task_index", "int64"), ("task", "unicode"))
    ]
    columns[1]["numpy_type"] = "object"
    said = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(said)})
