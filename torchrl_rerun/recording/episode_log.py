"""Episode log: return, length, ends and annotations of each environment's episode in progress.

The log is kept on the environment's thread, on which the user can annotate an episode until it is over.
"""

from __future__ import annotations

import collections
import operator
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrl_rerun.blocks.episode_notes import EpisodeNotes
from torchrl_rerun.blocks.events import EndedEpisode, EnvIndices, Event
from torchrl_rerun.blocks.memory import Memory
from torchrl_rerun.blocks.returns import with_rewards
from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.endings import Ends
from torchrl_rerun.kinds.episode import EPISODE_PROPERTIES, Episode, Value, returns_of


class EpisodeLog:
    """Follows the episodes of the recorded environments, on the environment's thread.

    An episode is over when its environment is reset, so that annotations can be made after its last step.

    Ctrl-C may come at any point of :meth:`reset` and :meth:`step`: called again with the same event they do the rest. An
    episode may then be over twice, of which the first time counts.

    Args:
        envs: the environments' indices.
        memory: where what rows don't tell of an episode is kept, too.

    Attributes:
        ended: the episodes that are over, in order. The writer's thread takes them.
    """

    def __init__(self, envs: Sequence[int], memory: Memory) -> None:
        count = len(envs)
        self._notes = EpisodeNotes(count, memory)
        self._envs = list(envs)
        self.ended: collections.deque[EndedEpisode] = collections.deque()
        self._is_open = np.zeros(count, np.bool_)
        self._all_open = False
        self._terminated = np.zeros(count, np.bool_)
        self._truncated = np.zeros(count, np.bool_)
        self._number = np.full(count, -1, np.int64)
        self._first_step = np.zeros(count, np.int64)
        self._began = np.zeros(count, np.int64)
        self._totals = _EpisodeTotals(None, np.zeros(count, np.int64), None)
        self._seeds: list[int | None] = [None] * count
        self._annotations: list[dict[str, Value | list[Value]]] = [{} for _ in envs]
        self._types: dict[str, type] = {}  # of annotations, by their names

    def reset(self, event: Event, episodes: npt.NDArray[np.int64], seeds: Sequence[int | None]) -> None:
        """End the episodes of environments that were reset, and begin others.

        Args:
            event: the reset.
            episodes: the numbers of the episodes that begin, one for each of these environments.
            seeds: the seed of each recorded environment; empty if none is known.
        """
        at = self._at(event.envs_begun)
        self._close(at[self._number[at] != episodes], event.frame, is_within_frame=True)
        self._terminated[at] = self._truncated[at] = False
        for env in at:
            self._seeds[env] = seeds[env] if seeds else None
        self._begin(at, event, episodes)

    def step(
        self, event: Event, episodes: npt.NDArray[np.int64], rewards: npt.NDArray[Any] | None, ends: Ends | None
    ) -> None:
        """Count a step.

        Args:
            event: the step.
            episodes: the numbers of the episodes that these environments are in.
            rewards: rewards of all recorded environments, ``[envs, ...]``; None: there are none.
            ends: which episodes ended with it; None: none did.
        """
        before = self._totals
        if before.event is event:
            return
        if not self._all_open:
            self._go_on(self._at(event.envs), event, episodes)
        if ends is not None:
            self._end(slice(None) if event.envs is None else event.envs, ends)
        if event.envs is None:
            length = before.length + 1
        else:
            length = before.length.copy()
            length[event.envs] += 1
        returns = before.returns
        if rewards is not None:
            returns = with_rewards(np.zeros(rewards.shape) if returns is None else returns, event.envs, rewards)
        self._totals = _EpisodeTotals(event, length, returns)

    def correct_ends(self, event: Event, ends: Ends) -> None:
        """Replace the ends of a step: transforms behind the recorder have changed its flags.

        Args:
            event: the step.
            ends: which episodes ended, of all recorded environments.
        """
        at = self._at(event.envs)
        at = at[self._is_open[at]]
        self._terminated[at], self._truncated[at] = ends.terminated[at], ends.truncated[at]

    def grow(self, envs: Sequence[int]) -> None:
        """Follow more environments, which haven't been reset.

        Args:
            envs: the indices of all environments.
        """
        more = len(envs) - len(self._envs)
        nothing, zeros = np.zeros(more, np.bool_), np.zeros(more, np.int64)
        self._envs = list(envs)
        self._is_open, self._terminated, self._truncated = (
            np.append(each, nothing) for each in (self._is_open, self._terminated, self._truncated)
        )
        self._number = np.append(self._number, np.full(more, -1))
        self._first_step, self._began = np.append(self._first_step, zeros), np.append(self._began, zeros)
        returns = self._totals.returns
        if returns is not None:
            returns = np.concatenate([returns, np.zeros((more, *returns.shape[1:]))])
        self._totals = _EpisodeTotals(self._totals.event, np.append(self._totals.length, zeros), returns)
        self._seeds += [None] * more
        self._notes.grow(len(envs))
        self._annotations += [{} for _ in range(more)]
        self._all_open = False

    def forget_returns(self) -> None:
        """Make the returns of the episodes in progress NaN: rewards were lost."""
        if self._totals.returns is not None:
            self._totals.returns[:] = np.nan

    def annotate(self, env: int | None, values: Mapping[str, Value | list[Value]]) -> None:
        """Add properties to the episode that an environment is in.

        Args:
            env: environment index; None: the only one.
            values: the properties by their names.

        Raises:
            TypeError: ``env`` is no index.
            IndexError: the environment isn't recorded.
            ValueError: there are several and none is named, or it is in no episode.
        """
        try:
            env = None if env is None else _as_index(env)
        except TypeError:
            raise TypeError(
                f"env={env!r} is no environment index; annotations are passed by name: annotate(success=True)"
            ) from None
        if env is None and len(self._envs) > 1:
            raise ValueError(f"env is missing: {len(self._envs)} environments are recorded")
        if env is not None and env not in self._envs:
            raise IndexError(f"env={env} is not recorded; recorded are {', '.join(map(str, self._envs))}")
        position = 0 if env is None else self._envs.index(env)
        if not self._is_open[position]:
            raise ValueError(
                f"environment {self._envs[position]} is in no episode: annotate after its reset, and before the dump() or "
                "close() that follows the episode's end"
            )
        self._annotations[position].update(values)
        self._notes.annotate(position, int(self._number[position]), self._annotations[position])
        for name, value in values.items():
            first = self._types.setdefault(name, type(value))
            if not isinstance(value, first):
                warn(
                    f"{name} was of type {first.__name__} before and is now {value!r}: catalogs leave such episodes out"
                )

    def close_ended(self, before: int) -> None:
        """Close the episodes that have ended, though their environments haven't been reset.

        Args:
            before: the number of the next frame.
        """
        self._close(np.flatnonzero(self._terminated | self._truncated), before)

    def close(self, before: int) -> None:
        """Close all episodes in progress.

        Args:
            before: the number of the next frame.
        """
        self._close(np.arange(len(self._envs)), before)

    def _begin(self, at: npt.NDArray[np.intp], event: Event, episodes: npt.NDArray[np.int64]) -> None:
        self._first_step[at], self._began[at] = event.step - event.is_step, event.log_time
        self._totals.length[at] = 0
        if self._totals.returns is not None:
            self._totals.returns[at] = 0.0
        self._number[at] = episodes
        self._notes.begin(at, episodes, self._seeds)
        self._is_open[at] = True
        self._all_open = bool(self._is_open.all())

    def _go_on(self, at: npt.NDArray[np.intp], event: Event, episodes: npt.NDArray[np.int64]) -> None:
        """Go on with episodes whose recording was closed, in another one. Steps after an episode's end belong to none."""
        goes_on = ~(self._is_open | self._terminated | self._truncated)[at]
        if goes_on.any():
            self._begin(at[goes_on], event, episodes[goes_on])

    def _at(self, envs: EnvIndices) -> npt.NDArray[np.intp]:
        return np.arange(len(self._envs)) if envs is None else envs

    def _end(self, at: slice | npt.NDArray[np.intp], ends: Ends) -> None:
        self._terminated[at] |= ends.terminated[at]
        self._truncated[at] |= ends.truncated[at]

    def _close(self, envs: npt.NDArray[np.intp], before: int, *, is_within_frame: bool = False) -> None:
        since, lengths = time.monotonic(), self._totals.length
        for env in envs[self._is_open[envs]]:
            has_ended = self._terminated[env] or self._truncated[env]
            episode = Episode(
                env=self._envs[env],
                episode=int(self._number[env]),
                episode_return=self._return_of(env) if lengths[env] else 0.0,
                length=int(lengths[env]),
                terminated=bool(self._terminated[env]),
                truncated=bool(self._truncated[env]),
                interrupted=not has_ended,
                first_step=int(self._first_step[env]),
                start_time=datetime.fromtimestamp(self._began[env] / 1e9, UTC),
                seed=self._seeds[env],
                annotations=self._annotations[env],
            )
            self._notes.end(episode, len(self.ended), is_within_frame=is_within_frame)
            self.ended.append(EndedEpisode(int(env), episode, before, since))
            self._all_open = False
            self._is_open[env] = False
            self._annotations[env] = {}

    def _return_of(self, env: int) -> float:
        returns = self._totals.returns
        return np.nan if returns is None else float(returns_of(returns[env, None])[0])


