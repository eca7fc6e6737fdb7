from __future__ import annotations

import importlib
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(autouse=True, scope="session")
def _agreement() -> None:
    """Each file that a test reads back is read by the library, too."""
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
    """A viewer without a display. It starts in half a second, and one that was used takes no recording of the same
    application with other columns (rerun-sdk 0.41)."""
    from looking import headless_viewer

    with headless_viewer() as client:
        yield client


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two CartPoles with pictures, whole and by their episodes: the first as video, the others as files."""
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


@pytest.fixture
def data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of Minari's data sets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"
