"""Cost of the wrappers of Gymnasium's and Stable-Baselines3's environments, on the environment's thread.

- Hooks alone: environments whose steps take no time, warm, recorded in rounds between which the recorder's threads finish.
- Pictures: ``RecordVideo`` and the recorder beside one another, of an environment whose pictures are drawn already.
- A training: PPO of Stable-Baselines3 on eight CartPoles, with the recorder and with a wrapper that does nothing, iteration by
  iteration in turns. The processor time of the environment's thread is compared.
- Parts of a step of such a training, by the clock, in trainings of their own: the policy and the environments have used the
  processor's caches by then. The steps of the same environments are recorded warm, too, one after another.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from benchmarks.report import Detail, Effort, Report, Row
from benchmarks.timing import Contender, ThreadTimes, Timings, micro, take_turns
from torchrl_rerun.wrappers import RecordRerun
from torchrl_rerun.wrappers.sb3 import VecRerunRecorder
from torchrl_rerun.wrappers.vector import RecordRerun as RecordRerunVector

ENVS, SINGLE_US, VECTOR_US, BY_EPISODE = 64, 25.0, 50.0, 1.5
TIMES_VIDEO, SLOWER = 3.0, 1.01
EPISODE = 50
"""Steps of an episode of the environments whose steps take no time."""
TRAINED, STEPS, WARM_UP = 8, 128, 3


class Instant(gymnasium.Env[Any, Any]):
    """CartPole's spaces, and steps that take no time."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 - as Gymnasium has it
    observation_space = spaces.Box(-1, 1, (4,))
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self._observation = np.zeros(4, np.float32)
        self._picture = np.random.default_rng(0).integers(0, 255, (84, 84, 3), np.uint8)
        self._count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        del seed, options
        self._count = 0
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._count += 1
        return self._observation, 1.0, self._count == EPISODE, False, {}

    def render(self) -> Any:
        return self._picture


class InstantVector(VectorEnv[Any, Any, Any]):
    """CartPole's spaces for many environments, whose episodes end one after another.

    Args:
        envs: Number of environments.
        every: Steps between the ends of two episodes.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, envs: int, every: int = 4) -> None:
        self.num_envs = envs
        self._every = every
        self.single_observation_space, self.single_action_space = Instant.observation_space, Instant.action_space
        self.observation_space = batch_space(self.single_observation_space, envs)
        self.action_space = batch_space(self.single_action_space, envs)
        self._observation, self._reward = np.zeros((envs, 4), np.float32), np.ones(envs)
        self._none, self._done, self._count = np.zeros(envs, np.bool_), np.eye(envs, dtype=np.bool_), 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        del seed, options
        return self._observation, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._count += 1
        at, rest = divmod(self._count, self._every)
        done = self._none if rest else self._done[at % self.num_envs]
        return self._observation, self._reward, done, self._none, {}


class Idle(VecEnvWrapper):
    """A wrapper that does nothing."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


class Copying(Idle):
    """A wrapper that copies what a step takes and gives into memory, and does nothing else: what any recorder must do."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self._rows: list[Any] = [np.zeros((2048, TRAINED, 4), np.float32), *np.zeros((5, 2048, TRAINED), np.float32)]
        self._at = 0

    def step_async(self, actions: Any) -> None:
        self._rows[1][self._at] = actions
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        result = self.venv.step_wait()
        observation, reward, done, _ = result
        at = self._at = (self._at + 1) % 2048
        rows = self._rows
        rows[0][at], rows[2][at], rows[3][at], rows[4][at], rows[5][at] = observation, reward, done, done, done
        return result


class Again(Idle):
    """Steps of environments with random actions, again and again. They take no time."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        random = np.random.default_rng(0)
        self._observation = venv.reset()
        self._results = [venv.step(random.integers(0, 2, TRAINED)) for _ in range(1000)]
        self._at = -1

    def reset(self) -> Any:
        return self._observation

    def step_async(self, actions: Any) -> None:
        del actions
        self._at = (self._at + 1) % len(self._results)

    def step_wait(self) -> Any:
        return self._results[self._at]


