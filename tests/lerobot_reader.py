"""LeRobot's own reader, in a virtual environment: LeRobot requires older versions than this project.

The environment holds lerobot and the dependencies of its reader, 90 MB. Other packages are those of the tests, since
torch would take gigabytes. So lerobot runs with a newer torch, av and packaging than its metadata allows.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import textwrap
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# The last lerobot for Python 3.11, and the last torchvision with the video decoder that it uses.
ALONE = ("lerobot==0.4.4", "torchvision==0.24.1", "accelerate==1.15.0", "safetensors==0.8.0")
WITH_ALL_THEY_NEED = ("datasets==4.8.5", "huggingface-hub==0.35.3")

PROGRAM = """
    import json, pickle, sys, traceback, warnings
    warnings.simplefilter("ignore")
    import torch
    if not torch.__version__.startswith("2.9.1"):
        # torchvision's operators, which nothing here uses, are built for one version of torch, and unknown beside others.
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from lerobot.datasets.compute_stats import aggregate_stats
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.datasets.utils import cast_stats_to_numpy, load_nested_dataset

    def read(folder):
        dataset = LeRobotDataset("local/set", root=folder, video_backend="pyav")
        items = [dataset[at] for at in range(len(dataset))]
        values = {}
        for name in items[0]:
            column = [item[name] for item in items]
            values[name] = column if isinstance(column[0], str) else torch.stack(column).numpy()
        entries = load_nested_dataset(dataset.root / "meta/episodes")
        of_episodes = [
            cast_stats_to_numpy({name[6:]: value for name, value in entry.items() if name.startswith("stats/")})
            for entry in entries
        ]
        return {
            "features": dataset.meta.features, "fps": dataset.meta.fps, "episodes": dataset.meta.episodes.to_list(),
            "stats": dataset.meta.stats, "of_episodes": of_episodes, "aggregated": aggregate_stats(of_episodes),
            "values": values,
        }

    print("ready", flush=True)
    for line in sys.stdin:
        folder, answer = json.loads(line)
        try:
            found = read(folder)
        except Exception:
            found = traceback.format_exc()
        with open(answer, "wb") as file:
            pickle.dump(found, file)
        print("done", flush=True)
"""


def environment(folder: Path) -> Path:
    """Return the Python of the environment. Make the environment in a folder unless it exists.

    Raises:
        OSError: the environment can't be made.
        subprocess.SubprocessError: pip can't install the packages.
    """
    python, whole = folder / "bin" / "python", folder / "whole"
    if not whole.exists():
        venv.create(folder, clear=True)
        [own] = folder.glob("lib/python*/site-packages")
        (own / "of_the_tests.pth").write_text("\n".join(each for each in sys.path if each.endswith("-packages")))
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"]
        for packages in (["--no-deps", *ALONE], WITH_ALL_THEY_NEED):
            subprocess.run([*pip, *packages], check=True, capture_output=True, text=True, timeout=300)
        whole.touch()
    return python


class Reader:
    """A process that reads data sets, one after the other. Importing LeRobot takes seconds.

    Args:
        python: the environment's Python.
        folder: folder for its answers.
    """

    def __init__(self, python: Path, folder: Path) -> None:
        offline = {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": ""}
        self._answer = folder / "answer"
        self._errors = (folder / "errors").open("w+")
        self._process = subprocess.Popen(
            [python, "-c", textwrap.dedent(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | offline,
        )
        self._wait_for("ready")

    def __call__(self, folder: Path) -> dict[str, Any]:
        """Return a data set as LeRobot reads it: metadata, statistics, and the values of all steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([str(folder), str(self._answer)]) + "\n")
        self._process.stdin.flush()
        self._wait_for("done")
        found = pickle.loads(self._answer.read_bytes())
        assert isinstance(found, dict), found
        return found

    def _wait_for(self, word: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == word:
                return
        self._errors.seek(0)
        raise AssertionError(f"LeRobot's process ended: {self._errors.read()}")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._errors.close()


@pytest.fixture(scope="session")
def read_by_lerobot(request, tmp_path_factory) -> Iterator[Reader]:
    """Start a process that reads data sets with LeRobot."""
    version = hashlib.sha256(repr((ALONE, WITH_ALL_THEY_NEED, sys.version, sys.prefix)).encode()).hexdigest()[:12]
    try:
        folder = request.config.cache.mkdir(f"lerobot-{version}")
        with FileLock(f"{folder}.lock"):  # several processes may run tests
            python = environment(folder)
    except (OSError, subprocess.SubprocessError) as error:
        why = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        pytest.skip(f"LeRobot's environment can't be made: {why}")
    reader = Reader(python, tmp_path_factory.mktemp("lerobot"))
    yield reader
    reader.close()
