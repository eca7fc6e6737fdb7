"""What TorchRL's environments say of themselves: their keys, specs, names and frame rates, as facts without TorchRL."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.envs.registration import load_env_creator
from tensordict import (
    LazyStackedTensorDict,
    NonTensorData,
    NonTensorStack,
    TensorDict,
    TensorDictBase,
    is_tensor_collection,
)
from tensordict.base import _is_leaf_nontensor
from torchrl.data.tensor_specs import Binary, Categorical, MultiCategorical, MultiOneHot, OneHot, TensorSpec
from torchrl.envs import (
    AsyncEnvPool,
    AutoResetTransform,
    CatFrames,
    Compose,
    ConditionalSkip,
    EnvBase,
    GymWrapper,
    ParallelEnv,
    SerialEnv,
    Transform,
    TransformedEnv,
)
from torchrl.record import PixelRenderTransform

from torchrl_rerun.kinds.endings import deciding
from torchrl_rerun.kinds.objects import MISSING, Lost, frozen
from torchrl_rerun.kinds.streams import Key, Leaf, UnsupportedLeafError, as_key
from torchrl_rerun.transform.known_names import known_names

_NOT_DATA = ("_reset", "_step")


class Uneven:
    """Values of one key that nothing holds together: of different shapes in different environments, or agents.

    Args:
        values: one for each environment of the flattened batch, of a group of agents a list of one for each agent; None of
            those that gave none.
        why_not: why they can't be told apart; empty: they can.
    """

    def __init__(self, values: Sequence[Any], why_not: str = "") -> None:
        self.values = values
        self.why_not = why_not

    @property
    def first(self) -> torch.Tensor:
        """The first value, of those that are tensors."""
        value = next(each for each in self.values if each is not None)
        first: torch.Tensor = value[0] if isinstance(value, list) else value
        return first

    @property
    def is_of_tensors(self) -> bool:
        """Whether all values are tensors."""
        return all(isinstance(value, torch.Tensor) and not value.is_nested for value in _flattened(self.values))


def default_keys(env: EnvBase) -> list[Key]:
    """Every leaf of the environment's observation, action, reward and done specs."""
    keys = [*env.observation_keys, *env.action_keys, *env.reward_keys, *env.done_keys]
    return list(dict.fromkeys(as_key(key) for key in keys))


def reward_leaves(env: EnvBase | None, observed: TensorDictBase, outcome: TensorDictBase | None) -> list[Leaf]:
    """The rewards, before the first of them has come.

    Args:
        env: the environment, whose specs say.
        observed: data of the environment, for its groups of agents.
        outcome: without an environment: data after a step; what is called ``"reward"`` in it is a reward.
    """
    if env is not None:
        found = {as_key(key): spec_of(env, as_key(key)) for key in env.reward_keys}
        shapes = {key: tuple(spec.shape) for key, spec in found.items() if spec is not None}
    elif outcome is not None:
        values = {key: value_of(outcome, key) for key in data_keys(outcome) if key[-1] == "reward"}
        shapes = {
            key: tuple(value.shape[outcome.batch_dims :])
            for key, value in values.items()
            if isinstance(value, torch.Tensor) and value.layout is torch.strided
        }
    else:
        shapes = {}
    return [
        Leaf(key, "float64", shape, _agents(key, shape, observed, env))
        for key, shape in shapes.items()
        if -1 not in shape  # of different shapes in different environments
    ]


