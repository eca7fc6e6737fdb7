"""Spaces of Gymnasium, of the JSON that is in the schema of recordings of Gymnasium's environments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from torchrl_rerun.kinds.keys import RESERVED, Key
from torchrl_rerun.kinds.schema import Schema


def spaces_in(schema: Schema) -> dict[Key, spaces.Space[Any]]:
    """Return the spaces of the keys of observations and actions; empty if the schema doesn't say them.

    Observations that ``VecNormalize`` has normalised are in no space that is known.

    Args:
        schema: the description of a recording.
    """
    origin = schema.source.origin
    said = origin.get("spaces") or {}
    found: dict[Key, spaces.Space[Any]] = {}
    observation = said.get("observation")
    if observation is not None and "observation" not in origin.get("normalized", ()):
        is_at_root = observation["type"] == "Dict" and not RESERVED & observation["spaces"].keys()
        found |= dict(_by_key(observation, () if is_at_root else ("observation",)))
    if said.get("action") is not None:
        found |= dict(_by_key(said["action"], ("action",)))
    return found


def _by_key(said: Mapping[str, Any], key: Key) -> Iterator[tuple[Key, spaces.Space[Any]]]:
    """Yield the spaces of arrays within a space, by their keys."""
    match said["type"]:
        case "Dict":
            for name, part in said["spaces"].items():
                yield from _by_key(part, (*key, name))
        case "Tuple":
            for index, part in enumerate(said["spaces"]):
                yield from _by_key(part, (*key, str(index)))
        case _:
            space = space_of(said)
            if space is not None:
                yield key, space


def space_of(said: Mapping[str, Any]) -> spaces.Space[Any] | None:
    """Return a space of arrays of one shape; None: it is none.

    Args:
        said: the space as JSON has it.

    >>> space_of({"type": "Discrete", "n": 3, "start": 2, "dtype": "int64"})
    Discrete(3, start=2)
    >>> space_of({"type": "Box", "low": [0, "-inf"], "high": 1, "shape": [2], "dtype": "float32"})
    Box([  0. -inf], 1.0, (2,), float32)
    """
    match said["type"]:
        case "Discrete":
            return spaces.Discrete(said["n"], start=said["start"], dtype=np.dtype(said["dtype"]).type)
        case "MultiDiscrete":
            return spaces.MultiDiscrete(
                np.array(said["nvec"]), dtype=np.dtype(said["dtype"]).type, start=np.array(said["start"])
            )
        case "MultiBinary":
            return spaces.MultiBinary(said["n"])
        case "Box":
            shape, dtype = tuple(said["shape"]), np.dtype(said["dtype"])
            low, high = (_bounds(said[name], shape, dtype) for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
    return None


def _bounds(said: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the bounds of a Box: one number, or nested lists. Infinity is text."""
    of_all = np.array(said, np.float64 if dtype.kind == "f" else dtype)
    return np.broadcast_to(of_all.astype(dtype), shape)
