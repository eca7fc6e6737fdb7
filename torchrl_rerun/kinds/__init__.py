"""Kinds of data: how values are described, and what of theirs is stored, shown and read back; the schema of a recording."""
