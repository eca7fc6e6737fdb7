"""Ranking of recorded episodes by their returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrl_rerun.recording.keep import KeepBest, KeepWorst
from torchrl_rerun.rrd.listing import RecordedEpisode


@dataclass(frozen=True)
class Ranking:
    """Episodes in the order of their returns.

    Attributes:
        episodes: Selected episodes, the highest-ranked first. Interrupted ones come after those that ended.
        interrupted: Number of interrupted episodes among the selected.
        left_out: Number of interrupted episodes that are not selected.
        unknown: Number of episodes that ended without a known return, which can't be ranked.
    """

    episodes: list[RecordedEpisode]
    interrupted: int
    left_out: int
    unknown: int

    def describe(self) -> str:
        """Return a note on episodes that were interrupted or have no return; empty if there are none.

        >>> Ranking([], 0, 1, 2).describe()
        '1 episode was interrupted, and is left out; 2 have no return'
        """
        notes = []
        if self.left_out:
            notes.append(f"{_phrase_count(self.left_out)} interrupted, and {_conjugate_is(self.left_out)} left out")
        if self.interrupted:
            notes.append(
                f"{_phrase_count(self.interrupted)} interrupted, and {_conjugate_is(self.interrupted)} among them: too few ended"
            )
        if self.unknown:
            notes.append(f"{self.unknown} {'has' if self.unknown == 1 else 'have'} no return")
        return "; ".join(notes)


def rank_episodes(episodes: Sequence[RecordedEpisode], policy: KeepBest | KeepWorst) -> Ranking:
    """Return the episodes that a policy would keep, the highest-ranked first.

    Args:
        episodes: Episodes to rank.
        policy: Order, and number of episodes to select.
    """
    found = [(rank, each) for each in episodes if (rank := policy.rank(each.episode)) is not None]
    found.sort(key=lambda pair: pair[0], reverse=True)
    selected = [each for _, each in found[: policy.n]]
    interrupted = sum(each.episode.interrupted for each in selected)
    left_out = sum(each.episode.interrupted for each in episodes) - interrupted
    unranked = [each for each in episodes if policy.rank(each.episode) is None and not each.episode.interrupted]
    return Ranking(selected, interrupted, left_out, len(unranked))


def _phrase_count(number: int) -> str:
    return f"{number} episode{' was' if number == 1 else 's were'}"


def _conjugate_is(number: int) -> str:
    return "is" if number == 1 else "are"
