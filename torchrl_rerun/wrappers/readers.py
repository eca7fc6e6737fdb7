"""Readers: read the values of keys out of what an environment returns, as arrays of all environments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.kinds.objects import MISSING, frozen
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording.changes import ChangedError, warn_of_change, wider_dtype, without_ones
from torchrl_rerun.wrappers.fields import Field


class Reader:
    """Read one key, of which all values have one dtype and shape.

    Args:
        stream: how the key is recorded.
        field: where its value is in what the environment returns.
        envs: the number of environments in a batch; None: one environment, whose values have no batch dimension.

    Attributes:
        may_be_missing: whether an environment may give no value, which leaves a gap.
        stream, field, envs: as given.
        is_replaced: whether a reset within a step replaces the value: that of an observation or an info, and no reward or flag.
    """

    may_be_missing = False

    def __init__(self, stream: Stream, field: Field, envs: int | None) -> None:
        self.is_replaced = len(stream.key) > 1 or stream.key[0] not in _OUTCOMES
        self.stream = stream
        self.field = field
        self.envs = envs
        self._first, self._second = (*field.steps, None, None)[:2]
        self._count = len(field.steps)
        self._dtype = stream.number_type
        self._shape = (envs or 1, *stream.shape)

    @property
    def unknown(self) -> Any:
        """The value that stands for one that isn't known: NaN, or 0 if the dtype has none; MISSING for objects."""
        return MISSING if self.stream.is_object else np.nan if self._dtype.kind in "fc" else 0

    def value(self, root: Any) -> Any:
        """Return the value of all environments as the environment gave it.

        Args:
            root: what the environment returned.

        Raises:
            KeyError: there is none.
        """
        if self._count == 1:
            return root[self._first]
        if self._count == 2:
            return root[self._first][self._second]
        return self.field.follow(root)

    def read(self, root: Any) -> Any:
        """Return the values of all environments, ``[envs, *stream.slot_shape]``.

        Args:
            root: what the environment returned.

        Raises:
            ChangedError: the value has another dtype or shape than the first value.
            KeyError: there is none.
        """
        return self.fitted(self.value(root), self._shape)

    def row(self, value: Any) -> Any:
        """Return the value of one environment, ``[*stream.slot_shape]``.

        Args:
            value: a value of one environment, at the end of the steps.

        Raises:
            ChangedError: the value has another dtype or shape than the first value.
        """
        if type(value) is np.ndarray and value.dtype is self._dtype and value.shape == self.stream.shape:
            return value
        return self.fitted(value, self.stream.shape)

    def varied(self, stream: Stream) -> Reader:
        """Return the reader that takes values of any shape.

        Args:
            stream: how the key is recorded from now on.
        """
        return ObjectReader(stream, self.field, self.envs)

    def fitted(self, value: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return a value as an array of the dtype that is recorded, if that changes none of its numbers.

        Args:
            value: the value.
            shape: the shape of the array.

        Raises:
            ChangedError: the value has another dtype or shape than the first value.
        """
        if self.stream.device and hasattr(value, "is_cuda"):
            if str(value.dtype).removeprefix("torch.") != self.stream.dtype or str(value.device) != self.stream.device:
                raise ChangedError(f"{value.dtype} on {value.device}")
            on_device: npt.NDArray[Any] = value.detach().reshape(shape)
            return on_device
        array = as_array(value)
        if without_ones(array.shape) != without_ones(shape):
            within = array.shape if shape == self.stream.shape or self.envs is None else array.shape[1:]
            raise ChangedError(f"{array.dtype} {tuple(within)}", is_shape_alone=True)
        if array.dtype != self._dtype:
            with np.errstate(all="ignore"):
                cast = array.astype(self._dtype)
            is_number = array.dtype.kind in "biuf" and (array.dtype.kind != "f" or self._dtype.kind in "fiu")
            if not is_number or not np.array_equal(cast, array, equal_nan=array.dtype.kind == "f"):
                raise ChangedError(
                    f"{array.dtype} {array.shape}",
                    wider=wider_dtype(self._dtype, array.dtype),
                    advice="Give it one dtype from the first reset on",
                )
            array = cast
        return array.reshape(shape)


class Way(NamedTuple):
    """What :meth:`Readers.arrays` needs to know of a reader, to take arrays without calling it.

    Attributes:
        first: where the value is in what the environment returned; None: the reader follows more steps.
        dtype: the dtype of arrays that are taken; None: none is, and the reader reads.
        shape: the shape of the values of all environments.
        other: a shape of arrays without dimensions of size 1 that ``shape`` has.
        reader: the reader.
    """

    first: Any
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    other: tuple[int, ...]
    reader: Reader


class NumberReader(Reader):
    """Read one number of one environment, such as a reward or a flag, which comes as a number of Python's or NumPy's."""

    def __init__(self, stream: Stream, field: Field, envs: int | None) -> None:
        super().__init__(stream, field, envs)
        self._buffer = np.zeros(self._shape, self._dtype)
        self._flat = self._buffer.reshape(-1)
        self._types = (self._dtype.type, *_HELD.get(self._dtype.name, ()))

    def read(self, root: Any) -> Any:
        """Return the number, ``[1, *stream.shape]``, in an array that holds it until the next call."""
        value = self.value(root)
        if type(value) in self._types:
            self._flat[0] = value
            return self._buffer
        return self.fitted(value, self._shape)


_OUTCOMES = ("reward", "done", "terminated", "truncated")
"""Names of what a step leads to. Observations have other names, see ``fields.py``."""

_HELD: dict[str, tuple[type, ...]] = {
    "float64": (float, np.float32),
    "int64": (int, np.int32),
    "bool": (bool,),
}
"""Types of numbers that a dtype holds as they are."""


class ObjectReader(Reader):
    """Read one key whose values are objects, such as texts, or arrays of shapes of their own."""

    def read(self, root: Any) -> Any:
        """Return the values of all environments, object ``[envs]``; MISSING where an environment gave none."""
        value = self.value(root)
        each = [value] if self.envs is None else value
        out = np.empty(self.envs or 1, object)
        for env, one in enumerate(each):
            out[env] = self.row(one)
        return out

    def row(self, value: Any) -> Any:
        """Return a copy of the value of one environment: the environment may change its own."""
        part = value if self.field.inner is None else self.field.inner(value)
        if part is MISSING:
            return MISSING
        if not self.stream.varies:
            return frozen(as_array(part) if hasattr(part, "detach") else part)
        array = np.array(as_array(part))
        if array.dtype != self._dtype:
            if not np.can_cast(array.dtype, self._dtype):
                raise ChangedError(f"{array.dtype} {array.shape}")
            array = array.astype(self._dtype)
        return array


class Readers:
    """The readers of the keys of one moment.

    Args:
        readers: the readers of single keys.
        vary: have a key recorded with values of any shape from now on; returns its new stream, or None if it can't be.

    Attributes:
        each: as given.
        has_lost_rows: whether an observation that :meth:`replace_rows` asked for wasn't known.
    """

    # Each step calls this class three times, after the policy has used the processor's caches: a call for each key would
    # take three times as long.

    def __init__(
        self, readers: Iterable[Reader] = (), vary: Callable[[Stream], Stream | None] = lambda _: None
    ) -> None:
        self.each = list(readers)
        self._ways = [_way_of(reader) for reader in self.each]
        self._replaced = [(at, reader) for at, reader in enumerate(self.each) if reader.is_replaced]
        self._vary = vary
        self.has_lost_rows = False
        self._warned: set[Key] = set()

    def __iter__(self) -> Iterator[Reader]:
        return iter(self.each)

    def arrays(self, root: Any) -> list[Any]:
        """Return the values of all keys; None for those that are missing or can't be read, with one warning per key.

        Args:
            root: what the environment returned.
        """
        arrays: list[Any] = []
        for first, dtype, shape, other, reader in self._ways:
            try:
                if dtype is None:
                    arrays.append(reader.read(root))
                    continue
                value = reader.value(root) if first is None else root[first]
                if type(value) is np.ndarray and value.dtype is dtype:
                    if value.shape == shape:
                        arrays.append(value)
                        continue
                    if value.shape == other:
                        arrays.append(value.reshape(shape))
                        continue
                arrays.append(reader.fitted(value, shape))
            except (KeyError, IndexError):
                arrays.append(None)
            except Exception as error:
                arrays.append(self._read_otherwise(reader, root, error))
        return arrays

    def replace_rows(
        self, arrays: list[Any], gone: npt.NDArray[np.bool_], value_of: Callable[[Reader, int], Any]
    ) -> list[Any]:
        """Return arrays in which some environments have other values.

        Args:
            arrays: the values of all environments, as :meth:`arrays` returns them. Those of an info that turns out to be missing
                become objects.
            gone: the environments, bool ``[envs]``.
            value_of: returns an environment's value for a reader, at the end of its steps. KeyError: it isn't known. NaN (or 0)
                stands for an observation, and an info leaves a gap.
        """
        out, envs = list(arrays), gone.nonzero()[0].tolist()
        for at, reader in self._replaced:
            if out[at] is None and not reader.may_be_missing:
                continue
            try:
                used = reader
                values = [_known(value_of, reader, env) for env in envs]
                is_lost = False
                for value in values:  # `in` would compare arrays
                    is_lost |= value is MISSING
                if out[at] is None:
                    if all(value is MISSING for value in values):
                        continue
                    out[at] = np.full(reader.envs or 1, MISSING, object)
                    used = reader if reader.stream.is_object else self._varied(reader) or reader
                elif is_lost and reader.may_be_missing and not reader.stream.is_object:
                    used = self._varied(reader) or reader
                    out[at] = arrays[at] = _as_objects(arrays[at])
                changed = out[at].clone() if hasattr(out[at], "clone") else out[at].copy()
                for env, value in zip(envs, values, strict=True):
                    changed[env] = used.unknown if value is MISSING else used.row(value)
                out[at] = changed
                self.has_lost_rows |= is_lost and not reader.may_be_missing
            except Exception as error:
                self._warn(reader, arrays[at], error)
                out[at] = None
        return out

    def _read_otherwise(self, reader: Reader, root: Any, error: Exception) -> Any:
        value: Any = None
        try:
            value = reader.value(root)
            if isinstance(error, ChangedError) and (error.is_shape_alone or error.wider):
                changed = self._varied(reader, error.wider)
                if changed is not None:
                    return changed.read(root)
        except Exception as reason:
            error = reason
        self._warn(reader, value, error)
        return None

    def _varied(self, reader: Reader, dtype: str = "") -> Reader | None:
        """Have a key recorded with values of any shape from now on; return its new reader, or None if it can't be.

        Args:
            reader: the reader so far.
            dtype: a wider dtype, in which the values come from now on. Default: that so far.
        """
        varying = self._vary(dataclasses.replace(reader.stream, dtype=dtype or reader.stream.dtype))
        if varying is None:
            return None
        if dtype:
            warn(
                f"{name_of(reader.stream.key)} is recorded as tensors of {dtype} from here on: the recording began with "
                f"{reader.stream.dtype}. Give it one dtype from the first reset on, for plots of all of it"
            )
        changed = reader.varied(varying)
        at = self.each.index(reader)
        self.each[at], self._ways[at] = changed, _way_of(changed)
        self._replaced = [(at, reader) for at, reader in enumerate(self.each) if reader.is_replaced]
        return changed

    def _warn(self, reader: Reader, value: Any, error: Exception) -> None:
        if reader.stream.key not in self._warned:
            self._warned.add(reader.stream.key)
            warn_of_change(reader.stream, value, error)


def _way_of(reader: Reader) -> Way:
    """Return the way of a reader."""
    stream, envs = reader.stream, reader.envs
    shape = (envs or 1, *stream.shape)
    if type(reader) is not Reader:
        return Way(None, None, shape, shape, reader)
    # Rewards and flags of a batch come without the dimension of size 1 that they are recorded with.
    other = stream.shape if envs is None else (envs,) if stream.shape == (1,) else shape
    steps = reader.field.steps
    return Way(steps[0] if len(steps) == 1 else None, stream.number_type, shape, other, reader)


def _known(value_of: Callable[[Reader, int], Any], reader: Reader, env: int) -> Any:
    """Return an environment's value for a reader; MISSING if it isn't known."""
    try:
        return value_of(reader, env)
    except KeyError:
        return MISSING


def _as_objects(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows ``[envs, ...]`` as objects ``[envs]``, as those that vary in shape are held."""
    out = np.empty(len(rows), object)
    for env, row in enumerate(rows):
        out[env] = np.array(row)
    return out


def as_array(value: Any) -> npt.NDArray[Any]:
    """Return a value as an array in main memory, that of a tensor of PyTorch's, too.

    Args:
        value: an array, a tensor, a number, or lists of these.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array: npt.NDArray[Any] = np.asarray(value)
    return array
