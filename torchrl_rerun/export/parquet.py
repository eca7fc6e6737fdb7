"""Recordings as Parquet: a row for each step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tensordict.utils import NestedKey

from torchrl_rerun.export.parquet_columns import Form, Nature, column_of, form_of, natures_of
from torchrl_rerun.export.renaming import distinct, slashed
from torchrl_rerun.export.steps import LeftOut, Progress, described, unchanged
from torchrl_rerun.kinds.schema import Described, Moment
from torchrl_rerun.kinds.streams import Key, Stream, name_of
from torchrl_rerun.paths import shown, target_of
from torchrl_rerun.reading.episodes import LoadedEpisode
from torchrl_rerun.reading.steps import step_values
from torchrl_rerun.reading.transitions import transitions
from torchrl_rerun.rrd.atomic import written_aside
from torchrl_rerun.rrd.frame_codes import episode_span

GROUP_BYTES = 32 << 20
"""Bytes of the steps that are written at once."""

_OWN = ("env", "episode", "row")
_NEXT = "next/"
_PREFIXES = {Moment.OBSERVED: ("", _NEXT), Moment.ACTED: ("",), Moment.STEPPED: (_NEXT,)}
"""The columns of a key: of its values at the step, and of those that came of it."""
_UNRECORDED = "since not both of their frames were recorded (skip, triggers, switch()) or are in these files"


def to_parquet(
    episodes: Sequence[LoadedEpisode],
    path: str | os.PathLike[str],
    *,
    keys: Sequence[NestedKey] | None = None,
    overwrite: bool = False,
    progress: Progress = unchanged,
) -> int:
    """Write the steps of episodes as one Parquet file, a row each. Returns how many they are.

    The columns are ``env``, ``episode``, ``row`` (the number of the step in its episode, from 0), then what the tensordict of
    the episode holds, nested keys joined by ``/``: ``observation``, ``next/observation``, ``next/reward``. Every step of which
    both frames are recorded is a row. Values that are missing there are null, and a warning says how many steps are left out.

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

    If columns of two keys would have one name, or one of the first three, the key that sorts later gets ``_2`` at its end, and
    a warning says so.

    Args:
        episodes: the episodes, as :func:`~torchrl_rerun.load` gives them.
        path: the file. It gets its name when it is whole.
        keys: which ones; None: all but pictures, non-tensor data, what varies in shape, complex numbers, and the returns that
            the recorder worked out.
        overwrite: replace a file that exists.
        progress: is given the episodes, and how many they are, and gives them back one by one.

    Raises:
        FileExistsError: the file exists, and ``overwrite`` is false.
        KeyError: a key isn't recorded.
        ValueError: there are no steps, or those of several runs that are recorded in different ways; or a key has values for
            which there is no column: complex numbers, bytes beside other values, arrays of several dtypes.
    """
    target = target_of(path)
    if target.exists() and any(
        target.samefile(file) for episode in episodes for file in episode.files if file.exists()
    ):
        raise ValueError(f"{shown(path)} holds the episodes that are exported: choose another file")
    forms, left_out = _forms(episodes, keys), LeftOut(_UNRECORDED)
    with written_aside(path, overwrite=overwrite) as hidden:
        rows = write_tables(hidden, _tables(progress(episodes, len(episodes)), keys, forms, left_out))
        if not rows:
            raise left_out.nothing()
    left_out.say()
    return rows


def unheld(stream: Stream, _: Moment) -> str:
    """Why Parquet can't hold a key; empty: it can."""
    return "is complex, and Parquet has no such numbers" if stream.is_complex else ""


def write_tables(path: Path, tables: Iterable[pa.Table]) -> int:
    """Write tables as one Parquet file, some at a time. Returns how many rows they have; of none there is no file."""
    rows, writer = 0, None
    try:
        for table in _groups(tables):
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
            rows += len(table)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _tables(
    episodes: Iterable[LoadedEpisode], keys: Sequence[NestedKey] | None, forms: dict[Key, Form], left_out: LeftOut
) -> Iterator[pa.Table]:
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
    """Decide about the columns of keys whose values are objects, by all their values: a file has one schema."""
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


def _names(found: Sequence[Described]) -> dict[Key, str]:
    """Name the columns of keys."""
    wishes = (slashed(stream.key, name_of(stream.key), stream.key, _PREFIXES[moment]) for stream, moment in found)
    return distinct(wishes, "Parquet", _OWN)


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables together, until they are worth a row group: one of a few rows costs more than they do."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(each.nbytes for each in waiting) >= GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
