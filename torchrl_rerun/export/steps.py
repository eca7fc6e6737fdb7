"""Steps: those of an episode as plain arrays, key by key, for formats that aren't TorchRL's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.schema import Described, Moment
from torchrl_rerun.kinds.streams import Stream, as_key, name_of
from torchrl_rerun.reading.episodes import LoadedEpisode
from torchrl_rerun.reading.transitions import Transitions, transitions
from torchrl_rerun.rrd.frame_codes import episode_span

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""What is gone through, and how many they are; gives them back one by one."""


def unchanged(items: Iterable[Any], _: int) -> Iterable[Any]:
    """What stands for a progress bar where there is none."""
    return items


def told(episode: LoadedEpisode) -> str:
    """Which episode it is, in words."""
    known, place = episode.properties, episode.history.recording.parts[-1].file
    return f"episode {known.episode} of environment {known.env} in {place}"


Unheld = Callable[[Stream, Moment], str]
"""Why a format can't hold a key, in words that follow the key's name; empty: the format can."""


def chosen(episode: LoadedEpisode, keys: Sequence[NestedKey] | None, unheld: Unheld) -> list[Described]:
    """What is recorded of an episode under some keys.

    Args:
        episode: the episode.
        keys: which ones, nested ones as tuples or, as on the command line, joined by ``/``, which stands for all keys that
            are joined so; None: all that the format holds but pictures, non-tensor data, what varies in shape, and the returns
            that the recorder worked out.
        unheld: why the format can't hold a key.

    Raises:
        KeyError: a key isn't recorded.
        TypeError: ``keys`` is a string instead of a list.
        ValueError: the format can't hold a key.
    """
    described = episode.schema.described
    if keys is None:
        return [(stream, moment) for stream, moment in described if _is_usual(stream) and not unheld(stream, moment)]
    if isinstance(keys, str):
        raise TypeError(f"keys={keys!r}: pass a list of keys, even of one: [{keys!r}]")
    known = {stream.key: (stream, moment) for stream, moment in described}
    found = {}
    for key in keys:
        meant = [each for each in known if each == as_key(key) or "/".join(each) == key]
        if not meant:
            raise KeyError(f"{key!r} is not recorded, but {', '.join(map(name_of, known))}")
        for each in meant:
            if why := unheld(*known[each]):
                raise ValueError(f"{name_of(each)} {why}: leave it out")
        found.update({each: known[each] for each in meant})
    return list(found.values())


def _is_usual(stream: Stream) -> bool:
    return stream.is_plain and not (stream.is_picture or stream.sums)


def left_out(
    episodes: Sequence[LoadedEpisode], unheld: Unheld, is_usual: Callable[[Stream], bool] = _is_usual
) -> tuple[list[str], list[str]]:
    """Return what is left out if no keys are given: the keys that can be named, as the command line names them, and why others can't.

    Args:
        episodes: the episodes, of which the first one says what is recorded.
        unheld: why the format can't hold a key.
        is_usual: whether a key that the format holds is exported unasked.
    """
    schema = episodes[0].schema
    is_elsewhere = any(episode.properties.env != schema.envs[0] for episode in episodes)
    can_be_named, others = [], []
    for stream, moment in schema.described:
        if stream.sums:
            continue
        if why := unheld(stream, moment):
            others.append(f"{name_of(stream.key)} {why}")
        elif stream.shared and is_elsewhere and not is_usual(stream):
            others.append(
                f"{name_of(stream.key)} stands for all environments: --key can name it with --env {schema.envs[0]}"
            )
        elif not is_usual(stream):
            can_be_named.append("/".join(stream.key))
    return can_be_named, others


