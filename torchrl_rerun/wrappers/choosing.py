"""Choosing: name the recorder that an environment needs, and the option that an argument of another recorder is here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from torchrl_rerun.recording.options import RecorderOptions

SINGLE, VECTOR, VEC_ENV = "gymnasium.Env", "gymnasium.vector.VectorEnv", "VecEnv of Stable-Baselines3"
"""Forms of environments."""

RECORDERS = {
    SINGLE: "torchrl_rerun.wrappers.RecordRerun",
    VECTOR: "torchrl_rerun.wrappers.vector.RecordRerun",
    VEC_ENV: "torchrl_rerun.wrappers.sb3.VecRerunRecorder",
}
"""The recorder of each form."""

_SINK = "pass it as the second argument, which is a file (run.rrd), a folder, a viewer or a recording stream"

ELSEWHERE = {
    **dict.fromkeys(("video_folder", "save_path", "filename", "viewer", "recording_stream"), _SINK),
    "name_prefix": "the second argument names the file",
    "video_length": "it is recording_length here",
    "record_video_trigger": "it is step_trigger here",
    "skip_episodes": "pass episode_trigger=lambda episode: episode % 10 == 0, or keep",
    "record_first_only": "pass logged_envs=0",
    "video_aspect_ratio": "the layout shows each environment by itself",
    "disable_logger": "nothing is printed",
    "gc_trigger": "memory is bounded by buffer_bytes",
}
"""Arguments of ``RecordVideo``, ``VecVideoRecorder``, ``LogRerun`` and ``gymnasium_rerun``, and what to do here."""


def check_form(env: Any, wanted: str) -> None:
    """Raise TypeError if an environment needs another recorder.

    Args:
        env: the environment.
        wanted: the form that the recorder takes.
    """
    found = _form_of(env)
    if found not in (None, wanted):
        raise TypeError(
            f"{type(env).__name__} is a {found}: wrap it in {RECORDERS[found]}. {RECORDERS[wanted]} takes a {wanted}"
        )


def check_options(recorder: str, names: Iterable[str]) -> None:
    """Raise TypeError if there is no option of a name, and say which one was meant.

    Args:
        recorder: the recorder.
        names: the names.
    """
    known = sorted(RecorderOptions.__annotations__)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TypeError(
            f"{recorder} has no " + "; no ".join(f"{name!r} ({_advice_on(name, known)})" for name in unknown)
        )


def _form_of(env: Any) -> Any:
    """Return the form of an environment; None: none that is known."""
    if isinstance(env, VectorEnv):
        return VECTOR
    if isinstance(env, gymnasium.Env):
        return SINGLE
    # By name: Stable-Baselines3 may not be installed.
    is_vec_env = any(each.__module__.startswith("stable_baselines3.common.vec_env") for each in type(env).__mro__)
    return VEC_ENV if is_vec_env else None


def _advice_on(name: str, known: list[str]) -> str:
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"its options are {', '.join(known)}"
