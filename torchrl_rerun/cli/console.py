"""What all commands say things with: the terminal, complaints, progress bars."""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Item = TypeVar("Item")

said = Console(highlight=False, soft_wrap=True)
complaints = Console(stderr=True, highlight=False, soft_wrap=True)
NO_END = 1 << 16
"""Columns of a pipe."""

DELAY = 1.0
"""Seconds that something takes before a bar appears."""


def say_warnings() -> None:
    """Let warnings be lines as all else that is said, without where in the program they come from."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if category in (UserWarning, RuntimeWarning):  # ours, and not Rerun's, which are of classes of their own
            complaints.print("[yellow]warning[/]:", escape(str(message)))
        else:
            others(message, category, *where)

    warnings.showwarning = show  # type: ignore[assignment] # it takes whatever comes after the first two
    warnings.simplefilter("always", UserWarning)


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


def frames_per_second(number: float | None) -> float | None:
    """What ``--fps`` says, if videos can have so many."""
    if number is not None and not 0.001 <= number <= 10_000:
        raise typer.BadParameter(f"{number} is not from 0.001 to 10000")
    return number


def jsonable(value: Any) -> Any:
    r"""What JSON has for a value of a table: times in ISO 8601, durations in seconds, bytes in hexadecimal digits.

    NaN and infinities become null, and decimals texts, which lose nothing.

    >>> jsonable({"share": math.nan, "took": timedelta(minutes=1.5), "id": b"\x00\xff", "price": Decimal("1.50")})
    {'share': None, 'took': 90.0, 'id': '00ff', 'price': '1.50'}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(name): jsonable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if isinstance(value, Decimal) else repr(value)


class _Innermost(Progress):
    """The bar of what is being done within all else."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks[-1:])


_bars = _Innermost(
    TextColumn("{task.description}"),
    BarColumn(),
    TaskProgressColumn(),
    TimeElapsedColumn(),
    console=complaints,
    transient=True,
    redirect_stdout=False,  # it may be a pipe
)


@contextlib.contextmanager
def working(what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar while something is done that takes longer than a second, in a terminal; another one within it takes its place.

    Args:
        what: what is done.
        total: of how many; None: unknown. Without it, and of one, the bar says that something is done, and since when.

    Yields:
        What to call when one of them is done.
    """
    if not complaints.is_interactive:
        yield lambda: None
        return
    is_outermost = not _bars.tasks
    task = _bars.add_task(escape(what), total=None if total == 1 else total)
    soon = threading.Timer(DELAY, _bars.start)
    soon.daemon = True
    if is_outermost:
        soon.start()
    try:
        yield lambda: _bars.advance(task)
    finally:
        _bars.remove_task(task)
        if is_outermost:
            soon.cancel()
            soon.join()
            _bars.stop()


def with_progress(items: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
    """The same items, and a bar as :func:`working` has it.

    Args:
        items: what is gone through.
        total: how many they are; None: unknown.
        what: what is done with them.
    """
    with working(what, total) as advance:
        for item in items:
            yield item
            advance()
