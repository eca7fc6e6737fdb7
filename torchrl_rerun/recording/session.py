"""Opening recordings: the target, its siblings if several recorders share it, and facts about the environments."""

from __future__ import annotations

import dataclasses
import importlib
import math
import multiprocessing
import os
import re
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.errors import FileInUseError, warn
from torchrl_rerun.kinds.schema import SPLITS, Source
from torchrl_rerun.kinds.streams import (
    IMAGE_FORMATS,
    KINDS,
    STACKS,
    VIDEO_FORMATS,
    AnyKey,
    ImageFormat,
    Key,
    Kind,
    Stacks,
    as_key,
)
from torchrl_rerun.paths import absolute, shown
from torchrl_rerun.recording.keep import Keep
from torchrl_rerun.recording.logged_envs import check_envs
from torchrl_rerun.recording.recording import Options, Recording, application_id
from torchrl_rerun.recording.resume import Reached, reached
from torchrl_rerun.rrd.locks import is_locked
from torchrl_rerun.writing.dumps import DumpTarget
from torchrl_rerun.writing.episode_target import EpisodeTarget
from torchrl_rerun.writing.file import FileTarget
from torchrl_rerun.writing.live import LiveSink
from torchrl_rerun.writing.rerun_streams import LiveStream, UsersStream, application_id_of
from torchrl_rerun.writing.target import ChunkWriter, LiveTarget, Target
from torchrl_rerun.writing.viewers import Endpoint, Viewer


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
        sink: what it is kept in.
        viewers: who watches.
        stream: the recording stream that takes part; None: none does.
        in_keys: the keys to record; None: those of the environment's specs.
        fps: frames per second of simulated time; None: what the environment says.
        image_format: one for all images, or per key.
        jpeg_quality: of JPEG files.
        stacks: what is recorded of stacks of frames, of all or per key.
        kinds, names: overrides per key.
        render: whether the environment is rendered where it is recorded.
        resume: whether the run goes on that the file or folder holds.
        options: the rest, which the recording sees to.
        process: the process that the recorder was made in.
        is_copy: it was copied or pickled, and has no right to the path itself.
    """

    sink: Target
    viewers: tuple[Endpoint, ...]
    stream: UsersStream | None
    in_keys: tuple[Key, ...] | None
    fps: float | None
    image_format: ImageFormat | Mapping[Key, ImageFormat]
    jpeg_quality: int
    stacks: Stacks | Mapping[Key, Stacks]
    kinds: Mapping[Key, Kind]
    names: Mapping[Key, tuple[str, ...]]
    render: bool
    resume: bool
    options: Options
    process: int
    is_copy: bool = False

    @classmethod
    def checked(
        cls,
        sink: Any,
        *,
        overwrite: bool,
        resume: bool,
        in_keys: Sequence[AnyKey] | None,
        fps: float | None,
        image_format: ImageFormat | Mapping[AnyKey, ImageFormat],
        jpeg_quality: int,
        stacks: Stacks | Mapping[AnyKey, Stacks],
        kinds: Mapping[AnyKey, Kind] | None,
        names: Mapping[AnyKey, Sequence[str]] | None,
        render: bool,
        options: Options,
    ) -> Settings:
        """What the user asked for, if it makes sense.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: an argument is out of its range.
            ImportError: a video format is asked for, and PyAV isn't there.
        """
        _require("fps", fps, int | float | None, "frames per second")
        _require("buffer_bytes", options.buffer_bytes, int, "a number of bytes")
        _require("flush_seconds", options.flush_seconds, int | float, "a number of seconds")
        _require("kinds", kinds, Mapping | None, 'a dictionary, like {"observation": "scalars"}')
        _require("names", names, Mapping | None, 'a dictionary, like {"action": ["left", "right"]}')
        _require("image_format", image_format, str | Mapping, 'a format, or a dictionary, like {"pixels": "png"}')
        _require(
            "stacks", stacks, str | Mapping, '"all", "newest" or "none", or a dictionary, like {"pixels": "newest"}'
        )
        _require("render", render, bool, "True or False")
        _require(
            "blueprint",
            options.blueprint,
            bool | rrb.Blueprint | Callable,
            "True, False, a rerun.blueprint.Blueprint, or a function of torchrl_rerun.layout.blueprint.Recorded that makes one",
        )
        _require(
            "aggregate", options.aggregate, bool | None, "True, False, or None: where not all are recorded in detail"
        )
        _require("application_id", options.application_id, str | None, "a string")
        _require("recording_id", options.recording_id, str | None, "a string")
        numbers = {"fps": fps, "buffer_bytes": options.buffer_bytes, "flush_seconds": options.flush_seconds}
        _require_count("skip", options.choice.skip, 1, "one frame in so many is recorded")
        _require_count("recording_length", options.choice.recording_length, 0, "steps; 0: to the end of the episode")
        if options.choice.recording_length and not options.choice.has_triggers:
            raise ValueError(
                "recording_length is about what a trigger starts: pass episode_trigger or step_trigger, too"
            )
        for name in ("episode_trigger", "step_trigger"):
            trigger = getattr(options.choice, name)
            if trigger is not None and not callable(trigger):
                raise TypeError(f"{name}={trigger!r} can't be called; pass a function of a number that returns a bool")
        for name, number in numbers.items():
            if number is not None and (not number > 0 or (name == "fps" and math.isinf(number))):
                raise ValueError(f"{name}={number!r} must be positive{' and finite' if name == 'fps' else ''}")
        if in_keys is not None and not in_keys:
            raise ValueError("in_keys is empty: name the keys to record, or leave it out to record all of the specs")
        check_envs(options.logged_envs)
        formats = {as_key(k): v for k, v in image_format.items()} if isinstance(image_format, Mapping) else {}
        for chosen in formats.values() if isinstance(image_format, Mapping) else [image_format]:
            if chosen not in IMAGE_FORMATS:
                raise ValueError(f"image_format={chosen!r}: choose one of {', '.join(map(repr, IMAGE_FORMATS))}")
            if chosen in VIDEO_FORMATS:
                _require_pyav(chosen)
        _require_count("jpeg_quality", jpeg_quality, 1, "from 1 to 95, as Pillow has them")
        if jpeg_quality > 95:
            raise ValueError(f"jpeg_quality={jpeg_quality}: pass 95 or less; image_format='png' loses nothing")
        of_stacks = {as_key(k): v for k, v in stacks.items()} if isinstance(stacks, Mapping) else {}
        for said in of_stacks.values() if isinstance(stacks, Mapping) else [stacks]:
            if said not in STACKS:
                raise ValueError(f"stacks={said!r}: choose one of {', '.join(map(repr, STACKS))}")
        for key, kind in (kinds or {}).items():
            if kind not in KINDS:
                raise ValueError(f"kinds[{key!r}]={kind!r}: choose one of {', '.join(map(repr, KINDS))}")
        for key, labels in (names or {}).items():
            if isinstance(labels, str):
                raise TypeError(f"names[{key!r}]={labels!r}: pass a list of names, even of one: [{labels!r}]")
        if options.split not in SPLITS:
            raise ValueError(f"split={options.split!r}: choose one of {', '.join(map(repr, SPLITS))}")
        _require("keep", options.keep, Keep | None, "a policy, like KeepLast(20) | KeepWorst(20)")
        if options.keep is not None and options.split != "episode":
            raise ValueError(f"keep={options.keep!r} is about episodes: it needs split='episode'")
        if options.aggregate and options.split == "episode":
            raise ValueError("aggregate=True is about all environments: it needs split='run' or 'dump'")
        kept, viewers, stream = _sinks(sink, options, overwrite=overwrite, resume=resume)
        return cls(
            sink=kept,
            viewers=viewers,
            stream=stream,
            in_keys=None if in_keys is None else tuple(as_key(key) for key in in_keys),
            fps=fps,
            image_format=image_format if isinstance(image_format, str) else formats,
            jpeg_quality=jpeg_quality,
            stacks=stacks if isinstance(stacks, str) else of_stacks,
            kinds={as_key(key): kind for key, kind in (kinds or {}).items()},
            names={as_key(key): tuple(labels) for key, labels in (names or {}).items()},
            render=render,
            resume=resume,
            options=options,
            process=os.getpid(),
        )


_SINKS = (str, os.PathLike, type(None), rr.RecordingStream, rr.FileSink, rr.GrpcSink, rr.GrpcServerSink)


def _sinks(
    sink: Any, options: Options, *, overwrite: bool, resume: bool
) -> tuple[Target, tuple[Endpoint, ...], UsersStream | None]:
    """Return the target, the viewers and the recording stream that the user's ``sink`` names, which may be several in a list."""
    _require("resume", resume, bool, "True or False")
    if overwrite and resume:
        raise ValueError("overwrite=True and resume=True exclude one another: replace what is there, or go on with it")
    several = sink if isinstance(sink, list | tuple) else [sink]
    for each in several:
        if not isinstance(each, _SINKS):
            raise TypeError(
                f"sink={sink!r}: {each!r} is of type {type(each).__name__}; pass a path that ends in '.rrd', a folder, the "
                "URL of a viewer, an rr.RecordingStream, one of Rerun's sinks, or several of these in a list; or None, for "
                "the active recording"
            )
    paths = [path for each in several if (path := path_of(each)) is not None]
    streams = [UsersStream(each) for each in several if each is None or isinstance(each, rr.RecordingStream)]
    viewers = tuple(
        Endpoint.of(each)
        for each in several
        if not (each is None or isinstance(each, rr.RecordingStream) or path_of(each) is not None)
    )
    if len(paths) > 1 or len(streams) > 1 or not several:
        raise ValueError(f"sink={sink!r}: pass one file, viewers, one recording stream, or several of these in a list")
    stream = streams[0] if streams else None
    if options.split != "run" and (viewers or stream is not None or not paths):
        raise ValueError(
            f"split={options.split!r} records into a folder, and viewers and recording streams get whole runs: pass a "
            "folder alone, or use split='run'"
        )
    if stream is not None and (options.application_id is not None or options.recording_id is not None):
        raise ValueError(
            f"application_id and recording_id are those of {stream.label}: leave them out, and pass them where it is made"
        )
    if resume and not paths:
        raise ValueError(f"resume=True goes on with the run in a file or folder, and there is none in sink={sink!r}")
    if paths:
        return _path_sink(absolute(paths[0]), options, overwrite=overwrite, resume=resume), viewers, stream
    if stream is not None:
        return (
            LiveTarget(stream.label, for_workers=f"{stream.label} can't be had there, and nothing is recorded"),
            viewers,
            stream,
        )
    return LiveTarget(viewers[0].url), viewers, None


