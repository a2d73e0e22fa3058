"""A suite: which runs it has, that its budget holds them, that it goes on where it was, and where its table may lie."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.__main__ import main
from benchmarks.harness.results import empty_row, row_of, table
from benchmarks.harness.running import estimate, prepare, results_folder, run_of, run_suite
from benchmarks.harness.suite import METHODS, Cell, Part, Suite, cells_in, cells_of, load_suite, parse_suite
from privimage.config.sources import ParquetSource
from privimage.errors import BudgetExceeded, ConfigError, PrivacyRefused, TrainingError
from privimage.generators.interface import code_of
from privimage.privacy.ledger import Ledger
from privimage.release.verify import read_release, verify_release
from privimage.reports.figures import INTERNAL
from privimage.running.runner import run_all
from privimage.store.files import Store
from tests.pipeline_fixtures import SETTINGS, Answer, caller

pytestmark = pytest.mark.slow

SHARED = {name: value for name, value in SETTINGS.items() if name not in ("name", "sensitive", "public")}
SHARED["evaluate"] = {"epochs": 1, "classifiers": ["logistic-regression"], "ceiling": False, "safety": False}


def suite_data(portraits: Path, **changes: Any) -> dict[str, Any]:
    sensitive = {"train": {"kind": "folder", "path": str(portraits)}, "test_fraction": 0.2}
    return {
        "name": "tiny",
        "public_stand_ins": True,
        "budget": 5.0,
        "epsilons": [1.0],
        "seeds": [0, 1],
        "methods": ["dpdm", "privimage"],
        "datasets": {"portraits": {"settings": {"sensitive": sensitive, "public": SETTINGS["public"]}}},
        "settings": SHARED,
        **changes,
    }


def run_here(suite: Suite, store: Store) -> list[Any]:
    return run_suite(suite, store, lambda cell: run_all(run_of(cell, store)))


def ledger_of(folder: Path) -> Ledger:
    (dataset,) = (folder / "ledger").iterdir()
    return Ledger(Store.open(str(folder)), dataset.name)


@pytest.fixture(scope="module")
def finished(portraits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, Path]:
    """A suite that failed once, in its last run, and was run again; do not change."""
    suite, folder = parse_suite(suite_data(portraits)), tmp_path_factory.mktemp("suite") / "store"
    store = Store.open(str(folder))
    broken = cells_of(suite)[-1].label

    def execute(cell: Cell) -> None:
        if cell.label == broken:
            run_all(run_of(cell, store), "finetune")
            raise TrainingError("a planted failure")
        run_all(run_of(cell, store))

    rows = run_suite(suite, store, execute)
    assert [row.status for row in rows] == ["done"] * 3 + ["failed"]
    assert "failed (a planted failure)" in (folder / results_folder(suite) / "table.md").read_text()
    before = len(ledger_of(folder).entries())
    assert [row.status for row in run_here(suite, store)] == ["done"] * 4
    assert len(ledger_of(folder).entries()) == before, "the run that failed had been paid for"
    return suite, folder


Finished = tuple[Suite, Path]


@pytest.fixture
def benchmarks(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs `python -m benchmarks` in this process."""
    return caller(main, capsys)


# ------------------------------------------------------------------ runs


def test_each_run_is_accounted_as_a_first_run_would_be(finished: Finished) -> None:
    plans = ledger_of(finished[1]).spent().plans
    assert len(plans) == 4
    assert all(plan.target == 1.0 and 0.99 < plan.epsilon <= 1.0 for plan in plans)
    reserved = [entry.body for entry in ledger_of(finished[1]).entries() if entry.kind == "reserve"]
    assert not any(body["plan"]["builds_on"] for body in reserved)
    assert sorted(body["stage"] for body in reserved) == ["finetune"] * 4 + ["query"] * 2


def test_classifier_and_index_are_made_once(finished: Finished) -> None:
    for stage in ("classifier", "index", "public"):
        assert len(list((finished[1] / "artifacts" / stage).iterdir())) == 1


