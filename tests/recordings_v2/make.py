"""Record the fixtures beside this file: recordings of schema version 2, which are read for ever.

They were made on commit 800a31e, the last one of that version, by ``python tests/recordings_v2/make.py``: those of version 1
again, by its own ``make.py``, and more. Run on later code this makes recordings of a later version: it says how these were
made, and is not run by the tests.
"""

from __future__ import annotations

import gzip
import io
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from tensordict import NonTensorData, TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, SerialEnv

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "recordings_v1"), str(HERE.parent)]  # its `make.py`, and the helpers of the tests

import make as make_v1  # noqa: E402

from environments import Groups, Missing, Scripted, Zoo  # noqa: E402
from torchrl_rerun import RerunRecorder, load  # noqa: E402

make_v1.HERE = HERE


class Paced(EnvBase):
    """Moves by a category, and ends after as many steps as its seed; the flags and categories seldom change."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.n, self.t = seed, 0
        self.observation_spec["place"] = Unbounded((2,))
        self.observation_spec["phase"] = Categorical(3, ())
        self.action_spec = Categorical(2, (1,))
        self.reward_spec = Unbounded((1,))
        flags = ("done", "terminated", "truncated")
        self.done_spec = Composite({flag: Categorical(2, (1,), dtype=torch.bool) for flag in flags})

    def _observation(self) -> dict[str, torch.Tensor]:
        return {"place": torch.tensor([float(self.n), float(self.t)]), "phase": torch.tensor(self.t // 3 % 3)}

    def _reset(self, tensordict: Any = None, **kwargs: Any) -> TensorDict:
        self.t = 0
        return TensorDict(self._observation())

    def _step(self, tensordict: Any) -> TensorDict:
        self.t += 1
        ended, odd = torch.tensor([self.t >= self.n]), torch.tensor([self.n % 2 == 1])
        flags = {"done": ended, "terminated": ended & odd, "truncated": ended & ~odd}
        return TensorDict({**self._observation(), "reward": torch.rand(1), **flags})

    def _set_seed(self, seed: int | None) -> None:
        pass


class LosesPhases(Paced):
    """Leaves out the phase at some steps."""

    def _step(self, tensordict: Any) -> TensorDict:
        found = super()._step(tensordict)
        if self.t in (2, 3):
            del found["phase"]
        return found


def keep_read(name: str) -> None:
    """Store what load gives of a recording, whatever the rollout's form."""
    expected = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in load(HERE / name):
            properties = each.properties
            expected[properties.id] = {
                "properties": {**properties.properties, "start_time": properties.start_time.isoformat()},
                "annotations": dict(properties.annotations),
                "rows": {key: value if isinstance(value := each[key], list) else value.clone() for key in each.keys()},
                "steps": make_v1.of_steps(each.tensordict()),
            }
    assert expected
    packed = io.BytesIO()
    torch.save({"lossy": [], "episodes": expected}, packed)
    (HERE / name).with_suffix(".pt.gz").write_bytes(gzip.compress(packed.getvalue()))


def record(env: EnvBase, name: str, steps: int, **options: Any) -> TensorDictBase:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = env.append_transform(RerunRecorder(HERE / name, blueprint=False, **options))
        rollout = env.rollout(steps, break_when_any_done=False, return_contiguous=False)
        env.close()
    return rollout


def main() -> None:
    make_v1.main()

    series = SerialEnv(3, [lambda: Paced(4), lambda: Paced(7), lambda: Paced(1)])
    make_v1.keep("discrete.rrd", record(series, "discrete.rrd", 20, aggregate=True).contiguous())

    record(LosesPhases(6), "gaps.rrd", 14)
    keep_read("gaps.rrd")
    record(Missing(5, {2, 3, 9}), "missing.rrd", 12)
    keep_read("missing.rrd")

    def observe(t: int) -> dict[str, Any]:
        values: list[Any] = ["a text", {"a": [1, None]}, b"bytes", 2.5, "größer 𝄞"]
        return {
            "x": torch.full((2,), complex(t, -t), dtype=torch.complex64),
            "up": torch.tensor([t % 4 == 1, t > 5]),
            "note": NonTensorData(values[t % 5]),
        } | ({"flag": torch.tensor([t > 4])} if t not in (2, 3, 7) else {})

    specs = {"x": Unbounded((2,)), "up": Unbounded((2,), dtype=torch.bool)}
    record(Scripted(observe, specs=specs), "objects.rrd", 9)
    keep_read("objects.rrd")

    record(Groups({"foxes": 3, "hares": 5}), "regrouped.rrd", 14)
    keep_read("regrouped.rrd")
    record(Zoo(), "zoo.rrd", 6, in_keys=["mode", "flags", "count", "small", "one_hot", "multi", "reward", "done"])
    keep_read("zoo.rrd")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
    print(sum(file.stat().st_size for file in HERE.rglob("*.*") if file.is_file()), file=sys.stderr)
