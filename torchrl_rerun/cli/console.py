"""Output of all commands: standard output, messages on standard error, progress bars, JSON values."""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Item = TypeVar("Item")

output = Console(highlight=False, soft_wrap=True)
messages = Console(stderr=True, highlight=False, soft_wrap=True)
PIPE_WIDTH = 1 << 16
"""Width of a table that goes to a pipe, in cells."""

DELAY = 1.0
"""Seconds before a progress bar appears."""


def print_warnings_as_lines() -> None:
    """Print warnings as one line on standard error, without the source line that Python adds."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if category in (UserWarning, RuntimeWarning):  # Rerun and PyTorch warn with other classes
            messages.print("[yellow]warning[/]:", escape(str(message)))
        else:
            others(message, category, *where)

    warnings.showwarning = show  # type: ignore[assignment] # accepts any further arguments
    warnings.simplefilter("always", UserWarning)


def fail(what: str, why: object) -> NoReturn:
    """Print an error and end the program with status 1.

    Args:
        what: What failed, such as "nothing to list".
        why: Reason, and what to do.
    """
    reason = str(why).replace("overwrite=True", "--overwrite")
    messages.print(f"[red]{what}[/]:", escape(reason))
    raise typer.Exit(1)


def format_count(number: int, unit: str) -> str:
    """Return a number with its unit.

    >>> format_count(1, "frame"), format_count(2_000, "frame")
    ('1 frame', '2,000 frames')
    """
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def advise_extra(name: str) -> str:
    """Return the advice for a missing library: the extra to install, and the command."""
    return f"install the extra {name}: pip install 'torchrl-rerun[{name}]'"


def check_fps(number: float | None) -> float | None:
    """Return the value of ``--fps``; raise if video containers can't hold such a rate."""
    if number is not None and not 0.001 <= number <= 10_000:
        raise typer.BadParameter(f"{number} is not from 0.001 to 10000")
    return number


def to_json(value: Any) -> Any:
    r"""Return a value of a table as JSON has it.

    - Times become ISO 8601, durations seconds, bytes hexadecimal digits.
    - NaN and infinities become null.
    - Decimals become strings, which keep all digits.

    >>> to_json({"share": math.nan, "took": timedelta(minutes=1.5), "id": b"\x00\xff", "price": Decimal("1.50")})
    {'share': None, 'took': 90.0, 'id': '00ff', 'price': '1.50'}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(name): to_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(each) for each in value]
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if isinstance(value, Decimal) else repr(value)


class _InnermostProgress(Progress):
    """Progress display that shows the innermost task alone."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks[-1:])


_bars = _InnermostProgress(
    TextColumn("{task.description}"),
    BarColumn(),
    TaskProgressColumn(),
    TimeElapsedColumn(),
    console=messages,
    transient=True,
    redirect_stdout=False,  # standard output may be a pipe
)


@contextlib.contextmanager
def show_status(what: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """Show a progress bar in a terminal while the block runs, after :data:`DELAY`. A bar within another replaces it.

    Args:
        what: Text beside the bar.
        total: Number of items. Default: None, unknown. With None or 1 the bar shows elapsed time alone.

    Yields:
        Function to call after each item.
    """
    if not messages.is_interactive:
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


def show_progress(items: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
    """Yield items, with a progress bar as in :func:`show_status`.

    Args:
        items: Items.
        total: Number of items; None if unknown.
        what: Text beside the bar.
    """
    with show_status(what, total) as advance:
        for item in items:
            yield item
            advance()
