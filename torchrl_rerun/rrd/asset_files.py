"""Assets in files: those of a whole run are in its file, those of episodes in a folder beside them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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
