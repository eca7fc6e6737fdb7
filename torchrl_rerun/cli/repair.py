"""Command ``torchrl-rerun repair``: complete recordings that a killed process left behind."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchrl_rerun.cli.console import format_count, messages, output, show_status
from torchrl_rerun.paths import format_path, make_absolute

if TYPE_CHECKING:
    from torchrl_rerun.rrd.repair import Repaired


def repair_files(
    files: Annotated[
        list[Path],
        typer.Argument(parser=make_absolute, metavar="FILE...", help="Recordings to repair.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            parser=make_absolute,
            metavar="PATH",
            help="Write the repaired recording to this path, and leave FILE unchanged.",
        ),
    ] = None,
) -> None:
    """Complete recordings that a killed process left behind.

    A recording is finished when its environment is closed or its program ends. After `kill -9` or a loss of power it has
    no footer and no layout, and may end in the middle of a write, so that Rerun refuses to open it. This command cuts off
    the unfinished write, and adds the footer and the layout. Everything that was dumped is kept. Pictures are written
    later than numbers; if some are missing, the command says how many.

    A file is replaced when its repaired copy is complete, so that no failure loses data. Finished files are left
    unchanged. Files that a recorder still writes to are refused.
    """
    if out is not None and len(files) > 1:
        raise typer.BadParameter("is for one FILE", param_hint="'--out' / '-o'")
    failed = False
    for file in files:
        try:
            with show_status(f"repairing {format_path(file)}"), warnings.catch_warnings(record=True) as warned:
                from torchrl_rerun.rrd.repair import repair
                from torchrl_rerun.rrd.rests import warn_of_rests

                warn_of_rests([file])
                repaired = repair(file, out)
        except (OSError, ValueError) as error:
            messages.print("[red]not repaired[/]:", escape(str(error)))
            failed = True
            continue
        for warning in warned:
            messages.print(f"[yellow]{escape(format_path(file))}[/]:", escape(str(warning.message)))
        output.print(f"[green]{escape(format_path(out or file))}[/]:", _summarize(repaired, copied=out is not None))
    raise typer.Exit(failed)


def _summarize(repaired: Repaired | None, *, copied: bool) -> str:
    from torchrl_rerun.kinds.schema import told_lacking

    if repaired is None:
        return "whole already, " + ("copied as it is" if copied else "nothing to do")
    found = ", ".join(
        format_count(number, unit)
        for number, unit in (
            (repaired.frames, "frame"),
            (repaired.episodes, "episode"),
            (repaired.envs, "environment"),
        )
    )
    cut = f"; {format_count(repaired.cut_bytes, 'byte')} of an unfinished write cut off" if repaired.cut_bytes else ""
    lacking = f"; {told_lacking(repaired.lacking)} were written" if repaired.lacking else ""
    return f"whole again, {found}{cut}{lacking}"