def test_every_certificate_that_the_table_links_verifies(finished: Finished) -> None:
    suite, folder = finished
    rows = json.loads((folder / results_folder(suite) / "table.json").read_text())["rows"]
    assert len({row["release"] for row in rows}) == 4
    table = (folder / results_folder(suite) / "table.md").read_text()
    for row in rows:
        assert f"../../../{row['release']}/certificate.json" in table
        assert (folder / results_folder(suite) / f"../../../{row['release']}/certificate.json").is_file()
        files = read_release(Store.open(str(folder / row["release"])))
        assert {check.outcome for check in verify_release(files, Store.open(str(folder)))} == {"passed"}


def test_the_table_has_mean_and_deviation_over_seeds_and_plots_beside_it(finished: Finished) -> None:
    suite, folder = finished
    place = folder / results_folder(suite)
    lines = [line for line in (place / "table.md").read_text().splitlines() if line.startswith("| portraits")]
    assert len(lines) == 2
    assert all("| 2 of 2 |" in line and "±" in line and "| 1 | " in line for line in lines)
    for name in ("quality-by-epsilon.png", "quality-by-compute.png"):
        assert (place / name).read_bytes().startswith(b"\x89PNG")
    rows = json.loads((place / "table.json").read_text())["rows"]
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"]["finetune"] > 0 for row in rows)


def test_the_table_says_which_share_of_the_images_is_public(portraits: Path) -> None:
    """Whoever compares accuracies sees what was released to get them; where nothing can be public there is no column."""
    suite = parse_suite(suite_data(portraits))
    rows = [replace(empty_row(cell, "done"), epsilon_spent=1.0) for cell in cells_of(suite)]
    assert "public images" not in table(suite, rows, INTERNAL, lambda row: "")
    rows = [replace(row, public_share=0.25 + row.seed / 2) if row.method == "privimage" else row for row in rows]
    lines = table(suite, rows, INTERNAL, lambda row: "").splitlines()
    column = next(line for line in lines if line.startswith("| data set")).split(" | ").index("public images")
    shares = {line.split(" | ")[2]: line.split(" | ")[column] for line in lines if line.startswith("| portraits")}
    assert shares == {"dpdm": "–", "privimage": "50.0 ± 35.4 %"}


def test_seeds_differ_in_public_training_and_in_private_draws(portraits: Path) -> None:
    first, second = (cell for cell in cells_of(parse_suite(suite_data(portraits))) if cell.method == "privimage")
    assert first.draws != second.draws
    assert set(first.draws) == {"query", "finetune"}
    assert first.config.generator.pretrain.seed != second.config.generator.pretrain.seed
    assert first.config.classifier == second.config.classifier


def test_a_run_keeps_its_draw_when_others_join_the_suite(portraits: Path) -> None:
    few, many = (
        {cell.label: cell.draws for cell in cells_of(parse_suite(suite_data(portraits, **changes)))}
        for changes in ({}, {"seeds": [5, 0, 1], "methods": ["pdp-diffusion", "privimage", "dpdm"]})
    )
    assert few.items() <= many.items()


def test_methods_that_differ_in_sampling_alone_are_of_one_generator_which_is_paid_for_once(
    portraits: Path, tmp_path: Path
) -> None:
    methods, store = ["privimage", "guided"], Store.open(str(tmp_path / "store"))
    variants = {
        "guided": {"generator": {"sampling": {"guidance": 1.0}}},
        "longer": {"generator": {"finetune": {"num_steps": 3}}},
    }
    data = suite_data(portraits, methods=methods, variants=variants, seeds=[0])
    suite = parse_suite(data)
    rows = run_here(suite, store)
    assert [row.status for row in rows] == ["done", "done"] and rows[0].release != rows[1].release
    assert len(ledger_of(tmp_path / "store").spent().plans) == 1
    assert rows[0].seconds["finetune"] == rows[1].seconds["finetune"]
    for row in rows:
        files = read_release(Store.open(str(tmp_path / "store" / row.release)))
        assert {check.outcome for check in verify_release(files, store)} == {"passed"}
    # Whether or not a suite runs the one whose generator it is, whatever else it has; and never if more than sampling differs.
    variants = {"also": {"generator": {"sampling": {"guidance": 2.0}}}, **variants}
    others = {**data, "methods": ["guided", "longer"], "variants": variants}
    draws = {cell.method: cell.draws for cell in cells_of(parse_suite(others))}
    assert draws["guided"] == cells_of(suite)[0].draws != draws["longer"]
    # Each plan intends one validation.
    private = {
        **SHARED,
        "evaluate": {**SHARED["evaluate"], "validation": "private"},
        "privacy": {**SHARED.get("privacy", {}), "validation_error": 0.1},
    }
    data["datasets"]["portraits"]["settings"]["sensitive"]["validation_fraction"] = 0.1
    charged = cells_of(parse_suite({**data, "settings": private}))
    assert charged[0].draws != charged[1].draws


