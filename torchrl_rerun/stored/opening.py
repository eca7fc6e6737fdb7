"""Opening: what a path holds, told by its contents and not by its name."""

from __future__ import annotations

import glob
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.streams import Key
from torchrl_rerun.paths import absolute, is_file
from torchrl_rerun.rrd.files import recordings_in
from torchrl_rerun.rrd.framing import MAGIC
from torchrl_rerun.stored import hdf5, memory_mapped, minari_sets, npz, recordings, tensordicts
from torchrl_rerun.stored.pieces import Stored, natural, one_after_another, told_together

SUPPORTED = (
    "tensordicts (torch.save, TensorDictRecorder, memory-mapped), TorchRL's replay-buffer dumps, Minari data sets, "
    "HDF5 and .npz files of arrays over time, recordings, and folders of these"
)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_SUFFIXES = (".npz", ".hdf5", ".h5", ".pt", ".pth", ".tdz", ".rrd")
"""What in a folder is to be read, whatever is left of it."""

_OTHERS = {
    b"\x93NUMPY": "one NumPy array: save all of a trajectory's by name, with np.savez",
    b"PAR1": "Parquet",
    b"ARROW1": "an Arrow file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x1f\x8b": "something compressed with gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "something compressed with zstd: unpack it",
    b"SQLite format 3": "an SQLite database",
}


Reader = Callable[..., Stored]
Place = str | os.PathLike[str]


def open_stored(source: Place | Sequence[Place], keys: Mapping[Key, str] | None = None) -> Stored:
    """Return what is stored at a path, or at several, one after the other.

    Args:
        source: a file, a folder, a pattern of recordings, or the id of a Minari data set on this machine; or several.
        keys: names of arrays, by the keys that they are to be.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it can't be read; says what it looks like, and what can be.
        ImportError: an extra is needed.
    """
    sources = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not sources:
        raise ValueError("there is no source to replay: pass a path, or several")
    paths = [_path_of(each) for each in sources]
    return _opened([(path, _reader(path)) for path in paths], told_together(paths), keys or {})


def _path_of(source: Place) -> Path:
    path = absolute(source)
    return path if path.exists() else minari_sets.local(os.fspath(source)) or path


def _opened(found: Sequence[tuple[Path, Reader]], what: str, keys: Mapping[Key, str]) -> Stored:
    """Open what is stored at several paths, with what reads each of them."""
    if keys and not any(read in _WITH_NAMES for _, read in found):
        raise ValueError(f"{what} doesn't hold named arrays: what its keys are called can't be said")
    parts: list[Stored] = []
    # Recordings belong together: each may be of another environment, or a part of the one before.
    for read, group in itertools.groupby(found, key=lambda each: each[1]):
        paths = [path for path, _ in group]
        if read is recordings.recordings:
            parts.append(read(*paths))
        else:
            parts += [read(path, keys) if read in _WITH_NAMES else read(path) for path in paths]
    return parts[0] if len(parts) == 1 else one_after_another(what, parts)


def _reader(path: Path) -> Reader:
    """Return what reads a path."""
    if glob.has_magic(os.fspath(path)) and not path.exists():
        return recordings.recordings
    return _reader_of_file(path) if is_file(path) else _reader_of_folder(path)


class _UnknownError(ValueError):
    """Nothing that is known is at a path."""


def _reader_of_folder(path: Path) -> Reader:
    read = _reader_of_one(path)
    if read is not None:
        return read
    if any(recordings_in(path)):
        return recordings.recordings
    if any(_is_known(each) for each in _inside(path)):
        return _folder
    inside = ", ".join(each.name for each in _inside(path)[:5]) or "nothing"
    raise _UnknownError(f"{path} is a folder of {inside}, which isn't known here. What can be read: {SUPPORTED}")


def _reader_of_one(path: Path) -> Reader | None:
    """Return what reads a folder that is one thing; None if it isn't."""
    if any((folder / memory_mapped.STORAGE).is_file() for folder in (path, path / "storage")):
        return memory_mapped.replay_buffer
    if minari_sets.data_folder(path) is not None:
        return minari_sets.minari_set
    return memory_mapped.memory_mapped if _is_tensordict(path / memory_mapped.DESCRIPTION) else None


def _inside(folder: Path) -> list[Path]:
    """Return what is in a folder, but for what is hidden, in the order of the numbers in the names."""
    return sorted(
        (each for each in folder.iterdir() if not each.name.startswith(".")), key=lambda each: natural(each.name)
    )


def _is_known(path: Path) -> bool:
    """Tell whether a path in a folder is to be replayed with it. A file that is damaged is."""
    if path.is_dir():
        return _reader_of_one(path) is not None
    try:
        _reader_of_file(path)
    except _UnknownError:
        return path.suffix.lower() in _SUFFIXES
    except ValueError:
        return True
    return True


def _folder(path: Path, keys: Mapping[Key, str]) -> Stored:
    """Return what is in a folder, one file after the other."""
    known = {each: _is_known(each) for each in _inside(path)}
    others = [each.name for each, is_known in known.items() if not is_known]
    if others:
        warn(f"{path}: left out {', '.join(others)}: not known here")
    found = [(each, _reader(each)) for each, is_known in known.items() if is_known]
    return _opened(found, f"{path}: {len(found):,} file{'s' * (len(found) > 1)}", keys)


_WITH_NAMES: tuple[Reader, ...] = (npz.npz, hdf5.hdf5, _folder)


def _is_tensordict(metadata: Path) -> bool:
    try:
        return "_type" in json.loads(metadata.read_text())
    except (OSError, ValueError):
        return False


def _reader_of_file(path: Path) -> Reader:
    with path.open("rb") as file:
        begins = file.read(16)
    if begins.startswith(MAGIC):
        return recordings.recordings
    if begins.startswith(_HDF5):
        return hdf5.hdf5
    if begins.startswith(b"PK"):
        return _reader_of_archive(path)
    if begins.startswith(b"\x80"):  # a pickle, as PyTorch before 1.6 saved
        return tensordicts.saved
    looks = next((name for magic, name in _OTHERS.items() if begins.startswith(magic)), None)
    if looks is None:
        is_text = begins and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in begins)
        looks = "text" if is_text else "something unknown" if begins else "an empty file"
    raise _UnknownError(f"{path} looks like {looks}, which can't be read. What can be: {SUPPORTED}")


def _reader_of_archive(path: Path) -> Reader:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} looks like a zip file that is damaged or cut off: {error}") from None
    if any(name.endswith("/data.pkl") for name in names):
        return tensordicts.saved
    if "meta.json" in names:
        return memory_mapped.memory_mapped
    if any(name.endswith(".npy") for name in names):
        return npz.npz
    inside = ", ".join(names[:5]) or "nothing"
    raise _UnknownError(f"{path} is a zip file of {inside}, which isn't known here. What can be read: {SUPPORTED}")
