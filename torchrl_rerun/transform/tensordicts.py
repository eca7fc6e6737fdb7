"""Tensordicts: find the data keys of a tensordict, and turn the values of a key into an array of all environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import (
    LazyStackedTensorDict,
    NonTensorData,
    NonTensorStack,
    TensorDict,
    TensorDictBase,
    is_tensor_collection,
)
from tensordict.base import _is_leaf_nontensor

from torchrl_rerun.kinds.keys import Key, as_key
from torchrl_rerun.kinds.leaf import UnsupportedLeafError
from torchrl_rerun.kinds.objects import MISSING, Lost, frozen

_NOT_DATA = ("_reset", "_step")


class Uneven:
    """Values of one key that no tensor holds together: their shapes differ between environments, or agents.

    Args:
        values: the value of each environment of the flattened batch; of a group of agents a list of the values of its
            agents; None if an environment gave none.
        why_not: why the values of the environments can't be told apart. Default: they can.
    """

    def __init__(self, values: Sequence[Any], why_not: str = "") -> None:
        self.values = values
        self.why_not = why_not

    @property
    def first(self) -> torch.Tensor:
        """The first value that is there, which is a tensor."""
        value = next(each for each in self.values if each is not None)
        first: torch.Tensor = value[0] if isinstance(value, list) else value
        return first

    @property
    def is_of_tensors(self) -> bool:
        """Whether all values are tensors."""
        return all(isinstance(value, torch.Tensor) and not value.is_nested for value in flattened(self.values))


def flags_of(tensordict: TensorDictBase, key: Key) -> npt.NDArray[np.bool_] | None:
    """Return the values of a flag, bool ``[*batch, ...]``; None: there is none."""
    value = value_at_root(tensordict, key[0]) if len(key) == 1 else value_of(tensordict, key)
    if not isinstance(value, torch.Tensor):
        return None
    flags: npt.NDArray[np.bool_] = (value if value.device.type == "cpu" else value.cpu()).numpy()
    return flags


def value_at_root(tensordict: TensorDictBase, name: str) -> Any:
    """Return the value of a key at the root; None: there is none."""
    if type(tensordict) is TensorDict:
        return tensordict._tensordict.get(name)  # noqa: SLF001 - a tenth of the time of `get`
    return tensordict.get(name, None)


def is_dense(tensordict: TensorDictBase) -> bool:
    """Return whether a tensordict holds tensors: those of a lazy stack may be of several dtypes, and are stacked as one."""
    if type(tensordict) is not TensorDict:
        return False
    return all(is_dense(value) for value in tensordict.values() if isinstance(value, TensorDictBase))


def data_keys(tensordict: TensorDictBase) -> list[Key]:
    """Return the keys of all leaves of a tensordict that are data, without those under ``"next"``."""
    if isinstance(tensordict, LazyStackedTensorDict):  # it names only the keys that all of its parts have
        return list(dict.fromkeys(key for part in tensordict.tensordicts for key in data_keys(part)))
    found = map(as_key, tensordict.keys(include_nested=True, leaves_only=True, is_leaf=_is_leaf_nontensor))
    return [key for key in found if key[0] != "next" and key[-1] not in _NOT_DATA]


def value_of(tensordict: TensorDictBase, key: Key) -> Any:
    """Return the value of a key; None: there is none. Values that no plain tensor holds together are :class:`Uneven`.

    Args:
        tensordict: the tensordict.
        key: the key.
    """
    try:
        value = tensordict.get(key, None)
    except Exception:  # a lazy stack of different shapes can't stack them
        return _apart(tensordict, key)
    if value is None and _is_lazy(tensordict, key):  # a single part may lack it
        return _apart(tensordict, key)
    return components_of(value, tensordict.batch_dims) if isinstance(value, torch.Tensor) and value.is_nested else value


def _is_lazy(tensordict: TensorDictBase, key: Key) -> bool:
    """Return whether a key would be in a lazy stack."""
    for name in ("", *key[:-1]):
        inner = tensordict.get(name, None) if name else tensordict
        if not isinstance(inner, TensorDictBase):
            return False
        if isinstance(inner, LazyStackedTensorDict):
            return True
        tensordict = inner
    return False


def _apart(tensordict: TensorDictBase, key: Key) -> Uneven | None:
    """Return the values of a key in each environment of a lazy stack."""
    found = []
    for each in _unbound(tensordict):
        try:
            found.append(each.get(key, None))
        except Exception:  # of agents: the stack is along them
            try:
                found.append([agent.get(key[-1], None) for agent in each.get(key[:-1]).unbind(0)])
            except Exception as error:
                return Uneven([], f"they can't be stacked ({error})")
    there = [each for each in found if each is not None]
    if not there:
        return None
    if (
        len({isinstance(each, list) for each in there}) > 1
        or len({len(each) for each in there if isinstance(each, list)}) > 1
    ):
        return Uneven([], "environments have different numbers of agents")
    return Uneven(found)


def flattened(values: Sequence[Any]) -> list[Any]:
    """Return the values that are there, of environments and of their agents, one by one."""
    there = [each for each in values if each is not None]
    return [value for each in there for value in (each if isinstance(each, list) else [each])]


def _unbound(tensordict: TensorDictBase) -> list[TensorDictBase]:
    """Return each environment's data by itself, in the order of the flattened batch."""
    if not tensordict.batch_dims:
        return [tensordict]
    return [leaf for each in tensordict.unbind(0) for leaf in _unbound(each)]


