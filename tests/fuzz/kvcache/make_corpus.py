#!/usr/bin/env python3
"""Writes the seeds of the three fuzz targets beside this file into tests/fuzz/corpus: valid inputs and
named hostile ones. Files that fuzzing has found lie beside them and are left alone."""

import json
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import make_object_example as example  # noqa: E402


def write(target, name, data):
    folder = ROOT / "tests" / "fuzz" / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def patched(data, offset, replacement):
    return data[:offset] + replacement + data[offset + len(replacement):]


def resealed(data):
    data = patched(data, 12, struct.pack("<Q", len(data)))[:-4]
    return data + struct.pack("<I", example.crc32c(data))


def manifests():
    good = example.joined(example.manifest())
    at = {note: sum(len(d) for d, _ in example.manifest()[:i])
          for i, (_, note) in enumerate(example.manifest())}
    yield "example", good
    yield "manifest_version_newer", resealed(patched(good, 8, b"\x03"))
    version2 = example.manifest_version_2()
    yield "example_version_2", version2
    yield "manifest_fidelity_above_tokens", resealed(patched(version2, len(good) + 9, b"\x06"))
    yield "manifest_version_1_with_fidelity", resealed(patched(version2, 8, b"\x01"))
    yield "manifest_count_overflow", resealed(patched(good, at["bands 2"], b"\xff" * 4))
    yield "manifest_count_overflow_layers", resealed(patched(good, at["layers 2"], b"\xff" * 4))
    yield "manifest_count_overflow_heads", resealed(patched(good, at["KV heads 2"], b"\x00\x01"))
    yield "manifest_truncated", good[:200]
    yield "manifest_truncated_resealed", resealed(good[:200])
    head = at["layer 0: codec raw"] + 1
    yield "segment_heads_overlap", resealed(patched(good, head + 4, struct.pack("<Q", 192)))
    yield "manifest_rows_overflow", resealed(patched(good, head, b"\xff" * 4))


def key_descriptors():
    vectors = json.loads((ROOT / "tests" / "golden" / "key_vectors.json").read_text())["vectors"]
    bytes_of = {v["name"]: bytes.fromhex(v["canonical_hex"]) for v in vectors}
    good = bytes_of["object_format_example"]
    context = struct.pack("<HBQ", 9, 4, 20)
    assert context in good
    yield "example", good
    yield "one_full_block", bytes_of["one_full_block"]
    yield "text_beyond_ascii", bytes_of["text_beyond_ascii_and_largest_id"]
    yield "descriptor_missing_context", good[:good.index(context)]
    yield "descriptor_unknown_last", good + struct.pack("<HBQ", 10, 1, 1) + b"x"
    yield "descriptor_length_overflow", good.replace(context, struct.pack("<HBQ", 9, 4, 2**64 - 4))
    yield "descriptor_repeated_last", good + good[good.index(context):]


def segments():
    segment = example.joined(example.segment(0, 0))
    header = bytes([0b100, 1, 3, 1, 4, 2, 2])  # bf16, 2 heads, dim 4, n_s 1, n_c 5, 2 ranked each
    yield "example", header + segment
    yield "segment_short", bytes([0b1100]) + header[1:] + segment[:-64]
    yield "segment_wrong_checksums", bytes([0b10100]) + header[1:] + segment
    yield "segment_padding", header + patched(segment, 0x20, b"\x01")
    yield "segment_unsorted", header + patched(segment, 4, struct.pack("<II", 4, 1))
    window = b"".join(struct.pack("<I", p) for p in (3, 4, 5)).ljust(64, b"\0")
    window += struct.pack("<eee", *[float("inf")] * 3).ljust(64, b"\0") + bytes(128)
    yield "sliding", bytes([0b101, 0, 3, 1, 4, 2]) + window
    int4 = example.joined(example.segment(0, 0, example.int4_head_block))
    # As above, codec int4; no head's position code is longer than its rows.
    header = bytes([0b1000100, 1, 3, 1, 4, 2, 2, 0, 0, 0, 0])
    yield "int4", header + int4
    yield "int4_scale_infinite", header + patched(int4, 0x80, b"\x00\x7c")
    yield "int4_position_not_shortest", header + patched(int4, 0x140, b"\x80\x00")
    yield "int4_position_beyond_end", header + patched(int4, 0x140, b"\xff\xff\xff")
    yield "int4_trailing_bits", bytes([0b1000100, 1, 2, 1, 4, 2, 2, 0, 0, 0, 0]) + int4


for target, seeds in [("fuzz_manifest", manifests()), ("fuzz_key_descriptor", key_descriptors()),
                      ("fuzz_segment", segments())]:
    for name, data in seeds:
        write(target, name, data)
