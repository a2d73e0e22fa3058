"""Registers everything on a Prefect server: work pools, limits, automation, and the deployments of every data set.

    make deploy STORE=s3://bucket/prefix           # PREFECT_API_URL says which server

`prefect.yaml` says what is deployed, `datasets/*.yaml` for which data: each file is a run's configuration, and may hold
a section `deployment`. Run it again after any change; what is there already is updated.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence, Set
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from httpx import HTTPStatusError
from prefect.automations import Automation, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate, WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessWorker
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.server import check_answers, check_server
from privimage.commands.shared import add_store, exit_code
from privimage.config.loading import load_config
from privimage.config.run import RunConfig
from privimage.errors import ConfigError, InputError

__all__ = ["AUTOMATION", "DataSet", "DeploymentSection", "Schedule", "deployments", "main", "read_data_sets"]

HERE = Path(__file__).parent
DATA_SETS, PREFECT_FILE = HERE / "datasets", HERE / "prefect.yaml"
POOLS = ("cpu", "gpu")
LIMIT = "gpu"
AUTOMATION = "privimage: no heartbeat"
SILENCE = timedelta(seconds=90)


class Schedule(BaseModel):
    """When a data set is run by itself. Where nothing changed, all is reused and nothing is charged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cron: str = Field(default="0 3 1 * *", description="In cron's five fields.")
    timezone: str = Field(default="UTC", description="IANA name, such as Europe/Berlin.")
    active: bool | None = Field(
        default=None, description="Switched on or off; none = as it was switched in the UI, at first off."
    )


class DeploymentSection(BaseModel):
    """The section `deployment` of a data set's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Literal["cpu", "gpu"] = Field(default="gpu", description="Work pool; its workers have to have the device.")
    approval: bool = Field(default=False, description="Suspend each run before its first charge until it is approved.")
    schedule: Schedule = Field(default=Schedule(), description="An example, paused.")


class DataSet(BaseModel):
    """One file of `datasets/`."""

    model_config = ConfigDict(frozen=True)

    config: RunConfig
    deployment: DeploymentSection


def read_data_sets(folder: Path) -> list[DataSet]:
    """Every data set, by its name.

    Raises:
        ConfigError: a file is no configuration, or two have one name.
    """
    found: dict[str, DataSet] = {}
    for file in sorted(folder.glob("*.yaml")):
        config = load_config(file)
        if config.name in found:
            raise ConfigError(f"{file}: there is another data set named {config.name!r}; names are used once.")
        try:
            section = DeploymentSection.model_validate(yaml.safe_load(file.read_text()).get("deployment") or {})
        except ValidationError as error:
            problems = "; ".join(
                f"deployment.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
            )
            raise ConfigError(f"{file}: {problems}") from None
        found[config.name] = DataSet(config=config, deployment=section)
    return list(found.values())


def deployments(
    data_sets: Sequence[DataSet], *, store: str, root: str, switched_on: Set[str] = frozenset()
) -> dict[str, Any]:
    """`prefect.yaml` with one deployment for each flow and data set, as `prefect deploy` takes it.

    Args:
        switched_on: deployments, as <flow>/<name>, whose schedules the server has switched on, and which stay so.
    """
    template = yaml.safe_load(PREFECT_FILE.read_text())
    template.pop("definitions")
    entries = template.pop("deployments")
    common = {"store": store, "root": root}
    made = [_filled(entry, common) for entry in entries if "{{ dataset }}" not in entry["name"]]
    for data_set in data_sets:
        made += [_filled(e, {**common, **_values(data_set)}) for e in entries if "{{ dataset }}" in e["name"]]
    for entry in made:
        for schedule in entry.get("schedules", ()):
            if schedule["active"] is None:
                schedule["active"] = _name(entry) in switched_on
    return {**apply_values(template, common), "deployments": made}


def _name(entry: Mapping[str, Any]) -> str:
    return f"{entry['entrypoint'].rsplit('.', 1)[1]}/{entry['name']}"


def _values(data_set: DataSet) -> dict[str, Any]:
    config, deployment = data_set.config, data_set.deployment
    on_gpu = deployment.pool == "gpu"
    if on_gpu and config.performance.device == "auto":
        # A worker without a GPU fails at once, instead of computing for weeks.
        performance = config.performance.model_copy(update={"device": "cuda"})
        config = config.model_copy(update={"performance": performance})
    return {
        "dataset": config.name,
        "description": config.description,
        "epsilon": f"{config.privacy.epsilon:g}",
        "config": config.model_dump(mode="json"),
        "pool": deployment.pool,
        "schedules": [deployment.schedule.model_dump()],
        "approval": "required" if deployment.approval else "",
        "limit": LIMIT if on_gpu else "",
    }


def _filled(entry: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """An entry of prefect.yaml with its placeholders filled in."""
    filled: dict[str, Any] = apply_values(entry, values)
    variables = filled["work_pool"]["job_variables"]["env"]
    filled["work_pool"]["job_variables"]["env"] = {name: value for name, value in variables.items() if value}
    return filled


def main(arguments: Sequence[str] | None = None) -> int:
    """Register; exit codes as for `privimage`."""
    parser = argparse.ArgumentParser(prog="python -m deployments.register", description=__doc__.split("\n")[0])
    add_store(parser)
    parser.add_argument(
        "--datasets", type=Path, default=DATA_SETS, metavar="DIR", help="folder of the data sets' files"
    )
    parser.add_argument("--root", default=os.getcwd(), metavar="DIR", help="folder of this checkout on the workers")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPU stages that may run at once, one a GPU (default: 1)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _register(options))


def _register(options: argparse.Namespace) -> int:
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError("PREFECT_API_URL is not set: set it to the server's API, such as http://127.0.0.1:4200/api.")
    data_sets = read_data_sets(options.datasets)
    check_answers()
    store = options.store if "://" in options.store else Path(options.store).resolve().as_uri()
    names = deployments(data_sets, store=store, root=options.root)["deployments"]
    for entrypoint in sorted({entry["entrypoint"] for entry in names}):
        # `prefect deploy` alone would register a flow that cannot be imported.
        load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    check_server()
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            _ensure_pool(client, pool)
        _ensure_limit(client, options.gpus)
        _note_leases(client)
        _ensure_automation()
        switched_on = {_name(entry) for entry in names if _is_switched_on(client, _name(entry))}
    return _deploy(deployments(data_sets, store=store, root=options.root, switched_on=switched_on))


def _ensure_pool(client: SyncPrefectClient, name: str) -> None:
    """A pool of processes, unless there is one of that name, of whatever type."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        print(f"Work pool {name}: made")


