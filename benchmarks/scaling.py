"""Growth of the cost with the number of environments, all in detail, with the writer at work."""

from __future__ import annotations

from benchmarks.report import Detail, Effort, Report
from benchmarks.throughput import BUFFER_BYTES, Sustained, sustain
from benchmarks.timing import mega
from benchmarks.workloads import robots

ENVS = (1, 16, 64, 256, 4096)
PERIOD = 0.005


def measure(effort: Effort) -> Report:
    """Take steps of 5 ms for 20 seconds (quick: 6) for each number of environments, including the warm-up."""
    seconds = float(effort.of(20, 6))
    return Report(details=tuple(_detail(_sustained(envs, seconds)) for envs in ENVS))


def _sustained(envs: int, seconds: float) -> Sustained:
    sizes, steps = robots(envs), round(seconds / PERIOD)
    # The warm-up lasts until the recorder's memory is allocated, or for a quarter of the time.
    warm_up = min(steps // 4, BUFFER_BYTES // sizes.step_bytes)
    return sustain(sizes, steps=steps, warm_up=warm_up, period=PERIOD, seconds=seconds, logged_envs="all")


def _detail(found: Sustained) -> Detail:
    envs = found.sizes.envs
    recorded = (found.steps + 1) * envs
    hooks, writer = found.hooks.mean / envs, found.threads.writer * 1e6 / recorded
    others, file_bytes = found.threads.others * 1e6 / recorded, found.file_bytes / recorded
    rate = found.counted * envs / found.wall
    return Detail(
        "scaling: (48 + 12 + 1) of each environment, all in detail, steps of 5 ms",
        f"{envs:,} environments, {found.counted:,} steps ({mega(found.file_bytes)})",
        f"per environment step: hooks {hooks:.3f} us (median {found.hooks.median / envs:.3f}), writer {writer:.3f} us, "
        f"other threads {others:.3f} us, {file_bytes:,.0f} bytes on disk; {rate:,.0f} of them a second; "
        f"writer {found.writer_share:.0%} of a core, {'keeps up' if found.keeps_up else 'falls behind'}",
        {
            "envs": envs,
            "hooks_us_per_env_step": hooks,
            "writer_us_per_env_step": writer,
            "others_us_per_env_step": others,
            "bytes_per_env_step": file_bytes,
            "env_steps_per_s": rate,
            **found.numbers(),
        },
    )
