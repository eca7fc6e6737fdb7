"""Opening a recording: which file it is, who else shares its path, and what the environment says of itself."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torchrl.envs import EnvBase

from torchrl_rerun import specs
from torchrl_rerun.recording import Options, Recording
from torchrl_rerun.schema import Source
from torchrl_rerun.sinks import FileInUseError, FileSink
from torchrl_rerun.streams import ImageFormat, Key, Kind
from torchrl_rerun.workers import in_torchrl_worker, worker_number


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
        sink: where to.
        in_keys: the keys to record; None: those of the environment's specs.
        fps: frames per second of simulated time; None: what the environment says.
        image_format: one for all images, or per key.
        kinds, names: overrides per key.
        options: the rest, which the recording sees to.
        process: the process that the recorder was made in.
        is_copy: it was copied or pickled, and has no right to the path itself.
    """

    sink: FileSink
    in_keys: tuple[Key, ...] | None
    fps: float | None
    image_format: ImageFormat | Mapping[Key, ImageFormat]
    kinds: Mapping[Key, Kind]
    names: Mapping[Key, tuple[str, ...]]
    options: Options
    process: int
    is_copy: bool = False


shared_paths: set[str] = set()
"""Paths that recorders inside the environments of a batch write to, as far as TorchRL has told this process."""


def open_recording(
    settings: Settings, env: EnvBase | None, batch_size: tuple[int, ...], ended: Recording | None
) -> Recording:
    """Begin a recording, or the next part of one that was closed.

    Args:
        settings: what the user asked for.
        env: the environment; None: there is none.
        batch_size: the environments' batch size.
        ended: the recording that was closed before, whose counters go on.

    Raises:
        FileExistsError: the file exists.
        OSError: it can't be made.
        IndexError: ``logged_envs`` is out of range.
    """
    count = int(np.prod(batch_size, dtype=np.int64))
    if ended is not None:
        sink, first_env, recording_id = _next_part(settings, ended), ended.source.first_env, ended.recording_id
    else:
        sink, number = _claim(settings)
        first_env, recording_id = (number or 0) * count, _recording_id(settings, number)
    source = Source(
        batch_size=batch_size,
        name=specs.env_name(env),
        fps=settings.fps or specs.frames_per_second(env),
        first_env=first_env,
    )
    try:
        recording = Recording(
            sink,
            source,
            settings.options,
            recording_id=recording_id,
            continues=ended,
        )
    except BaseException:
        sink.discard()
        raise
    if settings.options.logged_envs is None and len(recording.envs) < count:
        warnings.warn(
            f"of {count} environments the first {len(recording.envs)} are recorded; choose with logged_envs=...",
            UserWarning,
            stacklevel=2,
        )
    return recording


def _next_part(settings: Settings, ended: Recording) -> FileSink:
    """A finished file can't be written to: what comes after ``close()`` goes into another one of the same recording."""
    part = 1
    while (sink := settings.sink.sibling(f"part_{part}")).path.exists():
        part += 1
    sink.open()
    warnings.warn(
        f"{ended.path.name} was closed; what comes now is recorded in {sink.path.name}", UserWarning, stacklevel=2
    )
    return sink


def _claim(settings: Settings) -> tuple[FileSink, int | None]:
    """An open sink: the user's path, or one beside it where several recorders share the path, and their number."""
    number = _number(settings)
    if number is None:
        settings.sink.open()
        return settings.sink, None
    while True:
        sink = settings.sink.sibling(f"worker_{number}")
        try:
            sink.open()
        except FileExistsError as taken:
            # Nested workers count from 0 each, and copies within a process are not numbered at all.
            if worker_number() is not None and not isinstance(taken, FileInUseError):
                raise
            number += 1
        else:
            return sink, number


def _number(settings: Settings) -> int | None:
    """This recorder's number among those that share its path; None where it has the path to itself."""
    if in_torchrl_worker() or settings.is_copy or settings.process != os.getpid():
        return worker_number() or 0
    return 0 if str(settings.sink.path) in shared_paths else None


def _recording_id(settings: Settings, number: int | None) -> str:
    """One id for all that share a path, though they can't talk to one another; else a new one."""
    if settings.options.recording_id is not None:
        return settings.options.recording_id
    if number is None:
        return uuid.uuid4().hex
    family = os.getpid() if worker_number() is None else os.getppid()
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{settings.sink.path}#{family}").hex