def is_pool(env: EnvBase | None) -> bool:
    """Return whether an environment is a pool that can be stepped asynchronously."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return isinstance(env, AsyncEnvPool)


def hides_skipped_steps(env: EnvBase | None) -> bool:
    """Return whether an environment within this one skips steps by itself, of which nothing is told outside of it."""
    within = [env.base_env] if isinstance(env, TransformedEnv) else []
    while within:
        each = within.pop()
        if isinstance(each, TransformedEnv):
            if any(isinstance(transform, ConditionalSkip) for transform in flat([each.transform])):
                return True
            within.append(each.base_env)
        elif isinstance(each, SerialEnv):
            within += each._envs if not each.is_closed else []  # noqa: SLF001 - there is no public way
    return False


def flag_keys(env: EnvBase | None, following: TensorDictBase) -> list[Key]:
    """Return the flags among which those are that end episodes.

    Args:
        env: the environment, which knows; None: there is none.
        following: the data after a step.
    """
    return data_keys(following) if env is None else [as_key(key) for key in env.done_keys]


def flags_of(tensordict: TensorDictBase, key: Key) -> npt.NDArray[np.bool_] | None:
    """Return the values of a flag, bool ``[*batch, ...]``; None: there is none."""
    value = value_at_root(tensordict, key[0]) if len(key) == 1 else value_of(tensordict, key)
    if not isinstance(value, torch.Tensor):
        return None
    flags: npt.NDArray[np.bool_] = (value if value.device.type == "cpu" else value.cpu()).numpy()
    return flags


Resets = Mapping[Key, torch.Tensor]
"""Which agents were reset: bool ``[*batch, ...]`` by group; ``()`` is the environment itself."""


def resets_in(env: EnvBase, tensordict: TensorDictBase) -> Resets:
    """Return what a partial reset is for, by the outermost groups that it names; empty: all is reset.

    Args:
        env: the environment.
        tensordict: what was passed to the reset.
    """
    given = {
        key[:-1]: mask for key in map(_unprefixed, env.reset_keys) if (mask := tensordict.get(key, None)) is not None
    }
    return {
        group: mask for group, mask in given.items() if not any(group[:depth] in given for depth in range(len(group)))
    }


def _unprefixed(key: str | tuple[str, ...]) -> tuple[str, ...]:
    return (key,) if isinstance(key, str) else key


def resets_by_group(env: EnvBase) -> bool:
    """Whether groups of agents are reset apart: there is no flag of the whole environment."""
    return bool(env.reset_keys) and "_reset" not in env.reset_keys


def reset_envs(env: EnvBase, resets: Resets, count: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return of which environments anything was reset, and whose episodes begin, ``[envs]`` each.

    Args:
        env: the environment.
        resets: what was reset, not empty.
        count: the number of environments.
    """
    each = {group: mask.cpu().numpy().reshape(count, -1) for group, mask in resets.items()}
    touched = np.logical_or.reduce([mask.any(axis=1) for mask in each.values()])
    if () in each:
        return touched, touched
    groups = {key[:-1] for key in deciding(as_key(key) for key in env.done_keys)}
    if not groups <= each.keys():
        return touched, np.zeros(count, bool)
    return touched, np.logical_and.reduce([each[group].all(axis=1) for group in groups])


def regrouped(observed: TensorDictBase, present: TensorDictBase, resets: Resets) -> TensorDictBase:
    """Return what there is after some groups were reset: as TorchRL does, what wasn't reset stays as it was.

    Args:
        observed: the data after the reset.
        present: the data before it.
        resets: what was reset, by group.
    """
    out = observed.clone(recurse=False)
    for key in data_keys(observed):
        after, before = value_of(observed, key), value_of(present, key)
        if before is None or is_uneven(before):
            continue
        group = next((group for group in resets if key[: len(group)] == group), None)
        if group is None:
            out.set(key, before)
        elif isinstance(after, torch.Tensor) and isinstance(before, torch.Tensor) and after.shape == before.shape:
            dims = (observed.get(group) if group else observed).batch_dims
            mask = resets[group]
            mask = mask.flatten(dims).any(-1) if mask.ndim > dims else mask
            out.set(key, torch.where(mask.reshape(*mask.shape, *[1] * (after.ndim - dims)), after, before))
    return out


def flat(transforms: Iterable[Transform]) -> list[Transform]:
    """Return transforms one by one, those of a ``Compose`` included."""
    return [
        each
        for transform in transforms
        for each in (flat(transform) if isinstance(transform, Compose) else [transform])
    ]


def value_at_root(tensordict: TensorDictBase, name: str) -> Any:
    """The value of a key of one part; None: there is none."""
    there = leaves(tensordict)
    return tensordict.get(name, None) if there is None else there.get(name)


def leaves(tensordict: TensorDictBase) -> dict[str, Any] | None:
    """What a tensordict holds, where that is known without asking it: to look there takes a tenth of `get`'s time."""
    return tensordict._tensordict if type(tensordict) is TensorDict else None  # noqa: SLF001


