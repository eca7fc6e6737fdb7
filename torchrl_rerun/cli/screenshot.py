"""Command ``torchrl-rerun screenshot``: write pictures of what the viewer shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchrl_rerun.cli.console import fail, messages, output, show_status
from torchrl_rerun.paths import format_path, make_absolute

if TYPE_CHECKING:
    from torchrl_rerun.viewing.screenshots import Moment

_WHAT = "no screenshot"


def _check_size(text: str) -> str:
    if re.fullmatch(r"[1-9]\d{1,4}x[1-9]\d{1,4}", text) is None:
        raise typer.BadParameter(f"{text!r} is not a width and height, such as 1600x900")
    return text


def save_screenshots(
    recording: Annotated[
        Path,
        typer.Argument(
            parser=make_absolute, metavar="FILE_OR_RUN", help="A recording, or a folder of them.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Argument(parser=make_absolute, metavar="PICTURE", help="The PNG file to write.", show_default=False)
    ],
    *,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="TIMELINE=PLACE",
            help="Time of the picture, such as frame=60, sim_time=1.5, frame=-1 (the last frame) or end; may be repeated.",
        ),
    ] = None,
    size: Annotated[
        str, typer.Option(metavar="WIDTHxHEIGHT", callback=_check_size, help="Size of the picture in pixels.")
    ] = "1600x900",
    wait: Annotated[
        float, typer.Option(min=0.1, max=86400, metavar="SECONDS", help="Time limit of loading and decoding.")
    ] = 30.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Write a picture of what the viewer shows of a recording, without a window.

    Several `--at` give several pictures: `out_0.png`, `out_1.png`, or, if the name has a `{}`, with the place in it. If a
    view reports an error, the command prints it and exits with status 1.

        torchrl-rerun screenshot run.rrd frame_{}.png --at frame=0 --at frame=60

    Numbers below 0 count from the end, and `--at end` is the end of what is recorded.
    """
    with show_status("looking"):
        from torchrl_rerun.rrd.atomic import written_aside
        from torchrl_rerun.rrd.openable import whole_files_of
        from torchrl_rerun.viewing.program import ViewerError
        from torchrl_rerun.viewing.screenshots import Moment, take_screenshots
        from torchrl_rerun.viewing.shapes import with_shapes
        from torchrl_rerun.viewing.viewer import end_on_sigterm

    errors: dict[str, None] = {}
    try:
        moments = [Moment.parse(each) for each in at or ()]
        places = _make_paths(out, moments)
        existing = next((place for place in places if place.exists()), None)
        if existing is not None and not overwrite:
            fail(_WHAT, f"{format_path(existing)} exists already: choose another name, or pass --overwrite")
        files = whole_files_of(recording)
        width, height = map(int, size.split("x"))
        shots = take_screenshots(with_shapes(files), moments or [None], size=(width, height), wait=wait)
        with end_on_sigterm():
            for place in places:
                with show_status(f"looking: {place.name}"):
                    shot = next(shots)
                with written_aside(place, overwrite=overwrite) as hidden:
                    hidden.write_bytes(shot.png)
                output.print(
                    f"[green]{escape(format_path(place))}[/]" + ("" if shot.is_settled else ": still changing (--wait)")
                )
                errors |= dict.fromkeys(shot.errors)
                for warning in shot.warnings:
                    messages.print("[yellow]a view warns[/]:", escape(warning))
    except (OSError, ValueError, ViewerError) as error:
        fail(_WHAT, error)
    for report in errors:
        messages.print("[red]a view fails[/]:", escape(report))
    raise typer.Exit(bool(errors))


def _make_paths(out: Path, moments: Sequence[Moment]) -> list[Path]:
    """Return the path of each picture."""
    if "{}" in out.name:
        places = [out.with_name(out.name.replace("{}", moment.value)) for moment in moments]
        if len(set(places)) < max(1, len(moments)):
            raise ValueError(f"{out.name}: {{}} stands for the place of --at, and the places must differ")
        return places
    return [out.with_stem(f"{out.stem}_{number}") for number in range(len(moments))] if len(moments) > 1 else [out]