class Timed(Idle):
    """A wrapper that notes how long the wrappers within it take, without the environments.

    Args:
        make: Makes the wrapper that is timed.
        venv: The environments.
    """

    def __init__(self, make: Callable[[VecEnv], VecEnv], venv: VecEnv) -> None:
        self._inner = _Inner(venv)
        super().__init__(make(self._inner))
        self._nanoseconds = 0
        self.normal: list[int] = []
        self.ending: list[int] = []

    def step_async(self, actions: Any) -> None:
        start = time.perf_counter_ns()
        self.venv.step_async(actions)
        self._nanoseconds = time.perf_counter_ns() - start

    def step_wait(self) -> Any:
        start = time.perf_counter_ns()
        result = self.venv.step_wait()
        taken = self._nanoseconds + time.perf_counter_ns() - start - self._inner.nanoseconds
        (self.ending if result[2].any() else self.normal).append(taken)
        return result


class _Inner(Idle):
    nanoseconds = 0

    def step_async(self, actions: Any) -> None:
        start = time.perf_counter_ns()
        self.venv.step_async(actions)
        self.nanoseconds = time.perf_counter_ns() - start

    def step_wait(self) -> Any:
        start = time.perf_counter_ns()
        result = self.venv.step_wait()
        self.nanoseconds += time.perf_counter_ns() - start
        return result


