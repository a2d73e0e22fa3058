"""What would fail after the charge is found before it: too large a batch, a layer that DP-SGD cannot use, a class name that
no release can carry, a disk that is too small for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from privimage.config.loading import merged, parse_config
from privimage.config.performance import Performance
from privimage.config.run import RunConfig
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.errors import ConfigError, DataError, PrivacyRefused, StoreError
from privimage.generators.training import private_sum
from privimage.machine.device import choose_devices, free_memory, rows_with_gradients
from privimage.privacy.ledger import Ledger
from privimage.running import rehearsal
from privimage.running.rehearsal import check_room, rehearse_release
from privimage.running.runner import run_all, run_stage
from privimage.stages import release
from privimage.store.files import Store
from tests.pipeline_fixtures import SETTINGS, Answer, Place, write_images

CPU = torch.device("cpu")


def check_refused(place: Place, message: str, *overrides: str) -> None:
    """The error, and that nothing was charged nor lost."""
    before = place.entries
    with pytest.raises(ConfigError, match=message):
        run_all(place.run(*overrides), "finetune")
    assert place.entries == before
    assert not run_all(place.run(), "finetune")["finetune"].reused


def test_a_batch_that_does_not_fit_the_free_memory_is_refused_before_the_charge(pretrained_copy: Place) -> None:
    message = (
        r"performance\.physical_batch_size = 999999999 rows need about \S+ GB, but \S+ GB are free on cpu: lower it"
    )
    check_refused(pretrained_copy, message, "performance.physical_batch_size=999999999")


def test_a_budget_that_holds_no_image_is_refused_before_the_charge(pretrained_copy: Place) -> None:
    message = r"One image with its 2 noise draws needs about .* lower generator\.finetune\.noise_samples .*performance\.memory_gb"
    check_refused(pretrained_copy, message, "performance.physical_batch_size=null", "performance.memory_gb=0.00001")


def test_a_device_that_runs_out_of_memory_does_so_before_the_charge(
    pretrained_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = private_sum.gradient_engine

    def small_device(*arguments: object, **settings: object) -> object:
        engine = real(*arguments, **settings)  # type: ignore[arg-type]

        class Small:
            def clipped_sum(self, parameters: object, rows: list[torch.Tensor], **settings: object) -> object:
                if len(rows[0]) >= 64:
                    raise torch.OutOfMemoryError("batch of 64")
                return engine.clipped_sum(parameters, rows, **settings)  # type: ignore[arg-type]

        return Small()

    with monkeypatch.context() as patch:
        patch.setattr(private_sum, "gradient_engine", small_device)
        before = pretrained_copy.entries
        with pytest.raises(
            ConfigError, match=r"64 rows does not fit into the memory of cpu: lower performance\.physical"
        ):
            run_all(pretrained_copy.run("performance.physical_batch_size=64"), "finetune")
        assert pretrained_copy.entries == before


def test_the_rows_are_as_many_as_fit_the_budget_and_always_whole_images() -> None:
    def rows(bytes_per_image: int, draws: int = 4, **performance: object) -> int:
        return rows_with_gradients(
            Performance.model_validate(performance), CPU, bytes_per_image=bytes_per_image, draws=draws
        )

    assert rows(1 << 20, memory_gb=0.0625) == 64 * 4, "64 MB hold 64 images"
    assert rows(1 << 24, memory_gb=0.0625) == 4 * 4
    assert rows(1) == 256, "more gain nothing on a CPU"
    assert rows(1, draws=300) == 300, "an image is never cut"
    assert rows(1, draws=100) == 200
    assert rows(1 << 24, physical_batch_size=7) == 7


def test_free_memory_is_what_the_system_says() -> None:
    free = free_memory(CPU)
    assert free is None or 1 << 20 < free < 1 << 50


def test_devices_are_one_unless_several_are_asked_for_and_there() -> None:
    assert choose_devices(Performance(device="cpu")) == [CPU]
    assert choose_devices(Performance(device="cpu", num_devices=3)) == [CPU] * 3
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="this machine does not have"):
            choose_devices(Performance(device="cuda", num_devices=2))


# ------------------------------------------------------------------ the way to the release


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has rehearsed nothing yet."""
    monkeypatch.setattr(rehearsal, "_gone", set())


