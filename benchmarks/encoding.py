"""Encoding of pictures on several threads, compared with one thread of normal priority.

Two figures are measured. First, processor time for each thread: the busiest thread bounds the duration if each thread has a
processor of its own. Second, by the clock, the speed of another thread that computes meanwhile, as an environment does.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Mapping

import numpy as np

from benchmarks.report import Detail, Effort, Report
from benchmarks.workloads import Sizes, smooth
from torchrl_rerun.blocks.memory import MaxAge
from torchrl_rerun.chunks import encoding
from torchrl_rerun.chunks import encoding_threads as threads
from torchrl_rerun.chunks.losses import Losses
from torchrl_rerun.kinds.describe import describe
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.picture import ImageFormat
from torchrl_rerun.kinds.timelines import TIMELINES

SIZES: Mapping[Sizes, int] = {Sizes(8, 1, 1, (400, 600, 3)): 8, Sizes(16, 1, 1, (84, 84, 3)): 64}
"""Number of pictures of each environment, by the sizes of the data."""

FORMATS: tuple[ImageFormat, ...] = ("jpeg", "h264", "av1")

SECONDS = 0.5
"""Duration of the measurement of the other thread."""


class Encoding:
    """Encoding of a block of pictures of several environments.

    Args:
        sizes: Number of environments and shape of their pictures.
        image_format: Format to encode.
        pictures: Number of pictures of each environment.
    """

    def __init__(self, sizes: Sizes, image_format: ImageFormat, pictures: int) -> None:
        leaf = Leaf(("pixels",), "uint8", sizes.pixels)
        self._stream = describe(leaf, image_format=image_format)
        self._pixels = np.ascontiguousarray(smooth(sizes, pictures)["pixels"].swapaxes(0, 1))
        self._positions = np.zeros((pictures, len(TIMELINES)), np.int64)

    def run(self) -> None:
        """Encode all pictures."""
        encoded = encoding.Encoding(30.0, Losses(), max_age=MaxAge.always(math.inf))
        for env, rows in enumerate(self._pixels):
            queue = encoded.queue_for(f"/env_{env}", self._stream)
            assert queue is not None, "pictures of this format are encoded"
            queue.add(rows, self._positions)
        encoded.finish()

    def busiest(self) -> float:
        """Encode all pictures. Return the processor time of the busiest thread, in seconds."""
        before = _times()
        self.run()
        return max(now - before.get(thread, 0.0) for thread, now in _times().items())

    def beside(self) -> float:
        """Return how many rounds a second another thread computes while pictures are encoded."""
        is_over = threading.Event()

        def encode() -> None:
            while not is_over.is_set():
                self.run()

        thread = threading.Thread(target=encode)
        thread.start()
        numbers, rounds, end = np.ones(1 << 14), 0, time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            numbers.sum()  # without the GIL
            sum(range(200))  # with the GIL
            rounds += 1
        is_over.set()
        thread.join()
        return rounds / SECONDS


def measure(effort: Effort) -> Report:
    """Measure 15 rounds (quick: 5)."""
    pools = {"one": threads._Threads(1, niceness=0), "several": threads._threads}
    details = []
    for sizes, pictures in SIZES.items():
        for image_format in FORMATS:
            encoding = Encoding(sizes, image_format, pictures)
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in pools}
            for number in range(1 + effort.of(15, 5)):
                for name, pool in pools.items():
                    threads._threads = pool
                    once = encoding.busiest(), encoding.beside()
                    if number:  # the first round warms up
                        found[name].append(once)
            figure = f"encoding, {sizes.envs} x {'x'.join(map(str, sizes.pixels))}, {image_format}"
            each = sizes.envs * pictures
            details += _details(figure, found, each)
    threads._threads = pools["several"]
    return Report((), tuple(details))


def _details(figure: str, found: Mapping[str, list[tuple[float, float]]], pictures: int) -> list[Detail]:
    busiest = {name: statistics.median(one[0] for one in rounds) / pictures for name, rounds in found.items()}
    beside = {name: statistics.median(one[1] for one in rounds) for name, rounds in found.items()}
    several = f"{threads._threads._most} threads"
    return [
        Detail(
            figure,
            f"processor time of the busiest thread, with one and with {several}",
            f"{busiest['one'] * 1e3:.3f} and {busiest['several'] * 1e3:.3f} ms a picture: "
            f"{busiest['several'] / busiest['one']:.2f} x",
            {f"{name}_s": seconds for name, seconds in busiest.items()},
        ),
        Detail(
            figure,
            f"how far another thread gets meanwhile, with {several} beside one",
            f"{beside['several'] / beside['one']:.2f} x",
            {f"{name}_rounds": rounds for name, rounds in beside.items()},
        ),
    ]


def _times() -> dict[int, float]:
    """Return the processor time of each encoding thread in seconds, by thread id."""
    encoders = (thread for thread in threading.enumerate() if thread.name == threads.NAME)
    return {
        thread.ident: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in encoders
        if thread.ident is not None
    }
