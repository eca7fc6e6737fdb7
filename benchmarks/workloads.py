"""Workloads: environments whose steps take no time, with data of any size, and the hooks that TorchRL calls in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, Transform

from torchrl_rerun import RerunRecorder

POOL_BYTES = 64 << 20
"""Bytes of data that steps cycle through: beyond the window (64 KiB of a column) in which LZ4 finds repetitions."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a step's data.

    Attributes:
        envs: Number of environments.
        observation, action: Number of float32 components for each environment. The reward is one more.
        pixels: Shape of a uint8 image. Empty: no image.
    """

    envs: int
    observation: int
    action: int
    pixels: tuple[int, ...] = ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each key, for all environments."""
        shapes: dict[str, tuple[int, ...]] = {
            "observation": (self.observation,),
            "action": (self.action,),
            "reward": (1,),
        }
        if self.pixels:
            shapes = {"pixels": self.pixels, **shapes}
        return {key: (self.envs, *shape) for key, shape in shapes.items()}

    @property
    def step_bytes(self) -> int:
        """Bytes of one step of all environments."""
        return sum(int(np.prod(shape)) * (1 if key == "pixels" else 4) for key, shape in self.shapes().items())

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.pixels))] if self.pixels else []
        return f"{self.envs} x ({' + '.join([*parts, str(self.observation), str(self.action), '1'])})"


PIXELS = Sizes(16, 17, 6, (84, 84, 3))
SCALARS = Sizes(16, 17, 6)


def robots(envs: int) -> Sizes:
    """Return the sizes of a simulator of legged robots."""
    return Sizes(envs, 48, 12)


