"""Keys of tensordicts, in their normal form and in messages."""

from __future__ import annotations

from typing import Any

Key = tuple[str, ...]
"""A tensordict key as a tuple of strings, without a leading ``"next"``."""

AnyKey = str | tuple[Any, ...]
"""A key as users write it: a string, or a tuple of strings, maybe nested."""


REWARD = "reward"
"""Name of rewards in TorchRL, in any group. An environment may have further ones, such as ``reward_forward``."""


RESERVED = frozenset({"action", "reward", "done", "terminated", "truncated", "info", "next"})
"""Names at the root of a recording of Gymnasium's environments that aren't an observation's. If the space of observations is a
dictionary with one of them, all of its keys are below ``"observation"``."""


def is_reward(key: Key) -> bool:
    """Return whether a key names a reward. Specs of an environment, if there is one, may name others.

    >>> is_reward(("agents", "reward")), is_reward(("reward_forward",))
    (True, False)
    """
    return key[-1] == REWARD


def name_of(key: Key) -> str:
    """Return a key as the user would write it in a message.

    >>> name_of(("agents", "observation")), name_of(("pixels",))
    ("('agents', 'observation')", "'pixels'")
    """
    return repr(key[0] if len(key) == 1 else key)


def as_key(key: AnyKey) -> Key:
    """Return a key as a tuple of strings, without a leading ``"next"``.

    >>> as_key("pixels"), as_key(("next", ("agents", "reward")))
    (('pixels',), ('agents', 'reward'))
    """
    flat: list[str] = []
    for part in (key,) if isinstance(key, str) else key:
        flat.extend((part,) if isinstance(part, str) else as_key(part))
    return tuple(flat[1:] if len(flat) > 1 and flat[0] == "next" else flat)


def return_key(reward: Key) -> Key:
    """Return the key of the running sum of a reward.

    >>> return_key(("agents", "reward")), return_key(("reward_forward",))
    (('agents', 'episode_return'), ('episode_return_forward',))
    """
    name = reward[-1]
    return (*reward[:-1], "episode_return" + (name.removeprefix(REWARD) if name.startswith(REWARD) else f"_{name}"))
