"""``python -m torchrl_rerun.cli`` is ``torchrl-rerun``."""

from torchrl_rerun.cli import app

app()
