"""Padding of values that are missing, or vary in shape, so that one tensor holds them, beside a mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict, TensorDictBase

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.kinds.streams import Stream

RECORDED = "recorded"
"""The name below which the masks stand: ``("recorded", key)``, bool, True if a value was recorded."""

_BFLOAT16_NAN = 0x7FC0

Shape = tuple[int, ...]


def mask_name(schema: Schema) -> str:
    """Return the name below which masks stand: ``"recorded"``, with ``_`` appended until no key begins with it."""
    taken = {stream.key[0] for stream, _ in schema.described}
    name = RECORDED
    while name in taken:
        name += "_"
    return name


@dataclass(frozen=True)
class Form:
    """The masks and shapes that the values of several environments, episodes or steps need to fit together.

    Attributes:
        masked: keys with a missing value, or with values of several shapes.
        shapes: for keys that vary in shape, the shape that holds each value, as far as it is known.
    """

    masked: frozenset[Key] = frozenset()
    shapes: Mapping[Key, Shape] = field(default_factory=dict)

    def __or__(self, other: Form) -> Form:
        """Return the form that both fit in."""
        both = self.shapes.keys() & other.shapes.keys()
        uneven = {key for key in both if self.shapes[key] != other.shapes[key]}
        shapes = {
            **self.shapes,
            **other.shapes,
            **{key: largest([self.shapes[key], other.shapes[key]]) for key in both},
        }
        return Form(self.masked | other.masked | uneven, shapes)


def largest(shapes: Iterable[Shape]) -> Shape:
    """Return the shape that holds each of some shapes. Shapes of fewer dimensions get leading ones.

    >>> largest([(2, 3), (4, 1), (5,)])
    (4, 5)
    """
    found = list(shapes)
    dims = max(map(len, found), default=0)
    return tuple(max(sizes) for sizes in zip(*((1,) * (dims - len(shape)) + shape for shape in found), strict=True))


def filling(stream: Stream) -> Any:
    """Return the value that stands for a missing one: NaN; 0 if the dtype has no NaN; None for non-tensor data."""
    if stream.dtype == "object":
        return None
    if stream.dtype == "bfloat16":
        return _BFLOAT16_NAN
    return np.nan if stream.number_type.kind in "fc" else 0


def taken(stream: Stream, values: npt.NDArray[Any], rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Return the values at some rows, ``[m, ...]``, filled if there is none.

    Args:
        stream: the key.
        values: ``[n, ...]``.
        rows: int64 ``[m]``: the rows; -1: there is none.
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
    """Return values of several shapes padded to one, ``[n, *shape]``, and the mask of their numbers.

    Args:
        stream: the key.
        values: arrays, ``[n]`` or ``[n, agents]``; anything else among them is filled.
        shape: the shape. Default: the smallest that holds each value.
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
    """Return the shapes of the arrays among some objects."""
    return {value.shape for value in values.flat if isinstance(value, np.ndarray)}


def as_tensor(stream: Stream, values: npt.NDArray[Any]) -> Any:
    """Return rows of a key as they were given to the recorder.

    - Values of one shape are one tensor.
    - Non-tensor data are a list.
    - Tensors that differ in shape are a list; in each row agents are a list of one tensor each, unless these have one shape.
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
    """Set a key of a tensordict to rows ``[n, ...]`` of one shape, or of non-tensor data."""
    if stream.dtype != "object":
        tensordict.set(stream.key, as_tensor(stream, values))
    elif len(values):
        tensordict.set(stream.key, NonTensorStack(*(NonTensorData(value) for value in values)))


def give_agents(tensordict: TensorDictBase, streams: Iterable[Stream]) -> None:
    """Give groups of agents the batch size that they have in rollouts: ``[*batch, agents]``."""
    groups = {stream.key[:-1]: len(stream.agents) for stream in streams if stream.agents}
    for group in sorted(groups, key=len, reverse=True):  # those within others first
        part, size = tensordict.get(group, None), torch.Size([*tensordict.batch_size, groups[group]])
        if part is not None and all(value.shape[: len(size)] == size for value in part.values()):
            part.batch_size = size


def form_of(steps: TensorDictBase, streams: Sequence[Stream], name: str) -> Form:
    """Return the form of steps that were read."""
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
    """Return steps in a form: with all its masks, and padded to its shapes."""
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
    """Return the root of steps, and their ``"next"``."""
    return steps, steps.get("next")
