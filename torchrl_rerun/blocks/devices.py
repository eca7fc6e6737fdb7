"""Copies from an accelerator into pinned memory, without a wait on the environment's thread.

CUDA refuses to pin a file that is mapped into memory (``cudaHostRegister``, on ext4): values in pinned memory are copied into the
black box when they have arrived, see :class:`~torchrl_rerun.blocks.mirror.Mirror`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy.typing as npt

if TYPE_CHECKING:
    import torch


class Arrival(Protocol):
    """The end of some copies."""

    def synchronize(self) -> None:
        """Wait until they have arrived."""


class Copy(NamedTuple):
    """A copy of a frame's values from pinned memory into memory that outlives the process.

    Attributes:
        target: an array of that memory, ``[slots, ...]``.
        source: the array in pinned memory, of the same shape.
        slot: the slot to copy.
    """

    target: npt.NDArray[Any]
    source: npt.NDArray[Any]
    slot: int


class Landing(NamedTuple):
    """Values of a frame that are on their way into pinned memory, and are to be kept when they have arrived.

    Attributes:
        arrival: their arrival.
        copies: the copies to make then.
    """

    arrival: Arrival
    copies: Sequence[Copy]


class Transfers:
    """Copies tensors on a device to pinned memory. The copies arrive later.

    The copies are put into the CUDA stream in which the tensors were computed. The device makes them before it executes
    what is put there afterwards: simulators may write the next step into the same tensors. A stream of their own would
    need clones and events, which take the environment's thread 60 to 160 us where the copies take 25 (NVIDIA H100).

    Args:
        device: the device, as PyTorch names it: ``"cuda:0"``.
    """

    def __init__(self, device: str) -> None:
        import torch  # noqa: PLC0415 - the engine does without, unless tensors come

        self._torch = torch
        self._device = torch.device(device)
        self._targets: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._copies: list[Copy] = []
        self._last: torch.cuda.Stream | None = None
        self._streams: dict[int, torch.cuda.Stream] = {}  # by their handles: those that copies were put into

    @staticmethod
    def allocate(shape: Sequence[int], dtype: str) -> torch.Tensor:
        """Return a tensor in pinned memory, which the device can write to while the processor does something else.

        Args:
            shape: the shape.
            dtype: torch's name of the dtype.
        """
        import torch  # noqa: PLC0415 - the engine does without, unless tensors come

        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), pin_memory=True)

    def add(self, target: torch.Tensor, value: torch.Tensor, copy: Copy | None = None) -> None:
        """Add a copy to those that :meth:`send` begins.

        Args:
            target: a tensor in pinned memory.
            value: a tensor of its shape and dtype.
            copy: the copy to make when it has arrived. Default: none.
        """
        self._targets.append(target)
        self._values.append(value)
        if copy is not None:
            self._copies.append(copy)

    def send(self, *, is_late: bool = False) -> Landing | None:
        """Begin the copies that were added, in one call. The values may be changed afterwards, by the same CUDA stream.

        Args:
            is_late: whether the values belong to the frame of the last call. Another thread may make this one, and its own
                stream isn't that in which they were computed. Default: False.

        Returns:
            The values that are to be kept when they have arrived; None: there are none.
        """
        if not self._targets:
            return None
        torch = self._torch
        stream = self._last if is_late and self._last is not None else torch.cuda.current_stream(self._device)
        with torch.no_grad(), torch.cuda.stream(stream) if is_late else contextlib.nullcontext():
            # With gradients the targets would become part of the graph of values that require them.
            torch._foreach_copy_(self._targets, self._values, non_blocking=True)
        self._last = self._streams[stream.cuda_stream] = stream
        landing = None
        if self._copies:
            arrival = torch.cuda.Event(blocking=True)  # others keep a processor busy while a thread waits
            arrival.record(stream)
            landing = Landing(arrival, self._copies)
        self.forget()
        return landing

    def forget(self) -> None:
        """Forget the copies that were added."""
        self._targets, self._values, self._copies = [], [], []

    def arrivals(self) -> list[Arrival]:
        """Return the ends of all copies that were begun before, one for each CUDA stream. Any thread may call it."""
        return [stream.record_event() for stream in tuple(self._streams.values())]


class Devices:
    """The accelerators that a recording copies values from, made when they are needed."""

    def __init__(self) -> None:
        self._transfers: dict[str, Transfers] = {}

    def transfers(self, device: str) -> Transfers:
        """Return the copies from a device.

        Args:
            device: the device, as PyTorch names it.
        """
        if device not in self._transfers:
            self._transfers[device] = Transfers(device)
        return self._transfers[device]

    def send(self, *, is_late: bool = False) -> Sequence[Landing]:
        """Begin the copies of a frame: one call for each device.

        Args:
            is_late: whether values of the last frame are copied again. Default: False.

        Returns:
            The values that are to be kept when they have arrived.
        """
        if not self._transfers:
            return ()
        sent = [transfers.send(is_late=is_late) for transfers in self._transfers.values()]
        return [landing for landing in sent if landing is not None]

    def forget(self) -> None:
        """Forget the copies of a frame, which isn't recorded."""
        for transfers in self._transfers.values():
            transfers.forget()


def host_bits(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return an array that shares the memory of a tensor in main memory. bfloat16, which NumPy lacks, has its bits as uint16."""
    import torch  # noqa: PLC0415 - the engine does without, unless tensors come

    array: npt.NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def fetched(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Copy a tensor to main memory, wait for the copy, and return it as an array. bfloat16 becomes uint16."""
    return host_bits(tensor.detach().cpu())
