"""Columns: from the arrays of a block to Rerun chunks, one function a kind.

Plotted numbers are float32 or float64, whichever holds theirs exactly; integers of 64 bits that neither holds have a
column of their own beside it. These columns claim no component type, since Rerun's ``Scalar`` stands for float64 alone:
``rerun rrd verify`` would complain, and the viewer plots nothing that doesn't claim it beside something that does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr
from rerun.chunk import Chunk

from torchrl_rerun.blocks.env_rows import EnvRows
from torchrl_rerun.kinds import objects
from torchrl_rerun.kinds.arrow import Column, Entity, blobs, chunks_of, flat, lists, number_lists, times_of
from torchrl_rerun.kinds.exact import EXACT, are_exact_floats
from torchrl_rerun.kinds.losses import Losses
from torchrl_rerun.kinds.objects import MISSING, NotStorableError, Written, tensor_data, written
from torchrl_rerun.kinds.palette import FLAG_COLORS, PALETTE, color
from torchrl_rerun.kinds.pixels import ARCHETYPES, COLOR_MODELS, MEDIA_TYPES, is_like, pictures_of, shown
from torchrl_rerun.kinds.streams import Stream, entity_path
from torchrl_rerun.kinds.timelines import FRAME, Positions
from torchrl_rerun.writing.encoder import Pictures

MAX_CONFIGURED_STATES = 32

VIDEO_CODECS: Mapping[str | None, rr.VideoCodec] = {"h264": rr.VideoCodec.H264, "av1": rr.VideoCodec.AV1}


class ChunkFactory:
    """Turns the rows of environments into chunks. A value that can't be stored costs that value.

    Args:
        fps: frames per second of simulated time; None: no ``sim_time``.
        pictures: takes images, and makes chunks of them when there are enough.
        losses: told of values that could not be stored.
    """

    def __init__(self, fps: float | None, pictures: Pictures, losses: Losses) -> None:
        self._fps = fps
        self._pictures = pictures
        self._losses = losses

    def chunks(self, piece: EnvRows, env: int | None) -> Iterator[Chunk]:
        """One chunk for each key and agent, but of encoded pictures.

        Args:
            piece: the rows.
            env: environment index; None: the recording is of one environment.
        """
        together: list[_Made] = []
        for stream, values in piece.values:
            for lane in range(stream.lanes):
                path, rows = entity_path(stream, env, lane), values[:, lane] if stream.agents else values
                if stream.is_encoded and not stream.is_object:
                    self._pictures.add(path, stream, rows, piece.positions)
                elif stream.is_object:
                    yield from self._of_objects(stream, path, rows, piece.positions, together)
                elif (columns := self._columns(stream, rows, piece.positions)) is not None:
                    together.append(_Made(stream, Entity(path, columns)))
        yield from self._chunks(piece.positions, together)

    def _columns(self, stream: Stream, rows: npt.NDArray[Any], positions: Positions) -> list[Column] | None:
        """The columns of some rows; None if they can't be stored, which costs them alone."""
        try:
            return _COLUMNS[stream.kind](stream, rows)
        except Exception as error:
            self._losses.add(stream.key, positions[:, FRAME], f"{stream.dtype} {stream.shape} ({error})")
            return None

    def _chunks(self, positions: Positions, made: Sequence[_Made]) -> Iterator[Chunk]:
        """The chunks of entities that share their times. If that fails each is tried by itself."""
        if not made:
            return
        times = times_of(positions, self._fps)
        try:
            chunks = list(chunks_of(times, [each.entity for each in made]))
        except Exception as error:
            if len(made) == 1:
                self._losses.add(made[0].stream.key, positions[:, FRAME], str(error))
                return
            chunks = [chunk for each in made for chunk in self._chunks(positions, [each])]
        yield from chunks

    def _of_objects(
        self, stream: Stream, path: str, rows: npt.NDArray[Any], positions: Positions, together: list[_Made]
    ) -> Iterator[Chunk]:
        """Rows that are values by themselves: the usual ones are stored by the key's kind, the others as what they are.

        Args:
            stream: the stream.
            path: the entity path.
            rows: the values, ``[n]``.
            positions: where they are, ``[n, 5]``.
            together: takes columns that have all of the rows.
        """
        usual: list[int] = []
        others: list[int] = []
        values: list[Written] = []
        for row, value in enumerate(rows):
            if value is MISSING:
                continue
            if _is_usual(stream, value):
                usual.append(row)
                continue
            try:
                values.append(_written(stream, value))
                others.append(row)
            except NotStorableError as error:
                self._losses.add(stream.key, positions[row : row + 1, FRAME], str(error))
        if usual and stream.is_encoded:
            self._pictures.add(path, stream, rows[usual], positions[usual])
        elif usual:
            is_image = stream.kind == "image" and stream.is_of_any_size
            held = rows[usual] if is_image else np.stack(list(rows[usual]))
            if (columns := self._columns(stream, held, positions[usual])) is not None:
                yield from self._chunks(positions[usual], [_Made(stream, Entity(path, columns))])
        if others:
            made = _Made(stream, Entity(path, objects.columns_of(values)))
            if len(others) == len(rows):
                together.append(made)
            else:
                yield from self._chunks(positions[others], [made])


