"""The recording's own description, kept in it as a property, by which it can be read without the environments."""

from __future__ import annotations

import contextlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import rerun as rr
from rerun.chunk import Chunk

from torchrl_rerun.kinds.describe import kind_called
from torchrl_rerun.kinds.endings import deciding
from torchrl_rerun.kinds.episode import Episode
from torchrl_rerun.kinds.streams import Key, Stream, entity_path, name_of

PROPERTIES = "__properties"
"""Below this entity recordings keep what is known of them."""

PROPERTY = "torchrl_rerun"
EPISODE = "episode"
RECORDING_INFO = "RecordingInfo"
SCHEMA_VERSION = 2
"""Of what is recorded now. Recordings of earlier versions are read for ever: ``tests/recordings_v1`` holds some.

Version 2: values of a key may vary in shape (``varies``), complex numbers, and non-tensor data of any kind (``objects.py``).
"""

Split = Literal["run", "dump", "episode"]
"""What a recording is of: a run, the time between two dumps, or an episode of one environment."""
SPLITS = get_args(Split)


class Moment(IntEnum):
    """When a key is seen, which decides at which frames it has rows."""

    OBSERVED = 0
    """At resets and steps."""
    STEPPED = 1
    """At steps alone."""
    ACTED = 2
    """Before a step: its rows are at the frames that the policy saw."""


@dataclass(frozen=True)
class Source:
    """What is recorded: the environments.

    Attributes:
        batch_size: the environments' batch size; its product is their number.
        name: name of the environment, if it says.
        fps: frames per second of simulated time, if it says.
        first_env: environment index of the first one, not 0 in the workers of a batched environment.
    """

    batch_size: tuple[int, ...]
    name: str | None = None
    fps: float | None = None
    first_env: int = 0

    @property
    def envs(self) -> int:
        """Number of environments."""
        return int(np.prod(self.batch_size, dtype=np.int64))


class NewerSchemaError(ValueError):
    """A recording describes itself in a way that is not known yet."""


Described = tuple[Stream, Moment]
"""What is recorded, and when."""


