"""Steps: those of an episode as plain arrays, key by key, for formats that aren't TorchRL's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from tensordict.utils import NestedKey

from torchrl_rerun.chunks import episode_span
from torchrl_rerun.history import Transitions
from torchrl_rerun.reading import LoadedEpisode
from torchrl_rerun.schema import Described
from torchrl_rerun.streams import Stream, name_of
from torchrl_rerun.warning import warn

FLAGS = ("done", "terminated", "truncated")

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""What is gone through, and how many they are; gives them back one by one."""


def unchanged(items: Iterable[Any], _: int) -> Iterable[Any]:
    """What stands for a progress bar where there is none."""
    return items


def told(episode: LoadedEpisode) -> str:
    """Which episode it is, in words."""
    known, place = episode.properties, episode.history.run.parts[-1].contents.file
    return f"episode {known.episode} of environment {known.env} in {place}"


def chosen(episode: LoadedEpisode, keys: Sequence[NestedKey] | None) -> list[Described]:
    """What is recorded of an episode under some keys.

    Args:
        episode: the episode.
        keys: which ones, nested ones as tuples or, as on the command line, joined by ``/``, which stands for all keys that
            are joined so; None: all but pictures, non-tensor data, complex numbers, what varies in shape, and the returns that
            the recorder worked out.

    Raises:
        KeyError: a key isn't recorded.
        ValueError: a key can't be exported.
    """
    described = episode.schema.described
    if keys is None:
        return [each for each in described if each[0].is_plain and not (each[0].is_picture or each[0].sums)]
    known = {stream.key: (stream, moment) for stream, moment in described}
    found = {}
    for key in keys:
        meant = [each for each in known if key in (each, "/".join(each))]
        if not meant:
            raise KeyError(f"{key!r} is not recorded, but {', '.join(map(name_of, known))}")
        for each in meant:
            stream = known[each][0]
            if stream.varies or stream.is_complex:
                what = "varies in shape" if stream.varies else "is complex"
                raise ValueError(f"{name_of(each)} {what}, which no format holds that is exported to: leave it out")
        found.update({each: known[each] for each in meant})
    return list(found.values())


def left_out(episode: LoadedEpisode) -> list[str]:
    """What :func:`chosen` leaves out if no keys are given, as the command line names it."""
    kept = {stream.key for stream, _ in chosen(episode, None)}
    return ["/".join(each.key) for each, _ in episode.schema.described if each.key not in kept and not each.sums]


def described(
    episodes: Iterable[LoadedEpisode], keys: Sequence[NestedKey] | None
) -> Iterator[tuple[LoadedEpisode, list[Described]]]:
    """Each episode, with what is recorded of it under some keys, which has to be the same of all, in one order.

    Raises:
        KeyError: a key isn't recorded.
        ValueError: it isn't the same, or a value that stands for all environments is wanted of another one than the first.
    """
    first = None
    for episode in episodes:
        found = chosen(episode, keys)
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


def whole_steps(episode: LoadedEpisode, found: Sequence[Described], *, follow: bool) -> TensorDict:
    """The steps of an episode at which no key is missing, for formats that have no masks.

    Args:
        episode: the episode.
        found: the keys.
        follow: whether each step has to follow the one before it, see :func:`unbroken_transitions`.
    """
    span = episode_span(episode.properties.episode)
    at = unbroken_transitions(episode, found) if follow else episode.history.transitions(found, span, is_whole=True)
    return episode.history.steps(found, span, at)


def unbroken_transitions(episode: LoadedEpisode, found: Sequence[Described]) -> Transitions:
    """The first steps of an episode that follow one another, and at which no key is missing.

    They are for formats that have one row for what a step led to and what the next one leads from. What comes behind a gap is
    left out, with a warning.
    """
    at = episode.history.transitions(found, episode_span(episode.properties.episode), is_whole=True)
    first, *others = at.unbroken() or [at]
    if others:
        warn(
            f"{told(episode)}: {sum(map(len, others)):,} steps are left out, which come behind frames that were not recorded, or "
            "at which a key is missing: here a step has to lead to where the next one begins"
        )
    return first


def array_of(steps: TensorDict, stream: Stream) -> npt.NDArray[Any]:
    """The values of a key, ``[time, *shape]``: bfloat16 as float32, non-tensor data as objects."""
    values = steps.get(stream.key)
    if isinstance(values, torch.Tensor):
        array: npt.NDArray[Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return array
    objects = np.empty(len(values), object)
    objects[:] = values.tolist()
    return objects
