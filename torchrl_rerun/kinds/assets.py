"""Assets: what drawing needs beside the rows, such as the model of a robot. A kind names them by their digests.

A recording has its assets below :data:`ASSETS`; a folder of episodes has them once, in a folder of their own. Whoever reads rows
that are to be drawn again remembers them first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import rerun as rr
from rerun.chunk import Chunk

ASSETS = "/__assets"
"""Entity below which a recording has its assets."""

COMPONENT = "torchrl_rerun_asset"
"""The component that holds the bytes of an asset."""

_known: dict[str, bytes] = {}


def remember(stored: bytes) -> str:
    """Keep an asset in this process, and return its digest.

    >>> asset(remember(b"a model"))
    b'a model'
    """
    digest = hashlib.blake2b(stored, digest_size=8).hexdigest()
    _known[digest] = stored
    return digest


def is_known(digest: str) -> bool:
    """Return whether an asset is known in this process."""
    return digest in _known


def asset(digest: str) -> bytes:
    """Return an asset.

    Raises:
        KeyError: it isn't known in this process.
    """
    if not is_known(digest):
        raise KeyError(f"what draws the scene, asset {digest}, is neither in the recording nor in .assets beside it")
    return _known[digest]


def asset_chunks(digests: Iterable[str]) -> list[Chunk]:
    """Return the chunks of those assets that are known in this process. Without the others values are recorded and not drawn."""
    return [Chunk.from_columns(f"{ASSETS}/{each}", [], _columns(asset(each))) for each in filter(is_known, digests)]


def _columns(stored: bytes) -> list[Any]:
    values = rr.AnyValues().with_component_from_data(COMPONENT, pa.array([stored], pa.binary()))
    return [batch.partition([1]) for batch in values.as_component_batches()]


def remember_chunk(batch: pa.RecordBatch) -> None:
    """Keep the asset of a chunk of a recording in this process."""
    [[stored]] = batch.column(COMPONENT).to_pylist()
    remember(stored)
