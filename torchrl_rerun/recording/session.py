"""Sessions: parse sinks, claim targets, and open recordings."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rerun as rr

from torchrl_rerun.errors import FileInUseError, warn
from torchrl_rerun.kinds.schema import Source
from torchrl_rerun.paths import format_path, make_absolute
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.recording import Recording, application_id
from torchrl_rerun.recording.resume import Reached, reached
from torchrl_rerun.rrd.locks import is_locked
from torchrl_rerun.writing.dumps import DumpTarget
from torchrl_rerun.writing.episode_target import EpisodeTarget
from torchrl_rerun.writing.file import FileTarget
from torchrl_rerun.writing.live import LiveSink
from torchrl_rerun.writing.rerun_streams import LiveStream, UsersStream, application_id_of
from torchrl_rerun.writing.target import ChunkWriter, LiveTarget, Target
from torchrl_rerun.writing.viewers import Endpoint, Viewer

Sinks = str | os.PathLike[str] | rr.GrpcServerSink | rr.RecordingStream | None
"""A sink: the path of a file or folder, a viewer, or a recording stream; None: the active recording stream."""


@dataclass(frozen=True)
class Session:
    """A recorder's options, and what its sink stands for.

    Attributes:
        options: the options.
        target: the file or folder that is recorded to.
        viewers: the live viewers.
        stream: the recording stream of the user. Default: none.
        process: the process that the recorder was made in.
        is_copy: whether the recorder was copied or pickled, and has no right to the path itself.
    """

    options: Options
    target: Target
    viewers: tuple[Endpoint, ...]
    stream: UsersStream | None
    process: int = field(default_factory=os.getpid)
    is_copy: bool = False

    @classmethod
    def of(cls, sink: Any, options: Options, *, is_copy: bool = False) -> Session:
        """Return the session of a recorder that is made now.

        Args:
            sink: the sink, or a list of sinks, as ``RerunRecorder`` takes them.
            options: the options.
            is_copy: whether the recorder is a copy of one that records to the sink, and has no right to the path itself.

        Raises:
            FileExistsError: the file exists, or the folder holds an earlier run, and the options neither overwrite nor
                resume it.
            OSError: the folder can't be written.
            TypeError: a sink is of the wrong type.
            ValueError: the sinks don't go with one another, or with the options.
        """
        kept, viewers, stream = _sinks(sink, options)
        if not (options.overwrite or options.resume or is_copy):
            kept.check_free()
        return cls(options, kept, viewers, stream, is_copy=is_copy)


_SINKS = (str, os.PathLike, type(None), rr.RecordingStream, rr.GrpcServerSink)


def _sinks(sink: Any, options: Options) -> tuple[Target, tuple[Endpoint, ...], UsersStream | None]:
    """Return the target, the viewers and the recording stream that the user's ``sink`` names, which may be several in a list."""
    several = sink if isinstance(sink, list | tuple) else [sink]
    for each in several:
        if not isinstance(each, _SINKS):
            raise TypeError(
                f"sink={sink!r}: {each!r} is of type {type(each).__name__}; pass a path that ends in '.rrd' (that of an "
                "rr.FileSink, too), a folder, the URL of a viewer (that of an rr.GrpcSink, too), an rr.RecordingStream, an "
                "rr.GrpcServerSink, or several of these in a list; or None, for the active recording"
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
    if options.resume and not paths:
        raise ValueError(f"resume=True goes on with the run in a file or folder, and there is none in sink={sink!r}")
    if paths:
        return _path_target(make_absolute(paths[0]), options), viewers, stream
    if stream is not None:
        return (
            LiveTarget(stream.label, for_workers=f"{stream.label} can't be had there, and nothing is recorded"),
            viewers,
            stream,
        )
    return LiveTarget(viewers[0].url), viewers, None


def path_of(sink: Any) -> str | os.PathLike[str] | None:
    """Return the path of a sink; None if it is no file.

    >>> path_of("run.rrd"), path_of("rerun+http://127.0.0.1:9876/proxy")
    ('run.rrd', None)
    """
    return sink if isinstance(sink, os.PathLike) or (isinstance(sink, str) and "://" not in sink) else None


def _path_target(path: Path, options: Options) -> Target:
    """Return the target of a path: a file, or a folder of them."""
    if path.suffix == ".rrd":
        if options.split != "run":
            raise ValueError(
                f"split={options.split!r} makes several files: pass a folder instead of {format_path(path)!r}"
            )
        return FileTarget(path, overwrite=options.overwrite)
    if options.split == "episode":
        new_kept = None if options.keep is None else options.keep.new_kept
        return EpisodeTarget(path, new_kept=new_kept, overwrite=options.overwrite)
    if path.suffix:
        raise ValueError(f"{format_path(path)!r} is neither a folder nor a file to record to, which ends in '.rrd'")
    if options.split == "dump":
        return DumpTarget(path, overwrite=options.overwrite)
    return FileTarget(path / "run.rrd", overwrite=options.overwrite)


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
        origin: what the front end says of itself and its environments, see :class:`~torchrl_rerun.kinds.schema.Source`.
    """

    batch_size: tuple[int, ...]
    name: str | None = None
    fps: float | None = None
    is_worker: bool = False
    worker: int | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)


def open_recording(session: Session, facts: Facts, ended: Recording | None = None) -> Recording:
    """Open a recording, or the next part of one that was closed.

    Args:
        session: the options, and what the sink stands for.
        facts: the facts about the environments.
        ended: the recording that was closed before. If it was of this batch size its counters go on, else another recording
            begins. Default: none was.

    Raises:
        FileExistsError: the file exists.
        OSError: the file can't be created.
        IndexError: ``logged_envs`` is out of range.
        ConnectionError: there is no viewer, or no recording stream.
    """
    stream = None if session.stream is None else session.stream.found()
    if stream is not None:
        session = dataclasses.replace(session, options=_named_by(stream, session.options))
    batch_size = facts.batch_size
    count, before = int(np.prod(batch_size, dtype=np.int64)), None
    if ended is None:
        chunk_writer, number = _claim(session, facts)
        before = _reached(session, chunk_writer, batch_size)
        recording_id = _recording_id(session, number, before)
    else:
        chunk_writer = _next_part(ended, is_announced=session.options.split != "dump")
        number = ended.source.first_env // ended.source.envs
        recording_id = _id_after(ended, session, batch_size)
    source = Source(
        batch_size=batch_size,
        name=facts.name,
        fps=session.options.fps or facts.fps,
        first_env=(number or 0) * count,
        origin=facts.origin,
    )
    options = session.options
    if options.aggregate and number is not None:
        warn(
            "aggregate=True: a recorder inside the environments of a batch sees but its own ones, so that there are no "
            "statistics over all; append it to the batched environment instead"
        )
        options = dataclasses.replace(options, aggregate=False)
    live_sinks: list[LiveSink] = [Viewer(endpoint) for endpoint in session.viewers]
    if stream is not None and session.stream is not None:
        envs = range(source.first_env, source.first_env + count)
        live_sinks.append(LiveStream(stream, session.stream.label, envs, is_sole=chunk_writer.target.path is None))
    try:
        for live_sink in live_sinks:
            live_sink.open(application_id=application_id(session.options, source), recording_id=recording_id)
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
    if session.options.logged_envs is None and len(recording.envs) < count:
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
        warn(f"{ended.chunk_writer.label} was closed; further frames are recorded in {chunk_writer.label}")
    return chunk_writer


def _claim(session: Session, facts: Facts) -> tuple[ChunkWriter, int | None]:
    """Open the user's path, or one beside it if several recorders share the path. Return this recorder's number among them."""
    number = _number(session, facts)
    if number is None:
        target = session.target.resumed() if session.options.resume else session.target
        if session.options.resume and not target.earlier() and (there := target.elsewhere()):
            raise FileExistsError(
                f"{there[0]} was recorded inside the environments of a batch: resume=True goes on with that run if the "
                "recorders are there again; else choose another path"
            )
        return target.open(), None
    while True:
        target = session.target.sibling(f"worker_{number}")
        if session.options.resume:
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


def _number(session: Session, facts: Facts) -> int | None:
    """Return this recorder's number among those that share its path; None if it has the path to itself."""
    if facts.is_worker or session.is_copy or session.process != os.getpid():
        return facts.worker or 0
    return 0 if session.target.identity in shared_paths else None


def _reached(session: Session, chunk_writer: ChunkWriter, batch_size: tuple[int, ...]) -> Reached | None:
    """Return where the run is that goes on; None if a run begins."""
    if not session.options.resume:
        return None
    try:
        return reached(chunk_writer.target.earlier(), batch_size)
    except BaseException:
        chunk_writer.discard()
        raise


def _recording_id(session: Session, number: int | None, before: Reached | None) -> str:
    """Return the id of a recording: the user's, that of the run that goes on, or a new one.

    Recorders that share a path derive one id, though they can't talk to one another.
    """
    if session.options.recording_id is not None:
        return session.options.recording_id
    if before is not None and before.recording_id is not None:
        return before.recording_id
    if number is None:
        return uuid.uuid4().hex
    family = os.getpid() if multiprocessing.parent_process() is None else os.getppid()
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{session.target.identity}#{family}").hex


def _id_after(ended: Recording, session: Session, batch_size: tuple[int, ...]) -> str:
    """Return the id of the part after a recording: the same, unless its frames begin at 0 again and would lie on top of it.

    Workers that share an id derive the same new one.
    """
    if session.options.recording_id is not None:
        return session.options.recording_id
    if ended.source.batch_size == batch_size:
        return ended.run_id
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{ended.run_id}#{batch_size}").hex
