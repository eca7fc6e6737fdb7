"""Ownership: of a recorder and its clones, decide which one is recorded."""

from __future__ import annotations

import weakref
from typing import Protocol

from torchrl.envs import EnvBase, Transform

from torchrl_rerun.transform import environments


class Appended(Protocol):
    """A transform that knows its environment."""

    @property
    def environment(self) -> EnvBase | None:
        """The environment that the transform is appended to."""


class Owner:
    """The one of a recorder and its clones that is recorded: the first that sees a frame, while its environment lives."""

    def __init__(self) -> None:
        self._recorder: weakref.ref[Appended] | None = None

    def is_or_becomes(self, recorder: Appended) -> bool:
        """Return whether a recorder is recorded. It becomes the recorded one if there is none, or its environment is gone.

        Args:
            recorder: the recorder that sees a frame.
        """
        owner = None if self._recorder is None else self._recorder()
        if owner is recorder:
            return True
        if owner is not None and owner.environment is not None:
            return False
        self._recorder = weakref.ref(recorder)
        return True

    def behind(self) -> list[Transform]:
        """Return the transforms behind the recorder; none if it is appended to no environment."""
        recorder = None if self._recorder is None else self._recorder()
        env = None if recorder is None else recorder.environment
        chain = [] if env is None else environments.flat([env.transform])
        at = next((i for i, each in enumerate(chain) if each is recorder), len(chain))
        return chain[at + 1 :]