class _Made(NamedTuple):
    """The columns of an entity, and the stream that they are of."""

    stream: Stream
    entity: Entity


def _is_usual(stream: Stream, value: Any) -> bool:
    """Whether a row that is a value by itself is stored by the key's kind: pictures that are some, arrays of the usual shape."""
    if not isinstance(value, np.ndarray) or stream.kind in ("text", "tensor"):
        return False
    if stream.kind == "image" and stream.is_of_any_size:
        return is_like(stream, value)
    return bool(value.shape == stream.row_shape)


def _written(stream: Stream, value: Any) -> Written:
    """A value of an object stream as it is stored."""
    if not stream.varies:
        return written(value)
    if not isinstance(value, np.ndarray):
        raise NotStorableError(type(value).__name__)
    return Written(tensor=stream.numbers(value[None])[0])


def static_chunks(streams: Iterable[Stream], envs: Sequence[int | None]) -> Iterator[Chunk]:
    """What does not change over time: names, colours, and how images are stored.

    Args:
        streams: what is recorded.
        envs: environment indices; None: the recording is of one environment.
    """
    streams = list(streams)
    before = _agents_before(streams)
    for stream in streams:
        for lane in range(stream.lanes):
            columns = _static(stream, before.get(stream.key[0], 0) + lane)
            for env in envs[: 1 if stream.shared else None] if columns is not None else ():
                yield Chunk.from_columns(entity_path(stream, env, lane), [], columns)


def _agents_before(streams: Sequence[Stream]) -> dict[str, int]:
    """How many agents come before those of each group, in the order of the groups' names."""
    groups = {stream.key[0]: stream.lanes for stream in streams if stream.agents}
    counts = itertools.accumulate((groups[name] for name in sorted(groups)), initial=0)
    return dict(zip(sorted(groups), counts, strict=False))


# --- one function a kind: rows [n, *row_shape] to columns of n lists ---