def test_what_is_there_is_in_the_table_though_nothing_is_run(finished: Finished) -> None:
    suite, folder = finished
    rows = run_suite(suite, Store.open(str(folder)), lambda cell: None)
    assert [row.status for row in rows] == ["done"] * 4


# ------------------------------------------------------------------ budget


def test_a_budget_that_cannot_hold_all_runs_is_refused_before_anything_is_granted(
    portraits: Path, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path / "store"))
    with pytest.raises(
        BudgetExceeded, match=r"4 generators on portraits .* would spend \d+% of .* set budget to [\d.]+"
    ) as told:
        prepare(parse_suite(suite_data(portraits, budget=1.2)), store)
    assert not ledgers(tmp_path)
    enough = float(str(told.value).split("set budget to ")[1].split(",")[0])
    assert enough < 5
    assert prepare(parse_suite(suite_data(portraits, budget=enough)), store).skipped == {}
    assert ledger_of(tmp_path / "store").grant_entry is not None


def ledgers(folder: Path) -> list[Path]:
    return list(folder.glob("store/ledger/*"))


def test_a_suite_that_is_not_of_public_sets_grants_nothing(portraits: Path, tmp_path: Path) -> None:
    with pytest.raises(PrivacyRefused, match="does not say that its sensitive sets are public"):
        prepare(parse_suite(suite_data(portraits, public_stand_ins=False)), Store.open(str(tmp_path / "store")))
    assert not ledgers(tmp_path)


def test_runs_that_were_paid_for_need_no_budget_again(finished: Finished, portraits: Path) -> None:
    suite, folder = finished
    prepared = prepare(suite, Store.open(str(folder)))
    assert len(prepared.cells) == 4
    with pytest.raises(BudgetExceeded, match=r"The 36 generators on portraits that are left .* the grant is for good"):
        prepare(parse_suite(suite_data(portraits, seeds=list(range(20)))), Store.open(str(folder)))


# ------------------------------------------------------------------ what leaves


def test_without_the_declaration_the_table_is_internal_and_is_not_handed_out(
    finished: Finished, portraits: Path, tmp_path: Path, benchmarks: Callable[..., Answer]
) -> None:
    _, folder = finished
    closed = parse_suite(suite_data(portraits, public_stand_ins=False))
    run_suite(closed, Store.open(str(folder)), lambda cell: None)
    assert INTERNAL in (folder / results_folder(closed) / "table.md").read_text()
    file = tmp_path / "closed.yaml"
    file.write_text(yaml.safe_dump(suite_data(portraits, public_stand_ins=False)))
    answer = benchmarks(file, "--store", folder, "--to", tmp_path / "out")
    assert answer.code == 3
    assert "stay below private/" in answer.complaint
    assert not (tmp_path / "out").exists()


def test_no_figure_lies_outside_of_the_private_side(finished: Finished) -> None:
    suite, folder = finished
    assert results_folder(suite).startswith("private/")
    for file in (folder / results_folder(suite)).iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0
    assert not [file for file in folder.rglob("table.*") if "private" not in file.parts]


def test_the_command_runs_a_suite_and_hands_its_table_out_with_the_certificates(
    finished: Finished,
    portraits: Path,
    tmp_path: Path,
    benchmarks: Callable[..., Answer],
    privimage: Callable[..., Answer],
) -> None:
    _, folder = finished
    file = tmp_path / "open.yaml"
    file.write_text(yaml.safe_dump(suite_data(portraits)))
    answer = benchmarks(file, "--store", folder, "--to", tmp_path / "out")
    assert answer.code == 0
    assert "[4/4] portraits, privimage, epsilon 1, seed 1: there already" in answer.err
    table = (tmp_path / "out" / "table.md").read_text()
    linked = sorted((tmp_path / "out" / "certificates").iterdir())
    assert len(linked) == 4
    assert all(f"certificates/{certificate.name}" in table for certificate in linked)
    assert all(privimage("verify", certificate, "--store", folder).code == 0 for certificate in linked)
    assert all(json.loads(certificate.read_text())["epsilon"] == 1.0 for certificate in linked)


