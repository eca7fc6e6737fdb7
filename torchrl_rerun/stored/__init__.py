"""Trajectories that other programs stored: formats recognised by their contents, read segment by segment, recorded."""
