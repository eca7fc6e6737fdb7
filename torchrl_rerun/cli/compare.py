"""Command ``torchrl-rerun compare``: compare runs in a table and in the viewer."""

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

from torchrl_rerun.cli.console import (
    PIPE_WIDTH,
    fail,
    format_count,
    messages,
    output,
    show_progress,
    show_status,
    to_json,
)
from torchrl_rerun.cli.view import watch
from torchrl_rerun.paths import escape_path, format_path, make_absolute

if TYPE_CHECKING:
    from torchrl_rerun.rrd.listing import RecordedEpisode
    from torchrl_rerun.viewing.compare import ComparedRun

_WHAT = "nothing compared"


def compare_runs(
    runs: Annotated[
        list[Path],
        typer.Argument(
            parser=make_absolute,
            metavar="A B...",
            help="Recordings, or folders of episodes; two or more.",
            show_default=False,
        ),
    ],
    *,
    best: Annotated[bool, typer.Option("--best", help="Show the episode of highest return of each folder.")] = False,
    worst: Annotated[
        bool, typer.Option("--worst", help="Show the episode of lowest return. Default: the episode that began last.")
    ] = False,
    no_view: Annotated[bool, typer.Option("--no-view", help="Don't open the viewer.")] = False,
    web: Annotated[
        bool, typer.Option("--web", help="Serve the viewer to browsers, instead of opening a window.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", parser=make_absolute, metavar="FILE", help="Keep the recording that is shown as this file."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, instead of a table.")] = False,
) -> None:
    """Compare runs: returns and lengths in one table, and the runs side by side in one viewer.

        torchrl-rerun compare runs/before runs/after --worst

    The viewer shows a recording of a whole run as it is, and one episode of a folder of episodes. All are in one
    recording, the first run below `/A`, the second below `/B`, on the same timelines.

    Returns and lengths are those of the episodes that ended. A row of the table counts the interrupted episodes, which are
    left out. If no episode ended, returns and lengths are those of all.
    """
    if len(runs) < 2:
        raise typer.BadParameter("pass two runs, or more", param_hint="'A B...'")
    if best and worst:
        raise typer.BadParameter("choose one of these", param_hint="'--best' / '--worst'")
    if web and no_view:
        raise typer.BadParameter("choose one of these", param_hint="'--web' / '--no-view'")
    try:
        with show_status("reading"):
            from torchrl_rerun.reading.load import load
            from torchrl_rerun.viewing.compare import open_runs, subtract_measures, summarize_episodes

            compared = open_runs(runs, lambda episodes: _choose_episode(episodes, best=best, worst=worst))
            summaries = [
                summarize_episodes(each.properties for each in load(run))
                for run in show_progress(runs, len(runs), "reading")
            ]
    except (OSError, RuntimeError, ValueError) as error:
        fail(_WHAT, error)
    columns = dict(zip(string.ascii_uppercase, summaries, strict=False))
    for (name, measures), run in zip(columns.items(), runs, strict=True):
        _print_interrupted(measures, f"{name} ({format_path(run)})")
    first, *others = columns
    columns |= {f"{name} - {first}": each for name, each in zip(others, subtract_measures(summaries), strict=True)}
    if as_json:
        known = {name: {"run": escape_path(run)} | columns[name] for name, run in zip(columns, runs, strict=False)}
        typer.echo(json.dumps(to_json(columns | known), indent=2))
    else:
        _print_table(columns, runs)
    if no_view and out is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = out or Path(folder, "comparison.rrd")
        _write(compared, file, overwrite=overwrite)
        if not no_view:
            watch([file], web=web, what=_WHAT)


def _choose_episode(episodes: Sequence[RecordedEpisode], *, best: bool, worst: bool) -> RecordedEpisode:
    from torchrl_rerun.cli.ranking import rank_episodes
    from torchrl_rerun.cli.selection import print_left_out
    from torchrl_rerun.recording.keep import KeepBest, KeepWorst

    if not (best or worst):
        return episodes[-1]
    ranking, folder = (
        rank_episodes(episodes, KeepBest(1) if best else KeepWorst(1)),
        format_path(episodes[0].path.parent),
    )
    print_left_out(ranking, folder)
    if not ranking.episodes:
        raise ValueError(f"none of {format_count(len(episodes), 'episode')} in {folder} has a return")
    return ranking.episodes[0]


def _print_interrupted(measures: dict[str, float | None], run: str) -> None:
    """Print which episodes returns and lengths describe, if not all of them ended."""
    if left_out := measures["left out (interrupted)"]:
        note = f"{left_out:,} of {measures['episodes']:,} episodes were interrupted, and are left out of returns and lengths"
    elif measures["interrupted"]:  # a fraction
        note = f"all of {measures['episodes']:,} episodes were interrupted: returns and lengths are of their recorded parts"
    else:
        return
    messages.print(f"[yellow]{escape(run)}[/]:", note)


def _write(compared: Sequence[ComparedRun], file: Path, *, overwrite: bool) -> None:
    from torchrl_rerun.viewing.compare import write_comparison

    try:
        with show_status("comparing"):
            write_comparison(
                compared, file, overwrite=overwrite, progress=functools.partial(show_progress, what="comparing")
            )
    except (OSError, RuntimeError, ValueError) as error:
        fail("comparison not written", error)


def _print_table(columns: dict[str, dict[str, Any]], runs: Sequence[Path]) -> None:
    from torchrl_rerun.cli.table import draw_rows

    for name, run in zip(columns, runs, strict=False):
        output.print(f"{name}: {escape(format_path(run))}")
    names = dict.fromkeys(name for each in columns.values() for name in each)
    rows = [[name, *(each.get(name) for each in columns.values())] for name in names]
    Console(width=PIPE_WIDTH, highlight=False).print(draw_rows(["", *columns], rows))
