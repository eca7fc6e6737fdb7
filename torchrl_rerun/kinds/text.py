"""Text: strings, and every other value of Python's that is no array. ``objects.py`` says how each is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import rerun.blueprint as rrb

from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.kind import Kind, View
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.objects import TEXT
from torchrl_rerun.kinds.streams import STORAGE, Stream


@dataclass(frozen=True)
class Text(Kind):
    """Strings, and lists, dictionaries and numbers of Python's, which are stored as JSON."""

    name = "text"
    components = (TEXT,)

    @classmethod
    def recognised(cls, leaf: Leaf) -> Self | None:
        is_array = leaf.is_array and leaf.row_dtype in STORAGE and leaf.row_dtype != "object"
        return cls() if leaf.dtype == "object" and not is_array else None

    def fitted(self, leaf: Leaf) -> Self:
        if leaf.dtype != "object":
            raise ValueError(f"kinds[{name_of(leaf.key)}] = 'text' doesn't fit: 'text' is for non-tensor data")
        return self

    def holds(self, stream: Stream, value: Any) -> bool:
        """Return False: each value is stored by itself, as all objects are."""
        del stream, value
        return False

    def view(self, stream: Stream) -> View:
        del stream
        return View(rrb.TextDocumentView, rank=3)