def data_keys(tensordict: TensorDictBase) -> list[Key]:
    """The keys of all leaves of a tensordict that are data, those under ``"next"`` left out."""
    if isinstance(tensordict, LazyStackedTensorDict):  # which names those alone that all of its parts have
        return list(dict.fromkeys(key for part in tensordict.tensordicts for key in data_keys(part)))
    found = map(as_key, tensordict.keys(include_nested=True, leaves_only=True, is_leaf=_is_leaf_nontensor))
    return [key for key in found if key[0] != "next" and key[-1] not in _NOT_DATA]


def value_of(tensordict: TensorDictBase, key: Key) -> Any:
    """What a tensordict holds of a key; None: nothing. :func:`leaf_of` says whether it can be recorded.

    Values that no plain tensor holds together are :class:`Uneven`.
    """
    try:
        value = tensordict.get(key, None)
    except Exception:  # a lazy stack of different shapes can't stack them
        return _apart(tensordict, key)
    if value is None and _is_lazy(tensordict, key):  # of which a single part may lack it
        return _apart(tensordict, key)
    return components_of(value, tensordict.batch_dims) if isinstance(value, torch.Tensor) and value.is_nested else value


def _is_lazy(tensordict: TensorDictBase, key: Key) -> bool:
    """Whether a key would be in a lazy stack."""
    for name in ("", *key[:-1]):
        inner = tensordict.get(name, None) if name else tensordict
        if not isinstance(inner, TensorDictBase):
            return False
        if isinstance(inner, LazyStackedTensorDict):
            return True
        tensordict = inner
    return False


def _apart(tensordict: TensorDictBase, key: Key) -> Uneven | None:
    """The values of a key in each environment of a lazy stack."""
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


def _flattened(values: Sequence[Any]) -> list[Any]:
    """The values that there are, of environments and of their agents."""
    there = [each for each in values if each is not None]
    return [value for each in there for value in (each if isinstance(each, list) else [each])]


def _unbound(tensordict: TensorDictBase) -> list[TensorDictBase]:
    """Each environment's data by itself, in the order of the flattened batch."""
    if not tensordict.batch_dims:
        return [tensordict]
    return [leaf for each in tensordict.unbind(0) for leaf in _unbound(each)]


def components_of(nested: torch.Tensor, batch_dims: int) -> Uneven:
    """The values of each environment in a nested tensor."""
    if batch_dims != 1:
        return Uneven(
            [], "nested tensors are recorded of environments with one batch dimension, each of which has a component"
        )
    return Uneven(nested.detach().unbind())


def leaf_of(key: Key, value: Any, tensordict: TensorDictBase, env: EnvBase | None) -> Leaf:
    """What is known of a key from its first value.

    Args:
        key: the key.
        value: its value.
        tensordict: where the value came from; its batch dimensions are the environments'.
        env: the environment, for its specs.

    Raises:
        UnsupportedLeafError: its values are of no kind that can be recorded.
    """
    if isinstance(value, Uneven):
        return _uneven_leaf(key, value, tensordict, env)
    if is_non_tensor(value):
        sample = as_array(value, tensordict.batch_size)[0]
        return Leaf(key, "object", (), sample=sample, shared=_is_rendered_whole(env, key, value))
    check_dense(value)
    shape = tuple(value.shape[tensordict.batch_dims :])
    dtype = str(value.dtype).removeprefix("torch.")
    spec = spec_of(env, key)
    if spec is not None and -1 in spec.shape:
        return Leaf(key, dtype, shape, _agents(key, shape, tensordict, env), varies=True)
    discrete, categories = _discrete(spec)
    if dtype == "bool" and discrete == "index":
        discrete, categories = None, ()  # a flag, not a category
    leaf = Leaf(
        key,
        dtype,
        shape,
        _agents(key, shape, tensordict, env),
        discrete,
        categories,
        device=device_of(value),
        stack=_frames_along_channels(env, key, len(shape)),
    )
    return dataclasses.replace(leaf, names=known_names(leaf, env))


