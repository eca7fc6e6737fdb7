"""Number of random examples that the tests draw. ``TEST_EFFORT=10`` draws ten times as many."""

from __future__ import annotations

import os

from hypothesis import settings

EFFORT = float(os.environ.get("TEST_EFFORT", "1"))


def examples(count: int) -> settings:
    """Return the settings of a test that draws this many examples at an effort of 1."""
    return settings(max_examples=max(1, round(count * EFFORT)), deadline=None)
