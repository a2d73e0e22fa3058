"""Bad input: one clear sentence, the right exit code, and nothing charged."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privimage.config.loading import load_config
from privimage.data.facts import SensitiveFacts, TableFacts
from privimage.errors import ConfigError
from privimage.pipeline.preflight import check_against_data
from privimage.store.backends import LocalBackend
from tests.pipeline_fixtures import NAME_ON_FILES, Answer, Place, png, write_images

Command = Callable[..., Answer]


def bomb() -> bytes:
    """A PNG of a few bytes that says to be 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


TRUNCATED = png(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8))[:80]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of good images, to be spoilt."""
    return write_images(tmp_path / "images", classes=("anna", "berta"), per_class=20)


@pytest.fixture
def refused(privimage: Command, granted_copy: Place) -> Callable[..., str]:
    """Runs with overrides in a store with a grant; checks exit code and ledger, and returns the complaint."""

    def call(*overrides: str, code: int = 2) -> str:
        command = ["run"]
        if any(override.startswith("sensitive.train") for override in overrides):
            # Other images than were granted for are the steward's to admit.
            command = ["ledger", "grant", "--epsilon", "3", "--delta", "1e-4"]
        answer = privimage(*command, *granted_copy.options(*overrides))
        assert answer.code == code, answer.err
        assert granted_copy.kinds == ["grant"]
        return answer.complaint

    return call


Refused = Callable[..., str]


def sensitive(path: Path) -> str:
    return f"sensitive.train.path={path}"


def public(path: Path) -> str:
    return f"public.source={{kind: folder, path: '{path}'}}"


# ------------------------------------------------------------------ images


def test_a_missing_folder(refused: Refused, tmp_path: Path) -> None:
    assert f"Nothing found at {tmp_path}/absent" in refused(sensitive(tmp_path / "absent"))
    assert f"Nothing found at {tmp_path}/absent" in refused(public(tmp_path / "absent"))


def test_an_empty_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert f"Nothing found at {tmp_path}/empty" in refused(sensitive(tmp_path / "empty"))


def test_a_folder_without_class_folders(refused: Refused, images: Path) -> None:
    assert "has no class folders" in refused(sensitive(images / "anna"))


def test_one_class_only(refused: Refused, images: Path) -> None:
    shutil.rmtree(images / "berta")
    assert "has 1 class(es), expected at least two" in refused(sensitive(images))


def private_details(place: Place) -> str:
    """What was written for the owner's eyes only."""
    (file,) = (place.folder / "private" / "problems").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    return file.read_text()


def test_a_sensitive_class_without_images_is_told_in_private(
    refused: Refused, images: Path, granted_copy: Place
) -> None:
    (images / "dora").mkdir()
    complaint = refused(sensitive(images))
    assert "which ones is private" in complaint
    assert "dora" not in complaint
    assert "class dora: no image" in private_details(granted_copy)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (TRUNCATED, "truncated"),
        (b"this is a text file\n", "not an image"),
        (b"", "the file is empty"),
        (bomb(), "megapixels"),
    ],
    ids=["corrupt image", "text file", "empty file", "decompression bomb"],
)
def test_a_sensitive_file_that_is_no_usable_image_is_named_in_private_only(
    refused: Refused, images: Path, granted_copy: Place, content: bytes, reason: str
) -> None:
    (images / "anna" / f"{NAME_ON_FILES}_spoilt.png").write_bytes(content)
    complaint = refused(sensitive(images))
    assert NAME_ON_FILES not in complaint
    assert reason not in complaint
    assert f"{granted_copy.folder}/private/problems/" in complaint
    details = private_details(granted_copy)
    assert f"anna/{NAME_ON_FILES}_spoilt.png" in details
    assert reason in details


