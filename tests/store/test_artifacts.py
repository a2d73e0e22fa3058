"""Artifacts: all or nothing, one winner, never changed unnoticed, and blinded where they are sealed."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privimage.errors import ArtifactDamaged, PrivacyRefused, StoreError
from privimage.store.artifacts import (
    Artifact,
    ArtifactRef,
    artifact_key,
    blind,
    canonical_json,
    find,
    list_artifacts,
    open_ref,
    publish,
    remove,
)
from privimage.store.files import Store

KEY = "0" * 64


def made(
    store: Store,
    folder: Path,
    files: Mapping[str, bytes],
    *,
    stage: str = "index",
    key: str = KEY,
    sealed: bool = False,
    reservations: tuple[str, ...] = (),
) -> Artifact:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return publish(
        store,
        stage=stage,
        version=1,
        key=key,
        draw=1,
        sealed=sealed,
        folder=folder,
        config={"a": 1.5},
        inputs={"images": ArtifactRef(stage="import", key=KEY, digest="1" * 64, sealed=True)},
        metrics={"accuracy": 0.5},
        reservations=reservations,
        provenance={"torch": "2"},
    )


FILES = {"metrics.json": b'{"x": 1}', "shards/b.bin": b"bb", "shards/a.bin": b"a"}


def test_what_is_published_is_found_with_all_that_was_said_about_it(store: Store, tmp_path: Path) -> None:
    artifact = made(store, tmp_path / "out", FILES)
    found = find(store, "index", KEY, sealed=False)
    assert found is not None and found == artifact
    assert found.names == ("metrics.json", "shards/a.bin", "shards/b.bin")
    found.check_sizes()
    assert found.read_json("metrics.json") == {"x": 1}
    assert [path.read_bytes() for path in found.files("shards/")] == [b"a", b"bb"]
    manifest = found.manifest
    assert (manifest.config, manifest.metrics, manifest.provenance) == ({"a": 1.5}, {"accuracy": 0.5}, {"torch": "2"})
    assert manifest.inputs["images"].stage == "import"
    assert manifest.written.endswith("+00:00")
    assert open_ref(store, ArtifactRef.from_json(json.loads(json.dumps(found.ref.to_json())))) == found


def test_the_digest_of_a_public_artifact_can_be_computed_by_anybody(store: Store, tmp_path: Path) -> None:
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    expected = hashlib.sha256(canonical_json(digests)).hexdigest()
    assert made(store, tmp_path / "out", FILES).ref.digest == expected


def test_no_manifest_means_no_artifact(store: Store, tmp_path: Path) -> None:
    store.create(f"artifacts/index/{KEY}/payload-00000000/metrics.json", b"{}")
    assert find(store, "index", KEY, sealed=False) is None
    assert list_artifacts(store) == []
    ref = ArtifactRef(stage="index", key=KEY, digest="0" * 64, sealed=False)
    with pytest.raises(StoreError, match="no artifact index"):
        open_ref(store, ref)


def test_a_crash_between_files_and_manifest_leaves_nothing_visible_and_can_be_repeated(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> bool:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", killed)
        with pytest.raises(Killed):
            made(store, tmp_path / "out", FILES)
    assert len(store.list("artifacts")) == 3
    assert find(store, "index", KEY, sealed=False) is None
    made(store, tmp_path / "out", FILES).check_sizes()


def test_the_second_publisher_loses_cleanly_and_gets_the_first_ones_artifact(store: Store, tmp_path: Path) -> None:
    first = made(store, tmp_path / "one", FILES)
    second = made(store, tmp_path / "two", {"other.bin": b"other"})
    assert second == first
    assert len(store.list(f"artifacts/index/{KEY}")) == 1 + len(FILES)


def test_publishers_that_race_agree_on_one_artifact(store: Store, tmp_path: Path) -> None:
    start = threading.Barrier(6)

    def race(writer: int) -> Artifact:
        start.wait()
        return made(store, tmp_path / str(writer), {"data": str(writer).encode()}, sealed=True)

    with ThreadPoolExecutor(6) as threads:
        artifacts = list(threads.map(race, range(6)))
    assert all(artifact == artifacts[0] for artifact in artifacts)
    assert len(store.list("private/artifacts")) == 2
    artifacts[0].local("data")


def test_a_changed_byte_is_found_and_the_file_and_the_cure_are_named(store: Store, tmp_path: Path) -> None:
    artifact = made(store, tmp_path / "out", FILES)
    overwrite(store, artifact, "shards/b.bin", b"bX", tmp_path)
    artifact.check_sizes()
    with pytest.raises(
        ArtifactDamaged, match=rf"shards/b\.bin .*`privimage artifacts remove index {KEY}`, then run again"
    ):
        artifact.local("shards/b.bin")
    assert artifact.read_bytes("shards/a.bin") == b"a"


def test_a_changed_size_and_a_missing_file_are_found_without_reading(store: Store, tmp_path: Path) -> None:
    artifact = made(store, tmp_path / "out", FILES)
    overwrite(store, artifact, "shards/b.bin", b"longer", tmp_path)
    with pytest.raises(ArtifactDamaged, match=r"shards/b\.bin .*6 bytes, not 2"):
        artifact.check_sizes()
    store.delete(payload_name(artifact, "shards/b.bin"))
    with pytest.raises(ArtifactDamaged, match=r"shards/b\.bin .*is missing"):
        artifact.check_sizes()
    with pytest.raises(ArtifactDamaged, match=r"shards/b\.bin .*is missing"):
        artifact.local("shards/b.bin")
    with pytest.raises(ArtifactDamaged, match="never in its manifest"):
        artifact.local("shards/c.bin")


def test_damage_to_a_sealed_artifact_asks_for_a_backup_and_tells_no_figure(store: Store, tmp_path: Path) -> None:
    artifact = made(store, tmp_path / "out", FILES, sealed=True)
    overwrite(store, artifact, "metrics.json", b"123456789", tmp_path)
    for check in (artifact.check_sizes, lambda: artifact.local("metrics.json")):
        with pytest.raises(ArtifactDamaged, match="must be restored from a backup") as caught:
            check()
        assert "bytes" not in str(caught.value) and "SHA" not in str(caught.value)


def test_damage_to_a_paid_artifact_asks_for_a_backup(store: Store, tmp_path: Path) -> None:
    artifact = made(store, tmp_path / "out", FILES, reservations=("7",))
    store.delete(payload_name(artifact, "metrics.json"))
    with pytest.raises(ArtifactDamaged, match="must be restored from a backup"):
        artifact.check_sizes()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda manifest: b"{ half a manif", "not valid JSON"),
        (lambda manifest: b"\xff\xfe", "not valid JSON"),
        (lambda manifest: b"[]", "no manifest"),
        (lambda manifest: edited(manifest, format=2), "newer version"),
        (lambda manifest: edited(manifest, files={}), "contradicts itself"),
        (lambda manifest: edited(manifest, key="1" * 64), "not in its place"),
        (lambda manifest: edited(manifest, draw="one"), "draw: "),
        (lambda manifest: edited(manifest, payload="../../elsewhere"), "payload: "),
        (lambda manifest: edited(manifest, files={"../x": {"size": 0, "sha256": "0" * 64}}), "no name in a store"),
    ],
)
def test_a_damaged_manifest_is_an_error_not_an_absence(edit: Any, message: str, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    made(store, tmp_path / "out", FILES)
    path = store.local_path(f"artifacts/index/{KEY}/manifest.json")
    assert path is not None
    path.write_bytes(edit(path.read_bytes()))
    for call in (lambda: find(store, "index", KEY, sealed=False), lambda: list_artifacts(store)):
        with pytest.raises(ArtifactDamaged, match=message):
            call()
    with pytest.raises(PrivacyRefused, match="damaged"):
        remove(store, "index", KEY)
    remove(store, "index", KEY, force=True)
    assert store.list() == []


def test_a_reference_to_other_content_is_refused(store: Store, tmp_path: Path) -> None:
    ref = made(store, tmp_path / "out", FILES).ref
    with pytest.raises(ArtifactDamaged, match="expected 1111"):
        open_ref(store, replace(ref, digest="1" * 64))


def test_a_sealed_digest_is_blinded_by_a_key_of_the_store(tmp_path: Path) -> None:
    one, two = (Store.open(str(tmp_path / name)) for name in ("one", "two"))
    plain = made(one, tmp_path / "out", FILES).ref.digest
    sealed = made(one, tmp_path / "out", FILES, sealed=True).ref.digest
    again = made(one, tmp_path / "out", FILES, sealed=True, key="1" * 64).ref.digest
    elsewhere = made(two, tmp_path / "out", FILES, sealed=True).ref.digest
    assert plain != sealed == again != elsewhere
    assert sealed == blind(one, plain)
    assert all(name.startswith("private/") or name == "identity.check" for name in two.list())


def test_another_key_than_the_store_was_begun_with_is_refused(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    blind(store, "text")
    key = tmp_path / "store" / "private" / "identity.key"
    right = key.read_bytes()
    key.chmod(0o600)
    key.write_bytes(bytes(32))
    with pytest.raises(StoreError, match="not the key that this store was begun with"):
        blind(store, "text")
    key.write_bytes(right)
    blind(store, "text")


def test_writers_that_race_for_the_first_blinding_agree(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: blind(store, "text"), range(8)))) == 1


def test_a_lost_identity_key_is_never_replaced_by_another(store: Store, tmp_path: Path) -> None:
    made(store, tmp_path / "out", FILES, sealed=True)
    store.delete("private/identity.key")
    with pytest.raises(StoreError, match="restore it from a backup"):
        blind(store, "text")
    store.create("private/identity.key", b"short")
    with pytest.raises(StoreError, match="has 5 bytes, expected 32"):
        blind(store, "text")


def test_wiping_the_private_part_does_not_make_the_ledger_forget(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    store.create(f"ledger/{blind(store, 'images')}/000000.json", b"{}")
    store.delete_tree("private")
    with pytest.raises(StoreError, match="lose sight of their spent budget"):
        blind(store, "images")


def test_sealed_and_public_artifacts_are_listed_and_lie_apart(store: Store, tmp_path: Path) -> None:
    made(store, tmp_path / "out", FILES)
    made(store, tmp_path / "out", FILES, stage="audit", sealed=True)
    assert [(artifact.ref.stage, artifact.ref.sealed) for artifact in list_artifacts(store)] == [
        ("index", False),
        ("audit", True),
    ]
    assert find(store, "audit", KEY, sealed=False) is None


def test_remove_takes_manifest_and_files_but_nothing_that_was_paid_for(store: Store, tmp_path: Path) -> None:
    made(store, tmp_path / "out", FILES)
    made(store, tmp_path / "out", FILES, stage="query", reservations=("3", "4"))
    remove(store, "index", KEY)
    assert store.list(f"artifacts/index/{KEY}") == []
    with pytest.raises(PrivacyRefused, match="3, 4"):
        remove(store, "query", KEY)
    assert find(store, "query", KEY, sealed=False) is not None
    remove(store, "query", KEY, force=True)
    assert store.list() == []
    with pytest.raises(StoreError, match="no artifact"):
        remove(store, "query", KEY)


def test_an_empty_folder_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        made(Store.open("memory://empty-folder"), tmp_path / "out", {})


def test_every_part_of_a_key_changes_it_and_the_order_of_a_mapping_does_not() -> None:
    base: dict[str, Any] = {
        "stage": "index",
        "version": 1,
        "config": {"a": 1, "b": {"c": 0.1, "d": [1, 2]}},
        "inputs": {"x": "0", "y": "1"},
        "draw": 1,
    }
    changes: list[dict[str, Any]] = [
        {"stage": "query"},
        {"version": 2},
        {"draw": 2},
        {"config": {"a": 1, "b": {"c": 0.1, "d": [2, 1]}}},
        {"config": {"a": 1, "b": {"c": 0.1 + 1e-15, "d": [1, 2]}}},
        {"inputs": {"x": "1", "y": "0"}},
        {"inputs": {"x": "0", "y": "1", "z": "2"}},
    ]
    keys = {artifact_key(**base)} | {artifact_key(**(base | change)) for change in changes}
    assert len(keys) == 1 + len(changes)
    reordered = {"config": {"b": {"d": (1, 2), "c": 0.1}, "a": 1}, "inputs": {"y": "1", "x": "0"}}
    assert artifact_key(**(base | reordered)) == artifact_key(**base)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('aé"\\\n'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abé", max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON)
def test_canonical_json_is_json_and_stays_the_same_when_read_back(value: Any) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_json_does_not_have_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": [number]})


def payload_name(artifact: Artifact, name: str) -> str:
    private = "private/" if artifact.ref.sealed else ""
    return f"{private}artifacts/{artifact.ref.stage}/{artifact.ref.key}/{artifact.manifest.payload}/{name}"


def overwrite(store: Store, artifact: Artifact, name: str, data: bytes, folder: Path) -> None:
    (folder / "damage").write_bytes(data)
    store.upload(folder / "damage", payload_name(artifact, name))


def edited(manifest: bytes, **changes: object) -> bytes:
    return json.dumps(json.loads(manifest) | changes).encode()
