"""Controls: what users call on every recorder, whatever framework it records."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

from torchrl_rerun.recording.episode_log import checked_annotations
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.recording.session import Session
from torchrl_rerun.recording.stats import Stats


class Switchable:
    """A front end, which turns a framework's environments into resets and steps of a recording, and can be turned off.

    Attributes:
        recording: the recording in progress; None before the first frame.
    """

    def __init__(self) -> None:
        self.recording: Recording | None = None
        self._is_enabled = True

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self._is_enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._is_enabled = enabled
        if self.recording is not None:
            self.recording.switch(enabled=enabled)


class Controls:
    """The methods that every recorder has.

    A recorder gives its session, its front end (None: it records nothing), and :meth:`_at_rest`.
    """

    _session: Session
    _front_end: Switchable | None

    @property
    def _recording(self) -> Recording | None:
        """The recording in progress; None before the first frame."""
        return None if self._front_end is None else self._front_end.recording

    @abstractmethod
    def _at_rest(self) -> contextlib.AbstractContextManager[Recording | None]:
        """Return a context in which no frame is recorded, and all before it are. It gives the recording in progress."""

    def dump(self, suffix: str | None = None, step: int | None = None) -> None:
        """Make everything recorded so far durable, and return when it is. Never ends an episode.

        With ``split="dump"`` it ends the recording, and the next frame begins another one: ``dump_000001.rrd`` in the folder.

        Args:
            suffix: with ``split="dump"``, a suffix of the recording's name; otherwise ignored.
            step: with ``split="dump"`` and without a suffix, the suffix becomes ``step_{step}``; otherwise ignored.

        Raises:
            RecordingError: data could not be written. The message gives the cause and the number of lost frames.
            ValueError: ``suffix`` can't be part of a file's name.
        """
        names_a_file = suffix is not None and self._session.options.split == "dump"
        if names_a_file and (not suffix or "/" in suffix or os.sep in suffix or "\0" in suffix):
            raise ValueError(f"suffix={suffix!r} can't be part of a file's name")
        with self._at_rest() as recording:
            if recording is not None:
                recording.dump(suffix or (None if step is None else f"step_{step}"))

    def switch(self, mode: str | bool | None = None) -> None:
        """Turn recording off or on. While it is off, steps and episodes are counted, and triggers aren't called.

        Args:
            mode: ``"on"``, ``"off"``, True or False. Default: on if it is off, off if it is on.

        Raises:
            ValueError: ``mode`` is something else.
        """
        if mode not in (None, "on", "off", True, False):
            raise ValueError(f"mode={mode!r}: pass 'on', 'off', True, False or nothing")
        if self._front_end is not None:
            self._front_end.enabled = (not self.enabled) if mode is None else mode in ("on", True)

    @property
    def enabled(self) -> bool:
        """Whether frames are recorded, see :meth:`switch`."""
        return self._front_end is not None and self._front_end.enabled

    def annotate(self, /, env: int | None = None, **values: Any) -> None:
        """Add properties to the recording of the episode that an environment is in.

        An episode can be annotated until its environment is reset, or :meth:`dump` or :meth:`close` is called after its end.

        Args:
            env: environment index. Default: the only environment that is recorded.
            values: the properties by their names: numbers, booleans, strings, or lists of them.

        Raises:
            ValueError: the environment is in no episode, a name is taken, or episodes are no recordings of their own
                (``split="episode"``).
            IndexError: the environment isn't recorded.
            TypeError: a value can't be a property.
        """
        if self._session.options.split != "episode":
            raise ValueError("annotations are properties of episodes: they need split='episode'")
        said = checked_annotations(values)
        if not self.enabled:
            return
        if self._recording is None or not self._recording.alive:
            raise ValueError("there is nothing to annotate: reset the environment first")
        self._recording.annotate(env, said)

    @property
    def path(self) -> Path | None:
        """The file or folder that is recorded to; None if there are only viewers or a recording stream."""
        return self._session.target.path

    def stats(self) -> dict[str, float]:
        """Return counts of the recording for a training log. The call takes microseconds.

        The counts are of the recorder's whole life. Frames after :meth:`close`, in the next file, are added.

        Returns:
            Numbers by their names.

            - ``frames``: recorded frames, each a reset or a step of any environments; ``steps``: calls of ``env.step``;
              ``episodes``: episodes that have begun, of all recorded environments together.
            - ``frames_written``, ``frames_waiting``, ``frames_lost``: where the frames are; those in a file that is gone
              are lost, too. A frame is written when all of it is: encoded images wait for others for up to
              ``flush_seconds``. ``frames_dropped``: frames that a live viewer or a recording stream was not sent.
            - ``bytes_waiting``: bytes in memory; ``bytes_written``: bytes of the file without its layout.
            - ``seconds_waited``: seconds for which the environment has waited for the disk.
            - ``frames_per_second``: recorded frames a second on average; ``bytes_per_second``: speed of the writer, in bytes
              of the file for each second in which it had something to encode and write.
            - ``has_black_box``: whether what waits outlives the process, so that a kill costs no step.
        """
        recording = self._recording
        return dataclasses.asdict(Stats() if recording is None else recording.stats())
