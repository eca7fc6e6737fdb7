"""Episodes as rows: their columns, the order, and which columns there is room for."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from torchrl_rerun.kinds.episode import PROPERTIES
from torchrl_rerun.rrd.listing import RecordedEpisode
from torchrl_rerun.viewing.utc import shown_time, time_of

_ALWAYS = ("env", "episode", "episode_return")
_LAST_TO_GO = ("interrupted", "truncated", "files", "terminated", "length")
_FIRST_TO_GO = ("size", "first_step", "seed", "start_time")
_GAP = 2
_NAMES = ("env", "episode", "seed")
"""Numbers that count nothing."""
LONGEST = 30
"""Cells of a terminal that a text gets."""

_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_NOT_IN_JSON = {"nan": "NaN", "inf": "Infinity", "+inf": "Infinity", "infinity": "Infinity", "-inf": "-Infinity"}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: its heading.
        value: what an episode has there; None: nothing.
        text: how it is shown.
        read: the value that is meant by what a condition says.
    """

    name: str
    value: Callable[[RecordedEpisode], Any]
    text: Callable[[Any], str]
    read: Callable[[str], Any]


def columns_of(episodes: Sequence[RecordedEpisode], folder: Path) -> dict[str, Column]:
    """The columns of some episodes, by their names: the properties of an episode, its annotations, and its files.

    Args:
        episodes: the rows.
        folder: what their files' paths are shown relative to.
    """

    def files(recorded: RecordedEpisode) -> str:
        others = len(recorded.paths) - 1
        return f"{recorded.path.relative_to(folder)}{f' and {others} more' if others else ''}"

    columns = [
        Column(
            name,
            _property(name),
            str if name in _NAMES else _plain,
            _read_time if name == "start_time" else _read_value,
        )
        for name in PROPERTIES
    ]
    columns.append(Column("size", lambda each: each.size, decimal, _read_value))
    taken = {column.name for column in columns} | {"files"}
    for name in dict.fromkeys(name for each in episodes for name in each.episode.annotations):
        heading = f"annotated {name}" if name in taken else name
        columns.append(Column(heading, _annotated(name), _plain, _read_value))
    columns.append(Column("files", files, _plain, _read_value))
    return {column.name: column for column in columns}


def column_named(name: str, columns: dict[str, Column]) -> Column:
    """The column of a name.

    Raises:
        ValueError: there is none; names those there are.
    """
    if name not in columns:
        raise ValueError(f"there is no column {name!r}, but {', '.join(columns)}")
    return columns[name]


def condition(said: str, columns: dict[str, Column]) -> Callable[[RecordedEpisode], bool]:
    """Whether an episode has a value of which something is true: ``"success=false"``, ``"length<20"``.

    ``nan`` is equal to itself, as in SQL, ``null`` is what isn't there, and a time that names no zone is in UTC.

    Raises:
        ValueError: it isn't a column, a comparison and a value.
    """
    parts = _CONDITION.fullmatch(said)
    if parts is None:
        raise ValueError(f"{said!r} is not a column, one of {' '.join(_COMPARISONS)}, and a value")
    column, compare = column_named(parts[1], columns), _COMPARISONS[parts[2]]
    limit = column.read(parts[3])

    def is_true(recorded: RecordedEpisode) -> bool:
        kind, found = _rank(column.value(recorded))
        kind_of_limit, wanted = _rank(parts[3] if kind == _TEXT and not isinstance(limit, str) else limit)
        return bool(compare(found, wanted)) if kind == kind_of_limit else compare is operator.ne and kind < _NOTHING

    return is_true


def _read_value(said: str) -> Any:
    """A number, a truth value or a list, as JSON has them; else a text. JSON knows no ``nan`` in small letters."""
    try:
        return json.loads(_NOT_IN_JSON.get(said.lower(), said))
    except ValueError:
        return said


def _read_time(said: str) -> datetime | None:
    return None if said == "null" else time_of(said)


def ordered(episodes: Sequence[RecordedEpisode], column: Column, *, reverse: bool = False) -> list[RecordedEpisode]:
    """The episodes in the order of a column; those that have nothing there, or NaN, come last either way."""
    ranks = [(_rank(column.value(each)), each) for each in episodes]
    known = [pair for pair in ranks if pair[0][0] < _NAN]
    known.sort(key=lambda pair: pair[0], reverse=reverse)
    return [each for _, each in known] + [each for rank, each in ranks if rank[0] >= _NAN]


def drawn(episodes: Sequence[RecordedEpisode], columns: Sequence[Column], *, longest: int | None = None) -> Table:
    """The episodes as a table, which is as wide as it has to be.

    Args:
        episodes: the rows.
        columns: the columns.
        longest: cells to which texts are shortened, but for the names of files.
    """
    table = _empty()
    for column in columns:
        values = [column.value(each) for each in episodes]
        _add_column(table, column.name, values, None if column.name == "files" else longest)
    for each in episodes:
        cells = (Text(_text(column, each)) for column in columns)
        table.add_row(*cells, style="dim" if each.episode.interrupted else "")
    return table


def drawn_rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Any rows as a table.

    Args:
        names: the headings.
        rows: the values of each row.
    """
    table = _empty()
    for at, name in enumerate(names):
        _add_column(table, name, [row[at] for row in rows])
    for row in rows:
        table.add_row(*(Text("" if value is None else _plain(value)) for value in row))
    return table


def _empty() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")


def _add_column(table: Table, name: str, values: Sequence[Any], longest: int | None = None) -> None:
    is_number = all(_rank(value)[0] in {_NUMBER, _NAN, _NOTHING} and not isinstance(value, bool) for value in values)
    table.add_column(Text(name), justify="right" if is_number else "left", no_wrap=True, max_width=longest)


def fitting(
    episodes: Sequence[RecordedEpisode], columns: Sequence[Column], width: int, wanted: Column | None = None
) -> list[Column]:
    """Those columns for which a terminal has room, and the one that is ``wanted``."""
    widths = {}
    for column in columns:
        wide = max(cell_len(_text(column, each)) for each in episodes)
        widths[column.name] = max(cell_len(column.name), wide if column.name == "files" else min(wide, LONGEST)) + _GAP
    annotations = [column.name for column in columns if column.name not in (*_ALWAYS, *_LAST_TO_GO, *_FIRST_TO_GO)]
    for name in (*_FIRST_TO_GO, *reversed(annotations), *_LAST_TO_GO):
        if sum(widths.values()) - _GAP > width and not (wanted and name == wanted.name):
            widths.pop(name, None)
    return [column for column in columns if column.name in widths]


_NUMBER, _TIME, _TEXT, _LIST, _NAN, _NOTHING = range(6)


def _rank(value: Any) -> tuple[int, Any]:
    """What makes any values comparable: numbers come before times, texts, lists, what is not a number, and nothing."""
    if isinstance(value, str):
        return _TEXT, value
    if isinstance(value, list):
        return _LIST, [_rank(each) for each in value]
    if isinstance(value, datetime):
        return _TIME, value
    if isinstance(value, (int, float)):
        return (_NAN, 0) if math.isnan(value) else (_NUMBER, value)
    return _NOTHING, 0


def _text(column: Column, recorded: RecordedEpisode) -> str:
    value = column.value(recorded)
    return "" if value is None else column.text(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return shown_time(value)
    if isinstance(value, list):
        return " ".join(_plain(each) for each in value)
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def _property(name: str) -> Callable[[RecordedEpisode], Any]:
    return lambda each: each.episode.properties[name]


def _annotated(name: str) -> Callable[[RecordedEpisode], Any]:
    return lambda each: each.episode.annotations.get(name)
