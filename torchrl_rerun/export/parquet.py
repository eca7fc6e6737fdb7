"""Export to Parquet: a row for each step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from tensordict.utils import NestedKey

from torchrl_rerun.export.parquet_columns import Form, Nature, column_of, form_of, natures_of
from torchrl_rerun.export.renaming import distinct, slashed
from torchrl_rerun.export.steps import LeftOut, Progress, described, without_progress
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.kinds.schema import Moment, TimedStream
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.paths import find_target, format_path
from torchrl_rerun.reading.loaded_episode import LoadedEpisode
from torchrl_rerun.reading.steps import step_values
from torchrl_rerun.reading.transitions import transitions
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.frame_codes import episode_span

GROUP_BYTES = 32 << 20
"""Bytes of a row group, about: a group of a few rows takes more room for itself than for them."""

_OWN = ("env", "episode", "row")
_NEXT = "next/"
_PREFIXES = {Moment.OBSERVED: ("", _NEXT), Moment.ACTED: ("",), Moment.STEPPED: (_NEXT,)}
"""The prefixes of a key's columns: of its values before the step, and after it."""
_UNRECORDED = "since not both of their frames were recorded (skip, triggers, switch()) or are in these files"


def to_parquet(
    episodes: Sequence[LoadedEpisode],
    path: str | os.PathLike[str],
    *,
    keys: Sequence[NestedKey] | None = None,
    overwrite: bool = False,
    progress: Progress = without_progress,
) -> int:
    """Write the steps of episodes as one Parquet file, a row each, and return their number.

    - The columns are ``env``, ``episode``, ``row`` (number of the step in its episode, from 0), then the keys of the
      episode's tensordict, nested keys joined by ``/``: ``observation``, ``next/observation``, ``next/reward``.
    - Every step of which both frames are recorded is a row. A warning says how many steps are left out.
    - Missing values are null.

    ==========================================  ==================================================================
    values of a key                             column
    ==========================================  ==================================================================
    one number                                  a number; bfloat16 is float32, other dtypes stay
    a vector of one size                        a list of fixed size
    tensors of one shape                        Arrow's ``fixed_shape_tensor``, which carries the shape
    tensors that vary in shape, arrays          nested lists; they have to agree in dtype and number of dimensions
    strings alone                               a string
    bytes alone                                 binary
    other non-tensor data, strings among them   JSON text; the metadata of the field says ``application/json``
    ==========================================  ==================================================================

    If two keys would have columns of one name, or a name of the first three columns, the key that sorts later gets ``_2`` at
    its end, with a warning.

    Args:
        episodes: the episodes, as :func:`~torchrl_rerun.load` returns them.
        path: the file. It gets its name when it is whole.
        keys: the keys. Default: all but pictures, non-tensor data, keys that vary in shape, complex numbers, and the returns
            that the recorder worked out.
        overwrite: replace a file that exists.
        progress: called with the episodes and their number; yields the episodes one by one.

    Raises:
        FileExistsError: the file exists, and ``overwrite`` is false.
        KeyError: a key isn't recorded.
        ValueError: there are no steps; the episodes are recorded in different ways; or Parquet has no column for a key:
            complex numbers, bytes beside other values, arrays of several dtypes.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_rerun import RerunRecorder, load, to_parquet
        >>> folder = tempfile.mkdtemp()
        >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(f"{folder}/run.rrd"))
        >>> rollout = env.rollout(5)
        >>> env.close()
        >>> to_parquet(load(f"{folder}/run.rrd"), f"{folder}/run.parquet") == len(rollout)
        True
    """
    target = find_target(path)
    if target.exists() and any(
        target.samefile(file) for episode in episodes for file in episode.files if file.exists()
    ):
        raise ValueError(f"{format_path(path)} holds the episodes that are exported: choose another file")
    forms, left_out = _forms(episodes, keys), LeftOut(_UNRECORDED)
    with written_aside(path, overwrite=overwrite) as hidden:
        with TableWriter(hidden) as writer:
            for table in _tables(progress(episodes, len(episodes)), keys, forms, left_out):
                writer.add(table)
        if not writer.rows:
            raise left_out.nothing()
    left_out.say()
    return writer.rows


def unheld(stream: Stream, _: Moment) -> str:
    """Return why Parquet can't hold a key; empty if it can."""
    return "is complex, and Parquet has no such numbers" if stream.is_complex else ""


class TableWriter:
    """Writes tables as one Parquet file, several as one row group. Without rows there is no file.

    Args:
        path: the file.

    Attributes:
        rows: the number of rows so far.
    """

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._path = path
        self._waiting: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self._write()
        finally:
            if self._writer is not None:
                self._writer.close()

    def add(self, table: pa.Table) -> None:
        """Add the rows of a table."""
        self.rows += len(table)
        self._waiting.append(table)
        if sum(each.nbytes for each in self._waiting) >= GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
            self._writer.write_table(table)
            self._waiting = []


def _tables(
    episodes: Iterable[LoadedEpisode], keys: Sequence[NestedKey] | None, forms: dict[Key, Form], left_out: LeftOut
) -> Iterator[pa.Table]:
    """Yield the table of each episode, and count the steps that it leaves out."""
    names: dict[Key, str] = {}
    for episode, found in described(episodes, keys, unheld):
        names = names or _names(found)
        known, span = episode.properties, episode_span(episode.properties.episode)
        at = transitions(episode.history, found, span)
        left_out.add(episode, len(at))
        columns = {
            "env": pa.repeat(pa.scalar(known.env, pa.int64()), len(at)),
            "episode": pa.repeat(pa.scalar(known.episode, pa.int64()), len(at)),
            "row": pa.array(at.before & 0xFFFFFFFF),
        }
        fields = [pa.field(name, pa.int64()) for name in columns]
        for stream, sides in step_values(episode.history, found, span, at):
            form = forms.get(stream.key)
            for side in sides:
                name = (_NEXT if side.is_next else "") + names[stream.key]
                columns[name] = column_of(stream, side.values, side.is_there, form)
                fields.append(pa.field(name, columns[name].type, metadata=form.metadata if form else None))
        yield pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))


def _forms(episodes: Iterable[LoadedEpisode], keys: Sequence[NestedKey] | None) -> dict[Key, Form]:
    """Decide the columns of keys whose values are objects, by all their values: a file has one schema."""
    if keys is None:
        return {}
    objects: dict[Key, Stream] = {}
    natures: dict[Key, set[Nature]] = {}
    for episode, found in described(episodes, keys, unheld):
        for stream, _ in found:
            if stream.is_object:
                objects[stream.key] = stream
                rows = episode.history.rows(stream, episode_span(episode.properties.episode))
                said = natures_of(stream, rows.values)
            else:  # a shape may vary in later episodes alone
                said = {Nature("array", stream.dtype, len(stream.row_shape))}
            natures.setdefault(stream.key, set()).update(said)
    return {key: form_of(stream, natures[key]) for key, stream in objects.items()}


def _names(found: Sequence[TimedStream]) -> dict[Key, str]:
    """Return the names of the columns of keys."""
    wishes = (slashed(stream.key, name_of(stream.key), stream.key, _PREFIXES[moment]) for stream, moment in found)
    return distinct(wishes, "Parquet", _OWN)
