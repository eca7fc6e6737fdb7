"""Tensordicts of what was read: values as tensors, with masks, groups of agents and padding, as TorchRL has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict, TensorDictBase

from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.padding import Form, Shape


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