def test_what_a_library_says_of_a_sensitive_file_stands_in_private_only(
    refused: Refused, images: Path, granted_copy: Place, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    file = images / "anna" / f"{NAME_ON_FILES}.tif"
    Image.fromarray(pixels).save(file, compression="tiff_adobe_deflate")
    data = bytearray(file.read_bytes())
    data[600:606] = bytes(6)
    file.write_bytes(data)
    with (tmp_path / "stderr").open("wb") as stderr:
        before = os.dup(2)
        os.dup2(stderr.fileno(), 2)
        try:
            complaint = refused(sensitive(images))
        finally:
            os.dup2(before, 2)
            os.close(before)
    assert "which ones is private" in complaint
    assert (tmp_path / "stderr").read_bytes() == b""
    assert "[ZIPDecode: " in private_details(granted_copy)


def test_a_sensitive_file_whose_name_is_no_utf8_is_named_in_private(
    refused: Refused, images: Path, granted_copy: Place
) -> None:
    Path(os.fsdecode(os.fsencode(images / "anna") + b"/Gr\xfcn.png")).write_bytes(b"")
    assert f"{granted_copy.folder}/private/problems/" in refused(sensitive(images))
    assert r"anna/Gr\udcfcn.png: the file is empty" in private_details(granted_copy)


def test_a_class_whose_name_is_no_utf8_is_refused_before_anything_is_charged(refused: Refused, images: Path) -> None:
    shutil.copytree(images / "anna", os.fsdecode(os.fsencode(images) + b"/Gr\xfcn"))
    assert "has a class whose name is not UTF-8" in refused(sensitive(images))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(TRUNCATED, "truncated"), (b"text\n", "not an image"), (bomb(), "megapixels")],
    ids=["corrupt image", "text file", "decompression bomb"],
)
def test_a_public_file_that_is_no_usable_image_is_named_in_the_message(
    refused: Refused, images: Path, content: bytes, reason: str
) -> None:
    (images / "anna" / "spoilt.png").write_bytes(content)
    complaint = refused(public(images))
    assert "1 of 41 public images cannot be used" in complaint
    assert "anna/spoilt.png" in complaint
    assert reason in complaint


def test_a_public_category_without_images(refused: Refused, images: Path) -> None:
    (images / "dora").mkdir()
    assert "1 public categories have no images" in refused(public(images))


# ------------------------------------------------------------------ configuration


def test_no_configuration_at_the_path(privimage: Command, tmp_path: Path) -> None:
    answer = privimage("run", tmp_path / "absent.yaml", "--store", tmp_path / "store")
    assert answer.code == 2
    assert "No configuration at" in answer.complaint
    assert not (tmp_path / "store").exists()


