"""Stored recordings: the parts that make up one, in files or in a catalog, and the schema in them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from torchrl_rerun.kinds.schema import Schema
from torchrl_rerun.paths import format_path
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.listing import files_of_episode, paths_like
from torchrl_rerun.rrd.parts import RecordingPart
from torchrl_rerun.rrd.reader import parts_in

AnyPart = TypeVar("AnyPart", bound=RecordingPart)


class StoredRecording(Protocol):
    """A recording, in one or several parts.

    Attributes:
        parts: the parts, in the order of their rows.
        schema: the recording's own description, of all parts together.
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

    @functools.cached_property
    def schema(self) -> Schema:
        """The description in the last part, with what parts before it say beyond it."""
        return Schema.of_parts(map(schema_of, self.parts))


TRIES = 10
"""How often the files of an episode are looked for anew because its recorder has made others of them."""


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
            FileNotFoundError: the episode was removed.
            ValueError: another file was put in the place of one of them.
        """
        parts = self._found()
        if not parts:
            raise ValueError(f"{format_path(self._files[-1])} was replaced since it was loaded: load it again")
        return parts

    def _found(self) -> list[FilePart]:
        """Return the parts in the files, or in those that its recorder has made of them since."""
        folder = self._files[-1].parent
        gone: FileNotFoundError | None = None
        for _ in range(TRIES):
            found: list[FilePart] = []
            box = next((file for file in self._files if file.is_dir()), None)
            try:
                for file in self._files:
                    found += [part for part in parts_in(file) if part.recording_id == self._recording_id]
                # What isn't in the box any more is in files that were written since.
                is_current = box is None or (found[-1:] != [] and found[-1].file == box and not self._has_later(folder))
            except FileNotFoundError as error:
                is_current, gone = False, error
            if is_current:
                return found
            self._files = files_of_episode(folder, self._recording_id) or self._files
        if gone is not None:
            raise gone
        return found

    def _has_later(self, folder: Path) -> bool:
        """Return whether there are files of the recording that were written since."""
        return bool({*paths_like(folder, self._recording_id)} - {*self._files})

    @functools.cached_property
    def schema(self) -> Schema:
        """The description in the last part, with what parts before it say beyond it."""
        return Schema.of_parts(map(schema_of, self.parts))


def schema_of(part: RecordingPart) -> Schema:
    """Return the schema of a part that is known to be of ``torchrl_rerun``."""
    schema = part.schema
    assert schema is not None, "it was looked at"
    return schema
