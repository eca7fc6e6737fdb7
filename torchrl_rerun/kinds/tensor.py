"""Tensor: numbers of any shape, shown as a slice; of one dimension as bars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun.blueprint as rrb

from torchrl_rerun.kinds.arrow import Column, lists
from torchrl_rerun.kinds.exact import flattened
from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.kind import Kind, View
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.objects import TENSOR, tensor_buffers, tensor_data
from torchrl_rerun.kinds.streams import Stream

BARS = "BarChart:values"
"""The component of a tensor of one dimension."""


@dataclass(frozen=True)
class Tensor(Kind):
    """Numbers of any shape and dtype, complex ones too."""

    name = "tensor"
    components = (TENSOR, BARS)
    is_bulky: ClassVar[bool] = True

    @classmethod
    def recognised(cls, leaf: Leaf) -> Self | None:
        return cls() if leaf.is_array else None

    def fitted(self, leaf: Leaf) -> Self:
        if not leaf.is_array:
            raise ValueError(
                f"kinds[{name_of(leaf.key)}] = 'tensor' doesn't fit: non-tensor data that is no array can only be 'text'"
            )
        return self

    def columns(self, stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
        tensors = tensor_data(stream.numbers(rows))
        if _is_vector(stream):
            return [Column(BARS, "BarChart", "TensorData", lists(tensors, len(rows)))]
        return [Column(TENSOR, "Tensor", "TensorData", lists(tensors, len(rows)))]

    def holds(self, stream: Stream, value: Any) -> bool:
        """Return False: arrays without a fixed shape are stored one by one, as all objects are."""
        del stream, value
        return False

    def values(self, stream: Stream, batch: pa.RecordBatch) -> npt.NDArray[Any]:
        buffers = tensor_buffers(batch, BARS if BARS in batch.schema.names else TENSOR)[1]
        types = np.unique(buffers.type_codes.to_numpy())
        if len(types) == 1:  # all of one type lie one after the other, whichever part of them this is
            numbers = buffers.field(int(types[0])).slice(buffers.offsets[0].as_py(), len(batch))
            return stream.narrowed(flattened(numbers)).reshape(len(batch), *stream.row_shape)
        parts = [stream.narrowed(np.asarray(buffers[row].value.values)) for row in range(len(batch))]
        return np.concatenate(parts).reshape(len(batch), *stream.row_shape)

    def view(self, stream: Stream) -> View:
        if _is_vector(stream):
            # A legend would say the entity path.
            return View(rrb.BarChartView, {"plot_legend": rrb.PlotLegend(visible=False)}, rank=1)
        return View(rrb.TensorView, rank=2)


def _is_vector(stream: Stream) -> bool:
    """Return whether tensors have one dimension and are real, so that bars show them."""
    return stream.is_plain and len(stream.row_shape) == 1
