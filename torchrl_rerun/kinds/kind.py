"""The interface of a kind of data: how it is recognised, stored, shown and read back.

A kind is a class in a file of its own beside this one. The engine, the readers and the layout use this interface alone.
A kind of your own is a subclass, and a value of ``RerunRecorder(..., kinds={...})``.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.kinds.arrow import Column
from torchrl_rerun.kinds.exact import EXACT, exact_column, flattened
from torchrl_rerun.kinds.keys import name_of
from torchrl_rerun.kinds.leaf import Leaf
from torchrl_rerun.kinds.shapes3d import Poses
from torchrl_rerun.kinds.streams import Stream

Discrete = Literal["index", "one_hot"]
"""How a discrete value is written: the number of its category, or one number for each category."""


class Plot(Enum):
    """Views that several streams share.

    Attributes:
        LINES: a line for each number, over time.
        LANES: a lane for each stream, with a bar for each state.
    """

    LINES = "lines"
    LANES = "lanes"


@dataclass(frozen=True)
class View:
    """The view of one stream in the default layout.

    Attributes:
        make: the class of the view. Called with ``origin``, ``name``, the options, and on a wall ``titlebar``.
        options: further arguments.
        rank: position among the views of an environment: lower numbers come first.
        is_large: whether the view needs as much room as a picture, and is shown on the wall of many environments.
        follows: name of an entity below that of the stream, which the eye of a 3D view follows. Default: none.
        frames: number of frames before the cursor that are shown, too, by the name of an entity below that of the stream. Default:
            that at the cursor alone.
        together: makes one view of many environments, of their entities; called with these and the name. Default: None, each has
            a view of its own.
    """

    make: type[rrb.View]
    options: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 1
    is_large: bool = False
    follows: str = ""
    frames: Mapping[str, int] = field(default_factory=dict)
    together: Callable[[Sequence[str], str], rrb.View] | None = None

    def made(self, origin: str, **rest: Any) -> rrb.View:
        """Return the view of an entity.

        Args:
            origin: path of the entity.
            rest: further arguments, such as ``name``.
        """
        options = dict(self.options)
        if self.follows:
            eye = copy.copy(options["eye_controls"])
            eye.tracking_entity = f"{origin}/{self.follows}"
            options["eye_controls"] = eye
        if self.frames:
            options["overrides"] = {f"{origin}/{name}": _frames_before(count) for name, count in self.frames.items()}
        return self.make(origin=origin, **rest, **options)


def _frames_before(count: int) -> list[Any]:
    """Return what has a view show an entity of some frames before the cursor as well."""
    at = rr.TimeRangeBoundary.cursor_relative
    return [rrb.VisibleTimeRanges([rr.VisibleTimeRange("frame", start=at(seq=-count), end=at())])]


class Encoded(NamedTuple):
    """Encoded values.

    Attributes:
        files: one for each value that could be encoded.
        keyframes: for each file of a video, whether decoding can begin with it. Empty for other files.
        lost: positions of the values that no file can hold, and the reason for each.
    """

    files: list[bytes]
    keyframes: list[bool]
    lost: dict[int, str]


class Encoder(Protocol):
    """Encodes the values of one stream of an environment, on threads beside the writer's.

    Attributes:
        is_in_order: whether a value can be encoded only after the one before it.
    """

    @property
    def is_in_order(self) -> bool: ...

    def encode(self, rows: npt.NDArray[Any], episodes: npt.NDArray[np.int64]) -> Encoded:
        """Encode rows ``[n, *stream.row_shape]``. Row ``i`` belongs to the episode ``episodes[i]``."""

    def columns(self, files: Sequence[bytes], keyframes: Sequence[bool]) -> list[Column]:
        """Return the columns of ``n`` encoded values."""


_KINDS: dict[str, type[Kind]] = {}


@dataclass(frozen=True)
class Kind:
    """One kind of data: how it is recognised, stored, shown and read back.

    A kind is a frozen dataclass. Its fields are the options of the user, and facts that :meth:`fitted` found out from the
    first value of a key. All fields have defaults, are hashable, and can be written as JSON. The name of a kind is in
    recordings, and stays the same for ever.

    :meth:`columns` and :meth:`values` are the two directions. If ``columns`` leaves out
    :func:`~torchrl_rerun.exact_column`, override ``components`` and ``values`` too.

    Attributes:
        name: name of the kind in recordings and in ``kinds={...}``. Two kinds never share one.
        components: names of Rerun's components. Each row has at least one of them. Default: that of
            :func:`~torchrl_rerun.exact_column`.
        plot: the views that streams of this kind share. Default: None, each has a view of its own.
        is_picture: whether values are pictures ``[height, width, channels]``, decoded one after the other. Subclasses of
            ``Image``, ``Depth`` and ``Segmentation`` alone are.
        is_camera: whether values are pictures in the colours of a camera, which video players show. Subclasses of ``Image``
            alone are.
        is_bulky: whether arrays without a fixed shape are as large as pictures, so that they wait in blocks of their own.
        is_scene: whether values tell where bodies are in space, see :meth:`poses`.
        lasts: whether values often stay as they are for many steps. Rows are then stored where a value changes, and are
            given back for all steps. A kind with an :meth:`encoder` stores each value.
    """

    name: ClassVar[str]
    components: ClassVar[tuple[str, ...]] = (EXACT,)
    plot: ClassVar[Plot | None] = None
    is_picture: ClassVar[bool] = False
    is_camera: ClassVar[bool] = False
    is_bulky: ClassVar[bool] = False
    is_scene: ClassVar[bool] = False
    lasts: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if (cls.is_picture or cls.is_camera) and not hasattr(cls, "is_video"):
            raise TypeError(
                f"{cls.__qualname__} is no subclass of Image, Depth or Segmentation, by which pictures are decoded: leave out "
                "is_picture and is_camera, which drawing and reading back don't need"
            )
        if cls.lasts and cls.encoder is not Kind.encoder:
            raise TypeError(f"{cls.__qualname__} has an encoder, by which each value is stored: leave out lasts = True")
        if "name" not in cls.__dict__:
            return
        known = _KINDS.get(cls.name)
        if known is not None and _origin(known) != _origin(cls):
            raise ValueError(
                f"{cls.__module__}.{cls.__qualname__} has the name of {known.__module__}.{known.__qualname__}, {cls.name!r}: "
                "two kinds never share one"
            )
        _KINDS[cls.name] = cls

    # --- recognised ---

    @classmethod
    def recognised(cls, leaf: Leaf) -> Self | None:
        """Return the kind with its default options if a key is of this kind without being told.

        Args:
            leaf: the key, its spec and its first value.
        """
        del leaf
        return None

    def fitted(self, leaf: Leaf) -> Self:
        """Return the kind with everything that a key tells of its values filled in.

        Args:
            leaf: the key, its spec and its first value.

        Raises:
            ValueError: values of the key can't be of this kind; :meth:`misfit` makes the message.
        """
        del leaf
        return self

    def misfit(self, leaf: Leaf, why: str) -> ValueError:
        """Return the error of a key that can't be of this kind.

        Args:
            leaf: the key.
            why: the reason, as the end of a sentence.
        """
        return ValueError(f"kinds[{name_of(leaf.key)}] = {self.name!r} doesn't fit {why}")

    def named(self, leaf: Leaf, names: Sequence[str]) -> Self:
        """Return the kind with names of the numbers of a row, or of the categories.

        Raises:
            ValueError: there are too few or too many names, or values of this kind have no numbers to name.
        """
        del names
        raise ValueError(f"names[{name_of(leaf.key)}]: a key of kind {self.name!r} has no numbers to name")

    def check(self) -> None:
        """Raise ImportError if a package is missing that recording this kind needs."""

    # --- stored ---

    def columns(self, stream: Stream, rows: npt.NDArray[Any]) -> list[Column]:
        """Return the columns of some rows, one list of component values for each row.

        Default: the numbers as they are, which the viewer does not show.

        Args:
            stream: the stream.
            rows: ``[n, *stream.row_shape]``; if :meth:`is_of_any_size`, an object array ``[n]`` of arrays.
        """
        return [exact_column(stream.numbers(rows))]

    def static(self, stream: Stream, agent: int) -> Iterable[Any]:
        """Return columns that do not change over time, as Rerun's ``Archetype.columns()`` gives them. Default: none.

        Args:
            stream: the stream.
            agent: number of the agent among those of all groups.
        """
        del stream, agent
        return ()

    def below(self, stream: Stream, rows: npt.NDArray[Any]) -> Mapping[str, list[Column]]:
        """Return columns of entities below that of the stream, by their names: what is drawn, and not read back. Default: none.

        Args:
            stream: the stream.
            rows: ``[n, *stream.row_shape]``.
        """
        del stream, rows
        return {}

    def static_below(self, stream: Stream, number: int) -> Iterable[tuple[str, Iterable[Any]]]:
        """Return what doesn't change of the entities below that of the stream: their names, and columns. Default: none.

        Args:
            stream: the stream.
            number: number of the environment among those that are recorded.
        """
        del stream, number
        return ()

    def assets(self) -> Iterable[str]:
        """Return the digests of what :meth:`below` needs beside the rows. Default: none."""
        return ()

    def encoder(self, stream: Stream, fps: float | None) -> Encoder | None:
        """Return a new encoder of one environment's values, or None if :meth:`columns` stores them. Default: None.

        Args:
            stream: the stream.
            fps: frames per second of playback. None: unknown.
        """
        del stream, fps
        return None

    def is_of_any_size(self, stream: Stream) -> bool:
        """Return whether rows whose shapes differ are stored by this kind. Default: False."""
        del stream
        return False

    def holds(self, stream: Stream, value: Any) -> bool:
        """Return whether this kind stores one value of a key whose values vary in shape or are Python objects.

        Other values are stored as tensors or texts, which come back and are not drawn. A kind that holds arrays of other
        shapes than the usual one overrides :meth:`is_of_any_size`, :meth:`columns`, :meth:`values` and ``components`` with
        it. Default: True if the value is an array of the usual shape.
        """
        return isinstance(value, np.ndarray) and bool(value.shape == stream.row_shape)

    # --- read back ---

    def check_readable(self, stream: Stream) -> None:
        """Raise ValueError if values of this kind can't be read here. Default: they can."""

    def values(self, stream: Stream, batch: pa.RecordBatch) -> npt.NDArray[Any]:
        """Return the rows ``[n, *stream.row_shape]`` that :meth:`columns` stored, bit for bit.

        Default: the numbers that :func:`torchrl_rerun.kinds.exact.exact_column` holds.
        """
        return stream.narrowed(flattened(batch.column(EXACT))).reshape(len(batch), *stream.row_shape)

    def recorded_shape(self, stream: Stream) -> tuple[int, ...]:
        """Return the shape of one row as it is read back. Default: the shape of the values."""
        return stream.row_shape

    def poses(self, stream: Stream, rows: npt.NDArray[Any]) -> Poses:
        """Return where the bodies of a scene are; other kinds have none.

        Args:
            stream: the stream.
            rows: its rows, ``[n, *stream.row_shape]``.
        """
        raise NotImplementedError(f"{self.name!r} is no scene")

    # --- shown ---

    def view(self, stream: Stream) -> View | None:
        """Return the view of a stream in the default layout, or None. Default: None."""
        del stream
        return None

    # --- told ---

    @property
    def format(self) -> str | None:
        """Format in which pictures are stored; None for all other data."""
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers of a row, or of the categories; empty if none are known."""
        return ()

    @property
    def discrete(self) -> Discrete | None:
        """Notation of discrete values; None for all other data."""
        return None

    @property
    def categories(self) -> tuple[int, ...]:
        """Numbers of categories of discrete values, one for each number or one-hot segment."""
        return ()

    def options(self, image_format: str | None = None) -> Self:
        """Return the kind as a user would write it to record the same values again.

        Args:
            image_format: another format for images. Default: the same one.
        """
        del image_format
        return self

    def to_schema(self) -> dict[str, Any]:
        """Return the fields of the kind in a recording's schema, as JSON has them. Default: all that differ from their defaults."""
        told = {}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value != each.default:
                told[each.name] = list(value) if isinstance(value, tuple) else value
        return {"options": told} if told else {}

    @classmethod
    def from_schema(cls, fields: Mapping[str, Any]) -> Self:
        """Return the kind that :meth:`to_schema` described.

        Args:
            fields: the fields of a key in a recording's schema.
        """
        told = fields.get("options", {})
        known = {each.name for each in dataclasses.fields(cls)}
        return cls(**{name: _tuples(value) for name, value in told.items() if name in known})


