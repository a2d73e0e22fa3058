"""A real Prefect server with a real process worker, for the tests that need them; each process ends with its test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

__all__ = ["ENDS", "PATIENCE", "ROOT", "Server", "Worker", "serve"]

ROOT = Path(__file__).resolve().parents[2]
# On SQLite, a transaction of the server now and then blocks all others, until they give up after 60 seconds.
ANSWER = 100.0
PATIENCE = 240.0
ENDS = {"Completed", "Failed", "Crashed", "Cancelled", "Refused", "Planned"}


@dataclass(kw_only=True)
class Worker:
    """A process worker; its flow runs are child processes of it."""

    process: subprocess.Popen[bytes]
    log: Path

    def children(self) -> list[int]:
        """Processes of flow runs."""
        listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(parent) for pid, parent in map(str.split, listed.splitlines())}
        found, waiting = [], [self.process.pid]
        while waiting:
            parent = waiting.pop()
            below = [pid for pid, its in parents.items() if its == parent]
            found += below
            waiting += below
        return found

    def kill(self) -> None:
        """Kill -9, flow runs included: what a machine does that loses its power."""
        for pid in [self.process.pid, *self.children()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(PATIENCE)


@dataclass(kw_only=True)
class Server:
    """A server on the loopback interface, asked over its REST API."""

    home: Path
    url: str
    settings: dict[str, str]
    _started: list[Worker] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None

    def start_up(self) -> None:
        """Start its process, at the same address and with the same database as before; return when it answers."""
        port = self.url.removesuffix("/api").rpartition(":")[2]
        command = [sys.executable, "-m", "prefect", "server", "start", "--port", port]
        log = self.home / "server.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, cwd=self.home, env=self.environment, stdout=out, stderr=subprocess.STDOUT
            )
        _wait_until_healthy(self.url, self._process, log)

    def shut_down(self) -> None:
        """End its process; nobody listens at its address then."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(15)
        self._process = None

    @property
    def environment(self) -> dict[str, str]:
        """Of processes that use the server; the S3 server's address is in it once a test has one."""
        return {**os.environ, **self.settings}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The reply as JSON; urllib's HTTPError for a refusal."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}{path}", method=method, data=data, headers={"content-type": "application/json"})
        for _ in range(20):
            try:
                with urlopen(request, timeout=ANSWER) as reply:
                    text = reply.read()
                return json.loads(text) if text else None
            except HTTPError as error:
                if error.code != 503:  # its database is busy: every client of Prefect tries again
                    raise
                time.sleep(0.5)
        raise AssertionError(f"{method} {path}: the server stayed busy")

    def python(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the repository's root against this server."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def register(self, datasets: Path, store: str) -> None:
        """What `make deploy` does."""
        done = self.python("-m", "deployments.register", "--datasets", str(datasets), "--store", store)
        assert done.returncode == 0, done.stdout + done.stderr

    @contextmanager
    def worker(self, pool: str = "cpu") -> Iterator[Worker]:
        """A process worker of a pool, for the time of the `with` block."""
        log = self.home / f"worker-{len(self._started)}.log"
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", log.stem]
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=out, stderr=subprocess.STDOUT)
        worker = Worker(process=process, log=log)
        self._started.append(worker)
        try:
            yield worker
        finally:
            worker.kill()

    def start(self, deployment: str, **parameters: Any) -> str:
        """Ask for a run, as the UI does; its id."""
        found = self.call("GET", f"/deployments/name/{deployment}")
        return str(self.call("POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"])

    def state(self, run: str) -> dict[str, Any]:
        """The run's state: type, name, message, ..."""
        state: dict[str, Any] = self.call("GET", f"/flow_runs/{run}")["state"]
        return state

    def set_state(self, run: str, kind: str, name: str, *, force: bool = False) -> None:
        """Set the run's state, as the UI's buttons do: Retry is SCHEDULED, AwaitingRetry."""
        reply = self.call(
            "POST", f"/flow_runs/{run}/set_state", {"state": {"type": kind, "name": name}, "force": force}
        )
        assert reply["status"] == "ACCEPT", reply

    def wait(self, run: str, names: Sequence[str] | set[str] = frozenset(ENDS)) -> dict[str, Any]:
        """Wait until the run's state has one of these names."""
        deadline = time.monotonic() + PATIENCE
        while (state := self.state(run))["name"] not in names:
            assert time.monotonic() < deadline, (state, [worker.log.read_text() for worker in self._started])
            time.sleep(0.2)
        return state

    def tasks(self, run: str) -> dict[str, tuple[str, str]]:
        """Name and message of the latest state of each task of a run, by stage."""
        query = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_DESC"}
        found: dict[str, tuple[str, str]] = {}
        for task in self.call("POST", "/task_runs/filter", query):
            state = task["state"]
            found.setdefault(task["name"].split("-")[0], (state["name"], state["message"] or ""))
        return found

    def artifacts(self, run: str | None = None) -> dict[str, list[dict[str, Any]]]:
        """All artifacts, of one run or of all, by key."""
        query = {"flow_runs": {"id": {"any_": [run]}}} if run else {}
        found: dict[str, list[dict[str, Any]]] = {}
        for artifact in self.call("POST", "/artifacts/filter", query):
            found.setdefault(artifact["key"], []).append(artifact)
        return found


@contextmanager
def serve(home: Path) -> Iterator[Server]:
    """A server with a database of its own in the folder `home`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        # In memory, a server that restarts forgets who holds a slot, and never frees it.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PYTHONPATH": str(ROOT),
    }
    home.mkdir(parents=True, exist_ok=True)
    server = Server(home=home, url=url, settings=settings)
    try:
        server.start_up()
        yield server
    finally:
        server.shut_down()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urlopen(f"{url}/health", timeout=5):
                return
        except (URLError, OSError):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
