"""``torchrl-rerun view``."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from torchrl_rerun.cli.choosing import Best, Last, Where, Worst, check_choice, chosen, columns_in, first_of, listed
from torchrl_rerun.cli.console import complaints, count, fail, said, with_progress, working
from torchrl_rerun.paths import absolute, shown

if TYPE_CHECKING:
    from torchrl_rerun.viewing.viewer import Viewer

_WHAT = "nothing to view"


def _address(bind: str | None) -> str | None:
    if bind is not None:
        try:
            ipaddress.ip_address(bind)
        except ValueError:
            raise typer.BadParameter(f"{bind!r} is no IP address of this machine; 0.0.0.0 stands for all") from None
    return bind


def view_recordings(
    recordings: Annotated[
        list[Path],
        typer.Argument(
            parser=absolute, metavar="FILE_OR_RUN...", help="Recordings, or folders of them.", show_default=False
        ),
    ],
    *,
    web: Annotated[bool, typer.Option("--web", help="For browsers, instead of in a window.")] = False,
    bind: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", callback=_address, help="Let others look: listen on this address, 0.0.0.0 for all."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where browsers get what is recorded.", show_default="9876")
    ] = None,
    web_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Where browsers get the viewer.", show_default="9090")
    ] = None,
    where: Where = None,
    best: Best = None,
    worst: Worst = None,
    last: Last = None,
) -> None:
    """Watch recordings in the Rerun viewer, until its window is closed, or Ctrl-C.

    With a recording come its parts and the files of its workers, with a folder all recordings in it; of a folder of
    episodes those that are chosen, as `ls` chooses them:

        torchrl-rerun view runs/ppo --worst 5

    `--web` serves the viewer to a browser on this machine, and prints its address. A browser holds all that it shows in
    memory. To watch from another machine, forward both ports (`ssh -L 9090:127.0.0.1:9090 -L 9876:127.0.0.1:9876 HOST`),
    or let everybody in the network look with `--bind 0.0.0.0`.
    """
    check_choice(best, worst, last)
    if not web and (bind, port, web_port) != (None, None, None):
        raise typer.BadParameter("is about what is served with --web", param_hint="'--bind' / '--port' / '--web-port'")
    choice = {"where": where, "best": best, "worst": worst, "last": last}
    try:
        files = list(dict.fromkeys(file for each in recordings for file in _files(each, choice)))
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
    """Show recordings until the window is closed, or Ctrl-C; what goes wrong ends the program.

    Args:
        files: the recordings.
        web: for browsers.
        bind: the address to listen on; None: this machine's own.
        port: the port of what is recorded; None: a free one.
        web_port: the port of the viewer; None: a free one.
        what: what hasn't come about if it goes wrong.
    """
    from torchrl_rerun.viewing.viewer import LOOPBACK, ViewerError, ended_by_signals, in_window

    try:
        with ended_by_signals():
            if web:
                _serve(files, bind or LOOPBACK, port, web_port)
            else:
                with in_window(files) as viewer:
                    _until_ctrl_c(viewer)
    except (OSError, ValueError) as error:
        fail(what, error)
    except ViewerError as error:
        fail(what, f"{error}. `--web` shows it in a browser, `torchrl-rerun screenshot` writes pictures of it")


def _files(given: Path, choice: dict[str, Any]) -> Iterator[Path]:
    """The files to open of what was given; those that can't be opened are left out of a folder, and refused alone."""
    from torchrl_rerun.rrd.files import files_of
    from torchrl_rerun.rrd.reader import why_unreadable

    if any(choice.values()):
        listing = listed(given)
        files = [path for each in chosen(listing, columns_in(listing, given), **choice) for path in each.paths]
        if not files:
            raise ValueError(f"{shown(given)} holds no such episodes (of {len(listing.episodes)})")
    else:
        files = files_of(given)
    troubles: dict[Path, str] = {}
    for file in with_progress(files, len(files), "looking"):
        trouble = why_unreadable(file)
        if trouble is None:
            yield file
        else:
            troubles[file] = trouble
    if given in troubles or len(troubles) == len(files):
        raise ValueError(troubles.get(given) or next(iter(troubles.values())))
    if troubles:
        complaints.print("[yellow]left out[/]:", escape(first_of(list(troubles.values()))))


def _serve(files: Sequence[Path], bind: str, port: int | None, web_port: int | None) -> None:
    from torchrl_rerun.viewing.viewer import GRPC_PORT, WEB_PORT, free_port, in_browsers, is_free, web_address

    for given in (port, web_port):
        if given is not None and not is_free(bind, given):
            raise OSError(f"nothing can listen on port {given} of {bind}: leave it out, and a free one is taken")
    try:
        port, web_port = port or free_port(bind, GRPC_PORT), web_port or free_port(bind, WEB_PORT)
    except OSError as error:
        raise OSError(f"{bind} is no address of this machine: {error.strerror}") from None
    with in_browsers(files, bind=bind, port=port, web_port=web_port) as viewer:
        with working("starting the viewer"):
            for each in (port, web_port):
                viewer.wait_until_it_listens(bind, each)
        said.print(f"open {web_address(bind, port, web_port)}")
        if not ipaddress.ip_address(bind).is_loopback:
            complaints.print(f"[yellow]whoever reaches {bind} of this machine can watch[/], without a password")
        complaints.print(f"[dim]serving {count(len(files), 'file')} until Ctrl-C[/]")
        _until_ctrl_c(viewer)


def _until_ctrl_c(viewer: Viewer) -> None:
    try:
        viewer.wait()
    except KeyboardInterrupt:
        complaints.print("[dim]ended[/]")