@dataclass(frozen=True)
class Schema:
    """What a recording says of itself; see :func:`property_chunk`.

    Attributes:
        source: the environments; ``first_env`` isn't known.
        envs: indices of those that are recorded.
        described: what is recorded of each, and when.
        statistics: the keys of which there are statistics over all environments.
        split: what the recording is of.
        versions: of Python and the libraries, by their names.
        ends: the flags that end an environment's episode, recorded or not.
    """

    source: Source
    envs: tuple[int, ...]
    described: tuple[Described, ...]
    statistics: tuple[Key, ...]
    split: Split
    versions: dict[str, str]
    ends: tuple[Key, ...] = ()

    def paths_of(self, stream: Stream) -> Iterator[str]:
        """The entity paths at which a key is recorded."""
        for env in self.envs[:1] if stream.shared else self.envs:
            for lane in range(stream.lanes):
                yield self.path_of(stream, env, lane)

    def path_of(self, stream: Stream, env: int, lane: int = 0) -> str:
        """Return the entity path of a key: below ``/env_{env}``, unless the recording is of one episode.

        Args:
            stream: the key.
            env: index of the environment.
            lane: position of the agent.
        """
        return entity_path(stream, None if self.split == "episode" else env, lane)

    def lacking(self, rows: Mapping[str, int]) -> dict[Key, tuple[int, int]]:
        """Keys with fewer rows than others that are seen at the same moments: how many they have, of how many.

        What is large is written later than what is small, so that a process that is killed leaves fewer of it.

        Args:
            rows: how many there are at each entity path.
        """
        most: dict[tuple[Moment, int], int] = {}
        found = {stream.key: [rows.get(path, 0) for path in self.paths_of(stream)] for stream, _ in self.described}
        for stream, moment in self.described:
            for at, count in enumerate(found[stream.key]):
                which = moment, at // stream.lanes
                most[which] = max(most.get(which, 0), count)
        wanted = {
            stream.key: sum(most[moment, at // stream.lanes] for at in range(len(found[stream.key])))
            for stream, moment in self.described
        }
        return {key: (sum(counts), wanted[key]) for key, counts in found.items() if sum(counts) < wanted[key]}

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """The schema in a recording's property."""
        return cls.from_fields(json.loads(text))

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Schema:
        """The schema that consists of these fields."""
        return cls(
            Source(tuple(fields["batch_size"]), fields["env_name"], fields["fps"]),
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
    told = {"key": list(stream.key), "dtype": stream.dtype, "shape": list(stream.shape), "kind": stream.kind.name}
    told |= {name: value for name in _IF_NOT_EMPTY if (value := getattr(stream, name))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()} | (
        stream.kind.to_schema()
    )


def stream_from_schema(fields: Mapping[str, Any]) -> Stream:
    """Return the stream that :func:`stream_to_schema` described.

    Args:
        fields: the fields of a key in the schema.
    """
    told: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    kind = kind_called(fields["kind"]).from_schema(fields)
    return Stream(
        told["key"], kind, told["dtype"], told["shape"], **{name: told[name] for name in _IF_NOT_EMPTY if name in told}
    )


_IF_NOT_EMPTY = ("agents", "varies", "shared", "sums", "place")


_VERSION = re.compile(r'\s*\{\s*"schema_version"\s*:\s*(\d+)')


def check_version(text: str) -> None:
    """Refuse a schema of a version that is not known yet, without parsing it.

    Raises:
        NewerSchemaError: it is of one.
    """
    found = _VERSION.match(text)
    if found and int(found[1]) > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"made by a newer torchrl_rerun, schema version {found[1]}, of which this one knows {SCHEMA_VERSION}: update "
            "torchrl_rerun"
        )


def told_lacking(lacking: Mapping[Key, tuple[int, int]]) -> str:
    """What is lacking, in words.

    >>> told_lacking({("pixels",): (167, 1318), ("depth",): (90, 1318)})
    "167 of 1,318 rows of 'pixels', 90 of 1,318 rows of 'depth'"
    """
    return ", ".join(f"{count:,} of {wanted:,} rows of {name_of(key)}" for key, (count, wanted) in lacking.items())


def property_chunk(
    source: Source,
    envs: Sequence[int],
    described: Sequence[Described],
    statistics: Sequence[Key] = (),
    ends: Sequence[Key] = (),
    *,
    split: Split = "run",
) -> Chunk:
    """The property that describes a recording; the last one in a recording counts.

    Args:
        source: the environments.
        envs: indices of those that are recorded.
        described: what is recorded of each, and when.
        statistics: the keys of which there are statistics over all environments.
        ends: the flags that end an environment's episode, recorded or not.
        split: what a recording is of. Of one episode it has no ``/env_{i}``.
    """
    schema = {
        "schema_version": SCHEMA_VERSION,
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
    summary = rr.AnyValues(env_name=source.name or "", envs=len(envs), schema=json.dumps(schema))
    return Chunk.from_property(PROPERTY, summary)


def episode_chunk(episode: Episode) -> Chunk:
    """The property that says what an episode came to: in catalogs ``property:episode:episode_return`` and so on."""
    said: dict[str, Any] = {**episode.properties, **episode.annotations}
    # Arrow arrays are taken as they are. Of plain values Rerun drops empty strings, and all that isn't of the type which
    # the name had first in this process (rerun-sdk 0.41).
    values = rr.AnyValues()
    for name, value in said.items():
        if value is not None and name != "start_time":  # one by one: a name may be that of an argument
            values = values.with_component_from_data(name, pa.array(value if isinstance(value, list) else [value]))
    return Chunk.from_property(EPISODE, values)


def info_chunk(name: str, start_time: int) -> Chunk:
    """The property by which the viewer calls a recording, and sorts it.

    Args:
        name: its name.
        start_time: nanoseconds since the epoch.
    """
    return Chunk.from_property(RECORDING_INFO, rr.archetypes.RecordingInfo(name=name, start_time=start_time))


def shown_envs(envs: Sequence[int], each: int, workers: Sequence[int]) -> list[int]:
    """The environments that the viewer shows together with ``envs``: those that all workers record are one recording.

    Args:
        envs: indices of those that one worker records, or that are recorded without workers.
        each: how many environments a worker has.
        workers: numbers of the workers; empty: there are none.

    >>> shown_envs([4, 6], 4, [0, 1]), shown_envs([4, 6], 8, [])
    ([0, 2, 4, 6], [4, 6])
    """
    return [number * each + env % each for number in workers for env in envs] or list(envs)


def _versions() -> dict[str, str]:
    packages = ("torchrl-rerun", "torchrl", "tensordict", "torch", "rerun-sdk", "gymnasium", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