def _as_index(value: Any) -> int:
    """Return a number of Python's or NumPy's as an index; a truth value is none."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


class _EpisodeTotals(NamedTuple):
    """Length and return of the episodes in progress, replaced in one go: Ctrl-C comes before or after.

    Attributes:
        event: the last step; None: there was none.
        length: their steps, ``[envs]``.
        returns: the sums of their rewards, ``[envs, ...]``; None: there were none.
    """

    event: Event | None
    length: npt.NDArray[np.int64]
    returns: npt.NDArray[np.float64] | None


def checked_annotations(values: Mapping[str, Any]) -> dict[str, Value | list[Value]]:
    """Return annotations as properties of a recording, with numbers as floats.

    Raises:
        ValueError: a name is that of a property which the recorder adds.
        TypeError: a value is no number, truth value or string, nor a list of such, or can't be stored.

    >>> checked_annotations({"success": np.bool_(True), "distances": np.array([0.5, 2.0])})
    {'success': True, 'distances': [0.5, 2.0]}
    """
    out: dict[str, Value | list[Value]] = {}
    for name, value in values.items():
        if name in EPISODE_PROPERTIES:
            raise ValueError(f"{name!r} is what the recorder itself says of an episode; choose another name")
        if not name:
            raise ValueError("an annotation must have a name")
        plain = value.tolist() if hasattr(value, "tolist") else value  # of NumPy or torch
        several = list(plain) if isinstance(plain, list | tuple) else [plain]
        # All numbers are of one type: catalogs leave out episodes whose properties are of another one than the first's.
        try:
            several = [
                float(each) if isinstance(each, int) and not isinstance(each, bool) else each for each in several
            ]
            pa.array([name]), pa.array(several if all(isinstance(each, str) for each in several) else [])
        except (OverflowError, UnicodeEncodeError) as error:
            raise TypeError(f"{name}={value!r} can't be stored: {error}") from None
        if not several or not isinstance(several[0], bool | float | str) or len(set(map(type, several))) > 1:
            raise TypeError(f"{name}={value!r}: pass a number, a truth value, a string, or a list of such of one type")
        out[name] = several if isinstance(plain, list | tuple) else several[0]
    return out
