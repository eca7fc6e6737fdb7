"""Selection of episodes in a run folder: options that ``ls`` and ``view`` share."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer
from rich.markup import escape

from torchrl_rerun.cli.console import format_count, messages, show_progress, show_status
from torchrl_rerun.paths import format_path

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
        help="Only episodes that satisfy a condition, such as episode_return<50 or terminated=true; may be repeated.",
    ),
]
Best: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="The N episodes of highest return; interrupted ones come last.")
]
Worst: TypeAlias = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="The N episodes of lowest return; interrupted ones come last.")
]
Last: TypeAlias = Annotated[int | None, typer.Option(min=1, metavar="N", help="The N episodes that began last.")]


def list_run(run: Path) -> Listing:
    """List the episodes in a folder.

    Raises:
        OSError: The folder doesn't exist.
        ValueError: The folder holds no episodes; the message says what it holds, and what to do.
    """
    with show_status("reading"):
        from torchrl_rerun.rrd.listing import list_episodes

        listing = list_episodes(run, lambda files: show_progress(files, len(files), "reading"))
    if not listing.episodes:
        raise ValueError(_explain_empty(listing, run))
    return listing


def _explain_empty(listing: Listing, run: Path) -> str:
    from torchrl_rerun.rrd.files import not_ours

    name = format_path(run)
    runs = listing.runs + [file for file in listing.unreadable if _is_unfinished_run(file)]
    if runs:
        files = " ".join(shlex.quote(format_path(file)) for file in runs[:3])
        return (
            f"{name} holds recordings of whole runs, not of single episodes: open them with `torchrl-rerun view "
            f"{files}`, list their episodes with `torchrl-rerun query {shlex.quote(name)} true`"
        )
    if listing.unreadable:
        why = summarize(explain_unreadable(listing))
        return f"{name} holds no readable recording: {why}" if run.is_dir() else why
    if run.is_dir() and not any(run.iterdir()):
        return f"{name} holds no episodes: none was recorded, or its keep policy kept none"
    if run.is_dir():
        return f"{name} holds no episodes: pass the folder that RerunRecorder(folder, split='episode') wrote to"
    return not_ours(run)


def _is_unfinished_run(file: Path) -> bool:
    from torchrl_rerun.rrd.reader import is_unfinished, parts_in

    try:
        schemas = [part.schema for part in parts_in(file)] if is_unfinished(file) else []
    except (OSError, ValueError):
        return False
    return any(schema is not None and schema.split != "episode" for schema in schemas)


def explain_unreadable(listing: Listing) -> list[str]:
    """Return, for each unreadable file, why it can't be read and what to do."""
    return [_explain_unreadable(file) for file in listing.unreadable]


def _explain_unreadable(file: Path) -> str:
    from torchrl_rerun.rrd.listing import complete_parts_in
    from torchrl_rerun.rrd.reader import why_unreadable

    try:
        found = why_unreadable(file)
        if found is None:
            complete_parts_in(file)
    except (OSError, ValueError) as error:
        return str(error)
    return found or f"{format_path(file)} is damaged"


def summarize(reasons: Sequence[str]) -> str:
    """Return the first of some reasons, and the number of others."""
    return f"{reasons[0]} (and {format_count(len(reasons) - 1, 'other')})" if len(reasons) > 1 else reasons[0]


def make_run_columns(listing: Listing, run: Path) -> dict[str, Column]:
    """Return the columns of the table of a run's episodes, by their names."""
    from torchrl_rerun.cli.table import make_columns

    return make_columns(listing.episodes, run if run.is_dir() else run.parent)


def check_exclusive(best: int | None, worst: int | None, last: int | None) -> None:
    """Raise if more than one of the options is given."""
    if sum(number is not None for number in (best, worst, last)) > 1:
        raise typer.BadParameter("choose one of these", param_hint="'--best' / '--worst' / '--last'")


def select_episodes(
    listing: Listing,
    columns: dict[str, Column],
    *,
    where: Sequence[str] | None,
    best: int | None,
    worst: int | None,
    last: int | None,
) -> list[RecordedEpisode]:
    """Return the episodes that the options select. Print how many a ranking leaves out.

    Raises:
        ValueError: A condition is malformed, or names a column that doesn't exist.
    """
    from torchrl_rerun.cli.ranking import rank_episodes
    from torchrl_rerun.cli.table import parse_condition
    from torchrl_rerun.recording.keep import KeepBest, KeepWorst

    conditions = [parse_condition(each, columns) for each in where or ()]
    episodes = [each for each in listing.episodes if all(is_true(each) for is_true in conditions)]
    if best is not None or worst is not None:
        ranking = rank_episodes(episodes, KeepBest(best) if best is not None else KeepWorst(worst or 1))
        print_left_out(ranking)
        return ranking.episodes
    return episodes[-last:] if last is not None else episodes


def print_left_out(ranking: Ranking, of: str = "") -> None:
    """Print how many episodes a ranking leaves out, and how many in it were interrupted.

    Args:
        ranking: Ranking of episodes.
        of: Run that it ranks. Default: empty, if there is only one.
    """
    if notes := ranking.describe():
        messages.print(f"[yellow]{f'ranking of {of}' if of else 'ranking'}[/]:", escape(notes))


def print_without_files(episodes: Sequence[RecordedEpisode]) -> None:
    """Print how many episodes no path leads to, or to a part of them alone, since they are in a black box; and what to do."""
    from torchrl_rerun.rrd.locks import is_locked

    in_box = [each for each in episodes if each.is_in_box]
    if not in_box:
        return
    alone = sum(not each.files for each in in_box)
    split = len(in_box) - alone
    things = [f"{format_count(alone, 'episode')} without a file"] if alone else []
    things += [f"the rest of {format_count(split, 'episode')}"] if split else []
    are = "are" if alone > 1 or len(things) > 1 else "is"
    folders = list(dict.fromkeys(each.path.parent for each in in_box))
    command = shlex.join(["torchrl-rerun", "repair", *map(format_path, folders)])
    when = ", when the program has ended" if any(map(is_locked, folders)) else ""
    said = f"{' and '.join(things)} {are} in the black box: `{command}` makes files of them{when}"
    messages.print("[yellow]left out[/]:", escape(said))
