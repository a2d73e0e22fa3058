"""What would fail after the charge is found before it: too large a batch, a layer that DP-SGD cannot use."""

from __future__ import annotations

import pytest
import torch

from privimage.config import Performance
from privimage.device import choose_devices, free_memory, rows_with_gradients
from privimage.errors import ConfigError
from privimage.generators import private_sum
from privimage.runner import run_all
from tests.pipeline_fixtures import Place

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
    message = r"One image with its 2 noise draws needs about .* lower finetune\.noise_samples .*performance\.memory_gb"
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
