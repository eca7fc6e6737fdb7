"""State: categories and flags, shown as lanes of coloured bars over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr

from torchrl_rerun.kinds.arrow import Column, number_lists
from torchrl_rerun.kinds.exact import flattened, restored
from torchrl_rerun.kinds.fits import as_names, is_number, refuse_complex, refuse_large, refuse_objects
from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.kind import Discrete, Kind, Plot
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.palette import FLAG_COLORS, PALETTE, color
from torchrl_rerun.kinds.scalars import MAX_SCALARS, SCALARS
from torchrl_rerun.kinds.streams import Stream

MAX_CATEGORIES = 4096
"""The largest one-hot value that is a state."""

MAX_CONFIGURED_STATES = 32
"""The largest number of categories that have names and colours of their own."""


@dataclass(frozen=True)
class State(Kind):
    """Categories and flags: whole numbers or booleans, in a row of at most one dimension.

    Args:
        names: name of each category, or of a flag that is down and up. Default: the names that the environment is known to
            have, else the numbers.
        discrete: ``"index"`` if a number is a category, ``"one_hot"`` if a category is written as one number for each
            category. Default: as the spec says; without a spec each number or flag is a state by itself.
        categories: numbers of categories, one for each number or one-hot segment. Default: as the spec says.

    >>> State(["left", "right"])
    State(names=('left', 'right'), discrete=None, categories=())
    """

    name = "state"
    components = (SCALARS,)
    plot: ClassVar[Plot | None] = Plot.LANES
    lasts = True

    names: tuple[str, ...] = ()
    discrete: Discrete | None = None
    categories: tuple[int, ...] = ()

    def __init__(
        self, names: Sequence[str] = (), discrete: Discrete | None = None, categories: Sequence[int] = ()
    ) -> None:
        if discrete not in (None, *get_args(Discrete)):
            raise ValueError(f"discrete={discrete!r}: choose one of {', '.join(map(repr, get_args(Discrete)))}")
        object.__setattr__(self, "names", as_names(names))
        object.__setattr__(self, "discrete", discrete)
        object.__setattr__(self, "categories", tuple(map(int, categories)))

    @classmethod
    def recognised(cls, leaf: Leaf) -> Self | None:
        fits = is_number(leaf) and len(leaf.row_shape) <= 1 and leaf.size <= _most(leaf.discrete)
        return cls() if fits and (leaf.discrete is not None or leaf.dtype == "bool") else None

    def fitted(self, leaf: Leaf) -> Self:
        refuse_objects(self, leaf)
        refuse_complex(self, leaf)
        discrete = self.discrete or leaf.discrete
        refuse_large(self, leaf, _most(discrete))
        if "float" in leaf.dtype:
            raise self.misfit(leaf, f"{leaf.dtype}; states are whole numbers or booleans")
        found = replace(self, discrete=discrete, categories=self.categories or leaf.categories)
        if discrete is not None and not found.categories:
            raise self.misfit(
                leaf, f"{leaf.dtype} of shape {leaf.row_shape} with discrete={discrete!r} and no categories"
            )
        if discrete == "one_hot" and sum(found.categories) != leaf.size:
            raise self.misfit(
                leaf, f"shape {leaf.row_shape}, which is not one number for each of {found.categories} categories"
            )
        if self.names:
            return found.named(leaf, self.names)
        return replace(found, names=() if leaf.discrete is None else leaf.names)

    def named(self, leaf: Leaf, names: Sequence[str]) -> Self:
        if names and self.discrete is not None and len(names) < max(self.categories):
            raise ValueError(
                f"names[{name_of(leaf.key)}] has {len(names)} names, but there are {max(self.categories)} categories"
            )
        return replace(self, names=tuple(names))

    def columns(self, stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
        flat = rows.reshape(len(rows), -1)
        changed = np.ones(len(flat), bool)
        differs = flat[1:] != flat[:-1]
        changed[1:] = differs[:, 0] if differs.shape[1] == 1 else differs.any(axis=1)
        codes, names = self.codes(stream, flat[changed])
        labels = pa.array(np.array(names, object)[codes.reshape(-1)], pa.string())
        # A row without a change has no state (null), which leaves the one before in force: lanes stay whole.
        offsets = np.zeros(len(flat) + 1, np.int32)
        np.cumsum(changed * codes.shape[1], out=offsets[1:])
        states = pa.ListArray.from_arrays(pa.array(offsets), labels, mask=pa.array(~changed))
        return [Column("StateChange:state", "StateChange", "Text", states), number_lists(stream.numbers(rows))]

    def codes(self, stream: Stream, rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], list[str]]:
        """Return the state of each lane as a code, ``[n, lanes]``, and the label of each code.

        Args:
            stream: the stream.
            rows: ``[n, numbers]``.

        >>> action = State(["left", "right"], "one_hot", [2])
        >>> action.codes(Stream(("action",), action, "int64", (2,)), np.array([[0, 1], [1, 0], [0, 0]]))
        (array([[1], [0], [2]]), ['left', 'right', ''])
        >>> State().codes(Stream(("done",), State(), "bool", (1,)), np.array([[True], [False]]))
        (array([[1], [0]]), ['', 'done'])
        """
        if self.discrete == "one_hot":
            most = max(self.categories)
            segments = np.split(rows, np.cumsum(self.categories)[:-1], axis=1)
            codes = [np.where(segment.any(axis=1), segment.argmax(axis=1), most) for segment in segments]
            return np.stack(codes, axis=1), [*(self._label(i) for i in range(most)), ""]
        if self.is_flag(stream):
            return rows.astype(np.intp), list(self.names[:2]) if len(self.names) >= 2 else ["", stream.key[-1]]
        values, inverse = np.unique(rows, return_inverse=True)
        return inverse.reshape(rows.shape), [self._label(int(value)) for value in values]

    def _label(self, category: int) -> str:
        return self.names[category] if 0 <= category < len(self.names) else str(category)

    def is_flag(self, stream: Stream) -> bool:
        """Return whether values are booleans, each up or down, and no categories."""
        return stream.dtype == "bool" and self.discrete is None

    def static(self, stream: Stream, agent: int) -> Iterable[Any]:
        """Return the names and colours of the states; nothing if they are too many, or not known."""
        del agent
        if self.is_flag(stream):
            flag = stream.key[-1]
            labels = list(self.names[:2]) or [flag]
            shades = [PALETTE[0], FLAG_COLORS.get(flag, PALETTE[1])][-len(labels) :]
        else:
            count = max(self.categories, default=len(self.names))
            if not 0 < count <= MAX_CONFIGURED_STATES:
                return ()
            labels = [self._label(category) for category in range(count)]
            shades = [color(i) for i in range(count)]
        found: Iterable[Any] = rr.StateConfiguration.columns(
            values=labels, labels=labels, colors=np.array(shades, np.uint32)
        ).partition([len(labels)])
        return found

    def values(self, stream: Stream, batch: pa.RecordBatch) -> npt.NDArray[Any]:
        return restored(stream, batch, flattened(batch.column(SCALARS)))

    def to_schema(self) -> dict[str, Any]:
        told = {"discrete": self.discrete, "categories": list(self.categories), "names": list(self.names)}
        return {name: value for name, value in told.items() if value}

    @classmethod
    def from_schema(cls, fields: Mapping[str, Any]) -> Self:
        return cls(fields.get("names", ()), fields.get("discrete"), fields.get("categories", ()))


def _most(discrete: Discrete | None) -> int:
    """Return how many numbers a row may have."""
    return MAX_CATEGORIES if discrete == "one_hot" else MAX_SCALARS
