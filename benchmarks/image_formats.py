"""Cost of each image format, in bytes and in processor time, and its loss of quality.

Pictures of random actions, in those environments that are installed and can render here, are recorded in each format and read
back.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import av
import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rerun.chunk import RrdReader
from tensordict import TensorDict

from benchmarks.report import FORMATS_OF, Detail, Effort, Report
from torchrl_rerun import RerunRecorder
from torchrl_rerun.blocks.env_rows import EnvRows
from torchrl_rerun.blocks.memory import MaxAge
from torchrl_rerun.chunks import encoding
from torchrl_rerun.chunks.chunks import ChunkFactory
from torchrl_rerun.chunks.losses import Losses
from torchrl_rerun.kinds import image
from torchrl_rerun.kinds.describe import describe
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.picture import ImageFormat
from torchrl_rerun.kinds.timelines import TIMELINES

Stack = npt.NDArray[np.uint8]
"""Stack, ``[n, height, width, depth]``."""


class Format(NamedTuple):
    """Format to measure.

    Attributes:
        name: Name in the table.
        image_format, quality: Options of the images' kind.
        decoder: Name of FFmpeg's decoder of a video.
    """

    name: str
    image_format: ImageFormat
    quality: int = 90
    decoder: str = ""


FORMATS = (
    Format("raw", "raw"),
    Format("png", "png"),
    Format("jpeg", "jpeg"),
    Format("jpeg 75", "jpeg", 75),
    Format("h264", "h264", decoder="h264"),
    Format("av1", "av1", decoder="libdav1d"),
)


def measure(effort: Effort) -> Report:
    """Measure 300 frames of each environment (quick: 60): bytes and processor time for each frame, and quality."""
    details: list[Detail] = []
    for name, make in SOURCES.items():
        figure = f"{FORMATS_OF}{name}"
        try:
            pictures = make(effort.of(300, 60))
        except Exception as error:  # not installed, or not renderable here
            details.append(Detail(figure, "not measured", str(error).partition("\n")[0]))
            continue
        figure += " of " + "x".join(map(str, pictures.shape[1:]))
        details += [_measured(figure, each, pictures) for each in FORMATS]
    return Report((), tuple(details))


def _measured(figure: str, each: Format, pictures: Stack) -> Detail:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.rrd")
        kinds = {"pixels": image.Image(each.image_format, each.quality)}
        with RerunRecorder(path, in_keys=["pixels"], blueprint=False, kinds=kinds) as recorder:
            recorder.log_rollout(_rollout(pictures))
        size = path.stat().st_size
        back = np.stack([*_read(path, each, pictures.shape[1:])])
    error = np.square(back.astype(np.float32) - pictures).mean()
    numbers = {"frame_bytes": size / len(pictures), "frame_s": _seconds(each, pictures) / len(pictures)}
    if error:
        numbers["psnr_db"] = float(10 * np.log10(255**2 / error))
    quality = f"{numbers['psnr_db']:.1f} dB" if error else "exact"
    measured = f"{numbers['frame_bytes'] / 1e3:,.2f} kB, {numbers['frame_s'] * 1e3:.2f} ms, {quality}"
    return Detail(figure, each.name, measured, numbers)


def _rollout(pictures: Stack) -> TensorDict:
    """Return a stored rollout of one environment that observed these pictures."""
    observed, steps = torch.from_numpy(pictures), len(pictures) - 1
    outcome = {"reward": torch.zeros(steps, 1), "done": torch.zeros(steps, 1, dtype=torch.bool)}
    following = TensorDict({"pixels": observed[1:], **outcome}, [steps])
    return TensorDict({"pixels": observed[:-1], "next": following}, [steps])


def _seconds(each: Format, pictures: Stack) -> float:
    """Return the processor time of all threads from pictures in memory to chunks. Other programs influence it."""
    kind = image.Image(each.image_format, each.quality)
    stream = describe(Leaf(("pixels",), "uint8", pictures.shape[1:]), {("pixels",): kind})
    positions = np.zeros((len(pictures), len(TIMELINES)), np.int64)
    times = []
    for _ in range(3):
        encoded = encoding.Encoding(30.0, Losses(), max_age=MaxAge.always(math.inf))
        factory = ChunkFactory(30.0, encoded, Losses())
        start = time.process_time()
        chunks = [*factory.chunks(EnvRows(0, positions, [(stream, pictures)]), 0), *encoded.flush()]
        times.append(time.process_time() - start)
        assert chunks, "there are pictures"
    return min(times)


def _read(path: Path, each: Format, shape: tuple[int, ...]) -> Iterator[Stack]:
    """Yield the pictures of a recording."""
    decoder = av.CodecContext.create(each.decoder, "r") if each.decoder else None
    assert decoder is None or isinstance(decoder, av.VideoCodecContext), "it decodes video"
    component = "VideoStream:sample" if decoder else "Image:buffer" if each.name == "raw" else "EncodedImage:blob"
    for chunk in RrdReader(path).stream().filter(content="/env_0/pixels", is_static=False):
        for row in chunk.to_record_batch().column(component):
            data = row.values.flatten().to_numpy(zero_copy_only=False).tobytes()
            if decoder is not None:
                yield from (_cut(frame, shape) for frame in decoder.decode(av.Packet(data)))
            elif each.name == "raw":
                yield np.frombuffer(data, np.uint8).reshape(shape)
            else:
                yield np.asarray(Image.open(io.BytesIO(data))).reshape(shape)
    if decoder is not None:
        yield from (_cut(frame, shape) for frame in decoder.decode(None))


def _cut(frame: av.VideoFrame, shape: tuple[int, ...]) -> Stack:
    picture = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return picture[: shape[0], : shape[1], : shape[2]]


# --- pictures ---


def _rendered(name: str, **options: Any) -> Callable[[int], Stack]:
    def make(frames: int) -> Stack:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")
        if name.startswith("ALE/"):
            import ale_py  # noqa: PLC0415 - an extra

            gymnasium.register_envs(ale_py)
        env = gymnasium.make(name, render_mode="rgb_array", **options)
        env.action_space.seed(0)
        env.reset(seed=0)
        pictures: list[Any] = [env.render()]
        while len(pictures) < frames:
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            pictures.append(env.render())
            if terminated or truncated:
                env.reset()
        env.close()
        return np.stack(pictures)

    return make


def _small_and_grey(frames: int) -> Stack:
    """Return small grey pictures, as Atari agents observe them: each pixel is a mean of rendered ones."""
    pictures = _rendered("ALE/MsPacman-v5")(frames).mean(axis=-1)[:, 21:189, :]  # 168 x 160
    halves = pictures.reshape(len(pictures), 84, 2, 80, 2).mean(axis=(2, 4))
    return np.pad(halves, ((0, 0), (0, 0), (2, 2))).astype(np.uint8)[..., None]


SOURCES: Mapping[str, Callable[[int], Stack]] = {
    "CartPole": _rendered("CartPole-v1"),
    "Hopper": _rendered("Hopper-v5"),
    "MsPacman": _rendered("ALE/MsPacman-v5"),
    "MsPacman, grey": _small_and_grey,
}
