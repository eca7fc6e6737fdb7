"""Cost of a live viewer on the environment's thread, and delay of a frame."""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import rerun as rr
import rerun_cli

from benchmarks.report import Effort, Report, Row
from benchmarks.timing import Contender, micro, take_turns
from benchmarks.workloads import PIXELS, Recorded, Workload

WITHIN_SECONDS, TIMES_ALONE = 1.0, 1.2


def measure(effort: Effort) -> Report:
    """Measure 15 rounds of 20 steps, and 20 single frames (quick: 7 and 8)."""
    workload = Workload(PIXELS)
    with tempfile.TemporaryDirectory() as folder, _viewer() as url:
        alone = Recorded(workload, Path(folder, "alone.rrd"), image_format="raw")
        watched = Recorded(workload, [Path(folder, "watched.rrd"), url], image_format="raw")
        contenders = {"alone": Contender(alone.step), "watched": Contender(watched.step)}
        timings = take_turns(contenders, workload.renew, rounds=effort.of(15, 7), steps=20)
        alone.close()
        watched.close()
        ages = _ages(workload, url, effort.of(20, 8))
    cost, beside = timings["watched"].median, timings["alone"].median
    return Report(
        (
            Row(
                "a live viewer, on the env's thread",
                f"{PIXELS}, raw, a file and a viewer",
                f"{micro(cost)} a step; the file alone {micro(beside)}",
                f"{cost / beside:.2f} x",
                f"<= {TIMES_ALONE} x (ours)",
                cost <= TIMES_ALONE * beside,
                {"watched_us": cost, "alone_us": beside},
            ),
            Row(
                "a live viewer, from the step to the viewer's server",
                f"{PIXELS}, raw, single frames after which none comes, {len(ages)} times",
                f"median {statistics.median(ages):.2f} s, the longest {max(ages):.2f} s",
                "",
                f"<= {WITHIN_SECONDS:g} s",
                max(ages) <= WITHIN_SECONDS,
                {"median_seconds": statistics.median(ages), "longest_seconds": max(ages)},
            ),
        ),
        (),
    )


def _ages(workload: Workload, url: str, count: int) -> list[float]:
    """Return the seconds from a step until its stream has been flushed to the viewer."""
    stream = rr.RecordingStream("benchmarks")
    stream.connect_grpc(url)
    recorded = Recorded(workload, stream, image_format="raw")
    recorded.recorder.dump()
    ages = []
    for number in range(count):
        workload.renew(number)
        recorded.step()
        began = time.monotonic()
        while recorded.recorder.stats()["frames_waiting"]:
            time.sleep(0.005)
        ages.append(time.monotonic() - began)
    recorded.close()
    return ages


@contextlib.contextmanager
def _viewer() -> Iterator[str]:
    """Start a viewer's server on loopback, without windows."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(rerun_cli.__file__).with_name("rerun"))
    command = [program, "--serve-grpc", "--bind", "127.0.0.1", "--port", str(port), "--server-memory-limit", "64MB"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
                break
            time.sleep(0.05)
        try:
            yield f"rerun+http://127.0.0.1:{port}/proxy"
        finally:
            process.kill()
