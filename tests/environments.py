"""Environments whose values are all known in advance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from tensordict import NonTensorData, TensorDict, lazy_stack
from torchrl.data import Binary, Bounded, Categorical, Composite, NonTensor, Unbounded
from torchrl.envs import EnvBase, GymEnv


class Count(EnvBase):
    """Observes t, rewards 10 + t, and is done at ``n``."""

    def __init__(self, n: int = 4, *, truncates: bool = False) -> None:
        super().__init__()
        self.n, self.t = n, 0
        self.observation_spec = Composite(observation=Unbounded((1,)))
        self.action_spec = Unbounded((1,))
        self.reward_spec = Unbounded((1,))
        if truncates:
            flags = ("done", "terminated", "truncated")
            self.done_spec = Composite({flag: Categorical(2, (1,), dtype=torch.bool) for flag in flags})

    def _reset(self, tensordict=None, **kwargs):
        self.t = 0
        return TensorDict(observation=torch.zeros(1))

    def _step(self, tensordict):
        self.t += 1
        return TensorDict(
            observation=torch.full((1,), float(self.t)),
            reward=torch.full((1,), 10.0 + self.t),
            done=torch.tensor([self.t >= self.n]),
        )

    def _set_seed(self, seed):
        pass


class Groups(EnvBase):
    """Two environments with groups of agents. Each group is done after its own number of steps, and is reset by itself.

    ``lengths``: steps of an episode, by group. Observations are the group's age plus 100 times the environment's index.
    """

    def __init__(self, lengths: dict[str, int], *, root: bool = False, agents: int = 2, batch: int = 2) -> None:
        super().__init__(batch_size=torch.Size([batch]))
        self.lengths, self.agents, self.root = lengths, agents, root
        b, g = (batch,), (batch, agents)
        self.observation_spec = Composite(
            {name: Composite(age=Unbounded((*g, 1)), shape=g) for name in lengths} | {"clock": Unbounded((*b, 1))},
            shape=b,
        )
        self.action_spec = Composite({name: Composite(action=Unbounded((*g, 1)), shape=g) for name in lengths}, shape=b)
        self.reward_spec = Composite({name: Composite(reward=Unbounded((*g, 1)), shape=g) for name in lengths}, shape=b)
        flags = {name: Composite(done=Categorical(2, (*g, 1), dtype=torch.bool), shape=g) for name in lengths}
        if root:
            flags["done"] = Categorical(2, (*b, 1), dtype=torch.bool)
        self.done_spec = Composite(flags, shape=b)
        self.offset = 100.0 * torch.arange(batch).reshape(batch, 1, 1)
        self.age = {name: torch.zeros(*g, 1) for name in lengths}
        self.clock = torch.zeros(*b, 1)

    def _reset(self, tensordict=None, **kwargs):
        out = TensorDict(batch_size=self.batch_size)
        for name in self.lengths:
            key = "_reset" if self.root else (name, "_reset")
            mask = None if tensordict is None else tensordict.get(key, None)
            if mask is None:
                mask = torch.ones(*self.batch_size, self.agents, 1, dtype=torch.bool)
            mask = mask.reshape(self.batch_size[0], -1, 1).expand(*self.batch_size, self.agents, 1)
            self.age[name] = torch.where(mask, 0.0, self.age[name])
            # Like TorchRL's batched environments: a reset of some gives no values of the others.
            age = torch.where(mask, self.age[name] + self.offset, 0.0)
            out[name] = TensorDict(age=age, batch_size=(*self.batch_size, self.agents))
        return out.set("clock", self.clock.clone())

    def _step(self, tensordict):
        self.clock = self.clock + 1
        out = TensorDict(clock=self.clock.clone(), batch_size=self.batch_size)
        every = torch.ones(*self.batch_size, 1, dtype=torch.bool)
        for name, length in self.lengths.items():
            self.age[name] = self.age[name] + 1
            done = self.age[name] >= length
            every &= done.all(1)
            data = {"age": self.age[name] + self.offset, "reward": self.age[name] * 0.5, "done": done}
            out[name] = TensorDict(data, (*self.batch_size, self.agents))
        return out.set("done", every) if self.root else out

    def _set_seed(self, seed):
        pass


cartpole = functools.partial(GymEnv, "CartPole-v1")


pendulum = functools.partial(GymEnv, "Pendulum-v1")


pixel_cartpole = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False)


class AutoResettingCartPole(GymEnv):
    """Resets itself in the step that ends an episode, like some simulators."""

    def _step(self, tensordict):
        out = super()._step(tensordict)
        if out["done"].any():
            out.update(super().reset().exclude(*self.done_keys))
        return out

    def _reset(self, tensordict=None, **kwargs):
        if tensordict is not None and "_reset" in tensordict:
            return tensordict.copy()
        return super()._reset(tensordict, **kwargs)


class Herd(EnvBase):
    """Agents that are done one by one, as in PettingZoo. Done and reset keys are in the group, not at the root."""

    def __init__(self):
        super().__init__(batch_size=torch.Size([2]))
        group = (2, 3)
        self.group_map = {"sheep": ["dolly", "shaun", "timmy"]}
        self.observation_spec = Composite(sheep=Composite(age=Unbounded((*group, 1)), shape=group), shape=(2,))
        self.action_spec = Composite(sheep=Composite(action=Unbounded((*group, 1)), shape=group), shape=(2,))
        self.reward_spec = Composite(sheep=Composite(reward=Unbounded((*group, 1)), shape=group), shape=(2,))
        self.done_spec = Composite(
            sheep=Composite(done=Categorical(2, (*group, 1), dtype=torch.bool), shape=group), shape=(2,)
        )

    def _reset(self, tensordict=None, **kwargs):
        start = torch.arange(6.0).reshape(2, 3, 1)
        mask = None if tensordict is None else tensordict.get(("sheep", "_reset"), None)
        self.age = start if mask is None else torch.where(mask.reshape(2, 3, 1), start, self.age)
        return self._data()

    def _step(self, tensordict):
        self.age = self.age + 1
        out = self._data()
        out["sheep", "reward"] = self.age * 0.5
        out["sheep", "done"] = self.age >= 8
        return out

    def _data(self):
        herd = TensorDict(age=self.age.clone(), done=torch.zeros(2, 3, 1, dtype=torch.bool), batch_size=[2, 3])
        return TensorDict(sheep=herd, batch_size=[2])

    def _set_seed(self, seed):
        pass


class NativelyAutoResetting(EnvBase):
    """A simulator that resets itself, with TorchRL's flag for such environments. The last observation is lost."""

    def __init__(self):
        super().__init__(batch_size=torch.Size([2]))
        self._torchrl_native_autoreset = True
        self.observation_spec = Composite(observation=Unbounded((2, 1)), shape=(2,))
        self.action_spec = Unbounded((2, 1))
        self.reward_spec = Unbounded((2, 1))
        self.age = torch.zeros(2, 1)

    def _reset(self, tensordict=None, **kwargs):
        self.age = torch.tensor([[0.0], [2.0]])
        return TensorDict(observation=self.age.clone(), batch_size=[2])

    def _step(self, tensordict):
        self.age = self.age + 1
        done = self.age >= 5
        self.age[done] = 0
        return TensorDict(observation=self.age.clone(), reward=torch.ones(2, 1), done=done, batch_size=[2])

    def _set_seed(self, seed):
        pass


