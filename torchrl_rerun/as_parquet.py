"""Recordings as Parquet: a row for each step."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tensordict.utils import NestedKey

from torchrl_rerun.paths import shown, target_of
from torchrl_rerun.placing import placed
from torchrl_rerun.reading import LoadedEpisode
from torchrl_rerun.renaming import distinct, slashed
from torchrl_rerun.schema import Described, Moment
from torchrl_rerun.steps import Progress, array_of, described, unchanged, whole_steps
from torchrl_rerun.streams import Key, name_of

GROUP_BYTES = 32 << 20
"""Bytes of the steps that are written at once."""

_OWN = ("env", "episode", "row")
_NEXT = "next/"
_PREFIXES = {Moment.OBSERVED: ("", _NEXT), Moment.ACTED: ("",), Moment.STEPPED: (_NEXT,)}
"""The columns of a key: of its values at the step, and of those that came of it."""


def to_parquet(
    episodes: Sequence[LoadedEpisode],
    path: str | os.PathLike[str],
    *,
    keys: Sequence[NestedKey] | None = None,
    overwrite: bool = False,
    progress: Progress = unchanged,
) -> int:
    """Write the steps of episodes as one Parquet file, a row each. Returns how many they are.

    The columns are ``env``, ``episode``, ``row`` (the number of the row in its episode), then what the tensordict of the
    episode holds, nested keys joined by ``/``: ``observation``, ``next/observation``, ``next/reward``. One number is a
    plain column, several are a list of fixed size, and what has more dimensions is of Arrow's type of tensors, which
    carries the shape. Dtypes stay, but for bfloat16, which becomes float32. If columns of two keys would have one name, or
    one of the first three, the key that sorts later gets ``_2`` at its end, and a warning says so.

    Args:
        episodes: the episodes, as :func:`~torchrl_rerun.load` gives them.
        path: the file. It gets its name when it is whole.
        keys: which ones; None: all but pictures, non-tensor data, and the returns that the recorder worked out.
        overwrite: replace a file that exists.
        progress: is given the episodes, and how many they are, and gives them back one by one.

    Raises:
        FileExistsError: the file exists, and ``overwrite`` is false.
        KeyError: a key isn't recorded.
        ValueError: there are no steps, or those of several runs that are recorded in different ways.
    """
    target = target_of(path)
    if target.exists() and any(
        target.samefile(file) for episode in episodes for file in episode.files if file.exists()
    ):
        raise ValueError(f"{shown(path)} holds the episodes that are exported: choose another file")
    with placed(path, overwrite=overwrite) as hidden:
        rows = write_tables(hidden, _tables(progress(episodes, len(episodes)), keys))
        if not rows:
            raise ValueError("there are no steps to export")
    return rows


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


def _tables(episodes: Iterable[LoadedEpisode], keys: Sequence[NestedKey] | None) -> Iterator[pa.Table]:
    names: dict[Key, str] = {}
    for episode, found in described(episodes, keys):
        names = names or _names(found)
        steps = whole_steps(episode, found, follow=False)
        count, known = len(steps), episode.properties
        columns = {
            "env": pa.repeat(pa.scalar(known.env, pa.int64()), count),
            "episode": pa.repeat(pa.scalar(known.episode, pa.int64()), count),
            "row": pa.array(np.arange(count)),
        }
        for stream, moment in found:
            for prefix in _PREFIXES[moment]:
                part = steps["next"] if prefix else steps
                columns[prefix + names[stream.key]] = _column(array_of(part, stream))
        yield pa.table(columns)


def _names(found: Sequence[Described]) -> dict[Key, str]:
    """Name the columns of keys."""
    wishes = (slashed(stream.key, name_of(stream.key), stream.key, _PREFIXES[moment]) for stream, moment in found)
    return distinct(wishes, "Parquet", _OWN)


def _column(values: npt.NDArray[Any]) -> pa.Array:
    """An Arrow array of the rows of an array."""
    if values.dtype == object:
        return pa.array(values.tolist())
    shape = values.shape[1:]
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if shape in {(), (1,)}:
        return flat
    lists = pa.FixedSizeListArray.from_arrays(flat, math.prod(shape))
    if len(shape) == 1:
        return lists
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, shape), lists)


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
