"""RerunRecorder: TorchRL's hooks, turned into resets and steps of a feed."""

from __future__ import annotations

import atexit
import dataclasses
import multiprocessing.util
import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self

import numpy as np
import rerun as rr
import rerun.blueprint as rrb
import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.envs import Compose, EnvBase, EnvCreator, Transform
from torchrl.envs.utils import check_env_specs

from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.kind import Kind
from torchrl_rerun.kinds.picture import ImageFormat
from torchrl_rerun.kinds.schema import Split
from torchrl_rerun.layout.blueprint import Recorded
from torchrl_rerun.recording.episode_log import checked_annotations
from torchrl_rerun.recording.keep import Keep
from torchrl_rerun.recording.options import Options, Trigger
from torchrl_rerun.recording.session import Session, shared_paths
from torchrl_rerun.recording.stats import Stats
from torchrl_rerun.transform import specs
from torchrl_rerun.transform.continuity import stepped_in
from torchrl_rerun.transform.feed import Feed, Mask, Stepping
from torchrl_rerun.transform.padded_batches import Trajectories, padding_mask
from torchrl_rerun.transform.untraced import is_compiling, untraced
from torchrl_rerun.transform.workers import in_worker_process
from torchrl_rerun.viewing import notebook

Sinks = str | os.PathLike[str] | rr.FileSink | rr.GrpcSink | rr.GrpcServerSink | rr.RecordingStream | None
"""What is recorded to: a file's path, a viewer, or a recording stream; None: the active one."""


