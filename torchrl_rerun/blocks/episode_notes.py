"""Notes on episodes that their rows don't tell, kept where they outlive the process: seeds, annotations, how they ended."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.blocks.memory import Memory, NamedArrays, Record, Region, Shape
from torchrl_rerun.kinds.episode import Episode

NOTES = "notes"
"""The role of the arrays in a black box."""

BYTES = 1024
"""Bytes for the annotations of an episode at first. They are doubled when they don't suffice."""

ENDED = "ended"
"""The name of journals of episodes that are over, and may not have come to the writer's thread yet."""

MANY_ENDED = 256
"""Records after which another journal is begun, if no record of the one before is needed any more."""

_NO_SEED = np.iinfo(np.int64).min


class EpisodeNotes:
    """Notes on the episode of each environment that is in progress, and on those that are over and wait.

    For each environment, there is room for two episodes, one after the other. For the annotations of each there are two places,
    which take turns: the annotations change from those before to others by one number (``said``), which tells place and size.

    Args:
        envs: number of environments.
        memory: where the notes are kept.
    """

    def __init__(self, envs: int, memory: Memory) -> None:
        self._envs = envs
        self._memory = memory
        self._region: Region | None = None
        self._bytes = BYTES
        self._journals = [memory.journal(ENDED) for _ in range(2)]
        self._in_journal = 0  # records in the first of them
        self._ended = self._in_other = 0  # how many episodes were over, and how many when the other journal was left

    def begin(self, at: npt.NDArray[np.intp], episodes: npt.NDArray[np.int64], seeds: Sequence[int | None]) -> None:
        """Note the beginning of episodes.

        Args:
            at: their environments.
            episodes: their numbers.
            seeds: the seed of each environment, of those with no beginning too.
        """
        if not self._memory.is_kept:
            return
        arrays = self._arrays()
        turn = episodes % 2
        arrays["said"][at, turn] = 0
        arrays["seeds"][at, turn] = [_NO_SEED if (seed := seeds[env]) is None else seed for env in at.tolist()]
        arrays["episodes"][at, turn] = episodes

    def annotate(self, env: int, episode: int, annotations: Mapping[str, Any]) -> None:
        """Note the annotations of an episode in progress.

        Args:
            env: its environment.
            episode: its number.
            annotations: all of its annotations.
        """
        if not self._memory.is_kept:
            return
        said = json.dumps(annotations).encode()
        while len(said) > self._bytes:
            self._grow(self._envs, 2 * self._bytes)
        arrays, turn = self._arrays(), episode % 2
        place = 1 - int(arrays["said"][env, turn]) % 2
        arrays["annotations"][env, turn, place, : len(said)] = np.frombuffer(said, np.uint8)
        arrays["said"][env, turn] = 2 * len(said) + place

    def end(self, episode: Episode, waiting: int, *, is_within_frame: bool) -> None:
        """Note that an episode is over.

        Args:
            episode: its properties.
            waiting: how many of those that are over haven't come to the writer's thread.
            is_within_frame: whether the frame by which it is over, and perhaps those before, are being copied.
        """
        if not self._memory.is_kept:
            return
        if self._in_journal >= MANY_ENDED and self._in_other <= self._ended - waiting:
            self._journals.reverse()
            self._journals[0].clear()
            self._in_journal, self._in_other = 0, self._ended
        after = self._memory.moment - (not is_within_frame)
        self._journals[0].append([Record({"after": after, "episode": episode.to_json()}, {})])
        self._in_journal += 1
        self._ended += 1

    def grow(self, envs: int) -> None:
        """Make room for more environments."""
        self._grow(envs, self._bytes)

    def _grow(self, envs: int, size: int) -> None:
        self._envs, self._bytes = envs, size
        before = self._region
        if before is not None:
            self._region = self._allocated(before.arrays)
            before.free()

    def _arrays(self) -> NamedArrays:
        if self._region is None:
            self._region = self._allocated({})
        return self._region.arrays

    def _allocated(self, before: NamedArrays) -> Region:
        """Return memory for the notes, with those before."""

        def fill(arrays: NamedArrays) -> None:
            arrays["episodes"][:] = -1
            for name, old in before.items():
                arrays[name][tuple(map(slice, old.shape))] = old

        integers = Shape(np.dtype(np.int64), (self._envs, 2))
        shapes = dict.fromkeys(("episodes", "seeds", "said"), integers)  # in the order in which others copy them
        shapes["annotations"] = Shape(np.dtype(np.uint8), (self._envs, 2, 2, self._bytes))
        return self._memory.allocate(shapes, {"role": NOTES}, fill)


def noted(arrays: NamedArrays, env: int, episode: int) -> dict[str, Any]:
    """Return what was noted of an episode: fields of its properties.

    Args:
        arrays: the notes.
        env: its environment.
        episode: its number.
    """
    turn = episode % 2
    if env >= len(arrays["episodes"]) or arrays["episodes"][env, turn] != episode:
        return {}
    seed, (size, place) = int(arrays["seeds"][env, turn]), divmod(int(arrays["said"][env, turn]), 2)
    said = {}
    with contextlib.suppress(ValueError):  # its owner has annotated the episode twice while it was read
        said = json.loads(arrays["annotations"][env, turn, place, :size].tobytes() or b"{}")
    return {"annotations": said} | ({} if seed == _NO_SEED else {"seed": seed})


def ended(records: Iterable[Record], moment: int) -> Iterator[Episode]:
    """Yield the episodes that are over.

    Args:
        records: the records of a journal of these.
        moment: the number of frames that were copied whole.
    """
    for record in records:
        if record.about["after"] < moment:
            yield Episode.from_json(record.about["episode"])
