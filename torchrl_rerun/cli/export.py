"""Command ``torchrl-rerun export``: write recordings as videos, tables or data sets."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from torchrl_rerun.cli.console import (
    advise_extra,
    check_fps,
    fail,
    format_count,
    messages,
    output,
    show_progress,
    show_status,
)
from torchrl_rerun.paths import format_path, make_absolute

if TYPE_CHECKING:
    from torchrl_rerun.export.mp4 import Exported, Video

_WHAT = "nothing exported"


def export_recording(
    recording: Annotated[
        Path,
        typer.Argument(
            parser=make_absolute, metavar="FILE_OR_RUN", help="A recording, or a folder of them.", show_default=False
        ),
    ],
    *,
    mp4: Annotated[bool, typer.Option("--mp4", help="Write the pictures as mp4 files.")] = False,
    parquet: Annotated[
        Path | None,
        typer.Option(
            "--parquet", parser=make_absolute, metavar="FILE", help="Write the steps as the rows of a Parquet file."
        ),
    ] = None,
    minari: Annotated[
        str | None, typer.Option("--minari", metavar="ID", help="Write the episodes as a Minari data set of this id.")
    ] = None,
    lerobot: Annotated[
        Path | None,
        typer.Option(
            "--lerobot",
            parser=make_absolute,
            metavar="FOLDER",
            help="Write the episodes as a data set in LeRobot's format.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            parser=make_absolute,
            metavar="PATH",
            help="Folder of the videos, or file of a single one. Default: beside the recording.",
        ),
    ] = None,
    env: Annotated[
        list[int] | None,
        typer.Option("--env", "-e", min=0, metavar="N", help="Export this environment alone; may be repeated."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", "-k", help="Export this key alone, such as pixels or agents/reward; may be repeated."),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Show all environments side by side in one video.")] = False,
    fps: Annotated[
        float | None,
        typer.Option(callback=check_fps, help="Frames per second. Default: the environment's own."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Write a recording in another format: videos, a table, or a data set.

    Recorded video is copied without being encoded again; other pictures are encoded. In a video, a picture stays until the
    next one of its environment, so that all play at the environment's own speed.

        torchrl-rerun export run.rrd --mp4 --grid -o run.mp4

    Tables and data sets hold complete steps, of all episodes in their order:

        torchrl-rerun export runs/expert --parquet expert.parquet
    """
    formats = sum([mp4, parquet is not None, minari is not None, lerobot is not None])
    if formats != 1:
        raise typer.BadParameter(
            f"{f'{formats} formats are' if formats else 'no format is'} given: choose one of --mp4 (videos), "
            "--parquet FILE (a table), --minari ID and --lerobot FOLDER (data sets)"
        )
    if not mp4 and (grid or out is not None):
        raise typer.BadParameter("needs --mp4", param_hint="'--grid' / '--out'")
    if fps is not None and not (mp4 or lerobot is not None):
        raise typer.BadParameter("needs --mp4 or --lerobot", param_hint="'--fps'")
    if mp4:
        _export_videos(recording, out, envs=env, keys=key, grid=grid, fps=fps, overwrite=overwrite)
        return
    try:
        _export_steps(recording, parquet, minari, lerobot, envs=env, fps=fps, keys=key, overwrite=overwrite)
    except ImportError as error:
        extra = "minari" if minari is not None else "video"
        fail(_WHAT, f"this needs {extra.title() if minari else 'PyAV'} ({error}): {advise_extra(extra)}")
    except (OSError, LookupError, RuntimeError, ValueError) as error:
        fail(_WHAT, error.args[0] if isinstance(error, LookupError) else error)


def _export_steps(
    recording: Path,
    parquet: Path | None,
    minari: str | None,
    lerobot: Path | None,
    *,
    envs: Sequence[int] | None,
    fps: float | None,
    **options: Any,
) -> None:
    with show_status("reading"):
        from torchrl_rerun.export.steps import left_out
        from torchrl_rerun.reading.load import load

        episodes = load(recording)
        if not episodes:
            raise ValueError(f"{format_path(recording)} holds no step")
        known = sorted({each.properties.env for each in episodes})
    for env in envs or ():
        if env not in known:
            raise IndexError(f"no episode is of environment {env}; recorded are {', '.join(map(str, known))}")
    if envs:
        episodes = episodes.where(lambda episode: episode.env in envs)
    options["progress"] = functools.partial(show_progress, what="exporting")
    with show_status("exporting"):
        if parquet is not None:
            from torchrl_rerun.export.parquet import to_parquet, unheld

            rest = left_out(episodes, unheld)
            rows = to_parquet(episodes, parquet, **options)
            name, what = (
                format_path(parquet),
                f"{format_count(rows, 'step')} of {format_count(len(episodes), 'episode')}",
            )
        elif minari is not None:
            from torchrl_rerun.export.minari import SIGN, to_minari, unheld_in

            rest = left_out(episodes, unheld_in(episodes))
            folder = to_minari(episodes, minari, **options)
            held = json.loads((folder / SIGN).read_text())["total_episodes"]
            name, what = minari, f"{format_count(held, 'episode')} in {folder}"
        elif lerobot is not None:
            from torchrl_rerun.export.lerobot import is_usual, to_lerobot, unheld

            rest = left_out(episodes, unheld, is_usual)
            written = to_lerobot(episodes, lerobot, fps=fps, **options)
            videos = f", videos of {', '.join(written.cameras)}" if written.cameras else ""
            steps = f"{format_count(written.steps, 'step')} of {format_count(written.episodes, 'episode')}"
            name, what = format_path(lerobot), f"{steps}, {written.fps:g} frames per second{videos}"
    output.print(f"[green]{escape(name)}[/]: {escape(what)}")
    if not options["keys"]:
        can_be_named, others = rest
        if can_be_named:
            messages.print(f"[dim]left out, unless --key names it: {escape(', '.join(can_be_named))}[/]")
        for each in others:
            messages.print(f"[dim]left out: {escape(each)}[/]")


def _export_videos(recording: Path, out: Path | None, **options: Any) -> None:
    try:
        with show_status("reading"):
            from av import FFmpegError

            from torchrl_rerun.export.mp4 import videos_of, write_video
    except ImportError:
        fail(_WHAT, f"this needs PyAV: {advise_extra('video')}")
    try:
        with show_status("reading"):
            videos = videos_of(recording, out, **options)
    except (OSError, LookupError, RuntimeError, ValueError) as error:
        fail(_WHAT, error.args[0] if isinstance(error, LookupError) else error)
    failed = False
    for video in videos:
        try:
            with show_status(video.path.name):
                exported = write_video(video, functools.partial(show_progress, what=video.path.name))
        except (FFmpegError, OSError, RuntimeError, ValueError) as error:
            messages.print("[red]not exported[/]:", escape(f"{format_path(video.path)}: {error}"))
            failed = True
            continue
        output.print(f"[green]{escape(format_path(exported.path))}[/]:", ", ".join(_list_facts(exported, video)))
    raise typer.Exit(failed)


def _list_facts(exported: Exported, video: Video) -> Iterator[str]:
    yield format_count(exported.pictures, "picture")
    (width, height), recorded = exported.size, exported.recorded_size
    padded = "" if recorded == exported.size else f" ({recorded[0]}x{recorded[1]}, filled up)"
    yield f"{width}x{height}{padded}"
    yield f"{exported.fps:g} frames per second{'' if video.fps else ' (not known: --fps)'}"
    yield "copied as it is" if exported.is_copy else "encoded"
    if exported.left_out:
        yield f"{format_count(exported.left_out, 'picture')} before the first keyframe left out"
