"""Options: what a user asks of a recorder. Each is checked when the recorder is made, and the check stands beside it."""

# ruff: noqa: RUF009 - `_option` makes a field of the dataclass
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Self, TypedDict

import rerun.blueprint as rrb

from torchrl_rerun.blocks.memory import MaxAge
from torchrl_rerun.errors import warn
from torchrl_rerun.kinds.describe import check_format, check_kinds, check_names, describe, refused_format
from torchrl_rerun.kinds.keys import AnyKey, Key, as_key, name_of
from torchrl_rerun.kinds.kind import Kind
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.picture import ImageFormat
from torchrl_rerun.kinds.schema import SPLITS, Split
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.recording.keep import Keep
from torchrl_rerun.recording.logged_envs import check_envs
from torchrl_rerun.scenes.known import SOURCES
from torchrl_rerun.scenes.source import Source

Trigger = Callable[[int], bool]
"""Decide whether a recording starts, by the number of an episode or of a step."""

FLUSH_SECONDS = 5.0
"""Seconds that frames wait by default to be written; and episodes that are over."""

KEPT_SECONDS = 60.0
"""Seconds that frames wait by default in a black box. Blocks that are cut short make the chunks of slow environments small, and a
chunk costs 2 kB."""

Check = Callable[[str, Any], Any]
"""Return the value of an option in its normal form, or raise TypeError or ValueError; called with the option's name."""


class RecorderOptions(TypedDict, total=False):
    """The options of a recorder as its users pass them; :class:`~torchrl_rerun.RerunRecorder` says what each means."""

    in_keys: Sequence[AnyKey] | None
    logged_envs: int | Sequence[int] | slice | str | None
    aggregate: bool | None
    skip: int
    fps: float | None
    image_format: ImageFormat
    kinds: Mapping[Any, Kind | str] | None
    names: Mapping[Any, Sequence[str]] | None
    render: bool
    scene: bool | Source
    episode_trigger: Trigger | None
    step_trigger: Trigger | None
    recording_length: int
    split: Split | int | None
    keep: Keep | None
    blueprint: bool | rrb.Blueprint | Callable[[Recorded], rrb.Blueprint]
    application_id: str | None
    recording_id: str | None
    buffer_bytes: int
    flush_seconds: float | None
    overwrite: bool
    resume: bool


# --- checks of one option ---


def _of_type(types: Any, advice: str) -> Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, types):
            raise TypeError(f"{name}={value!r} is of type {type(value).__name__}; pass {advice}")
        return value

    return check


def _positive(types: Any, advice: str, *, is_finite: bool = False) -> Check:
    is_number = _of_type(types, advice)

    def check(name: str, value: Any) -> Any:
        number = is_number(name, value)
        if number is not None and (not number > 0 or (is_finite and math.isinf(number))):
            raise ValueError(f"{name}={number!r} must be positive{' and finite' if is_finite else ''}")
        return number

    return check


def _count(least: int, advice: str) -> Check:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name}={value!r} is of type {type(value).__name__}; pass a whole number: {advice}")
        if value < least:
            raise ValueError(f"{name}={value}: pass {least} or more: {advice}")
        return value

    return check


def _one_of(choices: Iterable[str]) -> Check:
    def check(name: str, value: Any) -> Any:
        if value not in choices:
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")
        return value

    return check


def _keys(name: str, value: Any) -> tuple[Key, ...] | None:
    if value is not None and not value:
        raise ValueError(f"{name} is empty: name the keys to record, or leave it out to record all of the specs")
    return None if value is None else tuple(map(as_key, [value] if isinstance(value, str) else value))


def _envs(name: str, value: Any) -> Any:
    del name
    check_envs(value)
    return value


def _trigger(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"{name}={value!r} can't be called; pass a function of a number that returns a bool")
    return value


class DumpEvery(str):  # noqa: SLOT000 - it has an attribute
    """The split ``"dump"``, of which dumps come by themselves: a recording ends when it has so many frames.

    Args:
        frames: frames of a recording.

    Attributes:
        frames: as given.

    >>> DumpEvery(1000) == "dump", DumpEvery(1000).frames
    (True, 1000)
    """

    frames: int

    def __new__(cls, frames: int) -> Self:
        """Return the split of recordings of so many frames."""
        made = super().__new__(cls, "dump")
        made.frames = frames
        return made

    def __reduce__(self) -> Any:
        return DumpEvery, (self.frames,)

    def __repr__(self) -> str:
        return repr(self.frames)


