"""Assets in files: those of a whole run are in its file, those of episodes in a folder beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rerun.chunk import Chunk

from torchrl_rerun.kinds.assets import ASSETS, remember_chunk
from torchrl_rerun.rrd.file_part import FilePart

FOLDER = ".assets"
"""Name of the folder of assets in a folder of episodes. It is hidden: it holds no episode."""


def asset_files(folder: Path) -> list[Path]:
    """Return the files of assets in a folder of episodes."""
    return sorted((folder / FOLDER).glob("*.rrd"))


def remember_assets(parts: Iterable[FilePart]) -> None:
    """Keep the assets of recordings in this process.

    Raises:
        OSError: a file can't be read, or is gone.
        ValueError: a file is damaged.
    """
    for part in parts:
        for path in part.index.paths:
            if path.startswith(f"{ASSETS}/"):
                for batch in part.static_chunks(path):
                    remember_chunk(batch)


def remember_assets_beside(folder: Path, parts_in: Callable[[Path], list[FilePart]]) -> None:
    """Keep the assets of a folder of episodes in this process. What is read lacks nothing but its drawing without them.

    Args:
        folder: the folder.
        parts_in: returns the parts in a file.
    """
    for file in asset_files(folder):
        with contextlib.suppress(OSError, ValueError):  # of another run, perhaps
            remember_assets(parts_in(file))


def shape_chunks(parts: Iterable[FilePart]) -> Iterator[Chunk]:
    """Yield the chunks of shapes that episodes share, which a viewer needs to draw any of them.

    Args:
        parts: what the files of assets hold.
    """
    for part in parts:
        yield from (chunk for chunk in part.all_chunks() if not _is_asset(chunk.entity_path))


def has_shapes(part: FilePart) -> bool:
    """Return whether a part of a file of assets has shapes."""
    return not all(map(_is_asset, part.index.paths))


def _is_asset(path: str) -> bool:
    return path.startswith((f"{ASSETS}/", "/__properties"))
