"""Tensors and JSON as one safetensors file: what a checkpoint holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from privimage.errors import ArtifactDamaged
from privimage.store.manifest import JSON

__all__ = ["pack", "unpack"]


def pack(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, JSON]) -> bytes:
    """Tensors and a JSON mapping as one safetensors file; tensors are copied to the CPU.

    Raises:
        ValueError: a number in `metadata` is NaN or infinite.
    """
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return bytes(safetensors.torch.save(copies, metadata={"json": json.dumps(metadata, allow_nan=False)}))


def unpack(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `pack` was given: tensors on the CPU, with dtype and shape, and the mapping.

    Raises:
        ArtifactDamaged: the bytes were not written by `pack`.
    """
    try:
        tensors = dict(safetensors.torch.load(data))
        # safetensors: 8 bytes little-endian length, then a JSON header with the metadata.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, json.loads(header["__metadata__"]["json"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactDamaged(
            f"Found {len(data)} bytes that are no packed tensors ({error}), expected what privimage wrote: "
            "restore them from a backup."
        ) from error
