"""Infos: read what an environment says beside its observations, ``in_keys=[("info", "x_position")]``.

Vector environments say it in one of two forms:

- Gymnasium: a dictionary of arrays, each with a mask of the environments that gave the value: ``{"x": [0.5, 0], "_x": [True, False]}``.
- Stable-Baselines3, and Gymnasium's ``DictInfoToList``: a list of dictionaries, one for each environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from torchrl_rerun.kinds.keys import Key
from torchrl_rerun.kinds.objects import MISSING
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.recording.changes import ChangedError
from torchrl_rerun.wrappers.readers import ObjectReader, Reader, as_array

INFO = "info"
"""The first part of the keys of infos."""


FINAL_INFO = "final_info"
"""The name under which the infos of the last step of an episode stand, if the environment was reset within the step."""


EPISODE = "episode"
"""The name of the statistics that Gymnasium's and Stable-Baselines3's wrappers give at the ends of episodes."""


class StepInfos(NamedTuple):
    """The infos of a step within which some environments were reset.

    Attributes:
        infos: the infos of all environments, in either form.
        ended: the environments whose episodes ended, bool ``[envs]``. Their infos of the step are within ``"final_info"``, if
            there is one.
    """

    infos: Any
    ended: npt.NDArray[np.bool_]


def is_info(key: Key) -> bool:
    """Return whether a key names an info."""
    return len(key) > 1 and key[0] == INFO


def info_of(infos: Any, path: Key, env: int | None) -> Any:
    """Return the info of one environment; MISSING: it gave none.

    Args:
        infos: the infos of all environments, in either form; of one environment if ``env`` is None.
        path: the names on the way to the info.
        env: environment index. Default: there is one environment, and no batch.
    """
    if isinstance(infos, StepInfos):
        assert env is not None, "of a batch"
        if infos.ended[env] and info_of(infos.infos, (FINAL_INFO,), env) is not MISSING:
            of_last = info_of(infos.infos, (FINAL_INFO, *path), env)
            # `gymnasium.wrappers.vector.RecordEpisodeStatistics` is around the environments, and knows no last infos.
            if of_last is not MISSING or path[0] != EPISODE:
                return of_last
        infos = infos.infos
    found = infos
    if env is not None and not isinstance(infos, Mapping):
        found, env = infos_at(infos, env), None
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            return MISSING
        there = None if env is None else found.get(f"_{name}")
        if there is not None and not bool(there[env]):
            return MISSING
        found = found[name]
    is_of_all = env is not None and not (isinstance(found, Mapping) and path == (FINAL_INFO,))
    return found[env] if is_of_all else found


def infos_at(infos: Any, env: int) -> Any:
    """Return the infos of one environment in a list of them; None if there are none.

    Args:
        infos: the list.
        env: environment index.
    """
    try:
        return infos[env]
    except (TypeError, LookupError):
        return None


def names_in(infos: Any) -> list[Key]:
    """Return the keys of all infos that an environment gave.

    Args:
        infos: the infos of one environment, or of all.
    """
    if isinstance(infos, StepInfos):
        return names_in(infos.infos)
    if isinstance(infos, list | tuple):
        return list(dict.fromkeys(key for each in infos for key in names_in(each)))
    found: list[Key] = []
    for name, value in infos.items() if isinstance(infos, Mapping) else ():
        if isinstance(name, str) and not (name.startswith("_") and name[1:] in infos):
            found += (
                [(INFO, name, *key[1:]) for key in names_in(value)] if isinstance(value, Mapping) else [(INFO, name)]
            )
    return found


class InfoReader(Reader):
    """Read an info that all environments of a batch give, as an array."""

    may_be_missing = True

    def read(self, root: Any) -> Any:
        """Return the values of all environments, ``[envs, *stream.shape]``.

        Raises:
            ChangedError: some environments gave none, or one of another dtype or shape.
            KeyError: no environment gave one.
        """
        assert self.envs is not None, "of a batch"
        infos, path = root[self.field.steps[0]], self.field.steps[1:]
        if isinstance(infos, Mapping):
            values, there = _batch_of(infos, path)
            if there is not None and not np.asarray(there).all():
                raise ChangedError("given by some environments alone", is_shape_alone=True)
            return self.fitted(values, (self.envs, *self.stream.shape))
        each = [info_of(infos, path, env) for env in range(self.envs)]
        missing = [one is MISSING for one in each]
        if all(missing):
            raise KeyError(path)
        if any(missing):
            raise ChangedError("given by some environments alone", is_shape_alone=True)
        return self.fitted(np.stack([as_array(one) for one in each]), (self.envs, *self.stream.shape))

    def varied(self, stream: Stream) -> Reader:
        """Return the reader that takes values of any shape, and of some environments alone."""
        return InfoObjectReader(stream, self.field, self.envs)


class InfoObjectReader(ObjectReader):
    """Read an info of a batch of which some environments may give none, or whose values are objects."""

    may_be_missing = True

    def read(self, root: Any) -> Any:
        """Return the values of all environments, object ``[envs]``; MISSING where an environment gave none.

        Raises:
            KeyError: no environment gave one.
        """
        assert self.envs is not None, "of a batch"
        infos, path = root[self.field.steps[0]], self.field.steps[1:]
        each = [info_of(infos, path, env) for env in range(self.envs)]
        if all(one is MISSING for one in each):
            raise KeyError(path)
        out = np.empty(self.envs, object)
        for env, one in enumerate(each):
            out[env] = self.row(one)
        return out


def _batch_of(infos: Mapping[str, Any], path: Key) -> tuple[Any, npt.NDArray[np.bool_] | None]:
    """Return the array of an info, and the mask of the environments that gave it; None: all did, as far as is known."""
    found: Any = infos
    there = None
    for name in path:
        mask = found.get(f"_{name}")
        if mask is not None:
            there = as_array(mask) if there is None else there & as_array(mask)
        found = found[name]
    return found, there
