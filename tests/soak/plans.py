"""Plans: all operations of an iteration, drawn in advance from its seed alone."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass
from typing import Any

from soak.environments import Layout

FAULTS = ("kill", "disk", "removed", "emptied", "folder", "viewer_killed", "viewer_stopped")
"""Faults: ``kill -9``, a full disk, a file removed or emptied, a read-only folder, a viewer that dies or hangs."""

OWN_PROCESS = ("kill", "disk", "folder")
"""Faults that need a process of their own."""

Op = tuple[Any, ...]
"""An operation: its name, then its arguments."""


@dataclass(frozen=True)
class Plan:
    """The plan of an iteration.

    Attributes:
        seed: seed that the plan was drawn from.
        way: how data reaches the recorder: ``"appended"``, ``"logged"`` (``log_rollout``), ``"serial"``, ``"parallel"``,
            ``"threads"`` (which log rollouts at once), ``"workers"`` or ``"pool"`` (a recorder in each environment of a
            ``ParallelEnv``, or of a pool of threads).
        padded: whether rollouts are logged as lists of trajectories.
        layout: layout of the environment, or of each worker of a batched environment.
        workers: number of workers of a batched environment. 0: the environment is not batched.
        sink: ``"file"``, ``"file+viewer"``, ``"file+server"`` or ``"viewer"``.
        fault: one of ``FAULTS``, or none.
        fault_at: index of the operation before which the fault comes.
        amount: size of the disk in bytes; or seconds that a process lives or a viewer hangs.
        options: options of the recorder.
        is_asked: whether another thread keeps dumping and asking for statistics.
        behind: steps after which a transform behind the recorder truncates an episode. 0: no such transform.
        ops: operations, in order.
        end: how the recorder ends.
        turns: order of the first resets of workers with recorders. 0 is first.
    """

    seed: int
    way: str
    padded: bool
    layout: Layout
    workers: int
    sink: str
    fault: str
    fault_at: int
    amount: float
    options: dict[str, Any]
    is_asked: bool
    behind: int
    ops: tuple[Op, ...]
    end: str
    turns: tuple[int, ...] = ()

    @property
    def batch_size(self) -> tuple[int, ...]:
        """Batch size of the recorded environment."""
        return (self.workers, *self.layout.batch_size) if self.workers else self.layout.batch_size

    @property
    def envs(self) -> int:
        """Number of environments."""
        return math.prod(self.batch_size)

    @property
    def logged(self) -> list[int]:
        """Indices of the environments that are recorded."""
        chosen = self.options["logged_envs"]
        return list(range(self.envs)) if chosen in (None, "all") else sorted(chosen)

    @property
    def needs_own_process(self) -> bool:
        """Whether the plan would disturb later iterations in its process."""
        return self.fault in OWN_PROCESS or self.way == "workers"

    @classmethod
    def draw(cls, seed: int) -> Plan:
        """Draw the plan of a seed."""
        rng = random.Random(seed)
        way = rng.choices(
            ["appended", "logged", "serial", "parallel", "threads", "workers", "pool"], [50, 20, 15, 7, 8, 8, 6]
        )[0]
        if way in ("workers", "pool"):
            return cls._draw_workers(seed, rng, way)
        padded = way == "logged" and rng.random() < 0.5
        workers = rng.randint(1, 3) if way in ("serial", "parallel") else 0
        batch = rng.choice([(), (), (2,)] if workers else [(), (1,), (rng.randint(2, 6),), (2, 3)])
        rootless = way in ("appended", "logged", "threads") and not padded and rng.random() < 0.2
        layout = Layout.draw(rng, batch, text=way != "parallel", rootless=rootless)
        envs = math.prod(batch) * (workers or 1)
        sink = rng.choices(["file", "file+viewer", "file+server", "viewer"], [60, 25, 8, 7])[0]
        if way == "threads":
            sink = "file"
        faults = ["kill", "disk", "removed", "emptied", "folder"] if sink == "file" and way != "threads" else []
        faults = ["viewer_killed", "viewer_stopped"] if sink == "file+viewer" else faults
        if way == "parallel" and "disk" in faults:
            faults.remove("disk")  # the limit also applies to the memory that ParallelEnv shares with its workers
        fault = rng.choice(faults) if faults and rng.random() < 0.45 else ""
        everything = [*layout.observed, *layout.acted, *layout.rewards, ("logits",)]
        logged = rng.choice([None, None, "all", sorted(rng.sample(range(envs), rng.randint(1, envs)))])
        options = {
            "buffer_bytes": rng.choice([1, 300, 3000, 30_000, 300_000, 1 << 20, 64 << 20]),
            "flush_seconds": rng.choice([0.01, 0.05, 1.0, 5.0]),
            "logged_envs": logged,
            "image_format": rng.choice(["raw", "png", "h264"]),
            "in_keys": None if rng.random() < 0.6 else rng.sample(everything, rng.randint(1, len(everything))),
            "blueprint": rng.random() < 0.4,
            "fps": rng.choice([None, 30]),
        }
        together = math.prod(batch) if workers else 1
        # After a kill the flags of the last frame are those that the recorder's hook saw.
        behind = rng.choice([0, 2, 7]) if way == "appended" and layout.truncates and fault != "kill" else 0
        ops = tuple(_op(rng, envs, together, way, layout) for _ in range(rng.randint(3, 25)))
        amount = rng.choice([20_000, 100_000, 400_000]) * rng.random() if fault == "disk" else rng.random() ** 2 * 1.5
        ends = ["close", "close", "env.close", "forget"]
        end = rng.choice({"appended": ends, "logged": ["close", "forget"]}.get(way, ends[:-1]))
        fault_at = rng.randint(1, len(ops))
        is_asked = not fault and way != "parallel" and rng.random() < 0.2
        can_miss = way == "appended" and not fault and options["in_keys"] is None and layout.leaves and not rootless
        if can_miss and rng.random() < 0.3:
            # TorchRL's rollout keeps the old value of a missing key, also at a reset of some agents.
            # A key that is missing in the first step of a recording is not recorded. Hence a single recording.
            layout = dataclasses.replace(layout, missing=rng.randint(2, 5))
            ops = tuple(op for op in ops if op[0] != "close")
            # torchrl 0.14: `break_when_all_done` fails if moments have different keys.
            ops = tuple((*op[:2], "any") if op[0] == "rollout" and op[2] == "all" else op for op in ops)
            fault_at = len(ops)
        if padded or way == "threads":
            options |= {"logged_envs": "all"}  # trajectories have their own indices, any number of them
        if way == "threads":
            options |= {"in_keys": None, "image_format": rng.choice(["raw", "png"])}
        return cls(
            seed, way, padded, layout, workers, sink, fault, fault_at, amount, options, is_asked, behind, ops, end
        )

    @classmethod
    def _draw_workers(cls, seed: int, rng: random.Random, way: str) -> Plan:
        """Draw a plan whose workers each have a recorder, and begin in any order."""
        workers = rng.randint(2, 4)
        batch = rng.choice([(), (1,), (2,)]) if way == "workers" else ()
        layout = Layout.draw(rng, batch, text=False)
        options = {
            "buffer_bytes": rng.choice([300, 30_000, 64 << 20]),
            "flush_seconds": rng.choice([0.01, 1.0]),
            "logged_envs": rng.choice([None, "all"]),
            "image_format": rng.choice(["raw", "png"]),
            "in_keys": None,
            "blueprint": rng.random() < 0.4,
        }
        names = ["rollout", "rollout", "reset", "some reset"] if way == "workers" else ["rollout"]
        count = workers * math.prod(batch)
        ops = [("rollout", rng.randint(1, 20), rng.choice(["any", "on"]))]
        for name in rng.choices(names, k=rng.randint(0, 5)):
            chosen = [env for env in range(count) if rng.random() < 0.5]
            ops.append({"reset": ("reset",), "some reset": ("some reset", chosen)}.get(name, ops[0]))
        turns = tuple(rng.sample(range(workers), workers))
        return cls(
            seed, way, False, layout, workers, "file", "", 0, 0.0, options, False, 0, tuple(ops), "env.close", turns
        )


def _op(rng: random.Random, envs: int, together: int, way: str, layout: Layout) -> Op:
    """Draw an operation. ``together``: number of environments of a worker, stepped together only (torchrl 0.14)."""
    names = {"rollout": 6, "go on": 2, "dump": 3, "stats": 2, "close": 1, "look": 1}
    if way not in ("logged", "threads"):
        names |= {"reset": 3, "some reset": 5, "steps": 12, "some step": 5}
    name = rng.choices([*names], [*names.values()])[0]
    if name == "rollout":
        # torchrl 0.14: `break_when_all_done` fails if some agents are done and their environment is not.
        modes = [
            "any",
            "on",
            *(["all"] if way != "logged" and together == 1 and not (layout.groups and layout.apart) else []),
        ]
        return name, rng.choice([1, 2, 5, 20, 60]), rng.choice(modes)
    if name in ("go on", "steps"):
        return name, rng.randint(1, 12)
    if name == "some reset":
        return name, [i for i in range(envs) if rng.random() < 0.5]
    if name == "some step":
        chosen = [rng.random() < 0.5 for _ in range(envs // together)]
        return name, [i for i in range(envs) if chosen[i // together]]
    return (name,)
