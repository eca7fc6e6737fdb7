"""Recorder: what the wrappers of single environments, vector environments and VecEnvs have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import rerun as rr

from torchrl_rerun.errors import warn
from torchrl_rerun.recording import workers
from torchrl_rerun.recording.life import close_at_end, close_quietly
from torchrl_rerun.recording.options import Options
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.recording.session import Session, Sinks, shared_paths
from torchrl_rerun.viewing.notebook import Shown
from torchrl_rerun.wrappers.choosing import check_options
from torchrl_rerun.wrappers.facts import is_made_for_batch, is_made_from_spec
from torchrl_rerun.wrappers.front_end import FrontEnd


class Recorder(Shown):
    """The session and the front end of a wrapper, made anew in each copy of it."""

    _front_end: FrontEnd

    def _start(self, sink: Sinks | Sequence[Sinks], options: Mapping[str, Any]) -> None:
        """Make the session and the front end of a wrapper that is made now.

        Args:
            sink: the sink, or several.
            options: the options of the recorder.

        Raises:
            FileExistsError: the file exists, or the folder holds an earlier run, and neither ``overwrite`` nor ``resume`` is true.
            OSError: the folder can't be written.
            TypeError: an option is of the wrong type, or there is none of its name.
            ValueError: an option is out of its range, or contradicts another one.
        """
        check_options(type(self).__name__, options)
        checked = Options(**options)
        try:
            self._session = Session.of(sink, checked)
        except FileExistsError:
            beside = Session.of(sink, checked, is_copy=True)
            if not (is_made_from_spec(self) and _is_being_recorded(beside.target.identity)):
                raise
            self._session = beside
        if is_made_for_batch():
            target = self._session.target
            shared_paths.add(target.identity)
            warn(
                f"a recorder is inside the environments of a batch: {target.for_workers}. Wrap the vector environment for a "
                "single recording"
            )
        self._begin()

    def _begin(self) -> None:
        """Make the front end of a recorder that has seen no frame."""
        self._front_end = self._new_front_end()
        _front_ends.add(self._front_end)
        close_at_end(self, self._front_end.close_quietly)

    def _new_front_end(self) -> FrontEnd:
        raise NotImplementedError

    def _at_rest(self) -> contextlib.AbstractContextManager[Recording | None]:
        return self._front_end.at_rest()

    def _end(self) -> None:
        """Close the recording.

        Raises:
            RecordingError: data could not be written. In the workers of a batch it is a warning: an error would end the worker.
        """
        with self._at_rest() as recording:
            if recording is None:
                return
            if workers.in_worker_process():
                close_quietly(recording)
            else:
                recording.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _MADE_ANEW}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._session = dataclasses.replace(self._session, is_copy=True)
        self._begin()


_MADE_ANEW = ("_front_end", "_batch", "_camera", "_policy_values")
"""Attributes that each copy of a recorder makes anew."""


_front_ends: weakref.WeakSet[FrontEnd] = weakref.WeakSet()
"""Front ends of the recorders in this process."""


def _is_being_recorded(identity: str) -> bool:
    """Return whether a recorder in this process records to a target, by its identity."""
    return any(each.is_recording and each.session.target.identity == identity for each in list(_front_ends))


def saved_sink(sink: Sinks | Sequence[Sinks]) -> Any:
    """Return a sink as a spec holds it: paths as text, which can be copied, pickled and written as JSON.

    >>> from pathlib import Path
    >>> saved_sink(Path("run.rrd"))
    'run.rrd'
    """
    if isinstance(sink, list | tuple):
        return [saved_sink(each) for each in sink]
    return os.fspath(sink) if isinstance(sink, os.PathLike) and not isinstance(sink, rr.GrpcServerSink) else sink
