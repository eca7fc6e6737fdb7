"""Chunks: from the rows of environments to Rerun's chunks, each stream by its kind."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rerun.chunk import Chunk

from torchrl_rerun.blocks.env_rows import EnvRows
from torchrl_rerun.chunks.encoding import Encoding
from torchrl_rerun.chunks.losses import LossError, Losses, reason_of
from torchrl_rerun.kinds.arrow import Column, Entity, chunks_of, times_of
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.kinds.lasting import pays, rows_column, stored_rows
from torchrl_rerun.kinds.objects import MISSING, NotStorableError, Written, columns_of_objects, written
from torchrl_rerun.kinds.streams import Stream, entity_path
from torchrl_rerun.kinds.timelines import FRAME, Positions

MOST_FAILURES = 32
"""Rows of a block that a kind may fail to store one by one. The rest of them is given up together."""


class ChunkFactory:
    """Turns the rows of environments into chunks. A value that can't be stored costs that value.

    Args:
        fps: frames per second of simulated time; None: no ``sim_time``.
        encoding: takes values that are encoded, and makes chunks of them when there are enough.
        losses: told of values that could not be stored.
    """

    def __init__(self, fps: float | None, encoding: Encoding, losses: Losses) -> None:
        self._fps = fps
        self._encoding = encoding
        self._losses = losses
        self._undrawn: set[Key] = set()

    def chunks(self, rows_of_env: EnvRows, env: int | None) -> Iterator[Chunk]:
        """Return one chunk for each key and agent, except for values that are encoded first.

        Args:
            rows_of_env: the rows.
            env: environment index; None: the recording is of one environment.
        """
        positions = rows_of_env.positions
        together: list[_StreamColumns] = []
        lasting: list[_Lasting] = []
        for stream, values in rows_of_env.values:
            for agent in range(stream.agent_count):
                path, rows = entity_path(stream, env, agent), values[:, agent] if stream.agents else values
                if stream.is_object:
                    yield from self._of_objects(stream, path, rows, positions, together)
                    continue
                stored = stored_rows(rows, positions) if stream.kind.lasts else None
                if stored is not None and pays(stored, positions):
                    lasting.append(_Lasting(stream, path, rows, stored))
                else:
                    yield from self._of_values(stream, path, rows, positions, together)
        changes = [*self._of_changes(lasting, positions, together)]
        yield from self._chunks(positions, together)
        yield from changes

    def _of_changes(
        self, lasting: Sequence[_Lasting], positions: Positions, together: list[_StreamColumns]
    ) -> Iterator[Chunk]:
        """Yield chunks of the rows at which values change. Streams that change at the same times are made together.

        Args:
            lasting: the streams.
            positions: positions of all rows.
            together: takes the columns of all rows of a stream if its changes can't be stored.
        """
        if not lasting:
            return
        stored = np.logical_or.reduce([each.stored for each in lasting])
        if len(lasting) > 1 and not pays(stored, positions):
            for each in lasting:
                yield from self._of_changes([each], positions, together)
            return
        made: list[_StreamColumns] = []
        counts = rows_column(stored)
        for stream, path, rows, _ in lasting:
            try:
                made.append(_StreamColumns(stream, Entity(path, [*_columns(stream, rows[stored]), counts])))
            except LossError:
                yield from self._of_values(stream, path, rows, positions, together)
        yield from self._chunks(np.asfortranarray(positions[stored]), made)

    def _of_values(
        self,
        stream: Stream,
        path: str,
        rows: npt.NDArray[Any],
        positions: Positions,
        together: list[_StreamColumns],
    ) -> Iterator[Chunk]:
        """Begin to encode rows that the key's kind holds, or make columns. Yield chunks if some rows can't be stored.

        Args:
            stream: the stream.
            path: the entity path.
            rows: the rows.
            positions: positions of the rows.
            together: takes the columns if all rows can be stored.
        """
        try:
            queue = self._encoding.queue_for(path, stream)
        except LossError as loss:
            self._losses.add(stream.key, positions[:, FRAME], str(loss))
            return
        if queue is not None:
            queue.add(rows, positions)
            return
        if stream.is_object:
            rows = _together(stream, rows)
        try:
            together.append(_StreamColumns(stream, Entity(path, _columns(stream, rows))))
        except LossError as loss:
            yield from self._one_by_one(stream, path, rows, positions, str(loss))
            return
        together += self._drawn(stream, path, rows)

    def _drawn(self, stream: Stream, path: str, rows: npt.NDArray[Any]) -> Iterator[_StreamColumns]:
        """Yield the columns of the entities below that of a stream. A kind that fails at it costs what is drawn alone."""
        for below, kind in stream.drawing:
            try:
                drawn = kind.below(stream, rows)
            except Exception as error:
                if stream.key not in self._undrawn:
                    self._undrawn.add(stream.key)
                    _warn_quietly(f"{name_of(stream.key)} is recorded, and not drawn: {type(error).__name__}: {error}")
                continue
            for name, columns in drawn.items():
                yield _StreamColumns(stream, Entity(f"{path}{below}/{name}", columns))

    def _one_by_one(
        self, stream: Stream, path: str, rows: npt.NDArray[Any], positions: Positions, why: str
    ) -> Iterator[Chunk]:
        """Yield chunks of the rows that can be stored, though together they can't: a value that can't be costs that value.

        Args:
            stream: the stream.
            path: the entity path.
            rows: the rows.
            positions: positions of the rows.
            why: the reason for which they can't be stored together.
        """
        parts, failures = [(0, len(rows), why)], 0
        while parts:
            first, last, why = parts.pop()
            if last - first == 1 or failures >= MOST_FAILURES:
                self._losses.add(stream.key, positions[first:last, FRAME], why)
                failures += 1
                continue
            middle = (first + last) // 2
            for part in (slice(middle, last), slice(first, middle)):
                try:
                    columns = _columns(stream, rows[part])
                except LossError as loss:
                    parts.append((part.start, part.stop, str(loss)))
                else:
                    yield from self._chunks(positions[part], [_StreamColumns(stream, Entity(path, columns))])

    def _chunks(self, positions: Positions, made: Sequence[_StreamColumns]) -> Iterator[Chunk]:
        """Yield the chunks of entities that share their times. If that fails, try each entity by itself."""
        if not made:
            return
        times = times_of(positions, self._fps)
        try:
            chunks = list(chunks_of(times, [each.entity for each in made]))
        except Exception as error:
            if len(made) == 1:
                self._losses.add(made[0].stream.key, positions[:, FRAME], f"its columns make no chunk ({error})")
                return
            chunks = [chunk for each in made for chunk in self._chunks(positions, [each])]
        yield from chunks

    def _of_objects(
        self, stream: Stream, path: str, rows: npt.NDArray[Any], positions: Positions, together: list[_StreamColumns]
    ) -> Iterator[Chunk]:
        """Yield chunks of rows that are values by themselves. The key's kind stores the values that it holds; all others are objects.

        Args:
            stream: the stream.
            path: the entity path.
            rows: the values, ``[n]``.
            positions: positions of the rows, ``[n, 6]``.
            together: takes columns that have a value in each row.
        """
        usual: list[int] = []
        others: list[int] = []
        values: list[Written] = []
        for row, value in enumerate(rows):
            if value is MISSING:
                continue
            try:
                if stream.kind.holds(stream, value):
                    usual.append(row)
                    continue
                values.append(_written(stream, value))
                others.append(row)
            except Exception as error:
                is_odd = isinstance(error, NotStorableError)
                why = f"{error} can't be stored so that it comes back as it was" if is_odd else reason_of(stream, error)
                self._losses.add(stream.key, positions[row : row + 1, FRAME], why)
        if usual:
            held: list[_StreamColumns] = []
            yield from self._of_values(stream, path, rows[usual], positions[usual], held)
            yield from self._chunks(positions[usual], held)
        if others:
            made = _StreamColumns(stream, Entity(path, columns_of_objects(values)))
            if len(others) == len(rows):
                together.append(made)
            else:
                yield from self._chunks(positions[others], [made])


def _columns(stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
    """Return the columns of some rows.

    Raises:
        LossError: the rows can't be stored together.
    """
    kind = stream.kind
    name = f"{type(kind).__name__}.columns"
    try:
        columns = list(kind.columns(stream, rows))
        wrong = next((column for column in columns if len(column.values) != len(rows)), None)
        is_readable = any(column.component in kind.components for column in columns)
    except Exception as error:
        raise LossError(
            f"{name} failed for {stream.dtype} {rows.shape[1:]} ({type(error).__name__}: {error})"
        ) from error
    if wrong is not None:
        raise LossError(f"{name} made {len(wrong.values)} rows of {wrong.component} of {len(rows)} values")
    if not is_readable:
        raise LossError(
            f"{name} returned none of {', '.join(kind.components)}, by which it could be read: add "
            "exact_column(stream.numbers(rows)), or override components and values"
        )
    return columns


def _together(stream: Stream, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values that a kind holds as it takes them: one by one if their shapes may differ."""
    try:
        is_of_any_size = stream.kind.is_of_any_size(stream)
    except Exception:  # `columns` is asked with values of the usual shape, and its failure is told
        is_of_any_size = False
    return rows if is_of_any_size else np.stack(list(rows))


