"""Objects: Python's own values and arrays of any shape, each stored by itself and read back as it was.

A value is stored as a text or a tensor. The component ``TextDocument:media_type`` tells how to read a text, and
``torchrl_rerun:type`` the type of a NumPy value if the tensor itself doesn't tell it:

====================================  =====================  ============================  =====================
value                                 stored as              ``media_type``                ``torchrl_rerun:type``
====================================  =====================  ============================  =====================
``str``                               the text               none
``None``, ``bool``, ``int``,          JSON                   ``application/json``
``float``, ``list`` and ``dict`` of
these, ``str`` with lone surrogates
``bytes``                             base64                 ``application/octet-stream``
a NumPy scalar                        its Python value       of that value                 ``float32``, ``str_``
``numpy.ndarray``                     ``TensorData``
... of ``bool``, of complex numbers   ``TensorData``                                       ``bool``, ``complex64``
====================================  =====================  ============================  =====================

Anything else can't be stored: tuples, dicts whose keys are no strings, instances of classes.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr

from torchrl_rerun.kinds.arrow import Column, flat, lists
from torchrl_rerun.kinds.streams import Stream

TEXT, MEDIA_TYPE, TENSOR, TYPE = "TextDocument:text", "TextDocument:media_type", "Tensor:data", "torchrl_rerun:type"
"""The components of a value. Components that a value doesn't need are null."""

OBJECTS = (TEXT, TENSOR)
"""The components of which each value has one."""

JSON, BYTES = "application/json", "application/octet-stream"


class Lost:
    """Stands for a value that can't be stored.

    Args:
        what: name of the value's type, for a message.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return "MISSING" if self is MISSING else (Lost, (self.what,))


MISSING = Lost("nothing")
"""Stands for a value that an environment did not give, though others of its batch did."""


class NotStorableError(TypeError):
    """A value can't be stored so that it is read back as it was."""


def frozen(value: Any) -> Any:
    """Return a copy of a value, which its owner may change before it is written. A :class:`Lost` if it can't be stored.

    >>> history = [{"role": "user"}]
    >>> frozen(history) == history, frozen(history) is history, frozen((1, 2)).what
    (True, False, 'tuple')
    """
    try:
        return _copied(value)
    except NotStorableError as error:
        return Lost(str(error))
    except RecursionError:
        return Lost(f"{type(value).__name__} that is nested too deeply")


