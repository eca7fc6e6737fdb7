"""Run all measurements and print one table.

    python -m benchmarks [--quick] [--only NAME ...] [--json PATH] [--into-docs]

Each measurement runs in a process of its own, one after another, so that threads and memory of one don't disturb the next.
Contenders of one comparison take turns within one process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from rich.console import Console

from benchmarks.report import Effort, Report, Row

ROOT = Path(__file__).parents[1]

MEASUREMENTS = {
    "thread_cost": "benchmarks.thread_cost:measure",
    "sustained": "benchmarks.throughput:measure_all",
    "batch": "benchmarks.throughput:measure_batch",
    "scalar_files": "benchmarks.files:measure_scalars",
    "training_files": "benchmarks.disk:measure_training",
    "end_to_end": "benchmarks.files:measure_end_to_end",
    "memory": "benchmarks.memory:measure",
    "vector_memory": "benchmarks.memory:measure_vector",
    "bulk": "benchmarks.bulk:measure",
    "episodes": "benchmarks.episodes:measure",
    "video_files": "benchmarks.files:measure_video",
    "reading": "benchmarks.reading:measure",
    "training": "benchmarks.training:measure",
    "wrappers": "benchmarks.wrappers:measure",
    "live": "benchmarks.live:measure",
    "rendering": "benchmarks.rendering:measure",
    "scaling": "benchmarks.scaling:measure",
    "accelerator": "benchmarks.accelerator:measure",
    "parts": "benchmarks.parts:measure",
    "image_formats": "benchmarks.image_formats:measure",
    "disk": "benchmarks.disk:measure",
    "encoding": "benchmarks.encoding:measure",
    "listing": "benchmarks.listing:measure",
    "gil": "benchmarks.gil:measure",
    "scene": "benchmarks.scene:measure",
}


def main(argv: list[str] | None = None) -> int:
    """Run measurements, print and save the results. Return 1 if a measurement failed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="measure a few minutes, with more noise")
    parser.add_argument(
        "--json", type=Path, default=Path(__file__).with_name("results.json"), help="file of the results"
    )
    parser.add_argument("--into-docs", action="store_true", help="write the tables into docs/ as well")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.into is not None:  # process of one measurement
        args.into.write_text(json.dumps(_measure_here(args.only[0], Effort(args.quick)).as_json()))
        return 0
    return _measure_all(args.only or list(MEASUREMENTS), args.json, quick=args.quick, into_docs=args.into_docs)


def _measure_all(names: list[str], path: Path, *, quick: bool, into_docs: bool) -> int:
    from benchmarks import machine, table  # noqa: PLC0415 - not needed in the processes of measurements

    console = Console(width=None if sys.stdout.isatty() else 200)
    about = {**machine.describe(), "effort": "quick" if quick else "full"}
    reports, failed = [], False
    for name in names:
        start = time.monotonic()
        report = _measure_in_process(name, quick=quick)
        failed |= report is None
        reports.append(report or Report((Row(name, "", "the measurement failed, see above", "", "", None),)))
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    rows = tuple(row for report in reports for row in report.rows)
    whole = Report(rows, tuple(detail for report in reports for detail in report.details))
    table.show(whole, about, console)
    table.save(whole, about, path)
    if into_docs:
        table.into_docs(whole, about, ROOT / "docs")
    return int(failed)


def _measure_in_process(name: str, *, quick: bool) -> Report | None:
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "report.json")
        command = [
            sys.executable,
            "-m",
            "benchmarks",
            "--only",
            name,
            "--into",
            str(into),
            *(["--quick"] if quick else []),
        ]
        run = subprocess.run(command, check=False, cwd=ROOT)
        return None if run.returncode else Report.from_json(json.loads(into.read_text()))


def _measure_here(name: str, effort: Effort) -> Report:
    os.environ.setdefault("RL_WARNINGS", "0")
    os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
    warnings.filterwarnings("ignore", module="torchrl.*|gymnasium.*")
    warnings.filterwarnings("ignore", module="benchmarks.*")  # warnings of the recorder, whose facts are in the table
    logging.disable(logging.WARNING)
    module, _, function = MEASUREMENTS[name].partition(":")
    report: Report = getattr(importlib.import_module(module), function)(effort)
    return report


if __name__ == "__main__":
    sys.exit(main())