def _uneven_leaf(key: Key, value: Uneven, tensordict: TensorDictBase, env: EnvBase | None) -> Leaf:
    if value.why_not:
        raise UnsupportedLeafError(value.why_not)
    if not value.is_of_tensors:
        sample = next(each for each in objects_in(value, tensordict.batch_size) if each is not MISSING)
        return Leaf(key, "object", (), sample=sample)
    dtypes = {each.dtype for each in _flattened(value.values)}
    if len(dtypes) > 1:
        raise UnsupportedLeafError(f"of different dtypes, {', '.join(sorted(map(str, dtypes)))}")
    first, there = value.first, [each for each in value.values if each is not None]
    check_dense(first)
    shape = tuple(first.shape)
    if isinstance(there[0], list):
        shape = (len(there[0]), *shape)
    numbers = {len(each) if isinstance(each, list) or each.ndim else 0 for each in there}
    agents = _agents(key, shape, tensordict, env) if len(numbers) == 1 else ()
    return Leaf(key, str(first.dtype).removeprefix("torch."), shape, agents, varies=True)


def check_dense(value: torch.Tensor) -> None:
    """Refuse tensors that no array holds as they are.

    Raises:
        UnsupportedLeafError: the tensor is sparse, quantized, or without data.
    """
    if value.is_quantized:
        raise UnsupportedLeafError("quantized tensors can't be recorded")
    if value.is_meta:
        raise UnsupportedLeafError("tensors on the meta device have no data")
    if value.layout is not torch.strided:
        raise UnsupportedLeafError(f"tensors of layout {value.layout} can't be recorded: give them dense")


def spec_of(env: EnvBase | None, key: Key) -> TensorSpec | None:
    """The spec of a key, without the environment's batch dimensions; None if there is none."""
    if env is None:
        return None
    for specs in (env.full_observation_spec, env.full_action_spec, env.full_reward_spec, env.full_done_spec):
        # KeyError: it is another one's. Specs of different shapes can't be stacked, nor be asked for an empty name
        # (torchrl 0.14): they say nothing then.
        with contextlib.suppress(Exception):
            spec = specs[key]
            for _ in range(env.batch_dims):
                spec = spec[0]
            return spec
    return None


def is_group(value: Any) -> bool:
    """Whether a value of a tensordict is itself a tensordict of keys."""
    return is_tensor_collection(value) and not isinstance(value, NonTensorData | NonTensorStack)


def is_uneven(value: Any) -> bool:
    """Whether no plain tensor holds it, see :func:`value_of`."""
    return isinstance(value, Uneven)


def is_non_tensor(value: Any) -> bool:
    """Whether a value of a tensordict is Python data and not a tensor."""
    return isinstance(value, NonTensorData | NonTensorStack) or not isinstance(value, torch.Tensor)


def as_array(value: Any, batch_size: torch.Size) -> npt.NDArray[Any]:
    """A value of a tensordict as an array ``[envs, *shape]``, without a copy where it is on the CPU.

    bfloat16 comes as its bits (uint16), non-tensor data as an object array ``[envs]``, see :func:`objects_in`.
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
    """Each environment's value by itself, ``[envs]``, as it is now: whoever gave it may change it. Tensors become arrays."""
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
    """Tensors as one array for each environment (and agent), ``[envs]`` or ``[envs, agents]``: copies of their own.

    Args:
        value: a tensor of all environments, or an :class:`Uneven`.
        batch_size: of the environments.
        dtype: torch's name of their dtype.
        agents: how many agents there are; 0: none.

    Raises:
        UnsupportedLeafError: it is of another dtype, has another number of agents, or can't be told apart.
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
    """An object that stays as it is: the environment may draw its next picture into the same array."""
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


def _discrete(spec: TensorSpec | None) -> tuple[Literal["index", "one_hot"] | None, tuple[int, ...]]:
    match spec:
        case MultiOneHot():  # a subclass of OneHot
            return "one_hot", tuple(int(box.n) for box in spec.space.boxes)
        case OneHot():
            return "one_hot", (int(spec.space.n),)
        case MultiCategorical():
            return "index", tuple(int(n) for n in torch.as_tensor(spec.nvec).flatten())
        case Categorical():
            return "index", (int(spec.space.n),)
        case Binary():
            return "index", (2,)
        case _:
            return None, ()


def _agents(key: Key, shape: tuple[int, ...], tensordict: TensorDictBase, env: EnvBase | None) -> tuple[str, ...]:
    """Names of the agents of a grouped key: its tensordict has one batch dimension more than the environments."""
    if len(key) < 2 or not shape:
        return ()
    group = tensordict.get(key[:-1], None)
    if not is_tensor_collection(group) or group.batch_dims != tensordict.batch_dims + 1:
        return ()
    inner = _innermost(env)
    groups = getattr(inner, "group_map", None) if not isinstance(inner, ParallelEnv) else None
    names = groups.get(key[0]) if isinstance(groups, dict) else None
    if names is not None and len(names) == shape[0]:
        return tuple(map(str, names))
    return tuple(f"agent_{i}" for i in range(shape[0]))


def _is_rendered_whole(env: EnvBase | None, key: Key, value: Any) -> bool:
    """Whether non-tensor data is one picture of a whole batch, as ``PixelRenderTransform`` makes where it can't split."""
    return isinstance(value, NonTensorData) and any(
        isinstance(transform, PixelRenderTransform) and key in map(as_key, transform.out_keys)
        for transform in _chain(env)
    )


