"""Padding: values that are missing somewhere, or differ in shape, in one tensor, beside a mask of what was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict, TensorDictBase

from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.kinds.streams import Key, Stream

RECORDED = "recorded"
"""Below this name stand the masks, bool, True where a value was recorded: ``("recorded", key)``."""

_BFLOAT16_NAN = 0x7FC0

Shape = tuple[int, ...]


def mask_name(schema: Schema) -> str:
    """The name below which masks stand: ``"recorded"``, with as many ``_`` behind it as no key of the user's has."""
    taken = {stream.key[0] for stream, _ in schema.described}
    name = RECORDED
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True)
class Form:
    """What keys need so that the values of several environments, episodes or steps fit together.

    Attributes:
        masked: keys of which a value is missing somewhere, or of which values differ in shape.
        shapes: of keys that vary the size that holds each value, as far as it is known.
    """

    masked: frozenset[Key] = frozenset()
    shapes: Mapping[Key, Shape] = field(default_factory=dict)

    def __or__(self, other: Form) -> Form:
        """What both need."""
        both = self.shapes.keys() & other.shapes.keys()
        uneven = {key for key in both if self.shapes[key] != other.shapes[key]}
        shapes = {
            **self.shapes,
            **other.shapes,
            **{key: largest([self.shapes[key], other.shapes[key]]) for key in both},
        }
        return Form(self.masked | other.masked | uneven, shapes)


def largest(shapes: Iterable[Shape]) -> Shape:
    """The shape that holds each of some. Those of fewer dimensions get leading ones.

    >>> largest([(2, 3), (4, 1), (5,)])
    (4, 5)
    """
    found = list(shapes)
    dims = max(map(len, found), default=0)
    return tuple(max(sizes) for sizes in zip(*((1,) * (dims - len(shape)) + shape for shape in found), strict=True))


def filling(stream: Stream) -> Any:
    """What stands where nothing was recorded: NaN, 0 where there is no NaN, None of non-tensor data."""
    if stream.dtype == "object":
        return None
    if stream.dtype == "bfloat16":
        return _BFLOAT16_NAN
    return np.nan if stream.number_type.kind in "fc" else 0


def taken(stream: Stream, values: npt.NDArray[Any], rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Values at some rows, filled where there is none.

    Args:
        stream: the stream.
        values: ``[n, ...]``.
        rows: which of them, ``[m]``; -1: none.
    """
    is_there = rows >= 0
    if is_there.all():
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (rows[1:] > rows[:-1]).all():
            return values[rows[0] : rows[0] + len(rows)]  # a view
        return values[rows]
    out = np.full((len(rows), *values.shape[1:]), filling(stream), values.dtype)
    out[is_there] = values[rows[is_there]]
    return out


def padded(
    stream: Stream, values: npt.NDArray[Any], shape: Shape | None = None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Values of shapes of their own, in one array, and which of its numbers are some of theirs.

    Args:
        stream: the stream.
        values: ``[n]`` or ``[n, agents]`` arrays; anything else is filled.
        shape: to which size; None: the largest.
    """
    shape = largest(shapes_of(values)) if shape is None else shape
    out = np.full((*values.shape, *shape), filling(stream), stream.number_type)
    mask = np.zeros(out.shape, np.bool_)
    for at in np.ndindex(values.shape):
        value = values[at]
        if isinstance(value, np.ndarray):
            part = (*at, *[0] * (len(shape) - value.ndim), *map(slice, value.shape))
            out[part], mask[part] = value, True
    return out, mask


def shapes_of(values: npt.NDArray[Any]) -> set[Shape]:
    """The shapes of arrays."""
    return {value.shape for value in values.flat if isinstance(value, np.ndarray)}


def as_tensor(stream: Stream, values: npt.NDArray[Any]) -> Any:
    """Rows of a key as they were given to the recorder.

    A tensor, or a list of non-tensor data, or of tensors that differ in shape: of agents a list of one each in each row,
    unless these have one shape.
    """
    if stream.dtype == "object":
        return list(values)
    if values.dtype == object:
        return [_one(stream, value) for value in values]
    if not values.flags.writeable or not values.flags.c_contiguous:
        values = np.array(values, order="C")
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if stream.dtype == "bfloat16" else tensor


def _one(stream: Stream, value: Any) -> Any:
    if not stream.agents:
        return as_tensor(stream, value)
    each = [as_tensor(stream, of_agent) for of_agent in value]
    return torch.stack(each) if len({of_agent.shape for of_agent in each}) == 1 else each


# --- tensordicts ---


def put(tensordict: TensorDict, stream: Stream, values: npt.NDArray[Any]) -> None:
    """Set a key to rows ``[n, ...]`` of one shape, or of non-tensor data."""
    if stream.dtype != "object":
        tensordict.set(stream.key, as_tensor(stream, values))
    elif len(values):
        tensordict.set(stream.key, NonTensorStack(*(NonTensorData(value) for value in values)))


def give_agents(tensordict: TensorDictBase, streams: Iterable[Stream]) -> None:
    """Give groups of agents the batch size that they have in rollouts: that of the tensordict and the number of agents."""
    groups = {stream.key[:-1]: len(stream.agents) for stream in streams if stream.agents}
    for group in sorted(groups, key=len, reverse=True):  # those within others first
        part, size = tensordict.get(group, None), torch.Size([*tensordict.batch_size, groups[group]])
        if part is not None and all(value.shape[: len(size)] == size for value in part.values()):
            part.batch_size = size


def form_of(steps: TensorDictBase, streams: Sequence[Stream], name: str) -> Form:
    """What steps that were read have already."""
    masked, shapes = set(), {}
    for stream in streams:
        for part in _parts(steps):
            value, mask = part.get(stream.key, None), part.get((name, *stream.key), None)
            if mask is not None:
                masked.add(stream.key)
            if stream.varies and value is not None:
                shapes[stream.key] = tuple(value.shape[steps.batch_dims + bool(stream.agents) :])
    return Form(frozenset(masked), shapes)


def fit(steps: TensorDict, streams: Sequence[Stream], name: str, form: Form) -> TensorDict:
    """Steps in a form that several have: with all its masks, and padded to its sizes."""
    for stream in streams:
        for part in _parts(steps) if stream.key in form.masked else ():
            value, mask = part.get(stream.key, None), part.get((name, *stream.key), None)
            if value is None:
                continue
            shape = form.shapes.get(stream.key)
            if not isinstance(value, torch.Tensor) or shape is None:
                if mask is None:
                    part.set((name, *stream.key), torch.ones(steps.batch_size, dtype=torch.bool))
                continue
            if mask is None:
                mask = torch.ones(value.shape, dtype=torch.bool)
            lead = steps.batch_dims + bool(stream.agents)
            part.set(stream.key, _grown(value, lead, shape, torch.nan if value.dtype.is_floating_point else 0))
            part.set((name, *stream.key), _grown(mask, lead, shape, 0))
    return steps


def _grown(value: torch.Tensor, lead: int, shape: Shape, fill: float) -> torch.Tensor:
    size = value.shape[lead:]
    if size == shape:
        return value
    out = value.new_full((*value.shape[:lead], *shape), fill)
    part: tuple[Any, ...] = (..., *[0] * (len(shape) - len(size)), *map(slice, size))
    out[part] = value
    return out


def _parts(steps: TensorDictBase) -> Iterable[TensorDict]:
    """What was seen before, and what came of it."""
    return steps, steps.get("next")
