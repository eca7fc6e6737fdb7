"""Segments of a dataset of Rerun's catalog, read as parts of recordings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from torchrl_rerun.rrd.frame_codes import Span, codes_of
from torchrl_rerun.rrd.parts import PROPERTY_PATHS, Properties, RecordingPart, add_property

if TYPE_CHECKING:
    from rerun.catalog import DatasetEntry


@dataclass(frozen=True, kw_only=True)
class SegmentPart(RecordingPart):
    """A segment of a dataset of Rerun's catalog.

    Attributes:
        store: the segment, as Rerun gives it.
    """

    store: Any

    @classmethod
    def of(cls, dataset: DatasetEntry, segment: str) -> SegmentPart:
        """Return a segment of a dataset.

        Args:
            dataset: the dataset.
            segment: id of the segment.
        """
        store = dataset.segment_store(segment)
        properties: Properties = {}
        for chunk in store.stream().filter(content=list(PROPERTY_PATHS), is_static=True).to_chunks():
            add_property(properties, chunk.entity_path, chunk.to_record_batch())
        return cls(
            file=Path(dataset.name, segment),
            application_id=dataset.name,
            recording_id=segment,
            properties=properties,
            is_finished=True,
            has_layout=True,
            store=store,
        )

    def chunks(self, path: str, span: Span) -> Iterator[pa.RecordBatch]:
        """Yield all chunks of an entity, in the order of their rows: a catalog has no index of them."""
        del span
        found = (chunk.to_record_batch() for chunk in self.store.stream().filter(content=path, is_static=False))
        yield from sorted((batch for batch in found if len(batch)), key=lambda batch: int(codes_of(batch)[0]))

    def count(self, path: str) -> int | None:
        """Return None: only reading the rows of an entity tells how many there are."""
        del path
        return None
