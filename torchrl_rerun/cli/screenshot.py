"""``torchrl-rerun screenshot``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchrl_rerun.cli.console import complaints, fail, said, working
from torchrl_rerun.paths import absolute, shown

if TYPE_CHECKING:
    from torchrl_rerun.viewing.screenshots import Moment

_WHAT = "no screenshot"


def _size(said_size: str) -> str:
    if re.fullmatch(r"[1-9]\d{1,4}x[1-9]\d{1,4}", said_size) is None:
        raise typer.BadParameter(f"{said_size!r} is no width and height, as 1600x900")
    return said_size


def take_screenshots(
    recording: Annotated[
        Path,
        typer.Argument(
            parser=absolute, metavar="FILE_OR_RUN", help="A recording, or a folder of them.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Argument(parser=absolute, metavar="PICTURE", help="The PNG file to write.", show_default=False)
    ],
    *,
    at: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="TIMELINE=PLACE", help="When, as frame=60 or sim_time=1.5; may be repeated."),
    ] = None,
    size: Annotated[
        str, typer.Option(metavar="WIDTHxHEIGHT", callback=_size, help="Of the picture, in pixels.")
    ] = "1600x900",
    wait: Annotated[
        float, typer.Option(min=0.1, max=86400, metavar="SECONDS", help="How long loading and decoding may take.")
    ] = 30.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Write what the viewer shows of a recording as a picture, without a window.

    With several `--at` there are several pictures: `out_0.png`, `out_1.png`, or where the name has a `{}` the places
    in it. Where a view can't show something that is said, and the exit status is 1.

        torchrl-rerun screenshot run.rrd frame_{}.png --at frame=0 --at frame=60
    """
    with working("looking"):
        from torchrl_rerun.rrd.atomic import written_aside
        from torchrl_rerun.rrd.files import whole_files_of
        from torchrl_rerun.viewing.screenshots import Moment, screenshots
        from torchrl_rerun.viewing.viewer import ViewerError, ended_by_signals

    errors: dict[str, None] = {}
    try:
        moments = [Moment.parse(each) for each in at or ()]
        places = _places(out, moments)
        there = next((place for place in places if place.exists()), None)
        if there is not None and not overwrite:
            fail(_WHAT, f"{shown(there)} exists already: choose another name, or pass --overwrite")
        files = whole_files_of(recording)
        width, height = map(int, size.split("x"))
        shots = screenshots(files, moments or [None], size=(width, height), wait=wait)
        with ended_by_signals():
            for place in places:
                with working(f"looking: {place.name}"):
                    shot = next(shots)
                with written_aside(place, overwrite=overwrite) as hidden:
                    hidden.write_bytes(shot.png)
                said.print(
                    f"[green]{escape(shown(place))}[/]" + ("" if shot.is_settled else ": still changing (--wait)")
                )
                errors |= dict.fromkeys(shot.errors)
                for warning in shot.warnings:
                    complaints.print("[yellow]a view warns[/]:", escape(warning))
    except (OSError, ValueError, ViewerError) as error:
        fail(_WHAT, error)
    for report in errors:
        complaints.print("[red]a view fails[/]:", escape(report))
    raise typer.Exit(bool(errors))


def _places(out: Path, moments: Sequence[Moment]) -> list[Path]:
    """Where each picture goes."""
    if "{}" in out.name:
        places = [out.with_name(out.name.replace("{}", moment.value)) for moment in moments]
        if len(set(places)) < max(1, len(moments)):
            raise ValueError(f"{out.name}: {{}} stands for the places of --at, which have to differ")
        return places
    return [out.with_stem(f"{out.stem}_{number}") for number in range(len(moments))] if len(moments) > 1 else [out]
