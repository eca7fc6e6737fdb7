"""What all commands say things with: the terminal, complaints, progress bars."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

Item = TypeVar("Item")

said = Console(highlight=False, soft_wrap=True)
complaints = Console(stderr=True, highlight=False, soft_wrap=True)
NO_END = 1 << 16
"""Columns of a pipe."""


def fail(what: str, why: object) -> NoReturn:
    """End the program with status 1.

    Args:
        what: what hasn't come about, as "nothing to list".
        why: the reason, and what to do.
    """
    reason = str(why).replace("overwrite=True", "--overwrite")
    complaints.print(f"[red]{what}[/]:", escape(reason))
    raise typer.Exit(1)


def count(number: int, unit: str) -> str:
    """A number of things.

    >>> count(1, "frame"), count(2_000, "frame")
    ('1 frame', '2,000 frames')
    """
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def needs_extra(name: str) -> str:
    """What to do about a library that isn't installed; pip finds what the extra needs, wherever the rest came from."""
    return f"install the extra {name}: pip install 'torchrl-rerun[{name}]'"


def from_here(path: Path) -> Path:
    """A path as it is found from the working directory, if it lies below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(each) for each in value]
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return value


def with_progress(items: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
    """The same items, and a bar if they take longer than a second.

    Args:
        items: what is gone through.
        total: how many they are; None: unknown.
        what: what is done with them.
    """
    soon, coming = time.monotonic() + 1.0, iter(items)
    for done, item in enumerate(coming, 1):
        yield item
        if complaints.is_terminal and time.monotonic() > soon:
            from rich.progress import Progress

            with Progress(console=complaints, transient=True) as bar:
                task = bar.add_task(escape(what), total=total, completed=done)
                for slow in coming:
                    yield slow
                    bar.advance(task)
