"""Gallery: record real environments, and take pictures of the viewer. `make gallery` runs this script."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pixels without a display
os.environ.setdefault("MUJOCO_GL", "egl")

import gymnasium as gym
import mujoco
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tensordict import TensorDictBase
from torchrl.envs import DMControlEnv, EnvBase, GymEnv, GymWrapper, PendulumEnv, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.libs.vmas import VmasEnv

from torchrl_rerun import KeepWorst, MuJoCo, RerunRecorder, list_episodes
from torchrl_rerun.viewing.screenshots import Moment, take_screenshots

PICTURES = Path(__file__).with_name("gallery")
SIZE = (1600, 900)

cartpole = functools.partial(GymEnv, "CartPole-v1", categorical_action_encoding=True)
rendered_cartpole = functools.partial(cartpole, render_mode="rgb_array")


# --- policies ---


def balance(tensordict: TensorDictBase) -> TensorDictBase:
    """Push the cart under the falling pole, with more random steps in each further environment."""
    _, _, angle, speed = tensordict["observation"].unbind(-1)
    good = (angle + 0.3 * speed > 0).long()
    distraction = torch.linspace(0.1, 0.9, good.numel()).reshape(good.shape)
    distracted = torch.rand(good.shape) < distraction
    return tensordict.set("action", torch.where(distracted, torch.randint_like(good, 2), good))


def swing(tensordict: TensorDictBase) -> TensorDictBase:
    """Push the pendulum in the direction of its motion."""
    speed = tensordict["thdot"]
    return tensordict.set("action", (2 * speed.sign() * torch.rand_like(speed)).unsqueeze(-1))


class Gait:
    """Policy that moves six joints in waves."""

    def __init__(self) -> None:
        self._time = 0

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._time += 1
        phases = torch.tensor([0.0, 1.2, 2.4, 3.1, 4.3, 5.5])
        return tensordict.set("action", (0.8 * torch.sin(0.5 * self._time + phases)).expand(*tensordict.shape, 6))


def navigate(tensordict: TensorDictBase) -> TensorDictBase:
    """Steer each agent to its goal, whose relative position is in the observation."""
    observation = tensordict["agents", "observation"]
    return tensordict.set(("agents", "action"), (-0.6 * observation[..., 4:6]).clamp(-1, 1))


# --- environments ---


class Cameras(gym.ObservationWrapper[dict[str, npt.NDArray[Any]], Any, Any]):
    """HalfCheetah with two cameras, one of which also gives depth and segmentation."""

    SHAPE = (240, 320)
    VIEWS = MappingProxyType({"side": (90.0, -10.0), "above": (90.0, -70.0)})
    """Azimuth and elevation in degrees."""

    def __init__(self) -> None:
        env = gym.make("HalfCheetah-v5")
        super().__init__(env)
        self._renderer = mujoco.Renderer(env.unwrapped.model, *self.SHAPE)
        box = gym.spaces.Box
        self.observation_space = gym.spaces.Dict(
            joints=env.observation_space,
            side=box(0, 255, (*self.SHAPE, 3), np.uint8),
            above=box(0, 255, (*self.SHAPE, 3), np.uint8),
            depth=box(0, np.inf, self.SHAPE, np.float32),
            segmentation=box(0, 255, self.SHAPE, np.uint8),
        )

    def observation(self, observation: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the joints and the pictures of the cameras."""
        renderer = self._renderer
        found = {"joints": observation}
        for name, (azimuth, elevation) in self.VIEWS.items():
            self._look(azimuth, elevation)
            found[name] = renderer.render()
        self._look(*self.VIEWS["side"])
        renderer.enable_depth_rendering()
        found["depth"] = np.minimum(renderer.render(), 8.0)
        renderer.disable_depth_rendering()
        renderer.enable_segmentation_rendering()
        found["segmentation"] = (renderer.render()[..., 0] + 1).astype(np.uint8)
        renderer.disable_segmentation_rendering()
        return found

    def _look(self, azimuth: float, elevation: float) -> None:
        camera, data = mujoco.MjvCamera(), self.unwrapped.data
        camera.lookat = data.body("torso").xpos
        camera.distance, camera.azimuth, camera.elevation = 3.0, azimuth, elevation
        self._renderer.update_scene(data, camera)


# --- scenes: each records to a path, and returns the file to open ---

Policy = Callable[[TensorDictBase], TensorDictBase] | None


