"""The datasheet: a card that Hugging Face reads, that says what the certificate says, and stays text whatever it is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from privimage.privacy.mechanisms import RELATION
from privimage.release.datasheet import SyntheticFacts, front_matter, privacy_statement, render_datasheet
from tests.release.example import CERTIFICATE

FACTS = SyntheticFacts(
    class_names=("T-shirt/top", "Ankle boot"),
    images_per_class=(7, 8),
    channels=3,
    resolution=32,
    parquet_bytes=1000,
    arrow_bytes=2000,
)


def test_what_the_sizes_of_the_classes_tell_is_said() -> None:
    assert "how common a class is among the sensitive images is not in here" in render_datasheet(CERTIFICATE, FACTS)
    told = render_datasheet(CERTIFICATE, replace(FACTS, class_size_stddev=50.99))
    assert "a standard deviation of 51 images, of 55,000 in all" in told and "is not in here" not in told


HOSTILE = "a\n---\nlicense: mit\n<img src=x> | [b](http://c) `d` ![e](f) # *g*"


def test_the_front_matter_describes_the_features_and_the_guarantee() -> None:
    head = front_matter(render_datasheet(CERTIFICATE, FACTS))
    assert head["pretty_name"] == "digits"
    assert head["size_categories"] == ["n<1K"]
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "synthetic.parquet"}]
    label, image = head["dataset_info"]["features"][1:]
    assert label["dtype"]["class_label"]["names"] == {"0": "T-shirt/top", "1": "Ankle boot"}
    assert image == {"name": "image", "dtype": "image"}
    assert head["dataset_info"]["splits"] == [{"name": "train", "num_bytes": 2000, "num_examples": 15}]
    privacy = head["differential_privacy"]
    assert privacy == privacy_statement(CERTIFICATE)
    assert (privacy["epsilon"], privacy["delta"], privacy["unit"]) == (10.0, 1e-5, "one image")
    assert privacy["relation"] == RELATION.name
    assert privacy["verify"].startswith("privimage verify")


@pytest.mark.parametrize(
    ("num", "size"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (60_000, "10K<n<100K"), (999_999, "100K<n<1M"), (10**10, "100M<n<1B")],
)
def test_the_size_category_is_the_power_of_ten(num: int, size: str) -> None:
    facts = SyntheticFacts(
        class_names=("a",), images_per_class=(num,), channels=1, resolution=8, parquet_bytes=1, arrow_bytes=1
    )
    assert front_matter(render_datasheet(CERTIFICATE, facts))["size_categories"] == [size]


def test_a_license_stands_there_only_if_it_was_given() -> None:
    without = render_datasheet(CERTIFICATE, FACTS)
    assert "license" not in front_matter(without)
    assert "named none" in without
    given = render_datasheet(CERTIFICATE, FACTS, licence="cc-by-4.0")
    assert front_matter(given)["license"] == "cc-by-4.0"
    assert "named none" not in given


def test_a_warm_up_with_class_mean_images_is_told() -> None:
    told = "trained further on noisy mean images of the classes"
    for selection in ("semantic", "random", "none"):
        certificate = CERTIFICATE.model_copy(update={"selection": selection})
        assert told not in render_datasheet(certificate, FACTS)
        assert told in render_datasheet(certificate.model_copy(update={"class_mean_images": True}), FACTS)


def test_hostile_names_and_descriptions_are_only_ever_text() -> None:
    facts = SyntheticFacts(
        class_names=(HOSTILE, "yes"), images_per_class=(1, 1), channels=1, resolution=8, parquet_bytes=1, arrow_bytes=1
    )
    card = render_datasheet(CERTIFICATE, facts, description=HOSTILE)
    head = front_matter(card)
    assert "license" not in head
    assert head["dataset_info"]["features"][1]["dtype"]["class_label"]["names"] == {"0": HOSTILE, "1": "yes"}
    body = card.partition("\n---\n\n")[2]
    assert "<img" not in body and "](http" not in body and "\n---" not in body
    assert "a --- license: mit &lt;img src=x> \\| \\[b\\](http://c)".replace("(http://c)", "\\(http://c\\)") in body


def test_a_release_without_a_guarantee_promises_nothing() -> None:
    card = render_datasheet(CERTIFICATE.model_copy(update={"guarantee": "none"}), FACTS)
    assert "NO privacy guarantee" in card
    assert "e^10" not in card
    assert front_matter(card)["differential_privacy"]["guarantee"] == "none"


@pytest.mark.parametrize("text", ["", "# no front matter", "---\n- a list\n---\n", "---\na: [\n---\n"])
def test_a_text_without_front_matter_is_no_card(text: str) -> None:
    with pytest.raises(ValueError, match="front matter"):
        front_matter(text)


def test_hugging_face_reads_the_card(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    (tmp_path / "README.md").write_text(render_datasheet(CERTIFICATE, FACTS, licence="cc0-1.0"))
    card = hub.DatasetCard.load(tmp_path / "README.md")
    assert card.data.license == "cc0-1.0"
    assert card.data.differential_privacy["epsilon"] == 10.0
    assert card.text.lstrip().startswith("# digits")
