"""Random environments: any batch size, keys, dtypes and shapes. Each call gives new random data, in stale rows, too."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NonTensorData, TensorDict
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    MultiOneHot,
    NonTensor,
    OneHot,
    TensorSpec,
    Unbounded,
)
from torchrl.envs import EnvBase

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
NAMES = ("position", "joint angles", "höhe", "a.b", "x-1", "grid", "camera", "_private", "0", "mask", "batch")
SMALL_SHAPES = ((), (1,), (2,), (7,), (64,), (65,), (3, 2), (2, 3, 4), (1, 1))
PICTURES = ((6, 7, 3), (3, 12, 16), (1, 9, 9), (16, 16, 1), (8, 8, 4), (12, 12), (40, 40, 3))
GROUPS = ("agents", "rivals")
NEVER = 1 << 30
ODD_TEXTS: tuple[Any, ...] = ("\ud83d", {"tool": [1, None]}, 5, -0.5, True, None, b"\x00\xff")
"""Values in place of a text: other objects, and a string that is not valid Unicode."""


@dataclass(frozen=True)
class Leaf:
    """A key, its dtype (or ``"text"``) and the shape of one environment's value."""

    key: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Batch size, keys, agents and episodes of an environment.

    Attributes:
        batch_size: batch size of the environment.
        leaves: observed keys, besides a clock that never shows a time twice.
        actions: type of action, by key.
        groups: number of agents by group. Each agent has its own observations, actions and rewards.
        apart: whether agents have flags of their own, which end no episodes.
        reward: dtype and shape of the reward outside of groups.
        truncates: whether there is a "truncated" flag.
        lengths: least and greatest number of steps of an episode.
        seed: seed of the data.
        rootless: whether only agents have flags. Agents are reset one by one, and an episode of an environment ends when
            all of its agents are done at once.
        missing: the first leaf is missing after each step whose number this divides. 0: never.
    """

    batch_size: tuple[int, ...]
    leaves: tuple[Leaf, ...]
    actions: tuple[tuple[tuple[str, ...], str], ...]
    groups: tuple[tuple[str, int], ...]
    apart: bool
    reward: tuple[str, tuple[int, ...]]
    truncates: bool
    lengths: tuple[int, int]
    seed: int
    rootless: bool = False
    missing: int = 0

    @classmethod
    def draw(
        cls, rng: random.Random, batch_size: tuple[int, ...], *, text: bool = True, rootless: bool = False
    ) -> Layout:
        """Draw a random layout."""
        count, names = rng.randint(0, 4), [*NAMES]
        rng.shuffle(names)
        leaves = []
        for name in names[:count]:
            key = (name,) if rng.random() < 0.6 else ("robot", name) if rng.random() < 0.7 else ("robot", "arm", name)
            what = rng.random()
            if what < 0.3:
                leaves.append(Leaf(key, rng.choice(["uint8", "uint8", "float32", "float16"]), rng.choice(PICTURES)))
            elif what < 0.4 and text:
                leaves.append(Leaf((name,), "text"))
            else:
                dtype = rng.choice([*FLOATS, *INTEGERS, "bool", "category"])
                leaves.append(Leaf(key, dtype, rng.choice(SMALL_SHAPES)))
        if ("mask",) not in [leaf.key for leaf in leaves] and rng.random() < 0.15:  # not a mask of padding
            leaves.append(Leaf(("mask",), "bool", rng.choice([(), (1,), (3,)])))
        kinds = ["float", "one_hot", "category", "multi_one_hot", "multi_category", "binary", "integer"]
        actions = [(("action",), rng.choice(kinds))]
        if rng.random() < 0.2:
            actions = [(("controls", "arm"), rng.choice(kinds)), (("controls", "hand"), rng.choice(kinds))]
        numbers = [rng.choice([1, 2, 3]) for _ in range(rng.choice([1, 1, 2] if rootless else [0, 0, 0, 1, 1, 2]))]
        longest = rng.choice([1, 3, 10, 40, NEVER])
        return cls(
            batch_size=batch_size,
            leaves=tuple(leaves),
            actions=tuple(actions),
            groups=tuple(zip(GROUPS, numbers, strict=False)),
            apart=rootless or rng.random() < 0.5,
            reward=(rng.choice(["float32", "float32", "float64"]), rng.choice([(1,), (1,), (1,), (2,)])),
            truncates=not rootless and rng.random() < 0.5,
            lengths=(1, longest),
            seed=rng.randrange(1 << 31),
            rootless=rootless,
        )

    @property
    def observed(self) -> list[tuple[str, ...]]:
        """Return the keys with rows at resets and steps, flags included."""
        group = [(name, "observation") for name, _ in self.groups]
        group += [(name, flag) for name, _ in self.groups for flag in ("done", "terminated") if self.apart]
        flags = [] if self.rootless else [("done",), ("terminated",), *([("truncated",)] if self.truncates else [])]
        return [("clock",), *(leaf.key for leaf in self.leaves), *group, *flags]

    @property
    def acted(self) -> list[tuple[str, ...]]:
        """Return the keys of actions."""
        return [*(key for key, _ in self.actions), *((name, "action") for name, _ in self.groups)]

    @property
    def rewards(self) -> list[tuple[str, ...]]:
        """Return the keys of rewards."""
        return [(name, "reward") for name, _ in self.groups] or [("reward",)]


class Random(EnvBase):
    """An environment with a given layout. Its data depends neither on actions nor on torch's random state."""

    def __init__(self, layout: Layout, number: int = 0) -> None:
        super().__init__(batch_size=torch.Size(layout.batch_size))
        self.layout, self.number = layout, number
        b = layout.batch_size
        observation = Composite(clock=Unbounded((*b, 1), dtype=torch.float64), shape=b)
        action, reward = Composite(shape=b), Composite(shape=b)
        for leaf in layout.leaves:
            _set(observation, leaf.key, _spec(leaf.dtype, b, leaf.shape), b)
        for key, kind in layout.actions:
            _set(action, key, _action(kind, b), b)
        for name, agents in layout.groups:
            group = (*b, agents)
            observation[name] = Composite(observation=Unbounded((*group, 3)), shape=group)
            action[name] = Composite(action=Bounded(-1, 1, (*group, 2)), shape=group)
            reward[name] = Composite(reward=Unbounded((*group, 1)), shape=group)
        if not layout.groups:
            dtype, shape = layout.reward
            reward["reward"] = Unbounded((*b, *shape), dtype=getattr(torch, dtype))
        self.observation_spec, self.action_spec, self.reward_spec = observation, action, reward
        flags = () if layout.rootless else ("done", "terminated", *(["truncated"] if layout.truncates else []))
        done = Composite({flag: Categorical(2, (*b, 1), dtype=torch.bool) for flag in flags}, shape=b)
        for name, agents in layout.groups if layout.apart else ():
            flag = Categorical(2, (*b, agents, 1), dtype=torch.bool)
            done[name] = Composite(done=flag, terminated=flag.clone(), shape=(*b, agents))
        self.done_spec = done
        self.generator = torch.Generator().manual_seed(layout.seed + number)
        self.calls = self.steps = 0
        self.left = torch.zeros(b, dtype=torch.int64)

    def _observe(self) -> TensorDict:
        b = self.layout.batch_size
        self.calls += 1
        each = torch.arange(math.prod(b), dtype=torch.float64).reshape(*b, 1)
        out = TensorDict({"clock": self.calls + each / 128 + self.number / 1024}, b)
        for leaf in self.layout.leaves:
            if leaf.dtype == "text":
                texts = [NonTensorData(self._text(i)) for i in range(math.prod(b))]
                out.set(leaf.key, torch.stack(texts).reshape(b) if b else texts[0])
            else:
                out.set(leaf.key, self._values(leaf.dtype, (*b, *leaf.shape)))
        for name, agents in self.layout.groups:
            out[name] = TensorDict(observation=self._values("float32", (*b, agents, 3)), batch_size=(*b, agents))
        return out

    def _text(self, number: int) -> Any:
        odd = (self.calls * 7 + number * 3) % 20
        return ODD_TEXTS[odd] if odd < len(ODD_TEXTS) else f"{self.calls}: Zoë {number}\n" * (number % 3)

    def _values(self, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        kind = getattr(torch, dtype, torch.int64)
        if dtype == "category":
            return torch.randint(0, 5, shape, generator=self.generator)
        if dtype == "bool":
            return torch.rand(shape, generator=self.generator) > 0.5
        if dtype in INTEGERS:
            bits = torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=self.generator)
            few = torch.randint(0, 2, (1,), generator=self.generator).item()
            return (bits >> 48 if few else bits).to(kind)
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64).to(kind)
        odd = torch.rand(shape, generator=self.generator)
        for i, number in enumerate((math.nan, math.inf, -math.inf, -0.0, torch.finfo(kind).tiny)):
            values = torch.where((odd * 200).int() == i, torch.tensor(number, dtype=kind), values)
        return values

    def _reset(self, tensordict: Any = None, **_: Any) -> TensorDict:
        if self.layout.rootless:
            return self._reset_apart(tensordict)
        mask = None if tensordict is None else tensordict.get("_reset", None)
        first, last = self.layout.lengths
        lengths = torch.randint(first, last + 1, self.batch_size, generator=self.generator)
        mask = torch.ones(self.batch_size, dtype=torch.bool) if mask is None else mask.reshape(self.batch_size)
        self.left = torch.where(mask, lengths, self.left)
        return self._observe()

    def _reset_apart(self, tensordict: TensorDict | None) -> TensorDict:
        """Reset some agents. All other data stays unless these are all agents of an environment."""
        new = self._observe()
        masks = (
            {}
            if tensordict is None
            else {name: tensordict.get((name, "_reset"), None) for name, _ in self.layout.groups}
        )
        if any(mask is not None for mask in masks.values()):
            is_begun = torch.ones(self.batch_size, dtype=torch.bool)
            groups = {}
            for name, agents in self.layout.groups:
                mask = torch.zeros(*self.batch_size, agents, 1) if masks[name] is None else masks[name]
                mask = mask.bool().reshape(*self.batch_size, agents)
                is_begun &= mask.all(-1)
                groups[name] = new[name].where(mask, self.last[name])
            new = new.where(is_begun, self.last.select(*new.keys())).update(groups)
        self.last = new.clone()
        return new

    def _step(self, tensordict: Any) -> TensorDict:
        mask = tensordict.get("_step", None)
        self.left -= 1 if mask is None else mask.reshape(self.batch_size).long()
        out = self._observe()
        self.steps += 1
        if self.layout.missing and self.steps % self.layout.missing == 0:
            del out[self.layout.leaves[0].key]
        ended = (self.left <= 0).unsqueeze(-1)
        flags = {"done": ended, "terminated": ended}
        if self.layout.truncates:
            terminated = torch.rand(ended.shape, generator=self.generator) < 0.5
            flags |= {"terminated": ended & terminated, "truncated": ended & ~terminated}
        if self.layout.rootless:
            self.last = out.clone()
        else:
            out.update(flags)
        for name, agents in self.layout.groups:
            out[name, "reward"] = torch.randn(*self.batch_size, agents, 1, generator=self.generator)
            if self.layout.apart:
                done = torch.rand(*self.batch_size, agents, 1, generator=self.generator) < 0.3
                out[name, "done"], out[name, "terminated"] = done, done.clone()
        if not self.layout.groups:
            dtype, shape = self.layout.reward
            rewards = torch.randn(*self.batch_size, *shape, generator=self.generator, dtype=torch.float64)
            out["reward"] = rewards.to(getattr(torch, dtype))
        return out

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(seed or 0)


