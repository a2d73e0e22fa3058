"""An S3 server in a process of its own, which ends with the process that started it.

python -m tests.moto_process    prints its address, and serves until standard input is closed
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["moto_process"]


@contextmanager
def moto_process() -> Iterator[str]:
    """Address of an S3 server in memory, on the loopback interface; it asks for no credentials."""
    command = [sys.executable, "-m", "tests.moto_process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        assert endpoint, "moto did not start"
        try:
            yield endpoint
        finally:
            server.terminate()


def _one_at_a_time(function: Callable[..., Any]) -> Callable[..., Any]:
    lock = threading.Lock()

    def locked(*arguments: Any, **named: Any) -> Any:
        with lock:
            return function(*arguments, **named)

    return locked


def serve() -> None:
    import moto.backends
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    # moto looks for 180 folders of its own at each request: a fifth of the time.
    modules = tuple(moto.backends.list_of_moto_modules())
    moto.backends.list_of_moto_modules = lambda: modules
    # It first looks whether an object is there, then writes it: of two requests with `If-None-Match` both could win, which S3
    # excludes. One write at a time excludes it here.
    S3Response.put_object = _one_at_a_time(S3Response.put_object)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    serve()
