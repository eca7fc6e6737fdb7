"""Tables of episodes: columns, conditions on them, the order of rows, and the columns that fit a terminal."""

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

from torchrl_rerun.kinds.episode import EPISODE_PROPERTIES
from torchrl_rerun.rrd.listing import RecordedEpisode
from torchrl_rerun.viewing.times import format_time, parse_time

_ALWAYS = ("env", "episode", "episode_return")
_DROP_LAST = ("interrupted", "truncated", "files", "terminated", "length")
_DROP_FIRST = ("size", "first_step", "seed", "start_time")
_GAP = 2
_IDS = ("env", "episode", "seed")
"""Columns of ids, which have no thousands separators."""
LONGEST = 30
"""Largest width of a text in a terminal, in cells."""

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
    """Column of a table of episodes.

    Attributes:
        name: Heading.
        value: Function from an episode to its value, or None if it has none.
        text: Function from a value to the text of a cell.
        read: Function from the text in a condition to a value.
    """

    name: str
    value: Callable[[RecordedEpisode], Any]
    text: Callable[[Any], str]
    read: Callable[[str], Any]


def make_columns(episodes: Sequence[RecordedEpisode], folder: Path) -> dict[str, Column]:
    """Return the columns of some episodes by their names: properties, annotations, and files.

    Args:
        episodes: Rows.
        folder: Folder that the paths of files are relative to.
    """

    def files(recorded: RecordedEpisode) -> str:
        return format_files([str(path.relative_to(folder)) for path in recorded.files], is_in_box=recorded.is_in_box)

    columns = [
        Column(
            name,
            _make_property_getter(name),
            str if name in _IDS else _format_value,
            _read_time if name == "start_time" else _read_value,
        )
        for name in EPISODE_PROPERTIES
    ]
    columns.append(Column("size", lambda each: each.size, decimal, _read_value))
    taken = {column.name for column in columns} | {"files"}
    for name in dict.fromkeys(name for each in episodes for name in each.episode.annotations):
        heading = f"annotated {name}" if name in taken else name
        columns.append(Column(heading, _make_annotation_getter(name), _format_value, _read_value))
    columns.append(Column("files", files, _format_value, _read_value))
    return {column.name: column for column in columns}


def format_files(names: Sequence[str], *, is_in_box: bool) -> str:
    """Return the files of an episode as text: the last one, and what there is beside it.

    >>> format_files(["a.rrd"], is_in_box=False), format_files([], is_in_box=True)
    ('a.rrd', 'in the black box')
    >>> format_files(["a.part_0.rrd", "a.part_1.rrd"], is_in_box=True)
    'a.part_1.rrd and 1 more, and the black box'
    """
    if not names:
        return "in the black box"
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[-1]}{others}{(',' if others else '') + ' and the black box' if is_in_box else ''}"


def find_column(name: str, columns: dict[str, Column]) -> Column:
    """Return the column of a name.

    Raises:
        ValueError: The column doesn't exist; the message names the columns that do.
    """
    if name not in columns:
        raise ValueError(f"there is no column {name!r}, but {', '.join(columns)}")
    return columns[name]


def parse_condition(text: str, columns: dict[str, Column]) -> Callable[[RecordedEpisode], bool]:
    """Return the function that decides whether an episode satisfies a condition such as ``"success=false"``.

    - ``nan`` equals itself, as in SQL.
    - ``null`` stands for a missing value.
    - A time without a zone is in UTC.

    Args:
        text: Column, comparison and value.
        columns: Columns by their names.

    Raises:
        ValueError: The condition is malformed, or names a column that doesn't exist.
    """
    parts = _CONDITION.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text!r} is not a column, one of {' '.join(_COMPARISONS)}, and a value")
    column, compare = find_column(parts[1], columns), _COMPARISONS[parts[2]]
    limit = column.read(parts[3])

    def is_true(recorded: RecordedEpisode) -> bool:
        kind, found = _rank(column.value(recorded))
        kind_of_limit, wanted = _rank(parts[3] if kind == _TEXT and not isinstance(limit, str) else limit)
        return bool(compare(found, wanted)) if kind == kind_of_limit else compare is operator.ne and kind < _NOTHING

    return is_true


def _read_value(text: str) -> Any:
    """Return the JSON value of a text; the text itself if it isn't JSON. ``nan`` and ``inf`` are accepted in any case."""
    try:
        return json.loads(_NOT_IN_JSON.get(text.lower(), text))
    except ValueError:
        return text


