"""Blocks: what passes from the environment's thread to the writer's, and which rows an environment has in it."""
