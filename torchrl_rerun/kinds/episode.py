"""Episodes: what is known of one when it is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

Value = bool | int | float | str
"""What an annotation can be."""


@dataclass(frozen=True)
class Episode:
    """What is known of an episode when it is over: the properties of its recording.

    Attributes:
        env: environment index.
        episode: number of the episode in its environment, from 0.
        episode_return: sum of its rewards, of all its steps whichever are recorded: the mean over agents, if there are
            several; of the first reward, if there are several of these. NaN: it isn't known.
        length: its steps, recorded or not.
        terminated: it ended by what happened in it.
        truncated: it was cut short, by a limit of time say.
        interrupted: it was reset, or the recording closed, before it ended.
        first_step: calls of ``env.step`` before it began.
        start_time: when it began, in UTC.
        seed: the seed that the environment was given last before it began, if that is known.
        annotations: what the user said of it, see ``RerunRecorder.annotate``.

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
        """A property or an annotation; ``default`` if it has none of this name."""
        return self.annotations.get(name, self.properties.get(name, default))

    @property
    def properties(self) -> dict[str, Any]:
        """All but the annotations."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "annotations"}

    @property
    def id(self) -> tuple[int, int]:
        """Environment and episode."""
        return self.env, self.episode

    @property
    def key(self) -> EpisodeKey:
        """What tells it from all others of a run. After a restart numbers may come again."""
        return self.env, self.episode, self.start_time


EpisodeKey = tuple[int, int, datetime | None]


PROPERTIES = tuple(each.name for each in fields(Episode) if each.name != "annotations")
"""The names that annotations can't have."""


Predicate = Callable[[Episode], bool]
