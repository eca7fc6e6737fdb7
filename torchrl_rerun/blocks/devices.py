"""Copies from an accelerator: in a CUDA stream of their own, into pinned memory, without a wait on the environment's thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


class Arrival(Protocol):
    """The end of some copies."""

    def synchronize(self) -> None:
        """Wait until they have arrived."""


class Transfers:
    """Copies tensors on a device to arrays in pinned memory. The copies arrive later, in order.

    Args:
        device: the device, as PyTorch names it: ``"cuda:0"``.
    """

    def __init__(self, device: str) -> None:
        import torch  # noqa: PLC0415 - the engine does without, unless tensors come

        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    @staticmethod
    def allocate(shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return an array in pinned memory, which the device can write to while the processor does something else."""
        import torch  # noqa: PLC0415 - the engine does without, unless tensors come

        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        array: npt.NDArray[Any] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().view(dtype)
        return array.reshape(shape)

    def copy(self, pairs: Sequence[tuple[npt.NDArray[Any], torch.Tensor]]) -> None:
        """Begin to copy tensors into arrays. The tensors may be changed as soon as this returns.

        Args:
            pairs: arrays, and tensors of their shapes.
        """
        import torch  # noqa: PLC0415 - the engine does without, unless tensors come

        # A clone on the device costs next to nothing. Simulators write each step into the same tensors, and would overtake
        # the copy.
        values = [value.detach().clone() for _, value in pairs]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for (target, _), value in zip(pairs, values, strict=True):
                bits = value.contiguous().reshape(-1).view(torch.uint8)
                torch.from_numpy(target.reshape(-1).view(np.uint8)).copy_(bits, non_blocking=True)
                bits.record_stream(self._stream)

    def arrival(self) -> Arrival:
        """Return the end of all copies that were begun before."""
        event: Arrival = self._stream.record_event()
        return event
