"""Values of simulators that are on an accelerator: nothing here waits for them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def device_of(values: Any) -> str:
    """Return the accelerator that an array of Warp's or a tensor is on, as PyTorch names it; empty: main memory.

    Args:
        values: an array with a ``device``.
    """
    device = values.device
    is_cuda = getattr(device, "is_cuda", None)  # of Warp's devices
    if is_cuda is None:
        is_cuda = getattr(values, "is_cuda", False)
    return str(device) if is_cuda else ""


def numbers_in(values: Any, device: str) -> Any:
    """Return what an array of Warp's, one of Isaac Lab's proxies or a tensor holds, without a copy.

    Args:
        values: the array.
        device: the accelerator that it is on; empty: main memory.

    Returns:
        A tensor if there is an accelerator, else an array.
    """
    if hasattr(values, "torch"):  # Isaac Lab's proxies
        values = values.torch
    if device and not hasattr(values, "detach"):
        # warp-lang 1.19: its stream and PyTorch's default one wait for each other on the device (CU_STREAM_DEFAULT).
        import warp  # noqa: PLC0415 - of those who simulate with it

        values = warp.to_torch(values)
    if hasattr(values, "detach"):
        values = values.detach()
    return values if device else values.numpy()


@functools.lru_cache(maxsize=256)
def indices_on(device: str, indices: tuple[int, ...]) -> torch.Tensor:
    """Return indices on an accelerator. They are copied once: PyTorch waits for such a copy.

    Args:
        device: the accelerator, as PyTorch names it.
        indices: the indices.
    """
    import torch  # noqa: PLC0415 - only if values are on an accelerator

    return torch.tensor(indices, device=device)


def without_rows(values: Any, gone: Any, envs: Sequence[int]) -> Any:
    """Return the values of environments, NaN for those that are in a later moment.

    Args:
        values: a tensor ``[len(envs), ...]`` on an accelerator.
        gone: the environments that are in a later moment, bool ``[all environments]``: an array or a tensor.
        envs: the indices of the environments.
    """
    import torch  # noqa: PLC0415 - only if values are on an accelerator

    device = str(values.device)
    mask = torch.as_tensor(gone, device=device)[indices_on(device, tuple(envs))]
    return values.masked_fill(mask.reshape(-1, *[1] * (values.ndim - 1)), np.nan)