def path_of(sink: Any) -> str | os.PathLike[str] | None:
    """Return the path of a sink; None if it is no file.

    rerun-sdk 0.41: ``rr.FileSink`` has no attribute with its path, but its ``repr`` has it.

    >>> path_of(rr.FileSink("run.rrd")), path_of("rerun+http://127.0.0.1:9876/proxy")
    ('run.rrd', None)
    """
    if isinstance(sink, rr.FileSink):
        said = re.fullmatch(r'FileSink\("(.*)", write_footer=(true|false)\)', repr(sink), re.DOTALL)
        if said is not None and rr.FileSink(said[1], write_footer=said[2] == "true") == sink:
            return said[1]
        raise TypeError(f"{sink!r} doesn't say where it writes: pass its path")
    return sink if isinstance(sink, os.PathLike) or (isinstance(sink, str) and "://" not in sink) else None


def _path_sink(path: Path, options: Options, *, overwrite: bool, resume: bool) -> Target:
    """Return the target of a path: a file, or a folder of them."""
    if path.suffix == ".rrd":
        if options.split != "run":
            raise ValueError(f"split={options.split!r} makes several files: pass a folder instead of {shown(path)!r}")
        return FileTarget(path, overwrite=overwrite, may_exist=resume)
    if options.split == "episode":
        new_kept = None if options.keep is None else options.keep.new_kept
        return EpisodeTarget(path, new_kept=new_kept, overwrite=overwrite)
    if path.suffix:
        raise ValueError(f"{shown(path)!r} is neither a folder nor a file to record to, which ends in '.rrd'")
    if options.split == "dump":
        return DumpTarget(path, overwrite=overwrite)
    return FileTarget(path / "run.rrd", overwrite=overwrite, may_exist=True)


