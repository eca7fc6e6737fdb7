"""Command ``torchrl-rerun info``: describe what recordings hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from torchrl_rerun.cli.console import (
    PIPE_WIDTH,
    fail,
    format_count,
    messages,
    output,
    show_progress,
    show_status,
    to_json,
)
from torchrl_rerun.paths import format_path, make_absolute

if TYPE_CHECKING:
    from torchrl_rerun.reading.describe import FileSummary, KeySummary, RecordingSummary

_WHAT = "nothing to tell"
_SPLITS = {"run": "a run", "dump": "a dump", "episode": "an episode"}


def show_info(
    recordings: Annotated[
        list[Path],
        typer.Argument(
            parser=make_absolute, metavar="FILE_OR_RUN...", help="Recordings, or folders of them.", show_default=False
        ),
    ],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON array of recordings, instead of tables.")
    ] = False,
) -> None:
    """Describe recordings: environments, episodes, keys, sizes, versions, and whether the files are finished.

    The command reads the files' indexes alone, so that large recordings take no longer. The episodes of a folder are
    summarised; `ls` lists each of them.
    """
    descriptions: list[RecordingSummary] = []
    others: list[FileSummary] = []
    try:
        with show_status("reading"):
            from torchrl_rerun.reading.describe import describe_files

            for path in recordings:
                found, rest = describe_files(path, lambda files: show_progress(files, len(files), "reading"))
                descriptions += found
                others += rest
    except (OSError, ValueError) as error:
        fail(_WHAT, error)
    if as_json:
        typer.echo(json.dumps(to_json([_collect_fields(each) for each in descriptions]), indent=2))
    else:
        for number, description in enumerate(descriptions):
            if number:
                output.print()
            _print(description)
    for part in [*others, *(part for each in descriptions for part in each.files)]:
        if part.trouble is not None:
            messages.print(f"[yellow]{'not finished' if part not in others else 'not read'}[/]:", escape(part.trouble))
    raise typer.Exit(not descriptions)


def _collect_fields(description: RecordingSummary) -> dict[str, object]:
    fields = dataclasses.asdict(description)
    for file in fields["files"]:
        file["path"] = str(file["path"])
    return fields


def _print(description: RecordingSummary) -> None:
    output.print(f"[bold]{escape(_format_name(description.files))}[/]: {', '.join(_list_facts(description.files))}")
    facts = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(no_wrap=not output.is_terminal)
    for name, value in _list_lines(description):
        facts.add_row(name, escape(value))
    keys = Table(box=None, padding=(0, 0, 0, 2), header_style="bold")
    for heading in ("key", "kind", "dtype", "shape", "format", "rows", "size"):
        keys.add_column(heading, justify="right" if heading in {"rows", "size"} else "left", no_wrap=True)
    for key in description.keys:
        keys.add_row(*map(escape, _format_cells(key)))
    # In a pipe, a table is as wide as its contents.
    console = output if output.is_terminal else Console(width=PIPE_WIDTH, highlight=False)
    console.print(facts)
    console.print(keys)


def _format_name(files: Sequence[FileSummary]) -> str:
    first = format_path(files[0].path)
    return first if len(files) == 1 else f"{first} and {len(files) - 1} more"


def _list_facts(files: Sequence[FileSummary]) -> Iterator[str]:
    yield decimal(sum(part.bytes for part in files))
    unfinished = sum(part.trouble is not None for part in files)
    yield f"{unfinished} unfinished" if unfinished and len(files) > 1 else "unfinished" if unfinished else "finished"
    without = sum(not part.has_layout for part in files)
    yield (
        f"{without} without a layout"
        if 0 < without < len(files)
        else "without a layout"
        if without
        else "with a layout"
    )


def _list_lines(description: RecordingSummary) -> Iterator[tuple[str, str]]:
    from torchrl_rerun.kinds.schema import PROPERTY

    envs, batch = description.envs, list(description.batch_size)
    name = description.env_name or description.application_id
    named = "" if name == PROPERTY else f"{name}, "  # application id of environments without a name
    yield "environment", f"{named}batch size {batch}, {_format_envs(envs)}"
    yield "frames per second", f"{description.fps:g}" if description.fps is not None else "not known"
    number = f"{description.recordings:,}, each" if description.recordings > 1 else "1,"
    yield "recordings", f"{number} of {_SPLITS[description.split]}"
    for timeline, (first, last) in description.spans.items():
        if timeline == "log_time":
            began, ended = (datetime.fromtimestamp(value / 1e9, UTC) for value in (first, last))
            yield "recorded", f"{began:%Y-%m-%d %H:%M:%S} to {ended:%Y-%m-%d %H:%M:%S} UTC"
        else:
            yield f"{timeline}s", f"{first:,} to {last:,}"
    yield "versions", ", ".join(f"{package} {version}" for package, version in description.versions.items())


def _format_envs(envs: Sequence[int]) -> str:
    if len(envs) == 1:
        return f"environment {envs[0]} recorded"
    whole = list(envs) == list(range(envs[0], envs[-1] + 1))
    return f"environments {f'{envs[0]} to {envs[-1]}' if whole else ', '.join(map(str, envs))} recorded"


def _format_cells(key: KeySummary) -> Iterator[str]:
    yield "/".join(key.key)
    yield key.kind
    yield key.dtype
    yield "x".join(map(str, key.shape)) + (f" ({format_count(len(key.agents), 'agent')})" if key.agents else "")
    yield key.image_format or ""
    yield f"{key.rows:,}"
    yield decimal(key.bytes)