def measure(effort: Effort) -> Report:
    """Measure 15 rounds (quick: 7), and a training of 20 iterations after 3 of warm-up (quick: 10)."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        hooks = _time_hooks(Path(folder), rounds=effort.of(15, 7))
        pictures = _time_pictures(Path(folder), rounds=effort.of(15, 7))
        trained = _train(Path(folder), WARM_UP + effort.of(20, 10))
        parts = _time_parts(Path(folder), WARM_UP + effort.of(20, 10))
    return Report(
        (*_hook_rows(hooks), _picture_row(pictures), _training_row(trained.seconds)),
        (*_details(hooks), *_part_details(parts, trained)),
    )


def _time_hooks(folder: Path, *, rounds: int) -> dict[str, Timings]:
    """Time steps of environments that take no time, with recorders and without."""
    single, vector = "single", "vector"
    envs: dict[str, Any] = {
        single: Instant(),
        f"{single}, recorded": RecordRerun(Instant(), folder / "single.rrd"),
        f"{single}, by episode": RecordRerun(Instant(), folder / "single", split="episode"),
        vector: InstantVector(ENVS),
        f"{vector}, recorded": RecordRerunVector(InstantVector(ENVS), folder / "vector.rrd"),
        f"{vector}, by episode": RecordRerunVector(InstantVector(ENVS), folder / "vector", split="episode"),
    }
    contenders = {name: Contender(_stepper(env, is_vector=name.startswith(vector))) for name, env in envs.items()}
    timings = take_turns(contenders, lambda _: None, rounds=rounds, steps=300, warm_up=4, pause=0.15)
    for env in envs.values():
        env.close()
    return timings


def _stepper(env: Any, *, is_vector: bool) -> Any:
    env.reset()
    action = np.zeros(ENVS, np.int64) if is_vector else 1

    def step() -> None:
        _, _, terminated, _, _ = env.step(action)
        if not is_vector and terminated:
            env.reset()

    return step


def _time_pictures(folder: Path, *, rounds: int) -> dict[str, Timings]:
    """Time steps whose pictures are recorded, by ``RecordVideo`` and by the recorder."""
    video = gymnasium.wrappers.RecordVideo(
        Instant("rgb_array"), str(folder / "videos"), episode_trigger=lambda _: True, video_length=1 << 30
    )
    recorder = RecordRerun(Instant("rgb_array"), folder / "pictures.rrd", render=True)
    contenders = {
        name: Contender(_stepper(env, is_vector=False)) for name, env in (("video", video), ("recorder", recorder))
    }
    timings = take_turns(contenders, lambda _: None, rounds=rounds, steps=200, warm_up=4, pause=0.3)
    start = time.thread_time()
    video.close()  # type: ignore[no-untyped-call]
    taken = time.thread_time() - start
    video_steps = (rounds + 4) * 200
    recorder.close()
    timings["video"].rounds = [
        [round(each + taken * 1e9 / video_steps) for each in times] for times in timings["video"].rounds
    ]
    return timings


class Trained(NamedTuple):
    """Trainings with the recorder and without.

    Attributes:
        seconds: Processor time of the environment's thread in each iteration, by the name of the wrapper.
        waits: Seconds by the clock beyond that time, in each iteration.
        writer: Processor time of the writer's thread, in seconds, in all iterations.
    """

    seconds: dict[str, list[float]]
    waits: dict[str, list[float]]
    writer: float


def _train(folder: Path, iterations: int) -> Trained:
    """Train with the recorder and without, in turns of one iteration."""
    wrappers: dict[str, Any] = {
        "recorded": VecRerunRecorder(_cartpoles(), folder / "training.rrd"),
        "idle": Idle(_cartpoles()),
    }
    models = {name: PPO("MlpPolicy", venv, n_steps=STEPS, seed=0) for name, venv in wrappers.items()}
    random = {name: (torch.get_rng_state(), np.random.get_state()) for name in models}  # noqa: NPY002 - SB3 draws from it
    seconds: dict[str, list[float]] = {name: [] for name in models}
    waits: dict[str, list[float]] = {name: [] for name in models}
    for number in range(iterations):
        for name in sorted(models, reverse=number % 2 == 1):
            torch.set_rng_state(random[name][0])
            np.random.set_state(random[name][1])  # noqa: NPY002
            clock, start = time.perf_counter(), time.thread_time()
            models[name].learn(TRAINED * STEPS, reset_num_timesteps=False)
            seconds[name].append(time.thread_time() - start)
            waits[name].append(time.perf_counter() - clock - seconds[name][-1])
            random[name] = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    learned = [torch.nn.utils.parameters_to_vector(model.policy.parameters()) for model in models.values()]
    if not torch.equal(*learned):
        raise AssertionError("the trainings differ: recording has changed one of them")
    wrappers["recorded"].dump()
    writer = ThreadTimes.now().writer
    for venv in wrappers.values():
        venv.close()
    return Trained(
        {name: each[WARM_UP:] for name, each in seconds.items()},
        {name: each[WARM_UP:] for name, each in waits.items()},
        writer / iterations * (iterations - WARM_UP),
    )


def _time_parts(folder: Path, iterations: int) -> dict[str, tuple[Timed, Timed]]:
    """Time the wrappers' part of each step: in trainings, in turns of one iteration, and without a policy, warm."""
    makes: dict[str, Callable[[VecEnv], VecEnv]] = {
        "a wrapper that does nothing": Idle,
        "copies alone": Copying,
        "the recorder": lambda venv: VecRerunRecorder(venv, Path(tempfile.mkdtemp(dir=folder), "run.rrd")),
        "the recorder, by episode": lambda venv: VecRerunRecorder(venv, tempfile.mkdtemp(dir=folder), split="episode"),
    }
    trained = {name: Timed(make, _cartpoles()) for name, make in makes.items()}
    models = {name: PPO("MlpPolicy", venv, n_steps=STEPS, seed=0) for name, venv in trained.items()}
    for number in range(iterations):
        for name in sorted(models, reverse=number % 2 == 1):
            if number == WARM_UP:
                trained[name].normal.clear()
                trained[name].ending.clear()
            models[name].learn(TRAINED * STEPS, reset_num_timesteps=False)
    warm = {name: Timed(make, Again(_cartpoles())) for name, make in makes.items()}
    actions = np.zeros(TRAINED, np.int64)
    for venv in warm.values():
        venv.reset()
        for _ in range(iterations * STEPS):
            venv.step(actions)
    for venv in (*trained.values(), *warm.values()):
        venv.close()
    return {name: (trained[name], warm[name]) for name in makes}