def _require(name: str, value: Any, types: Any, what: str) -> None:
    if not isinstance(value, types):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}; pass {what}")


def _require_count(name: str, value: Any, least: int, what: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}; pass a whole number: {what}")
    if value < least:
        raise ValueError(f"{name}={value}: pass {least} or more: {what}")


def _require_pyav(image_format: str) -> None:
    try:
        importlib.import_module("torchrl_rerun.kinds.video")
    except ImportError as error:
        raise ImportError(
            f"image_format={image_format!r} needs PyAV: pip install 'torchrl-rerun[video]', or choose 'jpeg'"
        ) from error


shared_paths: set[str] = set()
"""Paths that recorders inside the environments of a batch write to, as far as this process knows."""


@dataclass(frozen=True)
class Facts:
    """Facts about the environments that are recorded, from the front end that knows them.

    Attributes:
        batch_size: the batch size of the environments.
        name: the name of the environment. Default: unknown.
        fps: frames per second of simulated time. Default: unknown.
        is_worker: whether this process or thread steps a part of a batch, as one of several workers.
        worker: the number of this worker in its batch, from 0. Default: unknown.
    """

    batch_size: tuple[int, ...]
    name: str | None = None
    fps: float | None = None
    is_worker: bool = False
    worker: int | None = None