class LeftOut:
    """The steps that an export leaves out.

    Args:
        why: the possible reasons, in words that follow "are left out, ".
    """

    def __init__(self, why: str) -> None:
        self._why = why
        self._steps = 0
        self._episodes = 0
        self._lost = 0
        self._first = ""

    def add(self, episode: LoadedEpisode, kept: int) -> None:
        """Count the steps of an episode that are not exported.

        Args:
            episode: the episode.
            kept: how many of its steps are exported.
        """
        count = episode.properties.length - kept
        if count > 0:
            self._first = self._first or told(episode)
            self._steps += count
            self._episodes += 1
            self._lost += not kept

    def __bool__(self) -> bool:
        return self._steps > 0

    def __str__(self) -> str:
        """How many there are, and of which episodes."""
        steps = "1 step is" if self._steps == 1 else f"{self._steps:,} steps are"
        where = self._first if self._episodes == 1 else f"{self._first} and {self._episodes - 1:,} more"
        whole = f" ({self._lost:,} of these episodes altogether)" if self._lost and self._episodes > 1 else ""
        return f"{where}: {steps} left out{whole}, {self._why}"

    def say(self) -> None:
        """Warn, if there are any."""
        if self:
            warn(str(self))

    def nothing(self) -> ValueError:
        """Return the error that there are no steps to export, and why."""
        return ValueError(f"there are no steps to export{f': {self}' if self else ''}")


def described(
    episodes: Iterable[LoadedEpisode], keys: Sequence[NestedKey] | None, unheld: Unheld
) -> Iterator[tuple[LoadedEpisode, list[Described]]]:
    """Each episode, with what is recorded of it under some keys, which has to be the same of all, in one order.

    Raises:
        KeyError: a key isn't recorded.
        ValueError: it isn't the same, or a value that stands for all environments is wanted of another one than the first.
    """
    first = None
    for episode in episodes:
        found = chosen(episode, keys, unheld)
        first = found if first is None else first
        check_same(episode, found, first)
        by_key = {each.key: (each, moment) for each, moment in found}
        found = [by_key[each.key] for each, _ in first]
        for stream, _ in found:
            if stream.shared and episode.properties.env != episode.schema.envs[0]:
                raise ValueError(
                    f"{name_of(stream.key)} stands for all environments, and isn't recorded of {told(episode)}: leave "
                    "that key out, or the environment"
                )
        yield episode, found


def check_same(episode: LoadedEpisode, found: Sequence[Described], first: Sequence[Described]) -> None:
    """Refuse what can't be together.

    Args:
        episode: an episode.
        found: what is recorded of it.
        first: what is recorded of the first one.

    Raises:
        ValueError: it isn't the same; says which key isn't.
    """
    said, wanted = ({(each.key, each.dtype, each.shape, moment) for each, moment in all_} for all_ in (found, first))
    if said != wanted:
        key = name_of(min(each[0] for each in said ^ wanted))
        raise ValueError(f"{key} is not recorded in the same way in {told(episode)}: take one run at a time")


def unbroken_transitions(episode: LoadedEpisode, found: Sequence[Described], left_out: LeftOut) -> Transitions:
    """Return the first steps of an episode that follow one another, and at which no key is missing.

    They are for formats that have one row for what a step led to and what the next one leads from.

    Args:
        episode: the episode.
        found: the keys.
        left_out: counts the other steps.
    """
    at = transitions(episode.history, found, episode_span(episode.properties.episode), is_whole=True)
    first, *_ = at.unbroken() or [at]
    left_out.add(episode, len(first))
    return first


BROKEN = (
    "since frames were not recorded (skip, triggers, switch()) or a key is missing there, or they come behind such a gap: here "
    "each step has to lead to where the next one begins, with all keys. Leave out a key that is missing at times"
)
"""Why :func:`unbroken_transitions` leaves steps out."""


def array_of(steps: TensorDict, stream: Stream) -> npt.NDArray[Any]:
    """The values of a key, ``[time, *shape]``: bfloat16 as float32, non-tensor data as objects."""
    values = steps.get(stream.key)
    if isinstance(values, torch.Tensor):
        array: npt.NDArray[Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return array
    objects = np.empty(len(values), object)
    objects[:] = values.tolist()
    return objects
