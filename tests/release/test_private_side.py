"""A release that points into the private side of its store, or holds an internal report, does not verify."""

from __future__ import annotations

import json

import pytest

from privimage.release.verify import read_release, verify_release
from privimage.reports.figures import INTERNAL
from privimage.store.files import Store
from tests.pipeline_fixtures import Place


def outcome(files: dict[str, bytes]) -> str:
    (found,) = [check.outcome for check in verify_release(files, None) if check.step == "private side"]
    return found


@pytest.mark.parametrize("sign", ["private/artifacts", "private/checkpoints", INTERNAL])
@pytest.mark.parametrize("name", ["README.md", "report.html", "samples.png", "more.txt"])
def test_a_file_of_a_release_that_names_the_private_side_is_found(finished: Place, name: str, sign: str) -> None:
    files = read_release(Store.open(str(finished.release)))
    assert outcome(files) == "passed"
    assert outcome({**files, name: files.get(name, b"") + sign.encode()}) == "failed"


def test_so_is_a_certificate_that_does(finished: Place) -> None:
    files = read_release(Store.open(str(finished.release)))
    told = json.loads(files["certificate.json"]) | {"name": "s3://faces/private/artifacts/admit"}
    assert outcome({**files, "certificate.json": json.dumps(told).encode()}) == "failed"
