"""Command ``torchrl-rerun ls``: list the episodes of a run folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from torchrl_rerun.cli.console import PIPE_WIDTH, fail, format_count, messages, output, to_json
from torchrl_rerun.cli.selection import (
    Best,
    Last,
    Where,
    Worst,
    check_exclusive,
    explain_unreadable,
    list_run,
    make_run_columns,
    print_without_files,
    select_episodes,
    summarize,
)
from torchrl_rerun.paths import make_absolute

if TYPE_CHECKING:
    from torchrl_rerun.cli.table import Column
    from torchrl_rerun.rrd.listing import RecordedEpisode

_WHAT = "nothing to list"


def list_recorded(
    run: Annotated[
        Path,
        typer.Argument(
            parser=make_absolute, metavar="RUN", help="A folder of episodes, or one episode.", show_default=False
        ),
    ],
    *,
    where: Where = None,
    best: Best = None,
    worst: Worst = None,
    last: Last = None,
    sort: Annotated[
        str | None,
        typer.Option("--sort", "-s", metavar="COLUMN", help="Order the episodes by this column, not by time."),
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="Reverse the order.")] = False,
    paths: Annotated[bool, typer.Option("--paths", help="Print the paths of the files alone, one a line.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON array with all properties, instead of a table.")
    ] = False,
) -> None:
    """List the episodes that a recorder with `split="episode"` wrote, in the order in which they began.

    Columns are the properties of each episode and its annotations: `env`, `episode`, `episode_return`, `length`,
    `terminated`, `truncated`, `interrupted`, `first_step`, `start_time`, `seed`, `size`, the annotations, `files`. A
    terminal shows as many as fit; a pipe gets all. Times are in UTC. A condition compares a column with a value:

        torchrl-rerun ls runs/ppo --where success=false --worst 5
    """
    from torchrl_rerun.cli.table import find_column, sort_episodes

    check_exclusive(best, worst, last)
    try:
        listing = list_run(run)
        columns = make_run_columns(listing, run)
        by = None if sort is None else find_column(sort, columns)
        episodes = select_episodes(listing, columns, where=where, best=best, worst=worst, last=last)
    except (OSError, ValueError) as error:
        fail(_WHAT, error)
    if by is not None:
        episodes = sort_episodes(episodes, by, reverse=reverse)
    elif reverse:
        episodes.reverse()
    if paths:
        for each in episodes:
            for path in each.files:
                typer.echo(path)
        print_without_files(episodes)
    elif as_json:
        typer.echo(json.dumps([_collect_fields(each) for each in episodes], indent=2))
    elif episodes:
        known = [each for each in columns.values() if any(each.value(episode) is not None for episode in episodes)]
        _print_table(episodes, known, by)
    else:
        messages.print(f"none of {format_count(len(listing.episodes), 'episode')}")
    if listing.unreadable:
        messages.print("[yellow]left out[/]:", escape(summarize(explain_unreadable(listing))))
    if listing.copies:
        from torchrl_rerun.rrd.copies import describe_copies

        messages.print("[yellow]left out[/]:", escape(describe_copies(listing.copies)))


def _print_table(episodes: Sequence[RecordedEpisode], columns: Sequence[Column], sort: Column | None) -> None:
    from torchrl_rerun.cli.table import LONGEST, draw_episodes, fit_columns

    if not output.is_terminal:
        Console(width=PIPE_WIDTH, highlight=False).print(draw_episodes(episodes, columns))
        return
    console = Console(highlight=False)  # the terminal may have been resized
    shown = fit_columns(episodes, columns, console.width, sort)
    console.print(draw_episodes(episodes, shown, longest=LONGEST))
    hidden = ", ".join(column.name for column in columns if column not in shown)
    if hidden:
        messages.print(f"[dim]no room for: {escape(hidden)}[/]")


def _collect_fields(recorded: RecordedEpisode) -> dict[str, Any]:
    began = recorded.episode.start_time
    properties = recorded.episode.properties | {"start_time": None if began is None else began.isoformat()}
    known = properties | {
        "annotations": dict(recorded.episode.annotations),
        "files": [str(path) for path in recorded.files],
        "in_black_box": recorded.is_in_box,
        "size": recorded.size,
        "recording_id": recorded.recording_id,
    }
    return {name: to_json(value) for name, value in known.items()}
