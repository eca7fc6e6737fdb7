"""``python -m tests.soak [--seconds 600] [--seed N] [--only SEED]``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' helpers
    os.environ |= {"RL_WARNINGS": "0", "RUST_LOG": "off"}  # full disks are part of the soak
    from soak.cli import main

    sys.exit(main())
