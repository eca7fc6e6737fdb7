"""Keep policies: which episodes are kept, decided when they are over."""

from __future__ import annotations

import heapq
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from torchrl_rerun.kinds.episode import EPISODE_PROPERTIES, Episode, EpisodeKey, Predicate
from torchrl_rerun.writing.episode_folder import KeptEpisodes

Rank = tuple[bool, float]
"""Whether an episode ended, which counts first, and a number."""


class Keep(ABC):
    """Decides which episodes are kept. Combine policies with ``|`` (kept by either) and ``&`` (kept by both).

    >>> KeepLast(10) | KeepWorst(5)
    KeepLast(n=10, per_env=False) | KeepWorst(n=5, per_env=False)
    """

    def __or__(self, other: Keep) -> Keep:
        return _Combined(self, other, "|") if isinstance(other, Keep) else NotImplemented

    def __and__(self, other: Keep) -> Keep:
        return _Combined(self, other, "&") if isinstance(other, Keep) else NotImplemented

    def __bool__(self) -> bool:
        raise TypeError("combine policies with | and &, not with `or` and `and`")

    @abstractmethod
    def new_kept(self) -> KeptEpisodes:
        """Return the episodes that are kept, of none so far."""

    @property
    def needs_return(self) -> bool:
        """Whether the decision depends on the episodes' returns."""
        return False


@dataclass(frozen=True)
class _Ranked(Keep):
    later_wins: ClassVar[bool] = False
    """Whether of episodes of one rank the later are kept, not the earlier."""

    n: int
    per_env: bool = False
    where: Predicate | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1:
            raise ValueError(f"{type(self).__name__}({self.n!r}): pass how many episodes to keep, 1 or more")
        if self.where is not None and not callable(self.where):
            raise TypeError(f"where={self.where!r}: pass a function of an episode that returns a bool")

    def new_kept(self) -> KeptEpisodes:
        """Return the episodes that are kept, of none so far."""
        return _RankedEpisodes(self)

    @abstractmethod
    def rank(self, episode: Episode) -> Rank | None:
        """Return the rank of an episode: the highest are kept. None: it isn't kept whatever the others are."""


@dataclass(frozen=True)
class KeepLast(_Ranked):
    """Keeps the last ``n`` episodes.

    Args:
        n: number of episodes, at least 1.
        per_env: whether ``n`` is for each environment, not for all together. Default: False.
        where: a function of an :class:`Episode`; only episodes for which it returns True count. Default: all count.

    Raises:
        ValueError: ``n`` is less than 1.
        TypeError: ``where`` can't be called.

    >>> KeepLast(10, where=lambda episode: episode.terminated)  # the last ten that terminated
    KeepLast(n=10, per_env=False)
    """

    later_wins: ClassVar[bool] = True

    def rank(self, episode: Episode) -> Rank | None:
        """Return one rank for all episodes: the order in which they end decides."""
        del episode
        return True, 0.0


class _ByReturn(_Ranked):
    @property
    def needs_return(self) -> bool:
        """Whether the decision depends on the episodes' returns: True."""
        return True


@dataclass(frozen=True)
class KeepBest(_ByReturn):
    """Keeps the ``n`` episodes of highest return, of equal ones the earlier. Episodes whose return is NaN don't count.

    An interrupted episode has the return of a part, so that episodes that ended come first. Interrupted ones are kept while
    fewer than ``n`` episodes have ended.

    Args:
        n: number of episodes, at least 1.
        per_env: whether ``n`` is for each environment, not for all together. Default: False.
        where: a function of an :class:`Episode`; only episodes for which it returns True count. Default: all count.

    Raises:
        ValueError: ``n`` is less than 1.
        TypeError: ``where`` can't be called.
    """

    def rank(self, episode: Episode) -> Rank | None:
        """Return whether it ended, then its return."""
        return None if math.isnan(episode.episode_return) else (not episode.interrupted, episode.episode_return)


@dataclass(frozen=True)
class KeepWorst(_ByReturn):
    """Keeps the ``n`` episodes of lowest return, of equal ones the earlier. NaN is the lowest return.

    An interrupted episode has the return of a part, so that episodes that ended come first. Interrupted ones are kept while
    fewer than ``n`` episodes have ended.

    Args:
        n: number of episodes, at least 1.
        per_env: whether ``n`` is for each environment, not for all together. Default: False.
        where: a function of an :class:`Episode`; only episodes for which it returns True count. Default: all count.

    Raises:
        ValueError: ``n`` is less than 1.
        TypeError: ``where`` can't be called.
    """

    def rank(self, episode: Episode) -> Rank | None:
        """Return whether it ended, then its return with the other sign."""
        return not episode.interrupted, math.inf if math.isnan(episode.episode_return) else -episode.episode_return


