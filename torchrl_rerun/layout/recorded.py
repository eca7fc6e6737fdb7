"""The contents of a recording, to be laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.kinds.streams import Stream, entity_path, env_path


@dataclass(frozen=True)
class Recorded:
    """The contents of a recording, to be laid out.

    Attributes:
        streams: streams of each environment.
        envs: environment indices; ``[None]`` if the recording is of one episode.
        fps: frames per second at which the viewer plays the ``frame`` timeline. Default: the viewer's.
        statistics: keys with statistics over all environments.
        below: name of the entity below which all entities lie. Default: they lie at the root, as they are recorded.
        around: whether plots of an episode show the time around the cursor, as those of a run do. Default: the whole
            episode.
        ranges: smallest and largest values of keys, ``[2, numbers of a row]``, between which they are plotted. Plots of all
            other keys are as high as their values.
    """

    streams: Sequence[Stream]
    envs: Sequence[int | None]
    fps: float | None = None
    statistics: Sequence[Key] = ()
    below: str = ""
    around: bool = False
    ranges: Mapping[Key, npt.NDArray[np.floating]] = field(default_factory=dict)

    @classmethod
    def of_schema(cls, schema: Schema, envs: Sequence[int | None]) -> Recorded:
        """Return the contents of a recording by its schema.

        Args:
            schema: the schema.
            envs: environment indices.
        """
        streams = [stream for stream, _ in schema.described]
        return cls(streams, [None] if schema.split == "episode" else envs, schema.source.fps, schema.statistics)

    @property
    def is_episode(self) -> bool:
        """Whether the recording is of one episode of one environment."""
        return self.envs[0] is None

    def of(self, env: int | None) -> list[Stream]:
        """Return the streams of an environment. Streams that all environments share are with the first one."""
        return [stream for stream in self.streams if env == self.envs[0] or not stream.shared]

    def path(self, stream: Stream, env: int | None, agent: int = 0) -> str:
        """Return the entity path of a stream of an environment."""
        return self.under(entity_path(stream, env, agent))

    def origin(self, env: int | None) -> str:
        """Return the entity path below which the streams of an environment lie."""
        return self.under("".join(f"/{part}" for part in env_path(env))) or "/"

    def under(self, path: str) -> str:
        """Return the path of an entity that is at ``path`` in a recording by itself."""
        return f"/{self.below}{path}" if self.below else path
