"""Episodes: cost of an episode that is dropped, and bounds of files and memory in a run of thousands."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rerun.chunk import LazyChunkStream
from tensordict import TensorDict
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import EnvBase

from benchmarks.report import Detail, Effort, Report, Row
from benchmarks.timing import Contender, mega, micro, take_turns
from benchmarks.workloads import SCALARS, Recorded, Workload
from torchrl_rerun import Keep, KeepLast, KeepWorst, RerunRecorder, list_episodes
from torchrl_rerun.kinds.schema import info_chunk

ENVS, LENGTH = 8, 10
KEEP = KeepLast(5) | KeepWorst(5)
SMALL_PART = 0.25
"""Largest cost of a dropped episode relative to a kept one."""

MEMORY_BYTES = 64 << 20  # the recorder's default buffer


class Short(EnvBase):
    """Eight environments with episodes of 5 to 15 steps, whose steps take no time."""

    def __init__(self) -> None:
        super().__init__(batch_size=torch.Size([ENVS]))
        self.observation_spec = Composite(observation=Unbounded((ENVS, 17)), shape=(ENVS,))
        self.action_spec = Unbounded((ENVS, 6))
        self.reward_spec = Unbounded((ENVS, 1))
        self.full_done_spec = Composite(
            done=Binary(1, (ENVS, 1), dtype=torch.bool),
            terminated=Binary(1, (ENVS, 1), dtype=torch.bool),
            shape=(ENVS,),
        )
        self._rng = np.random.default_rng(0)
        self._left = self._lengths()
        self._observation = torch.randn(ENVS, 17)
        self.ended = 0

    def _lengths(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return self._rng.integers(LENGTH // 2, LENGTH + LENGTH // 2, ENVS)

    def _reset(self, tensordict: TensorDict | None = None, **_: object) -> TensorDict:
        return TensorDict({"observation": self._observation}, self.batch_size)

    def _step(self, tensordict: TensorDict) -> TensorDict:
        self._left -= 1
        done = self._left == 0
        self._left = np.where(done, self._lengths(), self._left)
        self.ended += int(done.sum())
        flags = torch.from_numpy(done[:, None].copy())
        reward = torch.from_numpy(self._rng.standard_normal((ENVS, 1), np.float32))
        outcome = {"observation": self._observation, "reward": reward, "done": flags, "terminated": flags.clone()}
        return TensorDict(outcome, self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        """Ignore the seed: the numbers are always equal."""


def measure(effort: Effort) -> Report:
    """Record 10,000 episodes (quick: 1,000), and 200 episodes that are all kept."""
    episodes = effort.of(10_000, 1_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(folder / "warm", 50, KEEP)
        alone = _run(None, episodes)
        with _looking(folder / "kept") as seen:
            kept = _run(folder / "kept", episodes, KEEP)
        written = _run(folder / "all", 200) - alone * 200 / episodes
        left = len(list_episodes(folder / "kept").episodes)
        floor = _floor(folder)
        _run(folder / "bare", 50, blueprint=False)
        size, bare = (
            statistics.mean(found.size for found in list_episodes(folder / which).episodes) for which in ("all", "bare")
        )
    each, file = (kept - alone) / episodes, written / 200
    most_files, grown = seen[0], seen[1]
    workload = f"{ENVS} envs, {episodes:,} episodes of about {LENGTH} steps, keep={KEEP!r}"
    return Report(
        (
            Row(
                "an episode that isn't kept",
                workload,
                f"{each * 1e6:.0f} us an episode in all; one that is written {file * 1e3:.1f} ms",
                f"{each / file:.2f} x",
                f"<= {SMALL_PART} x (ours)",
                each <= SMALL_PART * file,
                {"each_seconds": each, "written_seconds": file, "floor_seconds": floor},
            ),
            Row(
                "bounded by what is kept",
                workload,
                f"{most_files} files at the most, {left} in the end; memory grows by {mega(grown)}",
                f"{grown / MEMORY_BYTES:.2f} x the buffer",
                f"<= 20 files, 10 in the end; <= 3 x the buffer of {mega(MEMORY_BYTES)}",
                most_files <= 20 and left <= 10 and grown <= 3 * MEMORY_BYTES,
                {"files": most_files, "grown_bytes": grown},
            ),
        ),
        (
            Detail(
                "an episode that isn't kept", "an .rrd file of a single chunk, by Rerun alone", f"{floor * 1e3:.1f} ms"
            ),
            Detail(
                "an episode that isn't kept",
                "the run without a recorder, and with one",
                f"{alone:.1f} s, {kept:.1f} s, {kept / alone:.2f} x",
            ),
            Detail(
                "an episode that isn't kept",
                "the file of one that is, and without its layout",
                f"{kilo(size)}, {kilo(bare)}",
                {"bytes": size, "bytes_without_layout": bare},
            ),
            _thread_detail(effort),
        ),
    )


def kilo(size: float) -> str:
    """Return bytes as text, in kB."""
    return f"{size / 1000:.0f} kB"


def _thread_detail(effort: Effort) -> Detail:
    """Return the cost of a step on the environment's thread with episodes, `skip` and triggers."""
    workload = Workload(SCALARS)
    options: dict[str, dict[str, Any]] = {
        "all of a run": {},
        'split="episode"': {"split": "episode", "keep": KEEP},
        "skip=4": {"skip": 4},
        "a trigger that is never true": {"episode_trigger": lambda _: False},
        "off": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        recorded = {
            name: Recorded(workload, Path(folder, str(number) + ("" if "split" in each else ".rrd")), **each)
            for number, (name, each) in enumerate(options.items())
        }
        recorded["off"].recorder.switch("off")
        contenders = {name: Contender(each.step) for name, each in recorded.items()}
        timings = take_turns(contenders, workload.renew, rounds=effort.of(15, 7), steps=40)
        for each in recorded.values():
            each.close()
    medians = ", ".join(f"{name} {micro(timings[name].median)}" for name in options)
    return Detail("an episode that isn't kept", f"the hooks of a step, {SCALARS}", medians)


def _run(folder: Path | None, episodes: int, keep: Keep | None = None, *, blueprint: bool = True) -> float:
    """Return the seconds that a number of episodes takes, including the end of the recording."""
    short = Short()
    env: EnvBase = short
    if folder is not None:
        env = short.append_transform(RerunRecorder(folder, split="episode", keep=keep, blueprint=blueprint))
    action = torch.zeros(ENVS, 6)
    tensordict = env.reset()
    began = time.perf_counter()
    while short.ended < episodes:
        _, tensordict = env.step_and_maybe_reset(tensordict.set("action", action))
    env.close()
    return time.perf_counter() - began


def _floor(folder: Path) -> float:
    """Return the seconds that Rerun alone takes to write a file; the median of 20."""
    times = []
    for number in range(20):
        began = time.perf_counter()
        LazyChunkStream.from_iter([info_chunk("floor", 0)]).write_rrd(
            folder / f"floor_{number}.rrd", application_id="benchmarks", recording_id=str(number)
        )
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@contextmanager
def _looking(folder: Path) -> Iterator[list[int]]:
    """Yield the largest number of files seen in a folder, and the largest growth of this process in bytes."""
    process, is_over = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    seen = [0, 0]

    def look() -> None:
        while not is_over.wait(0.05):
            files = [path for path in folder.glob("*.rrd") if not path.name.startswith(".")]
            seen[0] = max(seen[0], len(files))
            seen[1] = max(seen[1], process.memory_info().rss - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()
