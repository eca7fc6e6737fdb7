"""``torchrl-rerun replay``."""

from __future__ import annotations

import functools
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from torchrl_rerun.cli.console import complaints, count, fail, from_here, said, with_progress, working

if TYPE_CHECKING:
    from torchrl_rerun.stored.replay import Replayed

_WHAT = "not replayed"
_MOST_PARTINGS = 10


class _Split(StrEnum):
    RUN = "run"
    EPISODE = "episode"


def replay_stored(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE", help="A file or a folder of stored trajectories, or several.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The recording (.rrd) to make, or a folder.", show_default=False)
    ],
    *,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", "-k", metavar="KEY=NAME", help="What an array is, as observation=img; may be repeated."),
    ] = None,
    render: Annotated[
        str | None,
        typer.Option("--render", metavar="ENV_ID", help="Render each moment in this gymnasium environment."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="With --render: replay from this seed and the stored actions.")
    ] = None,
    split: Annotated[
        _Split, typer.Option("--split", help="One recording of it all, or a folder with one of each episode.")
    ] = _Split.RUN,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a recording that exists.")] = False,
) -> None:
    """Make a recording of trajectories that were stored some other way.

    SOURCE is a tensordict that was saved with `torch.save` (`TensorDictRecorder` does) or memory-mapped, a dump of a
    TorchRL replay buffer, a Minari data set (its folder, or its id on this machine), an HDF5 or `.npz` file of arrays
    over time, a recording, or a folder of these. Several follow one another, each with new episodes. Nothing in it is
    executed, and it is never written to.

    The recording is put in place when it is whole: if anything fails, what was there before stays.

    What was stored without pictures can be rendered afterwards, and is compared with what the environment does:

        torchrl-rerun replay run.rrd -o watchable.rrd --render CartPole-v1
    """
    if seed is not None and render is None:
        raise typer.BadParameter("is what an environment is reset with: say which (--render)", param_hint="'--seed'")
    if render is not None and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        # What draws must be told before it is imported that there is no window.
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        with working("replaying"):
            from torchrl_rerun.stored.replay import replay

            replayed = replay(
                source,
                out,
                keys=_keys(key or []),
                render=render,
                seed=seed,
                progress=functools.partial(with_progress, what="replaying"),
                split=split.value,
                overwrite=overwrite,
            )
    except (OSError, ImportError, LookupError, ValueError) as error:
        fail(_WHAT, error.args[0] if isinstance(error, LookupError) else error)
    _say(replayed)


def _keys(given: list[str]) -> dict[Any, str]:
    keys: dict[Any, str] = {}
    for each in given:
        key, is_there, name = each.partition("=")
        if not (key and is_there and name):
            raise typer.BadParameter(f"{each!r} is not KEY=NAME, as observation=img", param_hint="'--key' / '-k'")
        keys[tuple(key.split("/"))] = name
    return keys


def _say(replayed: Replayed) -> None:
    for parting in replayed.partings[:_MOST_PARTINGS]:
        complaints.print("[yellow]parts from what is stored[/]:", escape(f"{parting}; no pictures from there on"))
    if len(replayed.partings) > _MOST_PARTINGS:
        complaints.print(f"[yellow]and so do {count(len(replayed.partings) - _MOST_PARTINGS, 'other episode')}[/]")
    if replayed.arrays:
        keys = {name: "/".join(key) for name, key in replayed.arrays.items()}
        taken = ", ".join(f"{name} as {key}" for name, key in keys.items())
        complaints.print(f"[dim]arrays: {escape(taken)}[/]")
    steps = f"{count(replayed.steps, 'step')} of {count(replayed.envs, 'environment')}"
    where = "" if replayed.path is None else str(from_here(replayed.path))
    said.print(f"[green]{escape(where)}[/]: {count(replayed.episodes, 'episode')}, {steps}, {escape(replayed.what)}")