def config_with(**sections: Any) -> RunConfig:
    """The smallest run, with some settings of some sections changed."""
    settings = {**SETTINGS, "sensitive": {"train": {"kind": "folder", "path": "/nowhere"}, "validation_fraction": 0.1}}
    return parse_config(merged(settings, sections))


def facts_with(class_names: tuple[str, ...] = ("anna", "berta", "carla")) -> SensitiveFacts:
    sizes = {"num_train": 144, "num_validation": 20, "num_test": 40}
    return SensitiveFacts(**sizes, class_names=class_names, resolution=8, channels=1, identity="theirs")


PUBLIC = TableFacts(
    num_images=620, class_names=tuple(f"category {n}" for n in range(62)), resolution=8, channels=1, identity="public"
)

KINDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "random": {"selection": {"strategy": "random"}},
    "all": {"selection": {"strategy": "all"}},
    "none": {"selection": {"strategy": "none"}},
    "gan": {"generator": {"kind": "gan"}},
    "mean embedding": {"generator": {"kind": "mean_embedding"}},
    "public images": {"generator": {"kind": "mean_embedding", "sampling": {"public_images": "unchanged"}}},
    "dp-merf": {"generator": {"kind": "mean_embedding"}, "selection": {"strategy": "none"}},
    "class means": {"generator": {"class_means": {"num_steps": 2}}},
    "validated": {"privacy": {"validation_error": 0.5}, "evaluate": {"validation": "private"}},
    "audited": {"audit": {"canaries": 100}},
    "sizes": {"synthesize": {"num_images": 400, "class_sizes": "query"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_each_kind_can_go_its_whole_way_on_made_up_images_and_leaves_nothing(
    anew: None, kind: str, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path / "store"))
    rehearse_release(config_with(**KINDS[kind]), facts_with(), PUBLIC, store)
    assert store.list() == []


def test_names_of_classes_in_any_script_and_with_any_sign_can_be_released(anew: None, tmp_path: Path) -> None:
    names = ("日本", "été", "a|b`*_[x](y)<b>&amp;", "$x$", "dir/with/../dots", "a: b #c", "no", "x" * 300, "🦊")
    config = config_with(synthesize={"num_images": 2 * len(names)}, selection={"categories_per_class": 1})
    rehearse_release(config, facts_with(names), PUBLIC, Store.open(str(tmp_path / "store")))


@pytest.mark.parametrize("where", ["sensitive", "public"])
def test_a_class_name_that_no_file_can_carry_is_refused(anew: None, where: str, tmp_path: Path) -> None:
    bad = ("ant", "Gr\udcfcn", "bee")
    facts = facts_with(bad) if where == "sensitive" else facts_with()
    public = PUBLIC if where == "sensitive" else TableFacts(**{**vars(PUBLIC), "class_names": bad * 5})
    with pytest.raises(DataError, match=r"name of class 'Gr\\udcfcn' is no text .*UTF-8.* Nothing was charged"):
        rehearse_release(
            config_with(selection={"categories_per_class": 1}), facts, public, Store.open(str(tmp_path / "store"))
        )


def test_a_folder_whose_name_is_not_utf_8_costs_nothing_and_renamed_it_is_released(
    privimage: Callable[..., Answer], tiny_config: Path, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", ("ant", "bee"))
    bad = os.fsdecode(os.fsencode(images) + b"/Gr\xfcn")
    (images / "bee").rename(bad)
    options = [tiny_config, "--store", tmp_path / "store", "--set", f"sensitive.train.path={images}"]
    grant = ("ledger", "grant", *options, "--epsilon", "1", "--delta", "1e-4")
    answer = privimage("run", *options) if privimage(*grant).code == 0 else privimage(*grant)
    assert answer.code == 2 and answer.complaint
    for ledger in (tmp_path / "store").glob("ledger/*/entries"):
        assert len(list(ledger.iterdir())) <= 1, "nothing but the grant"
    Path(bad).rename(images / "Gruen")
    assert privimage(*grant).code == 0
    assert privimage("run", *options, "--until", "query").code == 0


def check_nothing_charged(place: Place, error: type[Exception], message: str, *overrides: str) -> None:
    classifiers = len(list(place.folder.glob("artifacts/classifier/*")))
    with pytest.raises(error, match=message):
        run_all(place.run("classifier.epochs=2", *overrides))
    assert place.kinds == ["grant"]
    assert len(list(place.folder.glob("artifacts/classifier/*"))) == classifiers, "nothing was trained either"


def test_what_the_release_would_refuse_is_refused_before_the_charge(
    anew: None, granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(data: object) -> str:
        raise DataError("The report has 6.7 MB, expected at most 5 MB")

    monkeypatch.setattr(release, "render_report", too_large)
    check_nothing_charged(granted_copy, DataError, "6.7 MB")


def test_a_release_that_would_not_verify_is_refused_before_the_charge(
    anew: None, granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = release.build_certificate
    monkeypatch.setattr(
        release, "build_certificate", lambda *given: real(*given).model_copy(update={"num_training_images": 7})
    )
    check_nothing_charged(granted_copy, PrivacyRefused, r"would not verify \(.*Nothing was charged")


def test_a_charge_that_would_be_refused_after_an_earlier_one_is_found_before_it(
    anew: None, granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Ledger.reserve

    def no_second(ledger: Ledger, **asked: Any) -> object:
        if asked["stage"] == "finetune":
            raise PrivacyRefused("fine-tuning does not fit")
        return real(ledger, **asked)

    monkeypatch.setattr(Ledger, "reserve", no_second)
    check_nothing_charged(granted_copy, PrivacyRefused, "fine-tuning does not fit")


def test_a_stage_that_is_run_by_itself_is_rehearsed_before_its_charge(
    anew: None, granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a task of a flow does, which another version's check may have gone before."""
    results = run_all(granted_copy.run(), "index")
    admit = run_all(granted_copy.run(), "admit")["admit"].ref

    def too_large(data: object) -> str:
        raise DataError("The report has 6.7 MB, expected at most 5 MB")

    monkeypatch.setattr(release, "render_report", too_large)
    with pytest.raises(DataError, match=r"6\.7 MB"):
        run_stage("query", granted_copy.run(), {"admit": admit, "classifier": results["classifier"].ref})
    assert granted_copy.kinds == ["grant"]


def test_weights_for_the_evaluation_that_are_not_there_are_missed_before_the_charge(
    anew: None, granted_copy: Place, tmp_path: Path
) -> None:
    missing = f"evaluate.inception_weights={tmp_path / 'nothing'}"
    check_nothing_charged(granted_copy, DataError, "inception", missing)


def test_a_disk_that_cannot_hold_the_release_is_refused_before_the_charge(
    granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
    message = (
        r"The 10,000,000 images of the release may need 10\.6 GB in .*store, where 1 GB are free.* Nothing was charged"
    )
    check_nothing_charged(granted_copy, StoreError, message, "synthesize.num_images=10000000")


def test_room_is_that_of_all_copies_that_are_made_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = config_with(synthesize={"num_images": 1_000_000}), Store.open(str(tmp_path / "store"))
    bytes_of_noise = 4 * 1_000_000 * (64 + 200) + 2**24
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda place: SimpleNamespace(free=bytes_of_noise))
    check_room(config, facts_with(), store)
    monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda place: SimpleNamespace(free=bytes_of_noise - 1))
    with pytest.raises(StoreError):
        check_room(config, facts_with(), store)


def test_a_way_is_gone_once_and_only_where_something_is_still_to_be_charged(
    anew: None, finished_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    monkeypatch.setattr(rehearsal, "_release", lambda config, *_: gone.append(config.name))
    run_all(finished_copy.run())
    run_all(finished_copy.run("synthesize.seed=7"), "synthesize")
    assert gone == []
    run_all(finished_copy.run("generator.finetune.learning_rate=0.01"), "finetune")
    assert gone == ["tiny"], "by the check, and not again by each charge"