def _cartpoles() -> VecEnv:
    return make_vec_env("CartPole-v1", n_envs=TRAINED, seed=0)


def _hook_rows(hooks: dict[str, Timings]) -> tuple[Row, ...]:
    rows = []
    for name, figure, most in (
        ("single", "Gymnasium, on the env's thread", SINGLE_US),
        ("vector", f"a vector of {ENVS}, on the env's thread", VECTOR_US),
    ):
        cost = hooks[f"{name}, recorded"].median - hooks[name].median
        by_episode = hooks[f"{name}, by episode"].median - hooks[name].median
        rows += [
            Row(
                figure,
                "CartPole's spaces, warm, hooks alone",
                f"{hooks[f'{name}, recorded']}",
                micro(cost),
                f"<= {most:.0f} us",
                cost <= most,
                {"cost_us": cost},
            ),
            Row(
                f"{figure}, split='episode'",
                "CartPole's spaces, warm, hooks alone",
                f"{hooks[f'{name}, by episode']}",
                micro(by_episode),
                f"<= {most * BY_EPISODE:.0f} us",
                by_episode <= most * BY_EPISODE,
                {"cost_us": by_episode},
            ),
        ]
    return tuple(rows)


def _picture_row(pictures: dict[str, Timings]) -> Row:
    ratio = pictures["video"].mean / pictures["recorder"].mean
    return Row(
        "pictures, beside RecordVideo",
        "84x84x3, drawn already, and what close() takes",
        f"{micro(pictures['recorder'].mean)}, RecordVideo {micro(pictures['video'].mean)}",
        f"{ratio:.1f} x less",
        f">= {TIMES_VIDEO:.0f} x",
        ratio >= TIMES_VIDEO,
        {"ratio": ratio},
    )


def _training_row(seconds: dict[str, list[float]]) -> Row:
    pairs = zip(seconds["recorded"], seconds["idle"], strict=True)
    ratio = statistics.median(one / other for one, other in pairs)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return Row(
        "a training of Stable-Baselines3",
        f"PPO on {TRAINED} CartPoles, all keys, {len(seconds['idle'])} iterations of {TRAINED * STEPS} steps",
        f"{medians['recorded'] * 1e3:.0f} ms an iteration; with a wrapper that does nothing {medians['idle'] * 1e3:.0f} ms",
        f"{ratio:.3f} x",
        f"<= {SLOWER} x",
        ratio <= SLOWER,
        {"ratio": ratio},
    )


def _part_details(parts: dict[str, tuple[Timed, Timed]], trained: Trained) -> Iterator[Detail]:
    figure, iterations = "a training of Stable-Baselines3", len(trained.seconds["idle"])
    step = statistics.median(trained.seconds["idle"]) / STEPS
    ending = len(parts["the recorder"][0].ending) / STEPS / iterations
    yield Detail(
        figure, "a step of all environments, learning included", f"{step * 1e6:,.0f} us; 1 % of it {step * 1e4:.1f} us"
    )
    yield Detail(figure, "steps that end an episode", f"{ending:.1%}")
    yield Detail(figure, "a step, the writer's thread", micro(trained.writer / iterations / STEPS * 1e6))
    waits = {name: micro(statistics.median(each) / STEPS * 1e6) for name, each in trained.waits.items()}
    yield Detail(
        figure,
        "a step, waits of the environment's thread for processor and GIL",
        f"{waits['recorded']}; with a wrapper that does nothing {waits['idle']}",
    )
    for name, (in_training, warm) in parts.items():
        told = (
            f"{statistics.median(each.normal) / 1e3:.1f} us, with an episode's end {statistics.median(each.ending) / 1e3:.1f} us"
            for each in (in_training, warm)
        )
        yield Detail(figure, f"a step, {name}, and the clock", "; warm ".join(told))


def _details(hooks: dict[str, Timings]) -> tuple[Detail, ...]:
    return tuple(
        Detail("wrappers, steps of environments that take no time", name, f"{each}") for name, each in hooks.items()
    )
