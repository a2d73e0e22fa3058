"""Progress in Prefect: steps, time left, losses of public training; training never waits for the server."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tasks import progress
from tasks.progress import PrefectProgress


class Recorded:
    """Stands where Prefect's client functions are; keeps what was posted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: bool = False, slow: float = 0.0) -> None:
        self.bars: list[tuple[float, str]] = []
        self.pictures: list[str] = []
        self._fail, self._slow = fail, slow
        monkeypatch.setattr(progress, "create_progress_artifact", self.bar)
        monkeypatch.setattr(progress, "update_progress_artifact", self.bar)
        monkeypatch.setattr(progress, "create_image_artifact", self.picture)
        monkeypatch.setattr(progress, "update_picture", self.another_picture)
        monkeypatch.setattr(progress, "SECONDS", 0.02)

    def bar(self, progress: float, description: str, **_: Any) -> Any:
        time.sleep(self._slow)
        if self._fail:
            raise httpx.ConnectError("the server is restarting")
        self.bars.append((progress, description))
        return uuid4()

    def another_picture(self, _: Any, url: str) -> None:
        self.picture(url)

    def picture(self, image_url: str, **_: Any) -> Any:
        if self._fail:
            raise httpx.ConnectError("the server is restarting")
        self.pictures.append(image_url)
        return uuid4()


def test_the_bar_goes_from_nothing_to_all_and_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    posted = Recorded(monkeypatch)
    with PrefectProgress("tiny", "pretrain").ticker("pretrain", 20) as tick:
        for step in range(1, 21):
            time.sleep(0.01)
            tick(step)
    shares = [share for share, _ in posted.bars]
    assert shares[0] == 0 and shares[-1] == 100 and shares == sorted(shares)
    assert any("s left" in text for _, text in posted.bars)
    assert posted.bars[-1][1] == "pretrain: 20 of 20"


def test_a_stage_that_is_resumed_counts_its_pace_from_where_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    posted = Recorded(monkeypatch)
    with PrefectProgress("tiny", "finetune").ticker("finetune", 1000) as tick:
        tick(900)
        time.sleep(0.1)
        tick(901)
        time.sleep(0.1)
    left = [int(text.split(", ")[1].split()[0]) for _, text in posted.bars if "901" in text]
    assert left and min(left) >= 5, left  # 99 steps of 0.1 s and more, not of 0.1 s / 901


def test_a_loss_curve_is_shown_of_what_says_that_its_loss_is_public_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    posted = Recorded(monkeypatch)
    with PrefectProgress("tiny", "finetune").ticker("finetune", 3) as tick:
        for step in range(1, 4):
            tick(step)
    assert posted.pictures == []
    with PrefectProgress("tiny", "pretrain").ticker("pretrain", 3) as tick:
        for step in range(1, 4):
            tick(step, public_loss=1 / step)
    assert posted.pictures[-1].startswith("data:image/svg+xml;base64,")


def test_training_goes_on_where_the_server_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    posted = Recorded(monkeypatch, fail=True)
    with PrefectProgress("tiny", "pretrain").ticker("pretrain", 3) as tick:
        for step in range(1, 4):
            tick(step, public_loss=1 / step)
    assert posted.bars == posted.pictures == []


def test_training_never_waits_for_a_slow_server(monkeypatch: pytest.MonkeyPatch) -> None:
    posted = Recorded(monkeypatch, slow=0.3)
    begun = time.monotonic()
    with PrefectProgress("tiny", "pretrain").ticker("pretrain", 1000) as tick:
        for step in range(1, 1001):
            tick(step)
        assert time.monotonic() - begun < 0.25
    assert len(posted.bars) <= 3
