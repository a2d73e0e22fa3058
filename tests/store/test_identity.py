"""The key that names data sets is made once: another one would hide what was spent."""

from __future__ import annotations

from pathlib import Path

import pytest

from privimage.errors import StoreError
from privimage.store.files import Store
from privimage.store.identity import blind


def test_where_only_a_ledger_is_left_no_new_key_is_made(tmp_path: Path) -> None:
    """Neither the key, nor its check, nor a sealed artifact: what was spent is known by the old names alone."""
    store = Store.open(str(tmp_path))
    store.create("ledger/0123456789abcdef/entries/000000.json", b"{}")
    before = store.list()
    with pytest.raises(StoreError, match=r"identity\.key is missing .* lose sight of their spent budget"):
        blind(store, "images")
    assert store.list() == before


def test_where_only_a_sealed_artifact_is_left_neither_is(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    store.create("private/artifacts/admit/0123/manifest.json", b"{}")
    with pytest.raises(StoreError, match=r"identity\.key is missing"):
        blind(store, "images")
    assert store.list() == ["private/artifacts/admit/0123/manifest.json"]


def test_in_a_new_store_one_is_made_and_kept(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    assert blind(store, "images") == blind(Store.open(str(tmp_path)), "images") != blind(store, "other images")
