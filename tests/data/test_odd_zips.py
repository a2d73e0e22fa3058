"""Zips as many tools write them: every member is an image of a class, or is refused by name; no name is guessed."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from privimage.config.sources import FolderSource
from privimage.data.sources import Source, open_source
from privimage.errors import DataError
from tests.data.test_odd_folders import paths, refusals

Png = Callable[[int], bytes]


@pytest.fixture
def picture_file(as_png: Callable[..., bytes], make_picture: Callable[[int], np.ndarray]) -> Png:
    return lambda number: as_png(make_picture(number))


def written(file: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Source:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return opened(file)


def opened(file: Path, **settings: str) -> Source:
    return open_source(FolderSource(path=str(file), **settings))


def two_each(picture_file: Png, *classes: str, first: int = 0) -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    return [(f"{name}/{number}.png", picture_file(first + number)) for name in classes for number in range(2)]


def test_members_below_dot_slash_are_where_they_are_without(tmp_path: Path, picture_file: Png) -> None:
    source = written(tmp_path / "in.zip", two_each(picture_file, "ant", "./bee", ".//cat", "./././dog"))
    assert source.class_names == ("ant", "bee", "cat", "dog")
    assert paths(source)[2:4] == ["bee/0.png", "bee/1.png"] and len(source) == 8 and not refusals(source)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["ant/0.png", "./ant/0.png", "ant//0.png", "/ant/0.png"])
def test_two_members_of_one_path_are_both_refused(tmp_path: Path, picture_file: Png, again: str) -> None:
    source = written(tmp_path / "in.zip", [*two_each(picture_file, "ant", "bee"), (again, picture_file(9))])
    assert len(source) == 5
    assert paths(source).count("ant/0.png") == 2
    assert refusals(source) == {"ant/0.png": "several files have this very path"}
    assert sum(item.path != "ant/0.png" for item in source) == 3


def test_members_that_lead_out_of_the_zip_are_refused(tmp_path: Path, picture_file: Png) -> None:
    members = [
        *two_each(picture_file, "ant", "bee"),
        ("../cat/0.png", picture_file(8)),
        ("ant/../../1.png", picture_file(9)),
    ]
    source = written(tmp_path / "in.zip", members)
    assert source.class_names == ("ant", "bee") and len(source) == 6
    assert sorted(refusals(source)) == ["../cat/0.png", "ant/../../1.png"]


def test_what_lies_beside_the_top_folder_or_the_classes_is_refused(tmp_path: Path, picture_file: Png) -> None:
    members = two_each(picture_file, "pets/ant", "pets/bee")
    source = written(tmp_path / "in.zip", [*members, ("stray.png", picture_file(7)), ("pets/odd.png", picture_file(8))])
    assert source.class_names == ("ant", "bee") and len(source) == 6
    assert sorted(refusals(source)) == ["odd.png", "stray.png"]
    source = written(tmp_path / "in.zip", [*members, ("README.txt", b"text"), ("pets/labels.csv", b"text")])
    assert len(source) == 4


def test_links_and_folders_with_content_are_refused(tmp_path: Path, picture_file: Png) -> None:
    link = zipfile.ZipInfo("ant/link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    members = [*two_each(picture_file, "ant", "bee"), (link, b"0.png"), (zipfile.ZipInfo("ant/odd/"), picture_file(9))]
    source = written(tmp_path / "in.zip", members)
    assert set(refusals(source)) == {"ant/link.png", "ant/odd"}


def test_a_zip_that_has_backslashes_throughout_is_read_as_folders(tmp_path: Path, picture_file: Png) -> None:
    members = [(str(name).replace("/", "\\"), data) for name, data in two_each(picture_file, "pets/ant", "pets/bee")]
    source = written(tmp_path / "in.zip", [*members, ("pets\\emu\\", b"")])
    assert source.class_names == ("ant", "bee", "emu") and len(source) == 4 and not refusals(source)


def test_a_backslash_among_slashes_is_refused(tmp_path: Path, picture_file: Png) -> None:
    source = written(tmp_path / "in.zip", [*two_each(picture_file, "ant", "bee"), ("ant\\2.png", picture_file(9))])
    assert len(source) == 5
    assert list(refusals(source)) == ["ant\\2.png"]


def renamed(file: Path, names: dict[bytes, bytes]) -> Source:
    """The zip with other bytes, of the same number, in the place of names."""
    data = file.read_bytes()
    for old, new in names.items():
        assert len(old) == len(new)
        data = data.replace(old, new)
    file.write_bytes(data)
    return opened(file)


@pytest.mark.parametrize("encoding", ["cp932", "latin-1", "cp850"])
def test_class_names_in_an_encoding_that_nobody_knows_are_refused(
    tmp_path: Path, picture_file: Png, encoding: str
) -> None:
    # In Shift-JIS the second byte of the first name is that of a backslash.
    name = ("\u30bd\u30bd" if encoding == "cp932" else "Gr\u00fc\u00df").encode(encoding)
    written(tmp_path / "in.zip", two_each(picture_file, "XXXX", "bee"))
    with pytest.raises(DataError, match="does not say in which encoding"):
        renamed(tmp_path / "in.zip", {b"XXXX": name})
    # Above the classes it is published nowhere, and neither is the name of a file.
    written(tmp_path / "in.zip", two_each(picture_file, "XXXX/ant", "XXXX/bee"))
    assert renamed(tmp_path / "in.zip", {b"XXXX": name}).class_names == ("ant", "bee")
    written(tmp_path / "in.zip", [("ant/XXXX.png", picture_file(0)), ("bee/1.png", picture_file(1))])
    source = renamed(tmp_path / "in.zip", {b"XXXX": name})
    assert source.class_names == ("ant", "bee") and len(source) == 2 and not refusals(source)


def test_names_that_are_utf8_without_saying_so_are_understood(tmp_path: Path, picture_file: Png) -> None:
    written(tmp_path / "in.zip", two_each(picture_file, "XXXXX", "bee"))
    assert renamed(tmp_path / "in.zip", {b"XXXXX": "caf\u00e9".encode()}).class_names == ("bee", "caf\u00e9")


def test_a_unicode_name_beside_the_old_one_counts(tmp_path: Path, picture_file: Png) -> None:
    members: list[tuple[str | zipfile.ZipInfo, bytes]] = []
    for name, number in (("ant/0.png", 0), ("XXXX/1.png", 1)):
        info = zipfile.ZipInfo(name)
        if number:
            old = name.encode().replace(b"XXXX", "Gr\u00fcn".encode("latin-1"))
            body = b"\1" + struct.pack("<I", zlib.crc32(old)) + "Gr\u00fcn/1.png".encode()
            info.extra = struct.pack("<HH", 0x7075, len(body)) + body
        members.append((info, picture_file(number)))
    written(tmp_path / "in.zip", members)
    source = renamed(tmp_path / "in.zip", {b"XXXX": "Gr\u00fcn".encode("latin-1")})
    assert source.class_names == ("Gr\u00fcn", "ant") and not refusals(source)


def patched(file: Path, local: int, central: int, value: int) -> None:
    """Two bytes at an offset of each local header, and of each central one, set to a value."""
    data = bytearray(file.read_bytes())
    for sign, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = data.find(sign)
        while at >= 0:
            struct.pack_into("<H", data, at + offset, value)
            at = data.find(sign, at + 4)
    file.write_bytes(data)


def test_an_encrypted_zip_is_refused_before_an_image_is_read(tmp_path: Path, picture_file: Png) -> None:
    written(tmp_path / "in.zip", two_each(picture_file, "ant", "bee"))
    patched(tmp_path / "in.zip", 6, 8, 1)
    with pytest.raises(DataError, match=r"in\.zip is encrypted.*: unpack it"):
        opened(tmp_path / "in.zip")


@pytest.mark.parametrize(("method", "name"), [(9, "Deflate64"), (93, "Zstandard"), (1234, "method 1234")])
def test_a_zip_by_a_method_that_cannot_be_unpacked_is_refused_before_an_image_is_read(
    tmp_path: Path, picture_file: Png, method: int, name: str
) -> None:
    written(tmp_path / "in.zip", two_each(picture_file, "ant", "bee"))
    patched(tmp_path / "in.zip", 8, 10, method)
    with pytest.raises(DataError, match=f"is packed by {name}"):
        opened(tmp_path / "in.zip")


def test_a_zip_of_a_later_version_of_the_format_is_refused_in_one_sentence(tmp_path: Path, picture_file: Png) -> None:
    written(tmp_path / "in.zip", two_each(picture_file, "ant", "bee"))
    patched(tmp_path / "in.zip", 4, 6, 90)
    with pytest.raises(DataError, match="no readable zip file"):
        opened(tmp_path / "in.zip")


def test_one_split_of_a_zip_is_read_where_it_is_named(tmp_path: Path, picture_file: Png) -> None:
    members = two_each(picture_file, "pets/train/ant", "pets/train/bee") + two_each(
        picture_file, "pets/test/ant", "pets/test/bee"
    )
    with pytest.raises(DataError, match="`split`"):
        written(tmp_path / "in.zip", members)
    source = opened(tmp_path / "in.zip", split="train")
    assert source.class_names == ("ant", "bee") and len(source) == 4


def test_damaged_zips_are_refused_in_one_sentence(tmp_path: Path, picture_file: Png) -> None:
    written(tmp_path / "good.zip", two_each(picture_file, "ant", "bee"))
    good = (tmp_path / "good.zip").read_bytes()
    directory = good.index(b"PK\x01\x02")
    random = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(good)
        for _ in range(3):
            data[int(random.integers(directory, len(data)))] = int(random.integers(256))
        (tmp_path / "in.zip").write_bytes(data)
        try:
            refusals(opened(tmp_path / "in.zip"))
        except DataError:
            pass
