"""Which episodes of a run folder are meant: the options of ``ls`` and ``view``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from torchrl_rerun.cli.console import with_progress

if TYPE_CHECKING:
    from torchrl_rerun.keeping import KeepBest, KeepWorst
    from torchrl_rerun.listing import Listing, RecordedEpisode
    from torchrl_rerun.table import Column

Where: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        "-w",
        metavar="CONDITION",
        help="Only those of which it is true, as episode_return<50 or terminated=true; may be repeated.",
    ),
]
Best: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="The N of highest return; interrupted ones don't count.")
]
Worst: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="The N of lowest return; interrupted ones don't count.")
]
Last: TypeAlias = Annotated[int | None, typer.Option(min=1, metavar="N", help="The N that began last.")]


def listed(run: Path) -> Listing:
    """What there is in a folder.

    Raises:
        OSError: there is no such folder.
    """
    from torchrl_rerun.listing import list_episodes

    return list_episodes(run, lambda files: with_progress(files, len(files), "reading"))


def columns_in(listing: Listing, run: Path) -> dict[str, Column]:
    """What is known of the episodes of a folder."""
    from torchrl_rerun.table import columns_of

    return columns_of(listing.episodes, run if run.is_dir() else run.parent)


def check_choice(best: int | None, worst: int | None, last: int | None) -> None:
    """Refuse what says two different things."""
    if sum(number is not None for number in (best, worst, last)) > 1:
        raise typer.BadParameter("choose one of them", param_hint="'--best' / '--worst' / '--last'")


def chosen(
    listing: Listing,
    columns: dict[str, Column],
    *,
    where: Sequence[str] | None,
    best: int | None,
    worst: int | None,
    last: int | None,
) -> list[RecordedEpisode]:
    """The episodes that are meant.

    Raises:
        ValueError: a condition isn't one, or names no column.
    """
    from torchrl_rerun.keeping import KeepBest, KeepWorst
    from torchrl_rerun.table import condition

    conditions = [condition(each, columns) for each in where or ()]
    episodes = [each for each in listing.episodes if all(is_true(each) for is_true in conditions)]
    if best is not None or worst is not None:
        return extreme(episodes, KeepBest(best) if best is not None else KeepWorst(worst or 1))
    return episodes[-last:] if last is not None else episodes


def extreme(episodes: Sequence[RecordedEpisode], policy: KeepBest | KeepWorst) -> list[RecordedEpisode]:
    """Those that a policy would keep, the first to stay first."""
    ranked = [(rank, each) for each in episodes if (rank := policy.rank(each.episode)) is not None]
    ranked.sort(key=lambda pair: pair[0], reverse=True)
    return [each for _, each in ranked[: policy.n]]