def _origin(kind: type[Kind]) -> tuple[str, str]:
    """Return where a class was written: a module may be imported by two names, and a notebook's cell run again."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file or kind.__module__, kind.__qualname__


def names_of_kinds() -> list[str]:
    """Return the names of all kinds that there are in this process, with those of the user."""
    return list(_KINDS)


def registered(name: str) -> type[Kind] | None:
    """Return the kind of a name; None if there is no class of it in this process."""
    return _KINDS.get(name)


def archetype_columns(archetype: Iterable[Any], counts: Iterable[int]) -> Iterator[Column]:
    """Return what Rerun's ``Archetype.columns()`` made as the columns of rows.

    Args:
        archetype: for example ``rr.Arrows3D.columns(vectors=...)``.
        counts: number of values of each row.

    Raises:
        ValueError: a component has another number of values than ``counts`` add up to.

    >>> import rerun as rr
    >>> [column] = archetype_columns(rr.Arrows3D.columns(vectors=np.zeros((6, 3), np.float32)), [3, 3])
    >>> column.component, len(column.values)
    ('Arrows3D:vectors', 2)
    """
    offsets = pa.array(np.cumsum([0, *counts]), pa.int32())
    for each in archetype:
        descriptor, values = each.component_descriptor(), each.as_arrow_array().flatten()
        if len(values) != offsets[-1].as_py():
            raise ValueError(
                f"counts add up to {offsets[-1].as_py()}, and there are {len(values)} values of {descriptor.component}"
            )
        column = pa.ListArray.from_arrays(offsets, values)
        yield Column(descriptor.component, _last(descriptor.archetype), _last(descriptor.component_type), column)


def _last(name: str | None) -> str | None:
    return None if name is None else name.rpartition(".")[2]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
