"""Command ``torchrl-rerun query``: select episodes in SQL."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from torchrl_rerun.cli.console import (
    PIPE_WIDTH,
    advise_extra,
    fail,
    format_count,
    messages,
    output,
    show_status,
    to_json,
)
from torchrl_rerun.paths import make_absolute

if TYPE_CHECKING:
    import pyarrow as pa

_WHAT = "no answer"


def query_episodes(
    run: Annotated[
        str,
        typer.Argument(metavar="FILE_OR_RUN", help="A recording, or a folder of them.", show_default=False),
    ],
    condition: Annotated[
        str, typer.Argument(metavar="SQL", help="A condition, or a whole SELECT.", show_default=False)
    ],
    *,
    paths: Annotated[bool, typer.Option("--paths", help="Print the paths of the files alone, one a line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of rows, instead of a table.")] = False,
) -> None:
    """Select episodes in SQL, from folders of episodes and from recordings of whole runs.

    Columns are those of `ls`, except `size`. Times are in UTC:

        torchrl-rerun query runs/ppo "episode_return < 50 AND NOT success"

    A whole SELECT reads the table `episodes`:

        torchrl-rerun query run.rrd "SELECT env, avg(length) FROM episodes GROUP BY env"
    """
    try:
        with show_status("reading"):
            from torchrl_rerun.reading.query import query

            table = query(run, condition)
    except ImportError as error:
        fail(_WHAT, f"query needs DataFusion ({error}): {advise_extra('catalog')}")
    except (OSError, RuntimeError, ValueError) as error:
        fail(_WHAT, error)
    if paths:
        if "files" not in table.schema.names:
            fail(
                _WHAT,
                f"--paths needs the column files, but the query returns {', '.join(table.schema.names)}: select files, too",
            )
        for path in _collect_paths(table.column("files")):
            typer.echo(path)
        if without := sum(row == [] for row in table.column("files").to_pylist()):
            what = f"{format_count(without, 'episode')} without a file, in the black box"
            command = shlex.join(["torchrl-rerun", "repair", run])
            messages.print("[yellow]left out[/]:", escape(f"{what}: `{command}` makes files of what is there"))
    elif as_json:
        typer.echo(json.dumps([to_json(row) for row in table.to_pylist()], indent=2))
    elif len(table):
        _print_table(table, make_absolute(run))
    else:
        messages.print("none")


def _print_table(table: pa.Table, run: Path) -> None:
    from torchrl_rerun.cli.table import draw_rows

    names = [name for name in table.schema.names if table.column(name).null_count < len(table)]
    rows = [[row[name] for name in names] for row in table.to_pylist()]
    if "files" in names:
        at, folder = names.index("files"), run if run.is_dir() else run.parent
        for row in rows:
            row[at] = _shorten(row[at], folder)
    width = output.width if output.is_terminal else PIPE_WIDTH
    Console(width=width, highlight=False).print(draw_rows(names, rows))
    messages.print(f"[dim]{format_count(len(rows), 'row')}[/]")


def _collect_paths(column: pa.ChunkedArray) -> list[str]:
    """Return the paths in a column, each once. Fail if the column holds other values."""
    values = [value for row in column.to_pylist() for value in (row if isinstance(row, list) else [row])]
    paths = list(dict.fromkeys(value for value in values if value is not None))
    if not all(isinstance(path, str) for path in paths):
        fail(
            _WHAT,
            f"--paths needs the column files unchanged, but the query returns values of type {column.type} under this name",
        )
    return paths


def _shorten(files: Any, folder: Path) -> Any:
    """Return the first of some files relative to a folder. Return a value that isn't a list of files unchanged."""
    if files == []:
        return "in the black box"
    if not (isinstance(files, list) and files and isinstance(files[0], str)):
        return files
    first = Path(files[0])
    shown = first.relative_to(folder) if first.is_relative_to(folder) else first
    return f"{shown}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
