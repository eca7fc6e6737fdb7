"""Training scripts that run as programs, for tests that kill or hang them, or fill the disk."""

from __future__ import annotations

import subprocess
import textwrap

from programs import python
from servers import PATIENCE

PREAMBLE = """
import functools, gc, os, resource, signal, sys, time, warnings
import torch
from torchrl.envs import GymEnv, SerialEnv, ParallelEnv
from torchrl_rerun import RecordingError, RerunRecorder
path = sys.argv[1]
cartpole = functools.partial(GymEnv, "CartPole-v1")
torch.manual_seed(0)
"""


def run(script: str, path, *, timeout: float = PATIENCE, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script as a program. Fail unless it ends by itself with the expected status."""
    source = PREAMBLE + textwrap.dedent(script)
    done = subprocess.run(
        [*python(), "-c", source, str(path)], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done
