"""Ctrl-C at a chosen moment."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interrupted(count: int, *functions: Callable) -> Iterator[list[bool]]:
    """Raise Ctrl-C after ``count`` operations of the interpreter in some functions. Yield a list: True if it came."""
    codes = {function.__code__ for function in functions}
    came: list[bool] = []

    def trace(frame, event, arg):
        nonlocal count
        if frame.f_code not in codes:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            count -= 1
            if count == -1:
                came.append(True)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield came
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
