"""The layout that the viewer opens with."""
