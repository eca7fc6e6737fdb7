"""Replay: record trajectories that other programs stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensordict.utils import NestedKey

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.keys import Key, as_key
from torchrl_rerun.recording.known_rates import registered_fps
from torchrl_rerun.recording.session import Sinks, path_of
from torchrl_rerun.scenes.source import Source
from torchrl_rerun.stored.following import Follower, MakeEnv, find_maker
from torchrl_rerun.stored.formats import Place, open_source
from torchrl_rerun.stored.rerendering import Pictures
from torchrl_rerun.stored.resimulating import Resimulation, is_id, open_scene
from torchrl_rerun.stored.segments import Segment, StoredTrajectories, join_names
from torchrl_rerun.stored.staging import stage_recording
from torchrl_rerun.stored.states import Divergence
from torchrl_rerun.transform.recorder import RerunRecorder

Progress = Callable[[Iterable[Any], int | None], Iterable[Any]]


@dataclass(frozen=True)
class Replayed:
    """Result of :func:`replay`.

    Attributes:
        description: Path and format of the source.
        path: File or folder that was recorded. None if the sink is not on disk.
        steps: Number of steps, summed over the environments.
        episodes: Number of episodes, summed over the environments.
        envs: Number of environments.
        array_keys: Key of each named array that was recorded, by the array's name.
        divergences: Steps at which the environment of ``render`` or ``scene`` and the stored data differ.
    """

    description: str
    path: Path | None
    steps: int
    episodes: int
    envs: int
    array_keys: Mapping[str, Key]
    divergences: tuple[Divergence, ...] = ()


def replay(
    source: Place | Sequence[Place],
    sink: Sinks | Sequence[Sinks],
    *,
    keys: Mapping[NestedKey, str] | None = None,
    render: str | MakeEnv | None = None,
    scene: str | MakeEnv | Source | None = None,
    seed: int | None = None,
    progress: Progress = lambda time_steps, _: time_steps,
    **options: Any,
) -> Replayed:
    """Record trajectories that other programs stored.

    Values are recorded as they are stored. Images are JPEG, which is lossy, unless ``image_format`` says otherwise.
    Memory is bounded at any length, except by one episode of a recording or of a Minari data set, and by one trajectory
    of a padded batch. Sources are never written to. Pickles that would execute code are refused.

    A recording is written to a hidden folder first and renamed when it is complete. If anything fails, an earlier
    recording at ``sink`` stays, and no other file does.

    Args:
        source: Path, or several paths, each of which begins new episodes. The format is recognised by the contents: a
            tensordict, or a list of tensordicts, of ``torch.save`` (``TensorDictRecorder`` writes these); a memory-mapped
            tensordict; a dump of a TorchRL replay buffer; a Minari data set, by its path or, on this machine, its id;
            an HDF5 or ``.npz`` file of arrays over time; recordings; or a folder of these.
        sink: Sink of a :class:`RerunRecorder`.
        keys: Names of arrays that are not recognised, by their keys (``{"observation": "img"}``).
        render: Render each time step in this environment: a registered id of gymnasium, or a function that makes an
            environment with ``render_mode="rgb_array"``. Its observations and rewards are compared with the stored ones.
            From the first difference to the end of the episode, pictures are black.
        scene: Record the 3D scene of each time step as ``"scene"``, as ``RerunRecorder(scene=True)`` does: a registered id
            of gymnasium, a function that makes an environment, or the path of an ``.xml`` or ``.mjb`` file of MuJoCo.
            Nothing is rendered. Positions of joints that are stored (``qpos``, ``infos/qpos``) are taken as they are;
            without any, the environment follows the observations or the seed, as with ``render``. States from the first
            difference to the end of the episode are NaN. Or a source whose key is stored, as
            ``MuJoCo(model="robot.xml", key="states")``.
        seed: With ``render`` or ``scene``: reset the environment with this seed and take the stored actions. Pass the seed
            that ``env.set_seed`` was given, for a batch of environments too. Environments whose state follows from the
            observation need no seed.
        progress: Function that is given an iterable of time steps and their number, and returns an iterable.
        options: Any other option of :class:`RerunRecorder`.

    Raises:
        FileNotFoundError: A source doesn't exist.
        FileExistsError: A recording exists at ``sink``; pass ``overwrite=True``.
        ValueError: A source can't be read or holds no steps; the message names the file and the array. Or ``keys`` names
            an array that doesn't exist, ``render`` or ``scene`` doesn't fit the data, or ``seed`` is given without both.
        ImportError: An extra is needed.
        RecordingError: The recording can't be written.

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
    if seed is not None and render is None and scene is None:
        raise ValueError(
            f"seed={seed} needs render=... or scene=...: the seed resets the environment that is looked at"
        )
    if isinstance(scene, Source):
        options, scene = {**options, "scene": scene}, None
    checked = RerunRecorder(sink, **options)
    stored = open_source(source, {as_key(key): name for key, name in (keys or {}).items()})
    _warn_of_missing_roles(stored)
    added: list[Follower | Resimulation] = []
    if scene is not None:
        resimulation = open_scene(scene, seed)
        added.append(resimulation)
        options = {**options, "kinds": {resimulation.key: resimulation.kind, **(options.get("kinds") or {})}}
    if render is not None:
        added.append(Follower(find_maker(render, "render", render_mode="rgb_array"), Pictures(), seed))
    options = _complete_options(stored, next(filter(is_id, (render, scene)), stored.env_name), options)
    if checked.path is None or options.get("resume"):  # no earlier recording is replaced
        return _record(stored, RerunRecorder(sink, **options), added, progress)
    split, overwrite = options.get("split", "run"), options.pop("overwrite", False)
    target = checked.path.parent if split == "dump" else checked.path
    with stage_recording(target, split, overwrite=overwrite) as staged:
        recorder = RerunRecorder(_replace_path(sink, staged), **options)
        replayed = _record(stored, recorder, added, progress)
    return dataclasses.replace(replayed, path=checked.path)