def _frames_along_channels(env: EnvBase | None, key: Key, dims: int) -> int:
    """How many frames ``CatFrames`` puts along the first or the last dimension of a key; 0: none, as far as is known."""
    for transform in reversed(_chain(env)):
        if isinstance(transform, CatFrames) and key in map(as_key, transform.out_keys):
            return int(transform.N) if transform.dim in (-dims, -1) else 0
    return 0


def resets_itself(env: EnvBase) -> bool:
    """Whether a step of the environment that ends an episode returns the first observation of the next one."""
    return bool(env.__dict__.get("_torchrl_native_autoreset", False))


def reset_within_step(env: EnvBase | None, following: TensorDictBase) -> npt.NDArray[np.bool_] | None:
    """Which environments are in their next episode already after a step, though it led to the end of the last one.

    Args:
        env: the environment.
        following: what came of the step, of all environments.

    Returns:
        bool ``[envs]``; None: no environment that there is resets itself so.
    """
    if env is None or not _resets_within_steps(env):
        return None
    count = following.batch_size.numel()
    gone = np.zeros(count, np.bool_)
    for key in env.done_keys:
        gone |= following.get(key).cpu().numpy().reshape(count, -1).any(axis=1)
    return gone


def _resets_within_steps(env: EnvBase) -> bool:
    while isinstance(env, TransformedEnv | SerialEnv):
        if resets_itself(env):
            return True
        if isinstance(env, SerialEnv):
            return any(map(_resets_within_steps, env._envs))  # noqa: SLF001 - there is no public way to them
        if any(isinstance(transform, AutoResetTransform) for transform in _chain(env)):
            return True
        env = env.base_env
    mode = getattr(getattr(env, "_env", None), "autoreset_mode", None) if isinstance(env, GymWrapper) else None
    return resets_itself(env) or mode is gymnasium.vector.AutoresetMode.SAME_STEP


def _chain(env: EnvBase | None) -> list[Transform]:
    chain = getattr(env, "transform", None) if isinstance(env, TransformedEnv) else None
    return list(chain) if isinstance(chain, Compose) else [chain]


def without_last_observations(
    keys: Sequence[Key], observed: Sequence[Any], env: EnvBase | None, following: TensorDictBase
) -> list[Any]:
    """What an environment that resets itself observed, NaN (or 0) where an episode ended, as in TorchRL's rollouts.

    The last observation is lost inside such a simulator, and TorchRL passes the next first one as a reset.
    """
    out = list(observed)
    if env is None:
        return out
    count = following.batch_size.numel()
    done = torch.stack([following.get(key).reshape(count, -1).any(-1) for key in env.done_keys]).any(0)
    ours = set(map(as_key, env.observation_keys))
    for i, (key, values) in enumerate(zip(keys, observed, strict=True)):
        if key not in ours or values is None:
            continue
        if isinstance(values, torch.Tensor):
            # On an accelerator: no question is asked whose answer it would take time for.
            mask = done.reshape(count, *[1] * (values.ndim - 1))
            out[i] = torch.where(mask, torch.nan if values.is_floating_point() else 0, values).to(values.dtype)
        elif values.dtype != object and done.any():
            out[i] = values.copy()
            out[i][done.cpu().numpy()] = np.nan if values.dtype.kind == "f" else 0
    return out


