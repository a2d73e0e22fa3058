"""The datasheet of a release: README.md, a dataset card with the front matter that Hugging Face reads.

It is written from the certificate and from facts about the synthetic images, so all of it is public. What its front
matter says of privacy can be read back, which is how `verify` compares it with the certificate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from privimage.methods.registry import GENERATORS, SELECTIONS
from privimage.release.certificate import Certificate, in_words, interval_in_words

__all__ = ["VERIFY", "SyntheticFacts", "front_matter", "privacy_statement", "render_datasheet"]

_STATED = ("guarantee", "epsilon", "delta", "relation", "unit", "num_training_images", "accountant")
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$])")
VERIFY = "privimage verify RELEASE_FOLDER"


@dataclass(frozen=True, kw_only=True)
class SyntheticFacts:
    """What there is to say of synthetic.parquet: images of each class, in the order of their numbers; sizes in bytes; and how
    many of the images are public ones, unchanged, or mixtures of two of them (None: there can be none).

    `class_size_stddev` is that of the noise on the numbers of sensitive images in whose proportion classes have their sizes;
    None where these are equal.
    """

    class_names: Sequence[str]
    images_per_class: Sequence[int]
    channels: int
    resolution: int
    parquet_bytes: int
    arrow_bytes: int
    num_public: int | None = None
    num_mixed: int | None = None
    drawn_rejected: bool | None = None
    rejects: bool = False
    class_size_stddev: float | None = None
    has_probabilities: bool = False
    num_candidates: int | None = None

    @property
    def num_images(self) -> int:
        """Of all classes together."""
        return sum(self.images_per_class)


def privacy_statement(certificate: Certificate) -> dict[str, Any]:
    """The certificate's promise as it stands in the front matter."""
    return {**certificate.model_dump(include=set(_STATED)), "verify": VERIFY}


def render_datasheet(
    certificate: Certificate, facts: SyntheticFacts, *, description: str = "", licence: str | None = None
) -> str:
    """The card as Markdown.

    Args:
        description: a sentence of the publisher's for people.
        licence: as Hugging Face spells it; None where the publisher has named none, and none is made up.
    """
    head = yaml.safe_dump(
        _head(certificate, facts, licence), sort_keys=False, allow_unicode=True, width=math.inf
    ).rstrip("\n")
    parts = [
        f"# {_text(certificate.name)}",
        *([_text(description)] if description else []),
        (_PUBLIC if facts.num_public else _SYNTHETIC).format(
            num=f"{facts.num_images:,}", classes=len(facts.class_names), public=f"{facts.num_public or 0:,}"
        ),
        "## Privacy",
        *_privacy(certificate),
        "## Content",
        *_content(facts),
        "## How it was made",
        *_making(certificate, _choice(facts)),
        "## What it is not",
        f"{_sizes(certificate, facts)}\n{_LIMITS}",
        "## How to verify",
        _VERIFICATION.format(command=VERIFY),
        "## Licence",
        f"`{licence}`" if licence else "The publisher has named none.",
        *(
            ["It does not hold for the public images among these: theirs is that of the public set."]
            if facts.num_public
            else []
        ),
    ]
    return f"---\n{head}\n---\n\n" + "\n\n".join(parts) + "\n"


def front_matter(card: str) -> dict[str, Any]:
    """The front matter of a card, read back.

    Raises:
        ValueError: there is none, or it is no YAML mapping.
    """
    found = _FRONT_MATTER.match(card)
    try:
        head = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter is no YAML: {error}") from error
    if not isinstance(head, dict):
        raise ValueError("there is no front matter")
    return head


def _head(certificate: Certificate, facts: SyntheticFacts, licence: str | None) -> dict[str, Any]:
    names = {str(number): name for number, name in enumerate(facts.class_names)}
    return {
        "pretty_name": certificate.name,
        **({"license": licence} if licence else {}),
        "task_categories": ["image-classification"],
        "size_categories": [_SIZES[min(len(_SIZES) - 1, max(0, len(str(facts.num_images)) - 3))]],
        "tags": ["synthetic", "differential-privacy", "privimage"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "synthetic.parquet"}]}],
        "dataset_info": {
            "features": [
                {"name": "id", "dtype": "int64"},
                {"name": "label", "dtype": {"class_label": {"names": names}}},
                {"name": "image", "dtype": "image"},
                *([{"name": "probabilities", "sequence": "float32"}] if facts.has_probabilities else []),
            ],
            "splits": [{"name": "train", "num_bytes": facts.arrow_bytes, "num_examples": facts.num_images}],
            "download_size": facts.parquet_bytes,
            "dataset_size": facts.arrow_bytes,
        },
        "differential_privacy": privacy_statement(certificate),
    }


def _privacy(certificate: Certificate) -> list[str]:
    if not certificate.is_private:
        return [f"**{in_words(certificate)}** Treat the images like the sensitive ones."]
    rows = [
        ("epsilon", f"{certificate.epsilon:g}"),
        ("delta", f"{certificate.delta:g}"),
        ("unit of protection", certificate.unit),
        ("neighbouring data sets", f"{certificate.relation_in_words} (`{certificate.relation}`)"),
        ("sensitive training images", f"{certificate.num_training_images:,}"),
        ("epsilon as computed", f"{certificate.epsilon_computed:.6g} ({certificate.accountant})"),
        ("independent check", interval_in_words(certificate.epsilon_certified_interval)),
    ]
    return [
        f"{in_words(certificate)}.",
        "Whether any single image was in the training set changes the probability of any outcome by a factor of at most "
        f"e^{certificate.epsilon:g}, plus delta. Someone with several images in the set is protected less.",
        _table(("what", "value"), rows),
        "It rests on these assumptions:",
        "\n".join(f"- {_text(assumption)}" for assumption in certificate.assumptions),
    ]


