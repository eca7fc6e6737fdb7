"""Specs: find out from an environment's specs and the first values which keys there are, and what each holds."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Literal

import torch
from tensordict import NonTensorData, TensorDictBase, is_tensor_collection
from torchrl.data.tensor_specs import Binary, Categorical, MultiCategorical, MultiOneHot, OneHot, TensorSpec
from torchrl.envs import CatFrames, EnvBase, ParallelEnv
from torchrl.record import PixelRenderTransform

from torchrl_rerun.kinds.keys import Key, as_key, is_reward
from torchrl_rerun.kinds.leaf import Leaf, UnsupportedLeafError
from torchrl_rerun.kinds.objects import MISSING
from torchrl_rerun.transform.environments import innermost, transforms_of
from torchrl_rerun.transform.known_names import known_names
from torchrl_rerun.transform.tensordicts import (
    Uneven,
    as_array,
    check_dense,
    data_keys,
    flattened,
    is_non_tensor,
    objects_in,
    value_of,
)


def default_keys(env: EnvBase) -> list[Key]:
    """Return the keys of all leaves of the environment's observation, action, reward and done specs."""
    keys = [*env.observation_keys, *env.action_keys, *env.reward_keys, *env.done_keys]
    return list(dict.fromkeys(as_key(key) for key in keys))


def action_keys(env: EnvBase | None) -> list[Key]:
    """Return the keys of the environment's action specs.

    Args:
        env: the environment; None: there is none, and no keys.
    """
    return [] if env is None else [as_key(key) for key in env.action_keys]


def reward_leaves(env: EnvBase | None, observed: TensorDictBase, outcome: TensorDictBase | None) -> list[Leaf]:
    """Return the facts about the rewards, before the first of them has come.

    Args:
        env: the environment, for its specs; None: there is none.
        observed: data of the environment, for its groups of agents.
        outcome: data after a step, in which keys named ``"reward"`` are rewards if there is no environment.
    """
    if env is not None:
        found = {as_key(key): spec_of(env, as_key(key)) for key in env.reward_keys}
        shapes = {key: tuple(spec.shape) for key, spec in found.items() if spec is not None}
    elif outcome is not None:
        values = {key: value_of(outcome, key) for key in data_keys(outcome) if is_reward(key)}
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


def flag_keys(env: EnvBase | None, following: TensorDictBase) -> list[Key]:
    """Return the keys of the flags that may end episodes.

    Args:
        env: the environment, for its specs; None: there is none, and all keys of the data are returned.
        following: the data after a step.
    """
    return data_keys(following) if env is None else [as_key(key) for key in env.done_keys]


def leaf_of(key: Key, value: Any, tensordict: TensorDictBase, env: EnvBase | None) -> Leaf:
    """Return the description of a key from its first value and its spec.

    Args:
        key: the key.
        value: the value of all environments.
        tensordict: the tensordict with the value. Its batch dimensions are those of the environments.
        env: the environment, for its specs. None: there is none.

    Raises:
        UnsupportedLeafError: no kind can record values like this one.
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
    dtypes = {each.dtype for each in flattened(value.values)}
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


def spec_of(env: EnvBase | None, key: Key) -> TensorSpec | None:
    """Return the spec of a key without the environment's batch dimensions; None if there is none."""
    if env is None:
        return None
    for specs in (env.full_observation_spec, env.full_action_spec, env.full_reward_spec, env.full_done_spec):
        # KeyError: another spec has the key. torchrl 0.14: stacked specs of different shapes raise, and so does an empty
        # name; nothing is known of such keys.
        with contextlib.suppress(Exception):
            spec = specs[key]
            for _ in range(env.batch_dims):
                spec = spec[0]
            return spec
    return None


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
    """Return the names of the agents of a key; empty unless its tensordict has one batch dimension more than the environments."""
    if len(key) < 2 or not shape:
        return ()
    group = tensordict.get(key[:-1], None)
    if not is_tensor_collection(group) or group.batch_dims != tensordict.batch_dims + 1:
        return ()
    inner = innermost(env)
    groups = getattr(inner, "group_map", None) if not isinstance(inner, ParallelEnv) else None
    names = groups.get(key[0]) if isinstance(groups, dict) else None
    if names is not None and len(names) == shape[0]:
        return tuple(map(str, names))
    return tuple(f"agent_{i}" for i in range(shape[0]))


def _is_rendered_whole(env: EnvBase | None, key: Key, value: Any) -> bool:
    """Return whether non-tensor data is one picture of a whole batch, as of a ``PixelRenderTransform`` that can't split it."""
    return isinstance(value, NonTensorData) and any(
        isinstance(transform, PixelRenderTransform) and key in map(as_key, transform.out_keys)
        for transform in transforms_of(env)
    )


def _frames_along_channels(env: EnvBase | None, key: Key, dims: int) -> int:
    """Return how many frames ``CatFrames`` puts along the first or the last dimension of a key; 0 if none is known."""
    for transform in reversed(transforms_of(env)):
        if isinstance(transform, CatFrames) and key in map(as_key, transform.out_keys):
            return int(transform.N) if transform.dim in (-dims, -1) else 0
    return 0


def device_of(value: torch.Tensor) -> str:
    """Return the accelerator that a tensor is on, if copies from it run beside the environment; else an empty string."""
    return str(value.device) if value.is_cuda else ""
