"""A process that has imported the libraries, and forks: a peer that is started through it saves ten CPU seconds.

    python -m benchlib.breaking.zygote MODULE...

Standard input is a socket.  Every message on it has the arguments of a Python program, as after `python`, and the file
for its messages as a line of JSON, and two descriptors, for its standard input and output; the answer is its process
id.  The program runs in a session of its own.  Nothing is computed or connected before the fork: whatever the libraries
start, they start in it.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import warnings
from typing import Any

MESSAGE_BYTES = 1 << 16


def main(*libraries: str) -> None:
    for name in libraries:
        try:
            importlib.import_module(name)
        except ImportError:  # an extra that is not installed
            continue
    job = serve(socket.socket(fileno=os.dup(0)))
    if job is not None:
        become(job)


def serve(asked: socket.socket) -> dict[str, Any] | None:
    """Fork until nobody asks any more; in the forked process returns what it has to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    asked.sendall(b"{}\n")
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, MESSAGE_BYTES, 2)
        if not message:
            return None
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            asked.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
            asked.close()
            job: dict[str, Any] = json.loads(message)
            log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            for number, descriptor in enumerate((*descriptors, log)):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return job
        for descriptor in descriptors:
            os.close(descriptor)


def become(job: dict[str, Any]) -> None:
    """Run the program that was asked for."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Those of before the fork were made for other files than these pipes.
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # its module is imported already
    dash_m, module, *arguments = job["arguments"]
    if dash_m != "-m":
        raise SystemExit(f"only modules can be run, not {dash_m}")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