class _Lasting(NamedTuple):
    """An entity's rows, of which some are stored.

    Attributes:
        stream: the stream.
        path: the entity path.
        rows: all rows, ``[n, *stream.row_shape]``.
        stored: the rows that must be stored, bool ``[n]``.
    """

    stream: Stream
    path: str
    rows: npt.NDArray[Any]
    stored: npt.NDArray[np.bool_]


class _StreamColumns(NamedTuple):
    """The columns of an entity, and their stream."""

    stream: Stream
    entity: Entity


def _written(stream: Stream, value: Any) -> Written:
    """Return a value without a fixed shape as it is stored."""
    if not stream.varies:
        return written(value)
    if not isinstance(value, np.ndarray):
        raise NotStorableError(type(value).__name__)
    return Written(tensor=stream.numbers(value[None])[0])


def static_chunks(streams: Iterable[Stream], envs: Sequence[int | None]) -> Iterator[Chunk]:
    """Yield the chunks of columns that do not change over time: names, colours, and formats of images.

    Args:
        streams: the streams.
        envs: environment indices; ``[None]`` if the recording is of one environment.
    """
    streams = list(streams)
    before = _agents_before(streams)
    for stream in streams:
        for agent in range(stream.agent_count):
            paths = [entity_path(stream, env, agent) for env in envs[: 1 if stream.shared else None]]
            yield from _static(stream, before.get(stream.key[0], 0) + agent, paths)


