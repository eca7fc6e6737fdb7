"""How much random data the tests draw: ``TEST_EFFORT=10`` makes it ten times as much as usual."""

from __future__ import annotations

import os

from hypothesis import settings

EFFORT = float(os.environ.get("TEST_EFFORT", "1"))


def examples(count: int) -> settings:
    """Settings of a test that usually draws so many examples."""
    return settings(max_examples=max(1, round(count * EFFORT)), deadline=None)