class Zoo(EnvBase):
    """Every kind of key at once: nested observations, all discrete actions, odd dtypes, text."""

    def __init__(self, batch_size=(2,)):
        super().__init__(batch_size=torch.Size(batch_size))
        b = self.batch_size
        self.observation_spec = Composite(
            image=Bounded(0, 255, (*b, 3, 12, 16), dtype=torch.uint8),
            float_image=Bounded(0, 1, (*b, 12, 16, 3), dtype=torch.float32),
            state=Composite(
                position=Unbounded((*b, 3)),
                velocity=Unbounded((*b, 3), dtype=torch.float16),
                half=Unbounded((*b, 5), dtype=torch.bfloat16),
                shape=b,
            ),
            grid=Unbounded((*b, 4, 5), dtype=torch.int32),
            many=Unbounded((*b, 100), dtype=torch.float64),
            count=Unbounded((*b,), dtype=torch.int64),
            small=Unbounded((*b, 2), dtype=torch.int8),
            mode=Categorical(5, (*b,)),
            flags=Categorical(2, (*b, 3), dtype=torch.bool),
            note=NonTensor(b),
            shape=b,
        )
        self.action_spec = self.make_action_spec()
        self.reward_spec = Unbounded((*b, 1), dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(0)
        self.t = 0

    def make_action_spec(self):
        from torchrl.data import MultiCategorical, MultiOneHot, OneHot

        b = self.batch_size
        return Composite(
            one_hot=OneHot(4, (*b, 4)),
            multi=MultiCategorical([3, 2], (*b, 2)),
            multi_one_hot=MultiOneHot([3, 2], (*b, 5)),
            continuous=Bounded(-1, 1, (*b, 2)),
            shape=b,
        )

    def _random(self):
        b = tuple(self.batch_size)
        g = self.generator
        out = TensorDict(
            {
                "image": torch.randint(0, 256, (*b, 3, 12, 16), generator=g).to(torch.uint8),
                "float_image": torch.rand(*b, 12, 16, 3, generator=g),
                "state": TensorDict(
                    {
                        "position": torch.randn(*b, 3, generator=g),
                        "velocity": torch.randn(*b, 3, generator=g).half(),
                        "half": torch.randn(*b, 5, generator=g).bfloat16(),
                    },
                    b,
                ),
                "grid": torch.randint(-(2**31), 2**31 - 1, (*b, 4, 5), generator=g).int(),
                "many": torch.randn(*b, 100, generator=g, dtype=torch.float64),
                "count": torch.randint(2**62, 2**63 - 1, b, generator=g),
                "small": torch.randint(-128, 128, (*b, 2), generator=g).to(torch.int8),
                "mode": torch.randint(0, 5, b, generator=g),
                "flags": torch.rand(*b, 3, generator=g) > 0.5,
            },
            b,
        )
        notes = [NonTensorData(f"{self.t}: Zoë {i}") for i in range(out.numel())]
        out.set("note", torch.stack(notes).reshape(b) if b else notes[0])
        return out

    def _reset(self, tensordict=None, **kwargs):
        return self._random()

    def _step(self, tensordict):
        self.t += 1
        out = self._random()
        out["reward"] = torch.randn(*self.batch_size, 1, generator=self.generator, dtype=torch.float64)
        out["done"] = torch.rand(*self.batch_size, 1, generator=self.generator) < 0.2
        return out

    def _set_seed(self, seed):
        self.generator.manual_seed(seed or 0)


LENGTHS = [3, 1, 6, 2, 4, 5, 1, 3]


class Lengths(gymnasium.Env):
    """Episodes of known lengths. Observations and pictures hold the numbers of the episode and the step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, shift: int = 0) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1000, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.render_mode = "rgb_array"
        self.shift = shift
        self.episode, self.t, self.renderings = -1, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._seen(), {}

    def step(self, action):
        self.t += 1
        ended = self.t >= LENGTHS[(self.episode + self.shift) % len(LENGTHS)]
        return self._seen(), 1.0, ended, False, {}

    def render(self):
        self.renderings += 1
        return np.full((4, 6, 3), (self.episode, self.t, self.shift), np.uint8)

    def _seen(self):
        return np.array([self.episode, self.t], np.float32)


class Scripted(EnvBase):
    """Observes a function of the time. The reward is the time, and episodes never end."""

    def __init__(self, observe: Callable[[int], dict[str, Any]], batch_size=(), specs=None):
        super().__init__(batch_size=batch_size)
        self.observe, self.t = observe, 0
        specs = specs or {key: Unbounded(value.shape) for key, value in observe(0).items()}
        self.observation_spec = Composite(specs, shape=batch_size)
        self.action_spec = Unbounded((*batch_size, 1))
        self.reward_spec = Unbounded((*batch_size, 1))

    def _observed(self):
        return TensorDict(self.observe(self.t), batch_size=self.batch_size)

    def _reset(self, tensordict=None, **kwargs):
        return self._observed()

    def _step(self, tensordict):
        self.t += 1
        out = self._observed()
        out["reward"] = torch.full((*self.batch_size, 1), float(self.t))
        out["done"] = torch.zeros(*self.batch_size, 1, dtype=torch.bool)
        return out

    def _set_seed(self, seed):
        pass


class Uneven(Scripted):
    """Two environments in a lazy stack, with a key ``x`` whose shapes may differ."""

    def __init__(self, size_at: Callable[[int, int], int]):
        self.size_at = size_at
        sizes = [size_at(env, 0) for env in range(2)]
        specs = torch.stack([Composite(x=Unbounded((size,)), y=Unbounded((2,))) for size in sizes], 0)
        super().__init__(self.values, (2,), specs={"y": Unbounded((2, 2))})
        self.observation_spec = specs

    def values(self, t):
        return {"y": torch.full((2, 2), float(t))}

    def _observed(self):
        return lazy_stack(
            [
                TensorDict(
                    {"x": torch.full((self.size_at(env, self.t),), float(self.t)), "y": torch.full((2,), float(self.t))}
                )
                for env in range(2)
            ]
        )


class Counter(EnvBase):
    """Counts calls. Steps and resets the selected environments, and returns stale rows for the others."""

    def __init__(self, envs, ends):
        super().__init__(batch_size=torch.Size([envs]))
        self.observation_spec = Composite(
            count=Unbounded((envs, 2), dtype=torch.int64),
            image=Bounded(0, 255, (envs, 6, 7, 3), dtype=torch.uint8),
            shape=(envs,),
        )
        self.action_spec = Unbounded((envs, 2))
        self.reward_spec = Unbounded((envs, 1))
        self.calls = 0
        self.ends = ends

    def _observe(self):
        self.calls += 1
        envs = self.batch_size[0]
        count = torch.stack([torch.full((envs,), self.calls), torch.arange(envs)], -1)
        image = torch.full((envs, 6, 7, 3), self.calls % 256, dtype=torch.uint8)
        return TensorDict(count=count, image=image, batch_size=[envs])

    def _reset(self, tensordict=None, **kwargs):
        return self._observe().set("done", torch.zeros(*self.batch_size, 1, dtype=torch.bool))

    def _step(self, tensordict):
        out = self._observe()
        done = torch.tensor(next(self.ends, [False] * self.batch_size[0]))[:, None]
        return out.update({"reward": torch.rand(*self.batch_size, 1), "done": done})

    def _set_seed(self, seed):
        pass


WALKERS = 100


class Walkers(EnvBase):
    """Walkers that fall at different times, and are then reset one by one."""

    def __init__(self, envs=WALKERS):
        super().__init__(batch_size=torch.Size([envs]))
        self.observation_spec = Composite(x=Unbounded((envs, 2)), shape=(envs,))
        self.action_spec = Unbounded((envs, 1))
        self.reward_spec = Unbounded((envs, 1))
        self.x = torch.zeros(envs, 2)

    def _reset(self, tensordict=None, **kwargs):
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = torch.ones(self.batch_size, dtype=torch.bool) if mask is None else mask.reshape(self.batch_size)
        self.x = torch.where(mask[:, None], torch.zeros_like(self.x), self.x)
        return TensorDict(x=self.x.clone(), batch_size=self.batch_size)

    def _step(self, tensordict):
        self.x = self.x + tensordict["action"].abs() + torch.rand_like(self.x)
        done = self.x[:, :1] > 6
        return TensorDict(x=self.x.clone(), reward=self.x[:, :1] * 0.1, done=done, batch_size=self.batch_size)

    def _set_seed(self, seed):
        torch.manual_seed(seed or 0)


class Odd(EnvBase):
    """Observes pictures, and values that no kind can hold."""

    def __init__(self):
        super().__init__()
        self.observation_spec = Composite(x=Unbounded((1,)))  # there is no spec of complex numbers
        self.action_spec = Unbounded((1,))
        self.reward_spec = Unbounded((1,))
        self.t = 0

    def _observe(self):
        out = TensorDict(wave=torch.zeros(2, dtype=torch.complex32), x=torch.full((1,), float(self.t)))
        out["picture"] = NonTensorData(np.zeros((8, 8, 3), np.uint8))
        out["thing"] = NonTensorData(object())
        return out

    def _reset(self, tensordict=None, **kwargs):
        return self._observe()

    def _step(self, tensordict):
        self.t += 1
        return self._observe().update({"reward": torch.ones(1), "done": torch.zeros(1, dtype=torch.bool)})

    def _set_seed(self, seed):
        pass


class LargePictures(Odd):
    """Observes a new picture of 120 kB at each step: 8 MB/s at 60 steps/s."""

    def _observe(self):
        return TensorDict(x=torch.full((1,), float(self.t)), pixels=torch.randint(0, 256, (200, 200, 3)).byte())


class LongEpisode(Lengths):
    """One long episode of pictures."""

    def __init__(self, length):
        super().__init__()
        import gymnasium

        self.length = length
        self.observation_space = gymnasium.spaces.Dict(pixels=gymnasium.spaces.Box(0, 255, (32, 32, 3), np.uint8))

    def step(self, action):
        self.t += 1
        return self._seen(), 1.0, self.t >= self.length, False, {}

    def _seen(self):
        return {"pixels": np.full((32, 32, 3), self.t, np.uint8)}


PICTURE_SHAPES = {
    "grey": (40, 48),
    "rgb": (40, 48, 3),
    "first": (3, 40, 48),
    "alpha": (40, 48, 4),
    "stack": (4, 40, 48),
    "colours": (40, 48, 12),
    "clip": (3, 40, 48, 3),
    "segmentation": (40, 48),
}


class PicturesOfAllShapes(EnvBase):
    """Pictures of noise, in several shapes."""

    def __init__(self, batch_size=()):
        super().__init__(batch_size=torch.Size(batch_size))
        whole = {
            name: Bounded(0, 255, (*batch_size, *shape), dtype=torch.uint8) for name, shape in PICTURE_SHAPES.items()
        }
        floats = {name: Unbounded((*batch_size, 40, 48, 3)) for name in ("float", "negative")}
        floats["depth"] = Unbounded((*batch_size, 40, 48))
        self.observation_spec = Composite(whole | floats, shape=batch_size)
        self.action_spec = Unbounded((*batch_size, 1))
        self.reward_spec = Unbounded((*batch_size, 1))

    def _reset(self, tensordict=None, **kwargs):
        seen = self.observation_spec.rand()
        return seen.update({"negative": seen["negative"].abs().neg(), "float": torch.rand_like(seen["float"])})

    def _step(self, tensordict):
        reward = torch.ones(*self.batch_size, 1)
        return self._reset().update(TensorDict(reward=reward, done=reward > 2, batch_size=self.batch_size))

    def _set_seed(self, seed):
        torch.manual_seed(seed or 0)


class Anything(EnvBase):
    """Observes random bits under any keys, optionally of agents. Ends at given steps."""

    def __init__(self, batch, agents, leaves, ends):
        super().__init__(batch_size=torch.Size(batch))
        self.agents = agents
        self.leaves = leaves
        self.observation_spec = Composite(shape=batch)
        if agents:
            self.group_map = {"group": [f"agent {i}" for i in range(agents)]}
            self.observation_spec["group"] = Composite(shape=(*batch, agents))
        for key, dtype, shape in leaves:
            self.observation_spec[key] = Unbounded((*batch, *shape), dtype=dtype)
        self.action_spec = Unbounded((*batch, 2))
        self.reward_spec = Unbounded((*batch, 1))
        self.ends = ends
        self.generator = torch.Generator().manual_seed(0)

    def _reset(self, tensordict=None, **kwargs):
        out = TensorDict(batch_size=self.batch_size)
        if self.agents:
            out["group"] = TensorDict(batch_size=(*self.batch_size, self.agents))
        for key, dtype, shape in self.leaves:
            size = torch.zeros((), dtype=dtype).element_size()
            bits = torch.randint(0, 256, (*self.batch_size, *shape, size), generator=self.generator, dtype=torch.uint8)
            out[key] = (bits[..., 0] > 127) if dtype is torch.bool else bits.view(dtype)[..., 0]
        return out

    def _step(self, tensordict):
        done = torch.tensor(self.ends.pop()).reshape(*self.batch_size, 1)
        return self._reset().update({"reward": torch.rand(*self.batch_size, 1), "done": done})

    def _set_seed(self, seed):
        pass


class Simulator(EnvBase):
    """Steps all environments at once and writes into the same tensors each time, like simulators on GPUs."""

    def __init__(self, envs, device):
        super().__init__(batch_size=torch.Size([envs]), device=device)
        self.observation_spec = Composite(
            x=Unbounded((envs, 3), device=device),
            half=Unbounded((envs, 2), dtype=torch.bfloat16, device=device),
            picture=Unbounded((envs, 40, 40, 3), dtype=torch.uint8, device=device),
            shape=(envs,),
            device=device,
        )
        self.action_spec = Unbounded((envs, 2), device=device)
        self.reward_spec = Unbounded((envs, 1), device=device)
        self.out = self.observation_spec.zero()
        self.seen = []  # copies of all frames, in order: the tensors themselves are written over

    def _observe(self):
        self.out["x"].add_(1).mul_(1.1)
        self.out["half"].copy_(self.out["x"][:, :2])
        self.out["picture"].add_(7)
        self.seen.append(self.out.clone().cpu())
        return TensorDict(dict(self.out.items()), batch_size=self.batch_size, device=self.device)

    def _reset(self, tensordict=None, **kwargs):
        mask = None if tensordict is None else tensordict.get("_reset", None)
        if mask is not None:
            self.out["x"][mask.reshape(-1)] = 0
        return self._observe()

    def _step(self, tensordict):
        out = self._observe()
        done = self.out["x"][:, :1] % 7 > 5
        return out.update({"reward": self.out["x"][:, 1:2] * 2, "done": done})

    def _set_seed(self, seed):
        pass


class OfOnesOwn(gymnasium.Env):
    """An environment with CartPole's shapes that is not CartPole."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    model = "not what one might think"

    def reset(self, *, seed=None, options=None):
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return np.zeros(4, np.float32), 0.0, False, False, {}


class Says(Count):
    """Observes the time t under keys of any names."""

    def __init__(self, *keys, n=3):
        super().__init__(n)
        self.names = keys
        specs = Composite()
        for key in keys:
            specs[key] = Unbounded((1,))
        self.observation_spec = specs

    def _observe(self, data):
        out = TensorDict({flag: data[flag] for flag in ("reward", "done") if flag in data.keys()})
        for number, key in enumerate(self.names):
            out[key] = torch.tensor([self.t + number / 8])
        return out

    def _reset(self, tensordict=None, **kwargs):
        return self._observe(super()._reset(tensordict))

    def _step(self, tensordict):
        return self._observe(super()._step(tensordict))


class Drawn(Groups):
    """Groups that finish at different times, optionally with a mask of the environment and with notes of any type."""

    def __init__(self, case):
        super().__init__(case.lengths, root=case.root, agents=case.agents, batch=case.batch)
        self.case, self.calls = case, 0
        if case.mask:
            self.observation_spec["mask"] = Binary(case.mask, (case.batch, case.mask), dtype=torch.bool)
        if case.notes:
            self.observation_spec["note"] = NonTensor((case.batch,))

    def _with_more(self, data):
        self.calls += 1
        if self.case.mask:
            data["mask"] = (torch.arange(self.case.batch * self.case.mask) + self.calls).reshape(
                self.case.batch, -1
            ) % 3 > 0
        if self.case.notes:
            notes = [self.case.notes[(self.calls + env) % len(self.case.notes)] for env in range(self.case.batch)]
            data["note"] = torch.stack([NonTensorData(note) for note in notes])
        return data

    def _reset(self, tensordict=None, **kwargs):
        return self._with_more(super()._reset(tensordict, **kwargs))

    def _step(self, tensordict):
        return self._with_more(super()._step(tensordict))


class Missing(Count):
    """Observes an extra key that is missing after some steps, and has another length after each other step."""

    def __init__(self, n, missing):
        super().__init__(n)
        self.missing, self.steps = missing, 0
        self.observation_spec["extra"] = Unbounded((-1,))

    def _reset(self, tensordict=None, **kwargs):
        return super()._reset(tensordict, **kwargs).set("extra", torch.zeros(2))

    def _step(self, tensordict):
        self.steps += 1
        data = super()._step(tensordict)
        if self.steps in self.missing:
            return data
        return data.set("extra", torch.full((1 + self.steps % 3,), float(self.steps)))


class OneOf(Count):
    """One of several environments. Its first reset waits for its turn, and its observations include its number."""

    def __init__(self, number, turn):
        super().__init__(3)
        self.number, self.turn = number, turn

    def _reset(self, tensordict=None, **kwargs):
        assert self.turn.wait(30)
        return super()._reset(tensordict, **kwargs).apply(lambda value: value + 100 * self.number)

    def _step(self, tensordict):
        data = super()._step(tensordict)
        return data.set("observation", data["observation"] + 100 * self.number)


class Masked(Count):
    """Observes the legal actions under ``"mask"``."""

    def __init__(self, actions):
        super().__init__(6)
        self.observation_spec = Composite(
            observation=Unbounded((1,)), mask=Binary(actions, (actions,), dtype=torch.bool)
        )
        self.actions = actions

    def _seen(self, data):
        return data.set("mask", torch.arange(self.actions) % 2 == self.t % 2)

    def _reset(self, tensordict=None, **kwargs):
        return self._seen(super()._reset(tensordict))

    def _step(self, tensordict):
        return self._seen(super()._step(tensordict))


class Board(Count):
    def __init__(self):
        super().__init__(3)
        self.observation_spec = Composite(observation=Unbounded((1,)), action_mask=Binary(4, (4,), dtype=torch.bool))
        self.action_spec = Categorical(4, ())

    def _reset(self, tensordict=None, **kwargs):
        return super()._reset().set("action_mask", torch.tensor([True, True, False, True]))

    def _step(self, tensordict):
        return super()._step(tensordict).set("action_mask", torch.arange(4) != self.t)


def noting(values, **also):
    """Return an environment whose note at time t is ``values[t]``, and whose ``x`` counts steps."""

    def observe(t):
        return {"x": torch.full((2,), float(t)), "note": NonTensorData(values[t]), **also}

    specs = {"x": Unbounded((2,)), "note": NonTensor(())}
    return Scripted(observe, specs=specs | {key: Unbounded(value.shape) for key, value in also.items()})


ABSENT = {
    "a row in the middle": [3],
    "several rows": [2, 3, 6],
    "every second row": [1, 3, 5, 7],
    "all but the first": [1, 2, 3, 4, 5, 6, 7, 8],
    "the last row": [8],
}
"""Times at which a key is missing, of 9."""

UNITS = {
    "scalars": torch.full((2,), 1.0),
    "whole numbers": torch.full((2,), 1, dtype=torch.int64),
    "flags": torch.full((2,), True),
    "half": torch.full((2,), 1.0, dtype=torch.bfloat16),
    "complex": torch.full((2,), 1.0, dtype=torch.complex64),
    "tensor": torch.full((200,), 1.0),
    "large": torch.full((2000,), 1.0),
    "picture": torch.full((40, 40, 3), 1, dtype=torch.uint8),
}
"""Values at time 1 of keys of several kinds."""


def with_gaps(name: str, absent: str) -> Callable[[int], dict[str, torch.Tensor]]:
    """Return a function from time to observations: ``x``, the time, and ``y``, one of ``UNITS`` that may be ``ABSENT``."""

    def observe(t):
        unit = UNITS[name]
        seen = {"x": torch.full((3,), float(t)), "y": unit if unit.dtype == torch.bool else unit * t}
        return seen if t not in ABSENT[absent] else {"x": seen["x"]}

    return observe


class Lamps(EnvBase):
    """Flags and categories that seldom change, of environments or of two agents each.

    ``ends``: whether each environment's episode ends, by time. ``rate``: how probable it is that a value changes. The reward
    is a category.
    """

    def __init__(self, batch, ends, *, rate=0.1, seed=0, agents=False):
        super().__init__(batch_size=torch.Size(batch))
        self.ends, self.rate, self.t, self.agents = ends, rate, 0, agents
        self.generator = torch.Generator().manual_seed(seed)
        b, of_each = self.batch_size, (*batch, 2) if agents else tuple(batch)
        specs = {"lit": Binary(3, (*of_each, 3), dtype=torch.bool), "phase": Categorical(3, of_each)}
        self.lit, self.phase = torch.zeros(*of_each, 3, dtype=torch.bool), torch.zeros(of_each, dtype=torch.int64)
        specs = {"lamps": Composite(specs, shape=of_each)} if agents else specs
        self.observation_spec = Composite({"x": Unbounded((*b, 1))} | specs, shape=b)
        self.action_spec = Categorical(2, b)
        self.reward_spec = Categorical(2, (*b, 1))
        flags = ("done", "terminated", "truncated")
        self.done_spec = Composite({flag: Categorical(2, (*b, 1), dtype=torch.bool) for flag in flags}, shape=b)

    def _changes(self, shape):
        return torch.rand(shape, generator=self.generator) < self.rate

    def _seen(self):
        self.lit = self.lit ^ self._changes(self.lit.shape)
        self.phase = torch.where(self._changes(self.phase.shape), (self.phase + 1) % 3, self.phase)
        lamps = {"lit": self.lit.clone(), "phase": self.phase.clone()}
        lamps = {"lamps": TensorDict(lamps, [*self.batch_size, 2])} if self.agents else lamps
        return TensorDict({"x": torch.full((*self.batch_size, 1), float(self.t))} | lamps, self.batch_size)

    def _reset(self, tensordict=None, **kwargs):
        return self._seen()

    def _step(self, tensordict):
        ended = torch.tensor(self.ends[self.t % len(self.ends)], dtype=torch.bool).reshape(*self.batch_size, 1)
        self.t += 1
        is_odd = torch.full_like(ended, self.t % 2 == 1)
        flags = {"done": ended, "terminated": ended & is_odd, "truncated": ended & ~is_odd}
        return self._seen().update({"reward": self._changes(ended.shape).long(), **flags})

    def _set_seed(self, seed):
        pass


class OfOwnSizes(EnvBase):
    """A group of two agents, ``"small"`` and ``"large"``, whose observations have 2 and 5 numbers."""

    def __init__(self):
        super().__init__()
        self.group_map = {"agents": ["small", "large"]}
        self.t = 0
        specs = [Composite(obs=Unbounded((size,))) for size in (2, 5)]
        self.observation_spec = Composite(agents=torch.stack(specs, 0))
        self.action_spec = Unbounded((1,))
        self.reward_spec = Unbounded((1,))

    def _seen(self):
        agents = lazy_stack([TensorDict(obs=torch.full((size,), float(self.t))) for size in (2, 5)])
        return TensorDict(agents=agents)

    def _reset(self, tensordict=None, **kwargs):
        return self._seen()

    def _step(self, tensordict):
        self.t += 1
        return self._seen().update({"reward": torch.ones(1), "done": torch.zeros(1, dtype=torch.bool)})

    def _set_seed(self, seed):
        pass


def rollout_that_lacks_keys() -> TensorDict:
    """Return 5 steps of two environments, lazily stacked; the second has neither ``y`` nor ``note`` at times 2 and 3."""

    def moment(t):
        envs = []
        for env in range(2):
            values = {
                "x": torch.full((1,), float(t)),
                "note": NonTensorData(f"{env} at {t}"),
                "y": torch.full((2,), -float(t)),
            }
            if env == 1 and t in (2, 3):
                del values["y"], values["note"]
            envs.append(TensorDict(values))
        return envs

    steps = []
    for t in range(5):
        of_envs = []
        for before, after in zip(moment(t), moment(t + 1), strict=True):
            after = after.update({"reward": torch.ones(1), "done": torch.zeros(1, dtype=torch.bool)})
            of_envs.append(
                before.update({"action": torch.zeros(1), "next": after, "done": torch.zeros(1, dtype=torch.bool)})
            )
        steps.append(lazy_stack(of_envs, 0))
    return lazy_stack(steps, 1)


class TwoRewards(Count):
    """Returns a ``"cost"`` of 7 at each step, besides a reward."""

    def __init__(self):
        super().__init__(6)
        self.reward_spec = Composite(reward=Unbounded((1,)), cost=Unbounded((1,)))

    def _step(self, tensordict):
        return super()._step(tensordict).set("cost", torch.full((1,), 7.0))
