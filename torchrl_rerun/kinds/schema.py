"""The schema: a recording's description of itself, a property by which it can be read without the environments."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import rerun as rr
from rerun.chunk import Chunk

from torchrl_rerun.kinds.describe import kind_from_schema
from torchrl_rerun.kinds.endings import deciding
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.kinds.keys import Key, name_of
from torchrl_rerun.kinds.streams import STORAGE, Stream, entity_path

PROPERTIES_ENTITY = "__properties"
"""Entity below which a recording has its properties."""

PROPERTY = "torchrl_rerun"
EPISODE_PROPERTY = "episode"
RECORDING_INFO = "RecordingInfo"
SCHEMA_VERSION = 3
"""Version of the schema that is written. Recordings of earlier versions are read for ever: ``tests/recordings_v1`` and
``tests/recordings_v2`` have some.

Version 2: values of a key may vary in shape (``varies``), complex numbers, and non-tensor data of any kind (``objects.py``).
Version 3: flags and categories are stored where they change (``lasting.py``), and ``log_time`` is rounded (``arrow.py``).
"""

Split = Literal["run", "dump", "episode"]
"""The unit of a recording: a run, the time between two dumps, or an episode of one environment."""
SPLITS = get_args(Split)


class Moment(IntEnum):
    """The moment at which a key is seen, which decides at which frames it has rows."""

    OBSERVED = 0
    """At resets and steps."""
    STEPPED = 1
    """At steps alone."""
    ACTED = 2
    """Before a step. Rows are at the frames that the policy saw."""


@dataclass(frozen=True)
class Source:
    """The environments that are recorded.

    Attributes:
        batch_size: the environments' batch size; its product is their number.
        name: name of the environment. None: not known.
        fps: frames per second of simulated time. None: not known.
        first_env: environment index of the first environment. Not 0 in the workers of a batched environment.
        origin: what the front end says of itself and its environments, as JSON has it: ``"front_end"`` (its name),
            ``"spaces"``, and so on. TorchRL's says neither, as its keys tell all. ``"env_spec"``: the spec of a Gymnasium
            environment, if it is known.
    """

    batch_size: tuple[int, ...]
    name: str | None = None
    fps: float | None = None
    first_env: int = 0
    origin: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def envs(self) -> int:
        """Number of environments."""
        return int(np.prod(self.batch_size, dtype=np.int64))


class NewerSchemaError(ValueError):
    """A recording has a schema of a later version than this library knows."""


TimedStream = tuple[Stream, Moment]
"""A stream, and the moment at which it is seen."""


@dataclass(frozen=True)
class Schema:
    """The schema of a recording; :func:`property_chunk` writes it.

    Attributes:
        source: the environments, without ``first_env``.
        envs: indices of the recorded environments.
        described: the streams of each environment, and the moments at which they are seen.
        statistics: keys with statistics over all environments.
        split: unit of the recording.
        versions: versions of Python and the libraries, by their names.
        ends: flags that end an environment's episode, recorded or not.
    """

    source: Source
    envs: tuple[int, ...]
    described: tuple[TimedStream, ...]
    statistics: tuple[Key, ...]
    split: Split
    versions: dict[str, str]
    ends: tuple[Key, ...] = ()

    def paths_of(self, stream: Stream) -> Iterator[str]:
        """Yield the entity paths at which a key is recorded."""
        for env in self.envs[:1] if stream.shared else self.envs:
            for agent in range(stream.agent_count):
                yield self.path_of(stream, env, agent)

    def path_of(self, stream: Stream, env: int, agent: int = 0) -> str:
        """Return the entity path of a key: below ``/env_{env}``, unless the recording is of one episode.

        Args:
            stream: the key.
            env: index of the environment.
            agent: position of the agent.
        """
        return entity_path(stream, None if self.split == "episode" else env, agent)

    def lacking(self, rows: Mapping[str, int], episodes: Sequence[int] = ()) -> dict[Key, tuple[int, int]]:
        """Return how many rows keys have, and how many they lack, if others that are seen at the same moments have more.

        Pictures are written at other times than small values, so that a killed process may leave more of the ones than of
        the others.

        Args:
            rows: number of rows at each entity path.
            episodes: number of episodes of each environment, whose first frame has no reward, and whose last one no action.
                Default: empty, if rewards and actions need not be compared with observations.
        """
        most: dict[tuple[Moment, int], int] = {}
        least: dict[tuple[Moment, int], int] = {}
        found = {stream.key: [rows.get(path, 0) for path in self.paths_of(stream)] for stream, _ in self.described}
        for stream, moment in self.described:
            for at, count in enumerate(found[stream.key]):
                which = moment, at // stream.agent_count
                most[which] = max(most.get(which, 0), count)
                least[which] = min(least.get(which, count), count)
        for at, number in enumerate(episodes):
            frames = most.get((Moment.OBSERVED, at), 0)
            if least.get((Moment.OBSERVED, at), frames) < frames:
                for moment in (Moment.ACTED, Moment.STEPPED):
                    most[moment, at] = max(most.get((moment, at), 0), frames - number)
        wanted = {
            stream.key: sum(most[moment, at // stream.agent_count] for at in range(len(found[stream.key])))
            for stream, moment in self.described
        }
        return {key: (sum(counts), wanted[key]) for key, counts in found.items() if sum(counts) < wanted[key]}

    @classmethod
    def of_parts(cls, schemas: Iterable[Schema]) -> Schema:
        """Return the schema of a recording in several parts: the last one, with what earlier ones say beyond it.

        A part that ends before its first step has no rewards and no actions, which the parts before it have.

        Args:
            schemas: the schemas of the parts, in the order of their rows.
        """
        *earlier, last = schemas
        described = {stream.key: (stream, moment) for stream, moment in last.described}
        for schema in reversed(earlier):
            for stream, moment in schema.described:
                described.setdefault(stream.key, (stream, moment))
        latest_first = [last, *reversed(earlier)]
        return dataclasses.replace(
            last,
            described=tuple(described.values()),
            statistics=tuple(dict.fromkeys(key for schema in latest_first for key in schema.statistics)),
            ends=deciding(key for schema in latest_first for key in schema.ends),
        )

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Return the schema in the text of a recording's property."""
        return cls.from_fields(json.loads(text))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Schema:
        """Return the schema with these fields."""
        return cls(
            Source(tuple(fields["batch_size"]), fields["env_name"], fields["fps"], origin=fields.get("origin") or {}),
            tuple(fields["envs"]),
            tuple((stream_from_schema(entry), Moment[entry["moment"].upper()]) for entry in fields["keys"]),
            tuple(tuple(key) for key in fields.get("statistics", ())),
            fields["split"],
            fields["versions"],
            # Recordings of schema version 1 don't say.
            tuple(map(tuple, fields.get("ends", ()))) or deciding(tuple(entry["key"]) for entry in fields["keys"]),
        )


