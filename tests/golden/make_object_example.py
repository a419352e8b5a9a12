#!/usr/bin/env python3
"""The worked example of docs/object_format.md, computed from its grammar and formulas alone: shares
no code with kvcache/, so that the two check each other.

    make_object_example.py           rewrites the `hex` blocks of docs/object_format.md
    make_object_example.py --check   fails if they differ from what would be written
"""

import json
import math
from fractions import Fraction
import pathlib
import re
import struct
import sys

HERE = pathlib.Path(__file__).resolve().parent
DOC = HERE.parent.parent / "docs" / "object_format.md"

LAYERS, HEADS, DIM = 2, 2, 4
SYSTEM, CONTEXT = 1, 5
EDGES = [400_000, 1_000_000]
PAIRS = LAYERS * HEADS * CONTEXT
ENDS = [PAIRS * edge // 1_000_000 for edge in EDGES]
ALIGNMENT = 64


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def bf16(value):
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    assert bits & 0xFFFF == 0, "the example uses exact values only"
    return struct.pack("<H", bits >> 16)


def rank(layer, head, position):
    return (7 * (10 * layer + 5 * head + position - SYSTEM) + 3) % PAIRS


def log_score(layer, head, position):
    return math.inf if position < SYSTEM else -rank(layer, head, position) / 4


def element(layer, head, position, d):
    return 8 * (2 * layer + head) + position + d / 4  # of the key; the value's is -1 less this


def positions_of(band, layer, head):
    begin, end = ([0] + ENDS)[band], ENDS[band]
    return [p for p in range(SYSTEM + CONTEXT)
            if (band == 0 if p < SYSTEM else begin <= rank(layer, head, p) < end)]


def half_at_least(value):
    """The smallest fp16 that is not below `value`, by trying them all in order."""
    halves = sorted(struct.unpack("<e", struct.pack("<H", b))[0] for b in [*range(0x7C00),
                                                                          *range(0x8001, 0xFC00)])
    return next(h for h in halves if Fraction(h) >= value)


def int4_row(row):
    """(codes, scale and minimum, note) of elements that are small multiples of 1/4."""
    row = [Fraction(x) for x in row]
    minimum = 0.0 - half_at_least(-min(row))  # Never -0.
    scale = half_at_least((max(row) - Fraction(minimum)) / 15)
    codes = [math.floor((x - Fraction(minimum)) / Fraction(scale) + Fraction(1, 2)) for x in row]
    assert max(codes) <= 15 and len(codes) % 2 == 0
    packed = bytes(16 * even + odd for even, odd in zip(codes[::2], codes[1::2]))
    return packed, struct.pack("<ee", scale, minimum), " ".join(map(str, codes))


def leb128(number):
    data = []
    while number >= 128:
        data.append(number % 128 + 128)
        number //= 128
    return bytes([*data, number])


def int4_head_block(band, layer, head):
    positions = positions_of(band, layer, head)
    codes, scales = [], []
    for name, of_key in [("keys", lambda x: x), ("values", lambda x: -1 - x)]:
        for index, p in enumerate(positions):
            row = [of_key(element(layer, head, p, d)) for d in range(DIM)]
            packed, scale, text = int4_row(row)
            last = index + 1 == len(positions)
            codes.append((packed, f"{name} of position {p}: {text}", last))
            numbers = " ".join(f"{x:g}" for x in struct.unpack("<ee", scale))
            scales.append((scale, f"{name} of position {p}: scale, minimum {numbers}", last))
    scores = [log_score(layer, head, p) for p in positions]
    gaps = b"".join(leb128(p - before - 1) for before, p in zip([-1, *positions], positions))
    arrays = codes + scales + [
        (b"".join(struct.pack("<e", s) for s in scores), "log_scores", True),
        (gaps, f"positions {positions}", True),
    ]
    pieces, size = [], 0
    for data, note, ends_array in arrays:
        pieces.append((data, f"head {head}: {note}"))
        size += len(data)
        if ends_array and size % ALIGNMENT:
            pieces.append((bytes(-size % ALIGNMENT), "padding"))
            size += -size % ALIGNMENT
    return pieces if positions else []


def head_block(band, layer, head):
    """[(bytes, note)] with padding as pieces of their own."""
    positions = positions_of(band, layer, head)
    scores = [log_score(layer, head, p) for p in positions]
    arrays = [
        (b"".join(struct.pack("<I", p) for p in positions), f"positions {positions}"),
        (b"".join(struct.pack("<e", s) for s in scores),
         "log_scores " + " ".join("+inf" if s == math.inf else f"{s:g}" for s in scores)),
    ]
    for name, of_key in [("keys", lambda x: x), ("values", lambda x: -1 - x)]:
        for p in positions:
            row = [of_key(element(layer, head, p, d)) for d in range(DIM)]
            arrays.append((b"".join(map(bf16, row)),
                           f"{name} of position {p}: " + " ".join(f"{x:g}" for x in row)))
    pieces, size = [], 0
    ends_array = [1, 2, 2 + len(positions), 2 + 2 * len(positions)]
    for index, (data, note) in enumerate(arrays, 1):
        pieces.append((data, f"head {head}: {note}"))
        size += len(data)
        if index in ends_array and size % ALIGNMENT:
            pieces.append((bytes(-size % ALIGNMENT), "padding"))
            size += -size % ALIGNMENT
    return pieces if positions else []


def joined(pieces):
    return b"".join(data for data, _ in pieces)


def segment(band, layer, block=head_block):
    return [piece for head in range(HEADS) for piece in block(band, layer, head)]


# Measured on the one chunk of five tokens, at band 0 alone: 4 right.
FIDELITY_TOKENS, FIDELITY_CORRECT = CONTEXT, [4, 2**64 - 1]


def fidelity():
    """What version 2 adds to the example's manifest, and the checksum that it then has."""
    pieces = [
        (b"\x01", "measured"),
        (struct.pack("<I", 1), "on 1 chunk"),
        (struct.pack("<Q", FIDELITY_TOKENS), f"of {FIDELITY_TOKENS} tokens"),
        (struct.pack("<Q", FIDELITY_CORRECT[0]), f"band 0: {FIDELITY_CORRECT[0]} right"),
        (struct.pack("<Q", FIDELITY_CORRECT[1]), "bands 0 and 1: not measured"),
    ]
    version1 = joined(manifest())[:-4]
    total = len(version1) + len(joined(pieces)) + 4
    version2 = (version1[:8] + struct.pack("<IQ", 2, total) + version1[20:] + joined(pieces))
    return pieces + [(struct.pack("<I", crc32c(version2)), "CRC32C of all before")]


def manifest_version_2():
    tail = joined(fidelity())
    version1 = joined(manifest())[:-4]
    return version1[:8] + struct.pack("<IQ", 2, len(version1) + len(tail)) + version1[20:] + tail


def manifest():
    vectors = json.loads((HERE / "key_vectors.json").read_text())["vectors"]
    example = next(v for v in vectors if v["name"] == "object_format_example")
    model = b"tiny"
    recipe = example["recipe"].encode()
    body = [
        (bytes.fromhex(example["key"]), "key: vector object_format_example"),
        (bytes(range(16)), "upload id"),
        (bytes.fromhex(example["model_digest"]), "model digest"),
        (bytes.fromhex(example["prompt_profile_digest"]), "prompt profile digest"),
        (bytes(32), "last block hash: no full block"),
        (struct.pack("<Q", SYSTEM), f"system tokens {SYSTEM}"),
        (struct.pack("<Q", CONTEXT), f"context tokens {CONTEXT}"),
        (struct.pack("<I", len(model)), f"model name: {len(model)} bytes"),
        (model, '"tiny"'),
        (struct.pack("<I", len(recipe)), f"recipe: {len(recipe)} bytes"),
        (recipe, f'"{recipe.decode()}"'),
        (struct.pack("<I", HEADS), f"KV heads {HEADS}"),
        (struct.pack("<I", DIM), f"head dim {DIM}"),
        (b"\x03", "dtype bf16"),
        (struct.pack("<I", LAYERS), f"layers {LAYERS}"),
        (b"\x01" * LAYERS, "both global"),
        (struct.pack("<I", len(EDGES)), f"bands {len(EDGES)}"),
    ]
    for band, edge in enumerate(EDGES):
        ranks = range(([0] + ENDS)[band], ENDS[band])
        threshold = -ranks[-1] / 4
        mass = math.fsum(math.exp(-r / 4) for r in ranks)
        body += [
            (struct.pack("<I", edge), f"band {band}: edge {edge / 1e6:g}"),
            (struct.pack("<f", threshold), f"threshold {threshold:g}"),
            (struct.pack("<d", mass), f"score mass {mass:.6f}"),
        ]
        for layer in range(LAYERS):
            body.append((b"\x01", f"layer {layer}: codec raw"))
            for head in range(HEADS):
                block = joined(head_block(band, layer, head))
                rows = len(positions_of(band, layer, head))
                body.append((struct.pack("<IQI", rows, len(block), crc32c(block)),
                             f"head {head}: {rows} rows, {len(block)} bytes, CRC32C"))
    total = 8 + 4 + 8 + len(joined(body)) + 4
    pieces = [(b"KVTMANIF", "magic"), (struct.pack("<I", 1), "version 1"),
              (struct.pack("<Q", total), f"length {total}"), *body]
    return pieces + [(struct.pack("<I", crc32c(joined(pieces))), "CRC32C of all before")]


def render(pieces):
    """Lines `offset  bytes | note`; `00*N` is N zero bytes."""
    lines, offset = [], 0
    for data, note in pieces:
        if len(data) >= 16 and not any(data):
            rows = [f"00*{len(data)}"]
            sizes = [len(data)]
        else:
            chunks = [data[i:i + 16] for i in range(0, len(data), 16)]
            rows = [chunk.hex(" ") for chunk in chunks]
            sizes = [len(chunk) for chunk in chunks]
        for index, (row, size) in enumerate(zip(rows, sizes)):
            lines.append(f"{offset:04x}  {row:<47} | {note if index == 0 else ''}".rstrip())
            offset += size
    return "\n".join(lines) + "\n"


def main():
    blocks = {"manifest": render(manifest()), "segment": render(segment(0, 0)),
              "fidelity": render(fidelity()), "int4": render(segment(0, 0, int4_head_block))}
    text = DOC.read_text()
    for name, block in blocks.items():
        pattern = re.compile(rf"(```hex {name}\n).*?(```\n)", re.DOTALL)
        new, count = pattern.subn(lambda m: m.group(1) + block + m.group(2), text)
        if count != 1:
            sys.exit(f"{DOC.name}: expected one block ```hex {name}, found {count}")
        text = new
    if sys.argv[1:] == ["--check"]:
        if DOC.read_text() != text:
            sys.exit(f"{DOC.name} is not what {pathlib.Path(__file__).name} writes")
        return
    DOC.write_text(text)


if __name__ == "__main__":
    main()