def _read_time(text: str) -> datetime | None:
    return None if text == "null" else parse_time(text)


def sort_episodes(
    episodes: Sequence[RecordedEpisode], column: Column, *, reverse: bool = False
) -> list[RecordedEpisode]:
    """Return the episodes in the order of a column. Missing values and NaN come last, also if reversed."""
    ranks = [(_rank(column.value(each)), each) for each in episodes]
    known = [pair for pair in ranks if pair[0][0] < _NAN]
    known.sort(key=lambda pair: pair[0], reverse=reverse)
    return [each for _, each in known] + [each for rank, each in ranks if rank[0] >= _NAN]


def draw_episodes(
    episodes: Sequence[RecordedEpisode], columns: Sequence[Column], *, longest: int | None = None
) -> Table:
    """Return a table of episodes, as wide as its contents.

    Args:
        episodes: Rows.
        columns: Columns.
        longest: Width to which texts are shortened, in cells, except the names of files. Default: None, no limit.
    """
    table = _make_table()
    for column in columns:
        values = [column.value(each) for each in episodes]
        _add_column(table, column.name, values, None if column.name == "files" else longest)
    for each in episodes:
        cells = (Text(_format_cell(column, each)) for column in columns)
        table.add_row(*cells, style="dim" if each.episode.interrupted else "")
    return table


def draw_rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table of any rows.

    Args:
        names: Headings.
        rows: Values of each row.
    """
    table = _make_table()
    for at, name in enumerate(names):
        _add_column(table, name, [row[at] for row in rows])
    for row in rows:
        table.add_row(*(Text(_format_named(name, value)) for name, value in zip(names, row, strict=True)))
    return table


def _format_named(name: str, value: Any) -> str:
    """Return a value as text. Ids are written as options take them, without thousands separators."""
    if value is None:
        return ""
    return str(value) if name in _IDS and isinstance(value, int) else _format_value(value)


def _make_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")


def _add_column(table: Table, name: str, values: Sequence[Any], longest: int | None = None) -> None:
    is_number = all(_rank(value)[0] in {_NUMBER, _NAN, _NOTHING} and not isinstance(value, bool) for value in values)
    table.add_column(Text(name), justify="right" if is_number else "left", no_wrap=True, max_width=longest)


def fit_columns(
    episodes: Sequence[RecordedEpisode], columns: Sequence[Column], width: int, wanted: Column | None = None
) -> list[Column]:
    """Return the columns that fit a width in cells, and always the column ``wanted``."""
    widths = {}
    for column in columns:
        wide = max(cell_len(_format_cell(column, each)) for each in episodes)
        widths[column.name] = max(cell_len(column.name), wide if column.name == "files" else min(wide, LONGEST)) + _GAP
    annotations = [column.name for column in columns if column.name not in (*_ALWAYS, *_DROP_LAST, *_DROP_FIRST)]
    for name in (*_DROP_FIRST, *reversed(annotations), *_DROP_LAST):
        if sum(widths.values()) - _GAP > width and not (wanted and name == wanted.name):
            widths.pop(name, None)
    return [column for column in columns if column.name in widths]


_NUMBER, _TIME, _TEXT, _LIST, _NAN, _NOTHING = range(6)


def _rank(value: Any) -> tuple[int, Any]:
    """Return a sort key for any value: numbers, times, texts, lists, NaN, missing values, in this order."""
    if isinstance(value, str):
        return _TEXT, value
    if isinstance(value, list):
        return _LIST, [_rank(each) for each in value]
    if isinstance(value, datetime):
        return _TIME, value
    if isinstance(value, (int, float)):
        return (_NAN, 0) if math.isnan(value) else (_NUMBER, value)
    return _NOTHING, 0


def _format_cell(column: Column, recorded: RecordedEpisode) -> str:
    value = column.value(recorded)
    return "" if value is None else column.text(value)


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return format_time(value)
    if isinstance(value, list):
        return " ".join(_format_value(each) for each in value)
    text = str(value)
    return text if text.isprintable() else repr(text)[1:-1]


def _make_property_getter(name: str) -> Callable[[RecordedEpisode], Any]:
    return lambda each: each.episode.properties[name]


def _make_annotation_getter(name: str) -> Callable[[RecordedEpisode], Any]:
    return lambda each: each.episode.annotations.get(name)
