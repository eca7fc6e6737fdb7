"""Recordings read back as tensordicts, datasets and tables."""
