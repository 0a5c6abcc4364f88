"""Ranks as real processes that talk over gloo, as torchrun would start them; forked from a process that has torch."""

import os
import socket
import sys
import time
import traceback
from multiprocessing import get_context
from pathlib import Path

CONTEXT = get_context("forkserver")
# All that takes long to import: torch's optimisers import its compiler.
CONTEXT.set_forkserver_preload(
    [
        "torch._refs",
        "torch._dynamo",
        "sklearn.linear_model",
        "sklearn.datasets",
        "mmfast.cli",
        "mmfast.training",
        "tiny",
    ]
)


class Job:
    """`work(*args)` on ranks; a status for each once they have ended, and what they wrote to both streams."""

    def __init__(self, count, folder, work, *args):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.logs = [Path(folder) / f"rank{k}.log" for k in range(count)]
        self.processes = [
            CONTEXT.Process(target=_run, args=(k, count, port, self.logs[k], work, args)) for k in range(count)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds=120):
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, until - time.monotonic()))
        status = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return status

    def said(self):
        return [log.read_text() for log in self.logs]

    def done(self):
        """Wait, and hold that all went well."""
        assert self.wait() == [0] * len(self.processes), "\n".join(self.said())


def _run(rank, count, port, log, work, args):
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1) for fd in (1, 2))
    own = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in own.items()} if count > 1 else {})
    import torch

    torch.set_num_threads(1)
    try:
        sys.exit(work(*args))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