@dataclass(frozen=True)
class KeepIf(Keep):
    """Keeps the episodes that satisfy a condition.

    Args:
        predicate: a function of an :class:`Episode` that returns whether it is kept; called once for each.

    Raises:
        TypeError: ``predicate`` can't be called.

    >>> failed = KeepIf(lambda episode: not episode.get("success", False))
    """

    predicate: Predicate = field(repr=False)

    def __post_init__(self) -> None:
        if not callable(self.predicate):
            raise TypeError(f"KeepIf({self.predicate!r}): pass a function of an episode that returns a bool")

    def new_kept(self) -> KeptEpisodes:
        """Return the episodes that are kept, of none so far."""
        return _MatchingEpisodes(self.predicate)


@dataclass(frozen=True, repr=False)
class _Combined(Keep):
    first: Keep
    second: Keep
    how: str

    def __repr__(self) -> str:
        sides = (f"({side!r})" if isinstance(side, _Combined) else repr(side) for side in (self.first, self.second))
        return f" {self.how} ".join(sides)

    def new_kept(self) -> KeptEpisodes:
        return _CombinedEpisodes(self.first.new_kept(), self.second.new_kept(), any if self.how == "|" else all)

    @property
    def needs_return(self) -> bool:
        return self.first.needs_return or self.second.needs_return


class _Asked:
    """The user's function of an episode. If it fails it counts as true: an episode that isn't kept is lost for good."""

    def __init__(self, predicate: Predicate) -> None:
        self._predicate = predicate
        self._has_failed = False

    def __call__(self, episode: Episode) -> bool:
        try:
            return bool(self._predicate(episode))
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                self._warn(episode, error)
            return True

    def _warn(self, episode: Episode, error: Exception) -> None:
        names = ", ".join(EPISODE_PROPERTIES)
        message = (
            f"keep: a function failed on episode {episode.episode} of environment {episode.env} and counts as true, here and "
            f"wherever it fails again: {error!r}. An episode has {names}, and annotations: episode[name], or "
            "episode.get(name, default)"
        )
        code = getattr(self._predicate, "__code__", None)
        if code is None:
            warnings.warn(f"{message} ({self._predicate!r})", RuntimeWarning, stacklevel=3)
        else:
            warnings.warn_explicit(message, RuntimeWarning, code.co_filename, code.co_firstlineno)


class _RankedEpisodes(KeptEpisodes):
    def __init__(self, policy: _Ranked) -> None:
        self._policy = policy
        self._where = None if policy.where is None else _Asked(policy.where)
        self._count = 0
        self._kept: dict[int, list[tuple[Rank, int, Episode]]] = {}  # a heap for each environment, lowest rank first
        self._ids: set[EpisodeKey] = set()

    def offer(self, episode: Episode) -> list[Episode]:
        rank = self._policy.rank(episode)
        if rank is None or (self._where is not None and not self._where(episode)):
            return [episode]
        self._count += 1
        heap = self._kept.setdefault(episode.env if self._policy.per_env else -1, [])
        heapq.heappush(heap, (rank, self._count if self._policy.later_wins else -self._count, episode))
        self._ids.add(episode.key)
        if len(heap) <= self._policy.n:
            return []
        gone = heapq.heappop(heap)[2]
        self._ids.remove(gone.key)
        return [gone]

    def holds(self, episode: Episode) -> bool:
        return episode.key in self._ids

    def forget(self, episode: Episode) -> None:
        pass  # it holds only those that are kept


class _MatchingEpisodes(KeptEpisodes):
    def __init__(self, predicate: Predicate) -> None:
        self._is_true = _Asked(predicate)
        self._ids: set[EpisodeKey] = set()

    def offer(self, episode: Episode) -> list[Episode]:
        if self._is_true(episode):
            self._ids.add(episode.key)
            return []
        return [episode]

    def holds(self, episode: Episode) -> bool:
        return episode.key in self._ids

    def forget(self, episode: Episode) -> None:
        self._ids.discard(episode.key)


class _CombinedEpisodes(KeptEpisodes):
    def __init__(self, first: KeptEpisodes, second: KeptEpisodes, how: Callable[[Iterable[bool]], bool]) -> None:
        self._sides = (first, second)
        self._how = how

    def offer(self, episode: Episode) -> list[Episode]:
        return [gone for side in self._sides for gone in side.offer(episode)]

    def holds(self, episode: Episode) -> bool:
        return self._how([side.holds(episode) for side in self._sides])

    def forget(self, episode: Episode) -> None:
        for side in self._sides:
            side.forget(episode)
