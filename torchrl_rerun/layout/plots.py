"""Plots: the numbers of an environment over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import rerun as rr
import rerun.blueprint as rrb

from torchrl_rerun.kinds.endings import DONE, FLAGS, TERMINATED, TRUNCATED
from torchrl_rerun.kinds.keys import REWARD
from torchrl_rerun.kinds.kind import Plot
from torchrl_rerun.kinds.streams import Stream
from torchrl_rerun.layout.axes import legend, legend_limit, time_axis, title_of, value_axis, with_env
from torchrl_rerun.layout.recorded import Recorded
from torchrl_rerun.layout.views import large_views

MAX_NAMED = 8
"""Numbers of a robot that share a plot. Of more, positions and velocities have a plot each."""

MAX_BESIDE = 4
"""Agents whose plots are side by side. The plots of more are tabs."""


def plots(recorded: Recorded, env: int | None) -> list[rrb.View | rrb.Container]:
    """Return the views of the numbers of an environment: rewards, states as lanes, and all other keys.

    - Returns are left out if :func:`layout` shows those of the whole run.
    - A key of which each agent has one number is a plot with a line for each agent.
    - A key of which each agent has several numbers is a plot for each agent, side by side.

    Args:
        recorded: contents of the recording.
        env: environment index.
    """
    return list(_plots(recorded, env))


def _plots(recorded: Recorded, env: int | None) -> Iterator[rrb.View | rrb.Container]:
    """Yield the plots of an environment in their order.

    - Rewards come first, and returns in a plot of their own: beside these rewards would be flat lines.
    - Lanes come next, or last if they show nothing but the flags that end episodes.
    - Keys that the environment tells beside the policy's observations come after all others.
    """
    streams = recorded.of(env)
    of_rewards = [
        stream
        for stream in streams
        if stream.kind.plot is Plot.LINES and (stream.reward_key or REWARD in stream.key[-1])
    ]
    others = [stream for stream in _numbers(streams) if stream not in of_rewards]
    states = _lanes(streams)
    second = any(stream.key[-1] not in FLAGS for stream in states)
    of_each = " of each agent" if any(stream.agents for stream in of_rewards) else ""
    rewards, returns = (
        [stream for stream in of_rewards if bool(stream.reward_key) is is_return] for is_return in (False, True)
    )
    if rewards:
        yield series(recorded, rewards, env, with_env(recorded, env, f"reward{of_each}"))
    if returns and not _is_in_returns(recorded, env):
        yield series(recorded, returns, env, with_env(recorded, env, f"return{of_each}"))
    if states and second:
        yield _state_lanes(recorded, states, env)
    for stream in sorted(others, key=_rank):
        yield _numbers_of(recorded, stream, env)
    if states and not second:
        yield _state_lanes(recorded, states, env)


def _is_in_returns(recorded: Recorded, env: int | None) -> bool:
    """Return whether the return of an environment is in the plot of the whole run, or on the wall beside statistics."""
    if env is None or recorded.below:  # compared runs have a plot of the returns of their episodes
        return False
    return not (recorded.statistics and any(large_views(stream) for stream in recorded.streams))


def _rank(stream: Stream) -> int:
    """Return the position of a plot: actions, observations, then keys that the policy doesn't see."""
    if stream.key[-1].startswith("action"):
        return 0
    return 2 if "info" in stream.key or stream.key[-1] == "step_count" else 1


def _numbers_of(recorded: Recorded, stream: Stream, env: int | None) -> rrb.View | rrb.Container:
    """Return a plot of a key, or one of each agent side by side."""
    title, axis, numbers = " / ".join(stream.key), time_axis(recorded, env), math.prod(stream.row_shape)
    if len(stream.agents) < 2 or numbers == 1:
        speeds = [name.endswith(" vel") for name in stream.kind.names]
        if len(speeds) > MAX_NAMED and any(speeds) and not all(speeds):
            path = recorded.path(stream, env)
            return rrb.Horizontal(
                *(
                    rrb.TimeSeriesView(
                        origin=path,
                        name=with_env(recorded, env, f"{what} of {title}"),
                        axis_x=axis,
                        overrides={path: rr.SeriesLines(visible_series=shown).visualizer()},
                        axis_y=value_axis(recorded, [stream], shown),
                        # The colours are the same.
                        plot_legend=legend(sum(shown) if what == "positions" else 0, legend_limit(recorded)),
                    )
                    for what, shown in (("positions", [not each for each in speeds]), ("velocities", speeds))
                ),
                name=with_env(recorded, env, title),
            )
        return series(recorded, [stream], env, with_env(recorded, env, title))
    beside = stream.agent_count <= MAX_BESIDE
    views = [
        rrb.TimeSeriesView(
            origin=recorded.path(stream, env, agent),
            name=title_of(recorded, env, stream, agent),
            axis_x=axis,
            axis_y=value_axis(recorded, [stream]),
            plot_legend=legend(
                numbers if agent == 0 else 0, legend_limit(recorded) // 2 if beside else legend_limit(recorded)
            ),
        )
        for agent in range(stream.agent_count)
    ]
    side = rrb.Horizontal if beside else rrb.Tabs
    return side(*views, name=with_env(recorded, env, title))


def _state_lanes(recorded: Recorded, states: Sequence[Stream], env: int | None) -> rrb.View:
    paths = [recorded.path(stream, env, agent) for stream in states for agent in range(stream.agent_count)]
    title = ", ".join(dict.fromkeys(stream.key[-1] for stream in states))
    return rrb.StateTimelineView(
        origin=recorded.origin(env),
        contents=paths,
        name=with_env(recorded, env, title),
        time_view=time_axis(recorded, env),
    )


def series(
    recorded: Recorded,
    streams: Sequence[Stream],
    env: int | None,
    name: str,
    axis: rrb.archetypes.TimeAxis | None = None,
) -> rrb.TimeSeriesView:
    """Return one plot of the numbers of several streams of an environment."""
    paths = [recorded.path(stream, env, agent) for stream in streams for agent in range(stream.agent_count)]
    lines = sum(stream.agent_count * math.prod(stream.row_shape) for stream in streams)
    return rrb.TimeSeriesView(
        origin=recorded.origin(env),
        contents=paths,
        name=name,
        axis_x=axis or time_axis(recorded, env),
        axis_y=value_axis(recorded, streams),
        plot_legend=legend(lines, legend_limit(recorded)),
    )


def _numbers(streams: Sequence[Stream]) -> list[Stream]:
    return [stream for stream in streams if stream.kind.plot is Plot.LINES]


def _lanes(streams: Sequence[Stream]) -> list[Stream]:
    """Return all states, actions first. ``done`` is left out if ``terminated`` or ``truncated`` says why."""
    states = [stream for stream in streams if stream.kind.plot is Plot.LANES]
    names = {stream.key[-1] for stream in states}
    shown = [stream for stream in states if stream.key[-1] != DONE or not names & {TERMINATED, TRUNCATED}]
    return sorted(shown, key=lambda stream: stream.key[-1] in FLAGS)