def test_a_configuration_that_is_no_yaml(privimage: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: [one,\n  two\nimage: {")
    answer = privimage("run", tmp_path / "broken.yaml", "--store", tmp_path / "store")
    assert answer.code == 2
    assert "is not valid YAML" in answer.complaint


def test_an_unknown_key(refused: Refused) -> None:
    assert "generator.finetune.noise_multiplier" in refused("generator.finetune.noise_multiplier=1")


def test_a_value_out_of_bounds(refused: Refused) -> None:
    complaint = refused("privacy.epsilon=0")
    assert "privacy.epsilon" in complaint
    assert "(found 0)" in complaint


def test_an_override_that_is_no_yaml(refused: Refused) -> None:
    assert "is not valid YAML" in refused("privacy.epsilon=[")


# ------------------------------------------------------------------ configuration against data


def test_a_delta_of_one_over_the_number_of_images_or_more(refused: Refused) -> None:
    assert "privacy.delta is 0.01, but must be below 1 / number of training images" in refused("privacy.delta=0.01")


def test_more_categories_than_there_are(refused: Refused) -> None:
    complaint = refused("selection.categories_per_class=21")
    assert "asks for 63 categories for 3 classes, but the public set has 62: lower it to at most 20" in complaint


def test_more_classes_than_there_are_categories(tmp_path: Path, tiny_config: Path) -> None:
    config = load_config(tiny_config, ["selection.categories_per_class=1"])
    table = {"resolution": 8, "channels": 1}
    categories = TableFacts(num_images=620, class_names=tuple(map(str, range(62))), identity="a", **table)
    classes = tuple(map(str, range(1000)))
    sensitive = SensitiveFacts(
        num_train=4000, num_validation=0, num_test=1000, class_names=classes, identity="b", **table
    )
    with pytest.raises(ConfigError, match="asks for 1000 categories for 1000 classes, but .* has 62") as caught:
        check_against_data(config, categories, sensitive)
    assert "give a public set with 1000 categories or more" in str(caught.value)
    assert "selection.strategy to all" in str(caught.value) and "at most 0" not in str(caught.value)


def test_more_votes_than_there_are_categories(refused: Refused) -> None:
    assert "the public set has 62 categories" in refused("selection.num_votes=63")


def test_a_batch_larger_than_the_set(refused: Refused) -> None:
    complaint = refused("generator.finetune.expected_batch_size=145")
    assert "expected_batch_size is 145, but there are 144 training images" in complaint


# ------------------------------------------------------------------ budget


def test_a_query_that_would_use_up_the_run(refused: Refused) -> None:
    complaint = refused("privacy.query_error=null", "privacy.query_noise_multiplier=1", code=3)
    assert "nothing is left for fine-tuning" in complaint


def test_a_run_that_is_larger_than_the_grant(refused: Refused) -> None:
    complaint = refused("privacy.epsilon=3.5", code=3)
    assert "asks for epsilon 3.5" in complaint
    assert "the grant is epsilon 3" in complaint
    assert "Nothing was charged." in complaint


def test_a_delta_that_is_larger_than_the_grant(refused: Refused) -> None:
    assert "Nothing was charged." in refused("privacy.delta=0.001", code=3)


def test_no_grant_at_all(privimage: Command, granted_copy: Place) -> None:
    shutil.rmtree(granted_copy.folder / "ledger")
    answer = privimage("run", *granted_copy.options())
    assert answer.code == 3
    assert "has no grant" in answer.complaint
    assert "privimage ledger grant CONFIG --epsilon 1 --delta 0.0001" in answer.complaint
    assert not (granted_copy.folder / "ledger").exists()


def test_a_missing_grant_is_told_before_the_classifier_is_trained(
    privimage: Command, tiny_config: Path, tmp_path: Path
) -> None:
    answer = privimage("run", tiny_config, "--store", tmp_path / "store")
    assert answer.code == 3
    assert "has no grant" in answer.complaint
    assert not (tmp_path / "store" / "artifacts" / "classifier").exists()


def test_a_second_grant_that_differs(privimage: Command, granted_copy: Place) -> None:
    before = granted_copy.entries
    answer = privimage("ledger", "grant", *granted_copy.options(), "--epsilon", "30", "--delta", "1e-4")
    assert answer.code == 3
    assert "already has a grant of epsilon 3" in answer.complaint
    assert granted_copy.entries == before


def test_a_grant_with_a_delta_that_promises_nothing(privimage: Command, granted_copy: Place) -> None:
    answer = privimage("ledger", "grant", *granted_copy.options(), "--epsilon", "3", "--delta", "0.01")
    assert answer.code == 2
    assert "a delta from 1e-10 to below 1 / number of training images" in answer.complaint


# ------------------------------------------------------------------ storage


def test_a_bucket_that_does_not_exist(privimage: Command, tiny_config: Path, s3_endpoint: str) -> None:
    answer = privimage("run", tiny_config, "--store", "s3://no-such-bucket-here/prefix")
    assert answer.code == 2
    assert f"There is no bucket 'no-such-bucket-here' at {s3_endpoint}" in answer.complaint


@pytest.mark.parametrize("url", ["gopher://store", "s3://", "file://relative", "memory://"])
def test_a_store_of_no_known_kind(privimage: Command, tiny_config: Path, url: str) -> None:
    answer = privimage("run", tiny_config, "--store", url)
    assert answer.code == 2
    assert url in answer.complaint


def test_a_store_whose_place_is_taken_by_a_file(privimage: Command, tiny_config: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    answer = privimage("run", tiny_config, "--store", tmp_path / "taken")
    assert answer.code == 2
    assert "Cannot make the store's folder" in answer.complaint


def test_a_store_that_ignores_conditional_writes_is_found_out_before_it_is_trusted_with_a_charge(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(backend: LocalBackend, name: str, data: bytes) -> bool:
        path = backend.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return True

    monkeypatch.setattr(LocalBackend, "create", overwrite)
    assert "ignores conditional writes" in refused()


def test_a_damaged_artifact(privimage: Command, granted_copy: Place) -> None:
    weights = granted_copy.payload("classifier", "classifier.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    answer = privimage("run", *granted_copy.options(), "--until", "select")
    assert answer.code == 1
    assert "File classifier.safetensors of artifact classifier" in answer.complaint
    assert "privimage artifacts remove classifier" in answer.complaint
    assert granted_copy.kinds == ["grant"]


def test_a_manifest_that_is_no_json(privimage: Command, granted_copy: Place) -> None:
    (manifest,) = granted_copy.folder.glob("artifacts/index/*/manifest.json")
    manifest.write_bytes(b"{")
    answer = privimage("run", *granted_copy.options())
    assert answer.code == 1
    assert "is not valid JSON" in answer.complaint
    assert granted_copy.kinds == ["grant"]


def test_a_store_that_lost_its_secret_key(privimage: Command, finished_copy: Place) -> None:
    (finished_copy.folder / "private" / "identity.key").unlink()
    answer = privimage("run", *finished_copy.options())
    assert answer.code == 2
    assert "identity.key is missing" in answer.complaint
