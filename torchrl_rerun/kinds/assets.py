"""Assets: what drawing needs beside the rows, such as the model of a robot. A kind names them by their digests.

A recording has its assets below :data:`ASSETS`. Whoever reads rows that are to be drawn again remembers them first.
"""

from __future__ import annotations

import hashlib

ASSETS = "__assets"
"""Entity below which a recording has its assets. The viewer hides it."""

COMPONENT = "torchrl_rerun:asset"
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


def asset(digest: str) -> bytes:
    """Return an asset.

    Raises:
        KeyError: it isn't known in this process.
    """
    return _known[digest]


def is_known(digest: str) -> bool:
    """Return whether an asset is known in this process."""
    return digest in _known
