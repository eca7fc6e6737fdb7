"""MuJoCo's state: what a simulation is at a moment, from which the writer works out where the bodies are."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr

from torchrl_rerun.kinds import assets
from torchrl_rerun.kinds.arrow import Column
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.shapes3d import Floats, Poses, list_column, vectors
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.kinds.transforms3d import Transforms3D

CONTACTS, TENDONS = "contacts", "tendons"
"""Names of entities."""

XYZW = [1, 2, 3, 0]
"""MuJoCo's quaternions, w first, in Rerun's order."""


@dataclass(frozen=True)
class MuJoCoState(Transforms3D):
    """MuJoCo's state ``[n]``, of which ``mj_kinematics`` gives the poses. Made by ``RerunRecorder(scene=...)``.

    Args:
        model: the digest of the compiled model.
        signature: which parts of the state a row has: MuJoCo's ``mjtState``, as ``mj_getState`` takes it.
        contacts: whether contacts are drawn.
        tendons: whether tendons are drawn.
    """

    name = "mujoco"
    is_bulky = False

    model: str = ""
    signature: int = 0
    contacts: bool = False
    tendons: bool = False

    def fitted(self, leaf: Leaf) -> Self:
        del leaf
        return self

    def poses(self, stream: Stream, rows: npt.NDArray[Any]) -> Poses:
        return self._computed(stream, rows).poses

    def below(self, stream: Stream, rows: npt.NDArray[Any]) -> Mapping[str, list[Column]]:
        computed = self._computed(stream, rows)
        drawn = dict(self.drawn(computed.poses))
        if self.contacts:
            drawn[CONTACTS] = [list_column("Points3D", "positions", "Position3D", computed.contacts)]
        if self.tendons:
            drawn[TENDONS] = _strips(computed.tendons)
        return drawn

    def _computed(self, stream: Stream, rows: npt.NDArray[Any]) -> Computed:
        """Return what MuJoCo works out of some states."""
        del stream
        import mujoco  # noqa: PLC0415 - of those who simulate with it

        model = model_of(self.model)
        data = mujoco.MjData(model)
        count, signature = len(rows), self.signature
        positions, quaternions = np.empty((count, model.nbody, 3)), np.empty((count, model.nbody, 4))
        contacts: list[Floats] = []
        tendons: list[list[Floats]] = []
        is_whole = self.contacts or self.tendons
        # Looked up once: this is the writer's share of each step.
        put, move, xpos, xquat = mujoco.mj_setState, mujoco.mj_kinematics, data.xpos, data.xquat
        if is_whole:
            move = mujoco.mj_fwdPosition
        for row, state in enumerate(np.ascontiguousarray(rows, np.float64)):
            put(model, data, state, signature)
            move(model, data)
            positions[row] = xpos
            quaternions[row] = xquat
            if self.contacts:
                contacts.append(np.array(data.contact.pos, np.float64).reshape(-1, 3))
            if self.tendons:
                tendons.append(_wrapped(data))
        return Computed(Poses(positions, quaternions[..., XYZW], self.bodies), contacts, tendons)

    def static_below(self, stream: Stream, number: int) -> Iterator[tuple[str, Any]]:
        yield from super().static_below(stream, number)
        if self.contacts:
            yield CONTACTS, rr.Points3D.columns(radii=[0.03], colors=[(255, 60, 60)])
        if self.tendons:
            yield TENDONS, rr.LineStrips3D.columns(radii=[0.01], colors=[(230, 60, 60)])

    def assets(self) -> Iterator[str]:
        yield from super().assets()
        yield self.model


class Computed(NamedTuple):
    """What MuJoCo works out of ``n`` states.

    Attributes:
        poses: where the bodies are.
        contacts: where bodies touch, ``[contacts, 3]`` for each state; empty if they aren't drawn.
        tendons: the course of each tendon, ``[points, 3]``, for each state; empty if they aren't drawn.
    """

    poses: Poses
    contacts: list[Floats]
    tendons: list[list[Floats]]


def remember_model(model: Any) -> str:
    """Keep a compiled model in this process, and return the digest by which a kind names it.

    Args:
        model: an ``mjModel``.
    """
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    stored = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, stored)
    return assets.remember(zlib.compress(stored.tobytes(), 6))


@functools.lru_cache(maxsize=64)
def model_of(digest: str) -> Any:
    """Return a compiled model, a copy of that which was remembered.

    Raises:
        KeyError: it isn't known in this process.
        ImportError: MuJoCo isn't installed.
        ValueError: another version of MuJoCo stored it.
    """
    stored = assets.asset(digest)
    import mujoco  # noqa: PLC0415 - of those who simulate with it

    try:
        return mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": zlib.decompress(stored)})
    except Exception as error:
        raise ValueError(
            f"the model of the scene can't be read by MuJoCo {mujoco.__version__} ({error}): it was recorded with another version"
        ) from error


def _wrapped(data: Any) -> list[Floats]:
    """Return the course of each tendon."""
    points = np.array(data.wrap_xpos, np.float64).reshape(-1, 3)  # a copy: the next state is put there
    return [
        points[start : start + count]
        for start, count in zip(data.ten_wrapadr.tolist(), data.ten_wrapnum.tolist(), strict=True)
    ]


def _strips(tendons: list[list[Floats]]) -> list[Column]:
    """Return the column of lines, some for each row."""
    strips = [strip for row in tendons for strip in row]
    points = np.concatenate(strips) if strips else np.empty((0, 3))
    values = vectors(points)
    inner = pa.ListArray.from_arrays(
        pa.array(np.cumsum([0, *map(len, strips)]), pa.int32()),
        values,
        type=pa.list_(pa.field("item", values.type, nullable=False)),
    )
    rows = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, tendons)]), pa.int32()), inner)
    return [Column("LineStrips3D:strips", "LineStrips3D", "LineStrip3D", rows)]
