"""Describing: what is in recordings, by what they say of themselves and by the index in their files' footers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from torchrl_rerun.kinds.schema import Schema, Split
from torchrl_rerun.kinds.streams import Key, Stream, batch_path
from torchrl_rerun.rrd.contents import Contents, contents_of, index_of
from torchrl_rerun.rrd.copies import copies_among, say_copies
from torchrl_rerun.rrd.files import files_of, not_ours, why_unreadable

_TIMELINES = ("frame", "step", "episode", "log_time")


@dataclass(frozen=True)
class Part:
    """A file.

    Attributes:
        path: where it is.
        bytes: its size.
        has_layout: whether the viewer finds one in it.
        trouble: why it can't be opened, and what to do; None: it is whole.
    """

    path: Path
    bytes: int
    has_layout: bool = False
    trouble: str | None = None


@dataclass(frozen=True)
class Described:
    """A key, in all environments and files together.

    Attributes:
        key: the key.
        kind: how it is shown; of statistics ``"statistics"``.
        dtype: torch's name of the dtype.
        shape: shape of one environment's value, the agent dimension included.
        image_format: how images are stored; None for other kinds.
        agents: names of the agents.
        rows: how many there are; None: a file has no index that knows.
        bytes: what they take in the files, compressed; None: a file has no index that knows.
    """

    key: Key
    kind: str
    dtype: str
    shape: tuple[int, ...]
    image_format: str | None
    agents: tuple[str, ...]
    rows: int | None
    bytes: int | None


@dataclass(frozen=True)
class Description:
    """A recording, or the recordings of all episodes in a folder.

    Attributes:
        application_id: what the run is called.
        recordings: how many recordings there are: one for each episode, with ``split="episode"``.
        env_name: the environment's name, if it says.
        batch_size: of the environments.
        envs: indices of the recorded ones.
        fps: frames per second of simulated time, if it is known.
        split: what a recording is of.
        spans: the first and the last place on the timelines ``frame``, ``step``, ``episode`` and ``log_time``
            (nanoseconds since the epoch), as far as the files' indexes know.
        keys: what is recorded.
        versions: of Python and the libraries, by their names.
        files: the files; of what there are copies of, one.
    """

    application_id: str
    recordings: int
    env_name: str | None
    batch_size: tuple[int, ...]
    envs: tuple[int, ...]
    fps: float | None
    split: Split
    spans: dict[str, tuple[int, int]]
    keys: tuple[Described, ...]
    versions: dict[str, str]
    files: tuple[Part, ...]


def describe_files(
    path: str | os.PathLike[str], progress: Callable[[Sequence[Path]], Iterable[Path]] = iter
) -> tuple[list[Description], list[Part]]:
    """What is recorded at a path, and the files that can't be read or are none of ``torchrl_rerun``.

    Copies of a recording are left out, and a warning names them. Nothing is read but what the files say of themselves, unless they aren't finished.

    Args:
        path: a recording, or a folder of them.
        progress: is given the files, and gives them back one by one.

    Raises:
        FileNotFoundError: there is no recording.
    """
    groups: dict[tuple[Path, str], _Group] = {}
    others: list[Part] = []
    ours: list[tuple[Part, Contents, Schema]] = []
    for file in progress(files_of(path)):
        part, found = _look(file)
        described = [(part, contents, schema) for contents in found if (schema := contents.schema) is not None]
        if not described:
            others.append(part)
        ours += described
    copies = copies_among(contents for _, contents, _ in ours)
    say_copies(copies)
    for part, contents, schema in ours:
        if (part.path, contents.recording_id) not in copies:
            key = part.path.parent, "" if schema.split == "episode" else contents.recording_id
            groups.setdefault(key, _Group()).add(part, contents, schema)
    return [group.described() for group in groups.values()], others


def _look(file: Path) -> tuple[Part, list[Contents]]:
    """A file, and what is in it, as far as it can be read."""
    size, trouble = file.stat().st_size, why_unreadable(file)
    try:
        found = contents_of(file)
    except ValueError as error:
        return Part(file, size, trouble=trouble or str(error)), []
    if trouble is None and all(contents.schema is None for contents in found):
        trouble = not_ours(file)
    return Part(file, size, found[0].has_layout, trouble), found


class _Group:
    """What is described together: the files of a recording, or of the episodes in a folder."""

    def __init__(self) -> None:
        self._parts: dict[Path, Part] = {}
        self._contents: list[Contents] = []
        self._schemas: list[Schema] = []
        self._sums: dict[str, npt.NDArray[np.int64]] = {}  # by entity path: rows, and bytes
        self._spans: dict[str, tuple[int, int]] = {}
        self._is_counted = True

    def add(self, part: Part, contents: Contents, schema: Schema) -> None:
        self._parts[part.path] = part
        self._contents.append(contents)
        self._schemas.append(schema)
        index = index_of(part.path) if contents.is_finished else None
        if index is None:
            self._is_counted = False
            return
        changes = ~index["chunk_is_static"].to_numpy()
        paths, where = np.unique(np.array(index["chunk_entity_path"].to_pylist(), object), return_inverse=True)
        rows = np.bincount(where, index["chunk_num_rows"].to_numpy() * changes)
        sizes = np.bincount(where, index["chunk_byte_size"].to_numpy())
        for path, sums in zip(paths, np.stack([rows, sizes], axis=1).astype(np.int64), strict=True):
            self._sums[path] = self._sums.get(path, 0) + sums
        for timeline in _TIMELINES:
            self._span(timeline, index)

    def _span(self, timeline: str, index: pa.Table) -> None:
        if f"{timeline}:start" in index.column_names:
            first, last = (pc.min_max(index[f"{timeline}:{end}"].cast(pa.int64())) for end in ("start", "end"))
            span = first["min"].as_py(), last["max"].as_py()
            if None not in span:
                before = self._spans.get(timeline, span)
                self._spans[timeline] = min(before[0], span[0]), max(before[1], span[1])

    def described(self) -> Description:
        latest = self._schemas[-1]
        return Description(
            self._contents[-1].application_id,
            len({contents.recording_id for contents in self._contents}),
            latest.source.name,
            latest.source.batch_size,
            tuple(sorted({env for schema in self._schemas for env in schema.envs})),
            latest.source.fps,
            latest.split,
            self._spans,
            tuple(self._keys()),
            latest.versions,
            tuple(self._parts.values()),
        )

    def _keys(self) -> Iterator[Described]:
        found: dict[Key, tuple[Stream, set[str]]] = {}
        statistics: dict[Key, set[str]] = {}
        for schema in self._schemas:
            for stream, _ in schema.described:
                found.setdefault(stream.key, (stream, set()))[1].update(schema.paths_of(stream))
            for key in schema.statistics:
                statistics.setdefault(key, set()).add(batch_path(key))
        for key, (stream, paths) in found.items():
            yield Described(
                key,
                stream.kind.name,
                stream.dtype,
                stream.shape,
                stream.kind.format,
                stream.agents,
                *self._counted(paths),
            )
        for key, paths in statistics.items():
            yield Described(("batch", *key), "statistics", "float64", (), None, (), *self._counted(paths))

    def _counted(self, paths: Iterable[str]) -> tuple[int | None, int | None]:
        """The rows of some entities, and the bytes that they take."""
        if not self._is_counted:
            return None, None
        rows, size = sum((self._sums[path] for path in paths if path in self._sums), np.zeros(2, np.int64))
        return int(rows), int(size)
