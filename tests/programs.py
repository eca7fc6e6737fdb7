"""Programs that start fast: forked from a process that has imported TorchRL and the recorder. The imports take seconds.

A program is a process with its own input, output, arguments and folder.
The process that :func:`python` starts stands for the program: it forwards signals, and exits with the program's status.
Use ``sys.executable`` for signals that can't be forwarded (``SIGKILL``, ``SIGSTOP``), and for programs that control the viewer.
rerun-sdk 0.41: `ViewerClient` needs threads that begin when Rerun is imported, and that a forked process doesn't have.
"""

from __future__ import annotations

import array
import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path

STREAMS = 3
IMPORTED = ("gymnasium", "h5py", "torchrl.collectors", "torchrl.envs", "torchrl_rerun.transform.recorder")
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@functools.cache
def python() -> list[str]:
    """Return the start of a command, before ``-c source``, ``-m module`` or a file, and the program's arguments."""
    folder = tempfile.TemporaryDirectory()
    address = f"{folder.name}/socket"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(16)
    command = [sys.executable, "-W", "ignore", __file__, "serve", str(listener.fileno())]
    server = subprocess.Popen(command, pass_fds=[listener.fileno()])
    listener.close()

    @atexit.register
    def end() -> None:
        server.kill()
        server.wait()
        folder.cleanup()

    return [sys.executable, "-S", "-E", __file__, "run", address]


# --- the process that has imported everything ---


def serve(listener: socket.socket) -> list[str]:
    """Fork for each request. Return, in the forked program, its command without the interpreter."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return begin(asked)
        asked.close()


def begin(asked: socket.socket) -> list[str]:
    """Fork again: the child is the program, the parent reports its exit status."""
    message, ancillary, *_ = asked.recvmsg(1 << 20, socket.CMSG_SPACE(STREAMS * array.array("i").itemsize))
    streams = array.array("i", ancillary[0][2])
    if (program := os.fork()) > 0:
        for stream in streams:
            os.close(stream)
        attend(program, asked)
    asked.close()
    request = json.loads(message)
    for to, stream in enumerate(streams):
        os.dup2(stream, to)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    return request["command"]


def attend(program: int, asked: socket.socket) -> None:
    """Forward signals until the program ends, then report its status. End the program if the client is gone."""
    ended = os.pidfd_open(program)
    while ended not in (ready := select.select([ended, asked], [], [])[0]):
        if asked in ready:
            number = asked.recv(1)
            os.kill(program, number[0] if number else signal.SIGKILL)
            if not number:
                os._exit(0)
    asked.send(json.dumps(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])).encode())
    os._exit(0)


# --- the process that stands for a program ---


def run(address: str, command: Sequence[str]) -> None:
    """Run a program, and exit with its status."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(address)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: server.send(bytes([number])))
    request = {"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}
    streams = array.array("i", range(STREAMS)).tobytes()
    server.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    code = json.loads(server.recv(100))
    if code < 0:
        if -code in PASSED_ON:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def execute(command: Sequence[str]) -> None:
    """Execute a program as the main module, like ``python -c source``, ``python -m module`` and ``python file``."""
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    if command[0] == "-m":
        sys.path[0], sys.argv = os.getcwd(), [*command[1:]]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        return
    if command[0] == "-c":
        source, name, sys.argv = command[1], "<string>", ["-c", *command[2:]]
        sys.path[0] = ""
    else:
        name, sys.argv = command[0], [*command]
        source = Path(name).read_text()
        main.__file__, sys.path[0] = name, str(Path(name).resolve().parent)
    exec(compile(source, name, "exec"), main.__dict__)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(sys.argv[2], sys.argv[3:])
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a program would copy the pages of all that was imported
    execute(serve(socket.socket(fileno=int(sys.argv[2]))))
