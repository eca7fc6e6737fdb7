"""Steps: the rows of an environment, put together in TorchRL's own form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tensordict import NonTensorData, TensorDict, TensorDictBase, lazy_stack

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Moment, TimedStream
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.padding import Form, largest, mask_name, padded, shapes_of, taken
from torchrl_rerun.reading.rows import DecodedRows
from torchrl_rerun.reading.tensordicts import as_tensor, give_agents, put
from torchrl_rerun.reading.transitions import Transitions, transitions_at
from torchrl_rerun.reading.undecoded import UndecodedPictures, decoded_at
from torchrl_rerun.rrd.frame_codes import ALL, Span


class Values(NamedTuple):
    """The values of a key at one side of ``n`` steps.

    Attributes:
        is_next: whether the steps led to them.
        values: ``[n, ...]``, filled if there is none.
        is_there: bool ``[n]``: whether there is one.
    """

    is_next: bool
    values: npt.NDArray[Any]
    is_there: npt.NDArray[np.bool_]


def steps(
    history: History,
    wanted: Sequence[TimedStream],
    span: Span = ALL,
    at: Transitions | None = None,
    form: Form | None = None,
) -> TensorDict:
    """Return steps, ``[n]``: what was seen and done at t at the root, what came of it below ``"next"``.

    A key of which a value is missing, or whose values differ in shape, has a mask beside it.

    Args:
        history: the environment.
        wanted: the keys.
        span: the frames.
        at: the steps, as :func:`~torchrl_rerun.reading.transitions.transitions` returns them for these keys or more;
            None: all.
        form: the form of several steps that are to fit together; None: what these need.
    """
    form = Form() if form is None else form
    name = mask_name(history.recording.schema)
    at, read = _read(history, wanted, span, at)
    root, following = TensorDict(batch_size=[len(at)]), TensorDict(batch_size=[len(at)])
    for stream, values in read:
        lacks = stream.key in form.masked or any(not each.is_there.all() for each in values)
        found, masks = [each.values for each in values], [each.is_there for each in values]
        if stream.varies:
            found, masks, lacks = _of_one_size(stream, found, form, lacks=lacks)
        for each, rows, mask in zip(values, found, masks, strict=True):
            part = following if each.is_next else root
            put(part, stream, rows)
            if lacks:
                part.set((name, *stream.key), torch.from_numpy(mask))
    for part in root, following:
        give_agents(part, (stream for stream, _ in wanted))
    return root.set("next", following)


def step_values(
    history: History, wanted: Sequence[TimedStream], span: Span, at: Transitions
) -> Iterator[tuple[Stream, list[Values]]]:
    """Yield the values of each key at some steps, as arrays: before them, after them, or both, as the key is seen.

    Values that differ in shape are objects.

    Args:
        history: the environment.
        wanted: the keys.
        span: the frames.
        at: the steps, as :func:`~torchrl_rerun.reading.transitions.transitions` returns them for these keys or more.
    """
    return _read(history, wanted, span, at)[1]


def uneven_steps(history: History, wanted: Sequence[TimedStream], span: Span = ALL) -> TensorDictBase:
    """Return steps as the environment gave them, ``[n]``: without a key that is missing, each value in its own shape.

    If a key is missing at a step, or varies in shape, the steps are a lazy stack.

    Args:
        history: the environment.
        wanted: the keys.
        span: the frames.
    """
    at, read = _read(history, wanted, span, None)
    root, following = TensorDict(batch_size=[len(at)]), TensorDict(batch_size=[len(at)])
    uneven: list[tuple[Stream, Values]] = []
    for stream, values in read:
        for each in values:
            if stream.varies or not each.is_there.all():
                uneven.append((stream, each))
            else:
                put(following if each.is_next else root, stream, each.values)
    for part in root, following:
        give_agents(part, (stream for stream, _ in wanted))
    found = root.set("next", following)
    if not uneven:
        return found
    apart = [step.copy() for step in found.unbind(0)]
    for step in apart:
        step.set("next", step.get("next").copy())
    for stream, each in uneven:
        for row in np.flatnonzero(each.is_there).tolist():
            [value] = as_tensor(stream, each.values[row : row + 1])
            part = apart[row].get("next") if each.is_next else apart[row]
            part.set(stream.key, NonTensorData(value) if stream.dtype == "object" else value)
    for step in apart:
        for part in step, step.get("next"):
            give_agents(part, (stream for stream, _ in uneven))
    return lazy_stack(apart)


def _read(
    history: History, wanted: Sequence[TimedStream], span: Span, at: Transitions | None
) -> tuple[Transitions, Iterator[tuple[Stream, list[Values]]]]:
    """Return steps, and the values of each key before and after them."""
    read = {
        # The pictures of agents are put together, for which all of them are needed.
        stream.key: history.rows(stream, span)
        if stream.agents or stream.is_object or not stream.is_picture
        else history.undecoded(stream, 0, span)
        for stream, _ in wanted
    }
    if at is None:
        at = transitions_at(history, wanted, {key: rows.places for key, rows in read.items()}, span)
        history.warn_of_gaps(at.frames, len(at))
    return at, _sides(wanted, read, at)


def _sides(
    wanted: Sequence[TimedStream], read: dict[Key, DecodedRows | UndecodedPictures], at: Transitions
) -> Iterator[tuple[Stream, list[Values]]]:
    for stream, moment in wanted:
        rows = read.pop(stream.key)
        row_of = rows.places.find(at.frames)
        sides = [
            is_next for is_next, without in ((False, Moment.STEPPED), (True, Moment.ACTED)) if moment is not without
        ]
        numbers = [row_of[at.at + is_next] for is_next in sides]
        found = _taken(stream, rows, numbers)
        yield (
            stream,
            [
                Values(is_next, values, rows_at >= 0)
                for is_next, values, rows_at in zip(sides, found, numbers, strict=True)
            ],
        )


def _taken(
    stream: Stream, rows: DecodedRows | UndecodedPictures, wanted: Sequence[npt.NDArray[np.intp]]
) -> list[npt.NDArray[Any]]:
    """Return the values at some rows, -1 for none, for each of several lists of rows. The arrays share no memory."""
    if isinstance(rows, UndecodedPictures):
        return decoded_at(stream, rows, wanted)
    first, *others = (taken(stream, rows.values, numbers) for numbers in wanted)
    return [first, *(values.copy() for values in others)]


def _of_one_size(
    stream: Stream, found: Sequence[npt.NDArray[Any]], form: Form, *, lacks: bool
) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[np.bool_]], bool]:
    """Return values padded to one shape, their masks, and whether the masks say anything."""
    shapes = {shape for values in found for shape in shapes_of(values)}
    size = largest([*shapes, form.shapes[stream.key]] if stream.key in form.shapes else shapes)
    pairs = [padded(stream, values, size) for values in found]
    return [values for values, _ in pairs], [mask for _, mask in pairs], lacks or len(shapes) > 1