def _set(specs: Composite, key: tuple[str, ...], spec: TensorSpec, batch: tuple[int, ...]) -> None:
    for part in key[:-1]:
        if part not in specs.keys():
            specs[part] = Composite(shape=batch)
        specs = specs[part]
    specs[key[-1]] = spec


def _spec(dtype: str, batch: tuple[int, ...], shape: tuple[int, ...]) -> TensorSpec:
    if dtype == "text":
        return NonTensor(batch)
    if dtype == "category":
        return Categorical(5, (*batch, *shape))
    if dtype == "bool":
        return Categorical(2, (*batch, *shape), dtype=torch.bool)
    if dtype == "uint8":
        return Bounded(0, 255, (*batch, *shape), dtype=torch.uint8)
    return Unbounded((*batch, *shape), dtype=getattr(torch, dtype))


def _action(kind: str, b: tuple[int, ...]) -> TensorSpec:
    match kind:
        case "one_hot":
            return OneHot(4, (*b, 4))
        case "category":
            return Categorical(3, b)
        case "multi_one_hot":
            return MultiOneHot([3, 2], (*b, 5))
        case "multi_category":
            return MultiCategorical([3, 2], (*b, 2))
        case "binary":
            return Binary(3, (*b, 3))
        case "integer":
            return Bounded(-5, 5, (*b, 2), dtype=torch.int32)
        case _:
            return Bounded(-1, 1, (*b, 2))
