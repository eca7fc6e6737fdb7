"""Hide packages from the import system, as if they were not installed."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _Hides(MetaPathFinder):
    def __init__(self, packages: tuple[str, ...]) -> None:
        self._packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self._packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide(*packages: str) -> None:
    """Hide packages from this process for good. None of them may have been imported."""
    found = [each for each in packages if each in sys.modules]
    assert not found, f"{found} were imported before"
    sys.meta_path.insert(0, _Hides(packages))
