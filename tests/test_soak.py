"""A short soak: `make soak` runs for ten minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from programs import python

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the soak looks into /proc and forks")


def soak(*arguments):
    command = [*python(), "-m", "tests.soak", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)


def test_a_short_soak_has_no_failures():
    done = soak("--seconds", "15", "--seed", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failures" in done.stdout


def test_a_hang_is_a_failure_with_a_stack_trace():
    script = """
import sys, time
sys.path.insert(0, "tests")
from soak import cli, runners
runners.PATIENCE = 1.0
runners.carry_out = lambda seed, viewer: time.sleep(100)
sys.exit(cli.only(5))
"""
    done = subprocess.run([*python(), "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Timeout" in done.stdout
    assert "in <lambda>" in done.stdout