def record(
    env: EnvBase, path: Path, steps: int, policy: Policy = None, start: TensorDictBase | None = None, **options: Any
) -> Path:
    """Record a rollout of an environment, which is reset with ``start``, and return the path."""
    env = env.append_transform(RerunRecorder(path, **options))
    torch.manual_seed(0)
    env.set_seed(0)
    first = env.reset(start, set_state=False)
    env.rollout(steps, policy, auto_reset=False, tensordict=first, break_when_any_done=False, trust_policy=True)
    env.close()
    return path


def one_environment(path: Path, steps: int) -> Path:
    return record(rendered_cartpole(), path, steps, balance, render=True)


def four_environments(path: Path, steps: int) -> Path:
    return record(SerialEnv(4, rendered_cartpole), path, steps, balance, render=True)


def sixteen_environments(path: Path, steps: int) -> Path:
    return record(SerialEnv(16, rendered_cartpole), path, steps, balance, render=True)


def sixty_four_environments(path: Path, steps: int) -> Path:
    return record(SerialEnv(64, rendered_cartpole), path, steps // 2, balance, render=True, aggregate=True)


def thousands_of_environments(path: Path, steps: int) -> Path:
    env = TransformedEnv(PendulumEnv(), StepCounter(max_steps=100))
    return record(env, path, steps, swing, start=PendulumEnv.gen_params(batch_size=[4096]))


def joints(path: Path, steps: int) -> Path:
    return record(GymEnv("HalfCheetah-v5"), path, steps, Gait())


def long_vectors(path: Path, steps: int) -> Path:
    return record(GymEnv("Humanoid-v5", render_mode="rgb_array"), path, steps // 2, render=True)


def agents(path: Path, steps: int) -> Path:
    env = VmasEnv("navigation", num_envs=1, n_agents=3, max_steps=100, shared_rew=False, seed=0)
    return record(env, path, steps, navigate, render=True)


def cameras(path: Path, steps: int) -> Path:
    return record(GymWrapper(Cameras()), path, steps // 2, Gait())


def the_worst_episode(path: Path, steps: int) -> Path:
    folder = path.with_suffix("")
    env = SerialEnv(4, rendered_cartpole)
    record(env, folder, max(steps, 100), balance, render=True, keep=KeepWorst(3))
    return min(list_episodes(folder).episodes, key=lambda found: found.episode.episode_return).path


def robot(path: Path, steps: int) -> Path:
    return record(GymEnv("Humanoid-v5"), path, steps // 2, scene=True)


def robots(path: Path, steps: int) -> Path:
    return record(SerialEnv(16, lambda: GymEnv("Ant-v5")), path, steps, scene=True)


def robots_together(path: Path, steps: int) -> Path:
    return record(SerialEnv(16, lambda: GymEnv("Ant-v5")), path, steps, scene=MuJoCo(together=True))


def task(path: Path, steps: int) -> Path:
    return record(DMControlEnv("quadruped", "run"), path, steps, scene=True)


class Scene(NamedTuple):
    """Function that records a scene, and frame of its picture."""

    record: Callable[[Path, int], Path]
    frame: int = 60


SCENES = {
    scene.record.__name__: scene
    for scene in (
        Scene(one_environment),
        Scene(four_environments),
        Scene(sixteen_environments),
        Scene(sixty_four_environments, 40),
        Scene(thousands_of_environments),
        Scene(joints),
        Scene(long_vectors, 30),
        Scene(robot, 20),
        Scene(robots),
        Scene(robots_together),
        Scene(task),
        Scene(agents, 40),
        Scene(cameras, 40),
        Scene(the_worst_episode, 5),
    )
}


def main(argv: list[str] | None = None) -> None:
    """Record the scenes and take their pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*", choices=[*SCENES, []], help="scenes to record; default: all")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=PICTURES)
    args = parser.parse_args(argv)

    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        for name in args.scenes or SCENES:
            scene = SCENES[name]
            file = scene.record(Path(folder, f"{name}.rrd"), args.steps)
            [shot] = take_screenshots([file], [Moment("frame", str(scene.frame))], size=SIZE, wait=60.0)
            if shot.errors:
                raise SystemExit(f"{name}: {'; '.join(shot.errors)}")
            picture = args.out / f"{name}.png"
            # 256 colours make a file that is small enough for a page.
            Image.open(BytesIO(shot.png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
                picture, optimize=True
            )
            print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
