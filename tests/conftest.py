from __future__ import annotations

import multiprocessing
import os
import sys
import warnings
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch; the processors are busy with other tests
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside the tests
os.environ.setdefault("RL_WARNINGS", "0")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
warnings.filterwarnings("ignore", module="torchrl.*")

# Worker processes are forked from one that has imported everything, which would take each of them seconds.
multiprocessing.set_start_method("forkserver")
multiprocessing.set_forkserver_preload(["gymnasium", "torchrl.envs", "torchrl_rerun.transform.recorder"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.rrd"
