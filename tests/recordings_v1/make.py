"""Record the fixtures beside this file: recordings of schema version 1, which are read for ever.

They were made on commit 0937096, the last one of that version, by ``python tests/recordings_v1/make.py``. Run on later
code this makes recordings of a later version: it says how these were made, and is not run by the tests.

Beside each recording lies ``NAME.pt.gz``: for each of its episodes ``(env, episode)`` what the episode came to, the rows of each
key, and the steps of the rollout that was recorded. All were read back and compared with the rollout when they were made.
"""

from __future__ import annotations

import functools
import gzip
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from tensordict import NonTensorData, TensorDict
from torchrl.data import Binary, Bounded, Categorical, Composite, NonTensor, OneHot, Unbounded
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv

from torchrl_rerun import RerunRecorder, load
from torchrl_rerun.writing import file as sinks

HERE = Path(__file__).parent
EXACT = ("raw", "png")


def bits(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Random bits, NaN and the largest integers among them."""
    count = torch.zeros(shape, dtype=dtype).numel() * torch.zeros((), dtype=dtype).element_size()
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


DTYPES = {
    "float": (torch.float32, (3,)),
    "double": (torch.float64, (2,)),
    "half": (torch.float16, (3,)),
    "brain": (torch.bfloat16, (3,)),
    "long": (torch.int64, (2,)),
    "unsigned": (torch.uint64, (1,)),
    "small": (torch.int8, (4,)),
    "matrix": (torch.float32, (2, 3)),
    "wide": (torch.float16, (70,)),
    "scalar": (torch.float32, ()),
}


class Everything(EnvBase):
    """Random bits of many dtypes, flags, categories, texts and pictures; ends after 3 steps, then 4, and so on."""

    def __init__(self, *, seed: int = 0, texts: bool = True, pictures: bool = True, few: bool = False) -> None:
        super().__init__()
        self.texts, self.pictures, self.count, self.t = texts, pictures, seed % 3, 0
        self.dtypes = {key: DTYPES[key] for key in ("long", "brain", "matrix")} if few else DTYPES
        self.generator = torch.Generator().manual_seed(seed)
        specs: dict[str, Any] = {key: Unbounded(shape, dtype=dtype) for key, (dtype, shape) in self.dtypes.items()}
        specs |= {"flags": Binary(4, dtype=torch.bool), "category": Categorical(5)}
        if texts:
            specs["says"] = NonTensor(())
        if pictures:
            specs |= {
                "pixels": Bounded(0, 255, (16, 24, 3), dtype=torch.uint8),
                "depth": Unbounded((8, 12)),
                "segmentation": Bounded(0, 3, (8, 12), dtype=torch.int64),
                "stack": Bounded(0, 255, (2, 32, 32), dtype=torch.uint8),
            }
        self.observation_spec = Composite(specs)
        self.action_spec = OneHot(3)
        self.reward_spec = Unbounded((1,))
        flags = ("done", "terminated", "truncated")
        self.done_spec = Composite({flag: Categorical(2, (1,), dtype=torch.bool) for flag in flags})

    def _observation(self) -> dict[str, Any]:
        draw = functools.partial(torch.randint, generator=self.generator)
        seen: dict[str, Any] = {key: bits(*each, self.generator) for key, each in self.dtypes.items()}
        seen |= {"flags": draw(0, 2, (4,)).bool(), "category": draw(0, 5, ())}
        if self.texts:
            seen["says"] = NonTensorData(
                f"step {self.t} of episode {self.count}: größer, 𝄞, '{{}}'\n\0 " * (self.t % 3)
            )
        if self.pictures:
            across = torch.linspace(0, 200, 24).expand(16, 24) + 10 * self.t
            seen["pixels"] = torch.stack([across, across.flip(1), across / 2], -1).to(torch.uint8)
            seen["depth"] = torch.rand(8, 12, generator=self.generator)
            seen["segmentation"] = draw(0, 4, (8, 12))
            seen["stack"] = (torch.arange(2)[:, None, None] * 9 + self.t + torch.zeros(2, 32, 32)).to(torch.uint8)
        return seen

    def _reset(self, tensordict: Any = None, **kwargs: Any) -> TensorDict:
        self.count, self.t = self.count + 1, 0
        return TensorDict(self._observation())

    def _step(self, tensordict: Any) -> TensorDict:
        self.t += 1
        ended = torch.tensor([self.t >= 2 + self.count])
        even = torch.tensor(self.count % 2 == 0)
        reward = torch.rand(1, generator=self.generator)
        flags = {"done": ended, "terminated": ended & even, "truncated": ended & ~even}
        return TensorDict({**self._observation(), "reward": reward, **flags})

    def _set_seed(self, seed: int | None) -> None:
        pass


class Groups(EnvBase):
    """Two environments of two foxes and a hare."""

    def __init__(self) -> None:
        super().__init__(batch_size=torch.Size([2]))
        self.group_map = {"foxes": ["red", "grey / old"], "hares": ["hare"]}
        self.t = torch.zeros(2, 1, dtype=torch.int64)
        self.generator = torch.Generator().manual_seed(3)

        def of(**leaf: Any) -> Composite:
            groups = {
                group: Composite({key: make(len(names)) for key, make in leaf.items()}, shape=(2, len(names)))
                for group, names in self.group_map.items()
            }
            return Composite(groups, shape=(2,))

        self.observation_spec = of(observation=lambda n: Unbounded((2, n, 3)), place=lambda n: Categorical(4, (2, n)))
        self.action_spec = of(action=lambda n: Unbounded((2, n, 2)))
        self.reward_spec = of(reward=lambda n: Unbounded((2, n, 1)))

    def _observation(self) -> dict[Any, torch.Tensor]:
        out: dict[Any, torch.Tensor] = {}
        for group, names in self.group_map.items():
            out[group, "observation"] = bits(torch.float32, (2, len(names), 3), self.generator)
            out[group, "place"] = torch.randint(0, 4, (2, len(names)), generator=self.generator)
        return out

    def _of(self, values: dict[Any, torch.Tensor]) -> TensorDict:
        groups = {
            group: TensorDict({key[1]: value for key, value in values.items() if key[0] == group}, [2, len(names)])
            for group, names in self.group_map.items()
        }
        return TensorDict(groups, [2])

    def _reset(self, tensordict: Any = None, **kwargs: Any) -> TensorDict:
        mask = torch.ones(2, 1, dtype=torch.bool) if tensordict is None else tensordict.get("_reset").reshape(2, 1)
        self.t[mask] = 0
        return self._of(self._observation())

    def _step(self, tensordict: Any) -> TensorDict:
        self.t += 1
        values = self._observation()
        for group, names in self.group_map.items():
            values[group, "reward"] = torch.rand(2, len(names), 1, generator=self.generator)
        return self._of(values).set("done", self.t >= torch.tensor([[3], [5]]))

    def _set_seed(self, seed: int | None) -> None:
        pass


# --- what is expected ---


def plain(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value.tolist()


def of_steps(steps: TensorDict) -> dict[Any, Any]:
    """The leaves of steps ``[time]``."""
    keys = steps.keys(True, True, is_leaf=lambda kind: not issubclass(kind, TensorDict))
    return {key: plain(steps.get(key)) for key in keys}


def cut(rollout: TensorDict) -> dict[tuple[int, int], TensorDict]:
    """The steps of each episode of a rollout ``[*batch, time]``."""
    flat, found = rollout.reshape(-1, rollout.shape[-1]), {}
    for env in range(len(flat)):
        done = flat[env]["next", "done"].flatten()
        ends = sorted({*(done.nonzero().flatten() + 1).tolist(), flat.shape[1]})
        for episode, (first, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            found[env, episode] = flat[env, first:end]
    return found


def keep(name: str, rollout: TensorDict, *, lossy: tuple[str, ...] = (), is_whole: bool = True) -> None:
    """Read a recording back, compare it with its rollout, and store what is expected of it."""
    expected, wanted = {}, cut(rollout)
    for each in load(HERE / name):
        properties, steps = each.properties, of_steps(wanted[each.properties.id])
        assert properties.length == len(wanted[properties.id])
        found = of_steps(each.tensordict())
        assert not is_whole or set(found) == set(steps), set(found) ^ set(steps)
        for key, value in steps.items() if is_whole else ():
            if not {key, key[-1]} & set(lossy):
                assert same(found[key], value), key
        if lossy:
            steps |= {key: found[key] for key in found if {key, key[-1]} & set(lossy)}
        said = {**properties.properties, "start_time": properties.start_time.isoformat()}
        expected[properties.id] = {
            "properties": said,
            "annotations": dict(properties.annotations),
            "rows": {key: value if isinstance(value := each[key], list) else value.clone() for key in each.keys()},
            "steps": steps if is_whole else None,
        }
    assert expected
    packed = io.BytesIO()
    torch.save({"lossy": list(lossy), "episodes": expected}, packed)
    (HERE / name).with_suffix(".pt.gz").write_bytes(gzip.compress(packed.getvalue()))


def same(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    if a.dtype is torch.bool:
        return torch.equal(a, b)
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.view(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    )


# --- the recordings ---


def record(env: EnvBase, name: str, steps: int, **options: Any) -> TensorDict:
    env = env.append_transform(RerunRecorder(HERE / name, **options))
    rollout = env.rollout(steps, break_when_any_done=False)
    env.close()
    return rollout


def killed() -> None:
    path = HERE / "killed.rrd"
    env = Everything(seed=4, pictures=False, few=True).append_transform(RerunRecorder(path, blueprint=False))
    rollout = env.rollout(11, break_when_any_done=False)
    env.transform.dump()
    torch.save(of_steps(rollout), path.with_suffix(".pt"))
    os.kill(os.getpid(), signal.SIGKILL)


def worker(seed: int, path: Path) -> EnvBase:
    return Everything(seed=seed, texts=False, pictures=False, few=True).append_transform(
        RerunRecorder(path, blueprint=False)
    )


def main() -> None:
    keep("single.rrd", record(Everything(), "single.rrd", 8, image_format="raw", blueprint=False))
    series = SerialEnv(2, [functools.partial(Everything, seed=seed, few=True) for seed in (1, 2)])
    keep("batch.rrd", record(series, "batch.rrd", 8, image_format="png", blueprint=False))
    keep("agents.rrd", record(Groups(), "agents.rrd", 8, blueprint=False))
    for image_format in ("jpeg", "h264"):
        name = f"{image_format}.rrd"
        options: dict[str, Any] = {
            "image_format": image_format,
            "in_keys": ["pixels", "stack", "action", "reward", "done"],
        }
        rollout = record(Everything(seed=5), name, 8, blueprint=False, **options)
        seen = ("pixels", "stack", "done")
        rollout = rollout.select("action", *seen, ("next", "reward"), *(("next", key) for key in seen))
        keep(name, rollout, lossy=("pixels", "stack"))

    recorder = RerunRecorder(HERE / "episodes", split="episode", blueprint=False)
    series = SerialEnv(2, [functools.partial(Everything, seed=seed, pictures=False, few=True) for seed in (6, 7)])
    env = series.append_transform(recorder)
    first = env.rollout(2, break_when_any_done=False)
    recorder.annotate(env=0, phase="warm-up", loss=0.5)
    start = env.step_mdp(first[:, -1])
    second = env.rollout(3, break_when_any_done=False, auto_reset=False, tensordict=env.maybe_reset(start))
    env.close()
    keep("episodes", torch.cat([first, second], 1))

    recorder = RerunRecorder(HERE / "dumps", split="dump", blueprint=False)
    env = Everything(seed=8, pictures=False, few=True).append_transform(recorder)
    first = env.rollout(5, break_when_any_done=False)
    recorder.dump("first")
    start = env.maybe_reset(env.step_mdp(first[-1]))
    second = env.rollout(6, break_when_any_done=False, auto_reset=False, tensordict=start)
    env.close()
    keep("dumps", torch.cat([first, second], 0))

    (HERE / "workers").mkdir(exist_ok=True)
    path = HERE / "workers" / "run.rrd"
    env = ParallelEnv(2, [functools.partial(worker, seed, path) for seed in (9, 10)])
    rollout = env.rollout(9, break_when_any_done=False)
    env.close()
    keep("workers", rollout)

    (HERE / "parts").mkdir(exist_ok=True)
    sinks.CHUNKS_PER_FILE = 30
    rollout = record(
        Everything(seed=11, pictures=False, few=True), "parts/run.rrd", 12, buffer_bytes=2_000, blueprint=False
    )
    sinks.CHUNKS_PER_FILE = 1 << 16
    keep("parts", rollout)

    seen = ["long", "says", "action", "reward", "done"]
    rollout = record(
        Everything(seed=12, pictures=False, few=True), "skipped.rrd", 12, skip=4, in_keys=seen
    )  # with a layout
    keep("skipped.rrd", rollout, is_whole=False)

    child = os.fork()
    if child == 0:
        killed()
    os.waitpid(child, 0)
    left = torch.load(HERE / "killed.pt")
    (HERE / "killed.pt").unlink()
    [texts] = [[key, ("next", key)] for key in ("says",)]
    objects = {key: left.pop(key) for key in texts}
    rollout = TensorDict(batch_size=[11])
    for key, value in left.items():
        rollout.set(key, value)
    for key, value in objects.items():
        rollout.set(key, torch.stack([NonTensorData(each) for each in value]))
    keep("killed.rrd", rollout)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
    print(sum(file.stat().st_size for file in HERE.rglob("*.*") if file.is_file()), file=sys.stderr)
