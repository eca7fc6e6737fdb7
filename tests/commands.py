"""The command line: called in this process, or in a process that lacks some packages."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from programs import python
from torchrl_rerun.cli import app

WITHOUT = """
import sys
sys.path.insert(0, {tests!r})
from absent import hide
hide(*{packages!r})
from torchrl_rerun.cli import app
app()
"""


def export(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def without(packages: list[str], *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in an interpreter in which some packages are not installed."""
    code = WITHOUT.format(tests=str(Path(__file__).parent), packages=packages)
    return subprocess.run([*python(), "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False)
