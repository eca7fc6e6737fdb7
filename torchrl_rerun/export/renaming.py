"""Names of keys in other formats, each of them different."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torchrl_rerun.errors import warn

_NOT_PLAIN = re.compile(r"[^\w-]")


@dataclass(frozen=True)
class Wish:
    """The name that a key gets unless another one has it.

    Attributes:
        owner: the key, and all else that tells it from others.
        told: how messages name the owner.
        name: the name, in characters that the format can have.
        spelled: the name in the characters of the key.
        is_plain: whether the key is in letters, digits, ``_`` and ``-``.
        prefixes: the beginnings that the format puts before the name, one for each of the places that it takes.
    """

    owner: Any
    told: str
    name: str
    spelled: str
    is_plain: bool = True
    prefixes: tuple[str, ...] = ("",)

    def places(self, name: str) -> set[str]:
        """Return the names, folded, that a name takes with each of the prefixes."""
        return {_folded(prefix + name) for prefix in self.prefixes}


def dotted(owner: Any, told: str, parts: Sequence[str], stem: str = "") -> Wish:
    """Return the wish for a name of parts joined by dots, in letters, digits, ``_`` and ``-``.

    Other characters become ``_``, since they have meanings for file systems, HDF5 or the format itself.

    Args:
        owner: the key, and all else that tells it from others.
        told: how messages name the owner.
        parts: the parts.
        stem: the first part, which keeps its characters.

    >>> dotted("joint pos", "'joint pos'", ["observation", "joint pos"]).name
    'observation.joint_pos'
    """
    stems = [stem] if stem else []
    name, spelled = ".".join([*stems, *map(_plain, parts)]), ".".join([*stems, *parts])
    return Wish(owner, told, name, spelled, is_plain=name == spelled)


def slashed(owner: Any, told: str, parts: Sequence[str], prefixes: tuple[str, ...]) -> Wish:
    """Return the wish for a name of parts joined by slashes, in any characters.

    Args:
        owner: the key, and all else that tells it from others.
        told: how messages name the owner.
        parts: the parts.
        prefixes: the beginnings that the format puts before the name.
    """
    name = "/".join(parts)
    return Wish(owner, told, name, name, all(_plain(part) == part for part in parts), prefixes)


def distinct(wishes: Iterable[Wish], what: str, taken: Collection[str] = ()) -> dict[Any, str]:
    """Return a name for each owner, and warn once of all that are spelled otherwise than the keys are.

    Several owners may wish for one name. The first of them gets it: plain ones come before others, and then they are in
    sorted order. The others get it with ``_2``, ``_3``, ... at the end, the lowest number that makes it another one than all
    that are wished for. Names that differ in case alone are one name, as they are to SQL and to some file systems.

    Args:
        wishes: the wishes, in any order.
        what: the format in the warning.
        taken: the names that the format has a meaning of its own for.

    >>> wishes = [Wish(key, key, "state", "state") for key in ("b", "a")] + [Wish("c", "c", "state_2", "state_2")]
    >>> distinct(wishes, "a doctest")  # and warns that b is state_3
    {'a': 'state', 'c': 'state_2', 'b': 'state_3'}
    """
    used = {_folded(name) for name in taken}
    names, late = {}, []
    ordered = sorted(wishes, key=lambda wish: (not wish.is_plain, wish.owner))
    for wish in ordered:
        if used.isdisjoint(wish.places(wish.name)):
            names[wish.owner] = wish.name
            used |= wish.places(wish.name)
        else:
            late.append(wish)
    for wish in late:
        free = (name for name in _numbered(wish.name) if used.isdisjoint(wish.places(name)))
        names[wish.owner] = next(free)
        used |= wish.places(names[wish.owner])
    changed = [f"{wish.told} is {names[wish.owner]!r}" for wish in ordered if names[wish.owner] != wish.spelled]
    if changed:
        warn(f"names that are taken in {what}, or can't be spelled there, are changed: {', '.join(changed)}")
    return names


def _plain(part: str) -> str:
    return _NOT_PLAIN.sub("_", part) or "_"


def _numbered(name: str) -> Iterator[str]:
    return (f"{name}_{number}" for number in itertools.count(2))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
