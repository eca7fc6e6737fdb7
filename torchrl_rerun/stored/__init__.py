"""Stored elsewhere: trajectories in files of other kinds, told by their contents and read piece by piece."""

from __future__ import annotations

from torchrl_rerun.stored.opening import Place, open_stored
from torchrl_rerun.stored.pieces import Piece, Stored, told_together

__all__ = ["Piece", "Place", "Stored", "open_stored", "told_together"]
