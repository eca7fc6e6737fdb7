"""Points3D: clouds of points in space, shown in a 3D view."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.kinds.arrow import Column, flat
from torchrl_rerun.kinds.exact import EXACT
from torchrl_rerun.kinds.kind import Kind, View
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.picture import FLOATS, INTEGERS
from torchrl_rerun.kinds.streams import Stream

POSITIONS = "Points3D:positions"

MAX_WHOLE = 2**24
"""The largest integer up to which float32 holds each one."""

Color = tuple[int, ...]
"""Red, green and blue, and maybe alpha, from 0 to 255."""


@dataclass(frozen=True)
class Points3D(Kind):
    """Positions ``[n, 3]`` of points, or ``[3]`` of one. Their number may vary from frame to frame.

    Args:
        radii: radius of all points in units of the scene, or one for each point. Default: the viewer's.
        colors: colour of all points ``(red, green, blue)``, 0 to 255, or one for each point. Default: the viewer's.

    Raises:
        ValueError: a radius is no positive number, or a colour has not 3 or 4 numbers from 0 to 255.

    >>> Points3D(radii=0.01, colors=(255, 0, 0))
    Points3D(radii=(0.01,), colors=((255, 0, 0),))
    """

    name = "points3d"
    components = (POSITIONS,)
    is_bulky: ClassVar[bool] = True

    radii: tuple[float, ...] = ()
    colors: tuple[Color, ...] = ()

    def __init__(
        self, radii: float | Sequence[float] = (), colors: Sequence[int] | Sequence[Sequence[int]] = ()
    ) -> None:
        object.__setattr__(self, "radii", _as_radii(radii))
        object.__setattr__(self, "colors", _as_colors(colors))

    def fitted(self, leaf: Leaf) -> Self:
        shape = leaf.row_shape
        if not leaf.is_array or leaf.row_dtype not in (*FLOATS, "bfloat16", *INTEGERS):
            raise self.misfit(leaf, f"{leaf.row_dtype} data; points are real numbers")
        if shape[-1:] != (3,) or len(shape) > 2:
            raise self.misfit(leaf, f"shape {shape}; points are [n, 3], or [3] of one")
        count = 1 if len(shape) == 1 else shape[0]
        for option, several in (("radii", self.radii), ("colors", self.colors)):
            if len(several) not in (0, 1, count) and not (leaf.varies or leaf.dtype == "object"):
                raise self.misfit(leaf, f"shape {shape} with {len(several)} {option}; pass one, or one for each point")
        return self

    def is_of_any_size(self, stream: Stream) -> bool:
        return stream.is_object

    def holds(self, stream: Stream, value: Any) -> bool:
        """Return whether a value is an array ``[n, 3]`` of real numbers, however many points there are."""
        if not isinstance(value, np.ndarray) or value.ndim != 2 or value.shape[1] != 3:
            return False
        return stream.varies or value.dtype.name in (*FLOATS, *INTEGERS)

    def columns(self, stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
        clouds = [_numbers(stream, row).reshape(-1, 3) for row in rows]
        if len({cloud.dtype for cloud in clouds}) > 1:
            raise ValueError("arrays of several dtypes")  # they are stored one by one then
        numbers = np.concatenate(clouds)
        offsets = pa.array(np.cumsum([0, *map(len, clouds)]), pa.int32())
        with np.errstate(over="ignore"):  # numbers that float32 can't hold are as infinite
            positions = numbers.astype(np.float32)
        points = pa.FixedSizeListArray.from_arrays(flat(positions), type=_POSITION)
        columns = [
            Column(POSITIONS, "Points3D", "Position3D", pa.ListArray.from_arrays(offsets, points)),
        ]
        # float32 holds all numbers of two bytes. NumPy's arrays also keep their dtype.
        is_exact = numbers.dtype == np.float32 or (numbers.dtype.itemsize <= 2 and stream.dtype != "object")
        if not is_exact and (stream.dtype == "object" or not _float32_holds(numbers)):
            exact = pa.ListArray.from_arrays(pa.array(3 * np.asarray(offsets), pa.int32()), flat(numbers))
            columns.append(Column(EXACT, None, None, exact))
        return columns

    def static(self, stream: Stream, agent: int) -> Iterable[Any]:
        """Return the radii and the colours, if there are any."""
        del stream, agent
        components: dict[str, Any] = {"radii": list(self.radii), "colors": [list(color) for color in self.colors]}
        # One row with all radii, and one with all colours.
        return [
            column
            for name, values in components.items()
            if values
            for column in rr.Points3D.columns(**{name: values}).partition([len(values)])
        ]

    def values(self, stream: Stream, batch: pa.RecordBatch) -> npt.NDArray[Any]:
        out = (
            np.empty(len(batch), object)
            if stream.is_object
            else np.empty((len(batch), *stream.row_shape), stream.storage)
        )
        exact = batch.column(EXACT) if EXACT in batch.schema.names else None
        positions = batch.column(POSITIONS)
        for row in range(len(batch)):
            if exact is not None and exact[row].is_valid:
                numbers = exact[row].values.to_numpy(zero_copy_only=False)
            else:
                numbers = positions[row].values.flatten().to_numpy(zero_copy_only=False)
            shape = (-1, 3) if stream.is_object else stream.row_shape
            out[row] = (numbers if stream.dtype == "object" else stream.narrowed(numbers)).reshape(shape)
        return out

    def view(self, stream: Stream) -> View:
        del stream
        return View(rrb.Spatial3DView, rank=0, is_large=True)

    @classmethod
    def from_schema(cls, fields: Mapping[str, Any]) -> Self:
        told = fields.get("options", {})
        return cls(told.get("radii", ()), told.get("colors", ()))


def _float32_holds(numbers: npt.NDArray[Any]) -> bool:
    """Return whether float32 holds each number. To compare it with 64-bit integers would be to compare float64."""
    if numbers.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return bool((numbers.astype(np.float32) == numbers).all())
    return not ((numbers > MAX_WHOLE) | (numbers < -MAX_WHOLE)).any()


def _as_radii(radii: Any) -> tuple[float, ...]:
    try:
        several = np.atleast_1d(np.asarray(radii, np.float64))
    except (TypeError, ValueError):
        several = np.zeros((1, 1))
    if several.ndim != 1 or not (np.isfinite(several) & (several > 0)).all():
        raise ValueError(f"radii={radii!r}: pass a positive number, or one for each point")
    return tuple(several.tolist())


def _as_colors(colors: Any) -> tuple[Color, ...]:
    try:
        several = np.atleast_2d(np.asarray(colors)) if len(colors) else np.zeros((0, 3), np.int64)
    except (TypeError, ValueError):
        several = np.zeros(1)
    is_whole = several.dtype.kind in "iu"
    if (
        several.ndim != 2
        or several.shape[1] not in (3, 4)
        or not is_whole
        or (several < 0).any()
        or (several > 255).any()
    ):
        raise ValueError(
            f"colors={colors!r}: pass (red, green, blue) as whole numbers from 0 to 255, or such a colour for each point"
        )
    return tuple(tuple(map(int, color)) for color in several)


_POSITION = pa.list_(pa.field("item", pa.float32(), nullable=False), 3)


def _numbers(stream: Stream, row: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return row if stream.dtype == "object" else stream.numbers(row)
