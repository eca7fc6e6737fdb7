"""Ranking: the best or the worst of recorded episodes, and what is left out for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrl_rerun.recording.keep import KeepBest, KeepWorst
from torchrl_rerun.rrd.listing import RecordedEpisode


@dataclass(frozen=True)
class Ranking:
    """Episodes in the order of their returns.

    Attributes:
        episodes: those that are wanted, the first to stay first.
        interrupted: how many of them were interrupted; they come after those that ended.
        left_out: how many interrupted ones aren't among them.
        unknown: how many ended without a known return, which no best one can be.
    """

    episodes: list[RecordedEpisode]
    interrupted: int
    left_out: int
    unknown: int

    def told(self) -> str:
        """What is said of episodes that were interrupted, or have no return; nothing if there are none.

        >>> Ranking([], 0, 1, 2).told()
        '1 episode was interrupted, and is left out; 2 have no return'
        """
        said = []
        if self.left_out:
            said.append(f"{_episodes(self.left_out)} interrupted, and {_is(self.left_out)} left out")
        if self.interrupted:
            said.append(
                f"{_episodes(self.interrupted)} interrupted, and {_is(self.interrupted)} among them: too few ended"
            )
        if self.unknown:
            said.append(f"{self.unknown} {'has' if self.unknown == 1 else 'have'} no return")
        return "; ".join(said)


def ranked(episodes: Sequence[RecordedEpisode], policy: KeepBest | KeepWorst) -> Ranking:
    """Those that a policy would keep, the first to stay first.

    Args:
        episodes: the episodes.
        policy: which ones, and how many.
    """
    found = [(rank, each) for each in episodes if (rank := policy.rank(each.episode)) is not None]
    found.sort(key=lambda pair: pair[0], reverse=True)
    wanted = [each for _, each in found[: policy.n]]
    interrupted = sum(each.episode.interrupted for each in wanted)
    left_out = sum(each.episode.interrupted for each in episodes) - interrupted
    unranked = [each for each in episodes if policy.rank(each.episode) is None and not each.episode.interrupted]
    return Ranking(wanted, interrupted, left_out, len(unranked))


def _episodes(number: int) -> str:
    return f"{number} episode{' was' if number == 1 else 's were'}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
