#!/usr/bin/env python3
"""Writes the seeds of fuzz_checkpoint into tests/fuzz/corpus: the configuration of every family of
tests/golden/families, and named hostile inputs. Files that fuzzing has found lie beside them and are
left alone."""

import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).resolve().parents[3]
FAMILIES = ROOT / "tests" / "golden" / "families"
CORPUS = ROOT / "tests" / "fuzz" / "corpus" / "fuzz_checkpoint"
TAG = b"\xff"


def text(value):
    return json.dumps(value, separators=(",", ":")).encode()


def safetensors(header, data=b""):
    head = text(header)
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def index(**files):
    return text({"metadata": {"total_size": 12}, "weight_map": files})


GOOD_INDEX = index(a="model-00001-of-00002.safetensors", b="model-00002-of-00002.safetensors")
GOOD_FILE = safetensors(
    {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [2, 1], "data_offsets": [4, 12]},
    },
    bytes(range(12)),
)


def seeds():
    for folder in sorted(FAMILIES.iterdir()):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config.pop("vision_config", None)  # Not read.
        yield folder.name, [text(config), GOOD_INDEX, GOOD_FILE]
    # Each number is one of fp32, the frequency they make is not.
    infinite = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "intermediate_size": 8, "vocab_size": 9, "max_position_embeddings": 16,
        "rope_theta": 1e-30, "rope_scaling": {"rope_type": "linear", "factor": 2e-38},
    }
    yield "rope_infinite", [text(infinite), GOOD_INDEX, GOOD_FILE]
    huge = {"a": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 0]}}
    yield "index_outside", [b"{}", index(a="../a.safetensors"), safetensors(huge)]


def main():
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, parts in seeds():
        (CORPUS / name).write_bytes(TAG.join(parts))


if __name__ == "__main__":
    main()
