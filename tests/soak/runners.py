"""Processes that carry out iterations. A process that hangs prints its stacks, is killed, and is replaced."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import select
import signal
import tempfile
import time
import traceback
from dataclasses import dataclass, field

import pyarrow as pa
import torch

from soak.carrying_out import carry_out  # before anything is forked
from soak.plans import Plan

PATIENCE = 60.0
"""Seconds that an iteration may take."""


@dataclass
class Outcome:
    """The result of an iteration: its counts, its failure, and the memory of its process afterwards."""

    seed: int
    tally: dict[str, int] = field(default_factory=dict)
    failure: str = ""
    used_bytes: int = 0


class Runner:
    """A process that is forked after all imports, and before Rerun starts threads: a fork has none of them.

    Args:
        viewer: URL and process id of the shared viewer.
    """

    def __init__(self, viewer: tuple[str, int] | None) -> None:
        self._trace = tempfile.TemporaryFile("w+")  # noqa: SIM115 - for as long as the process lives
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                os.close(self._orders)
                os.close(self._answers)
                self._serve(orders, answers, viewer)
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answers)

    def _serve(self, orders: int, answers: int, viewer: tuple[str, int] | None) -> None:
        torch.set_num_threads(1)
        gc.collect()
        gc.freeze()  # imported objects stay: a collection of them takes 0.2 s each time
        while order := os.read(orders, 8):
            outcome = Outcome(int.from_bytes(order))
            faulthandler.dump_traceback_later(PATIENCE, exit=True, file=self._trace)
            try:
                outcome.tally = dict(carry_out(outcome.seed, viewer))
            except BaseException:
                outcome.failure = traceback.format_exc()
            faulthandler.cancel_dump_traceback_later()
            outcome.used_bytes = bytes_in_use()
            data = json.dumps(vars(outcome)).encode()
            os.write(answers, len(data).to_bytes(8) + data)

    def carry_out(self, seed: int) -> Outcome:
        """Carry out the iteration of a seed, and return its outcome."""
        os.write(self._orders, seed.to_bytes(8))
        deadline = time.monotonic() + PATIENCE + 10.0
        size = self._read(8, deadline)
        data = self._read(int.from_bytes(size), deadline) if size else b""
        if data:
            return Outcome(**json.loads(data))
        self._trace.seek(0)
        why = self._trace.read() or f"the process ended ({self.end()}) without a word"
        return Outcome(seed, failure=why)

    def _read(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            if not select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return b""
            part = os.read(self._answers, size - len(data))
            if not part:
                return b""
            data += part
        return data

    def end(self) -> str:
        """End the process and its children. Return its own exit status, if it has ended by itself."""
        if self.pid == 0:
            return ""
        pid, self.pid = self.pid, 0
        time.sleep(0.05)
        ended, status = os.waitpid(pid, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # its session holds its own children only
        if not ended:
            os.waitpid(pid, 0)
        os.close(self._orders)
        os.close(self._answers)
        return f"exit code {os.waitstatus_to_exitcode(status)}" if ended else "still alive"


class Runners:
    """A lasting runner for most plans, and a new runner for each plan that needs a process of its own.

    Attributes:
        used: bytes in use of the lasting process after each iteration. A list for each process.
    """

    def __init__(self, viewer: tuple[str, int] | None) -> None:
        self._viewer = viewer
        self._lasting: Runner | None = None
        self.used: list[list[int]] = []

    def carry_out(self, plan: Plan) -> Outcome:
        """Carry out a plan in a suitable process."""
        if plan.needs_own_process:
            runner = Runner(self._viewer)
            try:
                return runner.carry_out(plan.seed)
            finally:
                runner.end()
        if self._lasting is None:
            self._lasting = Runner(self._viewer)
            self.used.append([])
        outcome = self._lasting.carry_out(plan.seed)
        if outcome.used_bytes:
            self.used[-1].append(outcome.used_bytes)
        if outcome.failure:  # its leftovers must not count for the next iteration
            self.end()
        return outcome

    def end(self) -> None:
        """End the lasting process."""
        if self._lasting is not None:
            self._lasting.end()
            self._lasting = None


class _MallocInfo(ctypes.Structure):
    """The result of ``mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def bytes_in_use() -> int:
    """Return the bytes that Python, NumPy, PyTorch and Arrow hold in this process.

    Resident memory is no measure: glibc keeps hundreds of MB that were freed, and rerun-sdk 0.41 keeps 0.3 to 3 MB of
    each closed recording stream. A new layout takes two streams.
    """
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallocInfo
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd + pa.total_allocated_bytes())
