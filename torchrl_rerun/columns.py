"""Columns: from the arrays of a block to Rerun chunks, one function a kind.

Chunks are built from Arrow arrays that wrap the block's memory. Rerun's own ``.columns()`` would copy the data several
times and cost a hundred times as much (measured with rerun-sdk 0.41).

Plotted numbers are float32 or float64, whichever holds theirs exactly; integers of 64 bits that neither holds have a
column of their own beside it. These columns claim no component type, since Rerun's ``Scalar`` stands for float64 alone:
``rerun rrd verify`` would complain, and the viewer plots nothing that doesn't claim it beside something that does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr
from rerun.chunk import Chunk

from torchrl_rerun.buffer import Block, Track
from torchrl_rerun.episodes import FRAME, TIMELINES, Positions
from torchrl_rerun.images import MEDIA_TYPES, channels_last, encode
from torchrl_rerun.schema import Moment
from torchrl_rerun.streams import Stream, entity_path
from torchrl_rerun.sums import Sums
from torchrl_rerun.timelines import Timelines

NANOSECONDS = 1_000_000_000

EXACT = "torchrl_rerun:exact"
"""The component that holds integers as they were, where ``Scalars:scalars`` can't."""

EXACT_FLOATS = 2**53
"""The largest integer up to which float64 holds each one."""

# Colours of the lines of a plot and of the states of a lane: distinct on a dark background and for colour-blind eyes.
PALETTE = (0x4E9BE6FF, 0xF2A33AFF, 0x5FC08BFF, 0xE4638CFF, 0xA98BEFFF, 0xE8D44DFF, 0x3FC6CFFF, 0xD98A5AFF)
FLAG_COLORS = {"done": 0xA0A8B8FF, "terminated": 0xE4638CFF, "truncated": 0xF2A33AFF}
MAX_CONFIGURED_STATES = 32


class Column(NamedTuple):
    """One component column: its name, the archetype and component type it belongs to, and a list of values per row."""

    component: str
    archetype: str | None
    component_type: str | None
    values: pa.Array


_TIME_TYPES = {"log_time": pa.timestamp("ns"), "sim_time": pa.duration("ns")}

Times = dict[str, pa.Array]
"""Time columns, by the names of their timelines."""


class Entity(NamedTuple):
    """The columns of one entity."""

    path: str
    columns: list[Column]


class ChunkFactory:
    """Turns blocks into chunks.

    Args:
        envs: the environment index of each row of the blocks.
        fps: frames per second of simulated time; None: no ``sim_time``.
        sums: running sums of rewards so far.
    """

    def __init__(self, envs: Sequence[int], fps: float | None, sums: Sums) -> None:
        self._envs = list(envs)
        self._fps = fps
        self._sums = sums

    def static(self, tracks: Sequence[Track]) -> Iterator[Chunk]:
        """What does not change over time: names and colours."""
        for track in tracks:
            for stream in track.streams:
                styled = _style(stream)
                if styled is None:
                    continue
                for env in self._envs[:1] if stream.shared else self._envs:
                    for lane in range(stream.lanes):
                        yield Chunk.from_columns(entity_path(stream, env, lane), [], styled)

    def chunks(self, block: Block) -> Iterator[Chunk]:
        """One chunk per environment, key and agent that has rows in the block."""
        block.wait()
        timelines = Timelines(block.start, block.events)
        sums = self._sums.of(block)
        frames = [np.array(each, np.intp) for each in block.frames]
        present = [block.presence(track) for track in range(len(block.tracks))]
        together = _tracks_with_the_same_times(block)
        for row, env in enumerate(self._envs):
            for tracks in together:
                first = tracks[0]
                mask = present[first]
                slots = slice(0, len(frames[first])) if mask is None else np.flatnonzero(mask[:, row])
                at = frames[first][slots]
                if not len(at):
                    continue
                is_before = block.tracks[first].moment is Moment.ACTED
                positions = timelines.before(row, at) if is_before else timelines.at(row, at)
                entities = []
                for track in tracks:
                    for stored in block.values[track]:
                        if not (stored.stream.shared and row):
                            entities += _entities(stored.stream, env, stored.of(row, slots))
                    for stream in block.tracks[track].streams:
                        if stream.sums:
                            entities += _entities(stream, env, sums[stream.key][slots, row])
                if entities:
                    yield from chunks_of(times_of(positions, self._fps), entities)


