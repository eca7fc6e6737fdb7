"""Shapes that episodes share: put into copies of recordings, for viewers that can't be told of them beside the recordings."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rerun.chunk import LazyChunkStream

from torchrl_rerun.rrd.asset_files import shape_chunks
from torchrl_rerun.rrd.file_part import FilePart
from torchrl_rerun.rrd.openable import shapes_of
from torchrl_rerun.rrd.reader import parts_in
from torchrl_rerun.viewing.program import find_program


def with_shapes(files: Iterable[Path]) -> list[Path]:
    """Return recordings that can be drawn by themselves: in place of those whose shapes are in another file copies with these.

    The copies are removed when the program ends.

    Args:
        files: recordings.

    Raises:
        OSError: a copy can't be written.
    """
    found = []
    for file in files:
        shared = [part for parts in shapes_of([file]).values() for part in parts]
        found.append(_copy(file, shared) if shared else file)
    return found


def _copy(file: Path, shared: Iterable[FilePart]) -> Path:
    """Return a copy of a recording with shapes, and with its own layout."""
    folder = Path(tempfile.mkdtemp(prefix="torchrl-rerun-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shapes, copy = folder / "shapes.rrd", folder / file.name
    [part] = parts_in(file)
    LazyChunkStream.from_iter(shape_chunks(shared)).write_rrd(
        shapes, application_id=part.application_id, recording_id=part.recording_id
    )
    command: list[str | Path] = [find_program(), "rrd", "merge", shapes, file, "-o", copy]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    if run.returncode:
        raise OSError(f"the shapes of {file} can't be put into a copy of it: {run.stderr.strip()}")
    return copy
