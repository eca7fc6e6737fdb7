"""Pieces of time: what stored trajectories are read in, so that memory is bounded however long they are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tensordict import TensorDictBase

from torchrl_rerun.kinds.kind import Kind
from torchrl_rerun.kinds.streams import Key
from torchrl_rerun.transform.padded_batches import MASK

PIECE_BYTES = 16 << 20
"""What a piece takes at the most, if a single moment doesn't take more."""
_MOST_MOMENTS = 1024


@dataclass(frozen=True)
class Piece:
    """Some consecutive moments of all environments.

    Attributes:
        tensordict: ``[*batch, time]``, in TorchRL's form. A ``"_step"`` entry says of whom they are, if not of all.
        begins: which environments begin an episode with the first of them, bool ``[envs]``.
        seeds: the seed of the episode that begins, of each environment; empty: not known of any.
        padding: of a batch of trajectories, bool ``[trajectories, time]``: false for what is no step but padding. None: it
            is no such batch.
    """

    tensordict: TensorDictBase
    begins: npt.NDArray[np.bool_]
    seeds: Sequence[int | None] = ()
    padding: npt.NDArray[np.bool_] | None = None

    @property
    def steps(self) -> int:
        """The number of steps, of all environments together."""
        taken = self.padding if self.padding is not None else self.tensordict.get("_step", None)
        return self.tensordict.numel() if taken is None else int(taken.sum())

    def unpadded(self) -> Iterator[Piece]:
        """Yield the trajectories of a padded batch, one after the other, as those of one environment; else the piece itself."""
        if self.padding is None:
            yield self
            return
        for trajectory, taken in zip(self.tensordict, torch.from_numpy(self.padding), strict=True):
            yield Piece(trajectory[taken].exclude(MASK, "mask"), np.array([True]))


@dataclass(frozen=True)
class Stored:
    """Stored trajectories.

    Attributes:
        what: what they are stored as.
        moments: how many there are, one after the other.
        pieces: reads them.
        env_name: of which environment they are, if it is known.
        fps: frames per second of simulated time, if it is known.
        arrays: of named arrays: the keys that they become, by their names.
        without_ends: the files in which nothing says where episodes end.
        kinds: kinds of keys, as far as they are known.
    """

    what: str
    moments: int
    pieces: Callable[[], Iterator[Piece]]
    env_name: str | None = None
    fps: float | None = None
    arrays: Mapping[str, Key] = field(default_factory=dict)
    without_ends: tuple[Path, ...] = ()
    kinds: Mapping[Key, Kind] = field(default_factory=dict)


def told_together(paths: Sequence[Path]) -> str:
    """Return what messages call several files.

    >>> told_together([Path("a.npz")]), told_together([Path("a.npz"), Path("b.npz"), Path("c.npz")])
    ('a.npz', 'a.npz and 2 others')
    """
    others = len(paths) - 1
    return f"{paths[0]}" + (f" and {others:,} other{'s' * (others > 1)}" if others else "")


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return what names are sorted by, so that numbers in them count as numbers.

    >>> sorted(["demo_10", "demo_9", "b"], key=natural)
    ['b', 'demo_9', 'demo_10']
    """
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name) if part]


def one_after_another(what: str, parts: Sequence[Stored]) -> Stored:
    """Return several stored trajectories as one. Each of them begins new episodes.

    Args:
        what: what they are together.
        parts: they themselves, at least one.
    """

    def pieces() -> Iterator[Piece]:
        envs = of_first = None
        for part in parts:
            for number, piece in enumerate(part.pieces()):
                begun = dataclasses.replace(piece, begins=np.ones_like(piece.begins)) if number == 0 else piece
                if piece.padding is None:
                    envs, of_first = envs or len(piece.begins), of_first or part
                    if len(piece.begins) != envs:
                        raise ValueError(
                            f"{part.what} is of {len(piece.begins)} environments, and {of_first.what} of {envs}: replay "
                            "them one at a time"
                        )
                yield begun

    def merged(name: str) -> dict[Any, Any]:
        return {key: value for part in reversed(parts) for key, value in getattr(part, name).items()}

    names, rates = {part.env_name for part in parts}, {part.fps for part in parts}
    return Stored(
        what,
        sum(part.moments for part in parts),
        pieces,
        env_name=parts[0].env_name if len(names) == 1 else None,
        fps=parts[0].fps if len(rates) == 1 else None,
        arrays=merged("arrays"),
        without_ends=tuple(path for part in parts for path in part.without_ends),
        kinds=merged("kinds"),
    )


def spans(begin: int, end: int, bytes_per_moment: float) -> Iterator[tuple[int, int]]:
    """Moments, cut into pieces.

    >>> list(spans(0, 5, PIECE_BYTES // 2)), list(spans(3, 4, 10 * PIECE_BYTES))
    ([(0, 2), (2, 4), (4, 5)], [(3, 4)])
    """
    step = int(max(1, min(_MOST_MOMENTS, PIECE_BYTES // max(1.0, bytes_per_moment))))
    for at in range(begin, end, step):
        yield at, min(at + step, end)


def filled_like(value: Any) -> Any:
    """What stands for a value that was never stored: NaN, and where there is no such thing zeros.

    >>> import torch
    >>> filled_like(torch.ones(2)), filled_like(torch.ones(2, dtype=torch.uint8))
    (tensor([nan, nan]), tensor([0, 0], dtype=torch.uint8))
    """
    return value.new_full(value.shape, float("nan")) if value.is_floating_point() else value.new_zeros(value.shape)