def _scalars(stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
    numbers = stream.numbers(rows)
    if numbers.dtype.kind == "f":
        return [number_lists(numbers)]
    # The viewer plots no integers (rerun-sdk 0.41).
    columns = [number_lists(numbers.astype(np.float64))]
    if not are_exact_floats(numbers):
        columns.append(Column(EXACT, None, None, lists(flat(numbers), len(rows))))
    return columns


def _state(stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
    flat = rows.reshape(len(rows), -1)
    changed = np.ones(len(flat), bool)
    differs = flat[1:] != flat[:-1]
    changed[1:] = differs[:, 0] if differs.shape[1] == 1 else differs.any(axis=1)
    codes, names = state_codes(stream, flat[changed])
    labels = pa.array(np.array(names, object)[codes.reshape(-1)], pa.string())
    # A row without a change has no state (null), which leaves the one before in force: lanes stay whole.
    offsets = np.zeros(len(flat) + 1, np.int32)
    np.cumsum(changed * codes.shape[1], out=offsets[1:])
    states = pa.ListArray.from_arrays(pa.array(offsets), labels, mask=pa.array(~changed))
    return [Column("StateChange:state", "StateChange", "Text", states), number_lists(stream.numbers(rows))]


def _picture(stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
    columns = []
    if rows.dtype == object:
        pictures = [pictures_of(stream, rows[i : i + 1])[0] for i in range(len(rows))]
        buffers = blobs([picture.tobytes() for picture in pictures])
        formats = pa.concat_arrays([_image_formats(1, *picture.shape, picture.dtype) for picture in pictures])
    else:
        stacked = pictures_of(stream, rows)
        if stream.kind == "image" and stacked.dtype.kind == "f" and (stacked < 0).any():
            columns.append(Column(EXACT, None, None, lists(flat(stacked), len(rows))))
            stacked = shown(stacked)
        buffers = lists(flat(np.ascontiguousarray(stacked).reshape(-1).view(np.uint8)), len(rows), not_null=True)
        formats = _image_formats(*stacked.shape, stacked.dtype, is_image=stream.kind == "image")
    archetype = ARCHETYPES[stream.kind]
    return [
        Column(f"{archetype}:buffer", archetype, "ImageBuffer", lists(buffers, len(rows))),
        Column(f"{archetype}:format", archetype, "ImageFormat", lists(formats, len(rows))),
        *columns,
    ]


def _tensor(stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
    tensors = tensor_data(stream.numbers(rows))
    if stream.is_vector:
        return [Column("BarChart:values", "BarChart", "TensorData", lists(tensors, len(rows)))]
    return [Column("Tensor:data", "Tensor", "TensorData", lists(tensors, len(rows)))]


_COLUMNS: Mapping[str, Callable[[Stream, npt.NDArray[Any]], list[Column]]] = {
    "scalars": _scalars,
    "state": _state,
    "image": _picture,
    "depth": _picture,
    "segmentation": _picture,
    "tensor": _tensor,
}


# --- states ---


def state_codes(stream: Stream, rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], list[str]]:
    """What rows ``[n, numbers]`` of a state say: for each of its lanes a code, ``[n, lanes]``, and each code's label.

    >>> action = Stream(("action",), "state", "int64", (2,), discrete="one_hot", categories=(2,), names=("left", "right"))
    >>> state_codes(action, np.array([[0, 1], [1, 0], [0, 0]]))
    (array([[1], [0], [2]]), ['left', 'right', ''])
    >>> state_codes(Stream(("done",), "state", "bool", (1,)), np.array([[True], [False]]))
    (array([[1], [0]]), ['', 'done'])
    """
    if stream.discrete == "one_hot":
        most = max(stream.categories)
        segments = np.split(rows, np.cumsum(stream.categories)[:-1], axis=1)
        codes = [np.where(segment.any(axis=1), segment.argmax(axis=1), most) for segment in segments]
        return np.stack(codes, axis=1), [*(_label(stream, i) for i in range(most)), ""]
    if stream.is_flag:
        return rows.astype(np.intp), list(stream.names[:2]) if len(stream.names) >= 2 else ["", stream.key[-1]]
    values, inverse = np.unique(rows, return_inverse=True)
    return inverse.reshape(rows.shape), [_label(stream, int(value)) for value in values]


def _label(stream: Stream, category: int) -> str:
    return stream.names[category] if 0 <= category < len(stream.names) else str(category)


def _static(stream: Stream, agent: int) -> Any:
    """Names and colours of the lines of a plot or of the states of a lane, or how images are stored; None: nothing.

    ``agent`` is the lane's number among the agents of all groups.
    """
    if stream.is_video:
        return rr.VideoStream.columns(codec=[VIDEO_CODECS[stream.image_format]])
    if stream.is_encoded:
        return rr.EncodedImage.columns(media_type=[MEDIA_TYPES[stream.image_format]])
    if stream.kind == "segmentation" and stream.names:
        return rr.AnnotationContext.columns(context=rr.components.AnnotationContext(list(enumerate(stream.names))))
    if stream.kind == "scalars":
        return _lines(stream, agent)
    if stream.kind == "state":
        if stream.is_flag:
            flag = stream.key[-1]
            labels = list(stream.names[:2]) or [flag]
            shades = [PALETTE[0], FLAG_COLORS.get(flag, PALETTE[1])][-len(labels) :]
        else:
            count = max(stream.categories, default=len(stream.names))
            if not 0 < count <= MAX_CONFIGURED_STATES:
                return None
            labels = [_label(stream, category) for category in range(count)]
            shades = [color(i) for i in range(count)]
        return rr.StateConfiguration.columns(
            values=labels, labels=labels, colors=np.array(shades, np.uint32)
        ).partition([len(labels)])
    return None


def _lines(stream: Stream, agent: int) -> Any:
    """The names and colours of a plot's lines, which are all agents' if each has one. Rewards and returns differ in colour."""
    size, key = math.prod(stream.row_shape), stream.key[-1]
    is_reward = key.startswith("reward")
    if size == 1 and stream.agents:  # the viewer names each by its path
        return rr.SeriesLines.columns(colors=np.array([color(agent)], np.uint32))
    names = stream.names or ([key] if size == 1 else [f"{key}[{i}]" for i in range(size)])
    things = list(dict.fromkeys(name.removesuffix(" vel") for name in names))  # each has the colour of its velocity
    return series_style(names, [color(is_reward + things.index(name.removesuffix(" vel"))) for name in names])


def series_style(names: Sequence[str], colors: Sequence[int]) -> Any:
    """The names and colours of the lines of a plot."""
    return rr.SeriesLines.columns(names=list(names), colors=np.array(colors, np.uint32)).partition([len(names)])


# --- Arrow ---


@functools.lru_cache(maxsize=256)
def _image_formats(
    count: int, height: int, width: int, depth: int, dtype: np.dtype[Any], *, is_image: bool = True
) -> pa.Array:
    """The same format so many times; Rerun takes longer to make one than to make the rest of a chunk."""
    image_format = rr.components.ImageFormat(
        width=width,
        height=height,
        color_model=COLOR_MODELS[depth] if is_image else None,
        channel_datatype=rr.ChannelDatatype.from_np_dtype(np.dtype(np.uint8) if dtype.kind == "b" else dtype),
    )
    return rr.components.ImageFormatBatch([image_format] * count).as_arrow_array()
