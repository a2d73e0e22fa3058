"""The comparison of model sizes shares what it can, and accounts each size as if it were alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.model_size import main
from privimage.store.files import Store

pytestmark = pytest.mark.slow


def test_sizes_share_the_query_and_each_has_the_noise_of_a_run_by_itself(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "sizes.svg"
    main([str(tiny_config), "--channels", "8", "16", "--folder", str(tmp_path / "stores"), "--plot", str(plot)])
    *lines, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["rows"]
    assert [row["channels"] for row in rows] == [8, 16]
    assert len(lines) == 3
    assert rows[0]["parameters"] < rows[1]["parameters"]
    assert rows[0]["megabytes"] < rows[1]["megabytes"]
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert row["ms_per_image"] > 0
        assert row["fid"] is None or row["fid"] >= 0
    stores = [Store.open(str(tmp_path / "stores" / name)) for name in ("8", "16")]
    queries, noises = [], []
    for store in stores:
        names = [name for name in store.list("artifacts") if name.endswith("manifest.json")]
        manifests = {name.split("/")[1]: json.loads(store.read(name)) for name in names}
        queries.append(manifests["query"]["digest"])
        noises.append(manifests["finetune"]["metrics"]["noise_multiplier"])
    assert queries[0] == queries[1]
    assert noises[0] == noises[1]
    assert plot.read_text().startswith("<svg ")
