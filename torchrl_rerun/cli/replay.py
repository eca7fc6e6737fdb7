"""Command ``torchrl-rerun replay``: record trajectories that other programs stored."""

from __future__ import annotations

import functools
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from torchrl_rerun.cli.console import fail, format_count, messages, output, show_progress, show_status
from torchrl_rerun.paths import format_path

if TYPE_CHECKING:
    from torchrl_rerun.scenes.urdf import Urdf
    from torchrl_rerun.stored.replay import Replayed

_WHAT = "not replayed"
_MOST_DIVERGENCES = 10


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
        typer.Option(
            "--key", "-k", metavar="KEY=NAME", help="Assign an array to a key, as in observation=img; may be repeated."
        ),
    ] = None,
    render: Annotated[
        str | None,
        typer.Option("--render", metavar="ENV_ID", help="Render each time step in this gymnasium environment."),
    ] = None,
    scene: Annotated[
        str | None,
        typer.Option(
            "--scene",
            metavar="ENV_ID",
            help="Add the 3D scene of this gymnasium environment, or of a model's .xml or .urdf file; nothing is rendered.",
        ),
    ] = None,
    joints: Annotated[
        str | None,
        typer.Option(
            "--joints",
            metavar="KEY=NAME,...",
            help="With a .urdf: the key with the positions of joints, and a joint for each of its numbers; none if empty.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, help="With --render or --scene: reset with this seed and take the stored actions."
        ),
    ] = None,
    split: Annotated[
        _Split, typer.Option("--split", help="One recording of the whole, or a folder with one for each episode.")
    ] = _Split.RUN,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a recording that exists.")] = False,
) -> None:
    """Record trajectories that other programs stored.

    SOURCE is a tensordict that was saved with `torch.save` (`TensorDictRecorder` does) or memory-mapped, a dump of a
    TorchRL replay buffer, a Minari data set (its folder, or its id on this machine), an HDF5 or `.npz` file of arrays
    over time, a recording, or a folder of these. Several sources follow one another, each with new episodes. Code in a
    source is never executed, and a source is never written to.

    A recording gets its name when it is complete. If anything fails, an earlier recording stays.

    Trajectories without pictures can be rendered afterwards; the environment is compared with the stored data:

        torchrl-rerun replay run.rrd -o watchable.rrd --render CartPole-v1

    So can the scene of robots, seen from any side, which needs no graphics library:

        torchrl-rerun replay ant.npz -o ant.rrd --scene Ant-v5
        torchrl-rerun replay arm.npz -o arm.rrd --scene arm.urdf --joints observation=shoulder,elbow,,
    """
    if joints is not None and not (scene or "").endswith(".urdf"):
        raise typer.BadParameter("needs --scene FILE.urdf, whose joints it names", param_hint="'--joints'")
    if seed is not None and render is None and scene is None:
        raise typer.BadParameter(
            "needs --render or --scene: the seed resets the environment that is looked at", param_hint="'--seed'"
        )
    if render is not None and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        # MuJoCo and SDL read these variables when they are imported.
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        with show_status("replaying"):
            from torchrl_rerun.stored.replay import replay

            replayed = replay(
                source,
                out,
                keys=_parse_keys(key or []),
                render=render,
                scene=scene if joints is None else _parse_urdf(scene or "", joints),
                seed=seed,
                progress=functools.partial(show_progress, what="replaying"),
                split=split.value,
                overwrite=overwrite,
            )
    except (OSError, ImportError, LookupError, ValueError) as error:
        fail(_WHAT, error.args[0] if isinstance(error, LookupError) else error)
    _print_result(replayed)


def _parse_keys(given: list[str]) -> dict[Any, str]:
    keys: dict[Any, str] = {}
    for each in given:
        key, separator, name = each.partition("=")
        if not (key and separator and name):
            raise typer.BadParameter(f"{each!r} is not KEY=NAME, such as observation=img", param_hint="'--key' / '-k'")
        keys[tuple(key.split("/"))] = name
    return keys


def _parse_urdf(path: str, joints: str) -> Urdf:
    from torchrl_rerun.scenes.urdf import Urdf

    key, separator, names = joints.partition("=")
    if not (key and separator):
        raise typer.BadParameter(
            f"{joints!r} is not KEY=NAME,..., such as observation=hip,knee", param_hint="'--joints'"
        )
    return Urdf(path, {tuple(key.split("/")): [name or None for name in names.split(",")]})


def _print_result(replayed: Replayed) -> None:
    for divergence in replayed.divergences[:_MOST_DIVERGENCES]:
        messages.print(
            "[yellow]differs from the stored data[/]:", escape(f"{divergence}; no pictures or poses from there on")
        )
    if len(replayed.divergences) > _MOST_DIVERGENCES:
        messages.print(f"[yellow]and {format_count(len(replayed.divergences) - _MOST_DIVERGENCES, 'other episode')}[/]")
    if replayed.array_keys:
        keys = {name: "/".join(key) for name, key in replayed.array_keys.items()}
        assigned = ", ".join(f"{name} as {key}" for name, key in keys.items())
        messages.print(f"[dim]arrays: {escape(assigned)}[/]")
    steps = f"{format_count(replayed.steps, 'step')} of {format_count(replayed.envs, 'environment')}"
    where = "" if replayed.path is None else format_path(replayed.path)
    output.print(
        f"[green]{escape(where)}[/]: {format_count(replayed.episodes, 'episode')}, {steps}, {escape(replayed.description)}"
    )
