"""Random sequences of resets, partial resets, partial steps and episode ends against the plain reference."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import torch
from hypothesis import given

from driving import KEYS, sequences
from effort import examples
from environments import Counter
from readback import read
from reference import Reference, per_env
from torchrl_rerun import RerunRecorder


@examples(50)
@given(sequences())
def test_rows_equal_the_reference(run):
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
                if not chosen:  # TorchRL calls neither the environment nor any transform then
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
