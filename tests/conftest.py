from __future__ import annotations

import gc
import importlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it; the other processors run other tests
import torch
from gymnasium.utils import seeding

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside the tests
os.environ.setdefault("RL_WARNINGS", "0")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
warnings.filterwarnings("ignore", module="torchrl.*")

# Workers are forked from a process that has imported the packages: imports take seconds.
multiprocessing.set_start_method("forkserver")
multiprocessing.set_forkserver_preload(["gymnasium", "torchrl.envs", "torchrl_rerun.transform.recorder"])


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of garbage collections, which take half a second with it."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the same actions in each run, and the same first states where nobody gave a seed."""
    torch.manual_seed(0)
    np_random, seeds = seeding.np_random, itertools.count()
    monkeypatch.setattr(seeding, "np_random", lambda seed=None: np_random(next(seeds) if seed is None else seed))


@pytest.fixture(autouse=True, scope="session")
def _agreement() -> None:
    """Read each file that a test reads back with the library, too."""
    importlib.import_module("agreement")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.rrd"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 512 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def viewer() -> Iterator[Any]:
    """Start a viewer without a display for each test.

    rerun-sdk 0.41: a viewer takes no second recording of one application with other columns.
    """
    from looking import headless_viewer

    with headless_viewer() as client:
        yield client


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record two CartPoles with pictures: as a video in one file, and as pictures in a file for each episode."""
    from torchrl.envs import SerialEnv

    from environments import pixel_cartpole
    from torchrl_rerun import RerunRecorder

    folder = tmp_path_factory.mktemp("runs")
    env = SerialEnv(2, pixel_cartpole).append_transform(RerunRecorder(folder / "run.rrd", image_format="h264"))
    env.append_transform(RerunRecorder(folder / "ppo", split="episode"))
    env.set_seed(0)
    env.rollout(25, break_when_any_done=False)
    env.close()
    return folder


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for JUPYTER_PATH, with a kernel that starts fast: a program of `programs.py`."""
    from programs import python

    folder = tmp_path_factory.mktemp("jupyter")
    argv = [*python(), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    place = folder / "kernels" / "python3" / "kernel.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(spec))
    return folder


@pytest.fixture
def data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the folder of Minari's data sets, and return it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"
