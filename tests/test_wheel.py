"""The wheel in a new environment, with the newest versions that pip chooses."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")}

RECORD = """
import torchrl_rerun, sys
assert "torch" not in sys.modules
from torchrl.envs import GymEnv
env = GymEnv("CartPole-v1").append_transform(torchrl_rerun.RerunRecorder("run", split="episode"))
env.rollout(10)
env.close()
print(torchrl_rerun.__file__)
"""


def run(*command, folder):
    done = subprocess.run(list(map(str, command)), cwd=folder, env=CLEAN, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def link(distribution, site):
    """Link a distribution of this interpreter into another environment: a copy of torch takes 750 MB."""
    here = Path(importlib.metadata.distribution(distribution).locate_file(""))
    for name in {file.parts[0] for file in importlib.metadata.files(distribution)} - {"..", "__pycache__"}:
        (site / name).symlink_to(here / name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-deps", "--wheel-dir", folder, ROOT, folder=folder)
    [found] = folder.glob("*.whl")
    return found


def test_a_wheel_is_installed_with_what_it_needs_and_records(wheel, tmp_path):
    place = tmp_path / "environment"
    venv.create(place, symlinks=True)
    python = place / "bin" / "python"
    [site] = place.glob("lib/python*/site-packages")
    assert list(site.iterdir()) == []
    link("torch", site)
    run(*PIP, "--python", python, "install", "--no-compile", f"{wheel}[examples]", folder=tmp_path)
    printed = run(python, "-W", "ignore", "-c", RECORD, folder=tmp_path)
    assert printed.strip() == str(site / "torchrl_rerun" / "__init__.py")
    listed = run(place / "bin" / "torchrl-rerun", "ls", "run", folder=tmp_path)
    assert "env" in listed.splitlines()[0]
    assert "usage" in run(place / "bin" / "torchrl-rerun", "--help", folder=tmp_path).lower()
