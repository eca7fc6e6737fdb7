"""Rollouts: the steps of all environments of a recording in one tensordict, ``[*batch, time]``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.reading.history import History
from torchrl_rerun.reading.padding import Form, mask_name
from torchrl_rerun.reading.steps import steps
from torchrl_rerun.reading.tensordicts import fit, form_of, give_agents
from torchrl_rerun.rrd.frame_codes import ALL, Span, episode_span
from torchrl_rerun.rrd.runs import FOLDER_OF_WORKER

Chosen = tuple[History, Sequence[int] | None]
"""An environment of a recording, and the numbers of the episodes that are wanted of it; None: all."""


def rollout(chosen: Sequence[Chosen], keys: Sequence[Key] | None) -> TensorDictBase:
    """Return the steps of environments, ``[*batch, time]``.

    Args:
        chosen: the environments. Those of one index and run may be several recordings.
        keys: the keys; None: all but the returns that the recorder worked out.

    Raises:
        ValueError: the environments haven't taken the same number of steps, or there are several recordings.
    """
    environments = _by_environment(chosen)
    if not environments:
        raise ValueError("there are no episodes")
    schemas = [histories[0][0].recording.schema for histories in environments]
    if len({schema.source.batch_size for schema in schemas}) > 1:
        raise ValueError("there are recordings of several batch sizes: load one of them")
    size = schemas[0].source.batch_size
    if math.prod(size) != len(environments):  # some of them, or those of several workers
        size = (len(environments),)
    first = _steps_of(environments[0], keys)
    if not size:
        return first
    streams, name = [stream for stream, _ in schemas[0].described], mask_name(schemas[0])
    out = _Batch(first, streams, name, len(environments))
    for number, histories in enumerate(environments):
        out.add(number, _steps_of(histories, keys) if number else first)
    found = out.tensordict.reshape(*size, len(first))
    for part in found, found.get("next"):
        give_agents(part, streams)
    return found


def _by_environment(chosen: Sequence[Chosen]) -> list[list[Chosen]]:
    """Return the environments in the order of their indices, and several runs in the order in which they began.

    Which worker of a run began first says nothing.
    """
    found: dict[tuple[Any, ...], list[Chosen]] = {}
    for history, episodes in chosen:
        found.setdefault(_environment_of(history), []).append((history, episodes))
    runs: dict[Any, int] = {}
    times: Counter[tuple[Any, int]] = Counter()  # a run that was begun anew, under the same name, is another one
    order = {}
    for key in found:
        run, env, _ = key
        order[key] = runs.setdefault((run, times[run, env]), len(runs)), env
        times[run, env] += 1
    return [found[key] for key in sorted(found, key=order.__getitem__)]


def _environment_of(history: History) -> tuple[Any, int, int | None]:
    """Return what tells an environment from others: its run, its index, and its recording unless that is of an episode.

    Several workers may have recorded one run.
    """
    recording = history.recording
    part = recording.parts[0]
    if recording.schema.split == "run":
        return part.recording_id, history.env, id(recording)
    folder = part.file.parent
    folder = folder.parent if FOLDER_OF_WORKER.fullmatch(folder.name) else folder
    return folder, history.env, None if recording.schema.split == "episode" else id(recording)


def _steps_of(histories: Sequence[Chosen], keys: Sequence[Key] | None) -> TensorDict:
    """Return the steps of one environment, whose episodes may be recordings of their own."""
    found: list[TensorDict] = []
    for history, episodes in histories:
        wanted = history.described(keys)
        spans: Iterable[Span] = [ALL] if episodes is None else map(episode_span, episodes)
        found += [steps(history, wanted, span) for span in spans]
    if len(found) == 1:
        return found[0]
    schema = histories[0][0].recording.schema
    streams, name, form = [stream for stream, _ in schema.described], mask_name(schema), Form()
    for each in found:
        form |= form_of(each, streams, name)
    return torch.cat([fit(each, streams, name, form) for each in found], 0)


class _Batch:
    """The steps of environments, copied into one tensordict one after the other.

    ``torch.stack`` needs twice the memory, and the time to get it.

    Args:
        first: the steps of the first environment.
        streams: what is recorded.
        name: below which masks stand.
        count: how many environments there are.
    """

    def __init__(self, first: TensorDict, streams: Sequence[Stream], name: str, count: int) -> None:
        self._first, self._streams, self._name, self._count = first, streams, name, count
        objects = [key for stream in streams if stream.dtype == "object" for key in _twice(stream.key)]
        self._objects = [key for key in objects if first.get(key, None) is not None]
        self._non_tensors: list[TensorDictBase] = []
        self._form = form_of(first, streams, name)
        self._tensors = TensorDict(batch_size=[count, len(first)])
        self._grow(first)

    def add(self, number: int, steps: TensorDict) -> None:
        """Add the steps of an environment.

        Raises:
            ValueError: they are more or fewer than those of the first one.
        """
        if len(steps) != len(self._first):
            raise ValueError(
                f"the environments took different numbers of steps ({len(self._first)} and {len(steps)}), which no rollout "
                "holds: take their episodes one by one"
            )
        form = self._form | form_of(steps, self._streams, self._name)
        if form != self._form:  # a key is missing here alone, or its values are larger than those before
            self._form = form
            self._tensors = fit(self._tensors, self._streams, self._name, form)
            self._first = fit(self._first, self._streams, self._name, form)
            self._grow(self._first)
        steps = fit(steps, self._streams, self._name, form)
        for key in self._tensors.keys(include_nested=True, leaves_only=True):  # the first holds what is shared by all
            self._tensors.get(key)[number] = steps.get(key, self._first.get(key))
        non_tensors = self._first.select(*self._objects)
        self._non_tensors.append(non_tensors.update(steps.select(*self._objects, strict=False)))

    def _grow(self, steps: TensorDict) -> None:
        """Allocate the keys that some steps have for the first time."""
        for key in steps.keys(include_nested=True, leaves_only=True):
            if self._tensors.get(key, None) is None:
                size = self._count, *steps.get(key).shape
                # Masks of non-tensor data, which the environments before this one have.
                is_mask = self._name in key[:2]
                self._tensors.set(
                    key, torch.ones(size, dtype=torch.bool) if is_mask else steps.get(key).new_empty(size)
                )

    @property
    def tensordict(self) -> TensorDictBase:
        """The steps of all environments, ``[envs, time]``."""
        return self._tensors.update(torch.stack(self._non_tensors, 0))


def _twice(key: Key) -> tuple[Key, Key]:
    """Return a key at the root and below ``"next"``."""
    return key, ("next", *key)
