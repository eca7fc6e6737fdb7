"""A part of a recording, in a file or in a segment of a catalog: what it says of itself, and its chunks by entity."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from torchrl_rerun.kinds.episode import EPISODE_PROPERTIES, Episode
from torchrl_rerun.kinds.schema import (
    EPISODE_PROPERTY,
    PROPERTIES_ENTITY,
    PROPERTY,
    RECORDING_INFO,
    NewerSchemaError,
    Schema,
    check_version,
)
from torchrl_rerun.paths import format_path
from torchrl_rerun.rrd.frame_codes import Span

PROPERTY_PATHS = {f"/{PROPERTIES_ENTITY}/{name}": name for name in (EPISODE_PROPERTY, PROPERTY, RECORDING_INFO)}
"""The entity paths of the properties that are known here, with the names of these."""

Properties = dict[str, dict[str, Any]]
"""The fields of the properties of a recording, by the names of these."""


@dataclass(frozen=True, kw_only=True)
class RecordingPart(ABC):
    """The part of a recording in one file, or in one segment of a catalog.

    Attributes:
        file: the file; for a segment of a catalog the names of its dataset and of itself.
        application_id: name of the run.
        recording_id: id of the recording, of which several files may be parts.
        properties: the fields of its properties.
        is_finished: whether it is complete. A killed process leaves a file that isn't.
        has_layout: whether there is a layout in the file.

    Raises:
        NewerSchemaError: it was made by a newer version of torchrl_rerun; names the file.
    """

    file: Path
    application_id: str
    recording_id: str
    properties: Properties
    is_finished: bool
    has_layout: bool

    def __post_init__(self) -> None:
        try:
            check_version(self.properties.get(PROPERTY, {}).get("schema", ""))
        except NewerSchemaError as error:
            raise NewerSchemaError(f"{self.file} was {error}") from error

    @functools.cached_property
    def schema(self) -> Schema | None:
        """The recording's own description; None: it isn't one of ``torchrl_rerun``.

        Raises:
            ValueError: the description is damaged; names the file.
        """
        said = self.properties.get(PROPERTY, {}).get("schema")
        try:
            return None if said is None else Schema.from_json(said)
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{format_path(self.file)} is damaged: its schema can't be read ({error!r})") from error

    @property
    def start_time(self) -> int | None:
        """When the recording began, in nanoseconds since the epoch; None: it doesn't say."""
        began: int | None = self.properties.get(RECORDING_INFO, {}).get("RecordingInfo:start_time")
        return began

    @abstractmethod
    def chunks(self, path: str, span: Span) -> Iterator[pa.RecordBatch]:
        """Yield the chunks of an entity that may have rows in a span, in the order of their rows."""

    @abstractmethod
    def count(self, path: str) -> int | None:
        """Return how many rows an entity has, with those that a stored row stands for; None: only reading them tells."""


def add_property(properties: Properties, path: str, batch: pa.RecordBatch) -> None:
    """Add the fields of a property: single values as they are, several as lists. The last chunk of a field counts.

    Other programs may have put the fields of a property into chunks of their own.

    Args:
        properties: the properties to add to.
        path: entity path of the property.
        batch: its chunk.
    """
    columns = zip(batch.schema.names, batch.columns, strict=True)
    row = {name: column[-1].as_py() for name, column in columns if name != "rerun.controls.RowId"}
    fields = {name: values[0] if len(values) == 1 else values for name, values in row.items() if values is not None}
    properties.setdefault(PROPERTY_PATHS[path], {}).update(fields)


EPOCH = datetime.fromtimestamp(0, UTC)

_NEEDED = frozenset({"env", "episode", "episode_return", "length"})


def episode_in(properties: Properties) -> Episode | None:
    """Return the episode that a recording's properties describe; None: it isn't the recording of one episode."""
    fields = properties.get(EPISODE_PROPERTY, {})
    if PROPERTY not in properties or not fields.keys() >= _NEEDED:
        return None
    nanoseconds = properties.get(RECORDING_INFO, {}).get("RecordingInfo:start_time")
    return Episode(
        **{name: value for name, value in fields.items() if name in EPISODE_PROPERTIES},
        start_time=None if nanoseconds is None else EPOCH + timedelta(microseconds=nanoseconds // 1000),
        annotations={name: value for name, value in fields.items() if name not in EPISODE_PROPERTIES},
    )
