"""What goes wrong while sensitive images are open must not tell anything about them."""

from __future__ import annotations

import dataclasses
import traceback
from pathlib import Path

import pytest

from privimage.config.loading import load_config
from privimage.errors import PrivimageError
from privimage.pipeline import table as pipeline
from privimage.pipeline.stage import Outcome, StageContext
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.ledger import Ledger
from privimage.running.runner import run_all
from privimage.running.runs import Run
from privimage.store.artifacts import open_ref
from tests.pipeline_fixtures import Place


def replace_stage(monkeypatch: pytest.MonkeyPatch, name: str, run: object) -> None:
    stages = tuple(dataclasses.replace(s, run=run) if s.name == name else s for s in pipeline.STAGES)
    monkeypatch.setattr(pipeline, "STAGES", stages)


def run_query(place: Place) -> None:
    run_all(Run(config=load_config(place.config), store=place.store), "query")


def test_a_foreign_error_with_open_images_is_told_in_a_private_file_only(
    granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(context: StageContext) -> Outcome:
        images, _ = context.private_images("train")
        raise RuntimeError(f"cannot allocate a batch of {len(images)} rows: secret-4711")

    replace_stage(monkeypatch, "query", fails)
    with pytest.raises(PrivimageError, match="which is private") as caught:
        run_query(granted_copy)
    shown = "".join(traceback.format_exception(caught.value))
    assert "secret-4711" not in shown
    assert caught.value.__context__ is None
    (told,) = (granted_copy.folder / "private" / "problems").glob("*-query.txt")
    assert "secret-4711" in Path(told).read_text()
    assert granted_copy.kinds[-1] == "reserve query", "images were open: the charge stays"


def test_a_charge_under_which_no_image_was_opened_is_given_back(
    granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(context: StageContext) -> Outcome:
        raise RuntimeError("out of memory before anything was read")

    replace_stage(monkeypatch, "query", fails)
    with pytest.raises(RuntimeError, match="before anything was read"):
        run_query(granted_copy)
    assert granted_copy.kinds[-2:] == ["reserve query", "void"]
    assert granted_copy.ledger.spent().epsilon == 0


def test_an_attempt_with_reproducible_noise_voids_the_guarantee_of_the_one_that_goes_on(
    pretrained_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(pretrained_copy.config)
    insecure = Run(
        config=config, store=pretrained_copy.store, insecure_random_voiding_guarantee=InsecureRandomForTests(0)
    )

    def killed(*arguments: object) -> None:
        raise PrivimageError("killed after the first checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "check_attempt", killed)
        with pytest.raises(PrivimageError, match="killed"):
            run_all(insecure, "finetune")
    results = run_all(Run(config=config, store=pretrained_copy.store), "finetune")
    assert "resume" in pretrained_copy.kinds
    artifact = open_ref(pretrained_copy.store, results["finetune"].ref)
    assert artifact.read_json("generator.json")["guarantee"] == "none"