def env_name(env: EnvBase | None) -> str | None:
    """The name of an environment (``CartPole-v1``, ``flocking``), if it says."""
    inner = _innermost(env)
    if isinstance(inner, ParallelEnv):
        # Its workers could be asked, but one that lacks the attribute dies of the question (torchrl 0.14).
        described = inner.meta_data
        if isinstance(described, list):  # of each worker, where they were made by different functions
            described = described[0]
        named = re.search(r"\(env=([^\s,()]+)", str(described.env_str))
        return named[1] if named else None
    for attribute in ("env_name", "scenario_name"):
        name = getattr(inner, attribute, None)
        if isinstance(name, str) and name:
            return name
    name = getattr(getattr(getattr(inner, "_env", None), "spec", None), "id", None)
    return name if isinstance(name, str) else None


def seeds(env: EnvBase | None) -> list[int | None]:
    """The seed that each environment was given last, as far as gymnasium's environments say it."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    if env is None or isinstance(env, ParallelEnv) or env.is_closed:
        return [None] * (0 if env is None else env.batch_size.numel())
    if isinstance(env, SerialEnv):
        return [seed for each in env._envs for seed in seeds(each)]  # noqa: SLF001 - there is no public way to them
    simulator = getattr(getattr(env, "_env", None), "unwrapped", None)
    seed = getattr(simulator, "_np_random_seed", None)  # the public property would seed it
    is_given = isinstance(seed, int) and 0 <= seed < 1 << 63  # else it drew one of 128 bits itself
    return [seed if is_given else None] * env.batch_size.numel()


def frames_per_second(env: EnvBase | None) -> float | None:
    """How many frames make a second of simulated time: ``metadata["render_fps"]`` or ``1 / dt``, if either is said."""
    inner = _innermost(env)
    if isinstance(inner, ParallelEnv):
        return registered_fps(env_name(inner))
    simulator = getattr(inner, "_env", None)
    for owner in (simulator, getattr(simulator, "unwrapped", None)):
        metadata = getattr(owner, "metadata", None)
        if isinstance(metadata, dict) and metadata.get("render_fps"):
            return float(metadata["render_fps"])
    dt = getattr(getattr(simulator, "world", None), "dt", None) or getattr(simulator, "dt", None)
    return 1.0 / float(dt) if isinstance(dt, int | float) and dt > 0 else None


_ROBOT = re.compile(r"gymnasium\.envs\.mujoco\.(\w+)_v5:")
_ROBOTS_FPS: Mapping[str, float] = {
    "ant": 20.0,
    "half_cheetah": 20.0,
    "hopper": 125.0,
    "humanoid": 67.0,
    "humanoidstandup": 67.0,
    "inverted_double_pendulum": 20.0,
    "inverted_pendulum": 25.0,
    "pusher": 20.0,
    "reacher": 50.0,
    "swimmer": 25.0,
    "walker2d": 125.0,
}
"""With their own ``frame_skip``: those of version 5 say it as instances only, of which workers have theirs elsewhere."""


def registered_fps(name: str | None) -> float | None:
    """The frame rate that a registered gymnasium environment's class declares, or that MuJoCo's work out when they are made."""
    try:
        entry_point = gymnasium.spec(name or "").entry_point
        if isinstance(entry_point, str) and (robot := _ROBOT.match(entry_point)):
            return _ROBOTS_FPS[robot[1]]
        creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        return float(getattr(creator, "metadata", {})["render_fps"])
    except Exception:  # not registered, not importable here, or silent about it
        return None


def _innermost(env: EnvBase | None) -> EnvBase | None:
    """The environment below all transforms; of a ``SerialEnv``, its first one."""
    while isinstance(env, TransformedEnv | SerialEnv):
        if isinstance(env, TransformedEnv):
            env = env.base_env
        elif env.is_closed:
            return None
        else:
            env = env._envs[0]  # noqa: SLF001 - a SerialEnv has no public way to its environments
    return env


def device_of(value: torch.Tensor) -> str:
    """The device to copy a tensor from in this way; empty for those that are copied by other means."""
    return str(value.device) if value.is_cuda else ""
