"""Scenes: what simulators know of the bodies of a robot and where they are, recorded as data and shown in 3D."""
