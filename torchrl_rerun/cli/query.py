"""``torchrl-rerun query``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from torchrl_rerun.cli.console import NO_END, complaints, count, fail, jsonable, needs_extra, said, working
from torchrl_rerun.paths import absolute

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
    paths: Annotated[bool, typer.Option("--paths", help="The paths of their files alone, one a line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array of rows, instead of a table.")] = False,
) -> None:
    """Ask for episodes in SQL: of folders of episodes, and of whole runs.

    The columns are what is known of each episode, as `ls` has them, but for `size`. Times are in UTC:

        torchrl-rerun query runs/ppo "episode_return < 50 AND NOT success"

    A whole query asks the table `episodes`:

        torchrl-rerun query run.rrd "SELECT env, avg(length) FROM episodes GROUP BY env"
    """
    try:
        with working("reading"):
            from torchrl_rerun.reading.query import query

            table = query(run, condition)
    except ImportError as error:
        fail(_WHAT, f"query needs DataFusion ({error}): {needs_extra('catalog')}")
    except (OSError, RuntimeError, ValueError) as error:
        fail(_WHAT, error)
    if paths:
        if "files" not in table.schema.names:
            fail(_WHAT, f"--paths needs the column files, and this query gives {', '.join(table.schema.names)}")
        for path in _paths(table.column("files")):
            typer.echo(path)
    elif as_json:
        typer.echo(json.dumps([jsonable(row) for row in table.to_pylist()], indent=2))
    elif len(table):
        _print_table(table, absolute(run))
    else:
        complaints.print("none")


def _print_table(table: pa.Table, run: Path) -> None:
    from torchrl_rerun.cli.table import drawn_rows

    names = [name for name in table.schema.names if table.column(name).null_count < len(table)]
    rows = [[row[name] for name in names] for row in table.to_pylist()]
    if "files" in names:
        at, folder = names.index("files"), run if run.is_dir() else run.parent
        for row in rows:
            row[at] = _shortened(row[at], folder)
    width = said.width if said.is_terminal else NO_END
    Console(width=width, highlight=False).print(drawn_rows(names, rows))
    complaints.print(f"[dim]{count(len(rows), 'row')}[/]")


def _paths(column: pa.ChunkedArray) -> list[str]:
    """The files in a column, each once; what else a query calls so is refused."""
    values = [value for row in column.to_pylist() for value in (row if isinstance(row, list) else [row])]
    paths = list(dict.fromkeys(value for value in values if value is not None))
    if not all(isinstance(path, str) for path in paths):
        fail(_WHAT, f"--paths needs the column files as it is, and this query gives values of type {column.type} there")
    return paths


def _shortened(files: Any, folder: Path) -> Any:
    """The first of some files, as it is found from a folder; what else a query calls so as it is."""
    if not (isinstance(files, list) and files and isinstance(files[0], str)):
        return files
    first = Path(files[0])
    shown = first.relative_to(folder) if first.is_relative_to(folder) else first
    return f"{shown}{f' and {len(files) - 1} more' if len(files) > 1 else ''}"
