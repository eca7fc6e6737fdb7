"""Episodes: the properties of an episode that is over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.endings import TERMINATED, TRUNCATED

Value = bool | int | float | str
"""The value of an annotation."""


@dataclass(frozen=True)
class Episode:
    """An episode that is over: the properties of its recording.

    Attributes:
        env: environment index.
        episode: number of the episode in its environment, from 0.
        episode_return: sum of the rewards of all steps, recorded or not. Of several agents the mean, of several rewards
            the first one. NaN: not known.
        length: number of steps, recorded or not.
        terminated: whether the environment ended the episode.
        truncated: whether a limit ended the episode, of time for example.
        interrupted: whether the episode was reset, or the recording closed, before it ended.
        first_step: number of calls of ``env.step`` before the episode began.
        start_time: time at which the episode began, in UTC.
        seed: last seed that the environment was given before the episode began. None: not known.
        annotations: values that the user added, see ``RerunRecorder.annotate``.

    >>> episode = Episode(0, 7, 12.5, 100, terminated=True, annotations={"success": True})
    >>> episode["episode_return"], episode["success"], episode.get("collisions", 0)
    (12.5, True, 0)
    """

    env: int
    episode: int
    episode_return: float
    length: int
    terminated: bool = False
    truncated: bool = False
    interrupted: bool = False
    first_step: int = 0
    start_time: datetime | None = None
    seed: int | None = None
    annotations: Mapping[str, Value | list[Value]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.annotations[name] if name in self.annotations else self.properties[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return a property or an annotation; ``default`` if there is none of this name."""
        return self.annotations.get(name, self.properties.get(name, default))

    @property
    def properties(self) -> dict[str, Any]:
        """All properties without the annotations."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "annotations"}

    def to_json(self) -> dict[str, Any]:
        """Return the episode as JSON has it."""
        began = None if self.start_time is None else self.start_time.isoformat()
        return self.properties | {"start_time": began, "annotations": dict(self.annotations)}

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Episode:
        """Return the episode that :meth:`to_json` described."""
        began = said["start_time"]
        return cls(**{**said, "start_time": None if began is None else datetime.fromisoformat(began)})

    @property
    def id(self) -> tuple[int, int]:
        """Environment and episode."""
        return self.env, self.episode

    @property
    def key(self) -> EpisodeKey:
        """Environment, episode and start time, which no two episodes of a run share. After a restart numbers may come again."""
        return self.env, self.episode, self.start_time


EpisodeKey = tuple[int, int, datetime | None]


def returns_of(sums: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return the returns of episodes, ``[n]``: the mean over agents and numbers of the reward.

    Args:
        sums: the sum of each episode's rewards, ``[n, ...]``; NaN if it isn't known.

    >>> returns_of(np.array([[[1.0], [2.0]], [[4.0], [4.0]]])).tolist()  # of two episodes of two agents
    [1.5, 4.0]
    """
    returns: npt.NDArray[np.float64] = sums.reshape(len(sums), math.prod(sums.shape[1:])).mean(axis=1, dtype=np.float64)
    return returns


EPISODE_PROPERTIES = tuple(each.name for each in fields(Episode) if each.name != "annotations")
"""Names of properties, which annotations can't have."""


END_PROPERTIES = (TERMINATED, TRUNCATED, "interrupted")
"""Names of the properties that tell how an episode ended."""


Predicate = Callable[[Episode], bool]