def open_recording(settings: Settings, facts: Facts, ended: Recording | None = None) -> Recording:
    """Open a recording, or the next part of one that was closed.

    Args:
        settings: the options of the user.
        facts: the facts about the environments.
        ended: the recording that was closed before. If it was of this batch size its counters go on, else another recording
            begins. Default: none was.

    Raises:
        FileExistsError: the file exists.
        OSError: the file can't be created.
        IndexError: ``logged_envs`` is out of range.
        ConnectionError: there is no viewer, or no recording stream.
    """
    stream = None if settings.stream is None else settings.stream.found()
    if stream is not None:
        settings = dataclasses.replace(settings, options=_named_by(stream, settings.options))
    batch_size = facts.batch_size
    count, before = int(np.prod(batch_size, dtype=np.int64)), None
    if ended is None:
        chunk_writer, number = _claim(settings, facts)
        before = _reached(settings, chunk_writer, batch_size)
        recording_id = _recording_id(settings, number, before)
    else:
        chunk_writer = _next_part(ended, is_announced=settings.options.split != "dump")
        number = ended.source.first_env // ended.source.envs
        recording_id = _id_after(ended, settings, batch_size)
    source = Source(
        batch_size=batch_size,
        name=facts.name,
        fps=settings.fps or facts.fps,
        first_env=(number or 0) * count,
    )
    options = settings.options
    if options.aggregate and number is not None:
        warn(
            "aggregate=True: a recorder inside the environments of a batch sees but its own ones, so that there are no "
            "statistics over all; append it to the batched environment instead"
        )
        options = dataclasses.replace(options, aggregate=False)
    live_sinks: list[LiveSink] = [Viewer(endpoint) for endpoint in settings.viewers]
    if stream is not None and settings.stream is not None:
        envs = range(source.first_env, source.first_env + count)
        live_sinks.append(LiveStream(stream, settings.stream.label, envs, is_sole=chunk_writer.target.path is None))
    try:
        for live_sink in live_sinks:
            live_sink.open(application_id=application_id(settings.options, source), recording_id=recording_id)
        recording = Recording(
            chunk_writer, source, options, live_sinks=live_sinks, run_id=recording_id, continues=ended
        )
        if before is not None:
            recording.resume(before.progress(recording.envs))
    except BaseException:
        chunk_writer.discard()
        for live_sink in live_sinks:
            live_sink.close()
        raise
    if settings.options.logged_envs is None and len(recording.envs) < count:
        first = f"of {count} environments the first {len(recording.envs)} are recorded"
        if recording.has_statistics:
            first += " in detail, and rewards and returns of all as statistics, below /batch"
        warn(f"{first}; with logged_envs=... you choose")
    return recording


