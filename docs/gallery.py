"""The gallery: recordings of real environments, and pictures of how the viewer opens them. `make gallery` runs this."""

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
from torchrl.envs import EnvBase, GymEnv, GymWrapper, PendulumEnv, SerialEnv, StepCounter, TransformedEnv
from torchrl.envs.libs.vmas import VmasEnv

from torchrl_rerun import KeepWorst, RerunRecorder, list_episodes
from torchrl_rerun.viewing.screenshots import Moment, screenshots

PICTURES = Path(__file__).with_name("gallery")
SIZE = (1600, 900)

cartpole = functools.partial(GymEnv, "CartPole-v1", categorical_action_encoding=True)
seen_cartpole = functools.partial(cartpole, render_mode="rgb_array")


# --- policies, so that there is something to see ---


def balance(tensordict: TensorDictBase) -> TensorDictBase:
    """Pushes the cart under the falling pole; each environment is more distracted than the one before."""
    _, _, angle, speed = tensordict["observation"].unbind(-1)
    good = (angle + 0.3 * speed > 0).long()
    distraction = torch.linspace(0.1, 0.9, good.numel()).reshape(good.shape)
    distracted = torch.rand(good.shape) < distraction
    return tensordict.set("action", torch.where(distracted, torch.randint_like(good, 2), good))


def swing(tensordict: TensorDictBase) -> TensorDictBase:
    """Pushes the pendulum the way it goes."""
    speed = tensordict["thdot"]
    return tensordict.set("action", (2 * speed.sign() * torch.rand_like(speed)).unsqueeze(-1))


class Gait:
    """Moves six joints in waves, somewhat like legs."""

    def __init__(self) -> None:
        self._time = 0

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        self._time += 1
        phases = torch.tensor([0.0, 1.2, 2.4, 3.1, 4.3, 5.5])
        return tensordict.set("action", (0.8 * torch.sin(0.5 * self._time + phases)).expand(*tensordict.shape, 6))


def navigate(tensordict: TensorDictBase) -> TensorDictBase:
    """Agents steer for their goals, which their observations give relative to them."""
    observation = tensordict["agents", "observation"]
    return tensordict.set(("agents", "action"), (-0.6 * observation[..., 4:6]).clamp(-1, 1))


# --- environments ---


class Cameras(gym.ObservationWrapper[dict[str, npt.NDArray[Any]], Any, Any]):
    """HalfCheetah, seen by two cameras, one of which also measures depth and knows what is what."""

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
        """The joints, and what the cameras see."""
        renderer = self._renderer
        seen = {"joints": observation}
        for name, (azimuth, elevation) in self.VIEWS.items():
            self._look(azimuth, elevation)
            seen[name] = renderer.render()
        self._look(*self.VIEWS["side"])
        renderer.enable_depth_rendering()
        seen["depth"] = np.minimum(renderer.render(), 8.0)
        renderer.disable_depth_rendering()
        renderer.enable_segmentation_rendering()
        seen["segmentation"] = (renderer.render()[..., 0] + 1).astype(np.uint8)
        renderer.disable_segmentation_rendering()
        return seen

    def _look(self, azimuth: float, elevation: float) -> None:
        camera, data = mujoco.MjvCamera(), self.unwrapped.data
        camera.lookat = data.body("torso").xpos
        camera.distance, camera.azimuth, camera.elevation = 3.0, azimuth, elevation
        self._renderer.update_scene(data, camera)


# --- scenes: each records to a path, and returns the file to open ---

Policy = Callable[[TensorDictBase], TensorDictBase] | None


def recorded(
    env: EnvBase, path: Path, steps: int, policy: Policy = None, start: TensorDictBase | None = None, **options: Any
) -> Path:
    """A rollout of an environment, recorded; ``start`` is what it is reset with."""
    env = env.append_transform(RerunRecorder(path, **options))
    torch.manual_seed(0)
    env.set_seed(0)
    first = env.reset(start, set_state=False)
    env.rollout(steps, policy, auto_reset=False, tensordict=first, break_when_any_done=False, trust_policy=True)
    env.close()
    return path


def one_environment(path: Path, steps: int) -> Path:
    return recorded(seen_cartpole(), path, steps, balance, render=True)


def four_environments(path: Path, steps: int) -> Path:
    return recorded(SerialEnv(4, seen_cartpole), path, steps, balance, render=True)


def sixteen_environments(path: Path, steps: int) -> Path:
    return recorded(SerialEnv(16, seen_cartpole), path, steps, balance, render=True)


def sixty_four_environments(path: Path, steps: int) -> Path:
    return recorded(SerialEnv(64, seen_cartpole), path, steps // 2, balance, render=True, aggregate=True)


def thousands_of_environments(path: Path, steps: int) -> Path:
    env = TransformedEnv(PendulumEnv(), StepCounter(max_steps=100))
    return recorded(env, path, steps, swing, start=PendulumEnv.gen_params(batch_size=[4096]))


def joints(path: Path, steps: int) -> Path:
    return recorded(GymEnv("HalfCheetah-v5"), path, steps, Gait())


def long_vectors(path: Path, steps: int) -> Path:
    return recorded(GymEnv("Humanoid-v5", render_mode="rgb_array"), path, steps // 2, render=True)


def agents(path: Path, steps: int) -> Path:
    env = VmasEnv("navigation", num_envs=1, n_agents=3, max_steps=100, shared_rew=False, seed=0)
    return recorded(env, path, steps, navigate, render=True)


def cameras(path: Path, steps: int) -> Path:
    return recorded(GymWrapper(Cameras()), path, steps // 2, Gait())


def the_worst_episode(path: Path, steps: int) -> Path:
    folder = path.with_suffix("")
    env = SerialEnv(4, seen_cartpole)
    recorded(env, folder, max(steps, 100), balance, render=True, split="episode", keep=KeepWorst(3))
    return min(list_episodes(folder).episodes, key=lambda found: found.episode.episode_return).path


class Scene(NamedTuple):
    """What is recorded, and how many frames into it the picture is."""

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
        Scene(agents, 40),
        Scene(cameras, 40),
        Scene(the_worst_episode, 5),
    )
}


def main(argv: list[str] | None = None) -> None:
    """Record the scenes, and take pictures of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*", choices=[*SCENES, []], help="all, if none is named")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=PICTURES)
    args = parser.parse_args(argv)

    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        for name in args.scenes or SCENES:
            scene = SCENES[name]
            file = scene.record(Path(folder, f"{name}.rrd"), args.steps)
            [shot] = screenshots([file], [Moment("frame", str(scene.frame))], size=SIZE, wait=60.0)
            if shot.errors:
                raise SystemExit(f"{name}: {'; '.join(shot.errors)}")
            picture = args.out / f"{name}.png"
            # Few colours make it small enough for a page.
            Image.open(BytesIO(shot.png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
                picture, optimize=True
            )
            print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
