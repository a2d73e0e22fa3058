"""The store's secret key, and the blinding of digests of sensitive data with it."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from privimage.errors import StoreError
from privimage.store.files import Store

__all__ = ["blind", "key_for"]

_KEY_NAME = "private/identity.key"
_KEY_BYTES = 32
# Tells whether the key is the right one, and nothing about it.
_CHECK_NAME = "identity.check"


def blind(store: Store, text: str) -> str:
    """HMAC-SHA256 of `text`, in hex, under a secret key that is made once per store and never leaves `private/`.

    Guarantee: without the key the result tells nothing about `text`. A plain hash of sensitive images, published in
    manifests and certificates, would let anybody who knows all images but one test guesses for the last one. Within
    one store equal texts give equal results; in two stores they do not.

    Raises:
        StoreError: the key is gone though sealed artifacts or ledgers exist, or is no key. A new one would give every
            data set a new name, and so hide what was already spent on it.
    """
    key = _identity_key(store)
    check = hmac.new(key, b"privimage: is this the key of this store?", hashlib.sha256).hexdigest().encode()
    if not store.create(_CHECK_NAME, check):
        raise StoreError(
            f"{_KEY_NAME} in {store.url} is not the key that this store was begun with: restore that from a backup; "
            "another key would rename the sensitive data and lose sight of their spent budget."
        )
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def key_for(store: Store, purpose: str) -> bytes:
    """32 secret bytes for one purpose, the same in every process that uses this store; errors as for `blind`."""
    return bytes.fromhex(blind(store, f"key for {purpose}"))


def _identity_key(store: Store) -> bytes:
    key = _read_key(store)
    if key is None:
        if _was_used(store):
            # The key is always older than what was named with it: another writer may just have made both.
            key = _read_key(store)
            if key is None:
                raise StoreError(
                    f"{_KEY_NAME} is missing in {store.url}, though sealed artifacts or ledgers were named with it: "
                    "restore it from a backup; a new key would rename the data and lose sight of their spent budget."
                )
        else:
            store.create(_KEY_NAME, secrets.token_bytes(_KEY_BYTES))
            key = store.read(_KEY_NAME)
    if len(key) != _KEY_BYTES:
        raise StoreError(
            f"{_KEY_NAME} in {store.url} has {len(key)} bytes, expected {_KEY_BYTES}: restore it from a backup."
        )
    return key


def _was_used(store: Store) -> bool:
    sealed = (name for name in store.list("private/artifacts") if name.endswith("/manifest.json"))
    return any(sealed) or bool(store.list("ledger"))


def _read_key(store: Store) -> bytes | None:
    try:
        return store.read(_KEY_NAME)
    except FileNotFoundError:
        return None
