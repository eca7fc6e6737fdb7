"""The command: run iterations one after the other, show progress in a line, and a table at the end."""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table

from servers import FORGETFUL, started_viewer
from soak.plans import FAULTS, Plan
from soak.runners import Outcome, Runners

WARM_UP = 20
"""Iterations after which the growth of a process's memory is measured."""

MAX_GROWTH = 64 << 20
"""Allowed growth of the bytes in use after the warm-up."""


@dataclass
class Soak:
    """Counts and failures of all iterations so far."""

    seed: int
    began: float = field(default_factory=time.monotonic)
    tally: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[Outcome] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)
    growth: int = 0

    def add(self, outcome: Outcome, seconds: float) -> None:
        """Add the outcome of an iteration."""
        self.tally.update(outcome.tally)
        self.slowest = max(self.slowest, (seconds, outcome.seed))
        if outcome.failure:
            self.failures.append(outcome)

    def line(self) -> str:
        """Return the line of progress."""
        t = self.tally
        faults = sum(count for name, count in t.items() if name.startswith("fault "))
        return (
            f"{time.monotonic() - self.began:4.0f} s   {t['runs']} runs, {t['frames']:,} frames, {faults} faults, "
            f"{t['rows compared']:,} rows compared, {len(self.failures)} failures"
        )

    def table(self) -> Table:
        """Return the table of all counts."""
        t, seconds = self.tally, time.monotonic() - self.began
        table = Table(title=f"soak of {seconds:.0f} s, seed {self.seed}", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_row("runs", f"{t['runs'] + len(self.failures):,}")
        for name in ("frames", "steps", "episodes", "files", "bytes", "dumps", "closes", "looks"):
            table.add_row(name, f"{t[name]:,}", end_section=name == "looks")
        for kind in ("way", "sink"):
            found = {name: count for name, count in t.items() if name.startswith(f"{kind} ")}
            for name, count in sorted(found.items()):
                table.add_row(name, f"{count:,}", end_section=name == max(found))
        for fault in FAULTS:
            table.add_row(f"fault {fault}", f"{t[f'fault {fault}']:,}")
        table.add_row("errors raised by dump() and close()", f"{t['errors raised']:,}")
        table.add_row("files repaired", f"{t['repaired']:,}", end_section=True)
        table.add_row("rows compared", f"{t['rows compared']:,}")
        table.add_row("checks", f"{t['checks']:,}")
        table.add_row("growth of memory", f"{self.growth / 1e6:+.0f} MB")
        table.add_row("slowest run", f"{self.slowest[0]:.1f} s, --only {self.slowest[1]}")
        failed = ", ".join(f"--only {failure.seed}" for failure in self.failures)
        table.add_row("failures", failed or "none", style="bold red" if failed else "green")
        return table


def main(argv: list[str] | None = None) -> int:
    """Run the soak and print its results. Return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long, 600 if not said")
    parser.add_argument("--seed", type=int, default=None, help="what all is drawn from, a new one if not said")
    parser.add_argument("--only", type=int, metavar="SEED", help="a single iteration")
    args = parser.parse_args(argv)
    if sys.platform != "linux":
        parser.error("it needs Linux: /proc, capabilities, limits of file sizes")
    if args.only is not None:
        return only(args.only)
    seed = random.randrange(1 << 31) if args.seed is None else args.seed
    console = Console(width=None if sys.stdout.isatty() else 160)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        done = soak(args.seconds, seed, console, lambda line: live.update(line, refresh=True))
    for failure in done.failures:
        console.print(f"[bold red]--only {failure.seed}[/]")
        console.print(failure.failure[-3000:], markup=False, highlight=False)
    console.print(done.table())
    return bool(done.failures)


@contextlib.contextmanager
def _shared_viewer() -> Iterator[tuple[str, int]]:
    """Start a viewer for all iterations. Yield its URL and process id."""
    with started_viewer(*FORGETFUL) as (process, url):
        yield url, process.pid


def soak(seconds: float, seed: int, console: Console | None = None, told=lambda _: None) -> Soak:
    """Run iterations for a number of seconds, and finish the last one."""
    rng, done = random.Random(seed), Soak(seed)
    with _shared_viewer() as viewer, contextlib.closing(_Closing(Runners(viewer))) as ending:
        runners, said = ending.runners, 0.0
        while time.monotonic() - done.began < seconds:
            plan = Plan.draw(rng.randrange(1 << 32))
            began = time.monotonic()
            outcome = runners.carry_out(plan)
            done.add(outcome, time.monotonic() - began)
            told(done.line())
            if console is not None and not console.is_terminal and time.monotonic() - said > 15:
                said = time.monotonic()
                console.print(done.line(), highlight=False)
            if console is not None and outcome.failure:
                console.print(
                    f"--only {plan.seed} failed: {outcome.failure.strip().splitlines()[-1][:300]}", markup=False
                )
        done.growth = growth_of(runners.used)
    if done.growth > MAX_GROWTH:
        done.failures.append(Outcome(seed, failure=f"memory grew by {done.growth / 1e6:.0f} MB"))
    return done


def growth_of(used: list[list[int]]) -> int:
    """Return the largest growth of a process's bytes in use after its first iterations, between medians."""
    grown = [0]
    for process in used:
        later = process[WARM_UP:]
        if len(later) >= 10:
            part = max(3, len(later) // 5)
            grown.append(int(statistics.median(later[-part:]) - statistics.median(later[:part])))
    return max(grown, key=abs)


def only(seed: int) -> int:
    """Carry out one iteration, and print its plan."""
    console, plan = Console(), Plan.draw(seed)
    console.print(plan)
    with _shared_viewer() as viewer, contextlib.closing(_Closing(Runners(viewer))) as ending:
        outcome = ending.runners.carry_out(plan)
    console.print(outcome.failure or outcome.tally, markup=False)
    return bool(outcome.failure)


class _Closing:
    def __init__(self, runners: Runners) -> None:
        self.runners = runners

    def close(self) -> None:
        self.runners.end()