def stream_to_schema(stream: Stream) -> dict[str, Any]:
    """Return the fields of a key in the schema: all that a reader must know to give the key back as it was.

    >>> from torchrl_rerun.kinds.state import State
    >>> stream_to_schema(Stream(("action",), State(["left", "right"]), "int64", (1,)))
    {'key': ['action'], 'dtype': 'int64', 'shape': [1], 'kind': 'state', 'names': ['left', 'right']}
    """
    told: dict[str, Any] = {
        "key": list(stream.key),
        "dtype": stream.dtype,
        "shape": list(stream.shape),
        "kind": stream.kind.name,
    }
    told |= {name: value for attribute, name in _IF_NOT_EMPTY.items() if (value := getattr(stream, attribute))}
    if stream.scene is not None:
        told["scene"] = {"kind": stream.scene.name, **stream.scene.to_schema()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()} | (
        stream.kind.to_schema()
    )


def stream_from_schema(fields: Mapping[str, Any]) -> Stream:
    """Return the stream that :func:`stream_to_schema` described.

    Args:
        fields: the fields of a key in the schema.
    """
    told: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    kind = kind_from_schema(fields)
    if told["dtype"] not in STORAGE:
        raise ValueError(f"there is no dtype {told['dtype']!r}")
    more = {attribute: told[name] for attribute, name in _IF_NOT_EMPTY.items() if name in told}
    scene = kind_from_schema(fields["scene"]) if "scene" in fields else None
    return Stream(told["key"], kind, told["dtype"], told["shape"], **more, scene=scene)


_IF_NOT_EMPTY = {"agents": "agents", "varies": "varies", "shared": "shared", "reward_key": "sums", "place": "place"}
"""Attributes of a stream that the schema has unless they are empty, and the names that they have there."""


_VERSION = re.compile(r'\s*\{\s*"schema_version"\s*:\s*(\d+)')


