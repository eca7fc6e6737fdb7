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
from torchrl_rerun.kinds.schema import Split
from torchrl_rerun.kinds.streams import JPEG_QUALITY, ImageFormat, Kind, Stacks
from torchrl_rerun.layout.blueprint import Recorded
from torchrl_rerun.recording.episode_log import checked_annotations
from torchrl_rerun.recording.keep import Keep
from torchrl_rerun.recording.recording import Options
from torchrl_rerun.recording.session import Settings, shared_paths
from torchrl_rerun.recording.stats import Stats
from torchrl_rerun.recording.triggers import Trigger, Triggers
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
    """Records what an environment does, per environment and per episode, into a `Rerun <https://rerun.io>`_ recording.

    Append it last. Everything that passes is recorded exactly, dtypes and shapes included (lossy image formats aside), while the
    data itself, the specs, the random state and the gradients stay as they are. The environment's thread pays for one
    copy into a bounded buffer; a thread of the recorder's own writes.

    Every observation is a row at its own frame, so that an episode's last observation and the next one's first don't
    hide one another. Actions are at the frame of the observation that they answer; rewards and done flags at the frame
    that they led to. Environments that a partial reset or step leaves out get no row. Each row carries the timelines
    ``frame``, ``step`` (calls of ``env.step``), ``episode``, ``episode_step``, ``log_time``, and ``sim_time`` if the
    frame rate is known.

    Environment ``i`` of the flattened batch is recorded below ``/env_{i}``, and each agent of a grouped key at a path of
    its own (``/env_0/agents/reward/agent_1``). The recorder adds the running ``episode_return`` of each reward.

    Args:
        sink: path of the ``.rrd`` file to write, or of a folder for several, or for one (``run.rrd``), or an
            ``rr.FileSink``; a viewer that is
            watching, as its URL (``"rerun+http://127.0.0.1:9876/proxy"``) or an ``rr.GrpcSink``; an ``rr.GrpcServerSink``, which viewers
            connect to; an ``rr.RecordingStream`` of your own, in which what is recorded meets what you log; or None, which is
            the active one (``rr.init``) at the first reset. A list of one file, one recording stream and viewers
            is all of these. The file gets every frame; a viewer gets those that it takes in
            time, and what it doesn't is dropped and counted; so does a recording stream beside a file, while one without a
            file gets every frame unless it takes nothing for 10 s, and can't be had in worker processes. A recording of days goes on in ``name.part_1.rrd`` and so
            on. Inside the workers of a batched environment, and in a copy of the recorder, each writes
            ``name.worker_{n}.rrd`` beside the file; all of them belong to one recording.
        in_keys: keys to record, also such as the policy writes. Default: every leaf of the environment's observation,
            action, reward and done specs.
        logged_envs: which environments of a batch to record: an index, several, a slice, or ``"all"``. Default: all
            of up to 64, else the first 16.
        aggregate: whether to record the mean, the minimum, the maximum and quantiles of the rewards and returns over all
            environments at each frame, below ``/batch``. Default: where not all environments are recorded, and
            ``logged_envs`` doesn't say which. Not with ``split="episode"``.
        skip: record one frame in so many, and the first and the last of each episode in any case. ``episode_return`` is
            that of all steps, whichever are recorded.
        fps: frames per second of simulated time. Default: what the environment says (``render_fps``, ``dt``).
        image_format: ``"jpeg"`` (lossy), ``"png"`` or ``"raw"`` (both exact), or ``"h264"`` or ``"av1"`` (video: lossy,
            and much smaller than JPEG), for all images or per key. Float images, depth and segmentations are always raw,
            and what has an alpha channel is never JPEG or video but PNG. Video needs the extra ``torchrl-rerun[video]``.
            H.264 costs little, and the native viewer plays it where an ``ffmpeg`` is installed; AV1 plays everywhere, and
            costs several times as much. Video has a keyframe at each episode's first frame and once a second; sizes that
            aren't even, or are below 4, are filled up at the right and below with what is at the edge.
        jpeg_quality: of JPEG files, 1 to 95.
        stacks: what is recorded of images that are stacks of frames (``[4, 84, 84]``, of gymnasium's
            ``FrameStackObservation`` or TorchRL's ``CatFrames``), of all or per key: ``"all"`` of them, side by side, or
            only the ``"newest"``; ``"none"``: ``[4, H, W]`` is RGBA, and what has any other number of channels no image.
        kinds: how to show a key where the guess is wrong: ``"image"``, ``"depth"`` and ``"segmentation"`` (one channel of
            numbers, of classes), ``"scalars"`` (up to 64 numbers), ``"tensor"``, ``"state"`` (categories and flags) or
            ``"text"``.
        names: per key, the names of the numbers of a row, of the categories, or of the classes of a segmentation. Default:
            what well-known environments (gymnasium's own, Atari games) call their observations and actions.
        render: call the environment's ``render()`` for the frames and the environments that are recorded, and for no
            others, and record the pictures as an observation called ``"pixels"``. The environment must be one that
            gives pictures, such as ``GymEnv("CartPole-v1", render_mode="rgb_array")``; it is looked at once when a recording
            begins, whether that frame is recorded or not, to see what they are. Where a later picture fails, or is of
            another size, the frame is recorded without it, which is said once.
        episode_trigger: called with the number of each episode of an environment, from 0, when it begins; where it
            returns true, a recording starts. This and the next two are as in ``gymnasium.wrappers.RecordVideo``, for each
            environment by itself; with neither trigger everything is recorded. A trigger that fails counts as true.
        step_trigger: called with the number of each step, from 0; where it returns true, a recording starts with what
            the step led to.
        recording_length: steps that what a trigger has started goes on for, beyond the end of the episode if need be;
            0: to the end of the episode. A recording that is still running when a trigger starts the next one ends there.
        split: what a recording is of: ``"run"``; ``"dump"``, what came since the last :meth:`dump`, in files of a folder
            that are numbered; or ``"episode"``, each finished episode of each environment: these are
            files of their own in a folder, named by environment and episode, with the same entity paths in each
            (``/reward``, without ``/env_{i}``), the ``episode_step`` as their ``frame``, and what became of the episode
            as properties, see :class:`Episode`.
        keep: with ``split="episode"``, which finished episodes stay: :class:`KeepLast`, :class:`KeepBest`,
            :class:`KeepWorst`, :class:`KeepIf`, combined with ``|`` and ``&``. Default: all. It is decided when an episode
            is over; what doesn't stay is forgotten before it is encoded if it fits into ``buffer_bytes``, and else removed
            from the disk.
        blueprint: the layout that the viewer opens with: True, one made from the streams; False, none, or the one that a
            recording stream has already; your own; or a function that makes it of what is recorded, see
            :mod:`torchrl_rerun.layout.blueprint`.
        application_id: groups recordings in the viewer. Default: the environment's name, or that of the recording stream.
        recording_id: recordings of one id are shown as one. Default: a new one, or that of the recording stream.
        buffer_bytes: bound on what waits in memory to be written, in bytes; at least one frame of everything fits
            whatever it says. When it is full the environment waits for the writer. Images that are encoded already may
            take 8 MiB more, until they are enough to be written together.
        flush_seconds: what is older than this is written, though the buffer isn't full. Viewers and recording streams get it
            within a second.
        overwrite: replace an existing file and its parts, or the recordings that an earlier run left in a folder.
        resume: go on with the run that the file or folder holds, in further files beside it (``run.resumed_1.rrd``). The
            numbers of steps and episodes go on after the last ones that are recorded; an episode that was interrupted
            stays so. Begin anew if nothing is there.

    Raises:
        FileExistsError: the file exists, and ``overwrite`` is false, or another recorder writes to it; at the first reset,
            when a folder holds recordings of an earlier run.
        OSError: the folder can't be written.
        TypeError: an argument is of the wrong type.
        KeyError: at the first step, when the environment doesn't give a key that ``in_keys`` asks for, or ``kinds``,
            ``names``, ``image_format`` or ``stacks`` names one that isn't recorded.
        ConnectionError: at the first reset, when there is no viewer at the address, or no active recording.
        IndexError: at the first reset, when ``logged_envs`` is out of range.
        ValueError: an argument is out of its range, or ``kinds``, ``names`` or ``stacks`` don't fit the data; at the first reset, when
            ``render`` asks for pictures that the environment can't give, or gives as ``"pixels"`` already.
        ImportError: ``image_format`` asks for video, and PyAV isn't installed.

    .. note:: :meth:`dump` makes everything so far durable: it is with the operating system, and outlives the process.
        ``env.close()``, the end of the program and the end of the recorder's life dump too, so that nothing is lost
        where that is forgotten. Errors of the disk never reach the environment's methods: training goes on, a warning
        says so at once, and the next :meth:`dump` or :meth:`close` raises :class:`RecordingError`.

    .. note:: Checkpoints of the environment (``state_dict()``) hold nothing of a recorder, and load with and without one.

    .. note:: In front of other transforms it records what passes at its place, and says once which keys it can't see.
        ``check_env_specs`` leaves nothing in the recording, except where the recorder lives in worker processes, which
        can't know of it.

    Examples:
        >>> import tempfile
        >>> from torchrl.envs import GymEnv
        >>> from torchrl_rerun import RerunRecorder
        >>> folder = tempfile.mkdtemp()
        >>> env = GymEnv("CartPole-v1").append_transform(RerunRecorder(f"{folder}/run.rrd"))
        >>> rollout = env.rollout(10)
        >>> env.transform.dump()
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
        image_format: ImageFormat | Mapping[NestedKey, ImageFormat] = "jpeg",
        jpeg_quality: int = JPEG_QUALITY,
        stacks: Stacks | Mapping[NestedKey, Stacks] = "all",
        kinds: Mapping[NestedKey, Kind] | None = None,
        names: Mapping[NestedKey, Sequence[str]] | None = None,
        render: bool = False,
        episode_trigger: Trigger | None = None,
        step_trigger: Trigger | None = None,
        recording_length: int = 0,
        split: Split = "run",
        keep: Keep | None = None,
        blueprint: bool | rrb.Blueprint | Callable[[Recorded], rrb.Blueprint] = True,
        application_id: str | None = None,
        recording_id: str | None = None,
        buffer_bytes: int = 64 << 20,
        flush_seconds: float = 5.0,
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        super().__init__(in_keys=in_keys)
        self._settings = Settings.checked(
            sink,
            overwrite=overwrite,
            resume=resume,
            in_keys=None if in_keys is None else self.in_keys,
            fps=fps,
            image_format=image_format,
            jpeg_quality=jpeg_quality,
            stacks=stacks,
            kinds=kinds,
            names=names,
            render=render,
            options=Options(
                logged_envs=logged_envs,
                aggregate=aggregate,
                choice=Triggers(episode_trigger, step_trigger, recording_length, skip),
                split=split,
                keep=keep,
                blueprint=blueprint,
                application_id=application_id,
                recording_id=recording_id,
                buffer_bytes=buffer_bytes,
                flush_seconds=flush_seconds,
            ),
        )
        self._begin()

    def _begin(self) -> None:
        """The state of a recorder that has seen nothing."""
        self._owner = _Owner()
        self._feed: Feed | None = Feed(self._settings, self._owner.behind)
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
        sink = self._settings.sink
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
        copy._settings, copy._feed, copy._owner, copy._now = self._settings, self._feed, self._owner, _Now()
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
        self._settings = dataclasses.replace(self._settings, is_copy=True)
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
        names_a_file = suffix is not None and self._settings.options.split == "dump"
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
            >>> recorder = RerunRecorder(folder, split="episode", keep=KeepIf(lambda e: e["success"]))
            >>> env = GymEnv("CartPole-v1").append_transform(recorder)
            >>> for success in (True, False):
            ...     rollout = env.rollout(100)
            ...     env.transform.annotate(success=success)
            >>> env.close()
            >>> os.listdir(folder)
            ['env_0_episode_000000.rrd']
        """
        if self._settings.options.split != "episode":
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
        return self._settings.sink.path

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
        elif self._settings.viewers:
            notebook.show_url(self._settings.viewers[0].url, width=width, height=height)
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
            >>> from torchrl.envs import GymEnv
            >>> from torchrl_rerun import RerunRecorder
            >>> recorder = RerunRecorder(f"{tempfile.mkdtemp()}/run.rrd")
            >>> env = GymEnv("CartPole-v1").append_transform(recorder)
            >>> rollout = env.rollout(5)
            >>> env.transform.dump()
            >>> stats = env.transform.stats()
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
        settings = self._settings
        outlets = [*(viewer.url for viewer in settings.viewers), *([settings.stream.label] if settings.stream else [])]
        kept = [] if settings.sink.path is None else [settings.sink.identity]
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
        if self._settings.render:
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
