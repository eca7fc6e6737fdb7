"""Smooth pictures, and how near a decoded one is."""

from __future__ import annotations

import torch


def picture(t: int, shape: tuple[int, ...]) -> torch.Tensor:
    """A smooth picture ``[height, width, depth]`` that drifts with time, each channel in a way of its own."""
    rows, columns, depth = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    return (127 + 100 * torch.sin((rows + t) / 9 + depth) * torch.cos((columns - t) / 7)).to(torch.uint8)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """The peak signal-to-noise ratio of two pictures, in dB."""
    error = (a.double() - b.double()).square().mean()
    return float("inf") if error == 0 else float(10 * torch.log10(255**2 / error))
