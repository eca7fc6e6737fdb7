"""Stored recordings: the parts that make up one, in files or in a catalog, and the schema in them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.paths import format_path
from torchrl_rerun.rrd.parts import RecordingPart
from torchrl_rerun.rrd.reader import parts_in

AnyPart = TypeVar("AnyPart", bound=RecordingPart)


class StoredRecording(Protocol):
    """A recording, in one or several parts.

    Attributes:
        parts: the parts, in the order of their rows.
        schema: the recording's own description.
    """

    @property
    def parts(self) -> Sequence[RecordingPart]: ...  # noqa: D102

    @property
    def schema(self) -> Schema: ...  # noqa: D102


@dataclass(frozen=True)
class OpenedRecording(Generic[AnyPart]):
    """A recording whose files were looked at.

    Attributes:
        parts: the parts, in the order of their rows.
    """

    parts: Sequence[AnyPart]

    @property
    def schema(self) -> Schema:
        """The description in the last part."""
        return schema_of(self.parts[-1])


class EpisodeRecording:
    """The recording of one episode, whose files are looked at when they are needed.

    Args:
        files: the files, in the order of their rows.
        recording_id: id of the recording. There may be other recordings in the files.
    """

    def __init__(self, files: Sequence[Path], recording_id: str) -> None:
        self._files = files
        self._recording_id = recording_id

    @functools.cached_property
    def parts(self) -> Sequence[RecordingPart]:
        """The parts, in the order of their rows.

        Raises:
            ValueError: another file was put in the place of one of them.
        """
        found = [part for file in self._files for part in parts_in(file)]
        parts = [part for part in found if part.recording_id == self._recording_id]
        if not parts:
            raise ValueError(f"{format_path(self._files[-1])} was replaced since it was loaded: load it again")
        return parts

    @property
    def schema(self) -> Schema:
        """The description in the last part."""
        return schema_of(self.parts[-1])


def schema_of(part: RecordingPart) -> Schema:
    """Return the schema of a part that is known to be of ``torchrl_rerun``."""
    schema = part.schema
    assert schema is not None, "it was looked at"
    return schema