class RerunRecorder(Transform):
    """Record an environment, per environment and per episode, into a `Rerun <https://rerun.io>`_ recording.

    Without a trigger everything is recorded, and exactly, dtypes and shapes included, but for images: these are stored as
    JPEG, which is lossy, unless ``image_format`` asks for an exact format.

    Append the recorder last. The data that passes, the specs, the random state and the gradients stay as they are. The
    environment's thread pays for one copy into a bounded buffer. A thread of the recorder writes.

    - Each observation is a row at its own frame: the last observation of an episode and the first one of the next episode
      are two rows.
    - An action is at the frame of the observation that it answers. Rewards and done flags are at the frame that they led to.
    - Environments that a partial reset or a partial step leaves out get no row.
    - Each row carries the timelines ``frame``, ``step`` (calls of ``env.step``), ``episode``, ``episode_step``,
      ``log_time``, and ``sim_time`` if the frame rate is known.
    - Environment ``i`` of the flattened batch is recorded below ``/env_{i}``. Each agent of a group has a path of its own
      (``/env_0/agents/reward/agent_1``). The recorder adds the running ``episode_return`` of each reward.

    Args:
        sink: the sink, or a list of one path, one recording stream and any number of viewers.

            - A path that ends in ``.rrd``, or an ``rr.FileSink``: a file. It gets every frame. A recording of days goes on in
              ``name.part_1.rrd`` and so on. Recorders in the workers of a batched environment, and copies of a recorder,
              write ``name.worker_{n}.rrd`` beside it; all of these belong to one recording.
            - Any other path: a folder, for the files of ``split`` or for one file (``run.rrd``).
            - The URL of a viewer (``"rerun+http://127.0.0.1:9876/proxy"``), an ``rr.GrpcSink``, or an
              ``rr.GrpcServerSink``, which viewers connect to. A viewer gets the frames that it takes in time; others are
              dropped and counted.
            - An ``rr.RecordingStream`` of the user, in which frames meet what the user logs; None: the active one
              (``rr.init``) at the first reset. Beside a file it drops frames as a viewer does. Without a file it gets every
              frame unless it takes nothing for 10 s. Worker processes can't have it.
        in_keys: keys to record, of the environment or of the policy. Default: all leaves of the environment's observation,
            action, reward and done specs.
        logged_envs: environments of a batch to record: an index, several, a slice, or ``"all"``. Default: all of up to 64,
            else the first 16.
        aggregate: whether the mean, the minimum, the maximum and quantiles of the rewards and returns over all environments
            are recorded at each frame, below ``/batch``. Not with ``split="episode"``. Default: True if ``logged_envs`` is
            None and some environments are not recorded.
        skip: record one frame in so many, and always the first and the last one of each episode. ``episode_return`` is
            the sum over all steps. Default: 1.
        fps: frames per second of simulated time. Default: the environment's (``render_fps``, ``dt``).
        image_format: ``"jpeg"`` (lossy), ``"png"`` or ``"raw"`` (both exact), or ``"h264"`` or ``"av1"`` (video: lossy,
            and much smaller than JPEG), for all images whose kind says no other. Float images, depth and segmentations are always raw,
            and what has an alpha channel is never JPEG or video but PNG. Video needs the extra ``torchrl-rerun[video]``.
            H.264 costs little, and the native viewer plays it where an ``ffmpeg`` is installed; AV1 plays everywhere, and
            costs several times as much. Video has a keyframe at each episode's first frame and once a second; sizes that
            aren't even, or are below 4, are filled up at the right and below with what is at the edge.
        kinds: the kind of each key, with its options: :class:`~torchrl_rerun.Image` (format, quality, what of a stack of
            frames), :class:`~torchrl_rerun.Depth`, :class:`~torchrl_rerun.Segmentation`, :class:`~torchrl_rerun.Scalars`,
            :class:`~torchrl_rerun.State`, :class:`~torchrl_rerun.Tensor`, :class:`~torchrl_rerun.Text`,
            :class:`~torchrl_rerun.Points3D`, or a :class:`~torchrl_rerun.Kind` of your own. A kind with its default
            options may be written by its name, as ``"tensor"``. Default: by the key, its spec and its first value.
        names: per key, the names of the numbers of a row, of the categories, or of the classes of a segmentation. Default:
            what well-known environments (gymnasium's own, Atari games) call their observations and actions.
        render: whether the environment's ``render()`` is called at the frames and for the environments that are recorded,
            and its pictures are recorded as an observation called ``"pixels"``. The environment must give pictures, such as
            ``GymEnv("CartPole-v1", render_mode="rgb_array")``. It is rendered once when a recording begins, whether that
            frame is recorded or not. A frame of which a later picture fails, or has another size, is recorded without it,
            with one warning. Default: False.
        episode_trigger: called with the number of each episode of an environment, from 0, when it begins. If it returns
            true or fails, a recording starts. Triggers and ``recording_length`` are those of
            ``gymnasium.wrappers.RecordVideo``, for each environment by itself. Default: without any trigger everything is
            recorded.
        step_trigger: called with the number of each step, from 0. If it returns true or fails, a recording starts with
            the frame that the step led to.
        recording_length: number of steps after which a recording that a trigger has started ends, beyond the end of the
            episode if need be; 0: the end of the episode. It ends early if a trigger starts the next one. Default: 0.
        split: how the run is divided into recordings. Default: ``"episode"`` with ``keep``, else ``"run"``.

            - ``"run"``: one recording of the whole run.
            - ``"dump"``: a recording for each :meth:`dump`, in numbered files of a folder.
            - ``"episode"``: a recording for each finished episode of each environment, in files of a folder that are named
              by environment and episode. Entity paths have no ``/env_{i}`` (``/reward``), ``frame`` is the
              ``episode_step``, and the outcome of the episode is stored as properties, see :class:`Episode`.
        keep: which finished episodes stay: :class:`KeepLast`, :class:`KeepBest`, :class:`KeepWorst`, :class:`KeepIf`,
            combined with ``|`` and ``&``. This implies ``split="episode"``. The policy decides when an episode is over. An
            episode that doesn't stay is forgotten before it is encoded if it fits into ``buffer_bytes``, else its file is
            removed. Default: all.
        blueprint: the layout that the viewer opens with: True: a layout made from the streams; False: none, or the one that a
            recording stream has already; a ``rerun.blueprint.Blueprint``; or a function that makes one, see
            :mod:`torchrl_rerun.layout.blueprint`. Default: True.
        application_id: name that groups recordings in the viewer. Default: the environment's name, or the application id
            of the recording stream.
        recording_id: recordings of one id are shown as one. Default: a new id, or that of the recording stream.
        buffer_bytes: bound on the data in memory that waits to be written, in bytes; one frame of everything fits in any
            case. If the buffer is full the environment waits for the writer. Encoded images may take 8 MiB more, until they
            are enough to be written together. Default: 64 MiB.
        flush_seconds: age in seconds at which data is written though the buffer isn't full. Viewers and recording streams
            get it within a second. Default: 5.
        overwrite: whether an existing file and its parts, or the recordings of an earlier run in a folder, are replaced.
            Default: False.
        resume: whether the run goes on that the file or folder holds, in further files (``run.resumed_1.rrd``). The numbers
            of steps and episodes follow the last recorded ones; an interrupted episode stays interrupted. If nothing is
            there, a run begins. Default: False.

    Raises:
        FileExistsError: the file exists, or the folder holds an earlier run, and neither ``overwrite`` nor ``resume`` is
            true; at the first reset, if another recorder writes there or something has appeared there meanwhile.
        OSError: the folder can't be written.
        TypeError: an argument is of the wrong type.
        KeyError: at the first step, if the environment doesn't give a key that ``in_keys`` names, or ``kinds`` or
            ``names`` names a key that isn't recorded.
        ConnectionError: at the first reset, if there is no viewer at the address, or no active recording.
        IndexError: at the first reset, if ``logged_envs`` is out of range.
        ValueError: an argument is out of its range, or ``kinds`` or ``names`` don't fit the data; at the first
            reset, if the environment can't give the pictures that ``render`` asks for, or gives ``"pixels"`` itself.
        ImportError: ``image_format`` asks for video, and PyAV isn't installed.

    .. note:: :meth:`dump` makes everything so far durable: it is with the operating system, and outlives the process.
        ``env.close()``, the end of the program and the end of the recorder's life dump, too. Errors of the disk never reach
        the environment's methods: training goes on, there is one warning, and the next :meth:`dump` or :meth:`close` raises
        :class:`RecordingError`.

    .. note:: A checkpoint of the environment (``state_dict()``) holds nothing of a recorder, and loads with and without one.

    .. note:: In front of other transforms a recorder records the data at its place, and says once which keys it can't see.
        ``check_env_specs`` leaves nothing in the recording, unless the recorder is in worker processes, which can't know
        of it.

    .. note:: Keep the recorder in a variable: in an environment of several transforms ``env.transform`` is a ``Compose``,
        which has no ``stats()``.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_rerun import RerunRecorder
        >>> folder = tempfile.mkdtemp()
        >>> recorder = RerunRecorder(f"{folder}/run.rrd")
        >>> env = GymEnv("CartPole-v1").append_transform(recorder)
        >>> rollout = env.rollout(10)
        >>> recorder.dump()
        >>> env.close()

        Then ``rerun run.rrd`` opens it.
    """

    def __init__(
        self,
        sink: Sinks | Sequence[Sinks] = None,
        *,
        in_keys: Sequence[NestedKey] | None = None,
        logged_envs: int | Sequence[int] | slice | str | None = None,
        aggregate: bool | None = None,
        skip: int = 1,
        fps: float | None = None,
        image_format: ImageFormat = "jpeg",
        kinds: Mapping[NestedKey, Kind | str] | None = None,
        names: Mapping[NestedKey, Sequence[str]] | None = None,
        render: bool = False,
        episode_trigger: Trigger | None = None,
        step_trigger: Trigger | None = None,
        recording_length: int = 0,
        split: Split | None = None,
        keep: Keep | None = None,
        blueprint: bool | rrb.Blueprint | Callable[[Recorded], rrb.Blueprint] = True,
        application_id: str | None = None,
        recording_id: str | None = None,
        buffer_bytes: int = 64 << 20,
        flush_seconds: float = 5.0,
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "sink", "__class__")}
        super().__init__(in_keys=in_keys)
        self._session = Session.of(sink, Options(**given))
        self._begin()

    def _begin(self) -> None:
        """The state of a recorder that has seen nothing."""
        self._owner = _Owner()
        self._feed: Feed | None = Feed(self._session, self._owner.behind)
        self._now = _Now()
        _close_at_end(self, self._feed)

    # --- what TorchRL calls ---

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        if is_compiling():
            untraced(self._see_reset, tensordict, tensordict_reset)
        else:
            self._see_reset(tensordict, tensordict_reset)
        return tensordict_reset

    def _see_reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> None:
        feed, env = self._listening(), self.environment
        if feed is None:
            return
        resets = {} if env is None else specs.resets_in(env, tensordict)
        if env is None or not resets or self._now.is_rehearsal:
            self._now.is_rehearsal = _inside(*_REHEARSALS)
        if self._now.is_rehearsal:
            return
        with feed.lock:
            feed.catch_up()
            if env is None or not resets:
                feed.reset(self._environment, tensordict_reset)
                return
            mask, begun = specs.reset_envs(env, resets, tensordict.batch_size.numel())
            if () in resets:
                feed.reset(self._environment, tensordict_reset, mask)
            else:
                feed.regroup(self._environment, tensordict_reset, resets, mask, begun)

    def _reset_on_native_autoreset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        if is_compiling():
            untraced(self._see_native_autoreset, tensordict, tensordict_reset)
        else:
            self._see_native_autoreset(tensordict, tensordict_reset)
        return tensordict_reset

    def _see_native_autoreset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> None:
        feed, env = self._listening(), self.environment
        if feed is None or env is None or self._now.is_rehearsal:
            return
        resets = specs.resets_in(env, tensordict)
        mask, _ = specs.reset_envs(env, resets, tensordict.batch_size.numel()) if resets else (None, None)
        if mask is not None and mask.any():
            # The flags still say how the last episode ended; TorchRL lowers them after this.
            flags = {key: torch.zeros_like(tensordict_reset.get(key)) for key in env.done_keys}
            with feed.lock:
                feed.reset(self._environment, tensordict_reset.clone(recurse=False).update(flags), mask)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        # Called before the environment steps, the last transform first: this is the policy's own action, which the
        # inverses of the transforms before this one have yet to change. `_step` sees it changed.
        # A replay buffer calls it too, for what it stores: that is recorded when it is sampled, by `forward`.
        if is_compiling():
            untraced(self._see_inv_call, tensordict)
        else:
            self._see_inv_call(tensordict)
        return tensordict

    def _see_inv_call(self, tensordict: TensorDictBase) -> None:
        feed = self._listening()
        if self._now.is_rehearsal:
            self._now.is_rehearsal = _inside(*_REHEARSALS)
        if feed is not None and not self._now.is_rehearsal:
            with feed.lock:
                self._now.stepping = feed.enter(self._environment, tensordict)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if is_compiling():
            untraced(self._see_step, tensordict, next_tensordict)
        else:
            self._see_step(tensordict, next_tensordict)
        return next_tensordict

    def _see_step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> None:
        feed = self._listening()
        if feed is not None and not self._now.is_rehearsal:
            with feed.lock:
                feed.leave(self._environment, tensordict, next_tensordict)

    def _post_step_mdp_hooks(
        self, tensordict: TensorDictBase, tensordict_: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        if is_compiling():
            untraced(self._see_outcome, tensordict)
        else:
            self._see_outcome(tensordict)
        return tensordict, tensordict_

    def _see_outcome(self, tensordict: TensorDictBase) -> None:
        feed = self._feed
        if feed is not None and not self._now.is_rehearsal and self._owner.is_or_becomes(self):
            with feed.lock:
                feed.finish(tensordict.get("next"))

    def _check_batched_worker_compat(self) -> None:
        sink = self._session.target
        shared_paths.add(sink.identity)
        warn(
            f"a RerunRecorder is inside the environments of a batch: {sink.for_workers}. "
            "Append the recorder to the batched environment for a single recording, and for the flags that a collector sets."
        )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Record a stored rollout that passes, as in a replay buffer: see :meth:`log_rollout`.

        Args:
            tensordict: ``[*batch, time]``; what has no ``"next"`` is not a rollout and passes unrecorded.

        Returns:
            The same tensordict, unchanged.
        """
        if "next" in tensordict.keys():
            self.log_rollout(tensordict)
        return tensordict

    def clone(self) -> RerunRecorder:
        """A copy for another environment. It goes on with this recorder's recording if this one's environment is gone.

        ``TransformedEnv(env, transform)`` moves the transforms of ``env`` that way. The clones by which TorchRL builds
        the ``parent`` of a later transform record nothing.
        """
        copy: RerunRecorder = super().clone()
        copy._session, copy._feed, copy._owner, copy._now = self._session, self._feed, self._owner, _Now()
        if _inside(Compose._rebuild_up_to.__code__, depth=4):  # noqa: SLF001 - nothing public tells them apart
            copy._feed = None
        return copy

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """A recorder has no state that a checkpoint would need: what was recorded says where the run is."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Checkpoints of version 0.1.0 hold counters, which are left alone."""

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        for name in ("_feed", "_owner", "_now"):
            state.pop(name)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._session = dataclasses.replace(self._session, is_copy=True)
        self._begin()

    # --- what the user calls ---

    def dump(self, suffix: str | None = None, step: int | None = None) -> None:
        """Make everything recorded so far durable, and return when it is. Never ends an episode.

        With ``split="dump"`` it ends the recording, and what comes is another one: ``dump_000001.rrd`` in the folder.

        Args:
            suffix: with ``split="dump"`` what is added to the name of the recording; else it has no use.
            step: likewise, as ``step_{step}``, where there is no suffix.

        Raises:
            RecordingError: something could not be written; the message says why, and how many frames are lost.
            ValueError: ``suffix`` can't be part of a file's name.
        """
        names_a_file = suffix is not None and self._session.options.split == "dump"
        if names_a_file and (not suffix or "/" in suffix or os.sep in suffix or "\0" in suffix):
            raise ValueError(f"suffix={suffix!r} can't be part of a file's name")
        self._release_held()
        if self._feed is None:
            return
        with self._feed.at_rest():
            self._feed.catch_up()
            recording = self._feed.recording
            if recording is None:
                return
            recording.dump(suffix or (None if step is None else f"step_{step}"))

    def close(self) -> None:
        """Dump, then end the recording and add its layout. ``env.close()`` calls this; closing again does nothing.

        Raises:
            RecordingError: something could not be written; the message says why, and how many frames are lost. In the
                workers of a batched environment it is a warning.
        """
        self._release_held()
        if self._feed is None:
            return
        if in_worker_process():
            self._feed.close_quietly()  # an error would end the worker, and the batch would wait for it
            return
        with self._feed.at_rest():
            self._feed.catch_up()
            if self._feed.recording is not None:
                self._feed.recording.close()

    def switch(self, mode: str | bool | None = None) -> None:
        """Turn recording off or on again. Steps and episodes are counted meanwhile, and triggers aren't asked.

        Args:
            mode: ``"on"``, ``"off"``, True or False; None: the opposite of what it is.

        Raises:
            ValueError: it is something else.
        """
        if mode not in (None, "on", "off", True, False):
            raise ValueError(f"mode={mode!r}: pass 'on', 'off', True, False or nothing")
        if self._feed is not None:
            self._feed.enabled = (not self.enabled) if mode is None else mode in ("on", True)

    @property
    def enabled(self) -> bool:
        """Whether it records, see :meth:`switch`."""
        return self._feed is not None and self._feed.enabled

    def annotate(self, /, env: int | None = None, **values: Any) -> None:
        """Say something of the episode that an environment is in: it becomes a property of its recording.

        An episode can be annotated until its environment is reset, or :meth:`dump` or :meth:`close` comes after its end.

        Args:
            env: environment index; it can be left out if only one is recorded.
            values: numbers, truth values, strings, or lists of such, by their names.

        Raises:
            ValueError: the environment is in no episode, a name is taken, or there is no ``split="episode"``.
            IndexError: the environment isn't recorded.
            TypeError: a value can't be a property.

        Examples:
            >>> import os, tempfile
            >>> from torchrl.envs import GymEnv
            >>> from torchrl_rerun import KeepIf, RerunRecorder
            >>> folder = tempfile.mkdtemp()
            >>> recorder = RerunRecorder(folder, keep=KeepIf(lambda e: e["success"]))
            >>> env = GymEnv("CartPole-v1").append_transform(recorder)
            >>> for success in (True, False):
            ...     rollout = env.rollout(100)
            ...     recorder.annotate(success=success)
            >>> env.close()
            >>> os.listdir(folder)
            ['env_0_episode_000000.rrd']
        """
        if self._session.options.split != "episode":
            raise ValueError("annotations are properties of episodes: they need split='episode'")
        said = checked_annotations(values)
        if self._feed is not None and self._feed.enabled:
            if self._feed.recording is None or not self._feed.recording.alive:
                raise ValueError("there is nothing to annotate: reset the environment first")
            self._feed.recording.annotate(env, said)

    @property
    def num_envs(self) -> int:
        """Number of environments, recorded or not; 0 before the first frame."""
        recording = None if self._feed is None else self._feed.recording
        return 0 if recording is None else recording.source.envs

    @property
    def path(self) -> Path | None:
        """The file or the folder that is recorded to. None where there are viewers or a recording stream alone."""
        return self._session.target.path

    def show(self, *, width: notebook.Size = None, height: notebook.Size = None) -> None:
        """Show in a notebook what has been recorded so far; outside of one, print the command that does.

        It dumps first. Files are shown as they are then, all of them: their bytes go into the page. Without a file, the first
        viewer's server is shown, and goes on to be live.

        Args:
            width: of the viewer in the cell, in pixels; ``"auto"``: what there is room for. Default: Rerun's.
            height: likewise.

        Raises:
            ImportError: Rerun's viewer for notebooks isn't installed: ``pip install 'torchrl-rerun[notebook]'``.
            RecordingError: something could not be written, as in :meth:`dump`.
            ValueError: nothing has been recorded, or it is in a recording stream of your own, which Rerun shows:
                ``rr.notebook_show(recording=...)``.
        """
        self.dump()
        recording = None if self._feed is None else self._feed.recording
        if recording is None:
            raise ValueError("nothing has been recorded yet: reset the environment first")
        if files := recording.chunk_writer.files():
            notebook.show_files(files, recording.layout(), width=width, height=height)
        elif self._session.viewers:
            notebook.show_url(self._session.viewers[0].url, width=width, height=height)
        else:
            raise ValueError(
                f"there is nothing to show but {recording.chunk_writer.label}: rr.notebook_show() shows recording streams"
            )

    def stats(self) -> dict[str, float]:
        """What was recorded so far, for a training log: costs microseconds.

        It is of the recorder's whole life: what comes after :meth:`close`, in the next file, is counted on.

        Returns:
            Numbers by their names.

            - ``frames``, ``steps``, ``episodes``: how many were recorded; a frame is a reset or a step of any
              environments, a step a call of ``env.step``, of all of them; episodes are those that have begun, of all
              recorded environments together.
            - ``frames_written``, ``frames_waiting``, ``frames_lost``: where the frames are; those in a file that is gone
              are lost, too. A frame is written when all of it is: encoded images wait for others for up to
              ``flush_seconds``. ``frames_dropped``: those that a live viewer or a recording stream was not sent.
            - ``bytes_waiting``: of what is in memory; ``bytes_written``: to the file, its layout aside.
            - ``seconds_waited``: how long the environment has waited for the disk.
            - ``frames_per_second``: recorded, on average; ``bytes_per_second``: how fast the writer is: bytes of the file
              for each second in which it had something to encode and write.

        Examples:
            >>> import tempfile
            >>> from torchrl.envs import Compose, GymEnv, StepCounter, TransformedEnv
            >>> from torchrl_rerun import RerunRecorder
            >>> recorder = RerunRecorder(f"{tempfile.mkdtemp()}/run.rrd")
            >>> env = TransformedEnv(GymEnv("CartPole-v1"), Compose(StepCounter(), recorder))
            >>> rollout = env.rollout(5)
            >>> recorder.dump()
            >>> stats = recorder.stats()
            >>> stats["frames"], stats["steps"], stats["episodes"], stats["frames_waiting"], stats["frames_lost"]
            (6, 5, 1, 0, 0)
            >>> env.close()
        """
        recording = None if self._feed is None else self._feed.recording
        return dataclasses.asdict(Stats() if recording is None else recording.stats())

    def callback(self, env: EnvBase, tensordict: TensorDictBase) -> None:
        """Record a rollout without being appended to its environment: ``env.rollout(100, callback=recorder.callback)``.

        Prefer ``append_transform``, or :meth:`log_rollout` on what the rollout returns: they lose nothing. TorchRL
        (0.14) calls a callback after each step but the last, and what it passes leaves gaps that nobody can fill: with
        ``break_when_any_done`` or ``break_when_all_done`` the first observation, action and reward, otherwise the last
        transition. The end of a stopping rollout is recorded with the next :meth:`dump` or :meth:`close`.

        Args:
            env: the environment of the rollout.
            tensordict: what the rollout passes: the data after a step, of the environment's batch size.

        Raises:
            ValueError: with ``render=True``, which is for environments that the recorder is appended to.
        """
        if self._feed is None or self.environment is not None:
            return  # appended: the environment's own steps are recorded already
        self._must_not_render()
        if "next" in tensordict.keys():
            with self._feed.lock:
                self._feed.rollout(env, tensordict.unsqueeze(-1), stepped=_stepped_now(tensordict))
            return
        # A stopping rollout passes the root of the next transition, and completes that very object in the next step.
        self._release_held()
        self._now.held = (env, tensordict)

    def log_rollout(self, tensordict: TensorDictBase, *, begins: bool | Sequence[bool] = False) -> None:
        """Record a stored rollout, such as ``env.rollout()`` or a collector returns.

        A rollout that goes on where the last one ended (the batches of a collector) continues its episodes; anything
        else begins new ones. Rows that a ``"mask"`` entry (``split_trajectories``) marks as padding are left out.
        Data of other kinds is what :func:`replay` is for.

        Args:
            tensordict: ``[*batch, time]`` in TorchRL's form: root keys at t, ``("next", ...)`` keys at t + 1. Without a
                dimension it is a single moment.
            begins: whether it begins new episodes although it looks as if it went on; or for each environment.

        Raises:
            KeyError: there is no ``"next"``: it isn't a rollout.
            ValueError: with ``render=True``: what is stored can't be rendered any more.
        """
        if self._feed is None:
            return
        self._must_not_render()
        if "next" not in tensordict.keys():
            raise KeyError("'next' is missing: log_rollout takes rollouts, with what each step led to under 'next'")
        rollout = tensordict if tensordict.batch_dims else tensordict.unsqueeze(0)
        with self._feed.at_rest():
            self._log_rollout(self._feed, rollout, begins)

    def _log_rollout(self, feed: Feed, rollout: TensorDictBase, begins: bool | Sequence[bool]) -> None:
        env, mask = self.environment, padding_mask(rollout)
        if mask is None:
            count, time = rollout.batch_size[:-1].numel(), rollout.batch_size[-1]
            first = np.zeros((count, time), bool)
            first[:, :1] = np.asarray(begins, bool).reshape(-1, 1)
            stepped = stepped_in(rollout)
        else:
            known = 0 if feed.recording is None else feed.recording.source.envs
            laid = self._now.trajectories.laid_out(rollout, mask, known)
            rollout, first, stepped = laid.tensordict, laid.begins, laid.stepped
            feed.make_room(self._now.trajectories.envs)
        feed.rollout(env, rollout, first, stepped)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        session = self._session
        outlets = [*(viewer.url for viewer in session.viewers), *([session.stream.label] if session.stream else [])]
        kept = [] if session.target.path is None else [session.target.identity]
        return f"{type(self).__name__}({', '.join(map(repr, kept + outlets))})"

    # --- ours ---

    @property
    def environment(self) -> EnvBase | None:
        """The environment that this is appended to; None if it stands alone or in a replay buffer."""
        return self._environment()

    def _environment(self) -> EnvBase | None:
        try:
            return self.container
        except ValueError:  # torchrl 0.14: the container is neither an environment nor a Compose
            return None

    def _listening(self) -> Feed | None:
        """The feed, if this recorder is the one among its clones that it listens to."""
        return self._feed if self._feed is not None and self._owner.is_or_becomes(self) else None

    def _must_not_render(self) -> None:
        if self._session.options.render:
            raise ValueError(
                "render=True takes pictures of an environment while it runs, which data that is stored or passed to a "
                "callback has none of: append the recorder to the environment, or leave out render"
            )

    def _release_held(self) -> None:
        if self._now.held is not None and self._feed is not None:
            env, tensordict = self._now.held
            self._now.held = None
            if "next" in tensordict.keys():  # else the rollout ended before it was stepped
                with self._feed.lock:
                    self._feed.rollout(env, tensordict.unsqueeze(-1), stepped=_stepped_now(tensordict))


@dataclasses.dataclass(slots=True)
class _Now:
    """What changes from step to step; apart, because an attribute of an ``nn.Module`` takes microseconds to set.

    Attributes:
        is_rehearsal: ``check_env_specs`` is trying the environment out.
        stepping: the last step of the environment.
        held: what the callback of a stopping rollout got last, and its environment.
        trajectories: the environment indices of those that padded batches hold.
    """

    is_rehearsal: bool = False
    stepping: Stepping | None = None
    held: tuple[EnvBase, TensorDictBase] | None = None
    trajectories: Trajectories = dataclasses.field(default_factory=Trajectories)


class _Owner:
    """Which of a recorder and its clones is recorded: the first that sees anything, while its environment lives."""

    def __init__(self) -> None:
        self._recorder: weakref.ref[RerunRecorder] | None = None

    def is_or_becomes(self, recorder: RerunRecorder) -> bool:
        owner = None if self._recorder is None else self._recorder()
        if owner is recorder:
            return True
        if owner is not None and owner.environment is not None:
            return False
        self._recorder = weakref.ref(recorder)
        return True

    def behind(self) -> list[Transform]:
        """Return the transforms that come after the recorder; of one that is appended to no environment there are none."""
        recorder = None if self._recorder is None else self._recorder()
        env = None if recorder is None else recorder.environment
        chain = [] if env is None else specs.flat([env.transform])
        at = next((i for i, each in enumerate(chain) if each is recorder), len(chain))
        return chain[at + 1 :]


def _stepped_now(tensordict: TensorDictBase) -> Mask:
    """Return which environments one moment was stepped in, ``[envs, 1]``; None: all."""
    return stepped_in(tensordict.unsqueeze(-1))


def _close_at_end(recorder: RerunRecorder, feed: Feed) -> None:
    """Close a recording whose recorder is gone or whose process ends, so that nothing is lost without ``close()``."""
    # Registered by ourselves, so that it comes before the end of Rerun, which was registered before: recording streams take
    # nothing after that, and `weakref` may have been registered sooner.
    atexit.register(weakref.finalize(recorder, feed.close_quietly))
    # Processes that multiprocessing starts skip what weakref and atexit do at the end of the main one.
    multiprocessing.util.Finalize(recorder, feed.close_quietly, exitpriority=100)


_REHEARSALS = (check_env_specs.__code__, EnvCreator.init_.__code__)
"""What tries an environment out before it is used: to check it, or to know it before workers make their own."""


def _inside(*codes: CodeType, depth: int = 50) -> bool:
    """Whether one of some functions is being executed, among the innermost ``depth`` calls."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None and depth:
        if frame.f_code in codes:
            return True
        frame, depth = frame.f_back, depth - 1
    return False