def _split(name: str, value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return DumpEvery(_count(1, "frames of a recording")(name, value))
    return value if value is None or isinstance(value, DumpEvery) else _one_of(SPLITS)(name, value)


# --- the options ---


def _option(check: Check, default: Any = None) -> Any:
    return dataclasses.field(default=default, metadata={"check": check})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of a recorder, all but its sink; ``RerunRecorder`` says what each means.

    Keys may be given as TorchRL takes them, ``"action"`` or ``("agents", "action")``. Attributes hold keys as tuples.

    Raises:
        TypeError: an option is of the wrong type.
        ValueError: an option is out of its range, or contradicts another one.
        ImportError: ``image_format`` asks for video, and PyAV isn't installed.

    >>> options = Options(in_keys=["observation"], skip=4)
    >>> options.in_keys, options.split
    ((('observation',),), 'run')
    """

    in_keys: tuple[Key, ...] | None = _option(_keys)
    logged_envs: Any = _option(_envs)
    aggregate: bool | None = _option(_of_type(bool | None, "True, False or None"))
    skip: int = _option(_count(1, "one frame in so many is recorded"), 1)
    fps: float | None = _option(_positive(int | float | None, "frames per second", is_finite=True))
    render: bool = _option(_of_type(bool, "True or False"), default=False)
    scene: bool | Source = _option(
        _of_type(bool | Source, "True, False or the source of a scene, such as MuJoCo(contacts=True)"), default=False
    )
    episode_trigger: Trigger | None = _option(_trigger)
    step_trigger: Trigger | None = _option(_trigger)
    recording_length: int = _option(_count(0, "steps; 0: to the end of the episode"), 0)
    keep: Keep | None = _option(_of_type(Keep | None, "a policy, like KeepLast(20) | KeepWorst(20)"))
    split: Split = _option(_split)
    blueprint: bool | rrb.Blueprint | Callable[[Recorded], rrb.Blueprint] = _option(
        _of_type(
            bool | rrb.Blueprint | Callable,
            "True, False, a rerun.blueprint.Blueprint, or a function of torchrl_rerun.layout.Recorded that makes one",
        ),
        default=True,
    )
    application_id: str | None = _option(_of_type(str | None, "a string"))
    recording_id: str | None = _option(_of_type(str | None, "a string"))
    buffer_bytes: int = _option(_positive(int, "a number of bytes"), 64 << 20)
    flush_seconds: float | None = _option(_positive(int | float | None, "a number of seconds"))
    overwrite: bool = _option(_of_type(bool, "True or False"), default=False)
    resume: bool = _option(_of_type(bool, "True or False"), default=False)
    # Options of kinds. Nothing outside of this module reads them but by the methods below.
    kinds: Mapping[Key, Kind] = _option(check_kinds)
    names: Mapping[Key, tuple[str, ...]] = _option(check_names)
    image_format: ImageFormat = _option(check_format, "jpeg")

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            object.__setattr__(self, option.name, option.metadata["check"](option.name, getattr(self, option.name)))
        if self.split is None:
            object.__setattr__(self, "split", "run" if self.keep is None else "episode")
        if self.recording_length and not self.has_triggers:
            raise ValueError(
                f"recording_length={self.recording_length} needs a trigger: pass episode_trigger or step_trigger, too"
            )
        if self.keep is not None and self.split != "episode":
            raise ValueError(
                f"keep={self.keep!r} needs split='episode', and split={self.split!r} was passed: leave out split"
            )
        if self.aggregate and self.split == "episode":
            raise ValueError(
                "aggregate=True needs split='run' or split='dump': statistics are of all environments together"
            )
        if self.overwrite and self.resume:
            raise ValueError(
                "overwrite=True and resume=True contradict one another: replace the run that is there, or go on with it"
            )

    @property
    def most_frames(self) -> int | None:
        """Number of frames after which a recording ends; None: it goes on."""
        return self.split.frames if isinstance(self.split, DumpEvery) else None

    @property
    def max_age(self) -> MaxAge:
        """How long frames wait to be written."""
        if self.flush_seconds is not None:
            return MaxAge.always(self.flush_seconds)
        return MaxAge.always(FLUSH_SECONDS) if self.split == "episode" else MaxAge(KEPT_SECONDS, FLUSH_SECONDS)

    @property
    def has_triggers(self) -> bool:
        """Whether frames are recorded only when a trigger has started a recording."""
        return self.episode_trigger is not None or self.step_trigger is not None

    @property
    def selects_all_frames(self) -> bool:
        """Whether no frame is left out by a trigger or by ``skip``."""
        return self.skip == 1 and not self.has_triggers

    @property
    def scene_sources(self) -> tuple[Source, ...]:
        """What is asked for the scene of an environment; empty: no scene is recorded, or a key has it."""
        if not isinstance(self.scene, Source):
            return SOURCES if self.scene else ()
        return () if self.scene.key is not None else (self.scene,)

    # --- kinds ---

    def describe(self, leaf: Leaf) -> Stream:
        """Return how a key is recorded. Warn if the lossy format that was asked for can't store its images.

        Args:
            leaf: the facts about the key.

        Raises:
            UnsupportedLeafError: no kind can hold the key's values.
            ValueError: the options of the key don't fit its values.
        """
        stream = describe(leaf, self.kinds, self.names, self.image_format)
        if isinstance(self.scene, Source) and leaf.key == self.scene.key:
            stream = dataclasses.replace(stream, scene=self.scene.kind_of(leaf))
        refused = refused_format(stream, self.kinds, self.image_format)
        if refused is not None:
            what = f"{stream.dtype} {stream.shape}" if stream.dtype != "object" else "images that vary"
            what = what if stream.kind.is_camera else f"pictures of kind {stream.kind.name!r}"
            warn(f"{name_of(stream.key)} is stored as {stream.kind.format!r}: {refused!r} can't hold {what}")
        return stream

    def choose_kind_of(self, key: Key) -> bool:
        """Return whether the options say of which kind a key is."""
        return key in self.kinds or (isinstance(self.scene, Source) and key == self.scene.key)

    def say_how_to_record(self, key: Key) -> bool:
        """Return whether the options choose a key's kind, or its names."""
        return self.choose_kind_of(key) or key in self.names

    def check_recorded(self, there: AbstractSet[Key]) -> None:
        """Raise KeyError if kinds, names or the scene name a key that isn't recorded.

        Args:
            there: the keys that are recorded, or could have been.
        """
        scene = [self.scene.key] if isinstance(self.scene, Source) and self.scene.key is not None else []
        for option, keys in {"kinds": self.kinds, "names": self.names, "scene": scene}.items():
            unknown = [name_of(key) for key in keys if key not in there]
            if unknown:
                raise KeyError(
                    f"{option} names {', '.join(unknown)}, which is not recorded; "
                    f"there are {', '.join(sorted(map(name_of, there)))}"
                )
