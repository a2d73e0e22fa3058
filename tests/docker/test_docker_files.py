"""What can be told about image and compose file without a docker engine."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from privimage.store.files import Store
from tests.store.faulty_s3 import FaultyS3

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE_TEXT = (ROOT / "docker" / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SECRETS = {"POSTGRES_PASSWORD", "PREFECT_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
# What compose knows of a service, as far as it is used here: a slip of the pen is no key.
KEYS = {
    "build", "cap_drop", "command", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "image", "init",
    "networks", "ports", "profiles", "pull_policy", "restart", "security_opt", "stop_grace_period", "tmpfs", "volumes",
}  # fmt: skip


def ends(service: dict[str, Any]) -> bool:
    return service.get("restart") == "no"


def test_every_key_is_one_that_compose_knows() -> None:
    assert COMPOSE.keys() <= {"name", "services", "networks", "volumes", "x-image", "x-client", "x-worker"}
    for name, service in SERVICES.items():
        assert service.keys() <= KEYS, name
        assert set(service.get("depends_on", {})) <= SERVICES.keys(), name
        assert set(service["networks"]) <= COMPOSE["networks"].keys(), name


def test_every_foreign_image_is_of_one_version() -> None:
    images = [service["image"] for service in SERVICES.values()]
    images += re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE, re.MULTILINE)
    for image in images:
        assert re.search(r":?\d+\.\d+", image) and "latest" not in image, image
    assert re.search(r"^ARG UV=\d+\.\d+\.\d+$", DOCKERFILE, re.MULTILINE)


def test_own_images_carry_the_projects_version_and_are_never_looked_for_elsewhere() -> None:
    own = [service for service in SERVICES.values() if service["image"].startswith("privimage:")]
    assert {service["image"] for service in own} == {
        f"privimage:{PROJECT['version']}",
        f"privimage:{PROJECT['version']}-cuda",
    }
    for service in own:
        assert service["pull_policy"] == "build"
        assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()


def test_python_is_one_that_the_project_supports() -> None:
    (version,) = re.findall(r"^ARG PYTHON=(\d+\.\d+)\.\d+-", DOCKERFILE, re.MULTILINE)
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


def test_the_image_has_the_versions_of_the_lock_file() -> None:
    """The CPU image constrains versions by what a sed expression of the Dockerfile takes from the lock file."""
    (expression,) = re.findall(r"sed -nE '([^']+)' requirements\.lock", DOCKERFILE)
    lock = ROOT / "requirements.lock"
    taken = subprocess.run(["sed", "-nE", expression, lock], check=True, capture_output=True, text=True).stdout
    pins = {line.split("==")[0] for line in taken.splitlines()}
    assert taken.count("\n") == len([line for line in lock.read_text().splitlines() if re.match(r"[a-z0-9].*==", line)])
    for requirement in PROJECT["dependencies"]:
        name = re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")
        assert name in pins
    assert "--require-hashes -r requirements.lock" in DOCKERFILE


def test_nothing_starts_without_secrets_and_none_has_a_default() -> None:
    variables = re.findall(r"\$\{(\w+)(:[?-])?", COMPOSE_TEXT)
    assert {name for name, kind in variables if kind == ":?"} == SECRETS | {"IMAGES"}
    assert {name for name, kind in variables if kind != ":?"} == {"SCRATCH"}
    example = dict(
        line.split("=", 1)
        for line in (ROOT / "docker" / "env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert example.keys() == SECRETS | {"IMAGES", "SCRATCH"}
    assert all(example[name] == "" for name in SECRETS)
    assert "docker/.env" in (ROOT / ".gitignore").read_text().split()


def test_no_secret_is_written_out() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|AUTH|ACCESS_KEY", variable):
                assert re.fullmatch(r"(steward:)?\$\{\w+:\?[^}]+\}", str(value)), f"{name}: {variable}"
    for word in ("PASSWORD", "SECRET", "TOKEN", "ACCESS_KEY"):
        assert word not in DOCKERFILE


def test_what_keeps_running_has_a_health_check_and_comes_back() -> None:
    for name, service in SERVICES.items():
        if ends(service):
            continue
        check = service["healthcheck"]
        assert check["test"][0] == "CMD" and {"interval", "timeout", "retries"} <= check.keys(), name
        assert service["restart"] == "unless-stopped", name


def test_who_waits_for_another_waits_until_it_is_healthy_or_done() -> None:
    for service in SERVICES.values():
        for other, condition in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if ends(SERVICES[other]) else "service_healthy"
            assert condition == {"condition": wanted}


def test_what_has_to_last_lies_in_named_volumes() -> None:
    places = {name: service.get("volumes", []) for name, service in SERVICES.items()}
    assert places["postgres"] == ["postgres:/var/lib/postgresql/data"]
    assert places["s3"] == ["s3:/data"]
    assert places["server"] == ["prefect:/var/lib/prefect"]
    assert COMPOSE["volumes"].keys() == {"postgres", "s3", "prefect"}


def test_only_the_ui_is_reached_from_outside_and_from_this_machine_only() -> None:
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "server": ["127.0.0.1:4200:4200"]
    }
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert [name for name, service in SERVICES.items() if "outside" in service["networks"]] == ["server"]


def test_the_s3_server_honours_conditions_and_shows_its_gateway_only() -> None:
    image, command = SERVICES["s3"]["image"], SERVICES["s3"]["command"]
    (version,) = re.findall(r"^chrislusf/seaweedfs:(\d+)\.(\d+)$", image)
    assert tuple(map(int, version)) > (4, 16), "older ones let several writers win"
    assert {"-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(command)
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} == SERVICES["s3"]["environment"].keys()


@pytest.mark.parametrize(("name", "pool"), [("worker", "cpu"), ("worker-gpu", "gpu")])
def test_a_worker_serves_its_pool_one_run_at_a_time_and_touches_no_disk(name: str, pool: str) -> None:
    worker = SERVICES[name]
    command = shlex.join(worker["command"])
    assert command == f"prefect worker start --pool {pool} --type process --limit 1 --with-healthcheck"
    assert worker["depends_on"]["bucket"] == {"condition": "service_completed_successfully"}
    assert [mount.rsplit(":", 1)[1] for mount in worker["volumes"]] == ["ro"]
    assert worker["tmpfs"][0].startswith("/tmp:")
    assert worker["networks"] == ["inside"]


def test_the_gpu_worker_is_asked_for_and_gets_a_device() -> None:
    worker = SERVICES["worker-gpu"]
    assert worker["profiles"] == ["gpu"]
    assert worker["build"]["args"] == {"DEVICE": "cuda"}
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_image_does_not_run_as_root_and_holds_what_is_copied_on_purpose() -> None:
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE) == ["10001"]
    assert not re.search(r"^COPY (--\S+ )*\. ", DOCKERFILE, re.MULTILINE)
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in [part for part in line.split() if not part.startswith("--")][:-1]
    }
    ignore = (ROOT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)


# ------------------------------------------------------------------ the bucket


def prepare_bucket() -> Any:
    spec = importlib.util.spec_from_file_location("prepare_bucket", ROOT / "docker" / "prepare_bucket.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bucket_is_made_once_and_kept(s3_endpoint: str, s3_bucket: str) -> None:
    script = [sys.executable, str(ROOT / "docker" / "prepare_bucket.py")]
    for url in (f"s3://new-{s3_bucket}/store", f"s3://{s3_bucket}"):
        done = subprocess.run([*script, url], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stdout) == (0, f"{url}: conditional writes work\n"), done.stderr
    store = Store.open(f"s3://new-{s3_bucket}/store")
    store.create("a", b"kept")
    assert prepare_bucket().main(store.url) == 0
    assert store.list() == ["a"]


def test_a_server_that_ignores_conditions_is_refused(
    s3_endpoint: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultyS3(s3_endpoint) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        faulty.order("ignore condition", "PUT", "probe-", times=100)
        assert prepare_bucket().main(f"s3://{s3_bucket}/store") == 2
    assert "ignores conditional writes" in capsys.readouterr().err