def times_of(positions: Positions, fps: float | None, timelines: Sequence[int] = range(len(TIMELINES))) -> Times:
    """Time columns of rows at ``positions`` ``[n, 5]``, by the names of their timelines.

    Args:
        positions: where the rows are.
        fps: frames per second of simulated time; None: no ``sim_time``.
        timelines: which of the columns to make.
    """
    times: Times = {TIMELINES[i]: _flat(positions[:, i]) for i in timelines}
    times["log_time"] = times["log_time"].view(pa.timestamp("ns"))
    if fps is not None:
        times["sim_time"] = pa.array((positions[:, FRAME] * (NANOSECONDS / fps)).astype("timedelta64[ns]"))
    return times


def chunks_of(times: Times, entities: Sequence[Entity]) -> Iterator[Chunk]:
    """Chunks of several entities that share their times: making them together costs a third of one by one."""
    columns = [column for entity in entities for column in entity.columns]
    counts = tuple(len(entity.columns) for entity in entities)
    schema = _schema(tuple(times), counts, tuple((*column[:3], column.values.type) for column in columns))
    arrays = [*times.values(), *(column.values for column in columns)]
    made = Chunk.from_record_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    for entity, chunk in zip(entities, made, strict=True):
        yield chunk.with_entity_path(entity.path)


def _tracks_with_the_same_times(block: Block) -> list[list[int]]:
    """The tracks of a block that have any rows, those together whose rows come at the same moments."""
    groups: list[list[int]] = []
    for track, frames in enumerate(block.frames):
        is_before = block.tracks[track].moment is Moment.ACTED
        for group in groups:
            first = group[0]
            if block.frames[first] == frames and (block.tracks[first].moment is Moment.ACTED) is is_before:
                group.append(track)
                break
        else:
            if frames:
                groups.append([track])
    return groups


def _entities(stream: Stream, env: int, values: npt.NDArray[Any]) -> list[Entity]:
    """What becomes of an environment's values ``[n, *stream.shape]``: one entity, or one for each agent."""
    lanes = [values[:, lane] for lane in range(stream.lanes)] if stream.agents else [values]
    return [
        Entity(entity_path(stream, env, lane), _COLUMNS[stream.kind](stream, rows)) for lane, rows in enumerate(lanes)
    ]


@functools.lru_cache(maxsize=1024)
def _schema(
    timelines: tuple[str, ...],
    counts: tuple[int, ...],
    columns: tuple[tuple[str, str | None, str | None, pa.DataType], ...],
) -> pa.Schema:
    """The schema of entities of so many columns. Their paths stand for any: chunks get theirs when they are made."""
    fields = [
        pa.field(name, _TIME_TYPES.get(name, pa.int64()), metadata={"rerun:kind": "index", "rerun:index_name": name})
        for name in timelines
    ]
    owners = [number for number, count in enumerate(counts) for _ in range(count)]
    for number, (component, archetype, component_type, values_type) in zip(owners, columns, strict=True):
        metadata = {
            "rerun:kind": "data",
            "rerun:component": component,
            "rerun:entity_path": f"/entity_{number}",
        }
        if archetype is not None:
            metadata["rerun:archetype"] = f"rerun.archetypes.{archetype}"
        if component_type is not None:
            metadata["rerun:component_type"] = f"rerun.components.{component_type}"
        fields.append(pa.field(f"{number}:{component}", values_type, metadata=metadata))
    return pa.schema(fields)


# --- one function a kind: rows [n, *row_shape] to columns of n lists ---


