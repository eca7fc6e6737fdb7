"""Fields: the parts of a Gymnasium space that are recorded, each under a key of its own, and the way from a value to each.

A vector environment's values come in batches: arrays with a leading dimension, within the dictionaries and tuples of the space.
Texts, sequences, graphs and choices have no common shape, and come as a tuple of one value for each environment.

==========================  ===================================================================================
space                       keys, for a space at ``key``
==========================  ===================================================================================
Box, Discrete,              ``key``: the array or number as it is; a Discrete action is its number
MultiDiscrete, MultiBinary
Dict                        ``(*key, name)`` for each name; at the root of an observation ``name``
Tuple                       ``(*key, "0")``, ``(*key, "1")`` and so on
Text                        ``key``: the text
Sequence                    the keys of its elements, each with all elements along a leading dimension
Graph                       ``(*key, "nodes")``, ``(*key, "edges")``, ``(*key, "edge_links")``
OneOf                       ``(*key, "index")``, and ``(*key, str(index))`` at the frames of that choice
==========================  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from torchrl_rerun.kinds.keys import RESERVED, Key
from torchrl_rerun.kinds.objects import MISSING

OBSERVATION: Key = ("observation",)
ACTION: Key = ("action",)


@dataclass(frozen=True)
class Field:
    """A part of a space.

    Attributes:
        key: the key under which it is recorded.
        steps: keys of dictionaries and indices of tuples on the way to it, in a batch too.
        inner: takes one environment's value at the end of these steps, and returns the part; MISSING: it has none. None: the
            value is the part, and a batch of it is an array.
        form: ``"array"`` of one shape, ``"varying"`` arrays of any shape, or ``"object"``, such as a text.
        dtype: the dtype of an array, by the space.
        shape: the shape of one environment's array, by the space.
        discrete: whether numbers are categories.
        categories: the number of categories of each number, from 0.
    """

    key: Key
    steps: tuple[Any, ...] = ()
    inner: Callable[[Any], Any] | None = None
    form: Literal["array", "varying", "object"] = "array"
    dtype: np.dtype[Any] | None = None
    shape: tuple[int, ...] = ()
    discrete: bool = False
    categories: tuple[int, ...] = ()

    def follow(self, value: Any) -> Any:
        """Return the value at the end of the steps.

        Args:
            value: a value of the space, or a batch of values.
        """
        for step in self.steps:
            value = value[step]
        return value

    def of_one(self, value: Any) -> Any:
        """Return the part of one environment's value; MISSING: it has none.

        Args:
            value: a value of the space.
        """
        found = self.follow(value)
        return found if self.inner is None else self.inner(found)


def observation_fields(space: spaces.Space[Any]) -> list[Field]:
    """Return the fields of an observation. Those of a Dict are at the root, as TorchRL has them.

    Args:
        space: the space of one environment's observation.

    >>> [field.key for field in observation_fields(spaces.Dict(x=spaces.Discrete(2), y=spaces.Box(0, 1)))]
    [('x',), ('y',)]
    """
    return [*fields(space, observation_root(space))]


def observation_root(space: spaces.Space[Any]) -> Key:
    """Return the key of an observation; empty if its parts are at the root.

    Args:
        space: the space of one environment's observation.
    """
    is_at_root = isinstance(space, spaces.Dict) and not RESERVED & {str(name) for name in space.spaces}
    return () if is_at_root else OBSERVATION


def fields(space: spaces.Space[Any], key: Key) -> Iterator[Field]:
    """Yield the fields of a space.

    Args:
        space: the space of one environment's value.
        key: the key of the space.
    """
    match space:
        case spaces.Dict():
            for name, part in space.spaces.items():
                yield from _within(fields(part, (*key, str(name))), name)
        case spaces.Tuple():
            for index, part in enumerate(space.spaces):
                yield from _within(fields(part, (*key, str(index))), index)
        case spaces.Discrete():
            yield _array(space, key, discrete=True, categories=(max(1, int(space.start) + int(space.n)),))
        case spaces.MultiDiscrete():
            most = np.maximum(1, np.add(space.start, space.nvec)).reshape(-1)
            yield _array(space, key, discrete=True, categories=tuple(most.tolist()))
        case spaces.MultiBinary():
            yield _array(space, key, discrete=True, categories=(2,))
        case spaces.Box():
            yield _array(space, key)
        case spaces.Sequence():
            yield from _sequence(space, key)
        case spaces.Graph():
            yield _varying((*key, "nodes"), _attribute("nodes"), space.node_space)
            if space.edge_space is not None:
                yield _varying((*key, "edges"), _attribute("edges"), space.edge_space)
                yield Field((*key, "edge_links"), (), _attribute("edge_links"), "varying", np.dtype(np.int64), (0, 2))
        case spaces.OneOf():
            yield Field((*key, "index"), (), _index, "varying", np.dtype(np.int64))
            for index, part in enumerate(space.spaces):
                for field in fields(part, (*key, str(index))):
                    form = "varying" if field.form == "array" else field.form
                    yield replace(field, steps=(), inner=_choice(index, field), form=form)
        case _:  # a text, or a space of the user's own
            yield Field(key, (), _same, "object")


def _within(found: Iterator[Field], step: Any) -> Iterator[Field]:
    for field in found:
        yield replace(field, steps=(step, *field.steps))


def _array(space: spaces.Space[Any], key: Key, *, discrete: bool = False, categories: Sequence[int] = ()) -> Field:
    return Field(
        key, dtype=space.dtype, shape=tuple(space.shape or ()), discrete=discrete, categories=tuple(categories)
    )


def _varying(key: Key, inner: Callable[[Any], Any], element: spaces.Space[Any]) -> Field:
    return Field(key, (), inner, "varying", element.dtype, (0, *(element.shape or ())))


def _same(value: Any) -> Any:
    return value


def _attribute(name: str) -> Callable[[Any], Any]:
    def inner(value: Any) -> Any:
        part = getattr(value, name)
        return MISSING if part is None else part

    return inner


def _index(value: Any) -> Any:
    return np.asarray(value[0], np.int64)


def _choice(index: int, field: Field) -> Callable[[Any], Any]:
    def inner(value: Any) -> Any:
        return field.of_one(value[1]) if int(value[0]) == index else MISSING

    return inner


def _sequence(space: spaces.Sequence, key: Key) -> Iterator[Field]:
    """Yield the fields of a sequence: all elements of one field together."""
    for field in fields(space.feature_space, key):
        if field.form == "array":
            gather = _stacked(field) if space.stack else _gathered(field)
            yield Field(key=field.key, inner=gather, form="varying", dtype=field.dtype, shape=(0, *field.shape))
        else:
            yield Field(field.key, (), _listed(field), "object")


def _stacked(field: Field) -> Callable[[Any], Any]:
    return lambda value: np.asarray(field.follow(value), field.dtype)


def _gathered(field: Field) -> Callable[[Any], Any]:
    def inner(value: Any) -> Any:
        rows = [np.asarray(field.of_one(element)) for element in value]
        return np.stack(rows) if rows else np.zeros((0, *field.shape), field.dtype)

    return inner


def _listed(field: Field) -> Callable[[Any], Any]:
    return lambda value: [_plain(field.of_one(element)) for element in value]


def _plain(value: Any) -> Any:
    """Return a value within a sequence in a form that JSON keeps."""
    if value is MISSING:
        return None
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
