"""`llmctl serve` as a user starts it: a child process on a port of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import forkserver


@contextlib.contextmanager
def served(
    *arguments: str, python: str = sys.executable, log_to: Path | None = None, **environment: str
) -> Iterator[str]:
    """The address (http://127.0.0.1:PORT) at which `llmctl serve` answers while the context lasts.

    Args:
        arguments: Of the command.
        python: What runs it.
        log_to: Where all that it says is kept.
        environment: Further variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with log_to.open("w+") if log_to else tempfile.TemporaryFile("w+") as log:
        command = ["serve", *arguments, "--port", str(port)]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
        child: Any
        if python == sys.executable:
            child = forkserver.start(*command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        else:
            child = subprocess.Popen(
                [python, "-m", "llmctl", *command], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            until = time.monotonic() + 120
            while not _is_ready(address):
                if child.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise AssertionError(f"llmctl serve did not come up:\n{log.read()[-4000:]}")
                time.sleep(0.05)
            yield address
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
