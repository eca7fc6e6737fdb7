"""Checks of whether a key fits a kind that the user asked for."""

from __future__ import annotations

from collections.abc import Sequence

from torchrl_rerun.kinds.kind import Kind
from torchrl_rerun.kinds.leaf import Leaf


def as_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names as a tuple.

    Raises:
        TypeError: one string was passed instead of several names.
    """
    if isinstance(names, str):
        raise TypeError(f"names={names!r}: pass a list of names, even of one: [{names!r}]")
    return tuple(map(str, names))


def is_number(leaf: Leaf) -> bool:
    """Return whether values are real numbers of one shape, in a tensor."""
    return leaf.dtype != "object" and not leaf.varies and not leaf.dtype.startswith("complex")


def refuse_objects(kind: Kind, leaf: Leaf) -> None:
    """Refuse non-tensor data.

    Raises:
        ValueError: values of the key are no tensors.
    """
    if not leaf.is_array:
        raise kind.misfit(leaf, "non-tensor data that is no array; choose 'text'")
    if leaf.dtype == "object":
        raise kind.misfit(leaf, "non-tensor data; choose 'image' or 'tensor'")


def refuse_complex(kind: Kind, leaf: Leaf) -> None:
    """Refuse complex numbers.

    Raises:
        ValueError: values of the key are complex.
    """
    if leaf.row_dtype.startswith("complex"):
        raise kind.misfit(leaf, f"{leaf.row_dtype}; complex numbers are tensors")


def refuse_large(kind: Kind, leaf: Leaf, most: int) -> None:
    """Refuse rows of several dimensions, or of too many numbers.

    Raises:
        ValueError: a row has another shape.
    """
    if len(leaf.row_shape) > 1 or leaf.size > most:
        raise kind.misfit(leaf, f"shape {leaf.row_shape}; at most {most} numbers in one dimension")
