"""Read a recording back with Rerun's own reader, slowly and plainly."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import rerun as rr
import torch
from PIL import Image
from rerun.chunk import RrdReader
from tensordict import TensorDictBase, is_leaf_nontensor

CODECS = {"h264": rr.VideoCodec.H264, "av1": rr.VideoCodec.AV1}

BATCH = {"kind": "scalars", "shape": [6], "dtype": "float64"}
"""Schema entry of the statistics over all environments."""


SCENES = ("mujoco", "transforms3d")
"""Kinds of which there are entities to draw below those of the values."""


@dataclass
class Rows:
    """The rows of one entity: the times and the value of each row."""

    times: list[dict[str, Any]] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    samples: list[bytes] = field(default_factory=list)
    keyframes: list[bool] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # of the rows that each stored row stands for

    def along(self, timeline: str) -> list[Any]:
        return [times[timeline] for times in self.times]


@dataclass
class Recorded:
    schema: dict[str, Any]
    entities: dict[str, Rows]
    recording_id: str
    application_id: str
    static: dict[str, dict[str, Any]]
    drawn: dict[str, dict[str, list[Any]]]  # by entity and component, the rows of what is drawn below values

    def __getitem__(self, entity: str) -> Rows:
        return self.entities[entity]

    @property
    def episode(self) -> dict[str, Any]:
        """The properties of a recording of one episode."""
        return {name: values[0] for name, values in self.static["/__properties/episode"].items()}

    def keys(self) -> set[tuple[str, ...]]:
        return {tuple(entry["key"]) for entry in self.schema["keys"]}

    def kind(self, *key: str) -> str:
        return self.entry(*key)["kind"]

    def entry(self, *key: str) -> dict[str, Any]:
        return next(entry for entry in self.schema["keys"] if tuple(entry["key"]) == key)


checks: list[Callable[[Path, Recorded], None]] = []
"""Functions that check each file that is read: see `agreement`."""


def read(path: str | Path) -> Recorded:
    """Read a recording with Rerun's own reader."""
    reader = RrdReader(path)
    (store,) = reader.recordings()
    batches = []
    static: dict[str, dict[str, Any]] = {}
    schema: dict[str, Any] = {}
    for chunk in reader.stream():
        batch = chunk.to_record_batch()
        if chunk.is_static:
            values = {name: batch.column(name)[0].as_py() for name in batch.schema.names if "RowId" not in name}
            static.setdefault(chunk.entity_path, {}).update(values)
            if chunk.entity_path == "/__properties/torchrl_rerun":
                schema = json.loads(values["schema"][0])
        else:
            batches.append((chunk.entity_path, batch))
    paths = {}
    for entry in schema.get("keys", ()):
        for env in schema["envs"]:
            for agent in entry.get("agents") or [None]:
                where = [] if schema["split"] == "episode" else [f"env_{env}"]
                parts = [*where, *(entry.get("place") or entry["key"]), *([agent] if agent else [])]
                paths[rr.new_entity_path(parts)] = entry
    scenes = tuple(f"{where}/" for where, entry in paths.items() if entry["kind"] in SCENES or "scene" in entry)
    entities: dict[str, Rows] = {}
    drawn: dict[str, dict[str, list[Any]]] = {}
    for path_, batch in batches:
        if path_.startswith(scenes):
            for name in batch.schema.names:
                drawn.setdefault(path_, {}).setdefault(name, []).extend(batch.column(name).to_pylist())
            continue
        rows = entities.setdefault(path_, Rows())
        columns = {}
        for name in batch.schema.names:
            if "RowId" not in name:
                column = batch.column(name)
                columns[name] = (column.cast("int64") if name in ("log_time", "sim_time") else column).to_pylist()
                if name == "torchrl_rerun:exact":  # Python's floats make a signaling NaN quiet
                    columns[name] = [row.values.to_numpy() if row.is_valid else None for row in column]
                if name == "Tensor:data":
                    columns["Tensor:dtype"] = [_dtype(row) for row in column]
        timelines = [name for name in columns if ":" not in name]
        for i in range(batch.num_rows):
            rows.times.append({name: columns[name][i] for name in timelines})
            entry = paths.get(path_, BATCH) if path_.startswith("/batch/") else paths[path_]
            rows.counts.append((columns.get("torchrl_rerun:rows") or {i: None})[i] or [1])
            rows.values.append(_value(entry, {n: columns[n][i] for n in columns if ":" in n}, batch))
            rows.states.append(columns["StateChange:state"][i] if "StateChange:state" in columns else None)
            if "VideoStream:sample" in columns:
                rows.samples.append(bytes(columns["VideoStream:sample"][i][0]))
                rows.keyframes += columns["VideoStream:is_keyframe"][i]
    for path_, rows in entities.items():
        if any(count > [1] for count in rows.counts):
            _fill(rows, [other for each, other in entities.items() if _env_of(each, schema) == _env_of(path_, schema)])
    for path_, rows in entities.items():
        order = sorted(range(len(rows.times)), key=lambda i: rows.times[i]["frame"])
        rows.times = [rows.times[i] for i in order]
        rows.values = [rows.values[i] for i in order]
        rows.states = [rows.states[i] for i in order] if any(rows.states) else []
        if rows.samples:
            codec = paths[path_]["image_format"]
            assert static[path_]["VideoStream:codec"] == [CODECS[codec].value]
            assert order == sorted(order), "a decoder needs them in order"
            rows.values = [_picture(paths[path_], picture) for picture in decoded(rows.samples, codec)]
    found = Recorded(schema, entities, store.recording_id, store.application_id, static, drawn)
    for check in checks:
        check(Path(path), found)
    return found


