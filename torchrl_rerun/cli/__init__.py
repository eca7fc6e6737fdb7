"""Command line ``torchrl-rerun``. Each command has a module, and imports heavy libraries only when it runs."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from torchrl_rerun.cli.compare import compare_runs
from torchrl_rerun.cli.console import messages, print_warnings_as_lines
from torchrl_rerun.cli.export import export_recording
from torchrl_rerun.cli.info import show_info
from torchrl_rerun.cli.ls import list_recorded
from torchrl_rerun.cli.query import query_episodes
from torchrl_rerun.cli.repair import repair_files
from torchrl_rerun.cli.replay import replay_stored
from torchrl_rerun.cli.screenshot import save_screenshots
from torchrl_rerun.cli.view import view_recordings


class _Program(TyperGroup):
    """Group of all commands. A failed write to standard output is one line on standard error, and exit status 1."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command."""
        try:
            try:
                return super().main(*args, **options)
            finally:
                if sys.stdout is not None:  # None if the parent process closed it
                    sys.stdout.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # the reader of standard error may be gone, too
                if not isinstance(error, BrokenPipeError):
                    messages.print("[red]not printed[/]:", escape(str(error)))
            with contextlib.suppress(OSError, ValueError):  # buffered output would fail again when Python exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


app = typer.Typer(
    cls=_Program,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def torchrl_rerun() -> None:
    """View, list, query, compare, export and repair recordings of RerunRecorder."""
    print_warnings_as_lines()


app.command("view")(view_recordings)
app.command("ls")(list_recorded)
app.command("query")(query_episodes)
app.command("compare")(compare_runs)
app.command("info")(show_info)
app.command("export")(export_recording)
app.command("screenshot")(save_screenshots)
app.command("repair")(repair_files)
app.command("replay")(replay_stored)
