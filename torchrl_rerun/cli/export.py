"""``torchrl-rerun export``."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from torchrl_rerun.cli.console import complaints, count, fail, said, with_progress

if TYPE_CHECKING:
    from torchrl_rerun.exporting import Exported, Video

_WHAT = "nothing exported"


def export_pictures(
    recording: Annotated[
        Path, typer.Argument(metavar="FILE_OR_RUN", help="A recording, or a folder of them.", show_default=False)
    ],
    *,
    mp4: Annotated[bool, typer.Option("--mp4", help="As mp4 files. There is nothing else yet.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A folder, or for one video a file; otherwise beside the recording."),
    ] = None,
    env: Annotated[
        list[int] | None, typer.Option("--env", "-e", min=0, metavar="N", help="Of this environment; may be repeated.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", "-k", help="What is under this key, as pixels; may be repeated.")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="All environments side by side in one video.")] = False,
    fps: Annotated[
        float | None, typer.Option(min=0.001, help="Frames per second, instead of the environment's own.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Write the pictures of a recording as videos: one of each environment and camera, or a grid.

    What was recorded as video is copied as it is; all else is encoded. A picture stays until the next one of its
    environment, so that all videos run at the environment's own speed.

        torchrl-rerun export run.rrd --mp4 --grid -o run.mp4
    """
    if not mp4:
        raise typer.BadParameter("say as what: --mp4", param_hint="'--mp4'")
    try:
        from av import FFmpegError

        from torchrl_rerun.exporting import videos_of, write_video
    except ImportError:
        fail(_WHAT, "this needs PyAV: pip install 'torchrl-rerun[video]'")
    try:
        videos = videos_of(recording, out, envs=env, keys=key, grid=grid, fps=fps, overwrite=overwrite)
    except (OSError, LookupError, RuntimeError, ValueError) as error:
        fail(_WHAT, error.args[0] if isinstance(error, LookupError) else error)
    failed = False
    for video in videos:
        try:
            exported = write_video(video, functools.partial(with_progress, what=video.path.name))
        except (FFmpegError, OSError, RuntimeError, ValueError) as error:
            complaints.print("[red]not exported[/]:", escape(f"{video.path}: {error}"))
            failed = True
            continue
        said.print(f"[green]{escape(str(exported.path))}[/]:", ", ".join(_facts(exported, video)))
    raise typer.Exit(failed)


def _facts(exported: Exported, video: Video) -> Iterator[str]:
    yield count(exported.pictures, "picture")
    (width, height), recorded = exported.size, exported.recorded_size
    padded = "" if recorded == exported.size else f" ({recorded[0]}x{recorded[1]}, filled up)"
    yield f"{width}x{height}{padded}"
    yield f"{exported.fps:g} frames per second{'' if video.fps else ' (not known: --fps)'}"
    yield "copied as it is" if exported.is_copy else "encoded"
    if exported.left_out:
        yield f"{count(exported.left_out, 'picture')} before the first keyframe left out"
