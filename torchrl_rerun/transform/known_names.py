"""Known names: find the names of the observations and actions of TorchRL's environments.

An environment in another process is found by the id in TorchRL's description of it.
"""

from __future__ import annotations

import functools
import re

import gymnasium
from torchrl.envs import EnvBase, GymWrapper, ParallelEnv, SerialEnv, TransformedEnv

from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.recording.known_names import Labels, Names, common, names_for, of_id, of_simulator


def known_names(leaf: Leaf, env: EnvBase | None) -> Labels:
    """Return the names of the numbers or the categories of a key; empty: unknown.

    Args:
        leaf: the facts about the key.
        env: the environment; None: there is none.
    """
    return () if env is None else names_for(leaf, functools.partial(_names_of, env))


def _names_of(env: EnvBase) -> Names:
    match env:
        case TransformedEnv():
            return _names_of(env.base_env)
        case SerialEnv() if not env.is_closed:
            return common(map(_names_of, env._envs))  # noqa: SLF001 - there is no public way to them
        case ParallelEnv():
            # torchrl 0.14: a worker that is asked for an attribute it lacks dies.
            described = env.meta_data if isinstance(env.meta_data, list) else [env.meta_data]
            return common(of_id(name) for each in described for name in _ids_in(str(each.env_str)))
        case GymWrapper() if isinstance(env._env, gymnasium.vector.VectorEnv):  # noqa: SLF001
            return of_id(getattr(env, "env_name", "") or getattr(env._env.spec, "id", ""))  # noqa: SLF001
        case GymWrapper():
            return of_simulator(getattr(env._env, "unwrapped", None))  # noqa: SLF001
    return Names()


def _ids_in(description: str) -> list[str]:
    """Return the ids of the gymnasium environments in TorchRL's description of an environment.

    >>> _ids_in("TransformedEnv(env=GymEnv(env=ALE/Pong-v5, batch_size=torch.Size([]), device=cpu), transform=...)")
    ['ALE/Pong-v5']
    >>> _ids_in("GymWrapper(env=<TimeLimit<OrderEnforcing<CartPoleEnv<CartPole-v1>>>>, batch_size=torch.Size([]))")
    ['CartPole-v1']
    """
    return re.findall(r"\bGym(?:Env|Wrapper)\(env=(?:[^,()]*<)?([^<>\s,()]+)", description)
