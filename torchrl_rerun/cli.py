"""The command line: ``torchrl-rerun``."""

from __future__ import annotations

import json
import math
import shlex
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from torchrl_rerun.keeping import KeepBest, KeepWorst
from torchrl_rerun.listing import Listing, RecordedEpisode, list_episodes
from torchrl_rerun.repairing import Repaired, repair
from torchrl_rerun.table import LONGEST, Column, column_named, columns_of, condition, drawn, fitting, ordered

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
said = Console(highlight=False, soft_wrap=True)
complaints = Console(stderr=True, highlight=False, soft_wrap=True)
_NO_END = 1 << 16  # columns of a pipe


@app.callback()
def torchrl_rerun() -> None:
    """Recordings that RerunRecorder made. Watch one with `rerun run.rrd`."""


@app.command("repair")
def repair_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings to repair.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the repaired recording to this path, and leave FILE as it is."),
    ] = None,
) -> None:
    """Make recordings whole that a killed process left behind.

    A recording is finished when its environment is closed or its program ends. After `kill -9`, or a loss of power, it
    has no footer and no layout, and may end in the middle of a write; Rerun then refuses to open it. This cuts off what
    was not written to its end, and adds what is missing. All that was dumped is still there.

    Each file is replaced by the repaired one at the very end, so that nothing is lost whatever goes wrong. Files that
    are whole are left as they are, and those that a recorder still writes to are refused.
    """
    if out is not None and len(files) > 1:
        raise typer.BadParameter("is for one FILE", param_hint="'--out' / '-o'")
    failed = False
    for file in files:
        try:
            with complaints.status(f"repairing {escape(str(file))}"), warnings.catch_warnings(record=True) as warned:
                repaired = repair(file, out)
        except (OSError, ValueError) as error:
            complaints.print("[red]not repaired[/]:", escape(str(error)))
            failed = True
            continue
        for warning in warned:
            complaints.print(f"[yellow]{escape(str(file))}[/]:", escape(str(warning.message)))
        said.print(f"[green]{escape(str(out or file))}[/]:", _summary(repaired, copied=out is not None))
    raise typer.Exit(failed)


def _summary(repaired: Repaired | None, *, copied: bool) -> str:
    if repaired is None:
        return "whole already, " + ("copied as it is" if copied else "nothing to do")
    found = ", ".join(
        _count(number, unit)
        for number, unit in (
            (repaired.frames, "frame"),
            (repaired.episodes, "episode"),
            (repaired.envs, "environment"),
        )
    )
    cut = f"; {_count(repaired.cut_bytes, 'byte')} of an unfinished write cut off" if repaired.cut_bytes else ""
    return f"whole again, {found}{cut}"


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


@app.command("ls")
def list_recorded(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A folder of episodes, or one of them.", show_default=False)
    ],
    *,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", "-w", metavar="CONDITION", help="Only those of which it is true; may be repeated."),
    ] = None,
    best: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The N of highest return; interrupted ones don't count.")
    ] = None,
    worst: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The N of lowest return; interrupted ones don't count.")
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, metavar="N", help="The N that began last.")] = None,
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

    Columns are what is known of each episode, and what was said of it with `annotate`. A terminal gets those for which
    it has room; a pipe gets them all. Conditions name a column and a value:

        torchrl-rerun ls runs/ppo --where success=false --worst 5
    """
    if sum(number is not None for number in (best, worst, last)) > 1:
        raise typer.BadParameter("choose one of them", param_hint="'--best' / '--worst' / '--last'")
    try:
        listing = list_episodes(run, _with_progress)
    except OSError as error:
        _complain(str(error))
    if not listing.episodes:
        _complain(_why_none(listing, run))
    columns = columns_of(listing.episodes, run if run.is_dir() else run.parent)
    try:
        conditions = [condition(each, columns) for each in where or ()]
        by = None if sort is None else column_named(sort, columns)
    except ValueError as error:
        _complain(str(error))
    episodes = [each for each in listing.episodes if all(is_true(each) for is_true in conditions)]
    if best is not None or worst is not None:
        episodes = _extreme(episodes, KeepBest(best) if best is not None else KeepWorst(worst or 1))
    elif last is not None:
        episodes = episodes[-last:]
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
        _print_table(episodes, list(columns.values()), by)
    else:
        complaints.print(f"none of {_count(len(listing.episodes), 'episode')}")
    if listing.unreadable:
        first = escape(shlex.quote(str(listing.unreadable[0])))
        complaints.print(
            f"[yellow]left out[/]: {_count(len(listing.unreadable), 'file')} still being written, or left behind by a "
            f"killed process; then `torchrl-rerun repair {first}`"
        )


def _print_table(episodes: Sequence[RecordedEpisode], columns: Sequence[Column], sort: Column | None) -> None:
    if not said.is_terminal:
        Console(width=_NO_END, highlight=False).print(drawn(episodes, columns))
        return
    shown = fitting(episodes, columns, said.width, sort)
    Console(highlight=False).print(drawn(episodes, shown, longest=LONGEST))
    hidden = ", ".join(column.name for column in columns if column not in shown)
    if hidden:
        complaints.print(f"[dim]no room for: {escape(hidden)}[/]")


def _with_progress(files: Sequence[Path]) -> Iterator[Path]:
    """A bar, if it takes longer than a second."""
    soon = time.monotonic() + 1.0
    for done, file in enumerate(files):
        if time.monotonic() > soon:
            with Progress(console=complaints, transient=True, disable=not complaints.is_terminal) as bar:
                task = bar.add_task("reading", total=len(files), completed=done)
                for slow in files[done:]:
                    yield slow
                    bar.advance(task)
            return
        yield file


def _extreme(episodes: Sequence[RecordedEpisode], policy: KeepBest | KeepWorst) -> list[RecordedEpisode]:
    """Those that a policy would keep, the first to stay first."""
    ranked = [(rank, each) for each in episodes if (rank := policy.rank(each.episode)) is not None]
    ranked.sort(key=lambda pair: pair[0], reverse=True)
    return [each for _, each in ranked[: policy.n]]


def _why_none(listing: Listing, run: Path) -> str:
    if listing.runs:
        files = " ".join(shlex.quote(str(file)) for file in listing.runs[:3])
        return f"{run} holds recordings of several episodes each, and none of one: open them with `rerun {files}`"
    if listing.unreadable:
        file = shlex.quote(str(listing.unreadable[0]))
        return (
            f"{run} holds nothing that can be read: a recorder still writes to it, or was killed; then "
            f"`torchrl-rerun repair {file}` makes it whole"
        )
    if run.is_dir():
        return f"{run} holds no episodes: pass the folder that RerunRecorder(folder, split='episode') wrote to"
    return f"{run} is no recording of torchrl_rerun"


def _as_json(recorded: RecordedEpisode) -> dict[str, Any]:
    began = recorded.episode.start_time
    properties = recorded.episode.properties | {"start_time": None if began is None else began.isoformat()}
    known = properties | {
        "annotations": dict(recorded.episode.annotations),
        "path": str(recorded.path),
        "paths": [str(path) for path in recorded.paths],
        "size": recorded.size,
        "recording_id": recorded.recording_id,
    }
    return {name: _finite(value) for name, value in known.items()}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return value


def _complain(why: str) -> NoReturn:
    complaints.print("[red]nothing to list[/]:", escape(why))
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
