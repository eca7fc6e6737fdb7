"""Random sequences of resets, partial resets, partial steps and episode ends against the plain reference."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from readback import read
from reference import Reference, per_env
from torchrl_rerun import RerunRecorder

KEYS = ["count", "image", "done", "terminated"]


class Counter(EnvBase):
    """Counts calls; steps and resets what it is asked to, and hands out stale rows for the rest."""

    def __init__(self, envs, ends):
        super().__init__(batch_size=torch.Size([envs]))
        self.observation_spec = Composite(
            count=Unbounded((envs, 2), dtype=torch.int64),
            image=Bounded(0, 255, (envs, 6, 7, 3), dtype=torch.uint8),
            shape=(envs,),
        )
        self.action_spec = Unbounded((envs, 2))
        self.reward_spec = Unbounded((envs, 1))
        self.calls = 0
        self.ends = ends

    def _observe(self):
        self.calls += 1
        envs = self.batch_size[0]
        count = torch.stack([torch.full((envs,), self.calls), torch.arange(envs)], -1)
        image = torch.full((envs, 6, 7, 3), self.calls % 256, dtype=torch.uint8)
        return TensorDict(count=count, image=image, batch_size=[envs])

    def _reset(self, tensordict=None, **kwargs):
        return self._observe().set("done", torch.zeros(*self.batch_size, 1, dtype=torch.bool))

    def _step(self, tensordict):
        out = self._observe()
        done = torch.tensor(next(self.ends, [False] * self.batch_size[0]))[:, None]
        return out.update({"reward": torch.rand(*self.batch_size, 1), "done": done})

    def _set_seed(self, seed):
        pass


@st.composite
def runs(draw):
    envs = draw(st.integers(1, 4))
    mask = st.lists(st.booleans(), min_size=envs, max_size=envs)
    event = st.one_of(
        st.tuples(st.just("step"), st.none() | mask),
        st.tuples(st.just("step"), st.none()),
        st.tuples(st.just("reset"), st.none() | mask),
        st.tuples(st.just("dump"), st.none()),
    )
    return (
        envs,
        draw(st.lists(event, max_size=40)),
        draw(st.lists(mask, max_size=20)),
        draw(st.sampled_from([300, 3000, 1 << 20])),
    )


@settings(max_examples=120, deadline=None)
@given(runs())
def test_rows_are_those_of_the_reference(run):
    envs, events, ends, buffer_bytes = run
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.rrd")
        env = Counter(envs, itertools.chain(ends)).append_transform(
            RerunRecorder(path, image_format="raw", buffer_bytes=buffer_bytes, blueprint=False)
        )
        reference = Reference(envs)
        tensordict = env.reset()
        reference.reset(per_env(tensordict, KEYS))
        for what, mask in events:
            chosen = [i for i in range(envs) if mask is None or mask[i]]
            if what == "dump":
                env.transform.dump()
            elif what == "reset":
                if mask is not None:
                    if not chosen:
                        continue
                    tensordict["_reset"] = torch.tensor(mask)[:, None]
                tensordict = env.reset(tensordict)
                reference.reset(per_env(tensordict, KEYS, chosen))
            else:
                tensordict = env.rand_action(tensordict)
                if mask is not None:
                    tensordict["_step"] = torch.tensor(mask)
                tensordict = env.step(tensordict)
                if not chosen:  # TorchRL doesn't ask the environment then, nor any transform
                    tensordict = env.step_mdp(tensordict)
                    tensordict.pop("_step", None)
                    continue
                reference.steps(
                    per_env(tensordict, ["action"], chosen), per_env(tensordict["next"], [*KEYS, "reward"], chosen)
                )
                tensordict = env.step_mdp(tensordict)
                tensordict.pop("_step", None)
        env.close()
        reference.compare(read(path))
