"""Untraced: functions that ``torch.compile`` calls as they are, and doesn't trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

is_compiling = torch.compiler.is_dynamo_compiling
"""Return whether the caller is being traced, and doesn't run."""


@torch.compiler.disable(  # type: ignore[no-untyped-call, untyped-decorator]
    reason="RerunRecorder records outside of compiled graphs: compile the environment without fullgraph=True, or record the "
    "rollouts that it returns with log_rollout()"
)
def untraced(function: Callable[..., None], *args: Any) -> None:
    """Call a function from compiled code, without tracing it or any function that it calls.

    The detour costs microseconds. Code that isn't compiled calls the function directly.

    Args:
        function: the function.
        args: its arguments.
    """
    function(*args)
