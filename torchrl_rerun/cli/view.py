"""Command ``torchrl-rerun view``: open recordings in the Rerun viewer."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from torchrl_rerun.cli.console import fail, format_count, messages, output, show_progress, show_status
from torchrl_rerun.cli.selection import (
    Best,
    Last,
    Where,
    Worst,
    check_exclusive,
    list_run,
    make_run_columns,
    select_episodes,
    summarize,
)
from torchrl_rerun.paths import format_path, make_absolute

if TYPE_CHECKING:
    from torchrl_rerun.viewing.viewer import Viewer

_WHAT = "nothing to view"


def _check_address(bind: str | None) -> str | None:
    if bind is not None:
        try:
            ipaddress.ip_address(bind)
        except ValueError:
            raise typer.BadParameter(f"{bind!r} is not an IP address of this machine; 0.0.0.0 stands for all") from None
    return bind


def view_recordings(
    recordings: Annotated[
        list[Path],
        typer.Argument(
            parser=make_absolute, metavar="FILE_OR_RUN...", help="Recordings, or folders of them.", show_default=False
        ),
    ],
    *,
    web: Annotated[
        bool, typer.Option("--web", help="Serve the viewer to browsers, instead of opening a window.")
    ] = False,
    bind: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            callback=_check_address,
            help="Listen on this address, so that other machines can connect; 0.0.0.0 for all.",
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the recordings, for browsers.", show_default="9876")
    ] = None,
    web_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the viewer, for browsers.", show_default="9090")
    ] = None,
    where: Where = None,
    best: Best = None,
    worst: Worst = None,
    last: Last = None,
) -> None:
    """Watch recordings in the Rerun viewer, until its window is closed, or Ctrl-C.

    A recording is opened with its parts and the files of its workers, a folder with all recordings in it. From a folder
    of episodes, options select some, as in `ls`:

        torchrl-rerun view runs/ppo --worst 5

    `--web` serves the viewer to a browser on this machine, and prints its address. A browser keeps everything that it
    shows in memory. To watch from another machine, forward both ports
    (`ssh -L 9090:127.0.0.1:9090 -L 9876:127.0.0.1:9876 HOST`), or let every machine on the network connect with
    `--bind 0.0.0.0`.
    """
    check_exclusive(best, worst, last)
    if not web and (bind, port, web_port) != (None, None, None):
        raise typer.BadParameter("needs --web", param_hint="'--bind' / '--port' / '--web-port'")
    options = {"where": where, "best": best, "worst": worst, "last": last}
    try:
        files = list(dict.fromkeys(file for each in recordings for file in _select_files(each, options)))
    except (OSError, ValueError) as error:
        fail(_WHAT, error)
    watch(files, web=web, bind=bind, port=port, web_port=web_port)


def watch(
    files: Sequence[Path],
    *,
    web: bool,
    bind: str | None = None,
    port: int | None = None,
    web_port: int | None = None,
    what: str = _WHAT,
) -> None:
    """Show recordings until the window is closed, or Ctrl-C. An error ends the program with status 1.

    Args:
        files: Recordings.
        web: Serve browsers instead of opening a window.
        bind: Address to listen on. Default: None, the loopback address.
        port: Port of the recordings. Default: None, a free one.
        web_port: Port of the viewer. Default: None, a free one.
        what: What failed, for the error message.
    """
    from torchrl_rerun.viewing.program import ViewerError
    from torchrl_rerun.viewing.viewer import LOOPBACK, end_on_sigterm, open_window

    try:
        with end_on_sigterm():
            if web:
                _serve(files, bind or LOOPBACK, port, web_port)
            else:
                with open_window(files) as viewer:
                    _wait_for_ctrl_c(viewer)
    except (OSError, ValueError) as error:
        fail(what, error)
    except ViewerError as error:
        fail(what, f"{error}. Use `--web` for a browser, or `torchrl-rerun screenshot` for pictures")


def _select_files(given: Path, options: dict[str, Any]) -> list[Path]:
    """Return the files to open. Leave out unreadable files of a folder; raise if no file can be opened."""
    from torchrl_rerun.rrd.files import files_of
    from torchrl_rerun.rrd.openable import openable
    from torchrl_rerun.rrd.reader import why_unreadable

    if any(options.values()):
        listing = list_run(given)
        files = [
            path
            for each in select_episodes(listing, make_run_columns(listing, given), **options)
            for path in openable(each.paths, each.recording_id)
        ]
        if not files:
            raise ValueError(
                f"{format_path(given)} holds {format_count(len(listing.episodes), 'episode')}, none of which satisfies the options"
            )
    else:
        files = files_of(given)
        files = openable(show_progress(files, len(files), "looking"))
    reasons = {file: why_unreadable(file) for file in show_progress(files, len(files), "checking")}
    unreadable = {file: reason for file, reason in reasons.items() if reason is not None}
    if given in unreadable or len(unreadable) == len(files):
        raise ValueError(unreadable.get(given) or next(iter(unreadable.values())))
    if unreadable:
        messages.print("[yellow]left out[/]:", escape(summarize(list(unreadable.values()))))
    return [file for file in files if file not in unreadable]


def _serve(files: Sequence[Path], bind: str, port: int | None, web_port: int | None) -> None:
    from torchrl_rerun.viewing.viewer import GRPC_PORT, WEB_PORT, find_free_port, is_free, make_web_address, serve_web

    for given in (port, web_port):
        if given is not None and not is_free(bind, given):
            raise OSError(f"nothing can listen on port {given} of {bind}: leave the option out to use a free port")
    try:
        port, web_port = port or find_free_port(bind, GRPC_PORT), web_port or find_free_port(bind, WEB_PORT)
    except OSError as error:
        raise OSError(f"{bind} is not an address of this machine: {error.strerror}") from None
    with serve_web(files, bind=bind, port=port, web_port=web_port) as viewer:
        with show_status("starting the viewer"):
            for each in (port, web_port):
                viewer.wait_until_listening(bind, each)
        output.print(f"open {make_web_address(bind, port, web_port)}")
        if not ipaddress.ip_address(bind).is_loopback:
            messages.print(f"[yellow]every machine that reaches {bind} can watch[/], without a password")
        messages.print(f"[dim]serving {format_count(len(files), 'file')} until Ctrl-C[/]")
        _wait_for_ctrl_c(viewer)


def _wait_for_ctrl_c(viewer: Viewer) -> None:
    try:
        viewer.wait()
    except KeyboardInterrupt:
        messages.print("[dim]ended[/]")