def _ensure_limit(client: SyncPrefectClient, gpus: int | None) -> None:
    """The limit that GPU stages take a slot of; an existing one changes only if it is asked for."""
    try:
        client.read_global_concurrency_limit_by_name(LIMIT)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=gpus or 1, active=True))
        print(f"Concurrency limit {LIMIT}: {gpus or 1}")
        return
    if gpus is not None:
        client.update_global_concurrency_limit(LIMIT, GlobalConcurrencyLimitUpdate(limit=gpus))
        print(f"Concurrency limit {LIMIT}: {gpus}")


def _note_leases(client: SyncPrefectClient) -> None:
    """Say so if the server keeps leases in memory: once restarted it never frees a slot that was held."""
    try:
        found = client.request("GET", "/admin/settings").json()["server"]["concurrency"]["lease_storage"]
    except (HTTPStatusError, KeyError):  # a server that does not show its settings
        return
    if found.endswith(".memory"):
        print(
            f"Note: this server keeps leases in memory, and a restart may leave a slot of the limit {LIMIT} taken for good. "
            "Start it with PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem"
        )


GONE = "No sign of life for 90 s: its process is gone."


def _ensure_automation() -> None:
    """Runs that fall silent without having ended become Crashed, and can be retried."""
    automation = Automation(
        name=AUTOMATION,
        description="A run that gave no sign of life for 90 s has lost its process: Crashed, so that it can be retried.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                force=False,
                message=GONE,
            )
        ],
    )
    try:
        existing = cast(Automation, Automation.read(name=AUTOMATION))
    except ValueError:
        automation.create()
        print(f"Automation {AUTOMATION!r}: made")
        return
    automation.id = existing.id
    automation.update()


def _is_switched_on(client: SyncPrefectClient, name: str) -> bool:
    """Whether the server runs this deployment by a schedule now."""
    try:
        return any(schedule.active for schedule in client.read_deployment_by_name(name).schedules)
    except ObjectNotFound:
        return False


def _deploy(described: dict[str, Any]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(described, sort_keys=False))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--all"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise InputError("`prefect deploy` failed; its output is above.")
    for entry in described["deployments"]:
        print(f"{_name(entry)} on pool {entry['work_pool']['name']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
