"""Payloads in the making: private, and gone when their process is gone, however it went."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from privimage.store.files import Store
from privimage.store.scratch import scratch_folder


def test_a_scratch_folder_is_empty_writable_and_gone_afterwards(store: Store) -> None:
    with scratch_folder(store) as folder:
        assert list(folder.iterdir()) == []
        (folder / "image.png").write_bytes(b"secret")
    assert not folder.exists()


def test_in_a_folder_store_nobody_else_reads_it(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    with scratch_folder(store) as folder:
        assert folder.is_relative_to(tmp_path / "store" / "private" / "scratch")
    assert stat.S_IMODE((tmp_path / "store" / "private").stat().st_mode) == 0o700


def test_it_is_gone_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), scratch_folder(Store.open(str(tmp_path))) as folder:
        raise RuntimeError("failed")
    assert not folder.exists()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, time; from privimage.store.files import Store; from privimage.store.scratch import scratch_folder\n"
        "with scratch_folder(Store.open(sys.argv[1])) as folder:\n"
        "    (folder / 'image.png').write_bytes(b'secret'); print(folder, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    left = Path(process.stdout.readline().strip())
    with scratch_folder(Store.open(str(tmp_path))):
        assert (left / "image.png").exists()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (left / "image.png").exists()
    with scratch_folder(Store.open(str(tmp_path))):
        assert not left.parent.exists()