def _content(facts: SyntheticFacts) -> list[str]:
    colours = "gray" if facts.channels == 1 else "RGB"
    rows = [
        (str(number), _text(name), f"{count:,}")
        for number, (name, count) in enumerate(zip(facts.class_names, facts.images_per_class, strict=True))
    ]
    return [
        f"`synthetic.parquet` holds {facts.num_images:,} {colours} images of {facts.resolution} x {facts.resolution} "
        "pixels: `image` (PNG, struct of bytes and path), `label` (class number), `id` (row number).",
        *([_PROBABILITIES] if facts.has_probabilities else []),
        _table(("label", "class", "images"), rows),
        _OPENING,
    ]


def _choice(facts: SyntheticFacts) -> str:
    """How images were chosen, where there was something to choose by."""
    chosen = _CHOSEN if facts.drawn_rejected else _CHOSEN_UNREJECTED
    if facts.num_candidates is None and facts.num_public is not None:
        return chosen.format(others="public ones that were selected for it")
    if facts.num_candidates is None and facts.num_mixed is not None:
        return f"{chosen.format(others=_MIXTURES)} {facts.num_mixed:,} of them are mixtures."
    if facts.num_candidates is not None:
        blended = "" if facts.num_mixed is None else _BLENDED.format(num=f"{facts.num_mixed:,}")
        return _BY_MEANS.format(num=f"{facts.num_candidates:,}") + blended
    return _REJECTED if facts.rejects else ""


def _making(certificate: Certificate, choice: str) -> list[str]:
    rows = [(mechanism.stage, _text(mechanism.in_words)) for mechanism in certificate.mechanisms]
    selection, generator = SELECTIONS.named(certificate.selection), GENERATORS.named(certificate.generator)
    warmed_up = _WARMED_UP if certificate.class_mean_images else ""
    sentences = (
        selection.in_words,
        generator.in_words(selects=selection.selects, finetunes=certificate.fine_tuned),
        choice,
        warmed_up,
    )
    told = " ".join(sentence for sentence in sentences if sentence)
    return [told, _table(("stage", "mechanism that touched the sensitive images"), rows)]


def _sizes(certificate: Certificate, facts: SyntheticFacts) -> str:
    """What the sizes of the classes say of the sensitive images."""
    if facts.class_size_stddev is None:
        return _EQUAL
    return _PROPORTIONAL.format(stddev=facts.class_size_stddev, total=certificate.num_training_images)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(text: str) -> str:
    """Plain text in Markdown: one line, and neither markup nor HTML."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(r"\\\1", line)


_SYNTHETIC = "{num} synthetic images of {classes} classes. None of them is a photograph, or otherwise real."
_PUBLIC = (
    "{num} images of {classes} classes, of which {public} are images of the public set, unchanged "
    "(`generator.sampling.public_images`, `synthesize.from_public`), and all others synthetic. The `image.path` of public ones is "
    "`public` (in `datasets`, with `Image(decode=False)`). They stand under the class for which they, or their category, were "
    "selected, which need not be what they show: the licence of the public set, and the rights of the people in it, hold for them. "
    "None was taken from the sensitive set; that no image is in both sets is an assumption."
)
_REJECTED = (
    "An image whose class this one does not see may be drawn again, a few times at most (`generator.critic_attempts`)."
)
_PROBABILITIES = (
    "`probabilities` beside it are those of all classes, in the order of their numbers, by the released means: a list of float32 that "
    "adds up to 1. A classifier that learns from them knows how uncertain a label is, and mostly becomes better."
)
_BY_MEANS = (
    "Of {num} candidates those were released that are likeliest of their class by the released means, and whose features "
    "together come nearest to them."
)
_BLENDED = " {num} of them are two selected public images each, laid over each other; all others were drawn."
_CHOSEN = (
    "Of images that were drawn for a class, and of {others}, those in which this one sees the class, too, and whose features together "
    "come nearest to these means, are released."
)
_CHOSEN_UNREJECTED = (
    "Of images that were drawn for a class, and of those in which this one sees the class, too, among {others}, those whose features "
    "together come nearest to these means are released."
)
_MIXTURES = (
    "mixtures of two public images each that were selected for it, by an autoencoder which learned from the selection"
)
_WARMED_UP = (
    "Before it was fine-tuned, it was trained further on noisy mean images of the classes (the idea of DP-FETA)."
)
_EQUAL = (
    "- As many images of each class were asked for: how common a class is among the sensitive images is not in here."
)
_PROPORTIONAL = (
    "- How common a class is here tells how common it is among the sensitive images to within some noise: sizes are in proportion to "
    "noisy votes, a part of the query, whose noise has a standard deviation of {stddev:.0f} images, of {total:,} in all. None is below "
    "a tenth of the mean."
)
_LIMITS = """\
- What is rare among the sensitive images is rare or missing here; that is what the privacy guarantee asks for.
- Figures on quality are in `report.html` as far as they look at no sensitive image or were paid for. Others were
  not paid for, and stand nowhere in here."""
_OPENING = """\
```python
datasets.load_dataset("RELEASE_FOLDER")                          # Hugging Face
polars.read_parquet("synthetic.parquet")
duckdb.sql("FROM 'synthetic.parquet'")
pyarrow.parquet.read_table("synthetic.parquet")
```

`privimage export RELEASE_FOLDER --format folder --to DIR` writes a folder for `torchvision.datasets.ImageFolder`,
`--format webdataset` tar shards."""
_VERIFICATION = """\
```
{command}
```

checks the files, computes epsilon again from the mechanisms and compares; with the publisher's store at hand
(`--store`), it compares with the ledger too. `certificate.json` says all of it for programs. Ask the publisher for its
SHA-256 by another way."""