def _named_by(stream: rr.RecordingStream, options: Options) -> Options:
    """Return options with the ids of a recording stream."""
    return dataclasses.replace(
        options, application_id=application_id_of(stream), recording_id=stream.get_recording_id()
    )


def _next_part(ended: Recording, *, is_announced: bool) -> ChunkWriter:
    """Open the target of the frames after ``close()``: a finished file can't be written to, so they go into another one."""
    chunk_writer = ended.chunk_writer.continuation().open()
    if is_announced and chunk_writer.location != ended.chunk_writer.location:
        warn(f"{ended.chunk_writer.label} was closed; what comes now is recorded in {chunk_writer.label}")
    return chunk_writer


def _claim(settings: Settings, facts: Facts) -> tuple[ChunkWriter, int | None]:
    """Open the user's path, or one beside it if several recorders share the path. Return this recorder's number among them."""
    number = _number(settings, facts)
    if number is None:
        target = settings.sink.resumed() if settings.resume else settings.sink
        if settings.resume and not target.earlier() and (there := target.elsewhere()):
            raise FileExistsError(
                f"{there[0]} was recorded inside the environments of a batch: resume=True goes on with that run if the "
                "recorders are there again; else choose another path"
            )
        return target.open(), None
    while True:
        target = settings.sink.sibling(f"worker_{number}")
        if settings.resume:
            target = target.resumed()
            if not target.earlier() and (there := target.elsewhere()):
                raise FileExistsError(
                    f"{there[0]} was recorded outside of the environments of a batch: resume=True goes on with that run if "
                    "the recorder is there again; else choose another path"
                )
            if any(is_locked(file) and _is_claimed_here(file) for file in target.earlier()):
                number += 1  # it goes on with the file of another one in this process
                continue
        try:
            chunk_writer = target.open()
        except FileExistsError as taken:
            # Nested workers count from 0 each, and copies within a process are not numbered at all.
            if facts.worker is not None and not isinstance(taken, FileInUseError):
                raise
            number += 1
        else:
            _claimed_here.add(chunk_writer)
            return chunk_writer, number


_claimed_here: weakref.WeakSet[ChunkWriter] = weakref.WeakSet()
"""Chunk writers of recorders in this process that share a path."""


def _is_claimed_here(file: Path) -> bool:
    return any(file in chunk_writer.files() for chunk_writer in _claimed_here)


def _number(settings: Settings, facts: Facts) -> int | None:
    """Return this recorder's number among those that share its path; None if it has the path to itself."""
    if facts.is_worker or settings.is_copy or settings.process != os.getpid():
        return facts.worker or 0
    return 0 if settings.sink.identity in shared_paths else None


def _reached(settings: Settings, chunk_writer: ChunkWriter, batch_size: tuple[int, ...]) -> Reached | None:
    """Return where the run is that goes on; None if a run begins."""
    if not settings.resume:
        return None
    try:
        return reached(chunk_writer.target.earlier(), batch_size)
    except BaseException:
        chunk_writer.discard()
        raise


def _recording_id(settings: Settings, number: int | None, before: Reached | None) -> str:
    """Return the id of a recording: the user's, that of the run that goes on, or a new one.

    Recorders that share a path derive one id, though they can't talk to one another.
    """
    if settings.options.recording_id is not None:
        return settings.options.recording_id
    if before is not None and before.recording_id is not None:
        return before.recording_id
    if number is None:
        return uuid.uuid4().hex
    family = os.getpid() if multiprocessing.parent_process() is None else os.getppid()
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{settings.sink.identity}#{family}").hex


def _id_after(ended: Recording, settings: Settings, batch_size: tuple[int, ...]) -> str:
    """Return the id of the part after a recording: the same, unless its frames begin at 0 again and would lie on top of it.

    Workers that share an id derive the same new one.
    """
    if settings.options.recording_id is not None:
        return settings.options.recording_id
    if ended.source.batch_size == batch_size:
        return ended.run_id
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{ended.run_id}#{batch_size}").hex
