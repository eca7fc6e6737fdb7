"""Layouts: what the arrays of well-known libraries are called, and which array is what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torchrl_rerun.kinds.streams import Key, name_of

OBSERVATION, NEXT, ACTION, REWARD = "observation", "next_observation", "action", "reward"
TERMINATED, TRUNCATED, DONE = "terminated", "truncated", "done"
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
"""The names of each role, lower case. If several are there the first one has the role, and the others keep their names."""

CENTRAL = (OBSERVATION, NEXT, ACTION, REWARD)
"""A file is refused if one of these is damaged."""

FLAGS = (TERMINATED, TRUNCATED, DONE)

CUTS = (*FLAGS, FIRST, LAST, TERMINAL, EPISODE)
"""What says where episodes begin or end. A file is refused if one of these is damaged: without it transitions would be made
that never happened."""

OBSERVED = (OBSERVATION, "infos", "info")
"""What may have one row more than there are steps: it comes with observations, the last of which no action follows."""

_RESERVED = ("next", "_step", "_reset")
"""What TorchRL means by these is something else."""

_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}


@dataclass(frozen=True)
class Layout:
    """What arrays are.

    Attributes:
        keys: the key of each array, by its name. It begins with a role if the array has one.
        left_out: why arrays have no key, by their names.
    """

    keys: Mapping[Key, Key]
    left_out: Mapping[Key, str]


def layout_of(names: Iterable[Key], given: Mapping[Key, str]) -> Layout:
    """Decide which array is what, by the arrays' names.

    Args:
        names: of all arrays, in parts if they are in groups.
        given: names of arrays or groups that the user says, by their keys.

    >>> layout = layout_of([("obs", "eef"), ("states",), ("acts",), ("img",)], {("reward",): "img"})
    >>> [(name, "/".join(key)) for name, key in layout.keys.items()]  # doctest: +NORMALIZE_WHITESPACE
    [(('obs', 'eef'), 'observation/eef'), (('states',), 'states'), (('acts',), 'action'), (('img',), 'reward')]
    """
    names = list(names)
    said = {name: key for name in names for key in [_said(name, given)] if key is not None}
    holders = _holders([name for name in names if name not in said], {key[0] for key in said.values() if len(key) == 1})
    keys: dict[Key, Key] = {}
    left_out: dict[Key, str] = {}
    # What is said to have a key gets it, then what is known to have it, then what only happens to be called like it.
    for name in sorted(names, key=lambda name: (name not in said, name[0] not in holders)):
        key = said.get(name, (holders.get(name[0], name[0]), *name[1:]))
        other = next((taken for taken, has in keys.items() if _overlap(key, has)), None)
        if key[0] in _RESERVED:
            left_out[name] = f"TorchRL means something else by {key[0]!r}"
        elif other is not None:
            left_out[name] = f"{'/'.join(other)} is {name_of(key)} already"
        elif key[0] in FLAGS and key == name and _says_last(holders.values()):
            left_out[name] = "is_last and is_terminal say where episodes end"
        else:
            keys[name] = key
    return Layout({name: keys[name] for name in names if name in keys}, left_out)


def _said(name: Key, given: Mapping[Key, str]) -> Key | None:
    """Return the key that the user gave to an array, or to a group that it is in."""
    for key, path in given.items():
        parts = tuple(path.split("/"))
        if name[: len(parts)] == parts:
            return (*key, *name[len(parts) :])
    return None


def _holders(names: list[Key], taken: set[str]) -> dict[str, str]:
    """Return the roles that are free, by the first parts of the names that have them."""
    firsts = list(dict.fromkeys(name[0] for name in names))
    holders: dict[str, str] = {}
    for role, aliases in ROLES.items():
        among = [each for each in firsts if each.lower() in aliases]
        if among and role not in taken:
            holders[min(among, key=lambda each: aliases.index(each.lower()))] = role
    # RLDS has its own flags, which are of other moments.
    others = (LAST, TERMINAL) if taken.intersection(FLAGS) else FLAGS if _says_last(holders.values()) else ()
    return {name: role for name, role in holders.items() if role not in others}


def _says_last(roles: Iterable[str]) -> bool:
    return not {LAST, TERMINAL}.isdisjoint(roles)


def _overlap(one: Key, other: Key) -> bool:
    """Tell whether two keys can't be in one tensordict."""
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
