"""Chunks: what is made of blocks, each stream by its kind, before it is written anywhere."""
