"""Entity paths: no two streams have the same one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.streams import Stream, entity_path


class EntityPaths:
    """Gives each stream an entity path of its own.

    The path of a stream is that of its key. If that path is taken or reserved the stream gets another one, which the schema
    tells.

    Args:
        reserved: names that no path may begin with.

    >>> paths = EntityPaths()
    >>> [each.path(0) for each in map(paths.assign, [Stream(("a",), "scalars", "float32", (1,))] * 2)]
    [['env_0', 'a'], ['env_0', 'a_2']]
    """

    def __init__(self, reserved: Collection[str] = ()) -> None:
        self._reserved = reserved
        self._taken: set[str] = set()

    def assign(self, stream: Stream) -> Stream:
        """Return a stream with a path of its own for each of its agents."""
        if stream.agents:
            stream = dataclasses.replace(stream, agents=unlike(stream.agents))
        for place in self._candidates(stream.key):
            found = dataclasses.replace(stream, place=() if place == stream.key else place)
            paths = {entity_path(found, None, agent) for agent in range(found.agent_count)}
            if place[0] not in self._reserved and not paths & self._taken:
                self._taken |= paths
                return found
        raise AssertionError("there are always more names")

    def _candidates(self, key: Key) -> Iterator[Key]:
        yield key
        for number in itertools.count(2):
            yield (f"{key[0]}_{number}", *key[1:]) if key[0] in self._reserved else (*key[:-1], f"{key[-1]}_{number}")


def free_key(key: Key, taken: Collection[Key]) -> Key:
    """Return a key for something that the recorder adds, which the environment has not.

    >>> free_key(("episode_return",), [("reward",)]), free_key(("episode_return",), [("episode_return",)])
    (('episode_return',), ('recorded_episode_return',))
    """
    found = key
    while found in taken:
        found = (*found[:-1], f"recorded_{found[-1]}")
    return found


def unlike(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of which no two are the same.

    >>> unlike(["fox", "fox", "fox_2"])
    ('fox', 'fox_3', 'fox_2')
    """
    found: list[str] = []
    for name in names:
        numbered = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
        is_first = name not in found
        found.append(name if is_first else next(each for each in numbered if each not in found and each not in names))
    return tuple(found)
