"""Smooth pictures, and a measure of how close a decoded picture is."""

from __future__ import annotations

import torch


def picture(t: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a smooth picture ``[height, width, depth]`` whose channels drift with time, each in its own way."""
    rows, columns, depth = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    return (127 + 100 * torch.sin((rows + t) / 9 + depth) * torch.cos((columns - t) / 7)).to(torch.uint8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio of two pictures, in dB."""
    error = (a.double() - b.double()).square().mean()
    return float("inf") if error == 0 else float(10 * torch.log10(255**2 / error))
