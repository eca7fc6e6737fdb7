"""Which episodes of a run folder are meant: the options of ``ls`` and ``view``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.markup import escape

from torchrl_rerun.cli.console import complaints, count, with_progress, working
from torchrl_rerun.paths import shown

if TYPE_CHECKING:
    from torchrl_rerun.cli.ranking import Ranking
    from torchrl_rerun.cli.table import Column
    from torchrl_rerun.rrd.listing import Listing, RecordedEpisode

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
    int | None, typer.Option(min=1, metavar="N", help="The N of highest return; interrupted ones come last.")
]
Worst: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="The N of lowest return; interrupted ones come last.")
]
Last: TypeAlias = Annotated[int | None, typer.Option(min=1, metavar="N", help="The N that began last.")]


def listed(run: Path) -> Listing:
    """What there is in a folder.

    Raises:
        OSError: there is no such folder.
        ValueError: there are no episodes in it; says what there is, and what to do.
    """
    with working("reading"):
        from torchrl_rerun.rrd.listing import list_episodes

        listing = list_episodes(run, lambda files: with_progress(files, len(files), "reading"))
    if not listing.episodes:
        raise ValueError(_why_none(listing, run))
    return listing


def _why_none(listing: Listing, run: Path) -> str:
    from torchrl_rerun.rrd.files import not_ours

    name = shown(run)
    if listing.runs:
        files = " ".join(shlex.quote(shown(file)) for file in listing.runs[:3])
        return (
            f"{name} holds recordings of several episodes each, and none of one: open them with `torchrl-rerun view "
            f"{files}`, list their episodes with `torchrl-rerun query {shlex.quote(name)} true`"
        )
    if listing.unreadable:
        why = first_of(whys_unreadable(listing))
        return f"{name} holds nothing that can be read: {why}" if run.is_dir() else why
    if run.is_dir():
        return f"{name} holds no episodes: pass the folder that RerunRecorder(folder, split='episode') wrote to"
    return not_ours(run)


def whys_unreadable(listing: Listing) -> list[str]:
    """Why each of the files can't be read that can't, and what to do about it."""
    return [_why_unreadable(file) for file in listing.unreadable]


def _why_unreadable(file: Path) -> str:
    from torchrl_rerun.rrd.listing import complete_parts_in
    from torchrl_rerun.rrd.reader import why_unreadable

    try:
        found = why_unreadable(file)
        if found is None:
            complete_parts_in(file)
    except (OSError, ValueError) as error:
        return str(error)
    return found or f"{shown(file)} is damaged"


def first_of(whys: Sequence[str]) -> str:
    """The first of some reasons, and how many others there are."""
    return f"{whys[0]} (and {count(len(whys) - 1, 'other')})" if len(whys) > 1 else whys[0]


def columns_in(listing: Listing, run: Path) -> dict[str, Column]:
    """What is known of the episodes of a folder."""
    from torchrl_rerun.cli.table import columns_of

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
    """The episodes that are meant. What is left out of a ranking is said.

    Raises:
        ValueError: a condition isn't one, or names no column.
    """
    from torchrl_rerun.cli.ranking import ranked
    from torchrl_rerun.cli.table import condition
    from torchrl_rerun.recording.keep import KeepBest, KeepWorst

    conditions = [condition(each, columns) for each in where or ()]
    episodes = [each for each in listing.episodes if all(is_true(each) for is_true in conditions)]
    if best is not None or worst is not None:
        ranking = ranked(episodes, KeepBest(best) if best is not None else KeepWorst(worst or 1))
        say_left_out(ranking)
        return ranking.episodes
    return episodes[-last:] if last is not None else episodes


def say_left_out(ranking: Ranking, of: str = "") -> None:
    """Say which episodes a ranking leaves out, or has although they were interrupted.

    Args:
        ranking: the ranking.
        of: what it is of, if that isn't clear.
    """
    if told := ranking.told():
        complaints.print(f"[yellow]{f'ranking of {of}' if of else 'ranking'}[/]:", escape(told))