class Workload:
    """Data of steps: fixed arrays, which are given new values for each step.

    Args:
        sizes: Sizes of a step.
        pool: Values of many steps, ``[steps, envs, ...]`` for each key. Default: noise beyond LZ4's window.
        device: Device of the environment's tensors. On other devices than the CPU they keep the values of the first step.

    Attributes:
        pool: Values of many steps.
        device: Device of the tensors.
        arrays: Values of the present step by key, ``[envs, ...]``.
        tensors: Tensors of this memory, if the device is the CPU.
        root, following: Tensordicts of this memory, before and after a step.
    """

    def __init__(
        self, sizes: Sizes, pool: Mapping[str, npt.NDArray[Any]] | None = None, *, device: str = "cpu"
    ) -> None:
        self.sizes = sizes
        self.device = torch.device(device)
        self.pool = pool or noise(sizes, max(64, min(1 << 14, POOL_BYTES // sizes.step_bytes)))
        self._length = len(self.pool["reward"])
        self.arrays = {key: values[0].copy() for key, values in self.pool.items()}
        tensors = self.tensors = {key: torch.from_numpy(array).to(device) for key, array in self.arrays.items()}
        flags: dict[str, Any] = {
            key: torch.zeros(sizes.envs, 1, dtype=torch.bool, device=device) for key in ("done", "terminated")
        }
        self.observed: dict[str, Any] = {key: tensors[key] for key in ("pixels", "observation") if key in tensors}
        self.outcome: dict[str, Any] = {"reward": tensors["reward"], **flags}
        self.root = TensorDict({**self.observed, "action": tensors["action"], **flags}, [sizes.envs])
        self.following = TensorDict({**self.observed, **self.outcome}, [sizes.envs])

    def renew(self, number: int) -> None:
        """Give the arrays the values of step ``number``. These are then in the processor's cache, as if computed."""
        for key, values in self.pool.items():
            np.copyto(self.arrays[key], values[number % self._length])


def noise(sizes: Sizes, steps: int) -> dict[str, npt.NDArray[Any]]:
    """Return values that can't be compressed: normal floats, uniform bytes."""
    rng = np.random.default_rng(0)
    return {
        key: rng.integers(0, 256, (steps, *shape), np.uint8)
        if key == "pixels"
        else rng.standard_normal((steps, *shape), np.float32)
        for key, shape in sizes.shapes().items()
    }


def smooth(sizes: Sizes, steps: int) -> dict[str, npt.NDArray[Any]]:
    """Return random walks, and images of a flat background with eight moving patches, which compress easily."""
    pool = noise(sizes, 1 if sizes.pixels else steps)
    rng = np.random.default_rng(1)
    for key, shape in sizes.shapes().items():
        if key == "pixels":
            pool[key] = _moving_patches(rng, steps, shape)
        else:
            pool[key] = np.cumsum(rng.standard_normal((steps, *shape), np.float32) * 0.01, axis=0, dtype=np.float32)
    return pool


def grainy(sizes: Sizes, steps: int) -> dict[str, npt.NDArray[Any]]:
    """Return smooth images with grain on a third of the bytes, which LZ4 halves at a quarter of the speed of a copy."""
    pool = smooth(sizes, steps)
    rng = np.random.default_rng(2)
    pixels = pool["pixels"]
    grain = rng.integers(0, 4, pixels.shape, np.uint8)
    pool["pixels"] = np.where(rng.random(pixels.shape, np.float32) < 0.3, pixels ^ grain, pixels)
    return pool


def _moving_patches(rng: np.random.Generator, steps: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    envs, height, width, _ = shape
    frames = np.full((steps, *shape), (40, 60, 80), np.uint8)
    for env in range(envs):
        for _ in range(8):
            color = rng.integers(0, 256, 3)
            rows = (rng.integers(height) + np.cumsum(rng.integers(-1, 2, steps))) % (height - 10)
            columns = (rng.integers(width) + np.cumsum(rng.integers(-1, 2, steps))) % (width - 10)
            for step, (row, column) in enumerate(zip(rows, columns, strict=True)):
                frames[step, env, row : row + 10, column : column + 10] = color
    return frames


class Instant(EnvBase):
    """Environment whose steps take no time: it returns the workload's tensors at each step."""

    metadata: ClassVar[dict[str, object]] = {}

    def __init__(self, workload: Workload) -> None:
        sizes = workload.sizes
        super().__init__(batch_size=torch.Size([sizes.envs]), device=workload.device)
        shapes = sizes.shapes()
        on = {"device": workload.device}
        specs = {"observation": Unbounded(shapes["observation"], **on)}
        if sizes.pixels:
            specs["pixels"] = Bounded(0, 255, shapes["pixels"], dtype=torch.uint8, **on)
        self.observation_spec = Composite(specs, shape=(sizes.envs,), **on)
        self.action_spec = Unbounded(shapes["action"], **on)
        self.reward_spec = Unbounded(shapes["reward"], **on)
        self.workload = workload

    def _reset(self, tensordict: TensorDict | None = None, **_: object) -> TensorDict:
        return TensorDict(dict(self.workload.observed), self.batch_size)

    def _step(self, tensordict: TensorDict) -> TensorDict:
        return TensorDict({**self.workload.observed, **self.workload.outcome}, self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        """Ignore the seed: nothing is random."""


class Hooked:
    """Transform at the end of an instant environment, called by TorchRL's hooks of a step alone.

    Args:
        workload: Data of the steps.
        transform: Transform that is timed. It sees a real reset and a real step first.
    """

    def __init__(self, workload: Workload, transform: Transform) -> None:
        self.env = Instant(workload).append_transform(transform)
        self.env.step(self.env.rand_action(self.env.reset()))
        self._transform = transform
        self._root, self._following = workload.root, workload.following

    def step(self) -> None:
        """Call the hooks that the transform's environment calls in a step."""
        self._transform._inv_call(self._root)
        self._transform._step(self._root, self._following)


class Recorded(Hooked):
    """Recorder at the end of an instant environment, see :class:`Hooked`.

    Args:
        workload: Data of the steps.
        sink: Sink of the recorder.
        options: Arguments of :class:`torchrl_rerun.RerunRecorder`.
    """

    def __init__(self, workload: Workload, sink: Any, **options: Any) -> None:
        self.recorder = RerunRecorder(sink, **options)
        super().__init__(workload, self.recorder)

    def close(self) -> None:
        """Close the recording."""
        self.env.close()


def looking(workload: Workload) -> Any:
    """Return a step that views the workload's values as arrays, and does nothing with them."""
    following, names = workload.following, [*workload.observed, *workload.outcome]

    def look() -> None:
        for name in names:
            following.get(name).numpy()
        workload.root.get("action").numpy()

    return look


def copy_into_ring(workload: Workload, ring_bytes: int) -> Any:
    """Return a step that copies the workload's arrays with NumPy, which no recorder can undercut.

    Args:
        workload: Data of the steps.
        ring_bytes: Size of the ring of memory, which is allocated beforehand. A small ring stays in the processor's cache, unlike
            a recorder's memory.
    """
    slots = max(1, ring_bytes // workload.sizes.step_bytes)
    rings = [np.zeros((slots, *array.shape), array.dtype) for array in workload.arrays.values()]
    for ring in rings:
        ring.fill(1)
    pairs = list(zip(rings, workload.arrays.values(), strict=True))
    slot = 0

    def step() -> None:
        nonlocal slot
        for ring, array in pairs:
            np.copyto(ring[slot], array)
        slot = (slot + 1) % slots

    return step