def check_version(text: str) -> None:
    """Refuse a schema of a version that is not known yet, without parsing it.

    Raises:
        NewerSchemaError: the version is later than :data:`SCHEMA_VERSION`.
    """
    found = _VERSION.match(text)
    if found and int(found[1]) > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"made by a newer torchrl_rerun, schema version {found[1]}, of which this one knows {SCHEMA_VERSION}: update "
            "torchrl_rerun"
        )


def told_lacking(lacking: Mapping[Key, tuple[int, int]]) -> str:
    """Return lacking rows in words.

    >>> told_lacking({("pixels",): (167, 1318), ("depth",): (90, 1318)})
    "167 of 1,318 rows of 'pixels', 90 of 1,318 rows of 'depth'"
    """
    return ", ".join(f"{count:,} of {wanted:,} rows of {name_of(key)}" for key, (count, wanted) in lacking.items())


def property_chunk(
    source: Source,
    envs: Sequence[int],
    described: Sequence[TimedStream],
    statistics: Sequence[Key] = (),
    ends: Sequence[Key] = (),
    *,
    split: Split = "run",
) -> Chunk:
    """Return the property that describes a recording. The last one in a recording counts.

    Args:
        source: the environments.
        envs: indices of the recorded environments.
        described: the streams of each environment, and the moments at which they are seen.
        statistics: keys with statistics over all environments.
        ends: flags that end an environment's episode, recorded or not.
        split: unit of the recording. Recordings of one episode have no ``/env_{i}``.
    """
    schema = schema_fields(source, envs, described, statistics, ends, split=split)
    summary = rr.AnyValues(env_name=source.name or "", envs=len(envs), schema=json.dumps(schema))
    return Chunk.from_property(PROPERTY, summary)


def schema_fields(
    source: Source,
    envs: Sequence[int],
    described: Sequence[TimedStream],
    statistics: Sequence[Key] = (),
    ends: Sequence[Key] = (),
    *,
    split: Split = "run",
) -> dict[str, Any]:
    """Return the fields of a schema, as JSON has them. The arguments are those of :func:`property_chunk`."""
    return {
        "schema_version": SCHEMA_VERSION,
        **({"origin": dict(source.origin)} if source.origin else {}),
        "env_name": source.name,
        "batch_size": list(source.batch_size),
        "envs": list(envs),
        "fps": source.fps,
        "split": split,
        "keys": [stream_to_schema(stream) | {"moment": moment.name.lower()} for stream, moment in described],
        "statistics": [list(key) for key in statistics],
        "ends": [list(key) for key in ends],
        "versions": _versions(),
    }


def episode_chunk(episode: Episode) -> Chunk:
    """Return the properties of an episode: ``property:episode:episode_return`` and so on in catalogs."""
    said: dict[str, Any] = {**episode.properties, **episode.annotations}
    # rerun-sdk 0.41 takes Arrow arrays as they are. Of plain values it drops empty strings, and values of another type
    # than the name had first in this process.
    values = rr.AnyValues()
    for name, value in said.items():
        if value is not None and name != "start_time":  # one by one: a name may be that of an argument
            values = values.with_component_from_data(name, pa.array(value if isinstance(value, list) else [value]))
    return Chunk.from_property(EPISODE_PROPERTY, values)


def info_chunk(name: str, start_time: int) -> Chunk:
    """Return the property with the name and the start time by which the viewer lists a recording.

    Args:
        name: name of the recording.
        start_time: nanoseconds since the epoch.
    """
    return Chunk.from_property(RECORDING_INFO, rr.archetypes.RecordingInfo(name=name, start_time=start_time))


def shown_envs(envs: Sequence[int], each: int, workers: Sequence[int]) -> list[int]:
    """Return the environments that the viewer shows together: the recordings of all workers are shown as one.

    Args:
        envs: indices of the environments that one worker records, or that are recorded without workers.
        each: number of environments of a worker.
        workers: numbers of the workers. Empty: there are none.

    >>> shown_envs([4, 6], 4, [0, 1]), shown_envs([4, 6], 8, [])
    ([0, 2, 4, 6], [4, 6])
    """
    return [number * each + env % each for number in workers for env in envs] or list(envs)


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions of the packages. To look them up takes milliseconds."""
    packages = (
        "torchrl-rerun",
        "torchrl",
        "tensordict",
        "torch",
        "rerun-sdk",
        "gymnasium",
        "numpy",
        "stable-baselines3",
    )
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
