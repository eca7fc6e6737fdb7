"""Watch CartPoles while they are stepped, beside a number that the script logs on the same timeline."""

from __future__ import annotations

import argparse
import functools
import os
import time

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pixels without a display

import rerun as rr
from torchrl.envs import GymEnv, SerialEnv

from torchrl_rerun import RerunRecorder

make_env = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=False)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    sink = parser.add_mutually_exclusive_group()
    sink.add_argument("--connect", metavar="URL", help="address of a viewer, such as rerun+http://127.0.0.1:9876/proxy")
    sink.add_argument("--serve", metavar="PORT", type=int, help="serve viewers on this port of 127.0.0.1")
    parser.add_argument("--rollouts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=100, help="number of steps of each rollout")
    args = parser.parse_args(argv)

    stream = rr.RecordingStream("watch_live")
    if args.connect is not None:
        stream.connect_grpc(args.connect)
    elif args.serve is not None:
        stream.set_sinks(rr.GrpcServerSink("127.0.0.1", args.serve))
        print(f"to watch it: rerun rerun+http://127.0.0.1:{args.serve}/proxy")
    else:
        stream.spawn()

    recorder = RerunRecorder(stream)
    env = SerialEnv(2, make_env).append_transform(recorder)
    for _ in range(args.rollouts):
        began = time.monotonic()
        env.rollout(args.steps, break_when_any_done=False)
        stream.set_time("step", sequence=int(recorder.stats()["steps"]))
        stream.log("steps_per_second", rr.Scalars(args.steps / (time.monotonic() - began)))
    env.close()
    print(f"recorded {recorder.stats()['frames']:.0f} frames")


if __name__ == "__main__":
    main()