def assets_of(streams: Iterable[Stream]) -> list[str]:
    """Return the digests of the assets of streams."""
    return [*dict.fromkeys(each for stream in streams for _, kind in stream.drawing for each in kind.assets())]


def _static(stream: Stream, agent: int, paths: Sequence[str]) -> list[Chunk]:
    """Return the chunks of what a kind tells of a stream once. A kind that fails at it costs that alone."""
    try:
        columns = [*stream.kind.static(stream, agent)]
        chunks = [Chunk.from_columns(path, [], columns) for path in paths if columns]
        for number, path in enumerate(paths):
            for place, kind in stream.drawing:
                for name, below in kind.static_below(stream, number):
                    chunks.append(Chunk.from_columns(f"{path}{place}/{name}" if name else path + place, [], below))
    except Exception as error:
        _warn_quietly(f"the names and colours of {name_of(stream.key)} are not recorded: {error!r}")
        return []
    return chunks


def _warn_quietly(message: str) -> None:
    """Warn on the writer's thread, where a warning that is an error would end the recording."""
    with contextlib.suppress(Warning):
        warnings.warn(message, stacklevel=2)


def _agents_before(streams: Sequence[Stream]) -> dict[str, int]:
    """Return how many agents come before those of each group, in the order of the groups' names."""
    groups = {stream.key[0]: stream.agent_count for stream in streams if stream.agents}
    counts = itertools.accumulate((groups[name] for name in sorted(groups)), initial=0)
    return dict(zip(sorted(groups), counts, strict=False))
