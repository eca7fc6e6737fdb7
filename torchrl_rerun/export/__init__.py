"""Recordings in the formats of others: Parquet, Minari, LeRobot, mp4."""