def _replace_path(sink: Sinks | Sequence[Sinks], path: Path) -> Sinks | list[Sinks]:
    """Return a sink with another path."""
    if isinstance(sink, list | tuple):
        return [path if path_of(each) is not None else each for each in sink]
    return path


def _warn_of_missing_roles(stored: StoredTrajectories) -> None:
    if stored.array_keys and not {key[0] for key in stored.array_keys.values()} & {"action", "reward"}:
        warn(
            f"{stored.description}: no array is recognised as actions or rewards: name them, for example with "
            "--key action=NAME"
        )
    if stored.files_without_ends:
        warn(
            f"{join_names(stored.files_without_ends)}: NOTHING SAYS WHERE EPISODES END, so all steps of a file become one "
            "episode. If a file holds several, the recording gets steps that lead from one episode into the next. "
            "Recognised names are terminals, timeouts, dones, episode_starts, is_first, is_last, traj_ids; name another "
            "array with, for example, --key done=NAME. A TensorDict needs ('next', 'done')"
        )


def _record(
    stored: StoredTrajectories, recorder: RerunRecorder, added: Sequence[Follower | Resimulation], progress: Progress
) -> Replayed:
    """Record trajectories, with what is added to them. Close the recorder."""
    segments, steps = stored.read(), 0
    for each in added:
        segments = each.add_to(segments)
    try:
        for segment in _report_progress(segments, stored.num_time_steps, progress):
            recorder.log_rollout(segment.tensordict, begins=list(segment.begins))
            steps += segment.num_steps
    finally:
        recorder.close()
        for each in added:
            each.close()
    divergences = tuple(divergence for each in added for divergence in each.divergences)
    if divergences and any(each.needs_no_seed for each in added):
        warn(
            "with this seed the environment and the stored data differ: leave the seed out, as the environment's state "
            "follows from the observations"
        )
    episodes = int(recorder.stats()["episodes"])
    return Replayed(
        stored.description, recorder.path, steps, episodes, recorder.num_envs, stored.array_keys, divergences
    )


def _report_progress(segments: Iterator[Segment], total: int, progress: Progress) -> Iterator[Segment]:
    """Yield segments, and report each of their time steps to ``progress``."""

    def iterate_time_steps() -> Iterator[Segment | None]:
        for segment in segments:
            yield segment
            for _ in range(segment.num_time_steps - 1):
                yield None

    yield from (segment for segment in progress(iterate_time_steps(), total) if segment is not None)


def _complete_options(stored: StoredTrajectories, name: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorder's options: those given, and for the rest what is known of the stored data.

    Args:
        stored: Stored data.
        name: Id of the environment; None if it isn't known.
        given: Options of the user.
    """
    known: dict[str, Any] = {"application_id": name, "fps": stored.fps or registered_fps(name)}
    kinds = {key: kind.options(given.get("image_format")) for key, kind in stored.kinds.items()}
    asked = {as_key(key): kind for key, kind in (given.get("kinds") or {}).items()}
    return {**known, **given, "kinds": {**kinds, **asked}}