def _copied(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (str, bytes, bool, int, float):
        return value
    if isinstance(value, np.ndarray):
        return np.array(_storable_array(value))
    if isinstance(value, np.generic):
        return _storable_scalar(value)
    if kind is list:
        return [_copied(each) for each in _plain(value)]
    if kind is dict:
        if not all(type(key) is str for key in value):
            raise NotStorableError("dict whose keys are not all strings")
        return dict(zip(value, [_copied(each) for each in _plain(list(value.values()))], strict=True))
    if isinstance(value, str):  # an enumeration's, for one: it equals the text that it is
        return str.__str__(value)
    raise NotStorableError(kind.__name__)


def _plain(values: list[Any]) -> list[Any]:
    """Return values whose types JSON keeps, or raise."""
    for value in values:
        if value is not None and type(value) not in (str, bool, int, float, list, dict):
            raise NotStorableError(f"{type(value).__name__} within a list or dict")
    return values


def size_of(value: object) -> int:
    """Return roughly how many bytes a Python object takes."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list):
        return 64 + sum(map(size_of, value))
    if isinstance(value, dict):
        return 64 + sum(map(size_of, value)) + sum(map(size_of, value.values()))
    return int(getattr(value, "nbytes", 64))


class Written(NamedTuple):
    """The components of a stored value; None for a component that it doesn't need."""

    text: str | None = None
    media_type: str | None = None
    tensor: npt.NDArray[Any] | None = None
    type_name: str | None = None


def written(value: Any) -> Written:
    """Return a value as it is stored.

    Raises:
        NotStorableError: the value can't be stored so that it is read back as it was. The message names its type.
    """
    if isinstance(value, Lost):
        raise NotStorableError(value.what)
    if isinstance(value, np.ndarray):
        return _as_tensor(value)
    found = _as_scalar(value) if isinstance(value, np.generic) else _as_text(value)
    assert found.text is not None, "it is a text"
    if not is_same(read(found.text, found.media_type, found.type_name), value):
        raise NotStorableError(f"{type(value).__name__} that JSON would change")
    return found


def _as_text(value: Any) -> Written:
    if isinstance(value, bytes):
        return Written(base64.b64encode(value).decode(), BYTES)
    if isinstance(value, str) and is_unicode(value):
        return Written(value)
    try:
        return Written(as_json(value), JSON)
    except (TypeError, ValueError, RecursionError) as error:
        raise NotStorableError(f"{type(value).__name__}: {error}") from error


def as_json(value: Any) -> str:
    r"""Return a value as JSON text, which UTF-8 can hold. NaN and infinities are the words that Python's ``json`` has.

    >>> as_json({"a": [None, True, "ü"]}), as_json(float("nan")), as_json(chr(0xD800))
    ('{"a": [null, true, "ü"]}', 'NaN', '"\\ud800"')
    """
    text = json.dumps(value, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(value)


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can hold a text: lone surrogates it can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_scalar(value: np.generic) -> Written:
    return _as_text(_storable_scalar(value).item())._replace(type_name=type(value).__name__)


_SCALARS = {
    name: getattr(np, name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "str_", "bytes_"),
    )
}

_TENSORS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_AS_OTHERS: dict[str, np.dtype[Any]] = {
    "bool": np.dtype(np.uint8),
    "complex64": np.dtype(np.float32),
    "complex128": np.dtype(np.float64),
}
"""Dtypes that Rerun's tensors don't have, and the dtypes in which they are stored."""


def _as_tensor(array: npt.NDArray[Any]) -> Written:
    name = array.dtype.name
    if name in _AS_OTHERS:
        dense = np.ascontiguousarray(array).reshape(array.shape)
        stored = dense[..., None].view(_AS_OTHERS[name])
        return Written(tensor=stored[..., 0] if name == "bool" else stored, type_name=name)
    return Written(tensor=_storable_array(array))


def _storable_array(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array, or raise if it can't be stored."""
    if array.dtype.name not in _AS_OTHERS and (array.dtype.name not in _TENSORS or not array.dtype.isnative):
        raise NotStorableError(f"array of {array.dtype}")
    return array


def _storable_scalar(value: np.generic) -> np.generic:
    """Return a NumPy scalar, or raise if it can't be stored."""
    if type(value).__name__ not in _SCALARS:
        raise NotStorableError(f"NumPy's {type(value).__name__}")
    return value


def is_same(a: Any, b: Any) -> bool:
    """Return whether two plain values are equal and of the same types throughout, floats to the bit.

    >>> is_same([1, float("nan")], [1, float("nan")]), is_same([1], [1.0]), is_same([0.0], [-0.0])
    (True, False, False)
    """
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(is_same, a.values(), b.values()))
    if isinstance(a, np.generic):
        return bool(a.dtype == b.dtype) and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return bool(a == b)


# --- columns ---


def columns_of_objects(rows: Sequence[Written]) -> list[Column]:
    """Return the columns of some values."""
    columns = []
    texts, media_types, tensors, types = zip(*rows, strict=True)
    if any(text is not None for text in texts):
        columns.append(Column(TEXT, "TextDocument", "Text", _optional(pa.array(texts, pa.string()))))
    if any(media_type is not None for media_type in media_types):
        columns.append(Column(MEDIA_TYPE, "TextDocument", "MediaType", _optional(pa.array(media_types, pa.string()))))
    if any(tensor is not None for tensor in tensors):
        held = pa.concat_arrays([tensor_data(each[None]) for each in tensors if each is not None])
        at = np.full(len(rows), -1)
        at[[each is not None for each in tensors]] = np.arange(len(held))
        columns.append(Column(TENSOR, "Tensor", "TensorData", _lists_at(held, at)))
    if any(each is not None for each in types):
        columns.append(Column(TYPE, None, None, _optional(pa.array(types, pa.string()))))
    return columns


def _optional(values: pa.Array) -> pa.ListArray:
    """Return a list of one value for each row that has one, and null for all others."""
    held = values.drop_null()
    at = np.full(len(values), -1)
    at[values.is_valid().to_numpy(zero_copy_only=False)] = np.arange(len(held))
    return _lists_at(held, at)


def _lists_at(held: pa.Array, at: npt.NDArray[np.intp]) -> pa.ListArray:
    offsets = np.zeros(len(at) + 1, np.int32)
    np.cumsum(at >= 0, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), held, mask=pa.array(at < 0))


