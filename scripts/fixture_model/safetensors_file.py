"""Reads and writes the safetensors format: u64 header length, JSON header, raw little-endian tensors."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import torch

# name in the header -> (torch type, numpy type with the same bytes)
DTYPES = {
    "BF16": (torch.bfloat16, np.int16),
    "F32": (torch.float32, np.float32),
    "I32": (torch.int32, np.int32),
}


def _type_name(dtype: torch.dtype) -> str:
    return next(name for name, (candidate, _) in DTYPES.items() if candidate == dtype)


def _raw(tensor: torch.Tensor) -> bytes:
    tensor = tensor.contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy().tobytes()


def save(path: pathlib.Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Tensors are laid out in name order, so equal input gives an equal file."""
    header: dict = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset, parts = 0, []
    for name in sorted(tensors):
        data = _raw(tensors[name])
        header[name] = {
            "dtype": _type_name(tensors[name].dtype),
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + len(data)],
        }
        offset += len(data)
        parts.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def load(path: pathlib.Path) -> dict[str, torch.Tensor]:
    blob = path.read_bytes()
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        torch_type, numpy_type = DTYPES[entry["dtype"]]
        begin, end = entry["data_offsets"]
        values = np.frombuffer(blob[8 + size + begin : 8 + size + end], dtype=numpy_type).copy()
        tensor = torch.from_numpy(values).reshape(entry["shape"])
        tensors[name] = tensor.view(torch_type) if torch_type == torch.bfloat16 else tensor
    return tensors
