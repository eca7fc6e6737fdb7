"""Formats of stored trajectories, recognised by a file's contents and never by its name."""

from __future__ import annotations

import glob
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.paths import is_file, make_absolute
from torchrl_rerun.rrd.files import recordings_in
from torchrl_rerun.rrd.framing import MAGIC
from torchrl_rerun.stored import hdf5, memory_mapped, minari_datasets, npz, recordings, tensordicts
from torchrl_rerun.stored.segments import StoredTrajectories, concatenate, join_names, split_numbers

SUPPORTED = (
    "tensordicts (torch.save, TensorDictRecorder, memory-mapped), TorchRL's replay-buffer dumps, Minari data sets, "
    "HDF5 and .npz files of arrays over time, recordings, and folders of these"
)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_SUFFIXES = (".npz", ".hdf5", ".h5", ".pt", ".pth", ".tdz", ".rrd")
"""Suffixes of files that are read from a folder even if they are damaged, so that damage is an error."""

_UNSUPPORTED = {
    b"\x93NUMPY": "a single NumPy array: save all arrays of a trajectory by name, with np.savez",
    b"PAR1": "Parquet",
    b"ARROW1": "an Arrow file",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"\x1f\x8b": "gzip-compressed data: decompress it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed data: decompress it first",
    b"SQLite format 3": "an SQLite database",
}


Reader = Callable[..., StoredTrajectories]
Place = str | os.PathLike[str]


def open_source(source: Place | Sequence[Place], keys: Mapping[Key, str] | None = None) -> StoredTrajectories:
    """Return the trajectories at a path, or at several paths, one after another.

    Args:
        source: File, folder, glob pattern of recordings, or id of a Minari data set on this machine; or several of these.
        keys: Names of arrays, by the keys that they become.

    Raises:
        FileNotFoundError: The path doesn't exist.
        ValueError: The format isn't supported or the file is damaged; the message names the format and those supported.
        ImportError: An extra is needed.
    """
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not sources:
        raise ValueError("source is empty: pass at least one path to replay")
    paths = [_find_path(each) for each in sources]
    return _open_all([(path, _find_reader(path)) for path in paths], join_names(paths), keys or {})


def _find_path(source: Place) -> Path:
    path = make_absolute(source)
    return path if path.exists() else minari_datasets.find_local(os.fspath(source)) or path


def _open_all(found: Sequence[tuple[Path, Reader]], description: str, keys: Mapping[Key, str]) -> StoredTrajectories:
    """Open several paths, each with its reader, as one."""
    if keys and not any(read in _READERS_OF_NAMED_ARRAYS for _, read in found):
        raise ValueError(
            f"{description} doesn't hold named arrays, so that keys can't be assigned to names: leave keys (--key) out"
        )
    parts: list[StoredTrajectories] = []
    # Recordings are opened together: each may be of another environment, or continue the one before.
    for read, group in itertools.groupby(found, key=lambda each: each[1]):
        paths = [path for path, _ in group]
        if read is recordings.open_recordings:
            parts.append(read(*paths))
        else:
            parts += [read(path, keys) if read in _READERS_OF_NAMED_ARRAYS else read(path) for path in paths]
    return parts[0] if len(parts) == 1 else concatenate(description, parts)


def _find_reader(path: Path) -> Reader:
    """Return the function that opens a path."""
    if glob.has_magic(os.fspath(path)) and not path.exists():
        return recordings.open_recordings
    return _find_file_reader(path) if is_file(path) else _find_folder_reader(path)


class _UnknownError(ValueError):
    """A path of an unsupported format."""


def _find_folder_reader(path: Path) -> Reader:
    read = _find_single_reader(path)
    if read is not None:
        return read
    if any(recordings_in(path)):
        return recordings.open_recordings
    if any(_is_readable(each) for each in _list_entries(path)):
        return _open_folder
    inside = ", ".join(each.name for each in _list_entries(path)[:5]) or "nothing"
    raise _UnknownError(f"{path} is a folder of {inside}, which is not supported. Supported are {SUPPORTED}")


def _find_single_reader(path: Path) -> Reader | None:
    """Return the function that opens a folder of one data set; None if the folder isn't one."""
    if any((folder / memory_mapped.STORAGE).is_file() for folder in (path, path / "storage")):
        return memory_mapped.open_replay_buffer
    if minari_datasets.find_data_folder(path) is not None:
        return minari_datasets.open_minari
    return memory_mapped.open_memory_mapped if _is_tensordict(path / memory_mapped.DESCRIPTION) else None


def _list_entries(folder: Path) -> list[Path]:
    """Return the files and folders in a folder that aren't hidden, in the order of the numbers in their names."""
    return sorted(
        (each for each in folder.iterdir() if not each.name.startswith(".")), key=lambda each: split_numbers(each.name)
    )


def _is_readable(path: Path) -> bool:
    """Return whether a path in a folder is replayed with it. Damaged files of a supported format are."""
    if path.is_dir():
        return _find_single_reader(path) is not None
    try:
        _find_file_reader(path)
    except _UnknownError:
        return path.suffix.lower() in _SUFFIXES
    except ValueError:
        return True
    return True


def _open_folder(path: Path, keys: Mapping[Key, str]) -> StoredTrajectories:
    """Return the trajectories in a folder, one file after another."""
    known = {each: _is_readable(each) for each in _list_entries(path)}
    others = [each.name for each, is_known in known.items() if not is_known]
    if others:
        warn(f"{path}: left out {', '.join(others)}: not a supported format")
    found = [(each, _find_reader(each)) for each, is_known in known.items() if is_known]
    return _open_all(found, f"{path}: {len(found):,} file{'s' * (len(found) > 1)}", keys)


_READERS_OF_NAMED_ARRAYS: tuple[Reader, ...] = (npz.open_npz, hdf5.open_hdf5, _open_folder)


def _is_tensordict(metadata: Path) -> bool:
    try:
        return "_type" in json.loads(metadata.read_text())
    except (OSError, ValueError):
        return False


def _find_file_reader(path: Path) -> Reader:
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(MAGIC):
        return recordings.open_recordings
    if start.startswith(_HDF5):
        return hdf5.open_hdf5
    if start.startswith(b"PK"):
        return _find_archive_reader(path)
    if start.startswith(b"\x80"):  # PyTorch before 1.6 saved plain pickles
        return tensordicts.open_saved
    looks = next((name for magic, name in _UNSUPPORTED.items() if start.startswith(magic)), None)
    if looks is None:
        is_text = start and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start)
        looks = "text" if is_text else "an unknown format" if start else "an empty file"
    raise _UnknownError(f"{path} looks like {looks}, which is not supported. Supported are {SUPPORTED}")


def _find_archive_reader(path: Path) -> Reader:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} looks like a zip file that is damaged or cut off: {error}") from None
    if any(name.endswith("/data.pkl") for name in names):
        return tensordicts.open_saved
    if "meta.json" in names:
        return memory_mapped.open_memory_mapped
    if any(name.endswith(".npy") for name in names):
        return npz.open_npz
    inside = ", ".join(names[:5]) or "nothing"
    raise _UnknownError(f"{path} is a zip file of {inside}, which is not supported. Supported are {SUPPORTED}")
