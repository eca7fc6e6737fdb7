"""Spaces as JSON, for the schema of a recording. ``export/spaces.py`` makes spaces of it again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

MOST_BOUNDS = 65_536
"""Numbers of a Box whose bounds are written one by one, if they differ. Larger boxes have the lowest and the highest bound."""


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a space as JSON has it.

    Args:
        space: the space. One of the user's own is told by the name of its class.

    >>> space_to_json(spaces.Discrete(2))
    {'type': 'Discrete', 'n': 2, 'start': 0, 'dtype': 'int64'}
    """
    said: dict[str, Any] = {"type": type(space).__name__}
    match space:
        case spaces.Dict():
            said["spaces"] = {str(name): space_to_json(part) for name, part in space.spaces.items()}
        case spaces.Tuple() | spaces.OneOf():
            said["spaces"] = [space_to_json(part) for part in space.spaces]
        case spaces.Box():
            said |= {"low": _bound(space.low, np.min), "high": _bound(space.high, np.max)}
            said |= {"shape": list(space.shape), "dtype": str(space.dtype)}
        case spaces.Discrete():
            said |= {"n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
        case spaces.MultiDiscrete():
            said |= {"nvec": space.nvec.tolist(), "start": np.asarray(space.start).tolist(), "dtype": str(space.dtype)}
        case spaces.MultiBinary():
            said["n"] = space.n if isinstance(space.n, int) else list(space.shape)
        case spaces.Text():
            said |= {
                "min_length": space.min_length,
                "max_length": space.max_length,
                "characters": "".join(sorted(space.character_set)),
            }
        case spaces.Sequence():
            said |= {"space": space_to_json(space.feature_space), "stack": space.stack}
        case spaces.Graph():
            said["nodes"] = space_to_json(space.node_space)
            said["edges"] = None if space.edge_space is None else space_to_json(space.edge_space)
    return said


def _bound(values: npt.NDArray[Any], of_all: Any) -> Any:
    """Return the bounds of a Box: one if they are all the same, else nested lists. Infinity is text, which all of JSON knows."""
    if not values.size:
        return 0
    first = values.reshape(-1)[0]
    if (values == first).all() or values.size > MOST_BOUNDS:
        return _number(of_all(values))
    return _nested(values)


def _nested(values: npt.NDArray[Any]) -> Any:
    return [_nested(part) for part in values] if values.ndim else _number(values)


def _number(value: Any) -> Any:
    plain = value.item()
    return plain if not isinstance(plain, float) or np.isfinite(plain) else str(plain)
