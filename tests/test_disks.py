"""Disks that are full or may not be written: one clear sentence, nothing lost, and the same command goes on.

The disks are real file systems of a few hundred kilobytes, which only root may mount.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from privimage.running import rehearsal
from privimage.store.files import Store
from tests.pipeline_fixtures import Answer, Place

pytestmark = pytest.mark.slow

Command = Callable[..., Answer]


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A file system in memory."""

    folder: Path

    def change(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def used(self) -> int:
        return shutil.disk_usage(self.folder).used

    def resize(self, size: int) -> None:
        self.change(f"size={size}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this user may not mount a disk: {mounted.stderr.decode().strip()}")
    yield Disk(folder=folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def filled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the disk had room when the run looked, and somebody else filled it then."""
    monkeypatch.setattr(rehearsal, "check_room", lambda config, facts, store: None)


def test_a_disk_with_too_little_room_is_refused_before_anything_is_charged(
    privimage: Command, granted: Place, disk: Disk
) -> None:
    place = granted.copy_to(disk.folder / "store")
    disk.resize(disk.used() + 150_000)
    answer = privimage("run", *place.options())
    assert answer.code == 2
    assert "The 40 images of the release may need 0.0168 GB in" in answer.complaint
    assert place.kinds == ["grant"]


@pytest.mark.parametrize("room", [0, 40_000, 150_000])
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    privimage: Command, granted: Place, finished: Place, disk: Disk, room: int, filled_later: None
) -> None:
    place = granted.copy_to(disk.folder / "store")
    disk.resize(disk.used() + room)
    answer = privimage("run", *place.options())
    assert answer.code in (1, 2)
    assert "No space left on device" in answer.complaint or "is private" in answer.complaint
    disk.resize(2**26)
    assert privimage("run", *place.options()).code == 0
    assert place.ledger.spent().epsilon == finished.ledger.spent().epsilon


def test_a_store_that_may_not_be_written_is_named_and_left_alone(
    privimage: Command, granted: Place, disk: Disk
) -> None:
    place = granted.copy_to(disk.folder / "store")
    disk.change("ro")
    answer = privimage("run", *place.options())
    assert answer.code == 2
    assert "Read-only file system" in answer.complaint
    assert place.kinds == ["grant"]


def test_a_download_to_a_full_disk_leaves_nothing_half(
    s3_bucket: str,
    disk: Disk,
    privimage: Command,
    granted: Place,
    monkeypatch: pytest.MonkeyPatch,
    filled_later: None,
) -> None:
    store = Store.open(f"s3://{s3_bucket}/store")
    for name in granted.store.list():
        local = granted.store.local_path(name)
        assert local is not None
        store.upload(local, name)
    disk.resize(20_000)
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    answer = privimage("run", granted.config, "--store", store.url)
    assert answer.code == 2
    assert "No space left on device" in answer.complaint