def components_of(nested: torch.Tensor, batch_dims: int) -> Uneven:
    """Return the values of each environment in a nested tensor.

    Args:
        nested: the nested tensor.
        batch_dims: the number of batch dimensions of the environments.
    """
    if batch_dims != 1:
        return Uneven(
            [], "nested tensors are recorded of environments with one batch dimension, each of which has a component"
        )
    return Uneven(nested.detach().unbind())


def check_dense(value: torch.Tensor) -> None:
    """Raise UnsupportedLeafError if a tensor is sparse, quantized, or without data: no array holds it as it is."""
    if value.is_quantized:
        raise UnsupportedLeafError("quantized tensors can't be recorded")
    if value.is_meta:
        raise UnsupportedLeafError("tensors on the meta device have no data")
    if value.layout is not torch.strided:
        raise UnsupportedLeafError(f"tensors of layout {value.layout} can't be recorded: give them dense")


def is_group(value: Any) -> bool:
    """Return whether a value of a tensordict is itself a tensordict of keys."""
    return is_tensor_collection(value) and not isinstance(value, NonTensorData | NonTensorStack)


def is_uneven(value: Any) -> bool:
    """Return whether a value is :class:`Uneven`."""
    return isinstance(value, Uneven)


def is_non_tensor(value: Any) -> bool:
    """Return whether a value of a tensordict is Python data and no tensor."""
    return isinstance(value, NonTensorData | NonTensorStack) or not isinstance(value, torch.Tensor)


def as_array(value: Any, batch_size: torch.Size) -> npt.NDArray[Any]:
    """Return a value of a tensordict as an array ``[envs, *shape]``, without a copy if it is on the CPU.

    bfloat16 becomes its bits (uint16). Non-tensor data becomes an object array ``[envs]``, see :func:`objects_in`.

    Args:
        value: the value.
        batch_size: the batch size of the environments.

    Raises:
        UnsupportedLeafError: the tensor is sparse, quantized, or without data.
    """
    count = batch_size.numel()
    if isinstance(value, torch.Tensor):
        check_dense(value)
        tensor = value.detach().resolve_conj().resolve_neg()
        if tensor.device.type != "cpu":
            tensor = tensor.cpu()
        if tensor.dtype is torch.bfloat16:
            array: npt.NDArray[Any] = tensor.contiguous().view(torch.int16).numpy().view(np.uint16)
        else:
            array = tensor.numpy()
        return array.reshape(count, *array.shape[len(batch_size) :])
    return objects_in(value, batch_size)


def objects_in(value: Any, batch_size: torch.Size) -> npt.NDArray[Any]:
    """Return each environment's value as an object, ``[envs]``; tensors become arrays.

    The objects are copies: the environment may change its own.

    Args:
        value: the value of all environments.
        batch_size: the batch size of the environments.

    Raises:
        UnsupportedLeafError: the values of the environments can't be told apart.
    """
    count = batch_size.numel()
    if isinstance(value, Uneven):
        if value.why_not:
            raise UnsupportedLeafError(value.why_not)
        raw = [each.data if isinstance(each, NonTensorData) else each for each in value.values]
        objects = [MISSING if each is None else _object(one) for each, one in zip(value.values, raw, strict=True)]
    elif isinstance(value, torch.Tensor):
        objects = [_object(each) for each in value.reshape(count, *value.shape[len(batch_size) :]).unbind(0)]
    elif isinstance(value, NonTensorStack):
        objects = [_object(item) for item in _flat(value.tolist(), len(batch_size))]
    else:
        objects = [_object(value.data if isinstance(value, NonTensorData) else value)] * count
    array = np.empty(count, object)
    for i, item in enumerate(objects):
        array[i] = item
    return array


def objects_of(value: Any, batch_size: torch.Size, dtype: str, agents: int) -> npt.NDArray[Any]:
    """Return tensors as one array for each environment (and agent), ``[envs]`` or ``[envs, agents]``, copied.

    Args:
        value: a tensor of all environments, or an :class:`Uneven`.
        batch_size: the batch size of the environments.
        dtype: torch's name of the dtype.
        agents: the number of agents; 0: no agent dimension.

    Raises:
        UnsupportedLeafError: the values have another dtype or number of agents, or can't be told apart.
    """
    if isinstance(value, Uneven):
        if value.why_not:
            raise UnsupportedLeafError(value.why_not)
        of_each: Sequence[Any] = value.values
    else:
        of_each = value.reshape(batch_size.numel(), *value.shape[len(batch_size) :]).unbind(0)
    count = batch_size.numel()
    out = np.empty((count, agents) if agents else count, object)
    for env, of_one in enumerate(of_each):
        if of_one is None:
            out[env] = MISSING
            continue
        if agents and len(of_one) != agents:
            raise UnsupportedLeafError(f"of {len(of_one)} agents instead of {agents}")
        for agent, each in enumerate(of_one if agents else [of_one]):
            if not isinstance(each, torch.Tensor) or str(each.dtype).removeprefix("torch.") != dtype:
                raise UnsupportedLeafError(f"of another type, {getattr(each, 'dtype', type(each).__name__)}")
            out[(env, agent) if agents else env] = np.array(as_array(each, torch.Size())[0])
    return out


def _object(item: Any) -> Any:
    """Return a copy of an object: the environment may draw its next picture into the same array."""
    if isinstance(item, torch.Tensor):
        try:
            return (
                np.array(as_array(item, torch.Size())[0])
                if item.dtype is not torch.bfloat16
                else Lost("bfloat16 tensor")
            )
        except Exception as error:
            return Lost(f"tensor ({error})")
    return frozen(item)


def _flat(nested: Any, depth: int) -> list[Any]:
    return [nested] if depth == 0 else [leaf for part in nested for leaf in _flat(part, depth - 1)]
