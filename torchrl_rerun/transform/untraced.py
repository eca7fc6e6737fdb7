"""Untraced: what ``torch.compile`` must call as it is, and never look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

is_compiling = torch.compiler.is_dynamo_compiling
"""Whether the caller is being traced, and doesn't run."""


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="RerunRecorder records outside of compiled graphs: compile the environment without fullgraph=True, or record the "
    "rollouts that it returns with log_rollout()"
)
def untraced(function: Callable[..., None], *args: Any) -> None:
    """Call a function from compiled code, without tracing it or anything that it calls.

    To go through this costs microseconds, so that it is left out where nothing is compiled.
    """
    function(*args)
