"""Readers: read the values of keys out of tensordicts, as arrays of all environments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording.changes import ChangedError, warn_of_change, without_ones
from torchrl_rerun.transform import tensordicts


@dataclass(frozen=True)
class Reader:
    """Read one key.

    Attributes:
        stream: how the key is recorded.
        batch_size: the batch size of the tensordicts.
        name: the key's name at the root; empty if it is nested, for no name is empty.
        is_simple: whether ``value.numpy()`` is the array, if its dtype and shape are as ever. Of values on an accelerator: whether
            the value itself is what is copied.
        is_flat: whether values are ``[envs, ...]`` already.
        dtype: the dtype of the arrays; of values on an accelerator, that of the values.
        given_shape: the shape of the values, ``[*batch, *stream.shape]``.
        shape: the shape of the arrays, ``[envs, *stream.shape]``.
    """

    stream: Stream
    batch_size: torch.Size
    name: str
    is_simple: bool
    is_flat: bool
    dtype: np.dtype[Any] | torch.dtype
    given_shape: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, stream: Stream, batch_size: Sequence[int]) -> Reader:
        """Return the reader of a stream's key.

        Args:
            stream: how the key is recorded.
            batch_size: the batch size of the environments.
        """
        size = torch.Size(batch_size)
        return cls(
            stream,
            size,
            name=stream.key[0] if len(stream.key) == 1 else "",
            is_simple=not stream.is_object and (bool(stream.device) or stream.dtype != "bfloat16"),
            is_flat=len(size) == 1,
            dtype=getattr(torch, stream.dtype) if stream.device else stream.storage,
            given_shape=(*size, *stream.shape),
            shape=(size.numel(), *stream.shape),
        )

    @property
    def key(self) -> Key:
        """The key."""
        return self.stream.key

    def array(self, value: Any) -> Any:
        """Return a value as an array ``[envs, *stream.slot_shape]``, or ``[1, *stream.slot_shape]`` if it is shared.

        Values on an accelerator stay there: they are copied when they have got their place in memory.

        Args:
            value: the value in a tensordict.

        Raises:
            ChangedError: the value has another dtype or shape than the first value.
            UnsupportedLeafError: values of this type can't be recorded.
        """
        stream, size = self.stream, self.batch_size
        if stream.dtype == "object":
            objects = tensordicts.objects_in(value, size)
            return objects[:1] if stream.shared else objects
        if not isinstance(value, torch.Tensor | tensordicts.Uneven):
            raise ChangedError(f"of type {type(value).__name__}")
        if isinstance(value, torch.Tensor) and value.is_nested:
            value = tensordicts.components_of(value, len(size))
        if stream.varies:
            return tensordicts.objects_of(value, size, stream.dtype, len(stream.agents))
        if isinstance(value, tensordicts.Uneven):
            raise ChangedError("of different shapes in different environments", is_shape_alone=True)
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape[len(size) :])
        if dtype != stream.dtype:
            raise ChangedError(f"{dtype} {shape}", advice="Give it one dtype from the first reset on")
        if without_ones(shape) != without_ones(stream.shape):
            raise ChangedError(f"{dtype} {shape}", is_shape_alone=True)
        array = value.to(stream.device) if stream.device else tensordicts.as_array(value, size)
        return array.reshape(self.shape)  # some environments return () at a reset and (1,) at a step


class Readers:
    """The readers of the keys of one moment.

    Args:
        readers: the readers of single keys.

    Attributes:
        each: as given.
        keys: their keys.
        devices: the accelerator that the values of each are on; None: in main memory.
        simple: for each simple key the dtype and the shape of its values, the shape of its arrays if it is another one, and
            whether its values are on an accelerator; None for other keys.
    """

    def __init__(self, readers: Iterable[Reader] = ()) -> None:
        self.each = tuple(readers)
        self.keys = tuple(reader.key for reader in self.each)
        self.simple = tuple(
            (each.dtype, each.given_shape, None if each.is_flat else each.shape, bool(each.stream.device))
            if each.is_simple
            else None
            for each in self.each
        )
        self.devices = tuple(torch.device(each.stream.device) if each.stream.device else None for each in self.each)
        names = [reader.name for reader in self.each]
        # One call for all keys, if all are at the root. `itemgetter` gives no tuple of a single item.
        self._get: Callable[[Any], Sequence[Any]] | None = (
            operator.itemgetter(*names) if len(names) > 1 and all(names) else None
        )

    def __iter__(self) -> Iterator[Reader]:
        return iter(self.each)

    def __len__(self) -> int:
        return len(self.each)

    def values(self, tensordict: TensorDictBase) -> Sequence[Any]:
        """Return the values of the keys as they are in a tensordict; None for those that it lacks."""
        if type(tensordict) is not TensorDict:
            return [tensordicts.value_of(tensordict, key) for key in self.keys]
        items = tensordict._tensordict  # noqa: SLF001 - a tenth of the time of `get`
        if self._get is not None:
            try:
                return self._get(items)
            except KeyError:  # a key is missing
                pass
        return [
            items[each.name] if each.name in items else tensordicts.value_of(tensordict, each.key) for each in self.each
        ]

    def arrays_over_time(self, rollout: TensorDictBase) -> list[npt.NDArray[Any]] | None:
        """Return the values of a rollout ``[*batch, time]`` as arrays ``[envs, time, ...]`` that share their memory if possible.

        None: a key is missing, or must be read step by step.
        """
        arrays = []
        time = rollout.batch_size[-1]
        for simple, value in zip(self.simple, self.values(rollout), strict=True):
            if simple is None or not isinstance(value, torch.Tensor):
                return None
            dtype, given_shape, shape, is_on_device = simple
            if is_on_device or value.is_nested:
                return None
            try:
                array: npt.NDArray[Any] = value.numpy()
            except Exception:  # it requires a gradient, is on another device, or of another layout or dtype
                return None
            dims = len(rollout.batch_size) - 1
            if array.dtype is not dtype or (*array.shape[:dims], *array.shape[dims + 1 :]) != given_shape:
                return None
            shape = given_shape if shape is None else shape
            arrays.append(array.reshape(shape[0], time, *shape[1:]))
        return arrays

    def varied(self, stream: Stream) -> Readers:
        """Return readers of which the one of a key reads it as another stream.

        Args:
            stream: how the key is recorded from now on.
        """
        return Readers(Reader.of(stream, each.batch_size) if each.key == stream.key else each for each in self)


class ArrayReader:
    """Turn values into arrays. A value that can't be read costs that value, with one warning per key.

    Args:
        vary: have a key recorded with values of any shape from now on; returns its new stream, or None if it can't be.
    """

    def __init__(self, vary: Callable[[Stream], Stream | None]) -> None:
        self._vary = vary
        self.warned: set[Key] = set()

    def arrays(self, readers: Readers, values: Iterable[Any]) -> list[Any]:
        """Return values as arrays; None for those that are None or can't be read.

        Args:
            readers: the readers of the keys.
            values: the values, in the order of the readers.
        """
        arrays: list[Any] = []
        for i, value in enumerate(values):
            simple = readers.simple[i]
            if simple is not None and value is not None:
                dtype, given_shape, shape, is_on_device = simple
                try:
                    array: Any = value if is_on_device else value.numpy()
                    is_as_ever = array.dtype is dtype and array.shape == given_shape
                    is_as_ever &= not is_on_device or value.device == readers.devices[i]
                except Exception:  # it requires a gradient, is on another device, or no tensor at all
                    is_as_ever = False
                if is_as_ever:
                    arrays.append(array if shape is None else array.reshape(shape))
                    continue
            arrays.append(None if value is None else self._array(readers.each[i], value))
        return arrays

    def _array(self, reader: Reader, value: Any) -> Any:
        try:
            try:
                return reader.array(value)
            except ChangedError as change:
                varying = self._vary(reader.stream) if change.is_shape_alone else None
                if varying is None:
                    raise
                return Reader.of(varying, reader.batch_size).array(value)
        except Exception as error:
            self._warn(reader, value, error)
            return None

    def _warn(self, reader: Reader, value: Any, error: Exception) -> None:
        if reader.key not in self.warned:
            self.warned.add(reader.key)
            warn_of_change(reader.stream, value, error)
