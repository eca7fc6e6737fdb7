"""Scalars: numbers that are plotted over time, a line each.

Plotted numbers are float32 or float64, whichever holds theirs exactly; integers of 64 bits that neither holds have a
column of their own beside it. These columns claim no component type, since Rerun's ``Scalar`` stands for float64 alone:
``rerun rrd verify`` would complain, and the viewer plots nothing that doesn't claim it beside something that does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr

from torchrl_rerun.kinds.arrow import Column, number_lists
from torchrl_rerun.kinds.exact import are_exact_floats, exact_column, flattened, restored
from torchrl_rerun.kinds.fits import as_names, is_number, refuse_complex, refuse_large, refuse_objects
from torchrl_rerun.kinds.keys import REWARD, name_of
from torchrl_rerun.kinds.kind import Kind, Plot
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.palette import color, series_style
from torchrl_rerun.kinds.streams import Stream

SCALARS = "Scalars:scalars"
"""The component of plotted numbers."""

MAX_SCALARS = 64
"""The largest row that is plotted. Larger ones are tensors."""


@dataclass(frozen=True)
class Scalars(Kind):
    """Numbers that are plotted over time, at most 64 in a row of at most one dimension.

    Args:
        names: name of each number. Default: the names that the environment is known to have, else ``key[0]``, ``key[1]``.

    >>> Scalars(["x", "x vel"])
    Scalars(names=('x', 'x vel'))
    """

    name = "scalars"
    components = (SCALARS,)
    plot: ClassVar[Plot | None] = Plot.LINES

    names: tuple[str, ...] = ()

    def __init__(self, names: Sequence[str] = ()) -> None:
        object.__setattr__(self, "names", as_names(names))

    @classmethod
    def recognised(cls, leaf: Leaf) -> Self | None:
        fits = leaf.dtype != "bool" and is_number(leaf) and leaf.size <= MAX_SCALARS and len(leaf.row_shape) <= 1
        return cls() if fits else None

    def fitted(self, leaf: Leaf) -> Self:
        refuse_objects(self, leaf)
        refuse_complex(self, leaf)
        refuse_large(self, leaf, MAX_SCALARS)
        if self.names:
            return self.named(leaf, self.names)
        return self if leaf.discrete is not None else replace(self, names=leaf.names)

    def named(self, leaf: Leaf, names: Sequence[str]) -> Self:
        if names and len(names) != leaf.size:
            raise ValueError(f"names[{name_of(leaf.key)}] has {len(names)} names, but a row has {leaf.size} numbers")
        return replace(self, names=tuple(names))

    def columns(self, stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
        numbers = stream.numbers(rows)
        if numbers.dtype.kind == "f":
            return [number_lists(numbers)]
        # The viewer plots no integers (rerun-sdk 0.41).
        columns = [number_lists(numbers.astype(np.float64))]
        return columns if are_exact_floats(numbers) else [*columns, exact_column(numbers)]

    def static(self, stream: Stream, agent: int) -> Iterable[Any]:
        """Return the names and colours of the lines. Rewards and returns differ in colour."""
        size, key = math.prod(stream.row_shape), stream.key[-1]
        is_reward = key.startswith(REWARD)
        if size == 1 and stream.agents:  # the viewer names each by its path
            return rr.SeriesLines.columns(colors=np.array([color(agent)], np.uint32))
        names = self.names or ([key] if size == 1 else [f"{key}[{i}]" for i in range(size)])
        things = list(dict.fromkeys(name.removesuffix(" vel") for name in names))  # each has the colour of its velocity
        return series_style(names, [color(is_reward + things.index(name.removesuffix(" vel"))) for name in names])

    def values(self, stream: Stream, batch: pa.RecordBatch) -> npt.NDArray[Any]:
        return restored(stream, batch, flattened(batch.column(SCALARS)))

    def to_schema(self) -> dict[str, Any]:
        return {"names": list(self.names)} if self.names else {}

    @classmethod
    def from_schema(cls, fields: Mapping[str, Any]) -> Self:
        return cls(fields.get("names", ()))