# ------------------------------------------------------------------ bad input


def test_a_dry_run_tells_what_is_to_be_made_and_makes_nothing(
    portraits: Path, tmp_path: Path, benchmarks: Callable[..., Answer]
) -> None:
    file = tmp_path / "suite.yaml"
    data = suite_data(portraits)
    data["datasets"]["portraits"]["seconds"] = 900
    file.write_text(yaml.safe_dump(data))
    answer = benchmarks(file, "--store", tmp_path / "store", "--dry-run")
    assert answer.code == 0
    assert "4 of 4 runs are to be made, in about 1.0 hours; a grant of epsilon 5 for each data set." in answer.out
    assert not list((tmp_path / "store").rglob("manifest.json"))
    assert not ledgers(tmp_path)


def test_an_estimate_counts_what_is_not_there_and_a_shared_generator_once(
    finished: Finished, portraits: Path, tmp_path: Path
) -> None:
    store = Store.open(str(shutil.copytree(finished[1], tmp_path / "store")))
    fewer = {
        "fewer": {
            "generator": {"kind": "diffusion"},
            "selection": {"strategy": "none"},
            "synthesize": {"num_images": 20},
        }
    }
    data = suite_data(portraits, seeds=[0, 1, 2], methods=["dpdm", "fewer"], variants=fewer, budget=10.0)
    suite = parse_suite(data)
    cells = cells_of(suite)
    run_all(run_of(cells[1], store))
    seconds = {cell.label: row_of(cell, run_of(cell, store)).seconds for cell in cells}
    short, whole = seconds[cells[1].label], seconds[cells[2].label]
    assert whole and short
    after = sum(short[name] for name in ("synthesize", "downstream", "evaluate"))
    ahead = {(each.cell.method, each.cell.seed): each.seconds for each in estimate(suite, cells, store)}
    assert ahead["dpdm", 0] == ahead["dpdm", 1] == ahead["fewer", 0] == 0
    assert ahead["fewer", 1] == pytest.approx(after), "its generator is there"
    assert ahead["fewer", 2] == pytest.approx(after), "its generator is counted with dpdm's run"
    own = ("pretrain", "finetune", "synthesize", "downstream", "evaluate")
    assert ahead["dpdm", 2] == pytest.approx(sum(whole[name] for name in own))


def test_a_data_set_that_is_missing_is_skipped_with_a_reason_in_the_table(portraits: Path, tmp_path: Path) -> None:
    data = suite_data(portraits, seeds=[0], methods=["dpdm"])
    gone = {"train": {"kind": "folder", "path": str(tmp_path / "gone")}}
    data["datasets"]["gone"] = {"settings": {"sensitive": gone, "public": SETTINGS["public"]}}
    suite = parse_suite(data)
    rows = run_suite(suite, Store.open(str(tmp_path / "store")), lambda cell: None)
    assert {row.dataset: row.status for row in rows} == {"portraits": "failed", "gone": "skipped"}
    table = (tmp_path / "store" / results_folder(suite) / "table.md").read_text()
    assert "- gone, dpdm, epsilon 1, seed 0: skipped (Nothing found at" in table


