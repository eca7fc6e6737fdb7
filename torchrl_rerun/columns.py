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
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr
from rerun.chunk import Chunk

from torchrl_rerun.arrow import Column, Entity, blobs, chunks_of, flat, lists, number_lists, times_of
from torchrl_rerun.images import COLOR_MODELS, MEDIA_TYPES, pictures_of, shown
from torchrl_rerun.palette import FLAG_COLORS, PALETTE, color
from torchrl_rerun.pictures import Pictures
from torchrl_rerun.pieces import Piece
from torchrl_rerun.streams import Stream, entity_path

EXACT = "torchrl_rerun:exact"
"""The component that holds integers as they were, where ``Scalars:scalars`` can't, and the numbers of a picture that the
viewer would show in other colours."""

EXACT_FLOATS = 2**53
"""The largest integer up to which float64 holds each one."""

MAX_CONFIGURED_STATES = 32

VIDEO_CODECS: Mapping[str | None, rr.VideoCodec] = {"h264": rr.VideoCodec.H264, "av1": rr.VideoCodec.AV1}

ARCHETYPES: Mapping[str, str] = {"image": "Image", "depth": "DepthImage", "segmentation": "SegmentationImage"}
"""Of raw pictures, by kind."""


class ChunkFactory:
    """Turns the rows of environments into chunks.

    Args:
        fps: frames per second of simulated time; None: no ``sim_time``.
        pictures: takes images, and makes chunks of them when there are enough.
    """

    def __init__(self, fps: float | None, pictures: Pictures) -> None:
        self._fps = fps
        self._pictures = pictures

    def chunks(self, piece: Piece, env: int | None) -> Iterator[Chunk]:
        """One chunk for each key and agent, but of encoded pictures.

        Args:
            piece: the rows.
            env: environment index; None: the recording is of one environment.
        """
        entities: list[Entity] = []
        for stream, values in piece.values:
            for lane in range(stream.lanes):
                path, rows = entity_path(stream, env, lane), values[:, lane] if stream.agents else values
                if stream.is_encoded:
                    self._pictures.add(path, stream, rows, piece.positions)
                else:
                    entities.append(Entity(path, _COLUMNS[stream.kind](stream, rows)))
        if entities:
            yield from chunks_of(times_of(piece.positions, self._fps), entities)


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


def are_exact_floats(numbers: npt.NDArray[Any]) -> bool:
    """Whether float64 holds each of some numbers to the bit; of a NaN of fewer bits that isn't said.

    >>> are_exact_floats(np.array([2**53])), are_exact_floats(np.array([2**53 + 1]))
    (True, False)
    """
    if numbers.dtype.kind == "f":
        return numbers.dtype.itemsize == 8 or not np.isnan(numbers).any()
    return numbers.dtype.itemsize < 8 or not ((numbers > EXACT_FLOATS) | (numbers < -EXACT_FLOATS)).any()


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
    if stream.dtype == "object":
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
    if stream.dtype == "object":
        tensors = pa.concat_arrays([_tensor_data(row[None]) for row in rows])
    else:
        tensors = _tensor_data(stream.numbers(rows))
    if stream.is_vector:
        return [Column("BarChart:values", "BarChart", "TensorData", lists(tensors, len(rows)))]
    return [Column("Tensor:data", "Tensor", "TensorData", lists(tensors, len(rows)))]


def _text(_: Stream, rows: npt.NDArray[Any]) -> list[Column]:
    return [Column("TextDocument:text", "TextDocument", "Text", lists(pa.array(list(rows), pa.string()), len(rows)))]


_COLUMNS: Mapping[str, Callable[[Stream, npt.NDArray[Any]], list[Column]]] = {
    "scalars": _scalars,
    "state": _state,
    "image": _picture,
    "depth": _picture,
    "segmentation": _picture,
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
    children[code] = lists(flat(rows), count, not_null=True)
    codes, positions = np.full(count, code, np.int8), np.arange(count, dtype=np.int32)
    union = [None, pa.py_buffer(codes), pa.py_buffer(positions)]
    buffers = pa.Array.from_buffers(_BUFFER_TYPE, count, union, children=children)
    shapes = lists(pa.array(np.tile(np.array(shape, np.uint64), count)), count, not_null=True)
    no_names = pa.nulls(count, _TENSOR_TYPE.field("names").type)
    return pa.StructArray.from_arrays([shapes, no_names, buffers], fields=list(_TENSOR_TYPE))
