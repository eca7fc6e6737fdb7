"""One iteration: carry out a plan, and check the contract after each operation."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import ctypes
import functools
import gc
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rerun as rr
import torch
from rerun.chunk import RrdReader
from tensordict import TensorDictBase
from torchrl.collectors.utils import split_trajectories
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv, StepCounter, step_mdp

import agreement  # noqa: F401 - the library reads each file, too
from readback import read
from servers import FORGETFUL, free_port, started_viewer
from soak.environments import Random
from soak.plans import Op, Plan
from soak.witness import Indices, Key, Witness, values_of
from torchrl_rerun import RecordingError, RerunRecorder
from torchrl_rerun.chunks.encoding_threads import NAME as ENCODER

SETTLE_SECONDS = 10.0
"""Seconds that threads and processes may take to end."""

Tally = collections.Counter[str]


class Iteration:
    """Carry out a plan.

    Args:
        plan: the plan.
        folder: empty folder for the files.
        viewer: URL and process id of the viewer that all iterations share, or None.
        rehearsal: whether to run without a recorder, to note the expected rows.
        noted: called after each successful dump and close.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        viewer: tuple[str, int] | None,
        *,
        rehearsal: bool = False,
        noted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.plan, self.path, self.viewer = plan, folder / "run.rrd", viewer
        self.tally: Tally = Tally()
        keys = plan.options["in_keys"]
        count = plan.envs * (len(plan.ops) + 1) if plan.padded else plan.envs
        self.witness = Witness(count, range(count) if plan.padded else plan.logged, keys)
        self._indices = Indices()
        self._ids = torch.zeros(plan.envs, dtype=torch.int64)  # ids of the current trajectories, by environment
        self.messages: list[str] = []
        self.dumped: dict[tuple[int, str], int] = {}
        self._kept: dict[int, dict[tuple[int, str], int]] = {}  # rows dumped before the loss of a part, by part
        self._counts: dict[str, float] = {}
        self._noted = noted
        self._failed = False  # whether the file is lost, so that dump() and close() may raise
        self._has_lost = False
        self._is_cut_off = False
        self._rehearsal = rehearsal
        self._td: TensorDictBase | None = None
        self._gone: set[int] = set()  # parts that a fault removed
        self._cleaning = contextlib.ExitStack()
        self._recorder: RerunRecorder | None = None
        self._generator = torch.Generator().manual_seed(plan.layout.seed)

    # --- making ---

    def _make(self) -> EnvBase:
        plan = self.plan
        if not plan.workers:
            env: EnvBase = Random(plan.layout)
        else:
            makers = [functools.partial(Random, plan.layout, i) for i in range(plan.workers)]
            env = (
                SerialEnv(plan.workers, makers)
                if plan.way == "serial"
                else ParallelEnv(plan.workers, makers, mp_start_method="fork")
            )
        if not self._rehearsal:
            options = (
                plan.options | {"in_keys": keys and [_name(key) for key in keys]}
                if (keys := plan.options["in_keys"])
                else plan.options
            )
            self._recorder = RerunRecorder(self._sink(), **options)
            if plan.way != "logged":
                env = env.append_transform(self._recorder)
                self._recorder = env.transform[-1] if hasattr(env.transform, "__len__") else env.transform
        return env.append_transform(StepCounter(plan.behind)) if plan.behind else env

    def _sink(self) -> Any:
        match self.plan.sink:
            case "file":
                return self.path
            case "file+server":
                return [self.path, rr.GrpcServerSink("127.0.0.1", free_port())]
        if self.plan.fault == "viewer_killed" or self.viewer is None:
            process, url = self._cleaning.enter_context(started_viewer(*FORGETFUL))
            self.viewer = url, process.pid
        return self.viewer[0] if self.plan.sink == "viewer" else [self.path, self.viewer[0]]

    # --- doing ---

    def run(self) -> None:
        """Carry out the whole plan, and check the files."""
        torch.manual_seed(self.plan.seed % (1 << 31))
        before = _Leftovers()
        with warnings.catch_warnings(record=True) as warned, self._cleaning:
            warnings.simplefilter("always")
            env = self._make()
            self._env = env
            with self._asked():
                for number, op in enumerate(self.plan.ops):
                    if number == self.plan.fault_at:
                        self._break()
                    self._do(op)
            if self.plan.fault_at == len(self.plan.ops):
                self._break()
            self._end()
        del env
        self._env = self._td = None
        self.messages = [str(warning.message) for warning in warned]
        if not self._rehearsal:
            before.check()
            self.tally["checks"] += 4

    def _do(self, op: Op) -> None:
        getattr(self, "_" + op[0].replace(" ", "_"))(*op[1:])
        self._check_counts()

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Let another thread dump and ask for statistics, if the plan has one."""
        if self._recorder is None or not self.plan.is_asked:
            yield
            return
        is_over, recorder = threading.Event(), self._recorder

        def ask() -> None:
            while not is_over.wait(0.002):
                recorder.dump()
                recorder.stats()

        with concurrent.futures.ThreadPoolExecutor(1) as another:
            asking = another.submit(ask)
            try:
                yield
            finally:
                is_over.set()
            asking.result()
        self.tally["asked on another thread"] += 1

    def _policy(self, td: TensorDictBase) -> TensorDictBase:
        td = self._env.rand_action(td)
        return td.set("logits", torch.randn(*self._env.batch_size, 3, generator=self._generator))

    def _rollout(self, steps: int, mode: str) -> None:
        how = {"break_when_any_done": mode == "any", "break_when_all_done": mode == "all"}
        if mode == "all":
            del how["break_when_any_done"]
        self._see(self._env.rollout(steps, self._policy, trust_policy=True, **self._form, **how), mode)

    def _go_on(self, steps: int) -> None:
        if self._td is None or self._flags(self._td).any():  # TorchRL would reset those
            return
        rollout = self._env.rollout(
            steps, self._policy, trust_policy=True, auto_reset=False, tensordict=self._td.clone(), **self._form
        )
        self._see(rollout, "any", continues=True)

    @property
    def _form(self) -> dict[str, bool]:
        """Options of a rollout: steps with different keys can't be stacked."""
        return {"return_contiguous": False} if self.plan.layout.missing else {}

    def _see(self, rollout: TensorDictBase, mode: str, *, continues: bool = False) -> None:
        """Note a rollout that was recorded live, or is logged now."""
        flags = self._flags(rollout["next"])  # [envs, time, flags]
        done = flags.any(-1)
        if self.plan.padded:
            self._see_padded(rollout, done, continues=continues)
        elif self.plan.way == "logged" and self._recorder is not None:
            self._recorder.log_rollout(rollout)
        self._td = None if mode == "all" or done[:, -1].any() else step_mdp(rollout[..., -1])
        if self.plan.padded:
            return
        if not continues:
            self._seen_reset(rollout[..., 0], None)
        going = list(range(self.plan.envs))
        for t in range(rollout.shape[-1]):
            moment = rollout[..., t]
            self._seen_step(moment, going)
            if mode == "all":
                going = [env for env in going if not done[env, t]]
            ended = done[:, t].nonzero().flatten().tolist()
            if mode == "on" and ended and t + 1 < rollout.shape[-1]:
                begun = flags[:, t].all(-1).nonzero().flatten().tolist()  # otherwise only some agents were reset
                self._seen_reset(rollout[..., t + 1], ended, begun if self.plan.layout.rootless else None)

    def _flags(self, td: TensorDictBase) -> torch.Tensor:
        """Return the flags by which TorchRL resets: ``[envs, *time, flags]``. If the root has none, one for each agent."""
        keys = [(name, "done") for name, _ in self.plan.layout.groups] if self.plan.layout.rootless else ["done"]
        time = td.batch_size[len(self.plan.batch_size) :]
        return torch.cat([td[key].reshape(self.plan.envs, *time, -1) for key in keys], -1)

    def _see_padded(self, rollout: TensorDictBase, done: torch.Tensor, *, continues: bool) -> None:
        """Log a rollout as a list of trajectories, and note them. ``done``: ``[envs, time]``."""
        ids = torch.zeros_like(done, dtype=torch.int64)
        for t in range(done.shape[1]):
            begins = done[:, t - 1] if t else torch.full((self.plan.envs,), not continues)
            self._ids = torch.where(begins, self._ids.max() + begins.cumsum(0), self._ids)
            ids[:, t] = self._ids
        batch = split_trajectories(rollout.set(("collector", "traj_ids"), ids.reshape(rollout.shape)))
        if self._recorder is not None:
            self._recorder.log_rollout(batch)
        lanes = self._indices.of(batch)
        for t in range(max(map(len, lanes.values()))):
            moments = {index: lane[t] for index, lane in lanes.items() if t < len(lane)}
            observed = {
                env: self._values_of_reset(moment, None)[0] for env, (moment, begins) in moments.items() if begins
            }
            if observed:
                self.witness.reset(observed, self._zeros)
            stepped = {env: self._values_of_step(moment, None) for env, (moment, _) in moments.items()}
            self.witness.steps(*({env: values[i][0] for env, values in stepped.items()} for i in range(2)))

    def _seen_reset(self, td: TensorDictBase, envs: list[int] | None, begun: list[int] | None = None) -> None:
        self.witness.reset(self._values_of_reset(td, envs), self._zeros, begun)

    def _seen_step(self, td: TensorDictBase, envs: list[int] | None) -> None:
        self.witness.steps(*self._values_of_step(td, envs))

    @property
    def _zeros(self) -> dict[str, torch.Tensor]:
        """Return a zero for each path of a reward."""
        layout = self.plan.layout
        paths = [f"{name}/reward/agent_{i}" for name, agents in layout.groups for i in range(agents)] or ["reward"]
        return dict.fromkeys(paths, torch.zeros(1 if layout.groups else layout.reward[1]))

    def _values_of_reset(self, td: TensorDictBase, envs: list[int] | None) -> dict[int, dict[str, Any]]:
        return values_of(td, self.plan.layout.observed, envs)

    def _values_of_step(
        self, td: TensorDictBase, envs: list[int] | None
    ) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
        """Return the policy's values, and the results of the step."""
        layout, keys = self.plan.layout, self.plan.options["in_keys"]
        policys: list[Key] = [*layout.acted]
        if keys is not None or self.plan.way == "logged":
            policys.append(("logits",))
        if self.plan.padded:
            policys += [("collector", "mask"), ("collector", "traj_ids")]
        return values_of(td, policys, envs), values_of(td["next"], [*layout.observed, *layout.rewards], envs)

    def _reset(self) -> None:
        self._td = self._env.reset()
        self._seen_reset(self._td, None)

    def _some_reset(self, envs: list[int]) -> None:
        if self._td is None or not envs:
            return
        mask = torch.zeros(self.plan.envs, dtype=torch.bool)
        mask[envs] = True
        mask = mask.reshape(*self.plan.batch_size, 1)
        if self.plan.layout.rootless:
            for name, _ in self.plan.layout.groups:
                self._td[name, "_reset"] = mask.unsqueeze(-1).expand_as(self._td[name, "done"]).clone()
        else:
            self._td["_reset"] = mask
        self._td = self._env.reset(self._td)
        self._seen_reset(self._td, envs)

    def _steps(self, count: int) -> None:
        for _ in range(count):
            self._some_step(None)

    def _some_step(self, envs: list[int] | None) -> None:
        if self._td is None:
            self._reset()
        td = self._policy(self._td)
        if envs is not None:
            if not envs:
                return  # TorchRL steps no environment then
            mask = torch.zeros(self.plan.envs, dtype=torch.bool)
            mask[envs] = True
            td["_step"] = mask.reshape(self.plan.batch_size)
        td = self._env.step(td)
        self._seen_step(td, envs)
        self._td = step_mdp(td)
        self._td.pop("_step", None)

    def _dump(self) -> None:
        if self._recorder is None:
            return
        with self._may_fail("dump"):
            self._recorder.dump()
            if not self._failed and self._is_recording and self._recorder._front_end.recording.alive:
                stats = self._recorder.stats()
                for name in ("frames_waiting", "bytes_waiting", *([] if self._has_lost else ["frames_lost"])):
                    assert stats[name] == 0, f"after dump: {name} is {stats[name]}"
                assert stats["frames_written"] + stats["frames_lost"] == stats["frames"], stats
                if self.plan.fault != "viewer_killed" and self.plan.fault != "viewer_stopped":
                    assert stats["frames_dropped"] == 0, stats
                if self._has_file:
                    written = self._files()[-1].stat().st_size
                    assert stats["bytes_written"] == written or len(self.witness.ended) > 1, stats
                self.tally["checks"] += 6
            self.dumped = self.witness.lengths()
            self._noted("dumped")
        self.tally["dumps"] += 1

    def _stats(self) -> None:
        self._check_counts()

    def _close(self, *, at_end: bool = False) -> None:
        if self._recorder is None:
            self._note_end()
            return
        if self._is_cut_off and not at_end:
            return  # no place would be left for later frames
        was_open = self._is_recording and self._recorder._front_end.recording.alive
        with self._may_fail("close"):
            self._recorder.close()
            if was_open:  # a second close does nothing, without a warning
                self.dumped = self.witness.lengths()
                self._noted("closed")
        self.tally["closes"] += 1
        if was_open:
            self._note_end()

    def _note_end(self) -> None:
        if self.witness.lengths() != self.witness.ended[-1]:
            if self._failed:
                self._kept[len(self.witness.ended) - 1] = self.dumped
            self.witness.end_part(lost=self._failed)
            self._failed = False  # later frames go to a new file

    def _look(self) -> None:
        """Dump, and read the file while it is being recorded."""
        self._dump()
        if self._recorder is None or not self._has_file or self._failed or not self._is_recording:
            return
        if self._recorder._front_end.recording.alive and (len(self.witness.ended) - 1) not in self._gone:
            copy = self.path.parent.with_name("copy.rrd")  # elsewhere: a fault may have closed the folder
            shutil.copyfile(self._files()[-1], copy)
            if copy.stat().st_size:
                self._compare(copy, len(self.witness.ended) - 1)
            else:  # no key has a row, for example after a reset if only actions are recorded
                assert self.witness.lengths() == self.witness.ended[-1], f"{copy} is empty"
            copy.unlink()
            self.tally["looks"] += 1

    def _end(self) -> None:
        match self.plan.end:
            case "env.close" if self._recorder is not None:
                was_open = self._is_recording and self._recorder._front_end.recording.alive
                with self._may_fail("close"):
                    self._env.close()
                    self.dumped = self.witness.lengths()
                if was_open:
                    self._note_end()
            case "forget" if self._recorder is not None:
                self._note_end()
            case _:
                self._close(at_end=True)
        if self._recorder is not None and self.plan.end != "forget":
            self._check_counts()
        if not self._env.is_closed and (self.plan.workers or self.plan.end != "forget"):
            with self._may_fail("close"):
                self._env.close()
        self._recorder = None
        self._env = None

    # --- breaking ---

    def _break(self) -> None:
        if self._rehearsal:
            return
        fault = self.plan.fault
        if not self._is_recording or not self._recorder._front_end.recording.alive:
            return
        if fault in ("removed", "emptied"):
            file = self._files()[-1]
            if fault == "removed":
                file.unlink()
            else:
                self._recorder.dump()
                os.truncate(file, 0)
            self._failed = True
            self._gone.add(len(self.witness.ended) - 1)
        elif fault == "folder":
            _obey_permissions()
            self._is_cut_off = True
            self.path.parent.chmod(0o555)
            self._cleaning.callback(self.path.parent.chmod, 0o755)
        elif fault == "viewer_killed":
            self._is_cut_off = True
            os.kill(self.viewer[1], signal.SIGKILL)
        elif fault == "viewer_stopped":
            self._is_cut_off = True
            os.kill(self.viewer[1], signal.SIGSTOP)
            goes_on = threading.Timer(self.plan.amount, os.kill, (self.viewer[1], signal.SIGCONT))
            goes_on.start()
            self._cleaning.callback(goes_on.join)
        else:
            return
        self.tally[f"fault {fault}"] += 1

    @contextlib.contextmanager
    def _may_fail(self, what: str) -> Iterator[None]:
        """Allow errors of a call after a fault of the disk. Require one after a fault that removed the file."""
        began = time.monotonic()
        try:
            yield
        except RecordingError as error:
            self.tally["errors raised"] += 1
            if what == "dump" and self._has_lost and not self._recorder._front_end.recording.alive:
                return  # the error is about the closed file: later frames go to a new one
            if not self._failed and self.plan.fault != "disk":
                raise AssertionError(f"{what}() failed without a reason") from error
            self._failed = self._has_lost = True
        else:
            missed = self._is_recording and self.plan.fault in ("removed", "emptied") and self._failed
            alive = missed and what == "dump" and self._recorder._front_end.recording.alive
            assert not alive, f"{what}() didn't say that the file was {self.plan.fault}"
        finally:
            assert time.monotonic() - began < 30, f"{what}() took {time.monotonic() - began:.1f} s"

    # --- checking ---

    @property
    def _is_recording(self) -> bool:
        return self._recorder is not None and self._recorder._front_end.recording is not None

    @property
    def _has_file(self) -> bool:
        return self.plan.sink != "viewer"

    def _files(self) -> list[Path]:
        """Return all parts in order."""
        parts = [self.path.with_name(f"run.part_{i}.rrd") for i in range(1, 100)]
        return [file for file in (self.path, *parts) if file.exists()]

    def _check_counts(self) -> None:
        if not self._is_recording:
            return
        stats = self._recorder.stats()
        right = {"frames": self.witness.frame + 1, "steps": self.witness.step, "episodes": self.witness.episodes}
        for name, number in right.items():
            assert stats[name] == number, f"stats: {name} is {stats[name]}, not {number}"
        parts = stats["frames_written"] + stats["frames_waiting"] + stats["frames_lost"]
        assert parts == stats["frames"], stats
        assert min(stats.values()) >= 0, stats
        for name in ("frames_lost", "frames_dropped", "seconds_waited"):
            assert stats[name] >= self._counts.get(name, 0), f"stats: {name} fell from {self._counts[name]}"
        self._counts = stats
        assert stats["frames_lost"] == 0 or self._failed or self._has_lost or self.plan.fault == "disk", stats
        self.tally["checks"] += 9

    def _compare(self, file: Path, part: int, least: dict[tuple[int, str], int] | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file without a footer is "legacy"
            recorded = read(file)
        self.tally["rows compared"] += self.witness.check(recorded, part, least=least)
        self.tally["checks"] += 1

    def check_files(self) -> None:
        """Check that all files exist and hold the expected rows."""
        folder, parts = self.path.parent, len(self.witness.ended) - 1
        names = ["run.rrd", *(f"run.part_{i}.rrd" for i in range(1, parts))][:parts] if self._has_file else []
        there = {file.name for file in folder.iterdir()}
        gone = {names[part] for part in self._gone if part < len(names)} if self.plan.fault == "removed" else set()
        if self.plan.fault != "folder":
            assert there == set(names) - gone, f"the folder holds {sorted(there)}, not {sorted(set(names) - gone)}"
        for part, name in enumerate(names):
            if part in self._gone or not (folder / name).exists():
                continue
            self.tally["bytes"] += (folder / name).stat().st_size
            least = self._kept.get(part, self.dumped) if self.plan.fault == "disk" else None
            if self.plan.fault == "disk" and not (folder / name).stat().st_size:  # there was no room for a chunk
                needed = {key for key, length in least.items() if length > self.witness.ended[part].get(key, 0)}
                assert not needed, f"{name} is empty"
                continue
            self._compare(folder / name, part, least)
            if self.plan.fault not in ("disk", "folder"):
                layouts = len(RrdReader(folder / name).blueprints())
                assert layouts == self.plan.options["blueprint"], f"{name}: {layouts} layouts"
                self.tally["checks"] += 1
        self.tally["files"] += len(names)

    def check_messages(self) -> None:
        """Check that failures give at most one warning for each part, and that none comes without a fault."""
        troubles = [message for message in self.messages if "training goes on" in message]
        expected = {"": 0, "folder": 0, "kill": 0}.get(self.plan.fault, len(self.witness.ended) + 1)
        assert len(troubles) <= expected, troubles
        self.tally["checks"] += 1


def _name(key: Key) -> str | Key:
    return key[0] if len(key) == 1 else key


def _obey_permissions() -> None:
    """Drop root's right to write to read-only files, for this process."""
    if os.geteuid():
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    ids = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.capget(header, ids)
    for i in (0, 1):  # effective, permitted
        ids[i] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, ids):
        raise OSError(ctypes.get_errno(), "capset")


class _Leftovers:
    """Counts of threads, processes and open files, which must be equal before and after an iteration."""

    def __init__(self) -> None:
        gc.collect()
        self._before = self._now()

    @staticmethod
    def _now() -> dict[str, list[str]]:
        files = collections.Counter[str]()
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                file = os.readlink(f"/proc/self/fd/{number}").split(":")[0]
                files[file] += not file.startswith("/dev/shm/")  # memory that ParallelEnv shares with its workers
        children = [child for task in Path("/proc/self/task").iterdir() for child in text_of(task / "children").split()]
        return {
            "threads": sorted(each.name for each in threading.enumerate() if each.name != ENCODER),  # they stay
            "processes": sorted(children),
            "files": sorted(files.elements()),
        }

    def check(self) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            gc.collect()
            now = self._now()
            new = {
                name: [*(collections.Counter(now[name]) - collections.Counter(self._before[name])).elements()]
                for name in now
            }
            if not any(new.values()):
                return
            assert time.monotonic() < deadline, f"left over: {new}"
            time.sleep(0.02)


def text_of(path: Path) -> str:
    """Return the text of a file of ``/proc``. Empty if the file is gone."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""
