"""Run ``torchrl-rerun`` as ``python -m torchrl_rerun.cli``."""

from torchrl_rerun.cli import app

app()
