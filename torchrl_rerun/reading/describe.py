"""Describing recordings for ``info``: what they say of themselves, and what the indexes of their files sum up to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Schema, Split
from torchrl_rerun.kinds.streams import Stream, batch_path
from torchrl_rerun.paths import check_name, format_path
from torchrl_rerun.rrd.copies import copies_among, warn_of_copies
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.files import files_of, not_ours
from torchrl_rerun.rrd.frame_codes import Span
from torchrl_rerun.rrd.reader import parts_in, why_unreadable
from torchrl_rerun.rrd.rests import warn_of_rests

_TIMELINES = ("frame", "step", "episode", "log_time")


@dataclass(frozen=True)
class FileSummary:
    """A file.

    Attributes:
        path: the file.
        bytes: its size.
        has_layout: whether the viewer finds a layout in it.
        trouble: why the viewer can't open it, and what to do; None: it can.
    """

    path: Path
    bytes: int
    has_layout: bool = False
    trouble: str | None = None


@dataclass(frozen=True)
class KeySummary:
    """A key, in all environments and files together.

    Attributes:
        key: the key.
        kind: how it is shown; ``"statistics"`` for statistics.
        dtype: torch's name of the dtype.
        shape: shape of one environment's value, the agent dimension included.
        image_format: how images are stored; None for other kinds.
        agents: names of the agents.
        rows: the number of rows.
        bytes: the bytes of the rows in the files, compressed; of rows in a black box, those in memory.
    """

    key: Key
    kind: str
    dtype: str
    shape: tuple[int, ...]
    image_format: str | None
    agents: tuple[str, ...]
    rows: int
    bytes: int


@dataclass(frozen=True)
class RecordingSummary:
    """A recording, or the recordings of all episodes in a folder.

    Attributes:
        application_id: name of the run.
        recordings: the number of recordings: one for each episode, with ``split="episode"``.
        env_name: name of the environment, if it is known.
        batch_size: batch size of the environments.
        envs: indices of the recorded ones.
        fps: frames per second of simulated time, if it is known.
        split: what a recording is of.
        spans: the first and the last value on the timelines ``frame``, ``step``, ``episode`` and ``log_time``
            (nanoseconds since the epoch).
        keys: the recorded keys.
        versions: versions of Python and the libraries, by their names.
        files: the files. Of several copies there is one.
    """

    application_id: str
    recordings: int
    env_name: str | None
    batch_size: tuple[int, ...]
    envs: tuple[int, ...]
    fps: float | None
    split: Split
    spans: dict[str, Span]
    keys: tuple[KeySummary, ...]
    versions: dict[str, str]
    files: tuple[FileSummary, ...]


def describe_files(
    path: str | os.PathLike[str], progress: Callable[[Sequence[Path]], Iterable[Path]] = iter
) -> tuple[list[RecordingSummary], list[FileSummary]]:
    """Return what is recorded at a path, and the files that hold no recording of ``torchrl_rerun`` that can be read.

    Copies of a recording are left out, and a warning names them. Of the rows only flags and categories are read.

    Args:
        path: a recording, or a folder of them.
        progress: called with the files; yields them one by one.

    Raises:
        FileNotFoundError: there is no recording.
    """
    summed: dict[tuple[Path, str], _Sum] = {}
    others: list[FileSummary] = []
    ours: list[tuple[FileSummary, FilePart, Schema]] = []
    files = files_of(path)
    warn_of_rests(files)
    for path_of_one in progress(files):
        file, parts = _look(path_of_one)
        described = [(file, part, part.schema) for part in parts if part.schema is not None]
        if not described:
            others.append(file)
        ours += described
    copies = copies_among(part for _, part, _ in ours)
    warn_of_copies(copies)
    for file, part, schema in ours:
        if (file.path, part.recording_id) not in copies:
            key = file.path.parent, "" if schema.split == "episode" else part.recording_id
            summed.setdefault(key, _Sum()).add(file, part, schema)
    return [each.summary() for each in summed.values()], others


def _look(path: Path) -> tuple[FileSummary, list[FilePart]]:
    """Return a file, and what it holds unless it ends within a message."""
    size, trouble = path.stat().st_size, why_unreadable(path)
    try:
        check_name(path)
        found = parts_in(path)
        is_ours = any(part.schema is not None for part in found)
    except ValueError as error:
        return FileSummary(path, size, trouble=trouble or str(error)), []
    if not found:
        return FileSummary(path, size, trouble=trouble or f"there is nothing in {format_path(path)}"), []
    if trouble is None and not is_ours:
        trouble = not_ours(path)
    if path.is_dir():
        size = sum(part.size for part in found)
    return FileSummary(path, size, found[0].has_layout, trouble), found


class _Sum:
    """The files of a recording, or of the episodes in a folder, summed up."""

    def __init__(self) -> None:
        self._files: dict[Path, FileSummary] = {}
        self._recording_ids: set[str] = set()
        self._schemas: list[Schema] = []
        self._application_id = ""
        self._rows: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._spans: dict[str, Span] = {}

    def add(self, file: FileSummary, part: FilePart, schema: Schema) -> None:
        self._files[file.path] = file
        self._recording_ids.add(part.recording_id)
        self._schemas.append(schema)
        self._application_id = part.application_id
        for path, rows, size in part.index.sums():
            self._rows[path] += max(rows, part.count(path))  # a row of a flag may stand for several
            self._bytes[path] += size
        for timeline in _TIMELINES:
            span = part.index.span(timeline)
            if span is not None:
                before = self._spans.get(timeline, span)
                self._spans[timeline] = min(before[0], span[0]), max(before[1], span[1])

    def summary(self) -> RecordingSummary:
        latest = self._schemas[-1]
        return RecordingSummary(
            self._application_id,
            len(self._recording_ids),
            latest.source.name,
            latest.source.batch_size,
            tuple(sorted({env for schema in self._schemas for env in schema.envs})),
            latest.source.fps,
            latest.split,
            self._spans,
            tuple(self._keys()),
            latest.versions,
            tuple(self._files.values()),
        )

    def _keys(self) -> Iterator[KeySummary]:
        found: dict[Key, tuple[Stream, set[str]]] = {}
        statistics: dict[Key, set[str]] = {}
        for schema in self._schemas:
            for stream, _ in schema.described:
                found.setdefault(stream.key, (stream, set()))[1].update(schema.paths_of(stream))
            for key in schema.statistics:
                statistics.setdefault(key, set()).add(batch_path(key))
        for key, (stream, paths) in found.items():
            yield KeySummary(
                key,
                stream.kind.name,
                stream.dtype,
                stream.shape,
                stream.kind.format,
                stream.agents,
                *self._counted(paths),
            )
        for key, paths in statistics.items():
            yield KeySummary(("batch", *key), "statistics", "float64", (), None, (), *self._counted(paths))

    def _counted(self, paths: Iterable[str]) -> tuple[int, int]:
        """Return the rows of some entities, and their bytes."""
        found = list(paths)
        return sum(self._rows[path] for path in found), sum(self._bytes[path] for path in found)
