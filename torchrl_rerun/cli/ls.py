"""``torchrl-rerun ls``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from torchrl_rerun.cli.choosing import (
    Best,
    Last,
    Where,
    Worst,
    check_choice,
    chosen,
    columns_in,
    first_of,
    listed,
    whys_unreadable,
)
from torchrl_rerun.cli.console import NO_END, complaints, count, fail, jsonable, said
from torchrl_rerun.paths import absolute

if TYPE_CHECKING:
    from torchrl_rerun.cli.table import Column
    from torchrl_rerun.rrd.listing import RecordedEpisode

_WHAT = "nothing to list"


def list_recorded(
    run: Annotated[
        Path,
        typer.Argument(
            parser=absolute, metavar="RUN", help="A folder of episodes, or one of them.", show_default=False
        ),
    ],
    *,
    where: Where = None,
    best: Best = None,
    worst: Worst = None,
    last: Last = None,
    sort: Annotated[
        str | None, typer.Option("--sort", "-s", metavar="COLUMN", help="Order them by this column, not by time.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The other way round.")] = False,
    paths: Annotated[bool, typer.Option("--paths", help="The paths of their files alone, one a line.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON array of all that is known of each, instead of a table.")
    ] = False,
) -> None:
    """List the episodes that a recorder with `split="episode"` wrote, in the order in which they began.

    Columns are what is known of each episode, and what was said of it with `annotate`: `env`, `episode`,
    `episode_return`, `length`, `terminated`, `truncated`, `interrupted`, `first_step`, `start_time`, `seed`, `size`, the
    annotations, `files`. A terminal gets those for which it has room; a pipe gets them all. Times are in UTC. Conditions
    name a column and a value:

        torchrl-rerun ls runs/ppo --where success=false --worst 5
    """
    from torchrl_rerun.cli.table import column_named, ordered

    check_choice(best, worst, last)
    try:
        listing = listed(run)
        columns = columns_in(listing, run)
        by = None if sort is None else column_named(sort, columns)
        episodes = chosen(listing, columns, where=where, best=best, worst=worst, last=last)
    except (OSError, ValueError) as error:
        fail(_WHAT, error)
    if by is not None:
        episodes = ordered(episodes, by, reverse=reverse)
    elif reverse:
        episodes.reverse()
    if paths:
        for each in episodes:
            for path in each.paths:
                typer.echo(path)
    elif as_json:
        typer.echo(json.dumps([_as_json(each) for each in episodes], indent=2))
    elif episodes:
        known = [each for each in columns.values() if any(each.value(episode) is not None for episode in episodes)]
        _print_table(episodes, known, by)
    else:
        complaints.print(f"none of {count(len(listing.episodes), 'episode')}")
    if listing.unreadable:
        complaints.print("[yellow]left out[/]:", escape(first_of(whys_unreadable(listing))))
    if listing.copies:
        from torchrl_rerun.rrd.copies import told_copies

        complaints.print("[yellow]left out[/]:", escape(told_copies(listing.copies)))


def _print_table(episodes: Sequence[RecordedEpisode], columns: Sequence[Column], sort: Column | None) -> None:
    from torchrl_rerun.cli.table import LONGEST, drawn, fitting

    if not said.is_terminal:
        Console(width=NO_END, highlight=False).print(drawn(episodes, columns))
        return
    console = Console(highlight=False)  # as wide as the terminal is now
    shown = fitting(episodes, columns, console.width, sort)
    console.print(drawn(episodes, shown, longest=LONGEST))
    hidden = ", ".join(column.name for column in columns if column not in shown)
    if hidden:
        complaints.print(f"[dim]no room for: {escape(hidden)}[/]")


def _as_json(recorded: RecordedEpisode) -> dict[str, Any]:
    began = recorded.episode.start_time
    properties = recorded.episode.properties | {"start_time": None if began is None else began.isoformat()}
    known = properties | {
        "annotations": dict(recorded.episode.annotations),
        "files": [str(path) for path in recorded.paths],
        "size": recorded.size,
        "recording_id": recorded.recording_id,
    }
    return {name: jsonable(value) for name, value in known.items()}
