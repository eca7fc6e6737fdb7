"""Carry out the plan of a seed in this process, and check its files."""

from __future__ import annotations

import json
import os
import resource
import signal
import tempfile
import time
from pathlib import Path

import torch

from soak.iteration import Iteration, Tally
from soak.plans import Plan
from soak.threads import log_at_once
from soak.workers import record_in_workers
from torchrl_rerun import repair


def carry_out(seed: int, viewer: tuple[str, int] | None) -> Tally:
    """Carry out the plan of a seed, in this process.

    Raises:
        AssertionError: The contract was broken.
    """
    plan = Plan.draw(seed)
    with tempfile.TemporaryDirectory(prefix="soak.") as name:
        folder = Path(name, "recordings")
        folder.mkdir()
        if plan.way == "threads":
            return log_at_once(plan, folder) + Tally({"runs": 1, "way threads": 1, "sink file": 1})
        if plan.turns:
            return record_in_workers(plan, folder) + Tally({"runs": 1, f"way {plan.way}": 1, "sink file": 1})
        iteration = Iteration(plan, folder, viewer)
        if plan.fault == "kill":
            _kill(plan, iteration, Path(name, "notes"))
        else:
            if plan.fault == "disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(plan.amount), resource.RLIM_INFINITY))
            iteration.run()
            if plan.fault == "disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                iteration.tally["fault disk"] += 1
            state = torch.get_rng_state()
            iteration.check_files()
            iteration.check_messages()
            if seed % 4 == 0:
                _check_that_nothing_changed(plan, iteration, state)
        tally = iteration.tally
    tally["runs"] += 1
    tally["frames"] += iteration.witness.frame + 1
    tally["steps"] += iteration.witness.step
    tally["episodes"] += iteration.witness.episodes
    tally[f"way {plan.way}"] += 1
    tally[f"sink {plan.sink}"] += 1
    return tally


def _check_that_nothing_changed(plan: Plan, iteration: Iteration, state: torch.Tensor) -> None:
    """Check that a plan without a recorder gives equal data and an equal state of torch's random numbers."""
    plain = Iteration(plan, iteration.path.parent, None, rehearsal=True)
    plain.run()
    assert torch.equal(torch.get_rng_state(), state), "torch's random state is another one without the recorder"
    assert plain.witness.lengths() == iteration.witness.lengths()
    for key, rows in plain.witness.rows.items():
        for a, b in zip(rows, iteration.witness.rows[key], strict=True):
            assert repr(a) == repr(b), f"{key}: {a} without the recorder, {b} with it"
    iteration.tally["checks"] += 2


def _kill(plan: Plan, iteration: Iteration, notes: Path) -> None:
    """Fork a process that carries out the plan, kill it at a random moment, and check its files."""
    starting, started = os.pipe()
    child = os.fork()
    if child == 0:
        note = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        victim = Iteration(plan, iteration.path.parent, None)

        def noted(what: str) -> None:
            lengths = [[*key, length] for key, length in victim.witness.lengths().items()]
            os.write(note, f"{what} {json.dumps(lengths)}\n".encode())

        victim._noted = noted
        os.write(started, b"!")
        try:
            victim.run()
            os.write(note, b"over\n")
        except BaseException as error:
            os.write(note, f"failed {error!r}\n".encode())
        finally:
            os._exit(0)
    os.close(started)
    os.read(starting, 1)
    os.close(starting)
    time.sleep(plan.amount)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    iteration.tally["fault kill"] += 1
    lines = notes.read_text().splitlines() if notes.exists() else []
    failures = [line for line in lines if line.startswith("failed")]
    assert not failures, failures
    rehearsed = Iteration(plan, iteration.path.parent, None, rehearsal=True)
    rehearsed.run()
    witness = iteration.witness = rehearsed.witness
    if "over" in lines:
        least = witness.lengths()
    else:
        kept = json.loads(lines[-1].split(maxsplit=1)[1]) if lines else []
        least = {(env, key): length for env, key, length in kept}
    for part, file in enumerate(iteration._files()):
        try:
            repaired = repair(file)
        except ValueError:
            if any(least.get(key, 0) > witness.ended[part].get(key, 0) for key in witness.rows):
                raise
            continue
        iteration.tally["repaired"] += repaired is not None
        iteration._compare(file, part, least)
        iteration.tally["bytes"] += file.stat().st_size
    if any(least.values()):
        assert iteration._files(), "what was dumped has no file"
