"""Checkpoints: once per step, two kept, a damaged one never resumed from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from privimage.errors import ArtifactDamaged
from privimage.store.checkpoints import Checkpoint, Checkpoints
from privimage.store.files import Store
from privimage.store.manifest import JSON
from privimage.store.tensors import pack, unpack


def test_the_newest_two_are_kept_and_the_newest_is_returned(store: Store) -> None:
    checkpoints = Checkpoints(store, "pretrain", "key", sealed=False)
    assert checkpoints.latest() is None
    for step in (10, 20, 30):
        assert checkpoints.save(step, f"state {step}".encode())
    assert store.list() == [f"checkpoints/pretrain/key/step-0000000{step}.ckpt" for step in (20, 30)]
    assert checkpoints.latest() == Checkpoint(step=30, data=b"state 30")
    assert checkpoints.damaged == []
    checkpoints.clear()
    assert store.list() == []


def test_a_step_is_saved_once_and_the_second_writer_is_told(store: Store) -> None:
    one, two = (Checkpoints(store, "finetune", "key", sealed=True) for _ in range(2))
    assert one.save(10, b"one")
    assert not two.save(10, b"two")
    latest = two.latest()
    assert latest is not None and latest.data == b"one"
    assert all(name.startswith("private/checkpoints/finetune/key/") for name in store.list())


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(store: Store, tmp_path: Path) -> None:
    checkpoints = Checkpoints(store, "finetune", "key", sealed=True)
    for step in (10, 20):
        checkpoints.save(step, f"state {step}".encode())
    damage(store, "private/checkpoints/finetune/key/step-000000020.ckpt", tmp_path)
    assert checkpoints.latest() == Checkpoint(step=10, data=b"state 10")
    assert checkpoints.damaged == ["private/checkpoints/finetune/key/step-000000020.ckpt"]


def test_a_checkpoint_that_is_dropped_while_it_is_looked_for_is_not_damaged(store: Store) -> None:
    """Another process saves on: what was listed is gone, and newer ones are there. Taken for damaged it would be charged."""
    other = Checkpoints(store, "finetune", "key", sealed=True)
    other.save(10, b"state 10")

    class Overtaken(Store):
        def read(self, name: str) -> bytes:
            if name.endswith("10.ckpt"):
                for step in (20, 30):
                    other.save(step, f"state {step}".encode())
            return super().read(name)

    checkpoints = Checkpoints(Overtaken(url=store.url, backend=store.backend), "finetune", "key", sealed=True)
    assert checkpoints.latest() == Checkpoint(step=30, data=b"state 30")
    assert checkpoints.damaged == []
    other.clear()
    assert checkpoints.latest() is None


def test_a_run_resumed_before_a_damaged_checkpoint_replaces_it_and_keeps_two_sound_ones(
    store: Store, tmp_path: Path
) -> None:
    for step in (10, 20, 30):
        Checkpoints(store, "finetune", "key", sealed=True).save(step, f"state {step}".encode())
    damage(store, "private/checkpoints/finetune/key/step-000000030.ckpt", tmp_path)
    assert not Checkpoints(store, "finetune", "key", sealed=True).save(30, b"another writer")

    resumed = Checkpoints(store, "finetune", "key", sealed=True)
    assert resumed.latest() == Checkpoint(step=20, data=b"state 20")
    assert resumed.save(25, b"state 25")
    assert [name[-7:-5] for name in store.list()] == ["20", "25", "30"]
    assert resumed.save(30, b"state 30 again")
    assert resumed.latest() == Checkpoint(step=30, data=b"state 30 again")
    assert resumed.damaged == []


def test_a_truncated_checkpoint_is_damaged(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    checkpoints = Checkpoints(store, "finetune", "key", sealed=False)
    store.create("checkpoints/finetune/key/step-000000005.ckpt", b"short")
    assert checkpoints.latest() is None
    assert len(checkpoints.damaged) == 1


@pytest.mark.parametrize("step", [-1, 10**9])
def test_steps_that_do_not_fit_the_name_are_refused(step: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to"):
        Checkpoints(Store.open("memory://steps"), "finetune", "key", sealed=False).save(step, b"")


def test_packed_tensors_come_back_as_they_were() -> None:
    shared = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    tensors = {
        "weight": shared,
        "tied": shared,
        "transposed": shared.T,
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "counts": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    metadata: dict[str, JSON] = {"step": 3, "nested": {"é": [1.5, None, True]}}
    back, said = unpack(pack(tensors, metadata))
    assert said == metadata
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor.detach())


def test_nothing_packed_is_still_a_checkpoint() -> None:
    assert unpack(pack({}, {})) == ({}, {})


def test_metadata_that_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack({}, {"loss": math.nan})


@pytest.mark.parametrize("cut", [0, 4, 30, -1])
def test_bytes_that_pack_did_not_write_are_refused(cut: int) -> None:
    data = pack({"a": torch.ones(4)}, {"step": 1})
    with pytest.raises(ArtifactDamaged, match="no packed tensors"):
        unpack(data[:cut])


def damage(store: Store, name: str, folder: Path) -> None:
    data = bytearray(store.read(name))
    data[-1] ^= 1
    (folder / "damage").write_bytes(data)
    store.upload(folder / "damage", name)
