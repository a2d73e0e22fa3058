"""A run whose store is on a bad network: it ends as an undisturbed one, and the ledger counts neither more nor less."""

from __future__ import annotations

import threading
import time

import pytest

from privimage.config.loading import load_config
from privimage.privacy.ledger import Ledger
from privimage.running.runner import run_all
from privimage.running.runs import Run
from privimage.store.artifacts import list_artifacts
from privimage.store.files import Store
from privimage.store.patience import Patience
from privimage.store.s3 import S3Backend
from tests.pipeline_fixtures import Place
from tests.store.faulty_s3 import FAULTS, FaultyS3

pytestmark = pytest.mark.slow


def test_a_run_through_failing_requests_and_an_outage_ends_as_an_undisturbed_one(
    s3_endpoint: str, s3_bucket: str, granted: Place, finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = Store.open(f"s3://{s3_bucket}/store")
    for name in granted.store.list():
        local = granted.store.local_path(name)
        assert local is not None
        direct.upload(local, name)
    with FaultyS3(s3_endpoint) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        faulty.always(*FAULTS, rate=0.05)
        patience = Patience(seconds=30, first_wait=0.01, longest_wait=0.2)
        store = Store(url=direct.url, backend=S3Backend(s3_bucket, "store", patience, attempts=1))
        over = threading.Event()

        def outages() -> None:
            while not over.wait(2.0):
                with faulty.gone():
                    time.sleep(0.5)

        thread = threading.Thread(target=outages)
        thread.start()
        try:
            run_all(Run(config=load_config(granted.config), store=store))
        finally:
            over.set()
            thread.join()

    def told(store: Store) -> list[tuple[str, str]]:
        (ledger,) = {name.split("/")[1] for name in store.list("ledger")}
        return [(entry.kind, entry.body.get("stage", "")) for entry in Ledger(store, ledger).entries()]

    assert told(direct) == told(finished.store)
    assert {a.ref.stage for a in list_artifacts(direct)} == {a.ref.stage for a in list_artifacts(finished.store)}
    for artifact in list_artifacts(direct):
        assert artifact.files()
    assert [name for name in direct.list() if "checkpoints/" in name] == []
