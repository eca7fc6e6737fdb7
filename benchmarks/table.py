"""Table of all results, as text, JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.report import DISK_USE_OF, FORMATS_OF, Detail, Report, Row

BEGIN, END = "<!-- the table of `make bench` -->", "<!-- its end -->"

_VERDICTS = {True: "[green]yes[/]", False: "[bold red]no[/]", None: "[yellow]not yet[/]"}


def show(report: Report, about: Mapping[str, Any], console: Console) -> None:
    """Print the rows, the details and the machine."""
    console.print(_rows(report.rows))
    console.print(_details(report.details))
    console.print("; ".join(f"{name} {value}" for name, value in about.items()), highlight=False)


def save(report: Report, about: Mapping[str, Any], path: Path) -> None:
    """Write the rows, the details and the machine as JSON."""
    path.write_text(json.dumps({"about": dict(about), **report.as_json()}, indent=2) + "\n")


BAR = r"\|"
"""Replacement for ``|`` within a cell."""


def into_docs(report: Report, about: Mapping[str, Any], docs: Path) -> None:
    """Write the results into the pages of docs/ as Markdown, with the machine below them."""
    if report.rows:
        _into_page(docs / "performance.md", _rows_as_lines(report.rows), about)
    for begins, page, heading in ((FORMATS_OF, "images.md", "picture"), (DISK_USE_OF, "disk.md", "environment")):
        details = [detail for detail in report.details if detail.figure.startswith(begins)]
        if details:
            _into_page(docs / page, _details_as_lines(details, begins, heading), about)


def _into_page(path: Path, lines: Iterable[str], about: Mapping[str, Any]) -> None:
    """Write a table between a page's two marks."""
    machine = "; ".join(f"{name} {value}" for name, value in about.items())
    text = path.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    path.write_text("\n".join((before + BEGIN, "", *lines, "", f"({machine})", "", END)) + after)


def _rows_as_lines(rows: Sequence[Row]) -> Iterator[str]:
    yield _line("figure", "workload", "measured", "ratio", "must reach", "holds")
    yield "|---|---|---|---|---|---|"
    for row in rows:
        verdict = {True: "yes", False: "no", None: "not yet"}[row.holds]
        yield _line(row.figure, row.workload, row.measured, row.ratio, row.must_reach, verdict)


def _details_as_lines(details: Sequence[Detail], begins: str, heading: str) -> Iterator[str]:
    """Return a row for each figure, with a column for each measured detail."""
    names = list(dict.fromkeys(detail.what for detail in details))
    yield _line(heading, *names)
    yield "|" + "---|" * (1 + len(names))
    for figure, group in groupby(details, key=lambda detail: detail.figure):
        found = {detail.what: detail.measured for detail in group}
        yield _line(figure.removeprefix(begins), *(found.get(name, "") for name in names))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |"


def _rows(rows: tuple[Row, ...]) -> Table:
    table = Table(title="What recording costs", box=box.SIMPLE_HEAD, show_lines=True)
    for heading in ("figure", "workload", "measured", "ratio", "must reach", "holds"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row.figure, row.workload, row.measured, row.ratio, row.must_reach, _VERDICTS[row.holds])
    return table


def _details(details: tuple[Detail, ...]) -> Table:
    table = Table(title="Details", box=box.SIMPLE_HEAD)
    for heading in ("figure", "what", "measured"):
        table.add_column(heading, overflow="fold")
    for figure, group in groupby(details, key=lambda detail: detail.figure):
        for number, detail in enumerate(group):
            table.add_row("" if number else figure, detail.what, detail.measured)
        table.add_section()
    return table
