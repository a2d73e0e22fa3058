"""Further pairs of a public and a sensitive set, for the suite `other-pairs`, out of the image sets that others were tuned on.

    python -m benchmarks.other_pairs [--of ../shared/data] [--to .privimage-other-pairs]
    python -m benchmarks other-pairs

- Letters: ten letters of EMNIST are the sensitive classes, the other sixteen are public.
- Things: categories of Tiny ImageNet of eight kinds are the sensitive images, and their kinds the classes; three categories of each
  kind, and all that are of none, are public.

Which letters, and which categories, is drawn once and for all; nothing was looked at to choose them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

LETTERS = "emnist_letters_public.parquet"
THINGS = "tinyimagenet32_public.parquet"
SENSITIVE_LETTERS = 10
PUBLIC_OF_A_KIND = 3
FOR_TEST = 0.2  # of each category, its last images

KINDS = {
    "mammal": "Egyptian cat, German shepherd, brown bear, guinea pig, Arabian camel, baboon, Labrador retriever, lesser panda, "
    "chimpanzee, tabby, koala, gazelle, golden retriever, hog, cougar, ox, Persian cat, Yorkshire terrier, bighorn, orangutan, bison, "
    "Chihuahua, lion, standard poodle, African elephant",
    "insect or spider": "monarch, spider web, sulphur butterfly, tarantula, cockroach, mantis, ladybug, bee, dragonfly, fly, scorpion, "
    "black widow, centipede, grasshopper",
    "other animal": "bullfrog, goldfish, snail, albatross, sea cucumber, king penguin, European fire salamander, goose, spiny lobster, "
    "jellyfish, slug, black stork, dugong, American lobster, American alligator, sea slug, boa constrictor, tailed frog",
    "vehicle": "school bus, freight car, moving van, bullet train, tractor, police van, limousine, sports car, beach wagon, trolleybus, "
    "convertible, go-kart, gondola, lifeboat, jinrikisha, lawn mower",
    "food": "lemon, espresso, pizza, potpie, ice cream, pretzel, banana, guacamole, mushroom, ice lolly, plate, orange, mashed potato, "
    "pomegranate, bell pepper, meat loaf, cauliflower",
    "clothing": "cardigan, sock, fur coat, academic gown, miniskirt, sombrero, gasmask, sandal, vestment, sunglasses, Christmas "
    "stocking, apron, swimming trunks, bikini, bow tie, military uniform, kimono, poncho",
    "structure": "triumphal arch, dam, beacon, butcher shop, water tower, suspension bridge, picket fence, steel arch bridge, barn, "
    "thatch, fountain, barbershop, confectionery, cliff dwelling, viaduct, altar, obelisk, bannister",
    "container": "hourglass, pop bottle, beer bottle, barrel, teapot, frying pan, wok, pill bottle, chest, water jug, bathtub, beaker, "
    "bucket, backpack",
}


def main() -> None:
    """Write the files, and print what is in them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.other_pairs", description=__doc__.splitlines()[0])
    parser.add_argument("--of", type=Path, default=Path("../shared/data"), help="folder of the Parquet files")
    parser.add_argument("--to", type=Path, default=Path(".privimage-other-pairs"), help="folder to write to")
    asked = parser.parse_args()
    missing = [asked.of / name for name in (LETTERS, THINGS) if not (asked.of / name).is_file()]
    if missing:
        parser.error(f"there is no {missing[0]}: give the folder of the Parquet files, --of FOLDER")
    asked.to.mkdir(parents=True, exist_ok=True)

    letters = pq.read_table(asked.of / LETTERS)
    names = names_of(letters)
    chosen = sorted(np.random.default_rng(0).permutation(len(names))[:SENSITIVE_LETTERS].tolist())
    write_pair(asked.to, "letters", letters, {names[letter]: [letter] for letter in chosen})

    things = pq.read_table(asked.of / THINGS)
    write_pair(asked.to, "things", things, sensitive_categories(names_of(things)))


def names_of(table: pa.Table) -> list[str]:
    """The names of the table's categories."""
    return list(json.loads(table.schema.metadata[b"label_names"]))


def sensitive_categories(names: Sequence[str]) -> dict[str, list[int]]:
    """The categories of each kind of things, less those that stay public."""
    random = np.random.default_rng(0)
    kinds = {kind: [names.index(name) for name in of_it.split(", ")] for kind, of_it in KINDS.items()}
    return {kind: sorted(random.permutation(of_it)[PUBLIC_OF_A_KIND:].tolist()) for kind, of_it in kinds.items()}


def write_pair(folder: Path, name: str, table: pa.Table, classes: dict[str, list[int]]) -> None:
    """The files `{name}_public`, `{name}_train` and `{name}_test`: of a class are the images of its categories."""
    categories = table["label"].to_numpy()
    class_of = np.full(categories.max() + 1, -1)
    for label, of_it in enumerate(classes.values()):
        class_of[of_it] = label
    sensitive = class_of[categories] >= 0
    tested = last_of_each(categories)
    public_names = names_of(table)
    left = [category for category in range(len(public_names)) if class_of[category] < 0]
    new_number = np.full(len(public_names), -1)
    new_number[left] = np.arange(len(left))

    write(
        folder / f"{name}_public.parquet", table, ~sensitive, new_number, [public_names[category] for category in left]
    )
    write(folder / f"{name}_train.parquet", table, sensitive & ~tested, class_of, list(classes))
    write(folder / f"{name}_test.parquet", table, sensitive & tested, class_of, list(classes))


def last_of_each(categories: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a row is among the last `FOR_TEST` of its category."""
    last = np.zeros(len(categories), dtype=bool)
    for category in np.unique(categories):
        rows = np.flatnonzero(categories == category)
        last[rows[len(rows) - round(FOR_TEST * len(rows)) :]] = True
    return last


def write(file: Path, table: pa.Table, rows: NDArray[np.bool_], number: NDArray[np.int64], names: list[str]) -> None:
    """Those rows, with the numbers and names that their categories have in this file."""
    labels = number[table["label"].to_numpy()[rows]]
    # The metadata of the whole file names its categories, which are not those of this one.
    few = pa.table({"image": table["image"].filter(pa.array(rows)), "label": pa.array(labels, pa.int64())})
    pq.write_table(few.replace_schema_metadata({"label_names": json.dumps(names)}), file)
    print(
        f"{file}: {len(labels):,} images of {len(names)} categories, {np.bincount(labels).min()} to {np.bincount(labels).max()} of each"
    )


if __name__ == "__main__":
    main()