TENSOR_TYPE: pa.StructType = rr.components.TensorDataBatch(np.zeros(1, np.uint8)).as_arrow_array().type
_BUFFER_TYPE: pa.DenseUnionType = TENSOR_TYPE.field("buffer").type
_BUFFER_CODES = {np.dtype(name): code for code, name in enumerate(_TENSORS, 1)}


def tensor_data(rows: npt.NDArray[Any]) -> pa.StructArray:
    """Return rows ``[n, *shape]`` as ``n`` values of Rerun's ``TensorData``: shape, no names, a union of buffers by dtype."""
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
    no_names = pa.nulls(count, TENSOR_TYPE.field("names").type)
    return pa.StructArray.from_arrays([shapes, no_names, buffers], fields=list(TENSOR_TYPE))


# --- the way back ---


def read(text: str, media_type: str | None, type_name: str | None) -> Any:
    """Return the value of a text."""
    value: Any = text
    if media_type == BYTES:
        value = base64.b64decode(text)
    elif media_type == JSON:
        value = json.loads(text)
    return value if type_name is None else _SCALARS[type_name](value)


def tensor_buffers(batch: pa.RecordBatch, component: str) -> tuple[pa.Array, pa.Array]:
    """Return the shapes and the buffers of the rows that have a tensor."""
    data = batch.column(component).flatten()
    buffers = data.field("buffer")
    if buffers.offset:  # of a slice of a union pyarrow 26 gives the types, and the wrong offsets
        buffers = buffers.take(pa.array(np.arange(len(data))))
    return data.field("shape"), buffers


def objects_in(stream: Stream, batch: pa.RecordBatch) -> npt.NDArray[Any]:
    """Return rows ``[n]`` of which each is a value by itself: an object, or a value that its kind stores.

    Args:
        stream: the stream.
        batch: the rows.
    """
    out = np.empty(len(batch), object)
    types = _one_each(batch, TYPE)
    for component in batch.schema.names:
        if component not in (*OBJECTS, *stream.kind.components):
            continue
        is_there = batch.column(component).is_valid().to_numpy(zero_copy_only=False)
        at = np.flatnonzero(is_there)
        part = batch if is_there.all() else batch.filter(pa.array(is_there))
        if component == TENSOR:
            shapes, buffers = tensor_buffers(part, component)
            for row, shape, buffer in zip(at, shapes, buffers, strict=True):
                numbers, size = np.asarray(buffer.value.values), shape.as_py()
                if stream.varies:
                    out[row] = stream.narrowed(numbers).reshape(size[:-1] if stream.is_complex else size)
                else:
                    out[row] = array_in(numbers, size, types[row])
        elif component == TEXT:
            texts = part.column(TEXT).flatten().to_pylist()
            media_types = _one_each(batch, MEDIA_TYPE)
            for row, text in zip(at, texts, strict=True):
                is_plain = media_types[row] is None and types[row] is None
                out[row] = text if is_plain else read(text, media_types[row], types[row])
        else:
            for row, value in zip(at, stream.kind.values(stream, part), strict=True):
                out[row] = value
    return out


def _one_each(batch: pa.RecordBatch, component: str) -> list[str | None]:
    """Return the value of a component in each row; None: a row has none."""
    if component not in batch.schema.names:
        return [None] * len(batch)
    return [None if said is None else said[0] for said in batch.column(component).to_pylist()]


def array_in(numbers: npt.NDArray[Any], shape: list[int], type_name: str | None) -> npt.NDArray[Any]:
    """Return the array of a ``TensorData``."""
    if type_name == "bool":
        numbers = numbers.astype(bool)
    elif type_name is not None:
        numbers, shape = np.ascontiguousarray(numbers).view(np.dtype(type_name)), shape[:-1]
    return numbers.reshape(shape)
