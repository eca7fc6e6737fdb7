"""The command line: ``torchrl-rerun``. Each command has a module; what it needs beyond this is imported when it runs."""

from __future__ import annotations

import typer

from torchrl_rerun.cli.compare import compare_runs
from torchrl_rerun.cli.console import say_warnings
from torchrl_rerun.cli.export import export_recording
from torchrl_rerun.cli.info import show_info
from torchrl_rerun.cli.ls import list_recorded
from torchrl_rerun.cli.query import query_episodes
from torchrl_rerun.cli.repair import repair_files
from torchrl_rerun.cli.replay import replay_stored
from torchrl_rerun.cli.screenshot import take_screenshots
from torchrl_rerun.cli.view import view_recordings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def torchrl_rerun() -> None:
    """Recordings that RerunRecorder made."""
    say_warnings()


app.command("view")(view_recordings)
app.command("ls")(list_recorded)
app.command("query")(query_episodes)
app.command("compare")(compare_runs)
app.command("info")(show_info)
app.command("export")(export_recording)
app.command("screenshot")(take_screenshots)
app.command("repair")(repair_files)
app.command("replay")(replay_stored)