def _scalars(stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
    numbers = _widened(stream.dtype, rows)
    if numbers.dtype.kind == "f":
        return [number_lists(numbers)]
    # The viewer plots no integers (rerun-sdk 0.41).
    columns = [number_lists(numbers.astype(np.float64))]
    if numbers.dtype.itemsize == 8 and ((numbers > EXACT_FLOATS) | (numbers < -EXACT_FLOATS)).any():
        columns.append(Column(EXACT, None, None, _lists(_flat(numbers), len(rows))))
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
    return [Column("StateChange:state", "StateChange", "Text", states), number_lists(_widened(stream.dtype, rows))]


def number_lists(rows: npt.NDArray[Any]) -> Column:
    """Numbers to plot, ``[n, ...]``, of whichever type they are."""
    return Column("Scalars:scalars", "Scalars", None, _lists(_flat(rows), len(rows)))


def _image(stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
    if stream.dtype == "object":
        pictures = [channels_last(row[None], _channels_of(row))[0] for row in rows]
    else:
        pictures = list(channels_last(rows, stream.channels))
    if stream.image_format in MEDIA_TYPES:
        files = [encode(picture, stream.image_format) for picture in pictures]
        media_type = pa.array([MEDIA_TYPES[stream.image_format]] * len(files))
        return [
            Column("EncodedImage:blob", "EncodedImage", "Blob", _lists(_blobs(files), len(files))),
            Column("EncodedImage:media_type", "EncodedImage", "MediaType", _lists(media_type, len(files))),
        ]
    if stream.dtype == "object":
        buffers = _blobs([picture.tobytes() for picture in pictures])
        formats = pa.concat_arrays([_image_format(picture) for picture in pictures])
    else:
        stacked = channels_last(rows, stream.channels)
        buffers = _lists(_flat(np.ascontiguousarray(stacked).reshape(-1).view(np.uint8)), len(rows), not_null=True)
        formats = _image_format(stacked[0]).take(pa.array(np.zeros(len(rows), np.int64)))
    return [
        Column("Image:buffer", "Image", "ImageBuffer", _lists(buffers, len(rows))),
        Column("Image:format", "Image", "ImageFormat", _lists(formats, len(rows))),
    ]


def _tensor(stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
    if stream.dtype == "object":
        tensors = pa.concat_arrays([_tensor_data(row[None]) for row in rows])
    else:
        tensors = _tensor_data(_widened(stream.dtype, rows))
    return [Column("Tensor:data", "Tensor", "TensorData", _lists(tensors, len(rows)))]


def _text(_: Stream, rows: npt.NDArray[Any]) -> list[Column]:
    return [Column("TextDocument:text", "TextDocument", "Text", _lists(pa.array(list(rows), pa.string()), len(rows)))]


_COLUMNS: Mapping[str, Callable[[Stream, npt.NDArray[Any]], list[Column]]] = {
    "scalars": _scalars,
    "state": _state,
    "image": _image,
    "tensor": _tensor,
    "text": _text,
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


def _style(stream: Stream) -> Any:
    """Names and colours of the lines of a plot, or of the states of a lane; None where there is nothing to say."""
    if stream.kind == "scalars":
        size = math.prod(stream.row_shape)
        names = list(stream.names) or [stream.key[-1] if size == 1 else f"{stream.key[-1]}[{i}]" for i in range(size)]
        if size == 1 and stream.agents:
            return None  # each agent is an entity: the viewer names it, and gives it a colour of its own
        first = 1 if stream.key[-1].startswith("reward") else 0  # beside its running sum on one plot
        colors = [PALETTE[(first + i) % len(PALETTE)] for i in range(size)]
        return series_style(names, colors)
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
            shades = [PALETTE[i % len(PALETTE)] for i in range(count)]
        return rr.StateConfiguration.columns(
            values=labels, labels=labels, colors=np.array(shades, np.uint32)
        ).partition([len(labels)])
    return None


def series_style(names: Sequence[str], colors: Sequence[int]) -> Any:
    """The names and colours of the lines of a plot."""
    return rr.SeriesLines.columns(names=list(names), colors=np.array(colors, np.uint32)).partition([len(names)])


# --- Arrow ---


def _widened(dtype: str, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """16-bit floats as float32, which holds each of them exactly: the viewer shows no smaller ones."""
    if dtype == "bfloat16":
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32) if dtype == "float16" else rows


def _flat(values: npt.NDArray[Any]) -> pa.Array:
    """Numbers, as they lie in memory."""
    values = np.ascontiguousarray(values).reshape(-1)
    if values.dtype == bool:
        return pa.array(values)  # Arrow packs them into bits
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _lists(values: pa.Array, rows: int, *, not_null: bool = False) -> pa.ListArray:
    """``rows`` lists of equal length."""
    kind = pa.list_(pa.field("item", values.type, nullable=not not_null))
    return pa.ListArray.from_arrays(_offsets(rows, len(values) // rows), values, type=kind)


@functools.lru_cache(maxsize=256)
def _offsets(rows: int, each: int) -> pa.Array:
    return pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(each))


def _blobs(files: Sequence[bytes]) -> pa.ListArray:
    offsets = np.zeros(len(files) + 1, np.int32)
    np.cumsum([len(file) for file in files], out=offsets[1:])
    data = pa.array(np.frombuffer(b"".join(files), np.uint8))
    return pa.ListArray.from_arrays(
        pa.array(offsets), data, type=pa.list_(pa.field("item", pa.uint8(), nullable=False))
    )


_COLOR_MODELS = {1: rr.ColorModel.L, 3: rr.ColorModel.RGB, 4: rr.ColorModel.RGBA}
_CHANNEL_TYPES = {
    "uint8": rr.ChannelDatatype.U8,
    "float16": rr.ChannelDatatype.F16,
    "float32": rr.ChannelDatatype.F32,
    "float64": rr.ChannelDatatype.F64,
}


def _image_format(picture: npt.NDArray[Any]) -> pa.Array:
    height, width, depth = picture.shape
    image_format = rr.components.ImageFormat(
        width=width,
        height=height,
        color_model=_COLOR_MODELS[depth],
        channel_datatype=_CHANNEL_TYPES[picture.dtype.name],
    )
    return rr.components.ImageFormatBatch([image_format]).as_arrow_array()


def _channels_of(picture: npt.NDArray[Any]) -> str:
    if picture.ndim == 2:
        return "HW"
    return "HWC" if picture.shape[-1] in _COLOR_MODELS else "CHW"


_TENSOR_TYPE: pa.StructType = rr.components.TensorDataBatch(np.zeros(1, np.uint8)).as_arrow_array().type
_BUFFER_TYPE: pa.DenseUnionType = _TENSOR_TYPE.field("buffer").type
_BUFFER_CODES = {
    np.dtype(name): code
    for code, name in enumerate(
        ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"], 1
    )
}


def _tensor_data(rows: npt.NDArray[Any]) -> pa.StructArray:
    """Rows ``[n, *shape]`` as n values of Rerun's ``TensorData``: its shape, no names, and a union of buffers by dtype."""
    count, *shape = rows.shape
    if rows.dtype == bool:
        rows = rows.view(np.uint8)
    code = _BUFFER_CODES[rows.dtype]
    children = [pa.array([], _BUFFER_TYPE.field(i).type) for i in range(_BUFFER_TYPE.num_fields)]
    children[code] = _lists(_flat(rows), count, not_null=True)
    codes, positions = np.full(count, code, np.int8), np.arange(count, dtype=np.int32)
    union = [None, pa.py_buffer(codes), pa.py_buffer(positions)]
    buffers = pa.Array.from_buffers(_BUFFER_TYPE, count, union, children=children)
    shapes = _lists(pa.array(np.tile(np.array(shape, np.uint64), count)), count, not_null=True)
    no_names = pa.nulls(count, _TENSOR_TYPE.field("names").type)
    return pa.StructArray.from_arrays([shapes, no_names, buffers], fields=list(_TENSOR_TYPE))