def _env_of(path: str, schema: dict[str, Any]) -> str:
    return path.split("/")[1] if schema["split"] != "episode" else ""


def _fill(rows: Rows, of_env: list[Rows]) -> None:
    """Add the rows that stored ones stand for: at the following steps of the episode, where other keys have rows."""
    frames: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    for other in of_env:
        for times, (count,) in zip(other.times, other.counts, strict=True):
            if count == 1:
                place = times.get("episode", 0), times["episode_step"]
                frames.setdefault(place, {})[times["frame"]] = times
    filled = Rows(counts=[[1]] * sum(count for (count,) in rows.counts))
    for times, value, state, (count,) in zip(rows.times, rows.values, rows.states, rows.counts, strict=True):
        for later in range(count):
            step = times["episode_step"] + later
            there = frames.get((times.get("episode", 0), step), {})
            known = list(there.values())
            assert later == 0 or len(known) < 2, (
                "a row stands for none at a frame that only its number tells from another"
            )
            shifted = {name: times[name] + later for name in ("frame", "step", "episode_step")}
            of_step = times if later == 0 else (known[0] if known else times | shifted) | {"log_time": None}
            filled.times.append(of_step)
            filled.values.append(value)
            filled.states.append(None if later else state)
    rows.times, rows.values, rows.states, rows.counts = filled.times, filled.values, filled.states, filled.counts


def read_folder(folder: str | Path) -> dict[tuple[int, int], Recorded]:
    """Return the recordings of a run folder, by environment and episode."""
    recorded = {}
    for path in sorted(Path(folder).rglob("*.rrd")):
        one = read(path)
        assert (one.episode["env"], one.episode["episode"]) not in recorded
        recorded[one.episode["env"], one.episode["episode"]] = one
    return recorded


