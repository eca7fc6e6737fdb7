"""Replaying: what was stored elsewhere, recorded as if it happened again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
from tensordict.utils import NestedKey

from torchrl_rerun import specs
from torchrl_rerun.continuing import stepped_in
from torchrl_rerun.recorder import RerunRecorder
from torchrl_rerun.rerendering import MakeEnv, Parting, Rerendering
from torchrl_rerun.stored import Piece, Stored, open_stored
from torchrl_rerun.streams import Key
from torchrl_rerun.warning import warn

Progress = Callable[[Iterable[Any], int | None], Iterable[Any]]


@dataclass(frozen=True)
class Replayed:
    """What became of a replay.

    Attributes:
        what: what was stored.
        path: the file or the folder that was recorded.
        steps: how many, of all environments together.
        episodes: how many, of all environments together.
        envs: how many environments.
        arrays: of named arrays: the keys that they became, by their names; those that were left out aren't there.
        partings: where ``render`` found that its environment does otherwise than what is stored.
    """

    what: str
    path: Path | None
    steps: int
    episodes: int
    envs: int
    arrays: Mapping[str, Key]
    partings: tuple[Parting, ...] = ()


def replay(
    source: str | os.PathLike[str],
    sink: str | os.PathLike[str],
    *,
    keys: Mapping[NestedKey, str] | None = None,
    render: str | MakeEnv | None = None,
    seed: int | None = None,
    progress: Progress = lambda moments, _: moments,
    **options: Any,
) -> Replayed:
    """Record trajectories that are stored elsewhere.

    What is stored is recorded as it is; memory is bounded however much it is, but by an episode of a recording or of a
    Minari data set. A pickle that would execute anything is refused.

    Args:
        source: what ``torch.save`` made of a tensordict (``TensorDictRecorder`` does); a memory-mapped tensordict; what a
            replay buffer of TorchRL dumped; a Minari data set, by its path or, on this machine, its id; arrays over time
            in an HDF5 or ``.npz`` file; or recordings. Its contents say which, not its name.
        sink: as of :class:`RerunRecorder`.
        keys: of arrays: names that aren't usual, by the keys that they are to be (``{"observation": "img"}``).
        render: render each moment in this environment: the id of one that is registered with gymnasium, or a function
            that makes one with ``render_mode="rgb_array"``. Its observations and rewards are compared with the stored
            ones; where they part, the pictures are black for the rest of the episode.
        seed: with ``render``: replay from this seed and the stored actions. It is what ``env.set_seed`` was given, of a
            batch, too. Environments that can be set to what was observed need none.
        progress: what the moments are passed through, with their number.
        options: any other of :class:`RerunRecorder`.

    Raises:
        FileNotFoundError: there is nothing.
        FileExistsError: there is something at ``sink``, and no ``overwrite=True``.
        ValueError: it can't be read, and what it looks like; ``keys`` names an array that isn't there, or there are no named
            arrays; ``render`` doesn't fit it, or there is a ``seed`` without it.
        ImportError: an extra is needed.
        RecordingError: it can't be written.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from torchrl_rerun import load, replay
        >>> folder = tempfile.mkdtemp()
        >>> ends = np.arange(20) % 10 == 9
        >>> np.savez(f"{folder}/old.npz", obs=np.random.rand(20, 3), actions=np.arange(20), terminals=ends)
        >>> replay(f"{folder}/old.npz", f"{folder}/old.rrd").episodes
        2
        >>> load(f"{folder}/old.rrd")[1][("action",)].tolist()
        [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    """
    if seed is not None and render is None:
        raise ValueError(f"seed={seed} is what an environment is reset with: it needs render=...")
    stored = open_stored(source, {specs.as_key(key): name for key, name in (keys or {}).items()})
    if stored.arrays and not {key[0] for key in stored.arrays.values()} & {"action", "reward"}:
        warn(f"{source}: no array is known to be actions or rewards: say which is, as in --key action=NAME")
    recorder = RerunRecorder(sink, **_options(stored, render, options))
    again = None if render is None else Rerendering(_maker(render), seed)
    pieces = stored.pieces() if again is None else again.rendered(stored.pieces())
    envs = steps = 0
    try:
        for piece in _counted(pieces, stored.moments, progress):
            recorder.log_rollout(piece.tensordict, begins=list(piece.begins))
            envs, stepped = len(piece.begins), stepped_in(piece.tensordict)
            steps += piece.tensordict.numel() if stepped is None else int(stepped.sum())
    finally:
        recorder.close()
        if again is not None:
            again.close()
    stats = recorder.stats()
    partings = () if again is None else tuple(again.partings)
    if again is not None and partings and again.needs_no_seed:
        warn(f"it parts from what is stored with seed {seed}; leave the seed out: it can be set to what was observed")
    return Replayed(stored.what, recorder.path, steps, int(stats["episodes"]), envs, stored.arrays, partings)


def _counted(pieces: Iterator[Piece], moments: int, progress: Progress) -> Iterator[Piece]:
    """Pieces, of which each counts for its moments."""

    def one_by_one() -> Iterator[Piece | None]:
        for piece in pieces:
            yield piece
            for _ in range(piece.tensordict.batch_size[-1] - 1):
                yield None

    yield from (piece for piece in progress(one_by_one(), moments) if piece is not None)


def _options(stored: Stored, render: str | MakeEnv | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of what is stored, unless it is said otherwise."""
    name = render if isinstance(render, str) else stored.env_name
    known: dict[str, Any] = {"application_id": name, "fps": stored.fps or specs.registered_fps(name)}
    by_key = {"kinds": stored.kinds, "names": stored.names, "image_format": stored.image_format}
    for option, values in by_key.items():
        if isinstance(given.get(option, {}), Mapping) and values:
            known[option] = {**values, **{specs.as_key(key): value for key, value in given.get(option, {}).items()}}
    return {
        **known,
        **{option: value for option, value in given.items() if option not in known or option not in by_key},
    }


def _maker(render: str | MakeEnv) -> MakeEnv:
    if not isinstance(render, str):
        return render
    try:
        gymnasium.spec(render)
    except gymnasium.error.Error as error:
        raise ValueError(f"{render!r} can't be rendered: {error}") from None
    return lambda: gymnasium.make(render, render_mode="rgb_array", disable_env_checker=True)
