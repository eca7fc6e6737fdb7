"""Stored elsewhere: trajectories in files of other kinds, told by their contents and read piece by piece."""

from __future__ import annotations

from torchrl_rerun.stored.opening import open_stored
from torchrl_rerun.stored.pieces import Piece, Stored

__all__ = ["Piece", "Stored", "open_stored"]
