"""Rewound environments of TorchRL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import TensorSpec
from torchrl.envs import EnvBase
from torchrl.envs.utils import step_mdp

from torchrl_rerun.kinds.keys import as_key
from torchrl_rerun.stored.rewound import RESETS, Moment, Rewound, Row, exactly, refuse_batch
from torchrl_rerun.transform import tensordicts
from torchrl_rerun.transform.environments import innermost
from torchrl_rerun.transform.looks import simulated


class RewoundTorchRL(Rewound):
    """An environment of TorchRL, with its transforms.

    Args:
        env: the environment.

    Raises:
        ValueError: it is a batch.
    """

    def __init__(self, env: EnvBase) -> None:
        refuse_batch(tuple(env.batch_size) or None)
        self._env = env
        base = innermost(env)
        assert base is not None, "it is no batch"
        inner = getattr(base, "_env", None)
        self.inner = inner if isinstance(inner, gymnasium.Env) else None
        [self.simulated] = simulated(env)
        self._frame_skip = int(getattr(base, "wrapper_frame_skip", 1))
        self.action_keys = list(map(as_key, env.action_keys))
        self.observation_keys = [
            as_key(key) for key in base.observation_spec.keys(include_nested=True, leaves_only=True)
        ]
        self._root: TensorDictBase = TensorDict()
        self._first = self._root

    def reset(self) -> Moment:
        """Reset the environment: see :meth:`Rewound.reset`."""
        return self._begun(self._env.reset())

    def seeded(self, seed: int) -> Iterator[Moment]:
        """Yield what resets give: see :meth:`Rewound.seeded`."""
        with torch.random.fork_rng(devices=()):  # `set_seed` seeds PyTorch, too
            self._env.set_seed(seed)
            for _ in range(RESETS):
                yield self.reset()
            if self.inner is not None:  # recorded without TorchRL
                yield self._begun(self._env.reset(seed=seed))

    def take_up(self, row: Row) -> None:
        """Take up what transforms carry in the data: see :meth:`Rewound.take_up`."""
        self._root = self._with(self._root, row)

    def step(self, row: Row) -> Moment:
        """Take the recorded actions: see :meth:`Rewound.step`."""
        root = self._root.clone()
        for key in self.action_keys:
            root.set(key, _acted(np.asarray(exactly(row, key)), self._env.full_action_spec[key]))
        stepped = self._env.step(root)
        self._root = step_mdp(stepped, keep_other=False, exclude_action=True, exclude_reward=True, exclude_done=False)
        return _arrays(stepped.get("next"))

    def result(self, row: Row, *, is_set: bool) -> TensorDictBase:
        """Return the data: see :meth:`Rewound.result`."""
        there = self._first.clone().update(self._root)
        observed = [key for key in self.observation_keys if key in there.keys(include_nested=True)]
        if not is_set:  # they are the environment's own, and exact
            return self._with(there, lambda key: None if key in observed else row(key))
        for key in observed:
            exactly(row, key)
        return self._with(there, row)

    def count(self, steps: int, rewards: float) -> None:
        """Let wrappers have counted steps, of which TorchRL may take several at once: see :meth:`Rewound.count`."""
        super().count(steps * self._frame_skip, rewards)

    def _begun(self, root: TensorDictBase) -> Moment:
        self._root = self._first = root
        return _arrays(root)

    @staticmethod
    def _with(root: TensorDictBase, row: Row) -> TensorDictBase:
        """Return data with the recorded values of the keys that it has."""
        out = root.clone()
        for key in tensordicts.data_keys(root):
            value, stored = root.get(key), row(key)
            if isinstance(value, torch.Tensor) and stored is not None and np.size(stored) == value.numel():
                recorded = torch.as_tensor(np.asarray(stored)).reshape(value.shape)
                out.set(key, recorded.to(dtype=value.dtype, device=value.device))
        return out


def _arrays(tensordict: TensorDictBase) -> dict[Any, npt.NDArray[Any]]:
    found = {key: tensordict.get(key) for key in tensordicts.data_keys(tensordict)}
    return {
        key: tensordicts.as_array(value, tensordict.batch_size)
        for key, value in found.items()
        if isinstance(value, torch.Tensor)
    }


def _acted(stored: npt.NDArray[Any], spec: TensorSpec) -> torch.Tensor:
    """Return a stored action in the form that an environment takes: a category as its number or one-hot.

    Raises:
        ValueError: the action doesn't fit the environment.
    """
    numbers = spec.shape.numel()
    if stored.size != numbers and numbers == 1:  # one-hot
        stored = np.asarray(stored.argmax())
    if stored.size == numbers:
        return torch.as_tensor(stored).reshape(spec.shape).to(spec.dtype)
    if stored.size == 1:
        encoded: torch.Tensor = spec.encode(int(stored.reshape(-1)[0]))
        return encoded
    raise ValueError(f"a recorded action of {stored.dtype} {stored.shape} doesn't fit {spec}")
