"""RerunRecorder: turn TorchRL's hooks into resets and steps of the front end."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

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
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.recording.keep import Keep
from torchrl_rerun.recording.life import close_at_end, close_quietly
from torchrl_rerun.recording.options import Options, Trigger
from torchrl_rerun.recording.recording import Recording
from torchrl_rerun.recording.session import Session, Sinks, shared_paths
from torchrl_rerun.recording.workers import in_worker_process
from torchrl_rerun.scenes.source import Source
from torchrl_rerun.transform import partial_resets
from torchrl_rerun.transform.calls import is_within
from torchrl_rerun.transform.front_end import FrontEnd
from torchrl_rerun.transform.ownership import Owner
from torchrl_rerun.transform.rollouts import Rollouts
from torchrl_rerun.transform.stepping import Stepping
from torchrl_rerun.transform.untraced import is_compiling, untraced
from torchrl_rerun.viewing.notebook import Shown


class RerunRecorder(Shown, Transform):
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

            - A path that ends in ``.rrd``: a file. It gets every frame. A recording of days goes on in
              ``name.part_1.rrd`` and so on. Recorders in the workers of a batched environment, and copies of a recorder,
              write ``name.worker_{n}.rrd`` beside it; all of these belong to one recording.
            - Any other path: a folder, for the files of ``split`` or for one file (``run.rrd``).
            - The URL of a viewer (``"rerun+http://127.0.0.1:9876/proxy"``), or an ``rr.GrpcServerSink``, which viewers
              connect to. A viewer gets the frames that it takes in time; others are dropped and counted.
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
        skip: record every ``skip``-th frame, and always the first and the last one of each episode. ``episode_return`` is
            the sum over all steps. Default: 1.
        fps: frames per second of simulated time. Default: the environment's (``render_fps``, ``dt``).
        image_format: format of all images unless their kind sets another one: ``"jpeg"`` (lossy), ``"png"`` or ``"raw"``
            (both exact), or ``"h264"`` or ``"av1"`` (video: lossy, and much smaller than JPEG).

            - Float images, depth and segmentations are always raw. Images with an alpha channel are PNG instead of JPEG or
              video.
            - Video needs the extra ``torchrl-rerun[video]``. H.264 costs little, and the native viewer plays it if an
              ``ffmpeg`` is installed. AV1 plays everywhere, and costs several times as much.
            - Video has a keyframe at each episode's first frame and once a second. Sizes that are odd or below 4 are padded at
              the right and at the bottom, by repeating the edge.
        kinds: the kind of each key, with its options: :class:`~torchrl_rerun.Image` (format, quality, frames of a stack to
            store), :class:`~torchrl_rerun.Depth`, :class:`~torchrl_rerun.Segmentation`, :class:`~torchrl_rerun.Scalars`,
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
        scene: whether the simulator's state is recorded at each frame as ``"scene"`` and shown in 3D. ``True`` finds the
            simulator of the environment; a source such as :class:`~torchrl_rerun.MuJoCo` has options. Default: False.
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
            - A number: a recording for each so many frames, as if :meth:`dump` were called after these.
            - ``"episode"``: a recording for each finished episode of each environment, in files of a folder that are named
              by environment and episode. Entity paths have no ``/env_{i}`` (``/reward``), ``frame`` is the
              ``episode_step``, and the outcome of the episode is stored as properties, see :class:`Episode`.
        keep: which finished episodes stay: :class:`KeepLast`, :class:`KeepBest`, :class:`KeepWorst`, :class:`KeepIf`,
            combined with ``|`` and ``&``. This implies ``split="episode"``. The policy decides when an episode is over. An
            episode that doesn't stay is forgotten before it is encoded if it fits into ``buffer_bytes``, else its file is
            removed. Default: all.
        blueprint: the layout that the viewer opens with: True: a layout made from the streams; False: none, or the one that a
            recording stream has already; a ``rerun.blueprint.Blueprint``; or a function that makes one, see
            :mod:`torchrl_rerun.layout`. Default: True.
        application_id: name that groups recordings in the viewer. Default: the environment's name, or the application id
            of the recording stream.
        recording_id: recordings of one id are shown as one. Default: a new id, or that of the recording stream.
        buffer_bytes: bound on the data in memory that waits to be written, in bytes; one frame of everything fits in any
            case. If the buffer is full the environment waits for the writer. Encoded images may take 8 MiB more, until they
            are enough to be written together. Default: 64 MiB.
        flush_seconds: age in seconds at which data is written though the buffer isn't full. Viewers and recording streams
            get it within a second. Default: 60 into a file with a black box, which holds what waits if the process dies;
            5 without a box, and for the files of episodes that are over.
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
        >>> stats = recorder.stats()
        >>> stats["frames"], stats["steps"], stats["episodes"], stats["frames_waiting"], stats["frames_lost"]
        (11, 10, 1, 0, 0)
        >>> env.close()

        Then ``rerun run.rrd`` opens it. To record each episode by itself, with properties of your own:

        >>> import os
        >>> from torchrl_rerun import KeepIf
        >>> recorder = RerunRecorder(f"{folder}/successes", keep=KeepIf(lambda episode: episode["success"]))
        >>> env = GymEnv("CartPole-v1").append_transform(recorder)
        >>> for success in (True, False):
        ...     rollout = env.rollout(100)
        ...     recorder.annotate(success=success)
        >>> env.close()
        >>> os.listdir(f"{folder}/successes")
        ['env_0_episode_000000.rrd']
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
        scene: bool | Source = False,
        episode_trigger: Trigger | None = None,
        step_trigger: Trigger | None = None,
        recording_length: int = 0,
        split: Split | int | None = None,
        keep: Keep | None = None,
        blueprint: bool | rrb.Blueprint | Callable[[Recorded], rrb.Blueprint] = True,
        application_id: str | None = None,
        recording_id: str | None = None,
        buffer_bytes: int = 64 << 20,
        flush_seconds: float | None = None,
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "sink", "__class__")}
        super().__init__(in_keys=in_keys)
        if in_keys is not None:
            given["in_keys"] = self.in_keys  # a list of keys: TorchRL takes a single one, too
        self._session = Session.of(sink, Options(**given))
        self._begin()

    def _begin(self) -> None:
        """Make the state of a recorder that has seen no frame."""
        self._owner = Owner()
        self._front_end: FrontEnd | None = FrontEnd(self._session, self._owner.behind)
        self._rollouts = Rollouts(self._front_end)
        self._now = _Now()
        close_at_end(self, self._front_end.close_quietly)

    # --- what TorchRL calls ---

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        if is_compiling():
            untraced(self._see_reset, tensordict, tensordict_reset)
        else:
            self._see_reset(tensordict, tensordict_reset)
        return tensordict_reset

    def _see_reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> None:
        front_end, env = self._listening(), self.environment
        if front_end is None:
            return
        resets = {} if env is None else partial_resets.resets_in(env, tensordict)
        if env is None or not resets or self._now.is_rehearsal:
            self._now.is_rehearsal = is_within(*_REHEARSALS)
        if self._now.is_rehearsal:
            return
        with front_end.lock:
            front_end.record_unseen_step()
            if env is None or not resets:
                front_end.reset(self._environment, tensordict_reset)
                return
            mask, begun = partial_resets.reset_envs(env, resets, tensordict.batch_size.numel())
            if () in resets:
                front_end.reset(self._environment, tensordict_reset, mask)
            else:
                front_end.regroup(self._environment, tensordict_reset, resets, mask, begun)

    def _reset_on_native_autoreset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        if is_compiling():
            untraced(self._see_native_autoreset, tensordict, tensordict_reset)
        else:
            self._see_native_autoreset(tensordict, tensordict_reset)
        return tensordict_reset

    def _see_native_autoreset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> None:
        front_end, env = self._listening(), self.environment
        if front_end is None or env is None or self._now.is_rehearsal:
            return
        resets = partial_resets.resets_in(env, tensordict)
        mask, _ = partial_resets.reset_envs(env, resets, tensordict.batch_size.numel()) if resets else (None, None)
        if mask is not None and mask.any():
            # The flags are still those of the episode that ended. TorchRL lowers them after this hook.
            flags = {key: torch.zeros_like(tensordict_reset.get(key)) for key in env.done_keys}
            with front_end.lock:
                front_end.reset(self._environment, tensordict_reset.clone(recurse=False).update(flags), mask)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        # Called before the environment steps, the last transform first: this is the policy's own action. Transforms in
        # front have yet to change it, and `_step` sees it changed.
        # A replay buffer calls it, too, when it stores data. That data is recorded when it is sampled, by `forward`.
        if is_compiling():
            untraced(self._see_inv_call, tensordict)
        else:
            self._see_inv_call(tensordict)
        return tensordict

    def _see_inv_call(self, tensordict: TensorDictBase) -> None:
        front_end = self._listening()
        if self._now.is_rehearsal:
            self._now.is_rehearsal = is_within(*_REHEARSALS)
        if front_end is not None and not self._now.is_rehearsal:
            with front_end.lock:
                container = self.__dict__.get("_container")
                is_alone = container is not None and not isinstance(container(), Compose)
                self._now.stepping = front_end.before_step(self._environment, tensordict, is_alone=is_alone)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if is_compiling():
            untraced(self._see_step, tensordict, next_tensordict)
        else:
            self._see_step(tensordict, next_tensordict)
        return next_tensordict

    def _see_step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> None:
        front_end = self._listening()
        if front_end is not None and not self._now.is_rehearsal:
            with front_end.lock:
                front_end.after_step(self._environment, tensordict, next_tensordict)

    def _post_step_mdp_hooks(
        self, tensordict: TensorDictBase, tensordict_: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        if is_compiling():
            untraced(self._see_outcome, tensordict)
        else:
            self._see_outcome(tensordict)
        return tensordict, tensordict_

    def _see_outcome(self, tensordict: TensorDictBase) -> None:
        front_end = self._front_end
        if front_end is not None and not self._now.is_rehearsal and self._owner.is_or_becomes(self):
            with front_end.lock:
                front_end.revise_step(tensordict.get("next"))

    def _check_batched_worker_compat(self) -> None:
        sink = self._session.target
        shared_paths.add(sink.identity)
        warn(
            f"a RerunRecorder is inside the environments of a batch: {sink.for_workers}. "
            "Append the recorder to the batched environment for a single recording, and for the flags that a collector sets."
        )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Record a stored rollout that passes, in a replay buffer for example: see :meth:`log_rollout`.

        Args:
            tensordict: ``[*batch, time]``. Data without ``"next"`` is no rollout, and passes unrecorded.

        Returns:
            The tensordict, unchanged.
        """
        if "next" in tensordict.keys():
            self.log_rollout(tensordict)
        return tensordict

    def clone(self) -> RerunRecorder:
        """Return a copy for another environment. It goes on with the recording if this recorder's environment is gone.

        ``TransformedEnv(env, transform)`` moves the transforms of ``env`` by cloning them. TorchRL also clones transforms to
        build the ``parent`` of a later one: these clones record nothing.
        """
        copy: RerunRecorder = super().clone()
        copy._session, copy._front_end, copy._owner, copy._now = self._session, self._front_end, self._owner, _Now()
        if is_within(Compose._rebuild_up_to.__code__, depth=4):  # noqa: SLF001 - nothing public tells them apart
            copy._front_end = None
        return copy

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save nothing: the recordings tell where the run is."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        """Load nothing: checkpoints of version 0.1.0 hold counters that nothing needs."""

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        for name in ("_front_end", "_rollouts", "_owner", "_now"):
            state.pop(name)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._session = dataclasses.replace(self._session, is_copy=True)
        self._begin()

    # --- what the user calls ---

    def close(self) -> None:
        """Dump, then end the recording and add its layout. ``env.close()`` calls this; closing again does nothing.

        Raises:
            RecordingError: data could not be written. The message gives the cause and the number of lost frames. In the
                workers of a batched environment it is a warning.
        """
        with self._at_rest() as recording:
            if recording is not None and in_worker_process():
                close_quietly(recording)  # an error would end the worker, and the batch would wait for it
            elif recording is not None:
                recording.close()

    @property
    def num_envs(self) -> int:
        """The number of environments, recorded or not; 0 before the first frame."""
        return 0 if self._recording is None else self._recording.source.envs

    def callback(self, env: EnvBase, tensordict: TensorDictBase) -> None:
        """Record a rollout without being appended to its environment: ``env.rollout(100, callback=recorder.callback)``.

        Prefer ``append_transform``, or :meth:`log_rollout` on the rollout: they lose nothing. torchrl 0.14 calls a callback
        after each step but the last, so that data is missing:

        - with ``break_when_any_done`` or ``break_when_all_done``, the first observation, action and reward;
        - otherwise the last transition.

        The end of a rollout that stops is recorded with the next :meth:`dump` or :meth:`close`.

        Args:
            env: the environment of the rollout.
            tensordict: the data after a step, ``[*batch]``, as the rollout passes it.

        Raises:
            ValueError: the recorder has ``render=True``, which is for environments that it is appended to.
        """
        if self._front_end is None or self.environment is not None:
            return  # appended: the environment's own steps are recorded already
        self._must_not_render()
        if "next" in tensordict.keys():
            with self._front_end.lock:
                self._rollouts.record_frame(env, tensordict)
            return
        # A rollout that stops passes the root of the next transition, and completes this very object in the next step.
        self._release_held()
        self._now.held = (env, tensordict)

    def log_rollout(self, tensordict: TensorDictBase, *, begins: bool | Sequence[bool] = False) -> None:
        """Record a stored rollout, such as ``env.rollout()`` or a collector returns.

        A rollout that goes on where the last one ended (the batches of a collector) continues its episodes; any other rollout
        begins new ones. Rows that a ``"mask"`` entry (``split_trajectories``) marks as padding are left out. For data of
        other kinds see :func:`replay`.

        Args:
            tensordict: ``[*batch, time]`` in TorchRL's form: root keys at t, ``("next", ...)`` keys at t + 1. Without a
                dimension it is a single moment.
            begins: whether new episodes begin though the rollout looks as if it went on; or for each environment.

        Raises:
            KeyError: there is no ``"next"``: the data is no rollout.
            ValueError: the recorder has ``render=True``: stored data can't be rendered any more.
        """
        if self._front_end is None:
            return
        self._must_not_render()
        if "next" not in tensordict.keys():
            raise KeyError("'next' is missing: log_rollout takes rollouts, with what each step led to under 'next'")
        rollout = tensordict if tensordict.batch_dims else tensordict.unsqueeze(0)
        with self._front_end.at_rest():
            self._rollouts.record(self.environment, rollout, begins)

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

    @contextlib.contextmanager
    def _at_rest(self) -> Iterator[Recording | None]:
        self._release_held()
        if self._front_end is None:
            yield None
            return
        with self._front_end.at_rest():
            self._front_end.record_unseen_step()
            yield self._front_end.recording

    @property
    def environment(self) -> EnvBase | None:
        """The environment that the recorder is appended to; None if it stands alone or in a replay buffer."""
        return self._environment()

    def _environment(self) -> EnvBase | None:
        try:
            return self.container
        except ValueError:  # torchrl 0.14: the container is neither an environment nor a Compose
            return None

    def _listening(self) -> FrontEnd | None:
        """Return the front end, if this recorder is the one among its clones that is recorded."""
        return self._front_end if self._front_end is not None and self._owner.is_or_becomes(self) else None

    def _must_not_render(self) -> None:
        if self._session.options.render:
            raise ValueError(
                "render=True takes pictures of an environment while it runs, which data that is stored or passed to a "
                "callback has none of: append the recorder to the environment, or leave out render"
            )

    def _release_held(self) -> None:
        if self._now.held is not None and self._front_end is not None:
            env, tensordict = self._now.held
            self._now.held = None
            if "next" in tensordict.keys():  # else the rollout ended before it was stepped
                with self._front_end.lock:
                    self._rollouts.record_frame(env, tensordict)


@dataclasses.dataclass(slots=True)
class _Now:
    """State that changes from step to step; apart, because an attribute of an ``nn.Module`` takes microseconds to set.

    Attributes:
        is_rehearsal: whether ``check_env_specs`` is trying the environment out.
        stepping: the last step of the environment.
        held: the environment and the last data that the callback of a stopping rollout got.
    """

    is_rehearsal: bool = False
    stepping: Stepping | None = None
    held: tuple[EnvBase, TensorDictBase] | None = None


_REHEARSALS = (check_env_specs.__code__, EnvCreator.init_.__code__)
"""Functions that try an environment out before it is used: to check it, or to know it before workers make their own."""
