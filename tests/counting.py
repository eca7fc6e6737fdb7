"""Environments of which every value is known in advance."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase


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
    """Two environments with groups of agents, which are done every so many steps of their own, and reset apart.

    ``lengths``: of each group. Observations are the group's age, and 100 times the environment's number.
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
            # A reset of some gives nothing of the others, as TorchRL's batched environments do.
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
