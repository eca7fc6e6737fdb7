"""The steps of an episode for other formats: which keys and steps are exported, and which are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import as_key, name_of
from torchrl_rerun.kinds.schema import Moment, TimedStream
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.loaded_episode import LoadedEpisode
from torchrl_rerun.reading.transitions import Transitions, transitions
from torchrl_rerun.rrd.frame_codes import episode_span

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Called with items and their number; yields the items one by one."""


def without_progress(items: Iterable[Any], _: int) -> Iterable[Any]:
    """Return the items: a progress bar that shows nothing."""
    return items


def name_episode(episode: LoadedEpisode) -> str:
    """Return how messages name an episode."""
    known, place = episode.properties, episode.history.recording.parts[-1].file
    return f"episode {known.episode} of environment {known.env} in {place}"


Unheld = Callable[[Stream, Moment], str]
"""Returns why a format can't hold a key, in words that follow the key's name; empty if the format can."""


def chosen(episode: LoadedEpisode, keys: Sequence[NestedKey] | None, unheld: Unheld) -> list[TimedStream]:
    """Return how the exported keys of an episode are recorded.

    Args:
        episode: the episode.
        keys: the keys. A nested key is a tuple or, as on the command line, its parts joined by ``/``. Default: all keys that
            the format holds but pictures, non-tensor data, keys that vary in shape, and the returns that the recorder
            worked out.
        unheld: returns why the format can't hold a key.

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
            if why := _unreadable(known[each][0]) or unheld(*known[each]):
                raise ValueError(f"{name_of(each)} {why}: leave it out")
        found.update({each: known[each] for each in meant})
    return list(found.values())


def _is_usual(stream: Stream) -> bool:
    return stream.is_plain and not (stream.is_picture or stream.reward_key or _unreadable(stream))


def _unreadable(stream: Stream) -> str | None:
    """Return why a key can't be read here, as the end of a sentence; None if it can."""
    try:
        stream.kind.check_readable(stream)
    except ValueError:
        return f"is of kind {stream.kind.name!r}, whose class is not imported here"
    return None


def left_out(
    episodes: Sequence[LoadedEpisode], unheld: Unheld, is_usual: Callable[[Stream], bool] = _is_usual
) -> tuple[list[str], list[str]]:
    """Return the keys that are left out if none are given.

    Args:
        episodes: the episodes, of which the first one tells what is recorded.
        unheld: returns why the format can't hold a key.
        is_usual: returns whether a key that the format holds is exported by default.

    Returns:
        The keys that can be asked for, as the command line names them, and sentences that say why others can't.
    """
    schema = episodes[0].schema
    is_elsewhere = any(episode.properties.env != schema.envs[0] for episode in episodes)
    can_be_named, others = [], []
    for stream, moment in schema.described:
        if stream.reward_key:
            continue
        if why := _unreadable(stream) or unheld(stream, moment):
            others.append(f"{name_of(stream.key)} {why}")
        elif stream.shared and is_elsewhere and not is_usual(stream):
            others.append(
                f"{name_of(stream.key)} stands for all environments: --key can name it with --env {schema.envs[0]}"
            )
        elif not is_usual(stream):
            can_be_named.append("/".join(stream.key))
    return can_be_named, others


class LeftOut:
    """Counts the steps that an export leaves out.

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
            self._first = self._first or name_episode(episode)
            self._steps += count
            self._episodes += 1
            self._lost += not kept

    def __bool__(self) -> bool:
        return self._steps > 0

    def __str__(self) -> str:
        """Return how many steps of which episodes are left out, and why."""
        steps = "1 step is" if self._steps == 1 else f"{self._steps:,} steps are"
        where = self._first if self._episodes == 1 else f"{self._first} and {self._episodes - 1:,} more"
        whole = f" ({self._lost:,} of these episodes altogether)" if self._lost and self._episodes > 1 else ""
        return f"{where}: {steps} left out{whole}, {self._why}"

    def say(self) -> None:
        """Warn of the steps, if there are any."""
        if self:
            warn(str(self))

    def nothing(self) -> ValueError:
        """Return the error that there are no steps to export, and why."""
        return ValueError(f"there are no steps to export{f': {self}' if self else ''}")


def described(
    episodes: Iterable[LoadedEpisode], keys: Sequence[NestedKey] | None, unheld: Unheld
) -> Iterator[tuple[LoadedEpisode, list[TimedStream]]]:
    """Yield each episode with how its exported keys are recorded, in one order.

    Args:
        episodes: the episodes.
        keys: the keys, see :func:`chosen`.
        unheld: returns why the format can't hold a key.

    Raises:
        KeyError: a key isn't recorded.
        ValueError: the keys aren't recorded in the same way in all episodes, or a value that stands for all environments
            is wanted from another environment than the first.
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
                    f"{name_of(stream.key)} stands for all environments, and isn't recorded of {name_episode(episode)}: leave "
                    "that key out, or the environment"
                )
        yield episode, found


def check_same(episode: LoadedEpisode, found: Sequence[TimedStream], first: Sequence[TimedStream]) -> None:
    """Refuse an episode whose keys are recorded in another way than those of the first one.

    Args:
        episode: the episode.
        found: how its keys are recorded.
        first: how the keys of the first episode are recorded.

    Raises:
        ValueError: a key is recorded in another way; names the key.
    """
    said, wanted = ({(each.key, each.dtype, each.shape, moment) for each, moment in all_} for all_ in (found, first))
    if said != wanted:
        key = name_of(min(each[0] for each in said ^ wanted))
        raise ValueError(f"{key} is not recorded in the same way in {name_episode(episode)}: take one run at a time")


def unbroken_transitions(episode: LoadedEpisode, found: Sequence[TimedStream], left_out: LeftOut) -> Transitions:
    """Return the first steps of an episode that follow one another, and at which no key is missing.

    Formats need that which have one row for the observation that a step led to and that the next one leads from.

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
    """Return the values of a key, ``[time, *shape]``: bfloat16 as float32, non-tensor data as objects."""
    values = steps.get(stream.key)
    if isinstance(values, torch.Tensor):
        array: npt.NDArray[Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return array
    objects = np.empty(len(values), object)
    objects[:] = values.tolist()
    return objects
