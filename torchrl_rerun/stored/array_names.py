"""Names that well-known libraries give to arrays of trajectories, and the keys that follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torchrl_rerun.kinds.endings import DONE, TERMINATED, TRUNCATED
from torchrl_rerun.kinds.keys import REWARD, Key, name_of

OBSERVATION, NEXT, ACTION = "observation", "next_observation", "action"
FIRST, LAST, TERMINAL, EPISODE = "is_first", "is_last", "is_terminal", "episode"

ROLES: Mapping[str, tuple[str, ...]] = {
    OBSERVATION: ("observation", "observations", "obs", "state", "states"),
    NEXT: ("next_observation", "next_observations", "next_obs", "new_obs", "next_state", "next_states"),
    ACTION: ("action", "actions", "acts", "act"),
    REWARD: ("reward", "rewards", "rews", "rew"),
    TERMINATED: ("terminated", "terminateds", "terminations", "terminals", "terminal"),
    TRUNCATED: ("truncated", "truncateds", "truncations", "timeouts", "timeout"),
    DONE: ("done", "dones"),
    FIRST: ("is_first", "episode_starts", "episode_start"),
    LAST: ("is_last",),
    TERMINAL: ("is_terminal",),
    EPISODE: ("episode", "episodes", "episode_id", "episode_ids", "eps_id", "traj_ids", "trajectory_ids"),
}
"""Names of each role, in lower case. If a file has several, the first in this order gets the role; the others keep their
names as keys."""

ESSENTIAL = (OBSERVATION, NEXT, ACTION, REWARD)
"""Roles without which a file is refused: if such an array is damaged, nothing is recorded."""

FLAGS = (TERMINATED, TRUNCATED, DONE)

BOUNDARIES = (*FLAGS, FIRST, LAST, TERMINAL, EPISODE)
"""Roles that mark where episodes begin or end. A file is refused if such an array is damaged, as without it transitions
would be recorded that never happened."""

MAY_BE_LONGER = (OBSERVATION, "infos", "info")
"""Arrays that may have one row more than there are steps: no action follows the last observation."""

_RESERVED = ("next", "_step", "_reset")
"""Keys with a meaning of their own in TorchRL."""


@dataclass(frozen=True)
class KeyAssignment:
    """Keys of arrays.

    Attributes:
        keys: Key of each array, by the array's name. The key of an array with a role begins with the role.
        left_out: Reason why an array has no key, by the array's name.
    """

    keys: Mapping[Key, Key]
    left_out: Mapping[Key, str]


def assign_keys(names: Iterable[Key], given: Mapping[Key, str]) -> KeyAssignment:
    """Assign a key to each array by the array's name.

    Args:
        names: Names of all arrays, split at the groups that they are in.
        given: Names of arrays or groups that the user chose, by their keys.

    >>> assigned = assign_keys([("obs", "eef"), ("states",), ("acts",), ("img",)], {("reward",): "img"})
    >>> [(name, "/".join(key)) for name, key in assigned.keys.items()]  # doctest: +NORMALIZE_WHITESPACE
    [(('obs', 'eef'), 'observation/eef'), (('states',), 'states'), (('acts',), 'action'), (('img',), 'reward')]
    """
    names = list(names)
    chosen = {name: key for name in names for key in [_find_given(name, given)] if key is not None}
    roles = _assign_roles(
        [name for name in names if name not in chosen], {k[0] for k in chosen.values() if len(k) == 1}
    )
    keys: dict[Key, Key] = {}
    left_out: dict[Key, str] = {}
    # Order of precedence for one key: the user's choice, a recognised name, an unrecognised name that equals the key.
    for name in sorted(names, key=lambda name: (name not in chosen, name[0] not in roles)):
        key = chosen.get(name, (roles.get(name[0], name[0]), *name[1:]))
        other = next((holder for holder, held in keys.items() if _overlap(key, held)), None)
        if key[0] in _RESERVED:
            left_out[name] = f"the key {key[0]!r} has another meaning in TorchRL"
        elif other is not None:
            left_out[name] = f"{'/'.join(other)} is {name_of(key)} already"
        elif key[0] in FLAGS and key == name and _has_rlds_end(roles.values()):
            left_out[name] = "is_last and is_terminal say where episodes end"
        else:
            keys[name] = key
    return KeyAssignment({name: keys[name] for name in names if name in keys}, left_out)


def _find_given(name: Key, given: Mapping[Key, str]) -> Key | None:
    """Return the key that the user gave to an array, or to a group that the array is in."""
    for key, path in given.items():
        parts = tuple(path.split("/"))
        if name[: len(parts)] == parts:
            return (*key, *name[len(parts) :])
    return None


def _assign_roles(names: list[Key], taken: set[str]) -> dict[str, str]:
    """Return the role of each name that has one, by the first part of the name; roles in ``taken`` are not assigned."""
    firsts = list(dict.fromkeys(name[0] for name in names))
    roles: dict[str, str] = {}
    for role, aliases in ROLES.items():
        candidates = [each for each in firsts if each.lower() in aliases]
        if candidates and role not in taken:
            roles[min(candidates, key=lambda each: aliases.index(each.lower()))] = role
    # RLDS flags are at other rows than those of TorchRL, so that a file can't have both.
    excluded = (LAST, TERMINAL) if taken.intersection(FLAGS) else FLAGS if _has_rlds_end(roles.values()) else ()
    return {name: role for name, role in roles.items() if role not in excluded}


def _has_rlds_end(roles: Iterable[str]) -> bool:
    return not {LAST, TERMINAL}.isdisjoint(roles)


def _overlap(one: Key, other: Key) -> bool:
    """Return whether two keys exclude each other in one tensordict."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
