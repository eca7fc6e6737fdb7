"""The ledger: what is known of each environment's episode in progress, for the properties of its recording.

It is kept on the environment's thread, where the user can add to an episode until it is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.events import Ends, Event
from torchrl_rerun.keeping import PROPERTIES, Episode, Value


class Over(NamedTuple):
    """An episode that is over.

    Attributes:
        row: which of the recorded environments' it was.
        episode: what it came to.
        before: all its rows are at frames before this one.
    """

    row: int
    episode: Episode
    before: int


class Ledger:
    """Follows the episodes of the recorded environments.

    An episode is over when its environment is reset, so that annotations can be made after its last step.

    Args:
        envs: the environments' indices.
    """

    def __init__(self, envs: Sequence[int]) -> None:
        count = len(envs)
        self._envs = list(envs)
        self._is_open = np.zeros(count, np.bool_)
        self._all_open = False
        self._terminated = np.zeros(count, np.bool_)
        self._truncated = np.zeros(count, np.bool_)
        self._number = np.zeros(count, np.int64)
        self._first_step = np.zeros(count, np.int64)
        self._began = np.zeros(count, np.int64)
        self._length = np.zeros(count, np.int64)
        self._return: npt.NDArray[np.float64] | None = None
        self._seeds: list[int | None] = [None] * count
        self._annotations: list[dict[str, Value | list[Value]]] = [{} for _ in envs]

    def reset(self, event: Event, episodes: npt.NDArray[np.int64], seeds: Sequence[int | None]) -> list[Over]:
        """Environments were reset. Returns the episodes that are over with it.

        Args:
            event: what happened.
            episodes: the numbers of the episodes that begin, one for each of these environments.
            seeds: the environments' seeds, one for each of the recorded ones; empty: they aren't known.
        """
        at = self._at(event)
        over = [*self._close(at, event.frame)]
        self._begin(at, event, episodes)
        self._terminated[at] = self._truncated[at] = False
        for row in at:
            self._seeds[row] = seeds[row] if seeds else None
        return over

    def step(
        self, event: Event, episodes: npt.NDArray[np.int64], rewards: npt.NDArray[Any] | None, ends: Ends | None
    ) -> None:
        """Environments were stepped.

        Args:
            event: what happened.
            episodes: the numbers of the episodes that these environments are in.
            rewards: ``[envs, ...]`` of all that are recorded; None: there are none.
            ends: whose episodes ended.
        """
        at = slice(None) if event.rows is None else event.rows
        if not self._all_open:
            self._go_on(self._at(event), event, episodes)
        self._length[at] += 1
        if rewards is not None:
            if self._return is None:
                self._return = np.zeros(rewards.shape)
            self._return[at] += rewards[at]
        if ends is not None:
            self._end(at, ends)

    def end(self, ends: Ends) -> None:
        """Episodes have ended; also those of which it was said already."""
        self._end(np.flatnonzero(self._is_open), ends)

    def forget_returns(self) -> None:
        """Rewards were lost: the returns of the episodes in progress aren't known any more."""
        if self._return is not None:
            self._return[:] = np.nan

    def annotate(self, rows: Sequence[int], values: Mapping[str, Value | list[Value]]) -> None:
        """Add to what is known of the episodes that environments are in.

        Raises:
            ValueError: an environment is in no episode.
        """
        for row in rows:
            if not self._is_open[row]:
                raise ValueError(
                    f"environment {self._envs[row]} is in no episode: annotate after its reset, and before the dump() or "
                    "close() that follows the episode's end"
                )
            self._annotations[row].update(values)

    def ended(self, before: int) -> list[Over]:
        """Those that have ended already, though their environments haven't been reset; they are over now.

        Args:
            before: the number of the next frame.
        """
        return [*self._close(np.flatnonzero(self._terminated | self._truncated), before)]

    def close(self, before: int) -> list[Over]:
        """All that were in progress; they are over now.

        Args:
            before: the number of the next frame.
        """
        return [*self._close(np.arange(len(self._envs)), before)]

    def _begin(self, at: npt.NDArray[np.intp], event: Event, episodes: npt.NDArray[np.int64]) -> None:
        self._is_open[at] = True
        self._all_open = bool(self._is_open.all())
        self._number[at] = episodes
        self._first_step[at], self._began[at], self._length[at] = event.step - event.is_step, event.log_time, 0
        if self._return is not None:
            self._return[at] = 0.0

    def _go_on(self, at: npt.NDArray[np.intp], event: Event, episodes: npt.NDArray[np.int64]) -> None:
        """Episodes whose recording was closed go on, in another one; what comes after an episode's end belongs to none."""
        goes_on = ~(self._is_open | self._terminated | self._truncated)[at]
        if goes_on.any():
            self._begin(at[goes_on], event, episodes[goes_on])

    def _at(self, event: Event) -> npt.NDArray[np.intp]:
        return np.arange(len(self._envs)) if event.rows is None else event.rows

    def _end(self, at: slice | npt.NDArray[np.intp], ends: Ends) -> None:
        self._terminated[at] |= ends.terminated[at]
        self._truncated[at] |= ends.truncated[at]

    def _close(self, rows: npt.NDArray[np.intp], before: int) -> Iterator[Over]:
        for row in rows[self._is_open[rows]]:
            self._is_open[row] = self._all_open = False
            annotations, self._annotations[row] = self._annotations[row], {}
            has_ended = self._terminated[row] or self._truncated[row]
            episode = Episode(
                env=self._envs[row],
                episode=int(self._number[row]),
                episode_return=self._return_of(row) if self._length[row] else 0.0,
                length=int(self._length[row]),
                terminated=bool(self._terminated[row]),
                truncated=bool(self._truncated[row]),
                interrupted=not has_ended,
                first_step=int(self._first_step[row]),
                start_time=datetime.fromtimestamp(self._began[row] / 1e9, UTC),
                seed=self._seeds[row],
                annotations=annotations,
            )
            yield Over(int(row), episode, before)

    def _return_of(self, row: int) -> float:
        return np.nan if self._return is None else float(self._return[row].mean())


def checked_annotations(values: Mapping[str, Any]) -> dict[str, Value | list[Value]]:
    """What the user says of an episode, if it can be a property of a recording.

    Raises:
        ValueError: a name is taken.
        TypeError: a value is no number, truth value or string, nor a list of such.

    >>> checked_annotations({"success": np.bool_(True), "distances": np.array([0.5, 2.0])})
    {'success': True, 'distances': [0.5, 2.0]}
    """
    out: dict[str, Value | list[Value]] = {}
    for name, value in values.items():
        if name in PROPERTIES:
            raise ValueError(f"{name!r} is what the recorder itself says of an episode; choose another name")
        plain = value.tolist() if hasattr(value, "tolist") else value  # of NumPy or torch
        several = list(plain) if isinstance(plain, list | tuple) else [plain]
        if not several or not isinstance(several[0], bool | int | float | str) or len(set(map(type, several))) > 1:
            raise TypeError(f"{name}={value!r}: pass a number, a truth value, a string, or a list of such of one type")
        out[name] = several if isinstance(plain, list | tuple) else plain
    return out
