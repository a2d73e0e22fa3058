"""Folders that systems and tools leave: every file is an image of a class, or is refused by name, or is known clutter."""

from __future__ import annotations

import os
import shutil
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from privimage.config.images import ImageConfig
from privimage.config.sources import FolderSource
from privimage.data.admission import SensitiveDataProblem, admit_public, admit_sensitive
from privimage.data.fingerprint import source_fingerprint
from privimage.data.sources import Source, open_source
from privimage.errors import DataError
from tests.data.test_admission import sensitive

Make = Callable[..., Path]


def opened(path: Path, **settings: str) -> Source:
    return open_source(FolderSource(path=str(path), **settings))


def paths(source: Source) -> list[str]:
    return [item.path for item in source]


def refusals(source: Source) -> dict[str, str]:
    """Why each image that cannot be read cannot."""
    found = {}
    for item in source:
        try:
            item.read()
        except DataError as error:
            found[item.path] = str(error)
    return found


# ------------------------------------------------------------------ what systems leave behind


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir",
        "lost+found",
        "$RECYCLE.BIN",
        "System Volume Information",
        "#recycle",
        "__MACOSX",
        ".@__thumb",
        "RECYCLER",
    ],
)
def test_what_a_system_leaves_behind_is_no_class_and_no_image(tmp_path: Path, make_folder: Make, name: str) -> None:
    root = make_folder(tmp_path / "in", per_class=2)
    plain = paths(opened(root))
    for above in (root, root / "cat"):
        (above / name / "000.png").mkdir(parents=True)
        shutil.copy(root / "cat" / "000.png", above / name / "000.png" / "SYNOPHOTO_THUMB_M.jpg")
    source = opened(root)
    assert source.class_names == ("cat", "dog") and paths(source) == plain and not refusals(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_clutter_that_may_not_be_read_is_no_obstacle(tmp_path: Path, make_folder: Make) -> None:
    (make_folder(tmp_path, per_class=1) / "lost+found").mkdir(mode=0)
    assert len(opened(tmp_path)) == 2


def test_texts_about_the_set_may_lie_beside_the_classes_and_nothing_else(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path, per_class=1)
    for name in ("README", "README.md", "labels.csv", "LICENSE", "dataset_infos.json"):
        (root / name).write_text("text")
    assert len(opened(root)) == 2
    shutil.copy(root / "cat" / "000.png", root / "overview.png")
    (root / "dog.bin").write_bytes(b"?")
    source = opened(root)
    assert len(source) == len(paths(source)) == 4
    assert refusals(source) == dict.fromkeys(("dog.bin", "overview.png"), "it lies beside the class folders")


# ------------------------------------------------------------------ what is no file


def test_pipes_sockets_and_dead_links_are_refused_and_not_waited_for(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "in", per_class=1)
    os.mkfifo(root / "cat" / "live.png")
    (root / "cat" / "dead.png").symlink_to(tmp_path / "nowhere")
    (root / "cat" / "self.png").symlink_to(root / "cat" / "self.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root / "dog")  # the name of a socket must be short
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        found = refusals(opened(root))
    assert sorted(found) == ["cat/dead.png", "cat/live.png", "cat/self.png", "dog/socket.png"]
    assert all("no file: a named pipe" in reason for reason in found.values())
    assert source_fingerprint(FolderSource(path=str(root)))


def test_a_pipe_in_the_place_of_a_zip_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.zip")
    with pytest.raises(DataError, match="is no file"):
        opened(tmp_path / "in.zip")


def test_links_that_lead_in_circles_are_refused_and_no_image_counts_twice(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path, per_class=2)
    (root / "cat" / "all").symlink_to(root)
    (root / "dog" / "again").symlink_to(root / "dog")
    source = opened(root)
    assert source.class_names == ("cat", "dog")
    refused = refusals(source)
    # Through `all` each image would be there once more, and through `again` for ever.
    assert "cat/all" in refused and "dog/again" in refused
    assert all("count again and again" in reason for reason in refused.values())
    assert source_fingerprint(FolderSource(path=str(root))) == source_fingerprint(FolderSource(path=str(root)))


# ------------------------------------------------------------------ folders that are no classes


@pytest.mark.parametrize(
    "names", [("train", "test"), ("Training", "Validation"), ("train_set", "test_set"), ("train", "val", "test")]
)
def test_splits_above_the_classes_are_refused_with_the_setting_that_names_one(
    tmp_path: Path, make_folder: Make, names: tuple[str, ...]
) -> None:
    for number, name in enumerate(names):
        make_folder(tmp_path / "in" / name, per_class=number + 1, first=100 * number)
    with pytest.raises(DataError, match="`split`") as caught:
        opened(tmp_path / "in")
    assert names[0] in str(caught.value)
    source = opened(tmp_path / "in", split=names[1])
    assert source.class_names == ("cat", "dog") and paths(source) == paths(opened(tmp_path / "in" / names[1]))
    one, other = (FolderSource(path=str(tmp_path / "in"), split=name) for name in names[:2])
    assert source_fingerprint(one) != source_fingerprint(other)


def test_splits_inside_of_the_classes_are_refused_with_the_setting_that_names_one(
    tmp_path: Path, make_folder: Make
) -> None:
    for name in ("train", "test"):
        made = make_folder(tmp_path / name, per_class=2)
        for label in ("cat", "dog"):
            (tmp_path / "in" / label).mkdir(parents=True, exist_ok=True)
            (made / label).rename(tmp_path / "in" / label / name)
    with pytest.raises(DataError, match="divided into test and train"):
        opened(tmp_path / "in")
    source = opened(tmp_path / "in", split="train")
    assert source.class_names == ("cat", "dog")
    assert paths(source) == ["cat/000.png", "cat/001.png", "dog/000.png", "dog/001.png"]
    with pytest.raises(DataError, match="has no folder 'val'"):
        opened(tmp_path / "in", split="val")


def test_one_class_called_like_a_split_is_a_class(tmp_path: Path, make_folder: Make) -> None:
    assert opened(make_folder(tmp_path, ("car", "test tube", "train"), per_class=1)).class_names[2] == "train"


def test_a_split_beside_the_classes_that_it_holds_is_no_class(tmp_path: Path, make_folder: Make) -> None:
    make_folder(make_folder(tmp_path, per_class=1) / "test", per_class=1)
    with pytest.raises(DataError, match="`split`"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("names", "what"), [(("fold_0", "fold_1"), "folds"), (("label=cat", "label=dog"), "partitions")]
)
def test_folds_and_partitions_are_no_classes(
    tmp_path: Path, make_folder: Make, names: tuple[str, ...], what: str
) -> None:
    with pytest.raises(DataError, match=what):
        opened(make_folder(tmp_path, names, per_class=1))


# ------------------------------------------------------------------ names


def test_two_unicode_forms_of_one_class_are_refused(tmp_path: Path, make_folder: Make) -> None:
    names = tuple(unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    with pytest.raises(DataError, match="two classes of the same name"):
        opened(make_folder(tmp_path, (*names, "tea"), per_class=1))


def test_classes_have_one_name_and_one_order_whichever_system_wrote_the_folders(
    tmp_path: Path, make_folder: Make
) -> None:
    names = ("caf\u00e9", "caffe", "ca\u00f1a")
    found = [
        opened(make_folder(tmp_path / form, tuple(unicodedata.normalize(form, name) for name in names), per_class=1))
        for form in ("NFC", "NFD")
    ]
    assert found[0].class_names == found[1].class_names == tuple(sorted(names))
    assert [item.label for item in found[0]] == [item.label for item in found[1]] == [0, 1, 2]


def latin1(folder: Path, name: bytes) -> Path:
    return Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))


def test_a_class_folder_whose_name_is_no_utf8_is_refused_when_the_source_is_opened(
    tmp_path: Path, make_folder: Make
) -> None:
    make_folder(tmp_path, per_class=1)
    shutil.copytree(tmp_path / "cat", latin1(tmp_path, b"Gr\xfcn"))
    with pytest.raises(DataError, match=r"is not UTF-8 \('Gr\\udcfcn'\)"):
        opened(tmp_path)


def test_a_file_whose_name_is_no_utf8_is_an_image_like_others(
    tmp_path: Path, make_folder: Make, gray8: ImageConfig
) -> None:
    root = make_folder(tmp_path / "in")
    (root / "cat" / "000.png").rename(latin1(root / "cat", b"Gr\xfcn\n.png"))
    assert admit_public(FolderSource(path=str(root)), gray8, tmp_path / "public").num_images == 80
    assert admit_sensitive(sensitive(root), gray8, tmp_path / "out", lambda purpose: bytes(32)).num_train


def test_a_damaged_file_whose_name_is_no_utf8_is_one_line_of_the_private_list(
    tmp_path: Path, make_folder: Make, gray8: ImageConfig
) -> None:
    root = make_folder(tmp_path / "in")
    latin1(root / "cat", b"Gr\xfcn\n.png").write_bytes(b"")
    with pytest.raises(SensitiveDataProblem) as caught:
        admit_sensitive(sensitive(root), gray8, tmp_path / "out", lambda purpose: bytes(32))
    assert caught.value.details == [r"train: cat/Gr\udcfcn\n.png: the file is empty"]


def test_a_file_url_may_hold_blanks_in_percent_encoding(tmp_path: Path, make_folder: Make) -> None:
    root = make_folder(tmp_path / "my 100% images", per_class=1)
    for url in (root.as_uri(), root.as_uri().replace("file://", "file://localhost")):
        assert "%20" in url and paths(open_source(FolderSource(path=url))) == paths(opened(root))
        assert source_fingerprint(FolderSource(path=url)) == source_fingerprint(FolderSource(path=str(root)))