def _value(entry: dict[str, Any], row: dict[str, Any], batch: Any) -> Any:
    """Return the value of a row as the recorder got it: a tensor of the recorded dtype and shape, or a string."""
    shape = entry["shape"][1:] if entry.get("agents") else entry["shape"]
    kind = entry["kind"]
    if row.get("TextDocument:text") is not None:
        return _told(
            *(row.get(name) for name in ("TextDocument:text", "TextDocument:media_type", "torchrl_rerun:type"))
        )
    if entry["dtype"] == "object" and row.get("Tensor:data") is not None:
        return _array(row["Tensor:data"][0], (row.get("torchrl_rerun:type") or [row["Tensor:dtype"]])[0])
    if "VideoStream:sample" in row:
        return None  # until all samples are there
    if kind in ("image", "depth", "segmentation") and row.get("Tensor:data") is None:
        if "EncodedImage:blob" in row:
            picture = np.asarray(Image.open(io.BytesIO(bytes(row["EncodedImage:blob"][0]))))
        else:
            archetype = {"image": "Image", "depth": "DepthImage", "segmentation": "SegmentationImage"}[kind]
            image_format = row[f"{archetype}:format"][0]
            dtype = rr.ChannelDatatype(image_format["channel_datatype"]).to_np_dtype()
            depth = {None: 1, 1: 1, 2: 3, 3: 4}[image_format["color_model"]]
            picture = np.array(row[f"{archetype}:buffer"][0], np.uint8).view(dtype)
            if row.get("torchrl_rerun:exact") is not None:
                picture = np.array(row["torchrl_rerun:exact"], entry["dtype"])
            picture = picture.reshape(image_format["height"], image_format["width"], depth)
            if entry["dtype"] == "bool":
                picture = picture.astype(bool)
        if entry["dtype"] == "object" or entry.get("varies"):
            if picture.ndim == 2:
                picture = picture[..., None]
            moved = {"CHW": np.moveaxis(picture, -1, 0), "HW": picture[..., 0], "HWC": picture}[entry["channels"]]
            return moved if entry["dtype"] == "object" else torch.tensor(np.ascontiguousarray(moved))
        return _picture(entry, picture)
    if kind == "tensor" or row.get("Tensor:data") is not None:
        data = (row.get("BarChart:values") or row["Tensor:data"])[0]
        is_complex = entry["dtype"].startswith("complex")
        found = data["shape"][:-1] if is_complex else data["shape"]
        assert entry.get("varies") or list(found) == list(shape)
        flat, shape = data["buffer"], found
        if is_complex:
            flat = [complex(*pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
    else:
        flat = row.get("torchrl_rerun:exact")
        flat = row["Scalars:scalars"] if flat is None else flat
    dtype = getattr(torch, entry["dtype"])
    if dtype == torch.bfloat16:  # the upper half of a float32; a conversion would change the bits of NaN
        return (
            (torch.tensor(flat, dtype=torch.float32).view(torch.int32) >> 16).to(torch.int16).view(dtype).reshape(shape)
        )
    if not (dtype.is_floating_point or dtype.is_complex):
        flat = [int(number) for number in flat]  # torch makes no uint64 of floats
    return torch.tensor(flat, dtype=dtype).reshape(shape)


def _told(text: list[str], media_type: list[str] | None, type_name: list[str] | None) -> Any:
    """Return the value that a text encodes."""
    value = text[0]
    if media_type == ["application/json"]:
        value = json.loads(value)
    elif media_type == ["application/octet-stream"]:
        value = base64.b64decode(value)
    return value if type_name is None else getattr(np, type_name[0])(value)


def _dtype(row: Any) -> str | None:
    """Return NumPy's name of the dtype in which one row of a column of tensors holds its numbers."""
    if not row.is_valid:
        return None
    buffer = row[0]["buffer"]
    return np.dtype(buffer.type.field(buffer.type_code).type.value_type.to_pandas_dtype()).name


def _array(data: dict[str, Any], type_name: str) -> Any:
    if type_name.startswith("complex"):
        pairs = np.array(data["buffer"]).reshape(-1, 2)
        return (pairs[:, 0] + 1j * pairs[:, 1]).astype(type_name).reshape(data["shape"][:-1])
    return np.array(data["buffer"]).reshape(data["shape"]).astype(type_name)


def _picture(entry: dict[str, Any], picture: Any) -> torch.Tensor:
    """Return a picture ``[height, width, ...]`` in the shape that was recorded. Video is padded to even sizes."""
    shape = entry["shape"][1:] if entry.get("agents") else entry["shape"]
    channels, stack = entry["channels"], entry.get("stack", 1)
    frame = shape[1:] if len(shape) == 4 else shape  # otherwise frames are along the channels
    height, width = frame[1:] if channels == "CHW" else frame[:2]
    depth = {"CHW": frame[0], "HWC": frame[-1], "HW": 1}[channels] // (1 if len(shape) == 4 else stack)
    beside = 1 if entry.get("newest") else stack
    picture = picture.reshape(*picture.shape[:2], -1)[:height, : width * beside, :depth]
    frames = picture.reshape(height, beside, width, depth).swapaxes(0, 1)  # a grey video is decoded with equal channels
    if channels == "CHW":
        frames = np.moveaxis(frames, -1, 1)
    elif len(shape) == 3:  # next to one another along the last dimension
        frames = np.moveaxis(frames, 0, 2)
    found = torch.tensor(np.ascontiguousarray(frames))
    return found.reshape(-1) if entry.get("newest") else found.reshape(shape)


def decoded(samples: list[bytes], codec: str) -> list[Any]:
    decoder = av.CodecContext.create({"av1": "libdav1d"}.get(codec, codec), "r")
    frames = [frame for sample in samples for frame in decoder.decode(av.Packet(sample))] + decoder.decode(None)
    return [frame.to_ndarray(format="rgb24") for frame in frames]


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal bit for bit: dtype, shape and NaN included."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return is_equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def is_equal(a: Any, b: Any) -> bool:
    """Return whether two values are equal with equal types throughout, floats and arrays bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(is_equal, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(is_equal, a.values(), b.values()))
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return np.float64(a).tobytes() == np.float64(b).tobytes() if isinstance(a, float) else a == b


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().contiguous()
    if not tensor.numel():  # its memory may have any layout
        return torch.zeros(0, dtype=torch.uint8)
    return tensor if tensor.dtype == torch.bool else tensor.reshape(-1).view(torch.uint8)


def hold_the_same(found: TensorDictBase, wanted: TensorDictBase) -> bool:
    """Return True if two rollouts have equal keys and, bit for bit, equal values, objects included. Else raise."""
    keys = [
        set(each.keys(include_nested=True, leaves_only=True, is_leaf=is_leaf_nontensor)) for each in (found, wanted)
    ]
    assert keys[0] == keys[1], keys[0] ^ keys[1]
    for key in keys[0]:
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
            assert same(a, b), (key, a, b)
        else:
            assert is_equal(a.tolist(), b.tolist()), (key, a.tolist(), b.tolist())
    return True


def assert_recorded(recorded, key: str, observe, steps=5, *, envs=None, missing=(), path=None) -> None:
    """Assert that each environment has a row for each value of a key, resets included, equal bit for bit."""
    times = [t for t in range(steps + 1) if t not in missing]
    for env in range(envs or 1):
        rows = recorded[f"/env_{env}/{path or key}"]
        assert rows.along("frame") == times
        for t, value in zip(times, rows.values, strict=True):
            wanted = observe(t)[key] if envs is None else observe(t)[key][env]
            assert same(value, wanted), (key, t, value, wanted)


def assert_rows(rows: Rows, wanted: dict[int, Any]) -> None:
    """Assert that an entity has exactly the rows of ``wanted``, by frame, with equal types, dtypes, shapes and bits."""
    assert rows.along("frame") == list(wanted)
    for frame, found in zip(wanted, rows.values, strict=True):
        is_tensor = isinstance(wanted[frame], torch.Tensor)
        assert (same if is_tensor else is_equal)(found, wanted[frame]), (frame, found, wanted[frame])


def frames(path, entity="/env_0/x"):
    return read(path)[entity].along("frame")


def frames_so_far(path, entity="/env_0/x", timeline="frame") -> list[int]:
    """Return the frames (or other times) of an entity in a growing file. Empty if the file can't be read yet."""
    found: list[int] = []
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file without a footer is "legacy"
        for chunk in RrdReader(path).stream().filter(content=entity, is_static=False):
            found += chunk.to_record_batch().column(timeline).to_pylist()
    return found
