"""``torchrl-rerun compare``."""

from __future__ import annotations

import functools
import json
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from torchrl_rerun.cli.console import NO_END, complaints, count, fail, jsonable, said, with_progress, working
from torchrl_rerun.cli.view import watch
from torchrl_rerun.paths import absolute, printable, shown

if TYPE_CHECKING:
    from torchrl_rerun.rrd.listing import RecordedEpisode
    from torchrl_rerun.viewing.compare import Side

_WHAT = "nothing compared"


def compare_runs(
    runs: Annotated[
        list[Path],
        typer.Argument(
            parser=absolute,
            metavar="A B...",
            help="Recordings, or folders of episodes; two or more.",
            show_default=False,
        ),
    ],
    *,
    best: Annotated[bool, typer.Option("--best", help="Show the episode of highest return of each folder.")] = False,
    worst: Annotated[
        bool, typer.Option("--worst", help="The one of lowest return; else that which began last.")
    ] = False,
    no_view: Annotated[bool, typer.Option("--no-view", help="Don't open the viewer.")] = False,
    web: Annotated[bool, typer.Option("--web", help="For browsers, instead of in a window.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", parser=absolute, metavar="FILE", help="Keep the recording that is shown, as this file."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, instead of a table.")] = False,
) -> None:
    """Compare runs: what they came to in one table, and both beside one another in one viewer.

        torchrl-rerun compare runs/before runs/after --worst

    A whole run is shown as it is, of a folder of episodes one of them. What is shown is one recording, in which the first
    run is below `/A`, the second below `/B`, on the same timelines.

    Returns and lengths are of the episodes that ended; how many were interrupted, and are left out of them, is a row of the
    table. If none ended they are of all.
    """
    if len(runs) < 2:
        raise typer.BadParameter("pass two runs, or more", param_hint="'A B...'")
    if best and worst:
        raise typer.BadParameter("choose one of them", param_hint="'--best' / '--worst'")
    if web and no_view:
        raise typer.BadParameter("choose one of them", param_hint="'--web' / '--no-view'")
    try:
        with working("reading"):
            from torchrl_rerun.reading.load import load
            from torchrl_rerun.viewing.compare import differences, sides_of, summary

            sides = sides_of(runs, lambda episodes: _chosen(episodes, best=best, worst=worst))
            summaries = [
                summary(each.properties for each in load(run)) for run in with_progress(runs, len(runs), "reading")
            ]
    except (OSError, RuntimeError, ValueError) as error:
        fail(_WHAT, error)
    columns = dict(zip(string.ascii_uppercase, summaries, strict=False))
    for (name, came_to), run in zip(columns.items(), runs, strict=True):
        _say_interrupted(came_to, f"{name} ({shown(run)})")
    first, *others = columns
    columns |= {f"{name} - {first}": each for name, each in zip(others, differences(summaries), strict=True)}
    if as_json:
        known = {name: {"run": printable(run)} | columns[name] for name, run in zip(columns, runs, strict=False)}
        typer.echo(json.dumps(jsonable(columns | known), indent=2))
    else:
        _print_table(columns, runs)
    if no_view and out is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = out or Path(folder, "comparison.rrd")
        _write(sides, file, overwrite=overwrite)
        if not no_view:
            watch([file], web=web, what=_WHAT)


def _chosen(episodes: Sequence[RecordedEpisode], *, best: bool, worst: bool) -> RecordedEpisode:
    from torchrl_rerun.cli.choosing import say_left_out
    from torchrl_rerun.cli.ranking import ranked
    from torchrl_rerun.recording.keep import KeepBest, KeepWorst

    if not (best or worst):
        return episodes[-1]
    ranking, folder = ranked(episodes, KeepBest(1) if best else KeepWorst(1)), shown(episodes[0].path.parent)
    say_left_out(ranking, folder)
    if not ranking.episodes:
        raise ValueError(f"none of {count(len(episodes), 'episode')} in {folder} has a return")
    return ranking.episodes[0]


def _say_interrupted(came_to: dict[str, float | None], run: str) -> None:
    """Say of which episodes the returns and lengths of a run are, if not all of them ended."""
    if left_out := came_to["left out (interrupted)"]:
        said = f"{left_out:,} of {came_to['episodes']:,} episodes were interrupted, and are left out of returns and lengths"
    elif came_to["interrupted"]:  # a share
        said = f"all of {came_to['episodes']:,} episodes were interrupted: returns and lengths are of what there is of them"
    else:
        return
    complaints.print(f"[yellow]{escape(run)}[/]:", said)


def _write(sides: Sequence[Side], file: Path, *, overwrite: bool) -> None:
    from torchrl_rerun.viewing.compare import write_comparison

    try:
        with working("comparing"):
            write_comparison(
                sides, file, overwrite=overwrite, progress=functools.partial(with_progress, what="comparing")
            )
    except (OSError, RuntimeError, ValueError) as error:
        fail("no comparison to see", error)


def _print_table(columns: dict[str, dict[str, Any]], runs: Sequence[Path]) -> None:
    from torchrl_rerun.cli.table import drawn_rows

    for name, run in zip(columns, runs, strict=False):
        said.print(f"{name}: {escape(shown(run))}")
    measures = dict.fromkeys(name for each in columns.values() for name in each)
    rows = [[measure, *(each.get(measure) for each in columns.values())] for measure in measures]
    Console(width=NO_END, highlight=False).print(drawn_rows(["", *columns], rows))