def test_processes_that_share_a_suite_write_the_table_of_all_of_it(
    finished: Finished, portraits: Path, tmp_path: Path, benchmarks: Callable[..., Answer]
) -> None:
    data = suite_data(portraits, methods=["dpdm"])
    data["datasets"]["gone"] = {
        "settings": {
            "sensitive": {"train": {"kind": "folder", "path": str(tmp_path / "gone")}},
            "public": SETTINGS["public"],
        }
    }
    suite, store = parse_suite(data), Store.open(str(tmp_path / "store"))
    executed: list[Cell] = []

    def execute(cell: Cell) -> None:
        executed.append(cell)
        # Another process finishes its part while this one is at its own.
        for each in cells_in(suite, Part(datasets=("portraits",))):
            run_all(run_of(each, store))

    rows = run_suite(suite, store, execute, part=Part(datasets=("portraits",), seeds=(1,)))
    assert [(cell.dataset, cell.seed) for cell in executed] == [("portraits", 1)]
    assert [(row.dataset, row.seed, row.status) for row in rows] == [
        ("portraits", 0, "done"),
        ("portraits", 1, "done"),
        ("gone", 0, "not run"),
        ("gone", 1, "not run"),
    ]
    table = (tmp_path / "store" / results_folder(suite) / "table.md").read_text()
    assert "| portraits | 1 | dpdm | 2 of 2 |" in table
    assert "- gone, dpdm, epsilon 1, seed 1: not run (Nothing found at" in table

    file = tmp_path / "part.yaml"
    file.write_text(yaml.safe_dump(data))
    command = (file, "--store", tmp_path / "store")
    answer = benchmarks(*command, "--datasets", "portraits", "--seeds", "0", "--epsilons", "1")
    assert answer.code == 0
    assert "[1/1] portraits, dpdm, epsilon 1, seed 0: there already" in answer.err
    planned = benchmarks(*command, "--seeds", "0", "--dry-run").out
    assert "0 of 1 runs are to be made" in planned and "gone would be skipped: Nothing found at" in planned
    answer = benchmarks(*command, "--seeds", "0,one")
    assert answer.code == 2
    assert "--seeds is 'one', expected numbers, with commas between." in answer.complaint


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"methods": ["privimage", "magic"]},
            "no method 'magic'; there are privimage, random-selection, pdp-diffusion",
        ),
        ({"variants": {"cheat": {"privacy": {"epsilon": 100}}}}, "variant cheat changes privacy.epsilon"),
        ({"variants": {"cheat": {"sensitive": {}}}}, "variant cheat changes sensitive"),
        (
            {"settings": {**SHARED, "generator": {"kind": "diffusion", "finetune": {"nonsense": 1}}}},
            "generator.finetune.nonsense",
        ),
        ({"speed": "fast"}, "speed"),
        ({"budget": 0}, "budget"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(portraits: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_suite(suite_data(portraits, **changes))


def test_unknown_names_are_answered_with_the_known_ones(
    portraits: Path, tmp_path: Path, benchmarks: Callable[..., Answer]
) -> None:
    suite = parse_suite(suite_data(portraits))
    for part, expected in (
        (Part(datasets=("mnist",)), "no data set 'mnist'; there are portraits"),
        (Part(methods=("pdp-diffusion",)), "no method 'pdp-diffusion'; there are dpdm, privimage"),
        (Part(epsilons=(10.0,)), "no epsilon 10.0; there are 1.0"),
        (Part(seeds=(2,)), "no seed 2; there are 0, 1"),
    ):
        with pytest.raises(ConfigError, match=expected):
            cells_in(suite, part)
    answer = benchmarks("no-such-suite", "--store", tmp_path / "store")
    assert answer.code == 2
    assert "There is no suite benchmarks/suites/no-such-suite.yaml; beside it are" in answer.complaint


@pytest.mark.parametrize("file", sorted(Path("benchmarks/suites").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_suites_that_come_with_it_are_valid_public_and_compare_all_methods(file: Path) -> None:
    suite = load_suite(file)
    assert suite.name == file.stem
    assert suite.public_stand_ins
    compared = set() if file.stem.endswith("-ablations") else {"random-selection", "pdp-diffusion", "dpdm"}
    assert {"privimage", *compared} <= set(suite.methods) <= {*METHODS, *suite.variants}
    assert len(cells_of(suite)) == len(suite.methods) * len(suite.datasets) * len(suite.epsilons) * len(suite.seeds)


def test_the_small_suite_keeps_to_its_size() -> None:
    for cell in cells_of(load_suite(Path("benchmarks/suites/cpu-small.yaml"))):
        config = cell.config
        assert config.image.resolution == 16
        size = {"channels": config.image.channels, "resolution": config.image.resolution, "num_classes": 200}
        settings = config.generator.model_dump(mode="json")
        generator = code_of(config.generator).new_generator(settings.get("network", settings), **size, seed=0)
        # All categories' labels included.
        assert sum(parameter.numel() for parameter in generator.parameters()) <= 260_000
        assert isinstance(config.sensitive.train, ParquetSource)
        assert config.sensitive.train.max_images == 10_000
