"""Replaying: what was stored elsewhere, recorded as if it happened again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
from tensordict.utils import NestedKey

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.streams import Key, as_key
from torchrl_rerun.recording.session import path_of
from torchrl_rerun.stored import Piece, Place, Stored, open_stored, told_together
from torchrl_rerun.stored.aside import replaced
from torchrl_rerun.stored.rerendering import MakeEnv, Parting, Rerendering
from torchrl_rerun.transform import environments
from torchrl_rerun.transform.recorder import RerunRecorder, Sinks

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
    source: Place | Sequence[Place],
    sink: Sinks | Sequence[Sinks],
    *,
    keys: Mapping[NestedKey, str] | None = None,
    render: str | MakeEnv | None = None,
    seed: int | None = None,
    progress: Progress = lambda moments, _: moments,
    **options: Any,
) -> Replayed:
    """Record trajectories that are stored elsewhere.

    Stored data is recorded as it is. Memory is bounded however much it is, except by an episode of a recording or of a
    Minari data set, and by a trajectory of a padded batch. A source is never written to. A pickle that would execute
    anything is refused.

    A recording is written aside and put in place when it is whole: if anything fails, what was there before stays, and
    nothing else does.

    Args:
        source: what ``torch.save`` made of a tensordict (``TensorDictRecorder`` does) or of a list of them; a
            memory-mapped tensordict; what a replay buffer of TorchRL dumped; a Minari data set, by its path or, on this
            machine, its id; arrays over time in an HDF5 or ``.npz`` file; recordings; or a folder of these. Its contents
            say which, not its name. Several sources follow one another, each with new episodes.
        sink: the sink of a :class:`RerunRecorder`.
        keys: of arrays: names that aren't usual, by the keys that they are to be (``{"observation": "img"}``).
        render: render each moment in this environment: the id of one that is registered with gymnasium, or a function
            that makes one with ``render_mode="rgb_array"``. Its observations and rewards are compared with the stored
            ones; where they part, the pictures are black for the rest of the episode.
        seed: with ``render``: replay from this seed and the stored actions. It is what ``env.set_seed`` was given, of a
            batch, too. Environments that can be set to what was observed need none.
        progress: what the moments are passed through, with their number.
        options: any other of :class:`RerunRecorder`.

    Raises:
        FileNotFoundError: there is no source.
        FileExistsError: there is something at ``sink``, and no ``overwrite=True``.
        ValueError: a source can't be read, or holds no steps; the message names the file and, if it is one of several, the
            array. Or ``keys`` names an array that isn't there, ``render`` doesn't fit, or a ``seed`` comes without it.
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
    checked = RerunRecorder(sink, **options)
    stored = open_stored(source, {as_key(key): name for key, name in (keys or {}).items()})
    _warn_of_what_is_missing(stored)
    options = _options(stored, render, options)
    again = None if render is None else Rerendering(_maker(render), seed)
    if checked.path is None or options.get("resume"):  # what is there stays as it is
        return _replayed(stored, RerunRecorder(sink, **options), again, progress)
    split, overwrite = options.get("split", "run"), options.pop("overwrite", False)
    target = checked.path.parent if split == "dump" else checked.path
    with replaced(target, split, overwrite=overwrite) as aside:
        recorder = RerunRecorder(_with_path(sink, aside), **options)
        replayed = _replayed(stored, recorder, again, progress)
    return dataclasses.replace(replayed, path=checked.path)


def _with_path(sink: Sinks | Sequence[Sinks], path: Path) -> Sinks | list[Sinks]:
    """Return a sink with another path."""
    if isinstance(sink, list | tuple):
        return [path if path_of(each) is not None else each for each in sink]
    return path


def _warn_of_what_is_missing(stored: Stored) -> None:
    if stored.arrays and not {key[0] for key in stored.arrays.values()} & {"action", "reward"}:
        warn(f"{stored.what}: no array is known to be actions or rewards: say which is, as in --key action=NAME")
    if stored.without_ends:
        warn(
            f"{told_together(stored.without_ends)}: NOTHING SAYS WHERE EPISODES END, and all steps of a file are taken for "
            "one episode. If that is wrong, steps are recorded that lead from one episode into the next. Known are "
            "terminals, timeouts, dones, episode_starts, is_first, is_last, traj_ids; say which array it is, as in "
            "--key done=NAME. A TensorDict needs ('next', 'done')"
        )


def _replayed(stored: Stored, recorder: RerunRecorder, again: Rerendering | None, progress: Progress) -> Replayed:
    """Record what is stored, with pictures of it if it is to be rendered again."""
    pieces = stored.pieces() if again is None else again.rendered(stored.pieces())
    steps = 0
    try:
        for piece in _counted(pieces, stored.moments, progress):
            recorder.log_rollout(piece.tensordict, begins=list(piece.begins))
            steps += piece.steps
    finally:
        recorder.close()
        if again is not None:
            again.close()
    partings = () if again is None else tuple(again.partings)
    if again is not None and partings and again.needs_no_seed:
        warn("with this seed it parts from what is stored; leave the seed out: it can be set to what was observed")
    episodes = int(recorder.stats()["episodes"])
    return Replayed(stored.what, recorder.path, steps, episodes, recorder.num_envs, stored.arrays, partings)


def _counted(pieces: Iterator[Piece], moments: int, progress: Progress) -> Iterator[Piece]:
    """Pieces, of which each counts for its moments."""

    def one_by_one() -> Iterator[Piece | None]:
        for piece in pieces:
            yield piece
            size = piece.tensordict.batch_size
            for _ in range((size[-1] if piece.padding is None else size.numel()) - 1):
                yield None

    yield from (piece for piece in progress(one_by_one(), moments) if piece is not None)


def _options(stored: Stored, render: str | MakeEnv | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of what is stored, unless it is said otherwise."""
    name = render if isinstance(render, str) else stored.env_name
    known: dict[str, Any] = {"application_id": name, "fps": stored.fps or environments.registered_fps(name)}
    by_key = {"kinds": stored.kinds, "names": stored.names, "image_format": stored.image_format}
    for option, values in by_key.items():
        if isinstance(given.get(option, {}), Mapping) and values:
            known[option] = {**values, **{as_key(key): value for key, value in given.get(option, {}).items()}}
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
