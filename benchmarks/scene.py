"""Cost and size of scenes: what a robot's state adds to a step, to the writer's work and to the file.

- Hooks: an Ant whose steps take no time, with and without its scene, warm, in turns.
- The writer: processor time of its thread for 16 Ants, with the scene and without.
- Pictures: the same Ant, rendered by MuJoCo with 480x480 pixels, beside its scene. Rendering needs EGL.
- Many environments: a key with the states of 4,096 Ants, of which 16 are recorded.
- Shapes: a column for all shapes of a form, beside an entity for each body.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import rerun as rr
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from rerun.chunk import Chunk, LazyChunkStream

from benchmarks.report import Detail, Effort, Report, Row
from benchmarks.timing import Contender, ThreadTimes, Timings, micro, take_turns
from torchrl_rerun import MuJoCo, load
from torchrl_rerun.wrappers import RecordRerun
from torchrl_rerun.wrappers.vector import RecordRerun as RecordRerunVector

HOOKS_US, WRITER_US, FRAME_BYTES, TIMES_RENDERED = 5.0, 60.0, 600, 100.0
ANTS, MANY, SHOWN = 16, 4096, 16


class Held(gymnasium.Env[Any, Any]):
    """An Ant whose steps take no time: it goes through states that were simulated before."""

    def __init__(self, states: Any) -> None:
        ant: Any = gymnasium.make("Ant-v5").unwrapped
        self.model, self.data, self.states = ant.model, ant.data, states
        self.observation_space, self.action_space = spaces.Box(-1, 1, (17,)), spaces.Box(-1, 1, (8,))
        self._observation, self._count = np.zeros(17, np.float32), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        del seed, options
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._count += 1
        self.data.qpos[:] = self.states[self._count % len(self.states)]
        return self._observation, 1.0, False, False, {}


class Ants(VectorEnv[Any, Any, Any]):
    """Ants whose steps take no time, each with a simulation of its own."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, states: Any, envs: int) -> None:
        self.envs = [Held(states[number:]) for number in range(envs)]
        self.num_envs = envs
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, envs)
        self.action_space = batch_space(self.single_action_space, envs)
        self._observation, self._zeros = np.zeros((envs, 17), np.float32), np.zeros(envs)
        self._none = np.zeros(envs, np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        del seed, options
        return self._observation, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        for env in self.envs:
            env.step(actions)
        return self._observation, self._zeros, self._none, self._none, {}


class Batched(VectorEnv[Any, Any, Any]):
    """States of many Ants as one array, as batched simulators have them."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, states: Any) -> None:
        self.num_envs = MANY
        self.single_observation_space = spaces.Dict(qpos=spaces.Box(-np.inf, np.inf, (15,), np.float64))
        self.single_action_space = spaces.Box(-1, 1, (8,))
        self.observation_space = batch_space(self.single_observation_space, MANY)
        self.action_space = batch_space(self.single_action_space, MANY)
        self._observation = {"qpos": np.resize(states, (MANY, 15))}
        self._zeros, self._none = np.zeros(MANY), np.zeros(MANY, np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        del seed, options
        return self._observation, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return self._observation, self._zeros, self._none, self._none, {}


def measure(effort: Effort) -> Report:
    """Measure 15 rounds (quick: 7) of hooks, and 2,000 steps (quick: 500) of 16 Ants."""
    torch.set_num_threads(1)
    states = _simulated(2000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hooks = _time_hooks(folder, states, rounds=effort.of(15, 7))
        of_writer = _time_writer(folder, states, steps=effort.of(2000, 500))
        rows = (
            _hook_row(hooks),
            _writer_row(of_writer),
            _size_row(folder, states),
            _render_row(hooks),
            _many_row(hooks),
        )
        return Report(rows, _of_shapes(folder, states))


def _simulated(count: int) -> Any:
    """Return states of an Ant that moves."""
    env = gymnasium.make("Ant-v5")
    env.reset(seed=0)
    env.action_space.seed(0)
    ant: Any = env.unwrapped
    states = np.empty((count, ant.model.nq))
    for state in states:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        state[:] = ant.data.qpos
        if terminated or truncated:
            env.reset()
    return states


def _time_hooks(folder: Path, states: Any, *, rounds: int) -> dict[str, Timings]:
    many, model = Batched(states), Held(states).model
    envs: dict[str, Any] = {
        "plain": RecordRerun(Held(states), folder / "plain.rrd"),
        "scene": RecordRerun(Held(states), folder / "scene.rrd", scene=True),
        "many": RecordRerunVector(many, folder / "many.rrd", logged_envs=range(SHOWN)),
        "many, scene": RecordRerunVector(
            many, folder / "many_scene.rrd", logged_envs=range(SHOWN), scene=MuJoCo(model=model, key="qpos")
        ),
    }
    contenders = {name: Contender(_stepper(env)) for name, env in envs.items()}
    timings = take_turns(contenders, lambda _: None, rounds=rounds, steps=300, warm_up=4, pause=0.2)
    for env in envs.values():
        env.close()
    return timings


def _stepper(env: Any) -> Any:
    env.reset()
    action = np.zeros(env.action_space.shape, np.float32)
    return lambda: env.step(action)


def _time_writer(folder: Path, states: Any, *, steps: int) -> dict[str, float]:
    """Return the seconds of the writer's thread for a step of 16 Ants, without the scene and with it."""
    taken = {}
    for name, scene in (("plain", False), ("scene", True)):
        env = RecordRerunVector(Ants(states, ANTS), folder / f"writer_{name}.rrd", scene=scene)
        env.reset()
        actions = np.zeros((ANTS, 8), np.float32)
        rounds = []
        for _ in range(5):
            env.dump()
            before = ThreadTimes.now()
            for _ in range(steps):
                env.step(actions)
            env.dump()
            rounds.append((ThreadTimes.now() - before).writer / steps)
        env.close()
        taken[name] = statistics.median(rounds)
    return taken


def _hook_row(hooks: Mapping[str, Timings]) -> Row:
    cost = hooks["scene"].median - hooks["plain"].median
    return Row(
        "a scene, on the env's thread",
        "Ant, hooks alone, warm",
        f"{hooks['scene']}; without {hooks['plain']}",
        f"{micro(cost)} more",
        f"<= {HOOKS_US:.0f} us more",
        cost <= HOOKS_US,
        {"cost_us": cost},
    )


def _writer_row(taken: Mapping[str, float]) -> Row:
    cost = 1e6 * (taken["scene"] - taken["plain"])
    return Row(
        "a scene, the writer's share",
        f"{ANTS} Ants in detail",
        f"{micro(1e6 * taken['scene'])} a step of processor time; without {micro(1e6 * taken['plain'])}",
        f"{micro(cost)} more",
        f"<= {WRITER_US:.0f} us more",
        cost <= WRITER_US,
        {"cost_us": cost},
    )


def _size_row(folder: Path, states: Any) -> Row:
    steps = len(states)
    sizes = {}
    for name, scene in (("plain", False), ("scene", True)):
        path = folder / f"size_{name}.rrd"
        env = RecordRerun(Held(states), path, scene=scene)
        step = _stepper(env)
        for _ in range(steps):
            step()
        env.close()
        sizes[name] = path.stat().st_size
    start = _geometry_bytes(folder / "size_scene.rrd")
    each = (sizes["scene"] - sizes["plain"] - start) / steps
    return Row(
        "bytes on disk, a scene",
        f"Ant, {steps:,} frames, state and poses",
        f"{each:.0f} bytes a frame, and {start / 1e3:.0f} kB once",
        f"{each:.0f} bytes",
        f"<= {FRAME_BYTES} bytes a frame",
        each <= FRAME_BYTES,
        {"frame_bytes": each, "once_bytes": start},
    )


def _geometry_bytes(path: Path) -> int:
    """Return the bytes of what a recording says of a scene once."""
    [part] = [part for file in load(path)[0].files for part in _parts(file)]
    index = part.index
    return int(
        sum(
            index.sizes[at]
            for at in range(len(index.sizes))
            if index.is_static[at]
            and ("/scene" in index.paths[index.entities[at]] or "__assets" in index.paths[index.entities[at]])
        )
    )


def _parts(file: Path) -> Any:
    from torchrl_rerun.rrd.reader import parts_in  # noqa: PLC0415

    return parts_in(file)


_RENDER = """
import os, sys, time, statistics
os.environ.setdefault("MUJOCO_GL", "egl")
import gymnasium as gym
env = gym.make("Ant-v5", render_mode="rgb_array", width=480, height=480)
env.reset(seed=0)
env.render()
times = []
for _ in range(30):
    env.step(env.action_space.sample())
    start = time.perf_counter()
    env.render()
    times.append(time.perf_counter() - start)
print(statistics.median(times))
"""


def _render_row(hooks: Mapping[str, Timings]) -> Row:
    cost = hooks["scene"].median - hooks["plain"].median
    figure, workload = "a scene, beside rendering", "Ant, 480x480 by MuJoCo's software renderer"
    target = f">= {TIMES_RENDERED:.0f} x less"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", _RENDER], check=False, capture_output=True, text=True)
    if run.returncode:
        return Row(figure, workload, "MuJoCo can't draw here", "", target, None)
    rendered = 1e6 * float(run.stdout.split()[-1])
    return Row(
        figure,
        workload,
        f"{micro(cost)}; a picture {micro(rendered)}",
        f"{rendered / cost:,.0f} x less",
        target,
        rendered >= TIMES_RENDERED * cost,
        {"ratio": rendered / cost},
    )


def _many_row(hooks: Mapping[str, Timings]) -> Row:
    cost = hooks["many, scene"].median - hooks["many"].median
    return Row(
        "a scene in a key, on the env's thread",
        f"{MANY} x qpos, {SHOWN} of them recorded",
        f"{hooks['many, scene']}; without {hooks['many']}",
        f"{micro(cost)} more",
        f"<= {HOOKS_US:.0f} us more",
        cost <= HOOKS_US,
        {"cost_us": cost},
    )


def _of_shapes(folder: Path, states: Any) -> tuple[Detail, ...]:
    """Compare the shapes of a form in one column with an entity for each body, of 200 frames."""
    some = states[:200]
    path = folder / "shapes.rrd"
    env = RecordRerun(Held(some), path, scene=True)
    step = _stepper(env)
    for _ in range(len(some)):
        step()
    env.close()
    [episode] = load(path)
    [(stream, _)] = [each for each in episode.schema.described if each[0].key == ("scene",)]
    rows = episode.arrays()["scene"]
    poses = episode.poses()
    drawn: dict[str, Any] = {
        "a column for the shapes of a form": lambda: _chunks(stream.kind.drawn(poses)),  # type: ignore[attr-defined]
        "an entity for each body": lambda: _bodies(poses),
    }
    kinematics = _best(lambda: stream.kind.poses(stream, np.asarray(rows)))
    details = [
        Detail("shapes of an Ant, 200 frames", "mj_kinematics", f"{1e6 * kinematics / len(some):.1f} us a frame")
    ]
    for name, make in drawn.items():
        file = folder / "drawn.rrd"
        seconds = _best(make)
        LazyChunkStream.from_iter(make()).write_rrd(file, application_id="scene", recording_id="scene")
        details.append(
            Detail(
                "shapes of an Ant, 200 frames",
                name,
                f"{1e3 * seconds:.1f} ms, {file.stat().st_size / 1e3:.0f} kB",
                {"seconds": seconds, "bytes": file.stat().st_size},
            )
        )
    return tuple(details)


def _best(make: Any) -> float:
    times = []
    for _ in range(5):
        start = time.thread_time()
        make()
        times.append(time.thread_time() - start)
    return min(times)


def _chunks(drawn: Mapping[str, Any]) -> list[Chunk]:
    from torchrl_rerun.kinds.arrow import Entity, chunks_of, flat  # noqa: PLC0415

    count = len(next(iter(drawn.values()))[0].values)
    return [
        *chunks_of({"frame": flat(np.arange(count))}, [Entity(f"/scene/{name}", each) for name, each in drawn.items()])
    ]


def _bodies(poses: Any) -> list[Chunk]:
    frames = rr.TimeColumn("frame", sequence=np.arange(len(poses.positions)))
    return [
        Chunk.from_columns(
            f"/scene/{name}",
            [frames],
            rr.Transform3D.columns(
                translation=poses.positions[:, body].astype(np.float32),
                quaternion=poses.quaternions[:, body].astype(np.float32),
            ),
        )
        for body, name in enumerate(poses.bodies)
    ]
