"""Opening: what a path holds, told by its contents and not by its name."""

from __future__ import annotations

import glob
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from torchrl_rerun.framing import MAGIC
from torchrl_rerun.stored import arrays, minari_sets, recordings, tensordicts
from torchrl_rerun.stored.pieces import Stored
from torchrl_rerun.streams import Key

SUPPORTED = (
    "tensordicts (torch.save, TensorDictRecorder, memory-mapped), TorchRL's replay-buffer dumps, Minari data sets, "
    "HDF5 and .npz files of arrays over time, and recordings"
)
_HDF5 = b"\x89HDF\r\n\x1a\n"
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


def open_stored(source: str | os.PathLike[str], keys: Mapping[Key, str] | None = None) -> Stored:
    """What is stored at a path.

    Args:
        source: a file, a folder, a pattern of recordings, or the id of a Minari data set on this machine.
        keys: names of arrays, by the keys that they are to be.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it can't be read; says what it looks like, and what can be.
        ImportError: an extra is needed.
    """
    path = Path(source)
    if not path.exists():
        path = minari_sets.local(os.fspath(source)) or path
    read = _reader(path)
    if read in _WITH_NAMES:
        return read(path, keys or {})
    if keys:
        raise ValueError(f"{path} doesn't hold named arrays: what its keys are called can't be said")
    return read(path)


_WITH_NAMES: tuple[Callable[..., Stored], ...] = (arrays.npz, arrays.hdf5)


def _reader(path: Path) -> Callable[..., Stored]:
    """What reads it."""
    if path.is_dir():
        return _reader_of_folder(path)
    if path.exists():
        return _reader_of_file(path)
    if glob.has_magic(os.fspath(path)):
        return recordings.recordings
    raise FileNotFoundError(f"{path} doesn't exist")


def _reader_of_folder(path: Path) -> Callable[..., Stored]:
    if any((folder / tensordicts.STORAGE).is_file() for folder in (path, path / "storage")):
        return tensordicts.replay_buffer
    if minari_sets.data_folder(path) is not None:
        return minari_sets.minari_set
    if _is_tensordict(path / "meta.json"):
        return tensordicts.memory_mapped
    if any(path.rglob("*.rrd")):
        return recordings.recordings
    inside = ", ".join(sorted(each.name for each in path.iterdir())[:5]) or "nothing"
    raise ValueError(f"{path} is a folder of {inside}, which isn't known here. What can be read: {SUPPORTED}")


def _is_tensordict(metadata: Path) -> bool:
    try:
        return "_type" in json.loads(metadata.read_text())
    except (OSError, ValueError):
        return False


def _reader_of_file(path: Path) -> Callable[..., Stored]:
    with path.open("rb") as file:
        begins = file.read(16)
    if begins.startswith(MAGIC):
        return recordings.recordings
    if begins.startswith(_HDF5):
        return arrays.hdf5
    if begins.startswith(b"PK"):
        return _reader_of_archive(path)
    if begins.startswith(b"\x80"):  # a pickle, as PyTorch before 1.6 saved
        return tensordicts.saved
    looks = next((name for magic, name in _OTHERS.items() if begins.startswith(magic)), None)
    if looks is None:
        is_text = begins and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in begins)
        looks = "text" if is_text else "something unknown" if begins else "an empty file"
    raise ValueError(f"{path} looks like {looks}, which can't be read. What can be: {SUPPORTED}")


def _reader_of_archive(path: Path) -> Callable[..., Stored]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} looks like a zip file that is damaged or cut off: {error}") from None
    if any(name.endswith("/data.pkl") for name in names):
        return tensordicts.saved
    if "meta.json" in names:
        return tensordicts.memory_mapped
    if any(name.endswith(".npy") for name in names):
        return arrays.npz
    inside = ", ".join(names[:5]) or "nothing"
    raise ValueError(f"{path} is a zip file of {inside}, which isn't known here. What can be read: {SUPPORTED}")
