"""Streams: the data of one key in every environment, with its kind, its storage type and its entity paths.

The engine, the readers and the layout read streams alone.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import rerun as rr

from torchrl_rerun.kinds.keys import Key

if TYPE_CHECKING:
    from torchrl_rerun.kinds.kind import Kind

SCENE_PART = "scene"
"""Name of the entity, below that of a key, at which its scene is drawn. A key with values has no keys below it."""

PAGE = 4096
"""Bytes of a page of memory."""

# torch's name of a dtype -> the numpy dtype that holds the same bits.
STORAGE = {
    "bool": np.bool_,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "float16": np.float16,
    "bfloat16": np.uint16,  # numpy has no bfloat16: its bits travel as uint16
    "float32": np.float32,
    "float64": np.float64,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "object": np.object_,  # non-tensor data: Python's own values and arrays
}


@dataclass(frozen=True)
class Stream:
    """The data of one key in every environment, and its kind.

    Attributes:
        key: the key, without ``"next"``.
        kind: how the key is stored, shown and read back.
        dtype: torch's name of the dtype, or ``"object"``.
        shape: shape of one environment's value, the agent dimension included; if it varies, of the first one.
        agents: names of the agents; each has an entity of its own. Empty without an agent dimension.
        varies: whether values of other shapes than ``shape`` are recorded too.
        shared: whether one value stands for all environments, and is recorded for the first one logged.
        reward_key: the key of the reward that this return sums; empty for all other streams.
        device: the accelerator that the values come from; empty: none.
        place: the parts of the entity path instead of those of the key, if another stream has its path; else empty.
        scene: a further kind, by which the values are drawn in 3D and not stored; None: the values are no scene's, or those of
            ``kind``.
    """

    key: Key
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    agents: tuple[str, ...] = ()
    varies: bool = False
    shared: bool = False
    reward_key: Key = ()
    device: str = ""
    place: Key = ()
    scene: Kind | None = None

    @property
    def drawing(self) -> tuple[tuple[str, Kind], ...]:
        """The kinds that draw the values, each with the part of the entity path, behind that of the stream, where it does."""
        return (("", self.kind),) if self.scene is None else (("", self.kind), (f"/{SCENE_PART}", self.scene))

    @property
    def is_object(self) -> bool:
        """Whether a row is a Python object, which is non-tensor data or an array of a shape of its own."""
        return self.dtype == "object" or self.varies

    @property
    def number_type(self) -> np.dtype[Any]:
        """The numpy dtype that holds the values' bits."""
        return np.dtype(STORAGE[self.dtype])

    @property
    def storage(self) -> np.dtype[Any]:
        """The numpy dtype in which rows are buffered, bit for bit."""
        return np.dtype(np.object_) if self.is_object else self.number_type

    @property
    def slot_shape(self) -> tuple[int, ...]:
        """Shape of one environment's value in the buffer. Of Python objects there is one for each agent."""
        return self.shape if not self.is_object else (len(self.agents),) if self.agents else ()

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row at one entity, which is ``shape`` without the agent dimension."""
        return self.shape[1:] if self.agents else self.shape

    @property
    def is_large(self) -> bool:
        """Whether a row fills a page of memory."""
        return self.row_bytes >= PAGE

    @property
    def is_bulky(self) -> bool:
        """Whether rows fill memory much sooner than numbers do, and are better kept apart from them."""
        return self.is_large or self.varies or (self.dtype == "object" and self.kind.is_bulky)

    @property
    def is_picture(self) -> bool:
        """Whether rows are pictures, which are decoded one after the other."""
        return self.kind.is_picture

    @property
    def is_complex(self) -> bool:
        """Whether each number has a real and an imaginary part."""
        return self.dtype.startswith("complex")

    @property
    def is_plain(self) -> bool:
        """Whether the values are tensors of one shape of real numbers, which any format holds."""
        return not (self.is_object or self.is_complex)

    @property
    def agent_count(self) -> int:
        """Number of agents, each of which has an entity; 1 without an agent dimension."""
        return max(1, len(self.agents))

    @property
    def row_bytes(self) -> int:
        """Bytes of one environment's value in the buffer."""
        return self.storage.itemsize * math.prod(self.slot_shape)

    def numbers(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return buffered rows as numbers: 16-bit floats as float32, which holds each of them, all others as they are.

        Complex numbers have their real and imaginary parts along a last dimension of their own.
        """
        if rows.dtype == object:
            return rows
        if self.dtype == "bfloat16":
            return (rows.astype(np.uint32) << 16).view(np.float32)
        if self.is_complex:
            return np.ascontiguousarray(rows)[..., None].view(np.dtype(f"float{rows.dtype.itemsize * 4}"))
        return rows.astype(np.float32) if self.dtype == "float16" else rows

    def narrowed(self, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return numbers in the dtype in which rows are buffered: the way back of :meth:`numbers`.

        Args:
            numbers: one dimension of any dtype that holds each of them.

        >>> from torchrl_rerun.kinds.scalars import Scalars
        >>> Stream(("reward",), Scalars(), "int64", (1,)).narrowed(np.array([2.0])).dtype
        dtype('int64')
        """
        if self.dtype == "bfloat16":  # the upper half of a float32; a conversion would change the bits of NaN
            return (np.ascontiguousarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        if self.is_complex:
            return np.ascontiguousarray(numbers).view(self.number_type)
        with np.errstate(invalid="ignore"):  # integers of 64 bits beyond the range, which come from the exact column
            return numbers.astype(self.number_type, copy=False)

    def path(self, env: int | None, agent: int = 0) -> list[str]:
        """Return the parts of the entity path of an environment, for one agent.

        Args:
            env: environment index; None: the recording is of one environment.
            agent: position of the agent.

        >>> from torchrl_rerun.kinds.scalars import Scalars
        >>> Stream(("agents", "reward"), Scalars(), "float32", (2, 1), agents=("fox", "hare")).path(3, 1)
        ['env_3', 'agents', 'reward', 'hare']
        """
        return [*env_path(env), *(self.place or self.key), *self.agents[agent : agent + 1]]


@functools.lru_cache(maxsize=1 << 16)
def env_path(env: int | None) -> list[str]:
    """Return the parts of the entity path below which the streams of an environment lie.

    Args:
        env: environment index; None: the recording is of one environment.

    >>> env_path(3), env_path(None)
    (['env_3'], [])
    """
    return [] if env is None else [f"env_{env}"]


def entity_path(stream: Stream, env: int | None, agent: int = 0) -> str:
    """Return the entity path at which a stream of an environment is recorded, escaped by Rerun's own rules.

    Args:
        stream: the stream.
        env: environment index; None: the recording is of one environment.
        agent: position of the agent.
    """
    return rr.new_entity_path(stream.path(env, agent))


def batch_path(key: Key) -> str:
    """Return the entity path of the statistics of a key over all environments."""
    return rr.new_entity_path(["batch", *key])
