"""A signature of the certificate by the data steward's SSH key, so that a recipient without the store can check its origin.

The certificate has the digests of all other files, so its signature is one of the release. It is in OpenSSH's own format
(PROTOCOL.sshsig), and OpenSSH can make and check it without privimage:

    ssh-keygen -Y sign -f ~/.ssh/id_ed25519 -n privimage certificate.json
    ssh-keygen -Y verify -f allowed_signers -I steward -n privimage -s certificate.json.sig < certificate.json
"""

from __future__ import annotations

import base64
import hashlib
import struct
import textwrap
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from privimage.errors import ConfigError

__all__ = ["NAMESPACE", "SIGNATURE", "check_signature", "sign"]

SIGNATURE = "certificate.json.sig"
NAMESPACE = b"privimage"
_MAGIC, _VERSION, _HASH, _KIND = b"SSHSIG", 1, b"sha512", b"ssh-ed25519"
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"


def sign(certificate: bytes, key: Path, passphrase: bytes | None = None) -> str:
    """An armoured signature of `certificate` by the Ed25519 key in `key`, as `ssh-keygen -t ed25519` makes it.

    Raises:
        ConfigError: no such key, one of another kind, or another passphrase.
    """
    try:
        private = load_ssh_private_key(key.read_bytes(), passphrase)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{key} is no SSH key that can be used ({error}): give an Ed25519 key, and its passphrase."
        ) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{key} is no Ed25519 key: make one with ssh-keygen -t ed25519.")
    public = _strings(_KIND, private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    signature = _strings(_KIND, private.sign(_signed(certificate)))
    blob = _MAGIC + struct.pack(">I", _VERSION) + _strings(public, NAMESPACE, b"", _HASH, signature)
    return "\n".join([_BEGIN, *textwrap.wrap(base64.b64encode(blob).decode(), 70), _END, ""])


def check_signature(certificate: bytes, armoured: str, signer: str) -> str | None:
    """Why `armoured` is no signature of `certificate` by the public key `signer` ('ssh-ed25519 AAAA...'); None if it is one.

    Raises:
        ConfigError: `signer` is no Ed25519 public key.
    """
    try:
        key = load_ssh_public_key(signer.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{signer[:40]!r} is no SSH public key ({error}): give a .pub file, or what is in it."
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{signer[:40]!r} is no Ed25519 public key.")
    try:
        lines = armoured.strip().splitlines()
        blob = base64.b64decode("".join(lines[1:-1]), validate=True)
        head = len(_MAGIC) + 4
        public, namespace, _, algorithm, signature = _parse(blob[head:], 5)
        (_, stated), (kind, raw) = _parse(public, 2), _parse(signature, 2)
        whole = (lines[0], lines[-1], blob[:head]) == (_BEGIN, _END, _MAGIC + struct.pack(">I", _VERSION))
    except (ValueError, IndexError, struct.error):
        return "it is no SSH signature"
    if not whole or (namespace, algorithm, kind) != (NAMESPACE, _HASH, _KIND):
        return "it is no SSH signature of a certificate by an Ed25519 key (namespace privimage, sha512)"
    if stated != key.public_bytes(Encoding.Raw, PublicFormat.Raw):
        return "it was made by another key"
    try:
        key.verify(raw, _signed(certificate))
    except InvalidSignature:
        return "it is of another certificate"
    return None


def _signed(certificate: bytes) -> bytes:
    return _MAGIC + _strings(NAMESPACE, b"", _HASH, hashlib.sha512(certificate).digest())


def _strings(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def _parse(data: bytes, count: int) -> list[bytes]:
    """So many strings, and nothing after them; ValueError otherwise."""
    parts = []
    for _ in range(count):
        (length,) = struct.unpack(">I", data[:4])
        if len(data) < 4 + length:
            raise ValueError("cut short")
        parts.append(data[4 : 4 + length])
        data = data[4 + length :]
    if data:
        raise ValueError("too long")
    return parts
