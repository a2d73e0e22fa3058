"""The parts of compose.yaml without docker: PostgreSQL, Prefect's server and a worker as it starts them, and S3.

Collected by `make test-stack` only, which needs Debian's postgresql and runs beside the S3 server of the tests.
Settings and commands are those of compose.yaml; names of hosts, ports and folders are replaced.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
PASSWORDS = {name: secrets.token_hex(24) for name in ("POSTGRES_PASSWORD", "PREFECT_PASSWORD")}
FLOW = '''
import os
from prefect import flow

@flow
def look() -> str:
    """What a run finds in its environment, and that it reaches the store."""
    from privimage.store.files import Store
    store = Store.open(os.environ["PRIVIMAGE_STORE"])
    store.probe()
    return store.url
'''


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def until(what: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.5)


def answers(url: str, password: str | None = None) -> int:
    request = Request(url)
    if password is not None:
        request.add_header("Authorization", f"Basic {base64.b64encode(f'steward:{password}'.encode()).decode()}")
    try:
        with urlopen(request, timeout=5) as reply:
            return int(reply.status)
    except HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextmanager
def running(command: list[str], environment: dict[str, str], folder: Path, name: str) -> Iterator[Path]:
    """A process until the block ends; its output is in the file that is yielded."""
    log = folder / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            yield log
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="module")
def postgres() -> Iterator[int]:
    """Port of an empty database `prefect`, made as the image of compose.yaml makes it."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
    # Not below pytest's folder, which other users may not enter: as root, PostgreSQL runs as its own user.
    place = Path(f"/tmp/postgres-{secrets.token_hex(4)}")
    place.mkdir(mode=0o700)
    prefix = []
    if os.geteuid() == 0:
        shutil.chown(place, "postgres", "postgres")
        prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
    (place / "password").write_text(PASSWORDS["POSTGRES_PASSWORD"])
    port = free_port()
    environment = SERVICES["postgres"]["environment"]
    initdb = [programs / "initdb", "-D", place / "data", "-U", environment["POSTGRES_USER"], "-A", "scram-sha-256"]
    subprocess.run([*prefix, *initdb, f"--pwfile={place / 'password'}"], check=True, capture_output=True)
    server = subprocess.Popen(
        [*prefix, programs / "postgres", "-D", place / "data", "-p", str(port), "-k", place, "-h", "127.0.0.1"],
        stderr=subprocess.DEVNULL,
    )
    try:
        check = [
            programs / "pg_isready",
            *SERVICES["postgres"]["healthcheck"]["test"][2:],
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ]
        until(lambda: subprocess.run(check, capture_output=True).returncode == 0, 60)
        create = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", environment["POSTGRES_USER"]]
        password = {**os.environ, "PGPASSWORD": PASSWORDS["POSTGRES_PASSWORD"]}
        subprocess.run([*create, environment["POSTGRES_DB"]], check=True, env=password)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=30)
        shutil.rmtree(place)


def environment_of(service: str, folder: Path, **replaced: str) -> dict[str, str]:
    """The environment that compose gives to a service, with what is elsewhere here replaced."""
    given = {name: str(value) for name, value in SERVICES[service]["environment"].items()}
    for name, password in PASSWORDS.items():
        given = {
            key: value.replace(f"${{{name}:?is not set, see docker/env.example}}", password)
            for key, value in given.items()
        }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    home = {"PREFECT_HOME": str(folder / service), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return {**kept, **home, **path, **given, **replaced}


@pytest.fixture(scope="module")
def server(postgres: int, folder: Path) -> Iterator[str]:
    """Address of the API of a Prefect server on that database."""
    port = free_port()
    environment = environment_of(
        "server",
        folder,
        PREFECT_SERVER_DATABASE_HOST="127.0.0.1",
        PREFECT_SERVER_DATABASE_PORT=str(postgres),
        PREFECT_SERVER_UI_API_URL=f"http://127.0.0.1:{port}/api",
    )
    command = [part.replace("4200", str(port)) for part in SERVICES["server"]["command"]]
    with running(command, environment, folder, "server"):
        until(lambda: answers(f"http://127.0.0.1:{port}/api/health") == 200, 120)
        yield f"http://127.0.0.1:{port}/api"


def test_the_server_answers_those_who_know_the_password(server: str) -> None:
    assert answers(f"{server}/admin/version") == 401
    assert answers(f"{server}/admin/version", "wrong") == 401
    assert answers(f"{server}/admin/version", PASSWORDS["PREFECT_PASSWORD"]) == 200
    assert answers(server.removesuffix("/api")) == 200, "the UI itself asks for the password"


def test_what_the_server_knows_is_in_postgresql(server: str, postgres: int) -> None:
    program = max(Path("/usr/lib/postgresql").glob("*/bin")) / "psql"
    ask = [program, "-h", "127.0.0.1", "-p", str(postgres), "-U", "prefect", "-d", "prefect", "-tAc"]
    found = subprocess.run(
        [*ask, "select count(*) from information_schema.tables where table_name = 'flow_run'"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PGPASSWORD": PASSWORDS["POSTGRES_PASSWORD"]},
    )
    assert found.stdout.strip() == "1"


def test_a_worker_as_compose_starts_it_is_healthy_and_runs_a_flow_on_the_store(
    server: str, folder: Path, s3_bucket: str
) -> None:
    store = f"s3://{s3_bucket}/store"
    environment = environment_of(
        "worker",
        folder,
        PREFECT_API_URL=server,
        PRIVIMAGE_STORE=store,
        PREFECT_WORKER_WEBSERVER_PORT=str(health := free_port()),
        **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
    )
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]

    def ask(*command: str) -> str:
        done = subprocess.run([*prefect, *command], env=environment, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (folder / "look.py").write_text(FLOW)
    (folder / "prefect.yaml").write_text(
        yaml.safe_dump(
            {
                "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}],
                "deployments": [
                    {"name": "look", "entrypoint": str(folder / "look.py:look"), "work_pool": {"name": "cpu"}}
                ],
            }
        )
    )
    ask("work-pool", "create", "cpu", "--type", "process")
    with running(SERVICES["worker"]["command"], environment, folder, "worker") as log:
        until(lambda: answers(f"http://127.0.0.1:{health}/health") == 200, 60)
        ask("deploy", "--prefect-file", str(folder / "prefect.yaml"), "--all")
        ask("deployment", "run", "look/look", "--watch")
        runs = json.loads(ask("flow-run", "ls", "--flow-name", "look", "--output", "json"))
        assert [run["state_type"] if "state_type" in run else run["state"]["type"] for run in runs] == ["COMPLETED"]
    told = log.read_text()
    for secret in (os.environ["AWS_SECRET_ACCESS_KEY"], PASSWORDS["PREFECT_PASSWORD"]):
        assert secret not in told
